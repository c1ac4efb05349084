"""The files of one dispatch: how they are named, written and read.

The shim's working directory is the dispatch's directory, so names are relative. A reader sees a
file whole or not at all, also after a power failure.
"""

import errno
import fcntl
import json
import os
import time

from chump_orchestrator.shim.regardless import Regardless

PROTOCOL = 1
"""The version `v` that every JSON file carries."""

SPEC, RUNNING, EXIT = "spec.json", "running.json", "exit.json"
LOCK, TOMBSTONE, SOCKET = "lock", "tombstone", "ctl.sock"
LOG = "shim.log"


PASSING = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
    | {errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.EINTR}
)
"""What a disk or a machine says that may take again what it refuses now."""


class Leave(Exception):
    """Nothing is to be started: another has this dispatch, or nobody may. The text says why."""


def take_over(directory: str) -> int:
    """Go to the folder of a dispatch and lock it for the life of the process.

    Returns the descriptor, which must stay open. What there is to complain about is kept in the
    folder from now on. Raises `Leave` when another process has the lock, or when the dispatch is
    over or was given up, and `OSError` when there is no such folder.
    """
    os.chdir(directory)
    lock = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Leave("the lock is held by another process") from None
    for name in (TOMBSTONE, RUNNING, EXIT):
        if os.path.lexists(name):
            raise Leave(f"{name} exists")
    log = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    os.dup2(log, 2)
    os.close(log)
    return lock


def write_durably(name: str, content: dict[str, object]) -> None:
    """Write a JSON file so that it is there, whole, once this returns; `OSError` if not."""
    data = json.dumps({"v": PROTOCOL, **content}).encode() + b"\n"
    temporary = f"{name}.tmp"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        while data:
            data = data[os.write(fd, data) :]
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(temporary, name)
    directory = os.open(".", os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def make_way(path: str) -> None:
    """Move aside what stands where a file of ours goes; no matter if that cannot be done.

    An agent may have put it there, or have taken our right to write into the folder.
    """
    with Regardless(OSError):
        os.chmod(os.path.dirname(path) or ".", 0o700)
    for place in (path, f"{path}.tmp"):
        with Regardless(OSError):
            if os.path.islink(place):
                os.unlink(place)
            elif os.path.isdir(place):
                os.rename(place, f"{place}.{time.time_ns()}.aside")


def slurp(path: str) -> bytes:
    """The whole of a small file; empty when it cannot be read (its process has gone, say)."""
    with Regardless(OSError), open(path, "rb", buffering=0) as file:
        return file.readall()
    return b""


def stamp() -> str:
    """Now by the wall clock: `2026-04-27T12:00:00.000Z`. For people, never for deadlines."""
    now = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
