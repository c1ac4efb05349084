"""How core's values become rows of the ledger, and back.

Nested values are stored as JSON, key by key: what is not known is ignored, what is missing takes
its default, so that rows of older and newer versions can be read. Columns beside them (`cause`,
`reason`) are there for people with an SQLite shell, too.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import Any, Generic, TypeVar

from chump_orchestrator.adapters.sqlite import Corrupt, storable
from chump_orchestrator.core.brakes import Fuse
from chump_orchestrator.core.causes import Cause
from chump_orchestrator.core.deferred import dataclass
from chump_orchestrator.core.dispatch import Deadlines, Dispatch, Names, Resumed, Workspace
from chump_orchestrator.core.gap import Effort, Gap, Kind, Place, Priority
from chump_orchestrator.core.outcome import Exit, Outcome, OutcomeKind
from chump_orchestrator.core.pull import Checks, MergeState, PullRequest, PullState, Review
from chump_orchestrator.core.records import DispatchState, Parked, Pause, Record, Settlement
from chump_orchestrator.core.reflection import Reflection
from chump_orchestrator.core.routing import Route
from chump_orchestrator.core.shipping import Shipment, Stage
from chump_orchestrator.core.testimony import Report, Usage

FORMAT = 1
"""Goes into every JSON value as `v`; raised when a key changes its meaning."""

_LARGEST = 2**63 - 1


def instant(at: datetime) -> str:
    """Return an aware instant as UTC text that sorts by time, such as `…T12:00:00.000000Z`."""
    if at.tzinfo is None:
        msg = f"{at} has no time zone"
        raise ValueError(msg)
    return at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


@dataclass(frozen=True, slots=True)
class _Form:
    """How one kind of value looks in JSON; `unit` ends its key."""

    dump: Callable[[Any], Any]
    load: Callable[[Any], Any]
    unit: str = ""


def _same(value: object) -> object:
    return value


def _words(enum: type[StrEnum]) -> _Form:
    return _Form(str, enum)


def _or_none(form: _Form) -> _Form:
    return _Form(
        lambda value: None if value is None else form.dump(value),
        lambda raw: None if raw is None else form.load(raw),
        form.unit,
    )


_PLAIN = _Form(_same, _same)
_TEXTS = _Form(list, tuple)
_DURATION = _Form(timedelta.total_seconds, lambda raw: timedelta(seconds=raw), "_s")
_INSTANT = _Form(instant, datetime.fromisoformat)
_DATE = _Form(date.isoformat, date.fromisoformat)

Value = TypeVar("Value")


class Codec(Generic[Value]):
    """Turns the values of one class into JSON text and back, field by field."""

    def __init__(self, of: type[Value], **forms: _Form) -> None:
        self._of = of
        self.forms = forms

    def raw(self, value: Value) -> dict[str, Any]:
        """Return `value` as a mapping that JSON can hold."""
        return {
            name + form.unit: form.dump(getattr(value, name)) for name, form in self.forms.items()
        }

    def from_raw(self, raw: Mapping[str, Any]) -> Value:
        """Return the value that a mapping tells of."""
        return self._of(
            **{
                name: form.load(raw[name + form.unit])
                for name, form in self.forms.items()
                if name + form.unit in raw
            }
        )

    def dumps(self, value: Value) -> str:
        """Return `value` as JSON text, ASCII only, so that SQLite can hold any text in it."""
        return json.dumps({"v": FORMAT, **self.raw(value)}, separators=(",", ":"))

    def loads(self, text: str) -> Value:
        """Return the value; `Corrupt` when the text tells of none."""
        try:
            return self.from_raw(json.loads(text))
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            msg = f"the ledger holds a {self._of.__name__} that cannot be read: {text[:200]!r}"
            raise Corrupt(msg) from error

    def form(self) -> _Form:
        """Return the form of such a value inside another one."""
        return _Form(self.raw, self.from_raw)


PLACE = Codec(Place, file=_PLAIN, line=_PLAIN, column=_PLAIN)
GAP = Codec(
    Gap,
    id=_PLAIN,
    title=_PLAIN,
    priority=_words(Priority),
    effort=_words(Effort),
    status=_PLAIN,
    kind=_words(Kind),
    depends_on=_TEXTS,
    closed_date=_or_none(_DATE),
    auto_dispatch_ok=_PLAIN,
    deadline=_or_none(_DURATION),
    paths=_TEXTS,
    description=_PLAIN,
    acceptance=_TEXTS,
    declared_domain=_PLAIN,
    order=_PLAIN,
    place=PLACE.form(),
)
ROUTE = Codec(Route, backend=_PLAIN, model=_PLAIN, provider_pfx=_PLAIN, why=_PLAIN, odds=_PLAIN)
DEADLINES = Codec(
    Deadlines,
    soft=_DURATION,
    grace=_DURATION,
    silent=_DURATION,
    pull=_DURATION,
    ci_grace=_DURATION,
    look_interval=_DURATION,
)
NAMES = Codec(Names, branch=_PLAIN, folder=_PLAIN)
RESUMED = Codec(
    Resumed,
    dispatch=_PLAIN,
    session=_PLAIN,
    since=_INSTANT,
    number=_PLAIN,
    head=_PLAIN,
    times=_PLAIN,
)
WORKSPACE = Codec(Workspace, path=_PLAIN, branch=_PLAIN, base=_PLAIN)
EXIT = Codec(
    Exit,
    code=_PLAIN,
    signal=_PLAIN,
    stopped_by=_PLAIN,
    spawn_error=_PLAIN,
    lost=_PLAIN,
    clean=_PLAIN,
    active=_DURATION,
    peak_rss_bytes=_PLAIN,
    cpu=_DURATION,
    out_of_memory=_PLAIN,
)
PULL = Codec(
    PullRequest,
    branch=_PLAIN,
    state=_words(PullState),
    asked_at=_INSTANT,
    number=_PLAIN,
    checks=_words(Checks),
    head=_PLAIN,
    url=_PLAIN,
    review=_words(Review),
    merge_state=_words(MergeState),
    is_draft=_PLAIN,
    is_queued=_PLAIN,
    is_armed=_PLAIN,
    failing=_TEXTS,
    failing_url=_PLAIN,
)
REFLECTION = Codec(
    Reflection,
    dispatch=_PLAIN,
    gap=_PLAIN,
    priority=_words(Priority),
    effort=_words(Effort),
    task_class=_PLAIN,
    outcome=_words(OutcomeKind),
    cause=_or_none(_words(Cause)),
    duration=_DURATION,
    pull_number=_PLAIN,
    backend=_PLAIN,
    model=_PLAIN,
    provider_pfx=_PLAIN,
    siblings=_PLAIN,
    tail=_TEXTS,
    cost_usd=_PLAIN,
    ended_at=_INSTANT,
    odds=_PLAIN,
)
USAGE = Codec(Usage, cost_usd=_PLAIN, tokens=_PLAIN, turns=_PLAIN)
REPORT = Codec(
    Report,
    session=_PLAIN,
    model=_PLAIN,
    usage=USAGE.form(),
    tool_calls=_PLAIN,
    steps=_PLAIN,
    activity=_PLAIN,
    active_at=_or_none(_INSTANT),
    pull_number=_PLAIN,
    answer=_PLAIN,
    failure=_PLAIN,
    aside=_PLAIN,
    resets_at=_or_none(_INSTANT),
    is_stream=_PLAIN,
)
SHIPMENT = Codec(
    Shipment, stage=_words(Stage), head=_PLAIN, checked=_PLAIN, number=_PLAIN, url=_PLAIN
)
PAUSE = Codec(Pause, by=_PLAIN, reason=_PLAIN, since=_INSTANT)
FUSE = Codec(
    Fuse,
    failures=_Form(
        lambda pairs: [[str(cause), instant(at)] for cause, at in pairs],
        lambda raw: tuple((Cause(cause), datetime.fromisoformat(at)) for cause, at in raw),
    ),
    cause=_or_none(_words(Cause)),
    blown_until=_or_none(_INSTANT),
    wait=_DURATION,
    trial=_PLAIN,
)


Given = TypeVar("Given")


def _maybe(convert: Callable[[Given], Value], value: Given | None) -> Value | None:
    return None if value is None else convert(value)


def integer(number: int | None) -> int | None:
    """Return `number` within what SQLite can hold: tokens are an agent's own word."""
    return None if number is None else max(-_LARGEST, min(number, _LARGEST))


def columns_of(record: Record) -> dict[str, str | int | float | None]:
    """Return the columns of a record, by name, less those that only the ledger writes."""
    dispatch, outcome = record.dispatch, record.outcome
    return {
        "id": dispatch.id,
        "gap": dispatch.gap.id,
        "gap_snapshot": GAP.dumps(dispatch.gap),
        "attempt": dispatch.attempt,
        "route": ROUTE.dumps(dispatch.route),
        "deadlines": DEADLINES.dumps(dispatch.deadlines),
        "names": NAMES.dumps(dispatch.names),
        "created_at": instant(dispatch.created_at),
        "resumed": _maybe(RESUMED.dumps, dispatch.resumed),
        "state": str(record.state),
        "workspace": _maybe(WORKSPACE.dumps, record.workspace),
        "pid": record.pid,
        "launched_at": _maybe(instant, record.launched_at),
        "exit": _maybe(EXIT.dumps, record.exit),
        "exited_at": _maybe(instant, record.exited_at),
        "pull": _maybe(PULL.dumps, record.pull),
        "pull_since": _maybe(instant, record.pull_since),
        "pull_since_active_s": record.pull_since_active.total_seconds(),
        "checks_failed_since": _maybe(instant, record.checks_failed_since),
        **outcome_columns(outcome),
        "ended_at": _maybe(instant, record.ended_at),
        "siblings": record.siblings,
        "cost_usd": record.cost_usd,
        "tokens": integer(record.tokens),
        "tidied": int(record.tidied),
        "lessons": json.dumps(record.lessons),
        "report": _maybe(REPORT.dumps, record.report if record.report != Report() else None),
        "shipment": _maybe(SHIPMENT.dumps, record.shipment),
    }


def settled_columns(settlement: Settlement) -> dict[str, str | int | float | None]:
    """Return the columns that change when a dispatch ends; `None` leaves one as it is."""
    outcome = settlement.outcome
    is_due = settlement.reflection is not None
    return {
        **outcome_columns(outcome),
        "ended_at": instant(settlement.ended_at),
        "siblings": settlement.siblings,
        "cost_usd": settlement.cost_usd,
        "tokens": integer(settlement.tokens),
        "unaccepted_usd": settlement.unaccepted_usd,
        "report": _maybe(REPORT.dumps, settlement.report),
        "progress": int(settlement.progress),
        "failed": int(outcome.is_failure and not settlement.excused),
        "state": str(DispatchState.SETTLED if is_due else DispatchState.DONE),
    }


def outcome_columns(outcome: Outcome | None) -> dict[str, str | None]:
    """Return the three columns that an outcome fills."""
    if outcome is None:
        return {"outcome": None, "cause": None, "reason": None}
    return {
        "outcome": str(outcome.kind),
        "cause": _maybe(str, outcome.cause),
        "reason": storable(outcome.reason),
    }


def record_of(row: sqlite3.Row) -> Record:
    """Return the record that a row of `dispatches` tells of; `Corrupt` when it tells of none."""
    try:
        dispatch = Dispatch(
            id=row["id"],
            gap=GAP.loads(row["gap_snapshot"]),
            attempt=row["attempt"],
            route=ROUTE.loads(row["route"]),
            deadlines=DEADLINES.loads(row["deadlines"]),
            names=NAMES.loads(row["names"]),
            created_at=datetime.fromisoformat(row["created_at"]),
            resumed=_maybe(RESUMED.loads, row["resumed"]),
        )
        return Record(
            dispatch=dispatch,
            state=DispatchState(row["state"]),
            workspace=_maybe(WORKSPACE.loads, row["workspace"]),
            pid=row["pid"],
            launched_at=_maybe(datetime.fromisoformat, row["launched_at"]),
            exit=_maybe(EXIT.loads, row["exit"]),
            exited_at=_maybe(datetime.fromisoformat, row["exited_at"]),
            pull=_maybe(PULL.loads, row["pull"]),
            pull_since=_maybe(datetime.fromisoformat, row["pull_since"]),
            pull_since_active=timedelta(seconds=row["pull_since_active_s"]),
            checks_failed_since=_maybe(datetime.fromisoformat, row["checks_failed_since"]),
            outcome=_outcome_of(row),
            ended_at=_maybe(datetime.fromisoformat, row["ended_at"]),
            siblings=row["siblings"],
            cost_usd=row["cost_usd"],
            tokens=row["tokens"],
            tidied=bool(row["tidied"]),
            lessons=tuple(map(str, json.loads(row["lessons"]))),
            report=_maybe(REPORT.loads, row["report"]) or Report(),
            shipment=_maybe(SHIPMENT.loads, row["shipment"]),
            corrected_at=_maybe(datetime.fromisoformat, row["corrected_at"]),
            corrected_from=_maybe(OutcomeKind, row["corrected_from"]),
        )
    except (TypeError, ValueError, OverflowError) as error:
        msg = f"the ledger's row of dispatch {row['id']!r} cannot be read: {error}"
        raise Corrupt(msg) from error


def _outcome_of(row: sqlite3.Row) -> Outcome | None:
    if row["outcome"] is None:
        return None
    return Outcome(OutcomeKind(row["outcome"]), row["reason"] or "", _maybe(Cause, row["cause"]))


def ask(connection: sqlite3.Connection, gap: str, at: str, resume: int | None) -> None:
    """Store that a gap is wanted; what was asked for last counts."""
    connection.execute(
        "INSERT INTO requested (gap, at, resume) VALUES (?, ?, ?)"
        " ON CONFLICT (gap) DO UPDATE SET resume = excluded.resume",
        (gap, at, resume),
    )


def park(connection: sqlite3.Connection, parked: Parked) -> None:
    """Store that a gap is parked, in place of whatever parked it before."""
    connection.execute(
        "INSERT OR REPLACE INTO parked (gap, reason, fingerprint, since, until)"
        " VALUES (?, ?, ?, ?, ?)",
        (
            parked.gap,
            storable(parked.reason),
            parked.fingerprint,
            instant(parked.since),
            parked.until and instant(parked.until),
        ),
    )
