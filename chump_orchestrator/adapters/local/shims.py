"""Shims as processes: found by their arguments, signalled by what cannot become another's. Blocks.

The last resort. As long as a shim can be asked it is asked; here is what can still be done about
one whose folder or socket has gone, or that was stopped and does not answer.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import psutil

PROGRAM = "__main__.py"
"""What is run of the shim's package: run as a folder, it would cost a megabyte more."""

_FOLDER = "shim"
_END_S = 1.0
"""How long one that was killed is waited for."""

_AGAIN_S = 0.02
_HAS_PIDFD = hasattr(os, "pidfd_open")


def shims_of(directory: Path) -> list[psutil.Process]:
    """Return the living shims of a dispatch, ours by user id; known also when its folder is gone.

    While a shim starts, the child that is to become its agent still looks like another one.
    """
    return [process for pid in psutil.pids() if (process := _shim_of(directory, pid)) is not None]


def wake_shim(directory: Path) -> bool:
    """Have a shim that was stopped go on; whether there is a shim at all."""
    return _signal(directory, signal.SIGCONT)


def end_shim(directory: Path) -> bool:
    """Ask a shim to stop its agent, for the second time to do it at once; whether there is one."""
    return _signal(directory, signal.SIGTERM)


def kill_shim(directory: Path) -> None:
    """Kill the shim of a dispatch, also a stopped one, and wait a moment for its end."""
    until = time.monotonic() + _END_S
    while _signal(directory, signal.SIGKILL) and time.monotonic() < until:
        time.sleep(_AGAIN_S)


def agent_of(shim: psutil.Process) -> int:
    """Return the process id of a shim's agent, its oldest child; 0 when it has none."""
    with contextlib.suppress(psutil.Error):
        children = shim.children()
        return min(children, key=psutil.Process.create_time).pid if children else 0
    return 0


def _shim_of(directory: Path, pid: int) -> psutil.Process | None:
    with contextlib.suppress(psutil.Error, OSError):
        process = psutil.Process(pid)
        words = process.cmdline()
        program = Path(words[-2] if len(words) > 1 else "")
        # Earlier versions run the folder itself.
        folder = program.parent if program.name == PROGRAM else program
        if (
            folder.name == _FOLDER
            and Path(words[-1]).name == directory.name
            # One state folder may be known by two paths.
            and os.path.realpath(words[-1]) == os.path.realpath(directory)
            and process.uids().real == os.getuid()
            and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
        ):
            return process
    return None


def _signal(directory: Path, number: signal.Signals) -> bool:
    found = shims_of(directory)
    for process in found:
        with contextlib.suppress(psutil.Error, OSError):
            _send(process, number)
    return bool(found)


def _send(process: psutil.Process, number: signal.Signals) -> None:
    """Signal this very process, never another that has got its id meanwhile."""
    try:
        handle = os.pidfd_open(process.pid) if _HAS_PIDFD else None
    except ProcessLookupError:
        return
    except OSError:  # a kernel without them
        handle = None
    if handle is None:
        process.send_signal(number)
        return
    try:
        # In this order: what still is that process now, was it when the handle was made.
        if process.is_running():
            signal.pidfd_send_signal(handle, number)
    finally:
        os.close(handle)
