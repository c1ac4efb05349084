"""Let others go first: an agent works unattended, and whoever asks the daemon waits for an answer.

Where all processors are busy, the kernel gives turns by nice values. On Linux it may first divide
them among sessions ("autogroup"), and an agent has one of its own, so that is told as well.
"""

import os

from chump_orchestrator.shim.regardless import Regardless

MOST = 19

_HAS_SESSION = os.getsid(0) == os.getpid()
"""Whether this process was started with a session of its own, seen before it detaches from it."""


def yield_to_others(nice: int) -> None:
    """Be so much nicer from now on, with all that is started later."""
    if nice:
        with Regardless(OSError):
            os.nice(nice)
        if _HAS_SESSION:
            has_session_yield(os.getpid(), nice)


def has_session_yield(pid: int, nice: int) -> bool:
    """Have the session of a process yield as a whole; false when that is to be tried again.

    The kernel takes ten of these a second from all who are not root.
    """
    try:
        fd = os.open(f"/proc/{pid}/autogroup", os.O_WRONLY)
        try:
            os.write(fd, str(nice).encode())
        finally:
            os.close(fd)
    except BlockingIOError:
        return False
    except OSError:  # there is no such thing here
        return True
    return True
