"""The door: `python -m chump_orchestrator` and the `chump-orchestrator` command."""

from __future__ import annotations

import sys

INTERRUPTED = 130
"""Exit code after Ctrl-C (behaviour C3), also before the command line is there to say so."""


def main() -> int:
    """Run the command line; returns its exit code."""
    try:
        from chump_orchestrator.cli.root import main as command_line  # noqa: PLC0415 - as it says

        return command_line()
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
