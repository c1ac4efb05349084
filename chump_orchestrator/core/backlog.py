"""All gaps at one instant: those that can be used, those that cannot, and who holds which."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field, replace
from datetime import date, datetime
from enum import StrEnum
from functools import cached_property
from itertools import chain
from typing import NamedTuple

from chump_orchestrator.core.deferred import dataclass
from chump_orchestrator.core.gap import (
    DONE,
    OPEN,
    PERPETUAL,
    Effort,
    Gap,
    Kind,
    Notice,
    Priority,
    Rejection,
    slug_of,
)

AT_ONCE = 4096
"""Entries that are looked at in one step, which no other thread can interrupt."""

_ASKED_FOR = (OPEN, PERPETUAL)

SHOWN_CIRCLE = 16
"""Members of a dependency cycle that are named in a reason; longer ones are cut short."""


class HoldKind(StrEnum):
    """What keeps a gap from being picked although its entry is open."""

    ACTIVE = "active"
    LEASED = "leased"
    PARKED = "parked"
    BACKOFF = "backoff"
    BUDGET = "budget"
    RESTING = "resting"


@dataclass(frozen=True, slots=True)
class Hold:
    """Why a gap must not be picked now.

    `until` is when the hold ends by itself, in UTC; `None` means not before somebody acts.
    """

    kind: HoldKind
    reason: str
    until: datetime | None = None


class Lane(NamedTuple):
    """What decides whether a policy allows a gap at all; gaps that are alike share a lane."""

    priority: Priority
    effort: Effort
    kind: Kind
    opted_in: bool


class Ready(NamedTuple):
    """An open gap in its lane; comes before another by place in the backlog."""

    order: int
    at: int
    domain: str
    gap: Gap


@dataclass(frozen=True, slots=True)
class Index:
    """What is worked out once per load, so that picking does not look at every gap.

    `done` and `closed` are what the backlog itself says to be done, the latter only usable
    entries, latest first, undated last. `lanes` holds the open gaps that wait for nothing, those
    left out that no policy allows;
    `waiting` maps an id that is not done to the open gaps that need it.
    """

    gaps: Mapping[str, Gap]
    rejected: Mapping[str, Rejection]
    done: frozenset[str]
    closed: tuple[Gap, ...]
    lanes: Mapping[Lane, Sequence[Ready]]
    waiting: Mapping[str, Sequence[Ready]]

    @classmethod
    def of(cls, gaps: Sequence[Gap], rejected: Sequence[Rejection]) -> Index:
        """Return the index of these entries."""
        closed: dict[date, list[Gap]] = {}
        for gap in gaps:
            if gap.status == DONE:
                closed.setdefault(gap.closed_date or date.min, []).append(gap)
        done = {gap.id for same_day in closed.values() for gap in same_day}
        done |= {entry.id for entry in rejected if entry.id and entry.status == DONE}
        lanes: dict[Lane, list[Ready]] = {}
        waiting: dict[str, list[Ready]] = {}
        for at, gap in enumerate(gaps):
            if gap.status not in _ASKED_FOR:
                continue
            if gap.status == PERPETUAL and gap.kind is not Kind.SYSTEM:
                continue
            ready = Ready(gap.order, at, gap.domain, gap)
            unmet = [needed for needed in gap.depends_on if needed not in done]
            for needed in unmet:
                waiting.setdefault(needed, []).append(ready)
            if not unmet:
                lanes.setdefault(lane_of(gap), []).append(ready)
        for lane in lanes.values():
            lane.sort()
        return cls(
            gaps={gap.id: gap for gap in reversed(gaps)},
            rejected={entry.id: entry for entry in reversed(rejected) if entry.id},
            done=frozenset(done),
            # By day: to sort the gaps themselves would hold up everybody else for too long.
            closed=tuple(gap for day in sorted(closed, reverse=True) for gap in closed[day]),
            lanes=lanes,
            waiting=waiting,
        )


def lane_of(gap: Gap) -> Lane:
    """Return the lane of `gap`."""
    return Lane(gap.priority, gap.effort, gap.kind, gap.auto_dispatch_ok)


@dataclass(frozen=True)
class Backlog:
    """The gaps at one instant.

    `gaps` keeps the order of the backlog. `total` and `open` count entries as they stand in the
    file, the unusable included (behaviour C6). `holds` maps a gap's id to what keeps it from
    being picked; `shipped` holds the gaps that this orchestrator shipped, and when (behaviour B6).
    """

    # Without slots, so that the index can be kept once it has been made.

    gaps: tuple[Gap, ...] = ()
    rejected: tuple[Rejection, ...] = ()
    warnings: tuple[Notice, ...] = ()
    total: int = 0
    open: int = 0
    holds: Mapping[str, Hold] = field(default_factory=dict)
    shipped: Mapping[str, date] = field(default_factory=dict)

    @cached_property
    def index(self) -> Index:
        """The entries by id, and the open ones in the order of work; made once per load."""
        return Index.of(self.gaps, self.rejected)

    def with_holds(self, holds: Mapping[str, Hold], shipped: Mapping[str, date]) -> Backlog:
        """Return the same backlog as others' leases and our own work leave it."""
        changed = replace(self, holds=holds, shipped=shipped)
        changed.__dict__["index"] = self.index
        return changed

    def find(self, gap_id: str) -> Gap | Rejection | None:
        """Return the entry with this id, usable or not, or `None`."""
        return self.index.gaps.get(gap_id) or self.index.rejected.get(gap_id)

    @property
    def done(self) -> frozenset[str]:
        """Ids that count as done, for dependencies and for the count (behaviour B6).

        An unusable entry whose status is `done` counts, too (behaviour B3).
        """
        return self.index.done | self.shipped.keys()

    def is_done(self, gap_id: str) -> bool:
        """Say whether this id is among `done`."""
        return gap_id in self.index.done or gap_id in self.shipped


def assemble(entries: Iterable[Gap | Rejection], warnings: Iterable[Notice] = ()) -> Backlog:
    """Make a backlog of its entries, leaving out those that contradict one another.

    Left out with a reason: all ids that share a slug, an id given again with another status, and
    every member of a dependency cycle (behaviour B3). Of an id given again otherwise the first
    usable entry counts, with a warning for each further one.
    """
    found = tuple(entries)
    notices = list(warnings)
    verdicts: list[Gap | Rejection | None] = list(found)
    if not _are_distinct(found):
        _settle_repetitions(verdicts, notices)
        _reject_collisions(verdicts, found)
    _reject_cycles(verdicts)
    backlog = Backlog(
        gaps=tuple(entry for entry in verdicts if isinstance(entry, Gap)),
        rejected=tuple(entry for entry in verdicts if isinstance(entry, Rejection)),
        warnings=tuple(notices),
        total=len(found),
        open=sum(1 for entry in found if entry.status in _ASKED_FOR),
    )
    # Whoever loads a backlog does so off the loop; whoever picks from it does not.
    _ = backlog.index
    return backlog


def _rejection(entry: Gap | Rejection, reason: str) -> Rejection:
    return Rejection(entry.id, reason, entry.place, entry.status, entry.slug)


def _are_distinct(found: Sequence[Gap | Rejection]) -> bool:
    """Say whether no two entries share an id or a slug, as is so in nearly every backlog."""
    ids = [
        entry.id if isinstance(entry, Gap) else entry.slug
        for entry in found
        if isinstance(entry, Gap) or entry.slug
    ]
    slugs: set[str] = set()
    for at in range(0, len(ids), AT_ONCE):
        # All in one text, as no id has a line break: a call for each would take ten times as long.
        slugs.update(slug_of("\n".join(ids[at : at + AT_ONCE])).split("\n"))
    return len(slugs) == len(ids)


def _settle_repetitions(verdicts: list[Gap | Rejection | None], notices: list[Notice]) -> None:
    """Leave one entry of each id, or none where their statuses differ."""
    places: dict[str, list[int]] = {}
    for at, entry in enumerate(verdicts):
        if entry is not None and entry.slug:
            places.setdefault(entry.id, []).append(at)
    for gap_id, same in places.items():
        if len(same) == 1:
            continue
        entries = [entry for at in same if (entry := verdicts[at]) is not None]
        statuses = {entry.status: entry for entry in reversed(entries)}
        if len(statuses) > 1:
            listed = ", ".join(
                f"{status or 'missing'} at line {statuses[status].place.line}"
                for status in reversed(statuses)
            )
            reason = f"the id is given {len(same)} times with different statuses ({listed})"
            for at, entry in zip(same, entries, strict=True):
                if isinstance(entry, Gap):
                    verdicts[at] = _rejection(entry, reason)
            continue
        counts = next((at for at in same if isinstance(verdicts[at], Gap)), None)
        if counts is None:
            continue
        first = entries[same.index(counts)].place
        for at, entry in zip(same, entries, strict=True):
            if at != counts:
                notices.append(
                    Notice(f"id {gap_id} is given again; the entry at {first} counts", entry.place)
                )
            if at != counts and isinstance(entry, Gap):
                verdicts[at] = None


def _reject_collisions(
    verdicts: list[Gap | Rejection | None], found: Sequence[Gap | Rejection]
) -> None:
    """Reject every gap whose slug is also that of another id, usable or not."""
    by_slug: dict[str, dict[str, Gap | Rejection]] = {}
    for given in found:
        if slug := given.slug:
            by_slug.setdefault(slug, {}).setdefault(given.id, given)
    crowded = {slug: alike for slug, alike in by_slug.items() if len(alike) > 1}
    if not crowded:
        return
    for at, entry in enumerate(verdicts):
        if not isinstance(entry, Gap) or entry.slug not in crowded:
            continue
        alike = crowded[entry.slug]
        other = next(one for one in alike.values() if one.id != entry.id)
        more = len(alike) - 2
        reason = f"its branch name collides with that of {other.id} ({other.place})"
        verdicts[at] = _rejection(entry, reason + (f" and {more} more" if more else ""))


def _reject_cycles(verdicts: list[Gap | Rejection | None]) -> None:
    """Reject the members of dependency cycles; those who merely wait for one stay."""
    edges = _tangled(
        {
            entry.id: entry.depends_on
            for entry in verdicts
            if isinstance(entry, Gap) and entry.depends_on
        }
    )
    if not edges:
        return
    circles: dict[str, dict[str, list[str]]] = {}
    for members in _strong_components(edges):
        if len(members) > 1:
            inside = {one: [to for to in edges[one] if to in members] for one in members}
            circles.update(dict.fromkeys(members, inside))
    for at, entry in enumerate(verdicts):
        if not isinstance(entry, Gap):
            continue
        if entry.id in entry.depends_on:
            verdicts[at] = _rejection(entry, "depends_on: the gap depends on itself")
        elif entry.id in circles:
            way = " -> ".join(_walk(circles[entry.id], entry.id))
            verdicts[at] = _rejection(entry, f"dependency cycle: {way}")


def _tangled(edges: dict[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    """Return what may be part of a cycle: usually nothing, as most gaps need earlier ones.

    Who needs nobody that is left cannot be; that is seen by going through all of them forwards
    and backwards once.
    """
    left = dict(edges)
    for one in chain(edges, reversed(edges)):
        if one in left and left.keys().isdisjoint(edges[one]):
            del left[one]
    return left


def _walk(circle: Mapping[str, Sequence[str]], start: str) -> list[str]:
    """Return a shortest way from `start` back to itself inside its circle.

    In a circle with many members it is only where a way begins, as a search from each of them
    would take very long.
    """
    if len(circle) > SHOWN_CIRCLE:
        way = [start]
        while len(way) < SHOWN_CIRCLE // 2:
            way.append(circle[way[-1]][0])
        return [*way, f"… ({len(circle)} gaps)"]
    frontier, reached = [[start]], {start}
    while True:
        following: list[list[str]] = []
        for way in frontier:
            for there in circle[way[-1]]:
                if there == start:
                    return [*way, start]
                if there not in reached:
                    reached.add(there)
                    following.append([*way, there])
        frontier = following


def _strong_components(edges: Mapping[str, Sequence[str]]) -> list[frozenset[str]]:
    """Return Tarjan's strongly connected components, without recursion."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    on_stack: set[str] = set()
    found: list[frozenset[str]] = []
    for root in edges:
        if root in index:
            continue
        index[root] = low[root] = len(index)
        stack.append(root)
        on_stack.add(root)
        work = [(root, iter(edges[root]))]
        while work:
            here, following = work[-1]
            for there in following:
                if there not in edges:
                    continue
                if there not in index:
                    index[there] = low[there] = len(index)
                    stack.append(there)
                    on_stack.add(there)
                    work.append((there, iter(edges[there])))
                    break
                if there in on_stack:
                    low[here] = min(low[here], index[there])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[here])
                if low[here] == index[here]:
                    members = [stack.pop()]
                    while members[-1] != here:
                        members.append(stack.pop())
                    on_stack.difference_update(members)
                    found.append(frozenset(members))
    return found
