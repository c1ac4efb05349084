"""Texts that other tools parse, letter by letter; they change by addition only.

The literals stand for what has been stored already: when a test fails here, mend the code.
"""

from __future__ import annotations

from datetime import timedelta

import pytest

from chump_orchestrator.core.brakes import fingerprint
from chump_orchestrator.core.causes import Cause
from chump_orchestrator.core.gap import Effort
from chump_orchestrator.core.outcome import OutcomeKind
from chump_orchestrator.core.reflection import (
    Reflection,
    reflection_row,
    routing_row,
    target_row,
)
from tests.builders import a_gap, a_reflection

SHIPPED = a_reflection(siblings=3, duration=timedelta(seconds=1834.7), tail=("WARN late",))
KILLED = a_reflection(
    "comp-005a-fe-260427120000-00ff",
    gap="COMP-005a-fe",
    effort=Effort.L,
    outcome=OutcomeKind.KILLED,
    cause=Cause.DEADLINE,
    pull_number=None,
    backend="chump-local",
    tail=("ERROR: one", "panic: two"),
)


@pytest.mark.parametrize(
    ("reflection", "observed", "hypothesis", "directive"),
    [
        (
            SHIPPED,
            "outcome=shipped duration_s=1834 pr=412",
            "backend=claude\nWARN late",
            "dispatched gap=INFRA-1 effort=s domain=infra outcome=shipped duration_s=1834"
            " parallel_siblings=3 pr_number=412 notes=backend=claude"
            " dispatch=infra-1-260427120000-abcdef",
        ),
        (
            KILLED,
            "outcome=killed duration_s=1800 pr=none",
            "backend=chump-local cause:deadline\nERROR: one\npanic: two",
            "dispatched gap=COMP-005a-fe effort=l domain=comp outcome=killed duration_s=1800"
            " parallel_siblings=0 pr_number=none notes=backend=chump-local cause:deadline"
            " dispatch=comp-005a-fe-260427120000-00ff",
        ),
    ],
)
def test_the_texts_of_a_reflection(
    reflection: Reflection, observed: str, hypothesis: str, directive: str
) -> None:
    """Behaviour R2, R3."""
    row = reflection_row(reflection)

    assert row.observed_outcome == observed
    assert row.hypothesis == hypothesis
    assert target_row(reflection).directive == directive
    assert row.error_pattern == "orchestrator_dispatch"
    assert row.intended_goal == f"ship gap {reflection.gap}"


def test_the_time_of_a_routing_row() -> None:
    """Behaviour R5."""
    assert routing_row(SHIPPED).recorded_at == "2026-04-27T12:00:00Z"


def test_the_fingerprint_of_a_parked_gap_lasts_over_releases() -> None:
    """Behaviour X2: an upgrade must not free what is parked."""
    gap = a_gap(
        title="a title",
        description="a description — with a dash",
        acceptance=("one", "two"),
        depends_on=("A-1",),
    )

    assert fingerprint(gap) == "f745aedff17eacededf88587e3297c90"
