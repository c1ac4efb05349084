"""What each command costs before it does anything, beside an interpreter that does nothing."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.backlog_fixture import ENTRIES, backlog
from tests.benchmarks.measuring import Ran, Room, Row, Target, interleaved, ran
from tests.benchmarks.yard import Yard

PROGRAM = (sys.executable, "-m", "chump_orchestrator")
NOTHING = (sys.executable, "-c", "pass")
NO_PROGRAM = "python -c pass"
NOT_RUNNING = 3
"""The exit code of `status` without a daemon (behaviour C3)."""


def rows(room: Room) -> list[Row]:
    yard = Yard.lay_out(room.folder("start"), ["START-1"], "")
    page = yard.root / "docs" / "gaps.yaml"
    # Nothing is to be dispatched by the daemons, which leave ledger and cache as they are found
    # wherever one has run.
    page.write_text(backlog(ENTRIES).replace("status: open", "status: deferred"))
    ready = tuple(_ready_s(yard) for _ in range(room.rounds(7, quick=2)))
    page.write_text(backlog(ENTRIES))
    rounds = room.rounds(15, quick=3)
    took: dict[str, list[Ran]] = {}

    def command(name: str, *argv: str, before: Callable[[], None] | None = None) -> None:
        def way() -> float:
            if before is not None:
                before()
            found = ran(argv, cwd=yard.root, codes=(0, NOT_RUNNING))
            took.setdefault(name, []).append(found)
            return found.wall_ms

        ways[name] = way

    ways: dict[str, Callable[[], float]] = {}
    command("nothing", *NOTHING)
    command("cold", *PROGRAM, "plan", before=lambda: _forget(yard.state))
    command("warm", *PROGRAM, "plan")
    command("status", *PROGRAM, "status")
    command("version", *PROGRAM, "--version")
    # What is as young as its cache is not taken from there.
    time.sleep(2.1)
    walls = interleaved(rounds, ways)
    cpu = {name: tuple(one.cpu_ms for one in found[1:]) for name, found in took.items()}

    def row(name: str, what: str, limit: float | None, *, of: str = "wall") -> Row:
        values = walls if of == "wall" else cpu
        return Row(
            f"start.{name}" if of == "wall" else f"start.{name}.cpu",
            what,
            "ms",
            values[name],
            None if limit is None else Target(limit, of="ratio"),
            NO_PROGRAM,
            values["nothing"],
        )

    return [
        row("warm", "`plan`, 543 entries, parsed before", 6),
        row("cold", "`plan`, 543 entries, not parsed before", 10),
        row("warm", "the same, CPU", None, of="cpu"),
        row("cold", "the same, CPU", None, of="cpu"),
        row("status", "`status`, no daemon", None),
        row("status", "the same, CPU", None, of="cpu"),
        row("version", "`--version`", None),
        row("version", "the same, CPU", None, of="cpu"),
        Row("start.ready", "daemon: start to ready", "s", ready, Target(0.5)),
        Row(
            "start.nothing",
            f"`{NO_PROGRAM}` itself: how busy the machine is",
            "ms",
            walls["nothing"],
        ),
    ]


def _forget(state: Path) -> None:
    (state / "backlog.cache").unlink(missing_ok=True)


def _ready_s(yard: Yard) -> float:
    """Return how long it takes from the start of `run` to its first line after all is ready."""
    began = time.perf_counter()
    with subprocess.Popen(
        [*PROGRAM, "run"],
        cwd=yard.root,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as daemon:
        assert daemon.stderr is not None
        for line in daemon.stderr:
            if b"daemon.started" in line:
                took_s = time.perf_counter() - began
                daemon.terminate()
                daemon.stderr.read()
                return took_s
    raise AssertionError("the daemon did not start")
