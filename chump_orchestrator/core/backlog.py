"""All gaps at one instant: those that can be used, those that cannot, and who holds which."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from enum import StrEnum

from chump_orchestrator.core.gap import DONE, Gap, Notice, Rejection


class HoldKind(StrEnum):
    """What keeps a gap from being picked although its entry is open."""

    ACTIVE = "active"
    LEASED = "leased"
    PARKED = "parked"
    BACKOFF = "backoff"
    RESTING = "resting"


@dataclass(frozen=True, slots=True)
class Hold:
    """Why a gap must not be picked now.

    `until` is when the hold ends by itself, in UTC; `None` means not before somebody acts.
    """

    kind: HoldKind
    reason: str
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Backlog:
    """The gaps at one instant.

    `gaps` keeps the order of the backlog. `total` and `open` count entries as they stand in the
    file, the unusable included (behaviour C6). `holds` maps a gap's id to what keeps it from
    being picked; `shipped` holds the gaps that this orchestrator shipped, and when (behaviour B6).
    """

    gaps: tuple[Gap, ...] = ()
    rejected: tuple[Rejection, ...] = ()
    warnings: tuple[Notice, ...] = ()
    total: int = 0
    open: int = 0
    holds: Mapping[str, Hold] = field(default_factory=dict)
    shipped: Mapping[str, date] = field(default_factory=dict)

    def with_holds(self, holds: Mapping[str, Hold], shipped: Mapping[str, date]) -> Backlog:
        """Return the same backlog as others' leases and our own work leave it."""
        return replace(self, holds=holds, shipped=shipped)

    def find(self, gap_id: str) -> Gap | Rejection | None:
        """Return the entry with this id, usable or not, or `None`."""
        entries: tuple[Gap | Rejection, ...] = (*self.gaps, *self.rejected)
        return next((entry for entry in entries if entry.id == gap_id), None)

    @property
    def done(self) -> frozenset[str]:
        """Ids that count as done, for dependencies and for the count (behaviour B6)."""
        finished = {gap.id for gap in self.gaps if gap.is_done}
        finished |= {entry.id for entry in self.rejected if entry.id and entry.status == DONE}
        return frozenset(finished | self.shipped.keys())


def assemble(entries: Iterable[Gap | Rejection], warnings: Iterable[Notice] = ()) -> Backlog:
    """Make a backlog of its entries, leaving out those that contradict one another.

    Left out with a reason: both of two ids that share a slug, an id given twice with different
    statuses, and every member of a dependency cycle (behaviour B3). An id given twice otherwise
    counts once, with a warning.
    """
    rejected: list[Rejection] = []
    notices = list(warnings)
    total = opened = 0
    by_id: dict[str, list[Gap]] = {}
    for entry in entries:
        total += 1
        opened += entry.status in ("open", "perpetual")
        if isinstance(entry, Rejection):
            rejected.append(entry)
        else:
            by_id.setdefault(entry.id, []).append(entry)
    gaps: list[Gap] = []
    for same in by_id.values():
        if len({gap.status for gap in same}) > 1:
            listed = ", ".join(f"{gap.status} at line {gap.place.line}" for gap in same)
            reason = f"the id is given {len(same)} times with different statuses ({listed})"
            rejected += (_rejection(gap, reason) for gap in same)
            continue
        gaps.append(same[0])
        notices += (
            Notice(f"id {gap.id} is given again; the entry at {same[0].place} counts", gap.place)
            for gap in same[1:]
        )
    gaps, colliding = _without_collisions(gaps)
    gaps, circular = _without_cycles(gaps)
    return Backlog(
        gaps=tuple(gaps),
        rejected=tuple(rejected + colliding + circular),
        warnings=tuple(notices),
        total=total,
        open=opened,
    )


def _rejection(gap: Gap, reason: str) -> Rejection:
    return Rejection(gap.id, reason, gap.place, gap.status, gap.slug)


def _without_collisions(gaps: list[Gap]) -> tuple[list[Gap], list[Rejection]]:
    by_slug: dict[str, list[Gap]] = {}
    for gap in gaps:
        by_slug.setdefault(gap.slug, []).append(gap)
    rejected = [
        _rejection(gap, f"its branch name collides with that of {other.id} ({other.place})")
        for same in by_slug.values()
        if len(same) > 1
        for gap, other in zip(same, same[1:] + same[:1], strict=True)
    ]
    return [gap for gap in gaps if len(by_slug[gap.slug]) == 1], rejected


def _without_cycles(gaps: list[Gap]) -> tuple[list[Gap], list[Rejection]]:
    """Leave out the members of dependency cycles; those who merely wait for one stay."""
    edges = {gap.id: gap.depends_on for gap in gaps}
    circles: dict[str, tuple[str, ...]] = {}
    for circle in _strong_components(edges):
        if len(circle) > 1:
            circles.update(dict.fromkeys(circle, circle))
    rejected = [
        _rejection(gap, f"dependency cycle: {' -> '.join(_walk(edges, gap.id, circles[gap.id]))}")
        for gap in gaps
        if gap.id in circles
    ]
    return [gap for gap in gaps if gap.id not in circles], rejected


def _walk(edges: Mapping[str, tuple[str, ...]], start: str, circle: tuple[str, ...]) -> list[str]:
    """Return a shortest way from `start` back to itself inside its circle."""
    inside = set(circle)
    came_from: dict[str, str] = {}
    frontier = [start]
    while frontier:
        following: list[str] = []
        for here in frontier:
            for there in edges[here]:
                if there == start:
                    way = [start]
                    while here != start:
                        way.append(here)
                        here = came_from[here]  # noqa: PLW2901 - walking the way back
                    return [start, *way[1:][::-1], start]
                if there in inside and there not in came_from:
                    came_from[there] = here
                    following.append(there)
        frontier = following
    return [start, start]


def _strong_components(edges: Mapping[str, tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Return Tarjan's strongly connected components, without recursion."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    on_stack: set[str] = set()
    found: list[tuple[str, ...]] = []
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
                    found.append(tuple(members))
    return found
