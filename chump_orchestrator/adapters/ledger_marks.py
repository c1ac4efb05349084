"""What the ledger holds about gaps, whatever their dispatches: parked, shipped, wanted by name.

The scheduler asks for it at every turn, and few writes change it. So the one process that writes
keeps in mind what it has read, until it writes something that may change it.
"""

from __future__ import annotations

import json
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from types import MappingProxyType

from chump_orchestrator.adapters.ledger_rows import ask, instant, park
from chump_orchestrator.adapters.sqlite import Result, Work
from chump_orchestrator.core.deferred import dataclass
from chump_orchestrator.core.ports import Clock
from chump_orchestrator.core.records import Parked


@dataclass(frozen=True, slots=True)
class Marks:
    """All of it at one moment; `requested` has the oldest wish first, and `resume` of each."""

    parked: tuple[Parked, ...]
    shipped: Mapping[str, date]
    confirmed: frozenset[str]
    requested: Mapping[str, int | None]


class MarkedGaps(ABC):
    """Keeps that part of the promises of `core.ports.Ledger`; a part of the ledger."""

    _clock: Clock
    _marks: Marks | None = None
    _changes = 0
    """Counts the writes after which what was read before may be wrong."""

    @property
    @abstractmethod
    def _is_writer(self) -> bool:
        """Whether this process is the one that writes."""

    @abstractmethod
    async def _write(self, work: Work[Result], *, changes_marks: bool = True) -> Result:
        """Carry out `work` in one transaction."""

    @abstractmethod
    async def _look(self, work: Work[Result]) -> Result:
        """Carry out `work`, which only reads, on one snapshot."""

    def _forget_marks(self) -> None:
        """Have everything read anew; to be called once a write is over, well or not."""
        self._changes += 1
        self._marks = None

    async def _marked(self) -> Marks:
        if self._marks is not None:
            return self._marks
        changes = self._changes
        found = await self._look(_read)
        # Read before a write that is over by now, it is out of date already.
        if self._is_writer and changes == self._changes:
            self._marks = found
        return found

    async def parked(self) -> tuple[Parked, ...]:
        """Return the gaps that are parked or in a backoff, also one that is over by now."""
        return (await self._marked()).parked

    async def park(self, parked: Parked) -> None:
        await self._write(lambda connection: park(connection, parked))

    async def free(self, gap: str, at: datetime) -> None:
        def work(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM parked WHERE gap = ?", (gap,))
            connection.execute("DELETE FROM shipped WHERE gap = ?", (gap,))
            connection.execute(
                "UPDATE dispatches SET freed_at = ? WHERE gap = ? AND NOT active",
                (instant(at), gap),
            )

        await self._write(work)

    async def shipped(self) -> Mapping[str, date]:
        return (await self._marked()).shipped

    async def confirm_shipped(self, gaps: Sequence[str]) -> None:
        named = json.dumps(list(gaps))

        def work(connection: sqlite3.Connection) -> None:
            connection.execute(
                "UPDATE shipped SET confirmed = 1 WHERE gap IN (SELECT value FROM json_each(?))",
                (named,),
            )

        await self._write(work)

    async def confirmed(self) -> frozenset[str]:
        return (await self._marked()).confirmed

    async def request_dispatch(self, gap: str, *, resume: int | None = None) -> None:
        """Keep an operator's wish to have `gap` dispatched now (X2).

        Asked again, it stays one wish, and what was asked for last counts.
        """
        at = instant(self._clock.now())
        await self._write(lambda connection: ask(connection, gap, at, resume))

    async def requested(self) -> tuple[str, ...]:
        """Return the gaps that an operator wants to have dispatched now, first asked first."""
        return tuple((await self._marked()).requested)

    async def resumptions(self) -> Mapping[str, int]:
        wanted = (await self._marked()).requested
        return {gap: resume for gap, resume in wanted.items() if resume is not None}

    async def request_done(self, gap: str) -> None:
        """Forget an operator's wish; quiet when there is none."""

        def work(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM requested WHERE gap = ?", (gap,))

        await self._write(work)


def _read(connection: sqlite3.Connection) -> Marks:
    shipped = connection.execute("SELECT gap, day, confirmed FROM shipped ORDER BY gap").fetchall()
    wanted = connection.execute("SELECT gap, resume FROM requested ORDER BY seq")
    return Marks(
        parked=tuple(
            Parked(
                gap=row["gap"],
                reason=row["reason"],
                fingerprint=row["fingerprint"],
                since=datetime.fromisoformat(row["since"]),
                until=row["until"] and datetime.fromisoformat(row["until"]),
            )
            for row in connection.execute("SELECT * FROM parked ORDER BY gap")
        ),
        shipped=MappingProxyType({row["gap"]: date.fromisoformat(row["day"]) for row in shipped}),
        confirmed=frozenset(row["gap"] for row in shipped if row["confirmed"]),
        requested=MappingProxyType({row["gap"]: row["resume"] for row in wanted}),
    )
