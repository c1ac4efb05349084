"""The machine's own zone, whose clocks are put forward and back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from chump_orchestrator.adapters.host import zone
from chump_orchestrator.core.budget import day_of


@pytest.fixture(autouse=True)
def _in_berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as here:
        here.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.parametrize(
    ("at", "shown"),
    [
        (datetime(2026, 1, 15, 12, tzinfo=UTC), "13:00 CET +0100"),
        (datetime(2026, 7, 15, 12, tzinfo=UTC), "14:00 CEST +0200"),
        (datetime(2026, 10, 25, 0, 30, tzinfo=UTC), "02:30 CEST +0200"),
        (datetime(2026, 10, 25, 1, 30, tzinfo=UTC), "02:30 CET +0100"),
    ],
)
def test_it_is_told_for_any_instant_and_not_for_now_alone(at: datetime, shown: str) -> None:
    here = zone("")

    assert here is not None
    local = at.astimezone(here)
    assert f"{local:%H:%M %Z %z}" == shown
    assert local.astimezone(UTC) == at


@pytest.mark.parametrize(("day", "hours"), [(28, 24), (29, 23)])
def test_a_day_on_which_the_clock_is_put_forward_is_an_hour_shorter(day: int, hours: int) -> None:
    here = zone("")

    assert here is not None
    began, ends = day_of(datetime(2026, 3, day, 12, tzinfo=UTC), here)
    assert ends - began == timedelta(hours=hours)


def test_one_that_there_is_not_is_none() -> None:
    assert zone("Europe/Atlantis") is None
    assert zone("../../etc/passwd") is None
