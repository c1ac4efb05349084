"""What a request says, and whose work may be shipped (behaviour P9)."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chump_orchestrator.core.outcome import Exit
from chump_orchestrator.core.routing import Route
from chump_orchestrator.core.shipping import (
    CRITERIA,
    TITLE_LIMIT,
    Shipment,
    Stage,
    letter,
    may_be_shipped,
    neutral,
)
from chump_orchestrator.core.testimony import Report, Usage
from tests.builders import a_dispatch, a_gap

SHIPMENT = Shipment(Stage.PUSHED, "c" * 40, "2 commits, 3 paths")
HALF_AN_HOUR = timedelta(minutes=30, seconds=5, milliseconds=7)


def test_a_request_says_whose_work_it_is_and_how_it_was_checked() -> None:
    gap = a_gap("COMP-005a-fe", title="Mend the gate", acceptance=("it opens", "it closes"))
    dispatch = a_dispatch("comp-1", gap=gap, route=Route("claude", "opus"), attempt=2)
    report = Report(model="opus-5", usage=Usage(1.2345, 12345, 17))

    told = letter(dispatch, SHIPMENT, report, HALF_AN_HOUR)

    assert told.title == "COMP-005a-fe: Mend the gate"
    assert told.body == (
        "An agent's work on gap `COMP-005a-fe`, shipped by chump-orchestrator. What the backlog"
        " asks for, in its own words:\n\n"
        "```text\nMend the gate\n- it opens\n- it closes\n```\n\n"
        "| | |\n|---|---|\n"
        "| Dispatch | `comp-1`, attempt 2 |\n"
        "| Lease | held for `COMP-005a-fe` by that dispatch until it is settled |\n"
        "| Backend | `claude` |\n"
        "| Model | `opus-5` |\n"
        "| Worked for | 0:30:05 |\n"
        "| Turns | 17 |\n"
        "| Tokens | 12,345 |\n"
        "| Cost | 1.23 USD, by its own account |\n"
        f"| Commit | `{'c' * 40}` |\n"
        "| Looked through | 2 commits, 3 paths |\n\n"
        "Before it was pushed, every commit was looked through for secrets and forbidden paths."
        " Nobody has reviewed the work itself.\n"
    )


def test_what_is_not_known_is_left_out() -> None:
    told = letter(a_dispatch(), SHIPMENT, Report(), timedelta(0))

    assert "Model" not in told.body
    assert "Turns" not in told.body
    assert "Cost" not in told.body


@pytest.mark.parametrize(
    ("hostile", "harmless"),
    [
        ("thanks @octocat and @acme/team", "thanks @ octocat and @ acme/team"),
        ("fixes #12, closes acme/anvil#3", "fixes # 12, closes acme/anvil# 3"),
        ("resolves GH-12", "resolves GH- 12"),
        ("closes https://github.com/a/b/issues/1", "closes https: //github.com/a/b/issues/1"),
        ("50 % at a#b, mail me @ home", "50 % at a#b, mail me @ home"),
    ],
)
def test_foreign_text_calls_nobody_and_closes_nothing(hostile: str, harmless: str) -> None:
    assert neutral(hostile) == harmless


HOSTILE = st.text(alphabet="@#`|<>-:/ aG1H\n\r\u202e\x1b!é", max_size=600)


@given(title=HOSTILE, criteria=st.lists(HOSTILE, max_size=30))
def test_no_text_of_the_backlog_leaves_its_fence_or_calls(title: str, criteria: list[str]) -> None:
    gap = a_gap(title=title, acceptance=tuple(criteria))

    told = letter(a_dispatch(gap=gap), SHIPMENT, Report(), timedelta(0))

    fence = re.search(r"^(`{3,})text$", told.body, re.MULTILINE)
    assert fence is not None
    before, quoted, after = told.body.split(fence[1])
    assert "`" * len(fence[1]) not in quoted
    for text in (told.title, told.body):
        assert not re.search(r"@\w|#\d|GH-\d|://", text, re.ASCII)
        assert text.replace("\n", "").isprintable()
    assert "<" not in before + after
    assert "\n" not in told.title
    assert len(told.title) <= TITLE_LIMIT
    assert len(told.body) < 20_000


def test_a_backlog_without_bounds_makes_no_request_without_bounds() -> None:
    gap = a_gap(title="x" * 100_000, acceptance=("y" * 100_000,) * 1000)

    told = letter(a_dispatch(gap=gap), SHIPMENT, Report(), timedelta(0))

    assert len(told.title) == TITLE_LIMIT
    assert f"- and {1000 - CRITERIA} more" in told.body
    assert len(told.body) < 20_000


@pytest.mark.parametrize(
    ("ended", "may"),
    [
        (Exit(code=0), True),
        (Exit(code=1), False),
        (Exit(signal=15), False),
        (Exit(code=0, stopped_by="operator"), False),
        (Exit(code=0, lost="its shim was killed"), False),
        (Exit(spawn_error="no such program"), False),
    ],
)
def test_only_what_an_agent_has_ended_by_itself_is_shipped(ended: Exit, may: bool) -> None:
    assert may_be_shipped(ended) is may
