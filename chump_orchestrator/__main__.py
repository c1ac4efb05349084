"""The door: `python -m chump_orchestrator` and the `chump-orchestrator` command."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from typing import NoReturn

INTERRUPTED = 130
"""Exit code after Ctrl-C (behaviour C3), also before the command line is there to say so."""


def main() -> int:
    """Run the command line; returns its exit code.

    Most commands look at something and have ended before there is garbage worth collecting:
    whoever starts a loop turns the collector on (`cli.repository.wait_for`). One that had no loop
    has nothing left to finish either, and ends without taking its memory to pieces.
    """
    gc.disable()
    try:
        from chump_orchestrator.cli.root import main as command_line  # noqa: PLC0415 - as it says

        code = command_line()
    except KeyboardInterrupt:
        return INTERRUPTED
    if "asyncio" not in sys.modules:
        # A stream that does not take what was printed is told of by the interpreter's own end.
        with contextlib.suppress(OSError, ValueError):
            _leave(code)
    return code


def _leave(code: int) -> NoReturn:
    """End at once; raises `OSError` where a standard stream does not take what was printed."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
