"""The daemon, in the foreground (behaviour C1, C8)."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from functools import partial
from pathlib import Path

import click

from chump_orchestrator import wiring
from chump_orchestrator.adapters.host import HostClock
from chump_orchestrator.cli.options import Invocation, choosing, everywhere, flags
from chump_orchestrator.cli.repository import opened, wait_for
from chump_orchestrator.core.gap import duration_from, is_gap_id


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
    wiring.start_logging(loaded)
    return wait_for(partial(wiring.run, root, loaded, options))


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
