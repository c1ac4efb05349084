"""What runs now: as the daemon tells it, or without one as the ledger has it (behaviour C6, C7)."""

from __future__ import annotations

import fcntl
import json
import os
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import click

from chump_orchestrator import looking, premises
from chump_orchestrator.adapters.host import HostClock
from chump_orchestrator.cli import board, client, streams
from chump_orchestrator.cli.exits import ExitCode
from chump_orchestrator.cli.options import Invocation, as_json, everywhere
from chump_orchestrator.cli.render import emit, instant, note
from chump_orchestrator.cli.repository import Grounds, entered, wait_for
from chump_orchestrator.config import Loaded
from chump_orchestrator.core.errors import ConfigError, Refused, Unavailable
from chump_orchestrator.core.outcome import PullRequest, PullState
from chump_orchestrator.core.picker import choose
from chump_orchestrator.core.ports import Ledger
from chump_orchestrator.core.records import DispatchState, Record
from chump_orchestrator.shim.files import EXIT, LOCK

MOST_OF_AN_EXIT = 64 * 1024
"""Bytes read of what a shim wrote at the end of its agent; that is some hundred."""


@click.command("status")
@click.option("-w", "--watch", is_flag=True, help="Keep showing it on the terminal, until Ctrl-C.")
@as_json
@everywhere
@click.pass_obj
def status_command(invocation: Invocation, *, watch: bool, as_json: bool) -> int:
    """Show what runs now."""
    if watch and (as_json or not board.can_stay()):
        msg = "--watch draws on a terminal; programs ask again with --json"
        raise click.UsageError(msg)
    grounds = entered(invocation)
    if watch:
        return _watch(grounds)
    code = ExitCode.DONE
    try:
        status = client.ask(grounds.control, "status")["status"]
    except client.NotRunning:
        grounds.require()
        code = ExitCode.NOT_RUNNING
        status = looking.at_once(partial(_from_ledger, grounds.root, grounds.loaded))
    with streams.for_whom_it_may_concern():
        if as_json:
            emit(status)
        else:
            board.show(status)
    grounds.tell()
    return code


def _watch(grounds: Grounds) -> int:
    """Show the status until the daemon ends, or Ctrl-C."""
    import anyio.to_thread  # noqa: PLC0415 - slow to import

    shown = board.Board()

    async def ask() -> board.Status:
        answer = await anyio.to_thread.run_sync(partial(client.ask, grounds.control, "status"))
        return dict(answer["status"])

    try:
        grounds.tell()
        with shown.shown():
            wait_for(partial(shown.follow, ask))
    except client.NotRunning:
        grounds.require()
        note("no daemon runs on this repository")
        return ExitCode.NOT_RUNNING
    except KeyboardInterrupt:
        return ExitCode.DONE
    return ExitCode.DONE


async def _from_ledger(root: Path, loaded: Loaded) -> dict[str, Any]:
    async with looking.open_ledger(root, loaded) as ledger:
        records = await ledger.records(active=True)
        pause = await ledger.pause()
        parked = await ledger.parked()
        ready = await _ready(root, loaded, ledger)
        budget = await premises.todays_budget(loaded, ledger, HostClock().now())
    folders, now = premises.state_dir(root, loaded) / "d", HostClock().now()
    return {
        "daemon": None,
        "slots": {
            "used": sum(1 for record in records if record.holds_slot),
            "total": loaded.settings.max_parallel,
        },
        "ready": ready,
        "budget": budget,
        "settled": {},
        "dispatches": [_dispatch(one, folders / one.dispatch.id, now) for one in records],
        "pause": pause and {"by": pause.by, "reason": pause.reason, "since": instant(pause.since)},
        "parked": [
            {
                "gap": one.gap,
                "reason": one.reason,
                "since": instant(one.since),
                "until": one.until and instant(one.until),
            }
            for one in parked
        ],
    }


async def _ready(root: Path, loaded: Loaded, ledger: Ledger) -> int | None:
    """Count the eligible gaps; `None`, with a note, when the backlog cannot be read."""
    try:
        backlog = looking.read_backlog(root, loaded)
        standing = await looking.standing(root, loaded, backlog, ledger)
    except (ConfigError, Refused, Unavailable) as error:
        note(f"note: the backlog cannot be read: {error}")
        return None
    everything = choose(standing, len(standing.gaps), premises.pick_policy(loaded.settings))
    return len(everything.picked)


def _dispatch(record: Record, folder: Path, now: datetime) -> dict[str, Any]:
    """Return one dispatch as ledger and shim leave it; nobody has looked after it for a while."""
    dispatch, workspace = record.dispatch, record.workspace
    state, elapsed_s = record.state, _worked_s(record, folder)
    if state is DispatchState.RUNNING and not has_shim(folder):
        state = DispatchState.EXITED
    if elapsed_s is None:
        began = record.launched_at or dispatch.created_at
        elapsed_s = max((now - began).total_seconds(), 0)
    soft = dispatch.deadlines.soft.total_seconds()
    pull = _pull(record.pull)
    return {
        "id": dispatch.id,
        "gap": dispatch.gap.id,
        "attempt": dispatch.attempt,
        "resumed_from": dispatch.resumed.dispatch if dispatch.resumed else None,
        "state": str(state),
        "backend": dispatch.route.backend,
        "model": dispatch.route.model or None,
        "pid": record.pid if state is DispatchState.RUNNING else None,
        "branch": dispatch.names.branch,
        "worktree": workspace and workspace.path,
        "elapsed_s": round(elapsed_s, 1),
        "soft_deadline_s": soft,
        "overdue": pull is None and elapsed_s > soft,
        "silent_s": None,
        "last_line": None,
        "pull": pull,
        "shipping": record.shipment and str(record.shipment.stage),
        **record.report.facts(),
    }


def has_shim(folder: Path) -> bool:
    """Say whether an agent still has its shim, which holds a lock for as long as it lives."""
    try:
        lock = os.open(folder / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(lock)
    return False


def _worked_s(record: Record, folder: Path) -> float | None:
    """Return the seconds that an agent took which has ended; `None` when it has not."""
    if record.exit is not None:
        return record.exit.active.total_seconds()
    try:
        with (folder / EXIT).open("rb") as file:
            active_s = json.loads(file.read(MOST_OF_AN_EXIT))["active_s"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    return float(active_s) if isinstance(active_s, int | float) else None


def _pull(pull: PullRequest | None) -> dict[str, Any] | None:
    if pull is None or pull.state is PullState.NONE:
        return None
    return pull.facts()
