"""A control group of the dispatch's own, where one may be made: nothing escapes from it.

However a process forks, it stays in the group of whoever forked it; `cgroup.kill` ends all of
them at once, also those that are being forked, and the kernel tells when nothing is left.
"""

import contextlib
import os

from chump_orchestrator.shim.files import slurp


class Cgroup:
    """One control group (version 2) for an agent and all that it starts."""

    def __init__(self, path: str) -> None:
        self.path = path

    def processes(self) -> list[int]:
        """The processes in it, zombies left out; empty also when it cannot be read."""
        with contextlib.suppress(OSError, ValueError):
            return [int(pid) for pid in slurp(f"{self.path}/cgroup.procs").split()]
        return []

    def kill(self) -> None:
        """Kill everything in it."""
        with contextlib.suppress(OSError):
            _write(f"{self.path}/cgroup.kill", b"1")

    def remove(self) -> None:
        """Take it away once it is empty; no matter if it is not, or has gone."""
        with contextlib.suppress(OSError):
            os.rmdir(self.path)


def confine(pid: int, parent: str | None, dispatch: str) -> Cgroup | None:
    """Put a process that waits to become an agent into a group of its own below `parent`.

    `None` where there is no such parent, or it does not allow it: containment falls back on the
    tree of processes.
    """
    if not parent:
        return None
    path = f"{parent}/chump-{dispatch}"
    with contextlib.suppress(OSError):
        os.mkdir(path)
        try:
            _write(f"{path}/cgroup.procs", str(pid).encode())
        except OSError:
            os.rmdir(path)
            raise
        return Cgroup(path)
    return None


def _write(path: str, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, content)
    finally:
        os.close(fd)
