"""Which of a gap's candidates to try first, by how earlier dispatches went: Thompson sampling (G4).

For each class of task and effort, every candidate has a belief in how often it ships: a Beta
distribution of what it shipped and what it failed at, older rows weighing less. A draw from each
belief ranks the candidates, so that the better one is mostly asked first and the others are never
forgotten.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field, replace
from datetime import date
from typing import TYPE_CHECKING

from chump_orchestrator.core.causes import Cause
from chump_orchestrator.core.deferred import dataclass
from chump_orchestrator.core.gap import Gap
from chump_orchestrator.core.outcome import OutcomeKind
from chump_orchestrator.core.routing import (
    Candidate,
    Route,
    RoutePolicy,
    key_of,
    route,
    task_class,
)

if TYPE_CHECKING:
    from chump_orchestrator.core.reflection import Reflection

HALF_LIFE_DAYS = 30.0
"""After so many days a row weighs half: models and their prices change within months."""

HORIZON_DAYS = 365
"""What is older weighs less than a thousandth and is not looked at."""

CHEAPEST_USD = 0.01
"""What an attempt counts as at least: below that, costs say nothing of value."""

DEAREST_USD = 1e6
"""Whoever writes that an attempt cost more than that errs."""

_POINTS = 128
_DEVIATIONS = 8.0

Kind = tuple[str, str]
"""Class of task, empty for none, and effort."""


@dataclass(frozen=True, slots=True)
class Outcomes:
    """How dispatches of one kind, by one candidate, ended on one day.

    `count` is how many ended so; `usd` is what the `priced` ones of them cost together.
    """

    kind: Kind
    candidate: Candidate
    day: date
    outcome: str
    cause: str = ""
    count: int = 1
    usd: float = 0.0
    priced: int = 0

    @classmethod
    def told_by(cls, reflection: Reflection) -> Outcomes:
        """Return what one reflection tells."""
        usd = reflection.cost_usd or 0.0
        return cls(
            (reflection.task_class, str(reflection.effort)),
            (reflection.backend, reflection.model, reflection.provider_pfx),
            reflection.ended_at.date(),
            str(reflection.outcome),
            str(reflection.cause or ""),
            usd=usd,
            priced=int(usd > 0),
        )


@dataclass(frozen=True, slots=True)
class Belief:
    """What is known of a candidate: weighted successes and failures, and what an attempt costs.

    `usd` is the mean of an attempt, `None` where no attempt told its cost.
    """

    shipped: float = 0.0
    failed: float = 0.0
    usd: float | None = None

    @property
    def in_words(self) -> str:
        """What is known, for people."""
        if self.shipped + self.failed == 0:
            return "not tried yet"
        told = f"{self.shipped:.1f} of {self.shipped + self.failed:.1f} shipped"
        return told if self.usd is None else f"{told} at ${self.usd:.2f} each"

    @property
    def alpha(self) -> float:
        """The first parameter of the Beta distribution."""
        return self.shipped + 1.0

    @property
    def beta(self) -> float:
        """The second one."""
        return self.failed + 1.0


@dataclass(frozen=True, slots=True)
class Experience:
    """All that was learnt, by kind of task and candidate."""

    beliefs: Mapping[Kind, Mapping[Candidate, Belief]] = field(default_factory=dict)

    def of(self, kind: Kind, candidate: Candidate) -> Belief:
        """Return the belief in a candidate; one that was never tried is believed of as even."""
        return self.beliefs.get(kind, {}).get(candidate, Belief())


def ranked(
    gap: Gap, policy: RoutePolicy, experience: Experience | None, attempts: int
) -> tuple[Route, ...]:
    """Return the candidates for `gap`, the one to ask first in front, never none (G4).

    Where the policy learns, those of the table are in the order of a draw, each with its odds. What
    is drawn is how often a candidate ships; where costs are known, that per dollar, and one whose
    cost is not known counts as the others do on average. The draw follows from the gap, from how
    many `attempts` at it have ended, and from `experience`, so that whoever asks is told the same.
    """
    listed = route(gap, policy)
    by_key = {key_of(one): one for one in reversed(listed)}
    if policy.override is not None or not policy.learns or len(by_key) == 1:
        return listed
    kind = task_class(gap.id, policy.classes), str(gap.effort)
    beliefs = {key: (experience or Experience()).of(kind, key) for key in reversed(by_key)}
    costs = _costs(list(beliefs.values()))
    curves = [_Curve(one.alpha, one.beta) for one in beliefs.values()]
    drawn = [
        curve.quantile(_chance(gap.id, attempts, key)) / cost
        for curve, cost, key in zip(curves, costs, beliefs, strict=True)
    ]
    odds = _odds(curves, costs)
    order = sorted(zip(drawn, odds, beliefs, strict=True), key=lambda one: -one[0])
    return tuple(
        replace(by_key[key], odds=likely).because(
            f"drawn with odds of {likely:.2f}, {beliefs[key].in_words}"
        )
        for _, likely, key in order
    )


def _chance(gap: str, attempts: int, candidate: Candidate) -> float:
    """Return a number between 0 and 1 that nobody can tell from chance, the same for the same."""
    import hashlib  # noqa: PLC0415 - only where routing learns

    text = "\0".join((gap, str(attempts), *candidate))
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return (int.from_bytes(digest[:8]) + 0.5) / 2**64


def experience(rows: Iterable[Outcomes], today: date) -> Experience:
    """Return what the rows teach, as of `today`."""
    sums: dict[Kind, dict[Candidate, list[float]]] = {}
    for row in rows:
        # A usage limit is nobody's failure, and not the candidate's (behaviour X4).
        if OutcomeKind(row.outcome).says_nothing or row.cause == Cause.USAGE_LIMIT:
            continue
        age = max((today - row.day).days, 0)
        if age > HORIZON_DAYS:
            continue
        weight = 0.5 ** (age / HALF_LIFE_DAYS)
        known = sums.setdefault(row.kind, {}).setdefault(row.candidate, [0.0] * 4)
        known[0 if row.outcome == OutcomeKind.SHIPPED else 1] += weight * row.count
        if 0 < row.usd < DEAREST_USD * max(row.count, 1):
            known[2] += weight * row.usd
            known[3] += weight * row.priced
    return Experience(
        {
            kind: {
                candidate: Belief(shipped, failed, usd / priced if priced else None)
                for candidate, (shipped, failed, usd, priced) in found.items()
            }
            for kind, found in sums.items()
        }
    )


def _costs(beliefs: Sequence[Belief]) -> list[float]:
    known = [max(one.usd, CHEAPEST_USD) for one in beliefs if one.usd is not None]
    if not known:
        return [1.0] * len(beliefs)
    mean = sum(known) / len(known)
    return [mean if one.usd is None else max(one.usd, CHEAPEST_USD) for one in beliefs]


def _odds(curves: Sequence[_Curve], costs: Sequence[float]) -> list[float]:
    """Return how likely each one is to be drawn best, by integration over its own belief."""
    odds = []
    for at, (curve, cost) in enumerate(zip(curves, costs, strict=True)):
        others = [(curves[o], costs[o] / cost) for o in range(len(curves)) if o != at]
        odds.append(
            sum(
                weight * math.prod(other.below(x * ratio) for other, ratio in others)
                for x, weight in zip(curve.middles, curve.weights, strict=True)
            )
        )
    total = sum(odds)
    return [one / total for one in odds] if total else [1 / len(odds)] * len(odds)


class _Curve:
    """A Beta distribution as weights of equal slices around where it has its mass."""

    def __init__(self, alpha: float, beta: float) -> None:
        mean = alpha / (alpha + beta)
        spread = math.sqrt(mean * (1 - mean) / (alpha + beta + 1)) * _DEVIATIONS
        low, high = max(mean - spread, 0.0), min(mean + spread, 1.0)
        self._low, self._width = low, (high - low) / _POINTS
        self.middles = [low + (at + 0.5) * self._width for at in range(_POINTS)]
        heights = [(alpha - 1) * math.log(x) + (beta - 1) * math.log1p(-x) for x in self.middles]
        top = max(heights)
        raw = [math.exp(height - top) for height in heights]
        total = sum(raw)
        self.weights = [one / total for one in raw]
        self._edges = [low + at * self._width for at in range(_POINTS + 1)]
        self._sums = [0.0]
        for weight in self.weights:
            self._sums.append(self._sums[-1] + weight)

    def below(self, x: float) -> float:
        """Return the probability of less than `x`."""
        if x <= self._low:
            return 0.0
        if x >= self._edges[-1]:
            return 1.0
        at = bisect_right(self._edges, x) - 1
        return self._sums[at] + self.weights[at] * (x - self._edges[at]) / self._width

    def quantile(self, share: float) -> float:
        """Return what a draw is below with the probability `share`."""
        at = min(bisect_right(self._sums, share), _POINTS) - 1
        inside = (share - self._sums[at]) / self.weights[at] if self.weights[at] else 0.5
        return self._edges[at] + min(inside, 1.0) * self._width
