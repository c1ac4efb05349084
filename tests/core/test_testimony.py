"""How single remarks of an agent's add up (behaviour A3)."""

from __future__ import annotations

import pytest

from chump_orchestrator.core.testimony import Progress, Report, Said, Usage
from tests.builders import NOW

KNOWN = Report(
    session="one",
    usage=Usage(0.5, 100, 3),
    steps=4,
    activity="Bash",
    active_at=NOW,
    pull_number=7,
)


@pytest.mark.parametrize(
    ("said", "usage"),
    [
        (Usage(), Usage(0.5, 100, 3)),
        (Usage(tokens=120), Usage(0.5, 120, 3)),
        (Usage(0.0, 0, 0), Usage(0.0, 0, 0)),
    ],
)
def test_usage_is_laid_over_what_is_known(said: Usage, usage: Usage) -> None:
    after = KNOWN.after(said)

    assert after.usage == usage
    assert (after.steps, after.pull_number, after.activity) == (5, 7, "Bash")


@pytest.mark.parametrize(
    ("said", "number", "activity"),
    [(Progress(), 7, "Bash"), (Progress(9), 9, "Bash"), (Progress(None, "testing"), 7, "testing")],
)
def test_progress_is_laid_over_what_is_known(said: Said, number: int, activity: str) -> None:
    after = KNOWN.after(said)

    assert (after.steps, after.pull_number, after.activity) == (5, number, activity)
    assert after.usage == KNOWN.usage


def test_a_line_that_says_nothing_changes_nothing() -> None:
    assert KNOWN.after(None) is KNOWN


def test_a_whole_report_stands_for_itself() -> None:
    """But a reader that was made after a restart has not seen the session yet."""
    assert KNOWN.after(Report(steps=1)) == Report(session="one", steps=1)
    assert KNOWN.after(Report(session="two")) == Report(session="two")


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        (Usage(), Usage(), Usage()),
        (Usage(0.5), Usage(tokens=3), Usage(0.5, 3)),
        (Usage(0.5, 1, 2), Usage(0.25, 2, 3), Usage(0.75, 3, 5)),
    ],
)
def test_what_neither_says_of_its_use_stays_unknown(one: Usage, other: Usage, both: Usage) -> None:
    assert one.plus(other) == other.plus(one) == both


def test_its_words_are_all_that_it_says_about_a_failure() -> None:
    report = Report(answer="no luck", failure="HTTP 402", aside="retrying")

    assert report.words == "HTTP 402\nretrying\nno luck"
    assert Report(activity="Bash", session="x").words == ""


def test_what_is_not_known_is_null_for_others() -> None:
    """Behaviour C6."""
    assert set(Report().facts().values()) == {None}
    assert KNOWN.facts() == {
        "cost_usd": 0.5,
        "tokens": 100,
        "turns": 3,
        "tool_calls": None,
        "session": "one",
        "activity": "Bash",
        "activity_at": "2026-04-27T12:00:00Z",
        "trouble": None,
    }
