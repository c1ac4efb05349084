"""The door: `python -m chump_orchestrator` and the `chump-orchestrator` command."""

from __future__ import annotations

import sys

from chump_orchestrator.cli.root import main

if __name__ == "__main__":
    sys.exit(main())
