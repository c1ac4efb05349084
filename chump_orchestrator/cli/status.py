"""What runs now: as the daemon tells it, or without one as the ledger has it (behaviour C6, C7)."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import click

from chump_orchestrator import wiring
from chump_orchestrator.adapters.host import HostClock
from chump_orchestrator.cli import board, client
from chump_orchestrator.cli.exits import ExitCode
from chump_orchestrator.cli.options import Invocation, as_json, everywhere
from chump_orchestrator.cli.planning import holds_slot
from chump_orchestrator.cli.render import emit, instant, note
from chump_orchestrator.cli.repository import opened, wait_for
from chump_orchestrator.config import Loaded
from chump_orchestrator.core.errors import ConfigError, Refused, Unavailable
from chump_orchestrator.core.outcome import PullRequest, PullState
from chump_orchestrator.core.picker import choose
from chump_orchestrator.core.ports import Ledger
from chump_orchestrator.core.records import Record


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
    root, loaded = opened(invocation)
    if watch:
        return _watch(root, loaded)
    code = ExitCode.DONE
    try:
        status = client.ask(wiring.control_path(root, loaded), "status")["status"]
    except client.NotRunning:
        code = ExitCode.NOT_RUNNING
        status = wait_for(partial(_from_ledger, root, loaded))
    if as_json:
        emit(status)
    else:
        board.show(status)
    return code


def _watch(root: Path, loaded: Loaded) -> int:
    """Show the status until the daemon ends, or Ctrl-C."""
    shown = board.Board()

    async def ask() -> board.Status:
        ask_once = partial(client.ask, wiring.control_path(root, loaded), "status")
        answer = await anyio.to_thread.run_sync(ask_once)
        return dict(answer["status"])

    try:
        with shown.shown():
            wait_for(partial(shown.follow, ask))
    except client.NotRunning:
        note("no daemon runs on this repository")
        return ExitCode.NOT_RUNNING
    except KeyboardInterrupt:
        return ExitCode.DONE
    return ExitCode.DONE


async def _from_ledger(root: Path, loaded: Loaded) -> dict[str, Any]:
    async with wiring.open_ledger(root, loaded, readonly=True) as ledger:
        records = await ledger.records(active=True)
        pause = await ledger.pause()
        parked = await ledger.parked()
        ready = await _ready(root, loaded, ledger)
    now = HostClock().now()
    return {
        "daemon": None,
        "slots": {
            "used": sum(1 for record in records if holds_slot(record)),
            "total": loaded.settings.max_parallel,
        },
        "ready": ready,
        "dispatches": [_dispatch(record, now) for record in records],
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
        backlog = await wiring.read_backlog(root, loaded)
        standing = await wiring.standing(root, loaded, backlog, ledger)
    except (ConfigError, Refused, Unavailable) as error:
        note(f"note: the backlog cannot be read: {error}")
        return None
    everything = choose(standing, len(standing.gaps), wiring.pick_policy(loaded.settings))
    return len(everything.picked)


def _dispatch(record: Record, now: datetime) -> dict[str, Any]:
    dispatch, workspace = record.dispatch, record.workspace
    elapsed = max((now - (record.launched_at or dispatch.created_at)).total_seconds(), 0)
    soft = dispatch.deadlines.soft.total_seconds()
    pull = _pull(record.pull)
    return {
        "id": dispatch.id,
        "gap": dispatch.gap.id,
        "attempt": dispatch.attempt,
        "state": str(record.state),
        "backend": dispatch.route.backend,
        "model": dispatch.route.model or None,
        "pid": record.pid,
        "branch": dispatch.names.branch,
        "worktree": workspace and workspace.path,
        "elapsed_s": elapsed,
        "soft_deadline_s": soft,
        "overdue": pull is None and elapsed > soft,
        "silent_s": None,
        "pull": pull,
        "cost_usd": record.cost_usd,
        "tokens": record.tokens,
    }


def _pull(pull: PullRequest | None) -> dict[str, Any] | None:
    if pull is None or pull.state is PullState.NONE:
        return None
    return {"number": pull.number, "state": str(pull.state), "checks": str(pull.checks)}
