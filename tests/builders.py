"""Builders of core values for tests: say what matters, the rest has a default."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from chump_orchestrator.core.backlog import Backlog, assemble
from chump_orchestrator.core.dispatch import Deadlines, Dispatch, Names
from chump_orchestrator.core.gap import Effort, Gap, Priority
from chump_orchestrator.core.outcome import OutcomeKind, PullRequest, PullState
from chump_orchestrator.core.reflection import Reflection
from chump_orchestrator.core.routing import Route

NOW = datetime(2026, 4, 27, 12, 0, tzinfo=UTC)
"""An instant for tests, with whole seconds."""


def a_gap(gap_id: str = "INFRA-1", **fields: Any) -> Gap:
    """Return an open P1 gap of effort s, with `fields` on top."""
    defaults: dict[str, Any] = {"priority": Priority.P1, "effort": Effort.S, "title": "a title"}
    return Gap(id=gap_id, **(defaults | fields))


def a_backlog(*gaps: Gap, **fields: Any) -> Backlog:
    """Return a backlog of `gaps`, their order being that of the arguments."""
    numbered = (replace(gap, order=order) for order, gap in enumerate(gaps))
    return replace(assemble(numbered), **fields)


def a_dispatch(dispatch_id: str = "infra-1-260427120000-abcdef", **fields: Any) -> Dispatch:
    """Return a first attempt of `a_gap()` with claude, soft deadline 20 minutes."""
    gap = fields.pop("gap", None) or a_gap()
    defaults: dict[str, Any] = {
        "gap": gap,
        "attempt": 1,
        "route": Route("claude"),
        "deadlines": Deadlines(soft=timedelta(minutes=20)),
        "names": Names(f"claude/{gap.slug}", gap.slug),
        "created_at": NOW,
    }
    return Dispatch(id=dispatch_id, **(defaults | fields))


def a_pull(state: PullState = PullState.OPEN, **fields: Any) -> PullRequest:
    """Return request 412 of the branch of `a_dispatch()`, asked for at `NOW`."""
    defaults: dict[str, Any] = {
        "branch": "claude/infra-1",
        "asked_at": NOW,
        "number": None if state is PullState.NONE else 412,
    }
    return PullRequest(state=state, **(defaults | fields))


def a_reflection(dispatch_id: str = "infra-1-260427120000-abcdef", **fields: Any) -> Reflection:
    """Return the reflection of `a_dispatch()` that shipped request 412 after half an hour."""
    defaults: dict[str, Any] = {
        "gap": "INFRA-1",
        "priority": Priority.P1,
        "effort": Effort.S,
        "task_class": "",
        "outcome": OutcomeKind.SHIPPED,
        "cause": None,
        "duration": timedelta(minutes=30),
        "pull_number": 412,
        "backend": "claude",
        "model": "",
        "provider_pfx": "",
        "siblings": 0,
        "tail": (),
        "cost_usd": None,
        "ended_at": NOW,
    }
    return Reflection(dispatch=dispatch_id, **(defaults | fields))
