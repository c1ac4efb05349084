"""Commands that change what happens: stop, retry, release, pause, resume, drain, reload.

With a daemon they ask it; without one, those that last write the ledger themselves (behaviour C7).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import click

from chump_orchestrator import premises
from chump_orchestrator.adapters.host import HostClock
from chump_orchestrator.adapters.ledger import SqliteLedger
from chump_orchestrator.cli import client
from chump_orchestrator.cli.options import GapId, Invocation, everywhere
from chump_orchestrator.cli.render import say
from chump_orchestrator.cli.repository import entered, wait_for
from chump_orchestrator.config import Loaded
from chump_orchestrator.core.attempts import RESUMED_AT
from chump_orchestrator.core.brakes import Fuse
from chump_orchestrator.core.errors import Refused
from chump_orchestrator.core.gap import Gap, Rejection, on_one_line
from chump_orchestrator.core.ports import Ledger
from chump_orchestrator.core.records import Pause

STARTING_S = 10.0
"""Seconds that a daemon may hold its lock before it listens."""

TRY_AGAIN_S = 0.2

Write = Callable[[Path, Loaded, SqliteLedger], Awaitable[str]]
"""Does in the ledger what the daemon would have done; returns what was done in words."""


@click.command("stop")
@click.argument("gap", type=GapId())
@click.option("--now", is_flag=True, help="Kill it at once, without INT and TERM first.")
@everywhere
@click.pass_obj
def stop_command(invocation: Invocation, gap: str, *, now: bool) -> None:
    """Stop the agent of GAP."""
    _ask(invocation, "stop", gap=gap, now=now)


@click.command("drain")
@everywhere
@click.pass_obj
def drain_command(invocation: Invocation) -> None:
    """Let the daemon end once its agents have ended."""
    _ask(invocation, "drain")


@click.command("reload")
@everywhere
@click.pass_obj
def reload_command(invocation: Invocation) -> None:
    """Have the daemon read settings and backlog anew."""
    _ask(invocation, "reload")


@click.command("pause")
@click.argument("reason", default="")
@everywhere
@click.pass_obj
def pause_command(invocation: Invocation, reason: str) -> None:
    """Start no more agents until `resume`, also over restarts."""
    _ask_or_write(invocation, partial(_pause, on_one_line(reason)), "pause", reason=reason)


@click.command("resume")
@everywhere
@click.pass_obj
def resume_command(invocation: Invocation) -> None:
    """Start agents again."""
    _ask_or_write(invocation, _resume, "resume")


@click.command("retry")
@click.argument("gap", type=GapId())
@click.option("--resume", is_flag=True, help="Go on with its last session, in its worktree.")
@everywhere
@click.pass_obj
def retry_command(invocation: Invocation, gap: str, *, resume: bool) -> None:
    """Dispatch GAP now, also one that is parked or was shipped."""
    write = partial(_go_on if resume else _retry, gap)
    _ask_or_write(invocation, write, "retry", gap=gap, **({"resume": True} if resume else {}))


@click.command("release")
@click.argument("gap", type=GapId())
@everywhere
@click.pass_obj
def release_command(invocation: Invocation, gap: str) -> None:
    """Free a parked GAP, so that it may be picked again."""
    _ask_or_write(invocation, partial(_release, gap), "release", gap=gap)


def _ask(invocation: Invocation, op: str, **fields: object) -> None:
    grounds = entered(invocation)
    try:
        answer = client.ask(grounds.control, op, **fields)
    except client.NotRunning:
        grounds.require()
        raise
    say(str(answer["message"]))
    grounds.tell()


def _ask_or_write(invocation: Invocation, write: Write, op: str, **fields: object) -> None:
    grounds = entered(invocation)
    root, loaded = grounds.root, grounds.loaded
    patience_ends = time.monotonic() + STARTING_S
    while True:
        with contextlib.suppress(client.NotRunning):
            say(str(client.ask(grounds.control, op, **fields)["message"]))
            grounds.tell()
            return
        try:
            grounds.require()
            with premises.daemon_lock(root, loaded):
                say(wait_for(partial(_written, root, loaded, write)))
                return
        except premises.Busy:
            # A daemon that is starting or ending, or another command like this one.
            if time.monotonic() > patience_ends:
                raise
            time.sleep(TRY_AGAIN_S)


async def _written(root: Path, loaded: Loaded, write: Write) -> str:
    async with premises.open_ledger(root, loaded, readonly=False) as ledger:
        return await write(root, loaded, ledger)


async def _pause(reason: str, _root: Path, _loaded: Loaded, ledger: Ledger) -> str:
    await ledger.set_pause(Pause("operator", reason, HostClock().now()))
    return "paused; no agent is started before `resume`"


async def _resume(_root: Path, loaded: Loaded, ledger: Ledger) -> str:
    was_paused = await ledger.pause() is not None or (await ledger.fuse()).blown_until is not None
    await ledger.set_pause(None)
    await ledger.set_fuse(Fuse())
    now = HostClock().now()
    await ledger.set_meta(RESUMED_AT, now.isoformat())
    found = await premises.todays_budget(loaded, ledger, now)
    still = f"; but {found['held']}" if found["held"] else ""
    return ("resumed" if was_paused else "dispatching was not paused") + still


async def _retry(gap: str, root: Path, loaded: Loaded, ledger: SqliteLedger) -> str:
    await _usable(gap, root, loaded)
    for record in await ledger.records(active=True):
        if record.dispatch.gap.id == gap:
            raise Refused(f"{gap} has an active dispatch already, {record.dispatch.id}")
    now = HostClock().now()
    if (found := await premises.todays_budget(loaded, ledger, now))["reached"]:
        raise Refused(f"{gap} is not dispatched: {found['held']}")
    await ledger.free(gap, now)
    await ledger.request_dispatch(gap)
    return f"{gap} is dispatched first when `chump-orchestrator run` starts"


async def _go_on(gap: str, root: Path, loaded: Loaded, ledger: SqliteLedger) -> str:
    from chump_orchestrator.wiring import session_of  # noqa: PLC0415 - slow to import

    await _usable(gap, root, loaded)
    former = await session_of(root, loaded, ledger, gap)
    await ledger.request_dispatch(gap, resume=0)
    return (
        f"{gap} is gone on with first when `chump-orchestrator run` starts, in the session of"
        f" {former.dispatch.id}"
    )


async def _release(gap: str, root: Path, loaded: Loaded, ledger: Ledger) -> str:
    is_held = gap in {one.gap for one in await ledger.parked()} | (await ledger.shipped()).keys()
    is_held = is_held or gap in await premises.over_budget(loaded, ledger)
    if not is_held:
        await _usable(gap, root, loaded)
    await ledger.free(gap, HostClock().now())
    return f"{gap} is released" if is_held else f"{gap} was not parked"


async def _usable(gap: str, root: Path, loaded: Loaded) -> None:
    backlog = await premises.read_backlog(root, loaded)
    match backlog.find(gap):
        case Gap():
            return
        case Rejection(reason=reason, place=place):
            raise Refused(f"{gap} cannot be used: {reason} ({place})")
        case None:
            raise Refused(f"the backlog has no entry {gap}")
