"""How the turns of the loop are counted."""

from __future__ import annotations

import pytest

from chump_orchestrator.core.turns import BOUNDS_S, LATELY_S, SLOW_S, LoopTurns, TurnsTaken


def counted(*took_s: float) -> TurnsTaken:
    turns = LoopTurns()
    for one in took_s:
        turns.count(one, 1000.0)
    taken = turns.taken(1000.0)
    assert taken is not None
    return taken


def test_nothing_is_told_where_nobody_counts() -> None:
    assert LoopTurns().taken(0.0) is None


def test_each_turn_counts_in_its_class_and_all_in_the_sum() -> None:
    taken = counted(0.0, 0.001, 0.002, 0.5, 100.0)

    assert taken == TurnsTaken((2, 1, 0, 0, 0, 1, 0, 0, 0, 1), 0.001 + 0.002 + 0.5 + 100.0, 100.0)


def test_what_takes_longer_than_it_should_is_slow() -> None:
    assert SLOW_S in BOUNDS_S
    assert counted(SLOW_S, 0.0).slow == 0
    assert counted(SLOW_S + 0.001, 31.0, 0.0).slow == 2


@pytest.mark.parametrize(
    ("later_s", "longest_s"),
    [(0.0, 2.0), (LATELY_S - 1, 2.0), (LATELY_S, 2.0), (2 * LATELY_S - 1, 2.0), (9e9, 0.001)],
)
@pytest.mark.parametrize("step_s", [1e9, 7.0])
def test_the_longest_of_late_is_forgotten_in_time(
    later_s: float, longest_s: float, step_s: float
) -> None:
    """Whether the loop turned meanwhile or slept."""
    later_s = min(later_s, 3 * LATELY_S) if step_s < LATELY_S else later_s
    turns = LoopTurns()
    turns.count(2.0, 50.0)
    now_s = 50.0
    while now_s + step_s < 50.0 + later_s:
        now_s += step_s
        turns.count(0.001, now_s)
    turns.count(0.001, 50.0 + later_s)
    taken = turns.taken(50.0 + later_s)

    assert taken is not None
    assert taken.longest_s == longest_s
