"""What it means that a helper program cannot be started, and what no helper gets to see of ours."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping

from chump_orchestrator.core.errors import MissingProgram, Refused, Unavailable

OF_OUR_MANAGER = frozenset({"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"})
"""Variables by which a helper could tell our service manager things in our name."""

SHORTAGES = frozenset(
    {errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.ETXTBSY}
)
"""Failures to start a program that pass by themselves."""


def without_manager(env: Mapping[str, str]) -> dict[str, str]:
    """Return what a helper sees of the environment `env`."""
    return {name: value for name, value in env.items() if name not in OF_OUR_MANAGER}


def explained(
    program: str, cwd: str | os.PathLike[str], error: OSError | ValueError
) -> Refused | Unavailable:
    """Return what to raise for `error`, with which a program in `cwd` did not start. Blocks."""
    if isinstance(error, ValueError):
        return Refused(f"{program} cannot be started: an argument or variable holds a NUL")
    reason = os.strerror(error.errno) if error.errno else type(error).__name__
    if error.errno in SHORTAGES:
        return Unavailable(f"{program} could not be started now: {reason}; free some and retry")
    if not os.path.isdir(cwd):  # noqa: PTH112 - of text or a path
        return Refused(f"{program} could not be started in {os.fspath(cwd)}: no such folder")
    if isinstance(error, FileNotFoundError):
        return MissingProgram(f"{program} was not found; install it, or correct PATH")
    return Refused(f"{program} cannot be executed: {reason}; see its permissions and format")
