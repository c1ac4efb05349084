"""The program's own command line, with somebody beside the daemon who measures.

`python -m tests.benchmarks.driven EVENTS run ...` is `chump-orchestrator run ...`. Each event goes
to the file EVENTS as a line of JSON with its time. What a line on standard input asks for is
answered there, too: `lag` measures from now on how late the loop is, `lag?` tells and stops that.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio

from chump_orchestrator import wiring
from chump_orchestrator.__main__ import main
from chump_orchestrator.daemon.operations import Operator
from chump_orchestrator.daemon.world import World
from tests.benchmarks.measuring import Lag

STDIN = 0


class Watcher:
    """Writes down what happens, and how late the loop is while somebody wants to know."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1)

    def around(self, world: World) -> None:
        """Listen to the world's events."""
        world.listeners.append(self.note)

    def note(self, event: str, fields: Mapping[str, object]) -> None:
        told = {"t_ns": time.time_ns(), "event": event, **fields}
        self._file.write(json.dumps(told, default=str) + "\n")

    async def beside(self, _operator: Operator) -> None:
        """Do what standard input asks for, until it ends."""
        os.set_blocking(STDIN, False)
        heard = b""
        async with anyio.create_task_group() as group:
            lag, scope = Lag(), anyio.CancelScope()
            while True:
                await anyio.wait_readable(STDIN)
                chunk = os.read(STDIN, 4096)
                if not chunk:
                    group.cancel_scope.cancel()
                    return
                *lines, heard = (heard + chunk).split(b"\n")
                for line in lines:
                    scope.cancel()
                    if line == b"lag?":
                        self.note("lag", {"p99_ms": lag.p99(), "looks": len(lag.found)})
                    else:
                        lag, scope = Lag(), anyio.CancelScope()
                        group.start_soon(_within, scope, lag)


async def _within(scope: anyio.CancelScope, lag: Lag) -> None:
    with scope:
        await lag.run()


def drive(events: Path) -> int:
    """Be the program, watched."""
    watcher, plain = Watcher(events), wiring.run

    async def run(root: Path, loaded: Any, options: wiring.RunOptions) -> Any:
        watched = replace(options, around=watcher.around, beside=watcher.beside)
        return await plain(root, loaded, watched)

    wiring.run = run
    return main()


if __name__ == "__main__":
    place = Path(sys.argv.pop(1))
    sys.exit(drive(place))
