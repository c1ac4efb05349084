"""The data that crosses the ports (behaviour C6, promise I1)."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from chump_orchestrator.core.records import DispatchState, Record
from tests.builders import NOW, a_dispatch

M = timedelta(minutes=1)


@pytest.mark.parametrize(
    ("state", "active"),
    [
        ("planned", True),
        ("launching", True),
        ("running", True),
        ("exited", True),
        ("settled", False),
        ("done", False),
        ("aborted", False),
    ],
)
def test_a_dispatch_is_active_until_it_is_settled(state: str, active: bool) -> None:
    """Promise I1: while it is, its gap gets no other."""
    assert DispatchState(state).is_active is active
    assert len(DispatchState) == 7


@pytest.mark.parametrize(
    ("launched", "ended", "duration"),
    [
        (NOW + M, NOW + 5 * M, 4 * M),
        (None, NOW + 5 * M, 5 * M),
        (NOW + M, None, None),
        (NOW + M, NOW - 5 * M, timedelta(0)),
    ],
)
def test_a_duration_runs_from_the_launch_and_is_never_negative(
    launched: datetime | None, ended: datetime | None, duration: timedelta | None
) -> None:
    """Behaviour C6, R2."""
    record = Record(
        a_dispatch(created_at=NOW), DispatchState.SETTLED, launched_at=launched, ended_at=ended
    )

    assert record.duration == duration
