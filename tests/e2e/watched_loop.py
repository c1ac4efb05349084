"""Runs the daemon once, and tells which calls that may block its code made on the loop.

python -m tests.e2e.watched_loop ROOT OUTPUT
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import anyio
import blockbuster.blockbuster as watched
from blockbuster import BlockBuster

import chump_orchestrator
from chump_orchestrator import config, wiring

PACKAGE = f"{Path(chump_orchestrator.__file__).parent}/"


def main(root: Path, output: Path) -> None:
    calls: set[tuple[str, str]] = set()

    def noting(
        _modules: object,
        _excluded: object,
        function: Callable[..., Any],
        name: str,
        _exempt: object,
        may_block: Callable[..., bool],
    ) -> Callable[..., Any]:
        """Stand in for what raises: a run is to tell all of them."""

        def call(*args: Any, **kwargs: Any) -> Any:
            if watched._skip.value or not on_a_loop():
                return function(*args, **kwargs)
            watched._skip.value = True
            try:
                if not may_block(*args, **kwargs) and (where := place(sys._getframe(1))):
                    calls.add((name, where))
                return function(*args, **kwargs)
            finally:
                watched._skip.value = False

        return call

    watched._wrap_blocking = noting  # type: ignore[assignment]
    buster = BlockBuster()

    def hear(event: str, _fields: Mapping[str, object]) -> None:
        if event == "daemon.started":
            buster.activate()
        elif event == "daemon.stopped":
            buster.deactivate()

    loaded = config.load(root)
    account = anyio.run(wiring.run, root, loaded, wiring.RunOptions(once=True, on_event=hear))
    shipped = [gap for gap, outcome in account.outcomes.items() if outcome.kind == "shipped"]
    output.write_text(json.dumps({"calls": sorted(calls), "shipped": sorted(shipped)}))


def on_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def place(frame: FrameType | None) -> str:
    """Return the innermost function of ours, empty where only others' code is at work."""
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(PACKAGE):
            return f"{file.removeprefix(PACKAGE)} {frame.f_code.co_name}"
        frame = frame.f_back
    return ""


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
