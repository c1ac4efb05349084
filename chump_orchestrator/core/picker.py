"""Which gaps next, and why not the others (behaviour K1 to K5)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from chump_orchestrator.core.backlog import Backlog
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


@dataclass(frozen=True, slots=True)
class Choice:
    """What `choose` decided.

    `picked` starts now; `waiting` would, given more slots; `refused` holds every other open gap.
    All are in the order in which they would be worked on, `refused` in that of the backlog.
    """

    picked: tuple[Gap, ...]
    waiting: tuple[Gap, ...]
    refused: tuple[Refusal, ...]

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
    done = backlog.done
    known = {gap.id: gap for gap in backlog.gaps}
    rejected = {entry.id: entry for entry in backlog.rejected}
    eligible: list[Gap] = []
    refused: list[Refusal] = []
    for gap in backlog.gaps:
        if not gap.is_open:
            continue
        reason = _objection(gap, backlog, policy, done, known, rejected)
        if reason is None:
            eligible.append(gap)
        else:
            refused.append(Refusal(gap.id, reason))
    ordered = in_order(eligible, biased_domain(backlog, policy), policy)
    cut = max(slots, 0)
    return Choice(ordered[:cut], ordered[cut:], tuple(refused))


def pick(backlog: Backlog, slots: int, policy: PickPolicy) -> tuple[Gap, ...]:
    """Return the gaps to dispatch into `slots` free slots, most urgent first."""
    return choose(backlog, slots, policy).picked


def refusal(gap: Gap, backlog: Backlog, policy: PickPolicy) -> Refusal | None:
    """Return why `gap` is not eligible, or `None` when it is."""
    known = {other.id: other for other in backlog.gaps}
    rejected = {entry.id: entry for entry in backlog.rejected}
    reason = _objection(gap, backlog, policy, backlog.done, known, rejected)
    return None if reason is None else Refusal(gap.id, reason)


def _objection(
    gap: Gap,
    backlog: Backlog,
    policy: PickPolicy,
    done: frozenset[str],
    known: dict[str, Gap],
    rejected: dict[str, Rejection],
) -> str | None:
    """Return the first reason not to pick `gap`, the one a person can do most about first."""
    if not gap.is_open:
        return f"its status is {gap.status or 'missing'}"
    if gap.id in backlog.shipped:
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
    hold = backlog.holds.get(gap.id)
    if hold is not None:
        until = f", until {hold.until:%Y-%m-%dT%H:%M:%SZ}" if hold.until else ""
        return f"{hold.kind}: {hold.reason}{until}"
    for needed in gap.depends_on:
        if needed not in done:
            return _unmet(needed, known, rejected)
    return None


def _unmet(needed: str, known: dict[str, Gap], rejected: dict[str, Rejection]) -> str:
    if needed in known:
        return f"waits for {needed}, whose status is {known[needed].status or 'missing'}"
    if needed in rejected:
        return f"waits for {needed}, which was left out: {rejected[needed].reason}"
    return f"waits for {needed}, which is nowhere in the backlog"


def biased_domain(backlog: Backlog, policy: PickPolicy) -> str | None:
    """Return the domain that has had more than its share lately, or `None` (behaviour K3).

    Counted are the latest `bias_window` shipped gaps, undated ones last. A window that is not
    full yet counts its missing places as nobody's, so that one early success biases nothing.
    """
    if policy.bias_window < 1:
        return None

    def when(gap: Gap) -> date:
        return gap.closed_date or backlog.shipped.get(gap.id) or date.min

    done = backlog.done
    shipped = sorted((gap for gap in backlog.gaps if gap.id in done), key=when, reverse=True)
    window = shipped[: policy.bias_window]
    if not window:
        return None
    domain, count = Counter(gap.domain for gap in window).most_common(1)[0]
    return domain if count / policy.bias_window > policy.bias_threshold else None


def in_order(gaps: Sequence[Gap], biased: str | None, policy: PickPolicy) -> tuple[Gap, ...]:
    """Return `gaps` in the order of work (behaviour K2, K3).

    Gaps of the biased domain stand one priority lower and behind the others of that level; P0
    always leads.
    """

    def place(gap: Gap) -> tuple[int, bool, int, int]:
        rank = _PRIORITY_RANK[gap.priority]
        held_back = gap.domain == biased and gap.priority is not Priority.P0
        if held_back:
            rank = min(rank + 1, len(_PRIORITY_RANK) - 1)
        effort = _EFFORT_RANK[gap.effort] if policy.by_effort else 0
        return rank, held_back, effort, gap.order

    return tuple(sorted(gaps, key=place))
