"""Processes on Linux: keep hold of everything an agent starts, find it, end it.

As a subreaper the shim inherits every orphan of its agent, however it was forked, so whatever
lives is somewhere below the shim in the tree of processes.
"""

import _ctypes  # `ctypes` would make a type for everything that C has
import os
import signal

from chump_orchestrator.shim.files import slurp
from chump_orchestrator.shim.regardless import Regardless

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

_LIKELIER, _LIKELIEST = 300, 1000
"""Thousandths of the machine's memory that an agent counts for on top of what it uses."""

_FREEZES = 50
"""Times the tree is walked for processes that were forked while it was being stopped."""

MAXRSS_BYTES = 1024
"""What `ru_maxrss` counts in."""

_HAS_CHILDREN = os.path.exists(f"/proc/self/task/{os.getpid()}/children")


class _Int(_ctypes._SimpleCData):  # type: ignore[type-arg]  # noqa: SLF001
    _type_ = "i"


class _Long(_ctypes._SimpleCData):  # type: ignore[type-arg]  # noqa: SLF001
    _type_ = "L"


class _Function(_ctypes.CFuncPtr):
    _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO
    _restype_ = _Int
    _argtypes_ = (_Int, _Long, _Long, _Long, _Long)


class _Libc:
    _handle = _ctypes.dlopen(None, os.RTLD_NOW)  # type: ignore[arg-type]


_control = _Function(("prctl", _Libc))  # type: ignore[arg-type]


def _prctl(option: int, value: int) -> None:
    if _control(option, value, 0, 0, 0) != 0:
        error = _ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def adopt_orphans() -> None:
    """Have every orphan below this process become its child."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int) -> None:
    """In the agent to be: be killed when the shim dies; leave if it is dead already."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(127)


def go_first() -> None:
    """In the agent to be: be what the kernel kills, ahead of shim and daemon, for want of memory.

    As everything that it starts inherits that. Anybody may make himself the likelier one.
    """
    own = "/proc/self/oom_score_adj"
    with Regardless(OSError, ValueError):
        wanted = min(int(slurp(own)) + _LIKELIER, _LIKELIEST)
        fd = os.open(own, os.O_WRONLY)
        try:
            os.write(fd, str(wanted).encode())
        finally:
            os.close(fd)


def boot_id() -> str:
    """What tells this start of the machine from all others."""
    return slurp("/proc/sys/kernel/random/boot_id").decode().strip()


def start_of(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; `None` when there is no such process."""
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def has_ended(pid: int) -> bool:
    """Whether this child is over; it stays a zombie, so that its pid cannot become another's."""
    flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return os.waitid(os.P_PID, pid, flags) is not None


def adopted(agent: int) -> list[int]:
    """Children of this process other than the agent: orphans of its making, alive or dead."""
    return [pid for pid in _children(os.getpid()) if pid != agent]


def living(_agent: int, _dispatch: str) -> list[int]:
    """Every process of the agent that is alive: itself, and all that it started."""
    found: list[int] = []
    unseen = [os.getpid()]
    while unseen:
        below = _children(unseen.pop())
        found += below
        unseen += below
    return [pid for pid in found if is_alive(pid)]


def is_alive(pid: int) -> bool:
    """Whether there is such a process, and it is neither a zombie nor about to vanish."""
    fields = _stat(pid)
    return bool(fields) and fields[0] not in (b"Z", b"X")


def kill_all(_agent: int, _dispatch: str) -> set[int]:
    """Kill every process of the agent; those that were alive.

    Each is stopped the moment it is found, before its children are listed: what is stopped cannot
    fork on, so the list is whole and a chain of forks is overtaken from its older end. Walks are
    repeated until one finds nothing new.
    """
    found: set[int] = set()
    alive: set[int] = set()
    for _ in range(_FREEZES):
        fresh = _stop_below(os.getpid()) - found
        found |= fresh
        alive |= {pid for pid in fresh if is_alive(pid)}
        if not fresh:
            break
    for pid in found:
        send(pid, signal.SIGKILL)
    return alive


def _stop_below(root: int) -> set[int]:
    """Stop everything below a process, from the top down; what was found there."""
    found: set[int] = set()
    unseen = [root]
    while unseen:
        for pid in _children(unseen.pop()):
            send(pid, signal.SIGSTOP)
            if pid not in found:
                found.add(pid)
                unseen.append(pid)
    return found


def send(pid: int, number: signal.Signals) -> None:
    """Signal one process; no matter if it has gone."""
    with Regardless(OSError):
        os.kill(pid, number)


def _stat(pid: int) -> list[bytes]:
    """The fields of `/proc/PID/stat` from the third (the state) on; empty when it has gone."""
    return slurp(f"/proc/{pid}/stat").rpartition(b")")[2].split()


def _children(pid: int) -> list[int]:
    if not _HAS_CHILDREN:
        return _children_by_search(pid)
    found: list[int] = []
    with Regardless(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            found += map(int, slurp(f"/proc/{pid}/task/{thread}/children").split())
    return found


def _children_by_search(parent: int) -> list[int]:
    """The same where the kernel keeps no list (gVisor, say): look at every process there is."""
    wanted = str(parent).encode()
    found: list[int] = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            fields = _stat(int(name))
            if fields and fields[1] == wanted:
                found.append(int(name))
    return found
