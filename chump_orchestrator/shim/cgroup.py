"""Control groups: what lives in one, what was killed in it for want of memory.

However a process forks, it stays in the group of whoever forked it; `cgroup.kill` ends all of
them at once, also those that are being forked, and the kernel tells when nothing is left. That is
version 2. Of version 1, where a machine keeps its limits in that, a service manager's are read.
"""

import os

from chump_orchestrator.shim.files import slurp
from chump_orchestrator.shim.regardless import Regardless

_NO_LIMIT = 2**62
"""From here on a number means that there is none, in version 1."""

_KILLED_FROM_OUTSIDE = "user.oomd_kill"
"""Where systemd-oomd, which kills whole groups when memory gets short, counts what it killed."""


class Cgroup:
    """One control group for an agent and all that it starts.

    `around` are the groups of a scope that holds it together with its shim, where there is one.
    """

    def __init__(self, path: str, around: tuple[str, ...] = ()) -> None:
        self.path = path
        self._around = around

    def processes(self) -> list[int]:
        """The processes in it and below, zombies left out; empty also when it cannot be read."""
        found: list[int] = []
        for folder in self._folders():
            with Regardless(ValueError):
                found += map(int, slurp(f"{folder}/cgroup.procs").split())
        return found

    def kill(self) -> None:
        """Kill everything in it."""
        with Regardless(OSError):
            write(f"{self.path}/cgroup.kill", b"1")

    def remove(self) -> None:
        """Take it away once it is empty, with those an agent has made in it.

        No matter if it is not, or has gone.
        """
        for folder in self._folders():
            with Regardless(OSError):
                os.rmdir(folder)

    def _folders(self) -> list[str]:
        """Itself and the groups below, those the furthest down first."""
        return [folder for folder, _, _ in os.walk(self.path, topdown=False)]

    def out_of_memory(self) -> dict[str, object] | None:
        """What was killed in it for want of memory, to be asked before it is removed; or `None`.

        `kills` counts processes, `at_limit` says whether a limit of the group was the reason, and
        not the machine's own shortage, and `limit` is that limit in bytes.
        """
        for path in (self.path, *self._around):
            events = _counters(f"{path}/memory.events") or _counters(f"{path}/memory.oom_control")
            kills = events.get("oom_kill", 0) + _counted_outside(path)
            if kills:
                met = events.get("oom", 0) or number_in(f"{path}/memory.failcnt")
                limit = memory_limit(path) if met else None
                return {"kills": kills, "at_limit": limit is not None, "limit": limit}
        return None


def own_group(proc: str = "/proc/self") -> str | None:
    """The folder of the group that a process is in; `None` where that is not to be seen."""
    inside = ""
    for line in os.fsdecode(slurp(f"{proc}/cgroup")).splitlines():
        if line.startswith("0::"):
            inside = line.removeprefix("0::")
    return _seen(proc, inside, "cgroup2") if inside else None


def own_group_of(controller: str, proc: str = "/proc/self") -> str | None:
    """The same for a controller of version 1; `None` where it is none here."""
    inside = ""
    for line in os.fsdecode(slurp(f"{proc}/cgroup")).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controller in controllers.split(","):
            inside = path
    return _seen(proc, inside, "cgroup", controller) if inside else None


def _seen(proc: str, inside: str, kind: str, option: str = "") -> str | None:
    """Where a group is to be seen in the file systems of a kind, and with an option, if need be."""
    for line in os.fsdecode(slurp(f"{proc}/mountinfo")).splitlines():
        before, _, after = line.partition(" - ")
        found, _, options = after.split(" ")[:3]
        if found == kind and (not option or option in options.split(",")):
            root, mount = before.split(" ")[3:5]
            below = os.path.relpath(inside, root)
            if not below.startswith(".."):
                return os.path.normpath(os.path.join(mount, below))
    return None


def memory_limit(path: str) -> int | None:
    """How many bytes a group may use, whichever version it is of; `None` for no limit."""
    limit = number_in(f"{path}/memory.max") or number_in(f"{path}/memory.limit_in_bytes")
    return limit if limit and limit < _NO_LIMIT else None


def number_in(path: str) -> int | None:
    """The number that a file holds; `None` where it holds none, or cannot be read."""
    content = slurp(path).strip()
    return int(content) if content.isdigit() else None


def enable(path: str, controllers: tuple[str, ...]) -> None:
    """Let the groups below have these controllers, those of them that can be had here.

    The kernel allows that only where no process is in the group itself.
    """
    for controller in controllers:
        with Regardless(OSError):
            write(f"{path}/cgroup.subtree_control", b"+" + controller.encode())


def write(path: str, content: bytes) -> None:
    """Write to a file of a control group, all at once; `OSError` where it is not taken."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, content)
    finally:
        os.close(fd)


def _counters(path: str) -> dict[str, int]:
    counted: dict[str, int] = {}
    for line in slurp(path).decode("ascii", "replace").splitlines():
        name, _, value = line.partition(" ")
        if value.isdigit():
            counted[name] = int(value)
    return counted


def _counted_outside(path: str) -> int:
    if hasattr(os, "getxattr"):
        with Regardless(OSError, ValueError):
            return int(os.getxattr(path, _KILLED_FROM_OUTSIDE))
    return 0
