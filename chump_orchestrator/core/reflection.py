"""What is written down of a dispatch, field by field (behaviour R1 to R5)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from chump_orchestrator.core.causes import Cause
from chump_orchestrator.core.deferred import dataclass
from chump_orchestrator.core.gap import Effort, Priority, domain_of
from chump_orchestrator.core.outcome import OutcomeKind

PATTERN = "orchestrator_dispatch"
"""`error_pattern` of every row, by which other tools find ours."""

_TARGET_PRIORITY = {
    OutcomeKind.KILLED: "high",
    OutcomeKind.CI_FAILED: "high",
    OutcomeKind.LOST: "high",
    OutcomeKind.STALLED: "medium",
    OutcomeKind.SPAWN_FAILED: "medium",
}


@dataclass(frozen=True, slots=True)
class Reflection:
    """The row that is learnt from: one for each dispatch that has an outcome.

    `siblings` are the other agents in flight when it ended. `tail` holds the telling lines of
    standard error. `cost_usd` is `None` where the agent did not report one. `odds` is how likely a
    draw was to put this candidate first, `None` where none was made (behaviour G4).
    """

    dispatch: str
    gap: str
    priority: Priority
    effort: Effort
    task_class: str
    outcome: OutcomeKind
    cause: Cause | None
    duration: timedelta
    pull_number: int | None
    backend: str
    model: str
    provider_pfx: str
    siblings: int
    tail: tuple[str, ...]
    cost_usd: float | None
    ended_at: datetime
    odds: float | None = None

    @property
    def duration_s(self) -> int:
        """Whole seconds."""
        return int(self.duration.total_seconds())

    @property
    def domain(self) -> str:
        """The gap's domain in lower case, as these rows have always had it."""
        return domain_of(self.gap).lower()


class ReflectionRow(NamedTuple):
    """A row of `chump_reflections`; fields are its columns."""

    episode_id: str
    task_id: str
    intended_goal: str
    observed_outcome: str
    outcome_class: str
    error_pattern: str
    hypothesis: str
    surprisal_at_reflect: float | None = None
    confidence_at_reflect: float | None = None


class TargetRow(NamedTuple):
    """A row of `chump_improvement_targets`; fields are its columns, less the reflection's id."""

    directive: str
    priority: str
    scope: str


class RoutingRow(NamedTuple):
    """A row of `routing_outcomes`; fields are its columns."""

    recorded_at: str
    task_class: str | None
    priority: str
    effort: str
    backend: str
    model: str | None
    provider_pfx: str | None
    gap_id: str
    outcome: str
    pr_number: int | None
    duration_s: int
    cost_usd: float | None
    cause: str | None = None
    propensity: float | None = None


def notes(reflection: Reflection) -> str:
    """Return backend and, for failures, cause on the first line; the tail below (behaviour R2)."""
    return "\n".join((_first_note(reflection), *reflection.tail))


def _first_note(reflection: Reflection) -> str:
    first = f"backend={reflection.backend}"
    if reflection.outcome.outcome_class == "failure":
        first += f" cause:{reflection.cause or Cause.UNKNOWN}"
    return first


def reflection_row(reflection: Reflection) -> ReflectionRow:
    """Return the row for `chump_reflections` (behaviour R2)."""
    pull = _or_none(reflection.pull_number)
    return ReflectionRow(
        episode_id=reflection.dispatch,
        task_id=reflection.gap,
        intended_goal=f"ship gap {reflection.gap}",
        observed_outcome=(
            f"outcome={reflection.outcome} duration_s={reflection.duration_s} pr={pull}"
        ),
        outcome_class=reflection.outcome.outcome_class,
        error_pattern=PATTERN,
        hypothesis=notes(reflection),
    )


def target_row(reflection: Reflection) -> TargetRow:
    """Return the row for `chump_improvement_targets` (behaviour R3)."""
    first = _first_note(reflection).partition("\n")[0]
    directive = (
        f"dispatched gap={reflection.gap} effort={reflection.effort} domain={reflection.domain}"
        f" outcome={reflection.outcome} duration_s={reflection.duration_s}"
        f" parallel_siblings={reflection.siblings} pr_number={_or_none(reflection.pull_number)}"
        f" notes={first} dispatch={reflection.dispatch}"
    )
    priority = _TARGET_PRIORITY.get(reflection.outcome, "low")
    return TargetRow(" ".join(directive.split()), priority, reflection.domain)


def routing_row(reflection: Reflection) -> RoutingRow:
    """Return the row for `routing_outcomes` (behaviour R5)."""
    return RoutingRow(
        recorded_at=reflection.ended_at.astimezone(UTC).isoformat(timespec="seconds")[:19] + "Z",
        task_class=reflection.task_class or None,
        priority=reflection.priority,
        effort=reflection.effort,
        backend=reflection.backend,
        model=reflection.model or None,
        provider_pfx=reflection.provider_pfx or None,
        gap_id=reflection.gap,
        outcome=reflection.outcome,
        pr_number=reflection.pull_number,
        duration_s=reflection.duration_s,
        cost_usd=reflection.cost_usd,
        cause=reflection.cause,
        propensity=reflection.odds,
    )


def _or_none(number: int | None) -> int | str:
    return "none" if number is None else number
