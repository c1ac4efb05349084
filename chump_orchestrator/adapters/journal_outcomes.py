"""What routing outcomes teach of candidates, read from the table that other tools write to, too."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from chump_orchestrator.adapters.journal_reading import names_in
from chump_orchestrator.adapters.sqlite import BUSY_S, connect, translate
from chump_orchestrator.core.gap import Effort
from chump_orchestrator.core.learning import HORIZON_DAYS, Experience, Outcomes, experience
from chump_orchestrator.core.outcome import OutcomeKind
from chump_orchestrator.core.routing import canonical_backend

_NEEDED = {"recorded_at", "task_class", "effort", "backend", "model", "provider_pfx", "outcome"}
_DAILY = """
SELECT coalesce(task_class, '') AS class, lower(coalesce(effort, '')) AS effort, backend,
       coalesce(model, '') AS model, coalesce(provider_pfx, '') AS provider,
       substr(recorded_at, 1, 10) AS day, outcome, coalesce({cause}, '') AS cause, count(*),
       total(CASE WHEN {cost} > 0 THEN {cost} END), count(CASE WHEN {cost} > 0 THEN 1 END)
FROM routing_outcomes WHERE recorded_at >= ?
GROUP BY class, lower(coalesce(effort, '')), backend, model, provider, day, outcome, cause
"""


async def read(path: Path, today: date, busy_s: float = BUSY_S) -> Experience:
    """Return what the rows of the last year teach, as of `today`; nothing where there are none.

    `busy_s` is how many seconds another program's lock is waited for. `Unavailable`, naming the
    file, when it cannot be read now. Safe to cancel: reading goes on in its thread, for nobody.
    """
    import anyio.to_thread  # noqa: PLC0415 - not for a command that has no loop

    return await anyio.to_thread.run_sync(read_at_once, path, today, busy_s, abandon_on_cancel=True)


def read_at_once(path: Path, today: date, busy_s: float = BUSY_S) -> Experience:
    """Return what `read` does, without a loop. Blocks."""
    try:
        return _read(path, today, busy_s)
    except (sqlite3.Error, OSError) as error:
        raise translate(error, path) from error


def _read(path: Path, today: date, busy_s: float) -> Experience:
    if not path.exists():
        return Experience()
    with closing(connect(path, readonly=True, busy_s=busy_s)) as connection:
        connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
        present = names_in(connection, "routing_outcomes")
        if not present.issuperset(_NEEDED):
            return Experience()
        # The first implementation wrote a constant for each effort, and no cause: where nobody else
        # has written, costs tell nothing.
        columns = {
            "cost": "cost_usd" if present >= {"cost_usd", "cause"} else "NULL",
            "cause": "cause" if "cause" in present else "NULL",
        }
        since = (today - timedelta(days=HORIZON_DAYS)).isoformat()
        rows = connection.execute(_DAILY.format_map(columns), (since,)).fetchall()
    return experience(_told(rows), today)


def _told(rows: list[tuple[Any, ...]]) -> Iterator[Outcomes]:
    """Return the rows that make sense; anybody may have written the others."""
    for kind, effort, backend, model, provider, day, outcome, cause, count, usd, priced in rows:
        if outcome not in tuple(OutcomeKind) or effort not in tuple(Effort):
            continue
        try:
            on = date.fromisoformat(day)
        except (TypeError, ValueError):
            continue
        yield Outcomes(
            (str(kind), effort),
            (canonical_backend(str(backend)), str(model), str(provider)),
            on,
            outcome,
            str(cause),
            count,
            usd if math.isfinite(usd) else 0.0,
            priced,
        )
