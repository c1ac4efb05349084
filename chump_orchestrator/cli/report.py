"""A night's account on one screen: shipped, failed, waiting for a person, running, spent (C10)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import click

from chump_orchestrator import config, premises
from chump_orchestrator.adapters.host import HostClock
from chump_orchestrator.cli.options import Invocation, as_json, everywhere
from chump_orchestrator.cli.render import duration, emit, instant, note, say, table
from chump_orchestrator.cli.repository import opened, wait_for
from chump_orchestrator.cli.status import has_shim
from chump_orchestrator.config import Loaded
from chump_orchestrator.core.budget import in_words
from chump_orchestrator.core.errors import ConfigError, Refused, Unavailable
from chump_orchestrator.core.gap import duration_from
from chump_orchestrator.core.ports import Ledger
from chump_orchestrator.core.records import DispatchState, Parked, Record
from chump_orchestrator.core.report import Report, Spent, report

EVERYTHING = 2**31
"""More dispatches than any ledger has."""

ROWS = 8
"""Of each table without --all, so that a night's account fits on a screen."""

NIGHT = "12h"

_TIME = re.compile(r"\d{1,2}:\d{2}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Waiting:
    """Something that goes on only when a person acts; `gap` is empty where it is about all."""

    kind: str
    what: str
    remedy: str
    gap: str = ""
    since: datetime | None = None

    def document(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            "kind": self.kind,
            "gap": self.gap or None,
            "what": self.what,
            "remedy": self.remedy,
            "since": self.since and instant(self.since),
        }


@click.command("report")
@click.option(
    "--since",
    default=NIGHT,
    show_default=True,
    metavar="WHEN",
    help="A duration such as 12h, a time such as 22:00, a date, or 2026-04-27T22:00.",
)
@click.option("--all", "everything", is_flag=True, help="Every row, however many there are.")
@as_json
@everywhere
@click.pass_obj
def report_command(invocation: Invocation, *, since: str, everything: bool, as_json: bool) -> None:
    """Tell what a night came to: shipped, failed, waiting for you, spent."""
    now = HostClock().now()
    begin = instant_of(since, now)
    root, loaded = opened(invocation)
    found, waiting, budget = wait_for(partial(_found, root, loaded, begin, now))
    if as_json:
        emit({**_document(found, waiting), "budget": budget})
    else:
        _tell(found, waiting, 2**31 if everything else ROWS)
        _tell_budget(budget)


def instant_of(text: str, now: datetime) -> datetime:
    """Return the instant that `--since` stands for; `now` is aware.

    A time of day is the last one that the local clock has shown, a date its local midnight.
    """
    try:
        at = _instant_of(text.strip(), now)
    except (ValueError, OverflowError):
        raise click.BadParameter(
            f"{text!r} is no time; write 12h, 22:00, 2026-04-27 or 2026-04-27T22:00",
            param_hint="--since",
        ) from None
    if at >= now:
        raise click.BadParameter(f"{text!r} is still to come", param_hint="--since")
    return at


def _instant_of(text: str, now: datetime) -> datetime:
    if _TIME.fullmatch(text):
        wanted = time.fromisoformat(text.zfill(5))
        today = now.astimezone().date()
        for days in (0, 1):
            # Taken as local time again, as the clock may be put forward or back in between.
            at = datetime.combine(today - timedelta(days=days), wanted).astimezone(UTC)
            if at < now:
                return at
        return now - timedelta(days=1)
    try:
        return now - duration_from(text)
    except ValueError:
        pass
    try:
        return datetime.combine(date.fromisoformat(text), time()).astimezone(UTC)
    except ValueError:
        return datetime.fromisoformat(text).astimezone(UTC)


async def _found(
    root: Path, loaded: Loaded, since: datetime, now: datetime
) -> tuple[Report, tuple[Waiting, ...], Mapping[str, Any]]:
    async with premises.open_ledger(root, loaded, readonly=True) as ledger:
        known = reversed(await ledger.latest(EVERYTHING))
        folders = premises.state_dir(root, loaded) / "d"
        records = [_as_it_is(one, folders / one.dispatch.id) for one in known]
        found = report(records, since, now)
        waiting = [*await _consent(root, loaded), *await _held(ledger)]
        waiting += await _parked(ledger)
        budget = await premises.todays_budget(loaded, ledger, now)
    waiting += [*_unsettled(found), *_pulls(found)]
    waiting += await _salvaged(root, found)
    return found, tuple(waiting), budget


def _as_it_is(record: Record, folder: Path) -> Record:
    """Return a record that says of an agent which ended without a daemon that it has."""
    if record.state is not DispatchState.RUNNING or has_shim(folder):
        return record
    return replace(record, state=DispatchState.EXITED)


def _unsettled(found: Report) -> list[Waiting]:
    return [
        Waiting("unsettled", "its agent has ended", "run", one.dispatch.gap.id)
        for one in found.ended_unseen
    ]


async def _consent(root: Path, loaded: Loaded) -> list[Waiting]:
    """Return what keeps every agent from being started, settings and consent (behaviour A5)."""
    if loaded.settings.consent:
        return []
    from chump_orchestrator.decisions import BYPASSING, reachable  # noqa: PLC0415 - slow to import

    try:
        backends = reachable(await premises.routes(root, loaded)) & BYPASSING
    except ConfigError as error:
        return [Waiting("settings", str(error), "mend it, then `reload`")]
    what = f"nobody has agreed to unattended agents of {', '.join(sorted(backends))}"
    return [Waiting("consent", what, "init --yes")] if backends else []


async def _held(ledger: Ledger) -> list[Waiting]:
    pause, fuse = await ledger.pause(), await ledger.fuse()
    if pause is not None:
        what = f"paused by {pause.by}: {pause.reason or 'no reason given'}"
        return [Waiting("paused", what, "resume", since=pause.since)]
    if fuse.blown_until is not None:
        what = f"paused until {instant(fuse.blown_until)}, after a row of failures: {fuse.cause}"
        return [Waiting("paused", what, "resume")]
    return []


async def _parked(ledger: Ledger) -> list[Waiting]:
    """Return what is parked for good, latest first; backoffs end by themselves."""
    parked = sorted(await ledger.parked(), key=lambda one: one.since, reverse=True)
    return [
        Waiting("parked", one.reason, _remedy(one), one.gap, one.since)
        for one in parked
        if one.until is None
    ]


def _remedy(parked: Parked) -> str:
    """Return the command that gives a parked gap another chance, as its reason has it."""
    resumed = f"retry {parked.gap} --resume"
    return resumed if f"`{resumed}`" in parked.reason else f"retry {parked.gap}"


def _pulls(found: Report) -> list[Waiting]:
    return [
        Waiting(
            "pull",
            f"{_number(one)} is open, checks {one.pull.checks} {one.pull.url}".rstrip(),
            "review and merge it",
            one.dispatch.gap.id,
            one.pull_since,
        )
        for one in found.open_pulls
        if one.pull is not None
    ]


async def _salvaged(root: Path, found: Report) -> list[Waiting]:
    """Return the work of that time that was kept, as it was neither pushed nor merged."""
    from chump_orchestrator.adapters.git import Git  # noqa: PLC0415 - slow to import
    from chump_orchestrator.adapters.worktrees.salvaged import SalvagedWork  # noqa: PLC0415 - slow to import

    gaps = {r.dispatch.id: r.dispatch.gap.id for r in (*found.failed, *found.other, *found.shipped)}
    try:
        kept = await SalvagedWork(Git(root, config.environment())).all()
    except (Refused, Unavailable) as error:
        note(f"note: kept work cannot be listed: {error}")
        return []
    return [
        Waiting(
            "salvage",
            one.reason or "commits of it are on no remote and not merged",
            f"salvage show {one.dispatch}",
            gaps.get(one.dispatch, ""),
            one.at,
        )
        for one in kept
        if one.at >= found.since
    ]


def _number(record: Record) -> str:
    pull = record.pull
    if pull is None:
        return "-"
    return f"#{pull.number}" if pull.number else f"branch {pull.branch}"


def _document(found: Report, waiting: Sequence[Waiting]) -> dict[str, Any]:
    return {
        "since": instant(found.since),
        "until": instant(found.until),
        "shipped": [_ended(found, one) for one in found.shipped],
        "failed": [_ended(found, one) for one in found.failed],
        "other": [_ended(found, one) for one in found.other],
        "waiting": [one.document() for one in waiting],
        "running": [_running(found, one) for one in found.running],
        "spent": _amounts(found.spent),
        "backends": [{"backend": name, **_amounts(one)} for name, one in found.backends.items()],
    }


def _ended(found: Report, record: Record) -> dict[str, Any]:
    dispatch, outcome, pull = record.dispatch, record.outcome, record.pull
    return {
        "gap": dispatch.gap.id,
        "title": dispatch.gap.title,
        "dispatch": dispatch.id,
        "attempts": found.attempts[dispatch.gap.id],
        "outcome": None if outcome is None else str(outcome.kind),
        "cause": None if outcome is None or outcome.cause is None else str(outcome.cause),
        "reason": "" if outcome is None else outcome.reason,
        "pull": None if pull is None else pull.number,
        "url": None if pull is None else pull.url or None,
        "backend": dispatch.route.backend,
        "duration_s": None if record.duration is None else record.duration.total_seconds(),
        "cost_usd": record.cost_usd,
        "tokens": record.tokens,
        "ended_at": record.ended_at and instant(record.ended_at),
    }


def _running(found: Report, record: Record) -> dict[str, Any]:
    dispatch = record.dispatch
    began = record.launched_at or dispatch.created_at
    return {
        "gap": dispatch.gap.id,
        "title": dispatch.gap.title,
        "dispatch": dispatch.id,
        "attempt": dispatch.attempt,
        "state": str(record.state),
        "backend": dispatch.route.backend,
        "branch": dispatch.names.branch,
        "pull": None if record.pull is None else record.pull.number,
        "elapsed_s": round(max((found.until - began).total_seconds(), 0.0), 1),
        "soft_deadline_s": dispatch.deadlines.soft.total_seconds(),
    }


def _amounts(spent: Spent) -> dict[str, Any]:
    return {
        "dispatches": spent.dispatches,
        "shipped": spent.shipped,
        "failed": spent.failed,
        "work_s": round(spent.work.total_seconds(), 1),
        "cost_usd": None if spent.cost_usd is None else round(spent.cost_usd, 6),
        "tokens": spent.tokens,
    }


def _tell(found: Report, waiting: Sequence[Waiting], most: int) -> None:
    document = _document(found, waiting)
    span = duration((found.until - found.since).total_seconds())
    say(f"since {found.since.astimezone():%Y-%m-%d %H:%M %Z}, {span}: {_counted(found, waiting)}")
    shipped = [
        (
            one["gap"],
            "-" if one["pull"] is None else f"#{one['pull']}",
            duration(one["duration_s"]),
            _money(one["cost_usd"]),
            " ".join(filter(None, (one["title"], one["url"]))),
        )
        for one in document["shipped"]
    ]
    _table(("SHIPPED", "PULL", "TIME", "COST", "WHAT"), shipped, most)
    failed = [
        (one["gap"], one["attempts"], one["outcome"], one["cause"] or "-", one["reason"])
        for one in (*document["failed"], *document["other"])
    ]
    _table(("NOT SHIPPED", "TRIES", "OUTCOME", "CAUSE", "REASON"), failed, most)
    held = [(one.gap or "-", one.kind, one.remedy, one.what) for one in waiting]
    _table(("WAITS FOR YOU", "KIND", "TO GO ON", "WHAT"), held, most)
    running = [
        (one["gap"], one["attempt"], one["backend"], duration(one["elapsed_s"]), one["title"])
        for one in document["running"]
    ]
    _table(("RUNNING", "TRY", "BACKEND", "TIME", "WHAT"), running, most)
    _table(
        ("BACKEND", "DISPATCHES", "SHIPPED", "FAILED", "WORK", "TOKENS", "COST"),
        list(_spendings(document)),
        most + 1,
    )


def _tell_budget(budget: Mapping[str, Any]) -> None:
    """Print what today has cost against its budgets, where there are any."""
    if not budget["usd_per_day"] and not budget["tokens_per_day"]:
        return
    click.echo()
    say(f"budget of today: {in_words(budget)}")
    if budget["held"]:
        say(budget["held"])


def _counted(found: Report, waiting: Sequence[Waiting]) -> str:
    """Return all in one line; what nobody reported is left out."""
    spent = found.spent
    parts = [
        f"{len(found.shipped)} shipped",
        f"{len(found.failed)} failed",
        f"{len(waiting)} waiting for you",
        f"{len(found.running)} running",
        f"{duration(spent.work.total_seconds())} of work",
    ]
    if spent.cost_usd is not None:
        parts.append(_money(spent.cost_usd))
    if spent.tokens is not None:
        parts.append(f"{spent.tokens:,} tokens")
    return ", ".join(parts)


def _spendings(document: Mapping[str, Any]) -> Iterator[tuple[object, ...]]:
    rows = document["backends"]
    total = [{"backend": "in all", **document["spent"]}] if len(rows) > 1 else []
    for one in (*rows, *total):
        yield (
            one["backend"],
            one["dispatches"],
            one["shipped"],
            one["failed"],
            duration(one["work_s"]),
            "-" if one["tokens"] is None else f"{one['tokens']:,}",
            _money(one["cost_usd"]),
        )


def _money(cost_usd: float | None) -> str:
    return "-" if cost_usd is None else f"${cost_usd:,.2f}"


def _table(headers: Sequence[str], rows: Sequence[Sequence[object]], most: int) -> None:
    if not rows:
        return
    click.echo()
    table(headers, rows[:most])
    if len(rows) > most:
        say(f"... {len(rows) - most} more; --all shows them")
