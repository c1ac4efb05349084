"""Commands that only look: plan, why, history, backlog check."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click

from chump_orchestrator import looking, premises
from chump_orchestrator.cli import client, streams
from chump_orchestrator.cli.exits import ExitCode
from chump_orchestrator.cli.options import (
    GapId,
    Invocation,
    as_json,
    backlog_option,
    choosing,
    everywhere,
    flags,
)
from chump_orchestrator.cli.planning import plan, rejected
from chump_orchestrator.cli.render import dollars, duration, emit, instant, note, say, table
from chump_orchestrator.cli.repository import opened
from chump_orchestrator.config import Loaded
from chump_orchestrator.core.backlog import Backlog
from chump_orchestrator.core.errors import ConfigError, Refused, Unavailable
from chump_orchestrator.core.gap import SHOWN, Gap, Rejection, on_one_line
from chump_orchestrator.core.picker import refusal
from chump_orchestrator.core.records import Record

SAID = 120
"""Characters of an agent's own words on its failure that a table has room for."""

EVERYTHING = 2**31
"""More dispatches than any ledger has."""


@click.command("plan")
@choosing
@click.option("--explain", is_flag=True, help="Say why each of the other open gaps is not picked.")
@as_json
@everywhere
@click.pass_obj
def plan_command(
    invocation: Invocation,
    *,
    backlog: Path | None,
    base_ref: str | None,
    max_parallel: int | None,
    explain: bool,
    as_json: bool,
) -> None:
    """Show what would be dispatched now."""
    root, loaded = opened(invocation, flags(backlog, base_ref, max_parallel), aloud=True)
    planned = plan(root, loaded)
    for text in planned.notes:
        note(f"note: {text}")
    if as_json:
        emit(planned.document())
        return
    found = planned.backlog
    click.echo(
        f"{found.total} gaps, {found.open} open, {len(found.done)} done;"
        f" {len(planned.picked)} picked for {planned.slots} free slots"
    )
    if planned.picked:
        click.echo()
        rows = [
            (
                one.gap.id,
                one.gap.priority,
                one.gap.effort,
                " ".join(filter(None, (one.route.backend, one.model))),
                one.names.branch,
                one.gap.title,
            )
            for one in planned.picked
        ]
        table(("GAP", "PRIORITY", "EFFORT", "BACKEND", "BRANCH", "TITLE"), rows)
    reasons = planned.choice.reasons()
    if explain and reasons:
        click.echo()
        table(("NOT PICKED", "REASON"), [(one.id, one.reason) for one in reasons])
    elif reasons:
        note(f"{len(reasons)} open gaps are not picked; --explain says why")
    _tell_rejected(len(found.rejected))


def _tell_rejected(count: int) -> None:
    if count:
        note(f"{count} entries cannot be used; `backlog check` lists them")


@click.command("why")
@click.argument("gap")
@as_json
@everywhere
@click.pass_obj
def why_command(invocation: Invocation, gap: str, *, as_json: bool) -> None:
    """Say why GAP is, or is not, dispatched now."""
    root, loaded = opened(invocation)
    answer = _as_the_daemon_has_it(_why(root, loaded, gap), root, loaded)
    if as_json:
        emit(answer)
    else:
        say(f"{answer['id']}: {answer['reason']}")


def _as_the_daemon_has_it(
    answer: Mapping[str, object], root: Path, loaded: Loaded
) -> Mapping[str, object]:
    """Return the answer with what only a running daemon knows, a backend that rests for one."""
    if answer["state"] in ("rejected", "done"):
        return answer
    try:
        told = client.ask(premises.control_path(root, loaded), "why", gap=answer["id"])
    except (ConfigError, Refused, Unavailable):
        return answer
    reason = str(told["message"])
    is_plain = reason.startswith("no slot") and "; " not in reason
    return answer if is_plain else {**answer, "reason": reason}


def _why(root: Path, loaded: Loaded, gap_id: str) -> Mapping[str, object]:
    planned = plan(root, loaded)
    backlog = planned.backlog
    entry = backlog.find(gap_id)
    place = str(entry.place) if entry is not None else None
    answer: dict[str, object] = {"id": gap_id, "place": place}
    match entry:
        case None:
            alike = [one for one in backlog.index.gaps if one.lower() == gap_id.lower()]
            hint = f"; did you mean {alike[0]}?" if alike else ""
            raise Refused(f"the backlog has no entry {on_one_line(gap_id)[:SHOWN]!r}{hint}")
        case Rejection():
            reason = f"left out: {entry.reason} ({entry.place})"
            return {**answer, "state": "rejected", "reason": reason}
        case Gap() if entry.is_done:
            return {**answer, "state": "done", "reason": "it is done"}
        case Gap():
            answer["candidates"] = planned.candidates(entry)
    picked = [gap.id for gap in planned.choice.picked]
    if gap_id in picked:
        held = f"; but {planned.notes[0]}" if planned.notes else ""
        reason = f"it would be dispatched now, place {picked.index(gap_id) + 1}{held}"
        return {**answer, "state": "picked", "reason": reason}
    found = refusal(entry, backlog, planned.policy)
    if found is not None:
        return {**answer, "state": "refused", "reason": found.reason}
    reasons = {one.id: one.reason for one in planned.choice.reasons()}
    return {**answer, "state": "waiting", "reason": reasons[gap_id]}


@click.command("history")
@click.option(
    "--limit",
    type=click.IntRange(1, 100_000),
    default=20,
    show_default=True,
    metavar="N",
    help="At most so many dispatches.",
)
@click.option("--gap", type=GapId(), metavar="ID", help="Of one gap only.")
@as_json
@everywhere
@click.pass_obj
def history_command(invocation: Invocation, *, limit: int, gap: str | None, as_json: bool) -> None:
    """List the dispatches that have ended, newest first."""
    root, loaded = opened(invocation)
    records, under_way = looking.at_once(partial(_ended, root, loaded, limit, gap or ""))
    ended = [_row(record) for record in records]
    if as_json:
        emit({"dispatches": ended})
        return
    if not ended:
        what = "nothing" if gap is None else gap
        if under_way:
            what = "no dispatch" if gap is None else f"no dispatch of {gap}"
            note(f"{what} has ended here yet; {under_way} under way, see status")
        elif gap is None:
            note("nothing has been dispatched here yet")
        else:
            note(f"{gap} has not been dispatched here")
        return
    rows = [
        (
            row["gap"],
            row["attempt"],
            row["outcome"],
            row["cause"] or "-",
            duration(row["duration_s"]),
            "-" if row["pull"] is None else f"#{row['pull']}",
            row["backend"],
            dollars(row["cost_usd"]),
            f"{row['ended_at']:.16}".replace("T", " "),
            _reason(row),
        )
        for row in ended
    ]
    kept = ("GAP", "TRY", "OUTCOME", "CAUSE", "TIME", "PULL", "BACKEND", "COST", "ENDED", "REASON")
    table(kept, rows)


def _reason(row: Mapping[str, Any]) -> str:
    """Return why a dispatch ended as it did, with the agent's own words where it failed."""
    said = on_one_line(str(row["trouble"] or "")) if row["cause"] else ""
    return f"{row['reason']}: {said[:SAID]}" if said else str(row["reason"])


async def _ended(root: Path, loaded: Loaded, limit: int, gap: str) -> tuple[list[Record], int]:
    """Return the dispatches that ended last, newest first, and how many have not ended yet."""
    async with looking.open_ledger(root, loaded) as ledger:
        records = await ledger.latest(EVERYTHING, gap)
    ended = [one for one in records if one.outcome is not None and one.ended_at is not None]
    # A request may be merged long after younger dispatches have ended. Of a tie, the younger.
    ended.sort(key=lambda one: one.ended_at or one.dispatch.created_at, reverse=True)
    under_way = sum(1 for one in records if one.state.is_active)
    return ended[:limit], under_way


def _row(record: Record) -> dict[str, Any]:
    """Return one dispatch in the shape of `history --json` (behaviour C6)."""
    dispatch, outcome = record.dispatch, record.outcome
    started = record.launched_at or dispatch.created_at
    return {
        "id": dispatch.id,
        "gap": dispatch.gap.id,
        "attempt": dispatch.attempt,
        "resumed_from": dispatch.resumed.dispatch if dispatch.resumed else None,
        "outcome": None if outcome is None else str(outcome.kind),
        "cause": None if outcome is None or outcome.cause is None else str(outcome.cause),
        "reason": "" if outcome is None else outcome.reason,
        "duration_s": None if record.duration is None else record.duration.total_seconds(),
        "active_s": None if record.exit is None else record.exit.active.total_seconds(),
        "pull": None if record.pull is None else record.pull.number,
        "branch": dispatch.names.branch,
        "worktree": None if record.workspace is None else record.workspace.path,
        "backend": dispatch.route.backend,
        "model": dispatch.route.model or None,
        "provider_pfx": dispatch.route.provider_pfx or None,
        **record.report.facts(),
        "answer": record.report.answer or None,
        "cost_usd": record.cost_usd,
        "tokens": record.tokens,
        "parallel_siblings": record.siblings,
        "started_at": instant(started),
        "ended_at": None if record.ended_at is None else instant(record.ended_at),
        "corrected_at": None if record.corrected_at is None else instant(record.corrected_at),
        "corrected_from": record.corrected_from and str(record.corrected_from),
    }


@click.group("backlog")
@everywhere
def backlog_command() -> None:
    """Look at the backlog itself."""


@backlog_command.command("check")
@backlog_option
@as_json
@everywhere
@click.pass_obj
def check_command(invocation: Invocation, *, backlog: Path | None, as_json: bool) -> int:
    """List the entries that cannot be used, and what is odd; exit 1 if there are any of those."""
    root, loaded = opened(invocation, flags(backlog, None, None))
    found = looking.read_backlog(root, loaded)
    with streams.for_whom_it_may_concern():
        _tell_checked(found, as_json=as_json)
    return ExitCode.FAILED if found.rejected else ExitCode.DONE


def _tell_checked(found: Backlog, *, as_json: bool) -> None:
    if as_json:
        warnings = [
            {
                "message": notice.message,
                "file": notice.place.file,
                "line": notice.place.line,
                "column": notice.place.column,
            }
            for notice in found.warnings
        ]
        counts = {"total": found.total, "open": found.open, "done": len(found.done)}
        emit({**counts, "rejected": rejected(found), "warnings": warnings})
    else:
        for entry in found.rejected:
            say(f"{entry.place}: {entry.id or 'entry'}: left out: {entry.reason}")
        for notice in found.warnings:
            say(f"{notice.place}: warning: {notice.message}")
        note(
            f"{found.total} entries, {found.open} open, {len(found.done)} done,"
            f" {len(found.rejected)} cannot be used, {len(found.warnings)} warnings"
        )
