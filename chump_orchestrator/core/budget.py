"""When money or tokens keep from dispatching: budgets for a day and for a gap (behaviour X3).

Decisions only; what was spent is handed in. A budget that is reached starts nothing more. One
that is nearly reached starts no more at once than are expected to stay within it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from datetime import UTC, datetime, time, timedelta, tzinfo
from types import MappingProxyType
from typing import NamedTuple

from chump_orchestrator.core.attempts import Attempt
from chump_orchestrator.core.backlog import Backlog, Hold, HoldKind
from chump_orchestrator.core.deferred import dataclass
from chump_orchestrator.core.gap import Effort
from chump_orchestrator.core.outcome import OutcomeKind

SAMPLE = 20
"""So many of the latest dispatches of a kind tell what the next one will use."""

USD_PER_GAP, USD_PER_DAY, TOKENS_PER_DAY = "usd_per_gap", "usd_per_day", "tokens_per_day"

REMEDY = "raise it and reload to go on sooner"


@dataclass(frozen=True, slots=True)
class BudgetPolicy:
    """What may be spent; 0 stands for no limit. `caps` is what an agent of a backend may use."""

    usd_per_gap: float = 0.0
    usd_per_day: float = 0.0
    tokens_per_day: int = 0
    caps: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def is_daily(self) -> bool:
        """Whether a day has a limit of any kind."""
        return bool(self.usd_per_day or self.tokens_per_day)


@dataclass(frozen=True, slots=True)
class Spent:
    """What agents told to have used. `agents` have ended, of which `untold` did not tell a cost.

    `untold_tokens` likewise. `usd` and `tokens` are thus the least that it can have been.
    """

    usd: float = 0.0
    tokens: int = 0
    agents: int = 0
    untold: int = 0
    untold_tokens: int = 0

    def plus(self, cost_usd: float | None, tokens: int | None) -> Spent:
        """Return it with one more agent that has ended."""
        return Spent(
            self.usd + max(cost_usd or 0.0, 0.0),
            self.tokens + max(tokens or 0, 0),
            self.agents + 1,
            self.untold + (cost_usd is None),
            self.untold_tokens + (tokens is None),
        )


@dataclass(frozen=True, slots=True)
class AtWork:
    """An agent that works, and what it has told so far to have used; `None` is nothing yet."""

    backend: str
    effort: Effort
    usd: float | None = None
    tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Estimate:
    """What an agent is expected to use in all; `None` where nothing is known of its like.

    `alike` is how many dispatches it is the mean of; 0 is the most that its backend lets it use.
    """

    usd: float | None = None
    tokens: int | None = None
    alike: int = 0


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a day has cost up to now, and what those at work are expected to use yet.

    `spent` includes what they have told so far. `unknown` of them nothing can be expected of.
    """

    spent: Spent
    at_work: int = 0
    rest_usd: float = 0.0
    rest_tokens: int = 0
    unknown: int = 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether another agent may be started. `reached` names the budgets that nothing is left of.

    `reason` is for people, empty when one may.
    """

    reason: str = ""
    reached: tuple[str, ...] = ()

    @property
    def allows(self) -> bool:
        """Whether another one may be started."""
        return not self.reason


def estimate(
    samples: Iterable[Attempt], backend: str, effort: Effort, cap: float = 0.0
) -> Estimate:
    """Return what an agent is expected to use, by the latest that are like it, newest first.

    Like it are those of its backend and effort; where none of these told anything, those of its
    backend. No more is expected than `cap`, which is also all that is known of one without its
    like; 0 is no cap.
    """
    told = [
        one
        for one in samples
        if one.had_agent and one.ended_at is not None and one.route.backend == backend
    ]
    usd = _mean([(one.effort, one.cost_usd) for one in told], effort)
    tokens = _mean([(one.effort, one.tokens) for one in told], effort)
    expected, alike = usd or (None, 0)
    if cap:
        expected = cap if expected is None else min(expected, cap)
    return Estimate(expected, None if tokens is None else round(tokens[0]), alike)


def _mean(
    told: Sequence[tuple[Effort, float | int | None]], effort: Effort
) -> tuple[float, int] | None:
    known = [(one, max(amount, 0)) for one, amount in told if amount is not None]
    amounts = [amount for one, amount in known if one is effort] or [amount for _, amount in known]
    recent = amounts[:SAMPLE]
    return (sum(recent) / len(recent), len(recent)) if recent else None


Expectation = Callable[[str, Effort], Estimate]
"""What an agent of a backend is expected to use for a gap of this effort."""


def outlook(ended: Spent, at_work: Sequence[AtWork], expected: Expectation) -> Outlook:
    """Return what a day has cost and will, `ended` being the agents that ended in it.

    One that has used more than was expected of it is expected to use nothing more.
    """
    usd, tokens, rest_usd, rest_tokens, unknown = ended.usd, ended.tokens, 0.0, 0, 0
    for one in at_work:
        whole = expected(one.backend, one.effort)
        so_far, tokens_so_far = max(one.usd or 0.0, 0.0), max(one.tokens or 0, 0)
        usd, tokens = usd + so_far, tokens + tokens_so_far
        rest_usd += max((whole.usd or 0.0) - so_far, 0.0)
        rest_tokens += max((whole.tokens or 0) - tokens_so_far, 0)
        unknown += whole.usd is None
    spent = Spent(usd, tokens, ended.agents, ended.untold, ended.untold_tokens)
    return Outlook(spent, len(at_work), rest_usd, rest_tokens, unknown)


def verdict(policy: BudgetPolicy, day: Outlook, coming: Estimate, until: str) -> Verdict:
    """Decide whether another agent may be started, which is expected to use `coming`.

    What is reached starts none. What is not starts one in any case while none is at work, and
    further ones only as far as all together are expected to stay within it. `until` is the hour
    at which the day ends.
    """
    spent = day.spent
    limits = (
        (USD_PER_DAY, policy.usd_per_day, spent.usd, day.rest_usd, coming.usd or 0.0, dollars),
        (
            TOKENS_PER_DAY,
            policy.tokens_per_day,
            spent.tokens,
            day.rest_tokens,
            coming.tokens or 0,
            tokens_in_words,
        ),
    )
    reached = [one for one in limits if one[1] and one[2] >= one[1]]
    if reached:
        told = " and ".join(f"{say(used)} of {say(most)}" for _, most, used, _, _, say in reached)
        names = tuple(name for name, *_ in reached)
        keys = ", ".join(f"budget.{name}" for name in names)
        return Verdict(f"budget reached until {until}: {told} a day ({keys}); {REMEDY}", names)
    for name, most, used, rest, more, say in limits:
        if most and day.at_work and used + rest + more > most:
            this = f", this one {say(more)}" if more else ""
            return Verdict(
                f"budget nearly reached: {say(used)} of {say(most)} a day (budget.{name});"
                f" {day.at_work} at work are expected to use {say(rest)} more{this}"
            )
    return Verdict()


def over_budget(policy: BudgetPolicy, spent_usd: float) -> str:
    """Say why a gap on which so much was spent is not dispatched; empty when it may be."""
    if not policy.usd_per_gap or spent_usd < policy.usd_per_gap:
        return ""
    return (
        f"{dollars(spent_usd)} of {dollars(policy.usd_per_gap)} spent on it (budget.usd_per_gap);"
        " retry it, or raise the budget and reload"
    )


def held_back(backlog: Backlog, held: Mapping[str, str]) -> Backlog:
    """Return the backlog with these gaps held, with the reasons; what holds one already stays."""
    if not held:
        return backlog
    holds = {gap: Hold(HoldKind.BUDGET, why) for gap, why in held.items()}
    return backlog.with_holds({**holds, **backlog.holds}, backlog.shipped)


def spent_on_gaps(attempts: Iterable[Attempt]) -> dict[str, float]:
    """Return the dollars spent on each gap since it was shipped or freed; oldest attempt first."""
    found: dict[str, float] = {}
    for one in attempts:
        if one.is_freed:
            continue
        if one.kind is OutcomeKind.SHIPPED:
            found.pop(one.gap, None)
        elif one.cost_usd:
            found[one.gap] = found.get(one.gap, 0.0) + max(one.cost_usd, 0.0)
    return found


class Used(NamedTuple):
    """What one agent told to have used, and when it ended; `None` is what it did not tell."""

    ended_at: datetime
    cost_usd: float | None
    tokens: int | None


def used(attempts: Iterable[Attempt]) -> Iterator[Used]:
    """Return what the agents of these attempts used, of those that had one which has ended."""
    for one in attempts:
        if one.had_agent and one.ended_at is not None:
            yield Used(one.ended_at, one.cost_usd, one.tokens)


def spent_between(ended: Iterable[Used], since: datetime, until: datetime) -> Spent:
    """Return what agents used that ended from `since` on and before `until`."""
    total = Spent()
    for one in ended:
        if since <= one.ended_at < until:
            total = total.plus(one.cost_usd, one.tokens)
    return total


def day_of(now: datetime, zone: tzinfo) -> tuple[datetime, datetime]:
    """Return when the local day of `now` began and when it ends, in UTC."""
    today = now.astimezone(zone).date()
    began, ends = (
        datetime.combine(today + timedelta(days=days), time(), zone).astimezone(UTC)
        for days in (0, 1)
    )
    return began, ends


def document(
    policy: BudgetPolicy, day: Outlook, ends: datetime, found: Verdict
) -> dict[str, object]:
    """Return the shape of `budget` in `status --json` and `report --json` (behaviour C6)."""
    spent = day.spent
    return {
        "usd_today": round(spent.usd, 6),
        "usd_per_day": policy.usd_per_day or None,
        "tokens_today": spent.tokens,
        "tokens_per_day": policy.tokens_per_day or None,
        "usd_per_gap": policy.usd_per_gap or None,
        "agents_today": spent.agents,
        "untold_cost": spent.untold,
        "untold_tokens": spent.untold_tokens,
        "at_work": day.at_work,
        "expected_usd": round(day.rest_usd, 6),
        "expected_tokens": day.rest_tokens,
        "unexpected": day.unknown,
        "day_ends": f"{ends:%Y-%m-%dT%H:%M:%SZ}",
        "reached": list(found.reached),
        "held": found.reason or None,
    }


def in_words(told: Mapping[str, object]) -> str:
    """Return a `document` in one line for people."""
    usd, most = told.get("usd_today"), told.get("usd_per_day")
    tokens, most_tokens = told.get("tokens_today"), told.get("tokens_per_day")
    parts = [dollars(usd) + (f" of {dollars(most)}" if most else "")]
    if tokens or most_tokens:
        of = f" of {tokens_in_words(most_tokens)}" if most_tokens else ""
        parts.append(f"{tokens_in_words(tokens)}{of}" if of else f"{tokens_in_words(tokens)}")
    if told.get("untold_cost"):
        parts.append(f"{told['untold_cost']} of {told['agents_today']} did not tell their cost")
    if most_tokens and told.get("untold_tokens"):
        told_of = f"{told['untold_tokens']} of {told['agents_today']}"
        parts.append(f"{told_of} did not tell their tokens")
    if told.get("at_work") and told.get("expected_usd"):
        parts.append(f"{dollars(told['expected_usd'])} more expected of {told['at_work']} at work")
    return ", ".join(parts)


def dollars(amount: object) -> str:
    """Return an amount of dollars; `?` for what is none."""
    return f"${amount:,.2f}" if isinstance(amount, int | float) else "?"


def tokens_in_words(amount: object) -> str:
    """Return a number of tokens; `?` for what is none."""
    return f"{amount:,.0f} tokens" if isinstance(amount, int | float) else "?"
