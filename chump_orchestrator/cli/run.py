"""The daemon, in the foreground (behaviour C1, C8)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, time, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from chump_orchestrator import wiring
from chump_orchestrator.adapters.host import HostClock
from chump_orchestrator.cli import board, streams
from chump_orchestrator.cli.exits import ExitCode
from chump_orchestrator.cli.options import Invocation, choosing, everywhere, flags
from chump_orchestrator.cli.render import note, table
from chump_orchestrator.cli.repository import opened, wait_for
from chump_orchestrator.core.gap import duration_from, is_gap_id
from chump_orchestrator.story import told

if TYPE_CHECKING:
    from chump_orchestrator.config import Loaded
    from chump_orchestrator.daemon.account import Account
    from chump_orchestrator.daemon.operations import Operator


@click.command("run")
@choosing
@click.option("--once", is_flag=True, help="End when nothing is eligible, now or later by itself.")
@click.option("--gap", "gaps", multiple=True, metavar="ID", help="These gaps only; repeatable.")
@click.option(
    "--limit", type=click.IntRange(min=1), metavar="N", help="Start at most so many agents in all."
)
@click.option("--until", metavar="HH:MM", help="Start no agent after this time of the local day.")
@click.option(
    "--pull-wait",
    metavar="DURATION",
    help="How long --once waits for open pull requests, such as 90m; pulls.deadline by default.",
)
@click.option("--no-reflect", is_flag=True, help="Write no reflections.")
@click.option("--yes", is_flag=True, help="Consent to agents that act unattended with your rights.")
@everywhere
@click.pass_obj
def run_command(
    invocation: Invocation,
    *,
    backlog: Path | None,
    base_ref: str | None,
    max_parallel: int | None,
    once: bool,
    gaps: tuple[str, ...],
    limit: int | None,
    until: str | None,
    pull_wait: str | None,
    no_reflect: bool,
    yes: bool,
) -> int:
    """Dispatch agents, in the foreground, until told to end."""
    if pull_wait is not None and not once:
        msg = "--pull-wait is for a run that ends: give --once, too"
        raise click.UsageError(msg)
    for gap in gaps:
        if not is_gap_id(gap):
            raise click.BadParameter(f"{gap!r} is no gap id", param_hint="--gap")
    given = flags(backlog, base_ref, max_parallel) | {"consent": True if yes else None}
    options = wiring.RunOptions(
        once=once,
        gaps=gaps,
        limit=limit,
        until=None if until is None else next_time(until, HostClock().now()),
        pull_wait=None if pull_wait is None else _duration(pull_wait),
        faults_allowed=False,
        reflect=not no_reflect,
        flags=given,
    )
    root, loaded = opened(invocation, given, aloud=True)
    account = _run(root, loaded, options)
    if once:
        with streams.for_whom_it_may_concern():
            _tell(account)
    if account.interrupted:
        return ExitCode.INTERRUPTED
    return ExitCode.FAILED if once and account.has_failed else ExitCode.DONE


def _run(root: Path, loaded: Loaded, options: wiring.RunOptions) -> Account:
    """Run the daemon; on a terminal under a table of what it does, with the story above it."""
    log = loaded.settings.log
    if log.format != "auto" or not board.can_stay():
        wiring.start_logging(root, loaded)
        return wait_for(partial(wiring.run, root, loaded, options))
    shown, clock = board.Board(), HostClock()

    def on_event(event: str, fields: Mapping[str, object]) -> None:
        # What is cause for concern, the log tells as a warning.
        if event not in ("dispatch.overdue", "dispatch.silent") and (line := told(event, fields)):
            shown.say(f"{clock.now().astimezone():%H:%M:%S} {line}")

    async def beside(operator: Operator) -> None:
        await shown.follow(operator.status)

    is_story = log.level == "info"
    watched = replace(options, beside=beside, on_event=on_event if is_story else None)
    with shown.shown():
        wiring.start_logging(root, loaded, shown="warning" if is_story else "")
        return wait_for(partial(wiring.run, root, loaded, watched))


def _tell(account: Account) -> None:
    """Print how each gap ended, and what was left undone and why (behaviour C8)."""
    if account.outcomes:
        rows = [(gap, one.kind, one.reason or "-") for gap, one in sorted(account.outcomes.items())]
        table(("GAP", "OUTCOME", "REASON"), rows)
    else:
        note("no gap was dispatched")
    if account.left:
        click.echo()
        table(("LEFT", "WHY"), [(one.id, one.reason) for one in account.left])
    if account.held_up:
        note(f"nothing more could be dispatched: {account.held_up}")
    if account.broken:
        note(f"a bug ended these dispatches, see the log: {', '.join(account.broken)}")


def next_time(text: str, now: datetime) -> datetime:
    """Return when the local clock next shows `HH:MM`, in UTC; `now` is aware."""
    try:
        hour, minute = text.split(":")
        wanted = time(int(hour), int(minute))
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is no time of day; write it as 07:30", param_hint="--until"
        ) from None
    local = now.astimezone()
    for days in (0, 1):
        # Taken as local time again, as the clock may be put forward or back in between.
        naive = datetime.combine(local.date() + timedelta(days=days), wanted)
        at = naive.astimezone(UTC)
        if at > now:
            return at
    return now + timedelta(days=1)


def _duration(text: str) -> timedelta:
    try:
        return duration_from(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--pull-wait") from None
