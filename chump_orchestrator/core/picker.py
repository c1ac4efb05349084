"""Which gaps next, and why not the others (behaviour K1 to K5)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import field
from datetime import date
from functools import cached_property
from heapq import merge
from itertools import islice

from chump_orchestrator.core.backlog import Backlog, Lane, Ready, lane_of
from chump_orchestrator.core.deferred import dataclass
from chump_orchestrator.core.gap import PERPETUAL, Effort, Gap, Kind, Priority, Rejection

_PRIORITY_RANK = {priority: rank for rank, priority in enumerate(Priority)}
_EFFORT_RANK = {effort: rank for rank, effort in enumerate(Effort)}


@dataclass(frozen=True, slots=True)
class PickPolicy:
    """What the operator allows to be picked, and in which order.

    `kind` of `None` means any. With `by_effort` false the backlog's own order decides within a
    priority. The bias keeps one domain from taking all: see `biased_domain`.
    """

    kind: Kind | None = Kind.USER
    priorities: frozenset[Priority] = frozenset({Priority.P0, Priority.P1, Priority.P2})
    exclude_efforts: frozenset[Effort] = frozenset({Effort.XL})
    by_effort: bool = True
    require_opt_in: bool = False
    bias_threshold: float = 0.8
    bias_window: int = 10


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an open gap is not picked."""

    id: str
    reason: str


@dataclass(frozen=True)
class Choice:
    """What `choose` decided.

    `picked` starts now; `waiting` would, given more slots; `refused` holds every other open gap.
    All are in the order in which they would be worked on, `refused` in that of the backlog.
    """

    # Only `picked` is needed to go on; the rest looks at every gap, so it is put off until asked.

    picked: tuple[Gap, ...]
    _backlog: Backlog = field(repr=False)
    _policy: PickPolicy = field(repr=False)

    @cached_property
    def waiting(self) -> tuple[Gap, ...]:
        """The eligible gaps for which there was no slot."""
        return tuple(_eligible(self._backlog, self._policy))[len(self.picked) :]

    def waits(self, at_most: int) -> int:
        """Return how many gaps are waiting for a slot, without counting beyond `at_most`."""
        first = len(self.picked)
        return sum(
            1 for _ in islice(_eligible(self._backlog, self._policy), first, first + at_most)
        )

    @cached_property
    def refused(self) -> tuple[Refusal, ...]:
        """The open gaps that are not eligible, with the reasons."""
        refusals = (
            refusal(gap, self._backlog, self._policy) for gap in self._backlog.gaps if gap.is_open
        )
        return tuple(one for one in refusals if one is not None)

    @cached_property
    def held(self) -> tuple[Refusal, ...]:
        """Those of `refused` that the policy allows: held by somebody, or waiting for others."""
        return tuple(
            one
            for one in self.refused
            if _exclusion(self._backlog.index.gaps[one.id], self._backlog, self._policy) is None
        )

    def reasons(self) -> tuple[Refusal, ...]:
        """Return a reason for every open gap that is not picked (behaviour K5)."""
        first = len(self.picked) + 1
        places = (
            Refusal(gap.id, f"no slot, place {place}")
            for place, gap in enumerate(self.waiting, first)
        )
        return (*places, *self.refused)


def choose(backlog: Backlog, slots: int, policy: PickPolicy) -> Choice:
    """Decide which gaps to dispatch into `slots` free slots, and why not the others."""
    return Choice(tuple(islice(_eligible(backlog, policy), max(slots, 0))), backlog, policy)


def pick(backlog: Backlog, slots: int, policy: PickPolicy) -> tuple[Gap, ...]:
    """Return the gaps to dispatch into `slots` free slots, most urgent first."""
    return choose(backlog, slots, policy).picked


def refusal(gap: Gap, backlog: Backlog, policy: PickPolicy) -> Refusal | None:
    """Return why `gap` is not eligible, or `None` when it is."""
    reason = _objection(gap, backlog, policy)
    return None if reason is None else Refusal(gap.id, reason)


def _objection(gap: Gap, backlog: Backlog, policy: PickPolicy) -> str | None:
    """Return the first reason not to pick `gap`, the one a person can do most about first."""
    if excluded := _exclusion(gap, backlog, policy):
        return excluded
    hold = backlog.holds.get(gap.id)
    if hold is not None:
        until = f", until {hold.until:%Y-%m-%dT%H:%M:%SZ}" if hold.until else ""
        return f"{hold.kind}: {hold.reason}{until}"
    for needed in gap.depends_on:
        if not backlog.is_done(needed):
            return _unmet(needed, backlog)
    return None


def _exclusion(gap: Gap, backlog: Backlog, policy: PickPolicy) -> str | None:
    """Return why `gap` is not for this orchestrator, whatever else happens."""
    if not gap.is_open:
        return f"its status is {gap.status or 'missing'}"
    if _is_finished(gap, backlog):
        return f"shipped by this orchestrator on {backlog.shipped[gap.id]}, its entry still open"
    if gap.status == PERPETUAL and gap.kind is not Kind.SYSTEM:
        return "perpetual gaps are dispatched for kind system only"
    if policy.kind is not None and gap.kind is not policy.kind:
        return f"kind {gap.kind}, and only {policy.kind} gaps are picked (pick.kind)"
    if gap.priority not in policy.priorities:
        allowed = " ".join(sorted(policy.priorities)) or "none"
        return f"priority {gap.priority} is not among {allowed} (pick.priorities)"
    if gap.effort in policy.exclude_efforts:
        return f"effort {gap.effort} is excluded (pick.exclude_efforts)"
    if policy.require_opt_in and not gap.auto_dispatch_ok:
        return "auto_dispatch_ok is not set, and pick.require_opt_in is"
    return None


def _is_finished(gap: Gap, backlog: Backlog) -> bool:
    """Say whether we shipped an open gap; a perpetual one only rests (see `HoldKind.RESTING`)."""
    return gap.status != PERPETUAL and gap.id in backlog.shipped


def _unmet(needed: str, backlog: Backlog) -> str:
    entry = backlog.find(needed)
    match entry:
        case Gap():
            return f"waits for {needed}, whose status is {entry.status or 'missing'}"
        case Rejection():
            return f"waits for {needed}, which was left out: {entry.reason}"
        case None:
            return f"waits for {needed}, which is nowhere in the backlog"


def biased_domain(backlog: Backlog, policy: PickPolicy) -> str | None:
    """Return the domain that has had more than its share lately, or `None` (behaviour K3).

    Counted are the latest `bias_window` shipped gaps, undated ones last. A window that is not
    full yet counts its missing places as nobody's, so that one early success biases nothing.
    """
    if policy.bias_window < 1:
        return None
    ours = [gap for one in backlog.shipped if (gap := backlog.index.gaps.get(one)) is not None]
    theirs = (gap for gap in backlog.index.closed if gap.id not in backlog.shipped)
    latest = [*ours, *islice(theirs, policy.bias_window)]
    latest.sort(key=lambda gap: gap.order)
    latest.sort(
        key=lambda gap: gap.closed_date or backlog.shipped.get(gap.id) or date.min, reverse=True
    )
    shares = Counter(gap.domain for gap in latest[: policy.bias_window]).most_common(1)
    if not shares:
        return None
    domain, count = shares[0]
    return domain if count / policy.bias_window > policy.bias_threshold else None


_Rung = tuple[int, bool, int]


def _rung(priority: Priority, effort: Effort, policy: PickPolicy, *, is_biased: bool) -> _Rung:
    """Return where gaps of this kind stand; those of one rung follow the backlog's order.

    Gaps of the biased domain stand one priority lower and behind the others of that level; P0
    always leads (behaviour K2, K3).
    """
    rank = _PRIORITY_RANK[priority]
    held_back = is_biased and priority is not Priority.P0
    if held_back:
        rank = min(rank + 1, len(_PRIORITY_RANK) - 1)
    return rank, held_back, _EFFORT_RANK[effort] if policy.by_effort else 0


def in_order(gaps: Sequence[Gap], biased: str | None, policy: PickPolicy) -> tuple[Gap, ...]:
    """Return `gaps` in the order of work (behaviour K2, K3)."""

    def place(gap: Gap) -> tuple[_Rung, int]:
        is_biased = gap.domain == biased
        return _rung(gap.priority, gap.effort, policy, is_biased=is_biased), gap.order

    return tuple(sorted(gaps, key=place))


def _eligible(backlog: Backlog, policy: PickPolicy) -> Iterator[Gap]:
    """Yield the eligible gaps in the order of work, looking no further than is asked."""
    biased = biased_domain(backlog, policy)
    rungs: dict[_Rung, list[Iterable[Ready]]] = {}
    for lane, members in (*backlog.index.lanes.items(), *_released(backlog).items()):
        if not _allows(policy, lane):
            continue
        fair = _rung(lane.priority, lane.effort, policy, is_biased=False)
        held = _rung(lane.priority, lane.effort, policy, is_biased=True)
        if biased is None or fair == held:
            rungs.setdefault(fair, []).append(members)
        else:
            rungs.setdefault(fair, []).append(_others(members, biased))
            rungs.setdefault(held, []).append(_those(members, biased))
    for rung in sorted(rungs):
        for ready in merge(*rungs[rung]):
            gap = ready.gap
            if gap.id not in backlog.holds and not _is_finished(gap, backlog):
                yield gap


def _released(backlog: Backlog) -> dict[Lane, list[Ready]]:
    """Return the open gaps that waited for nothing but what we shipped."""
    lanes: dict[Lane, list[Ready]] = {}
    waiting = backlog.index.waiting
    for ready in {
        ready.at: ready for one in backlog.shipped for ready in waiting.get(one, ())
    }.values():
        if all(backlog.is_done(needed) for needed in ready.gap.depends_on):
            lanes.setdefault(lane_of(ready.gap), []).append(ready)
    for lane in lanes.values():
        lane.sort()
    return lanes


def _allows(policy: PickPolicy, lane: Lane) -> bool:
    return (
        (policy.kind is None or lane.kind is policy.kind)
        and lane.priority in policy.priorities
        and lane.effort not in policy.exclude_efforts
        and (lane.opted_in or not policy.require_opt_in)
    )


def _others(members: Iterable[Ready], domain: str) -> Iterator[Ready]:
    return (ready for ready in members if ready.domain != domain)


def _those(members: Iterable[Ready], domain: str) -> Iterator[Ready]:
    return (ready for ready in members if ready.domain == domain)
