"""The streams of agents in words, whatever way their bytes arrive (`logs --words`)."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chump_orchestrator.cli.retelling import Retelling, reader_of
from chump_orchestrator.config import Settings
from chump_orchestrator.core.testimony import Reader


def line(**event: object) -> bytes:
    return json.dumps(event).encode() + b"\n"


def said(number: int, *parts: dict[str, object]) -> bytes:
    message = {"id": f"m{number}", "model": "opus", "usage": {"input_tokens": 100}}
    return line(type="assistant", message={**message, "content": list(parts)})


STREAM = b"".join(
    (
        b"npm warn: a wrapper's own words\n",
        line(type="system", subtype="init", session_id="s-1", model="opus"),
        said(1, {"type": "text", "text": "I shall look."}),
        said(2, {"type": "tool_use", "name": "Bash", "input": {"command": "ls"}}),
        line(type="user", message={"content": [{"type": "tool_result", "content": "x" * 9000}]}),
        said(3, {"type": "tool_use", "name": "Edit", "input": {}}),
        line(type="system", subtype="api_retry", error_status=529, attempt=1, max_retries=8),
        said(4, {"type": "text", "text": "Done,\nin two lines."}),
        line(type="result", session_id="s-1", num_turns=4, total_cost_usd=0.5, result="PR 7"),
    )
)
WORDS = """\
npm warn: a wrapper's own words
* session s-1 opus
I shall look.
> Bash
> Edit
! retry 1 of 8: 529
! API Error: 529
Done,
in two lines.
PR 7
= 4 turns, 400 tokens, $0.50
"""


def reader() -> Reader:
    found = reader_of("claude", Settings())
    assert found is not None
    return found


def retold(*chunks: bytes) -> str:
    retelling = Retelling(reader())
    return "".join(map(retelling.feed, chunks)) + retelling.end()


def test_a_stream_is_told_in_words() -> None:
    assert retold(STREAM) == WORDS


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_however_it_is_torn_it_is_told_the_same(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]

    assert retold(*(STREAM[a:b] for a, b in itertools.pairwise(edges))) == WORDS


@given(st.binary(max_size=400))
def test_whatever_an_agent_prints_nothing_is_raised(data: bytes) -> None:
    retold(data, b"\n", data)


def test_what_is_no_event_is_told_as_it_is() -> None:
    assert retold(b"panic: \xff\r\n  at main\n\nlast words") == (
        "panic: \N{REPLACEMENT CHARACTER}\n  at main\n\nlast words\n"
    )


def test_a_line_without_an_end_is_cut_and_takes_no_room() -> None:
    retelling = Retelling(reader())
    most = reader().longest_line

    for _ in range(3):
        assert retelling.feed(b"x" * most) == ""
    told = retelling.feed(b"\nnext\n")

    assert told == "x" * most + " [cut]\nnext\n"


def test_a_line_that_was_begun_before_bytes_are_missing_is_left_out() -> None:
    retelling = Retelling(reader())

    assert retelling.feed(b"the beginning of a") == ""
    retelling.skip()

    assert retelling.feed(b"and on it goes\n") == "and on it goes\n"


@pytest.mark.parametrize(
    ("backend", "is_understood"),
    [
        ("claude", True),
        ("codex", True),
        ("gemini", True),
        ("opencode", True),
        ("custom", False),
        ("exit_1", False),
        ("nobody", False),
    ],
)
def test_only_what_are_events_needs_somebody_to_understand_it(
    backend: str, is_understood: bool
) -> None:
    assert (reader_of(backend, Settings()) is not None) is is_understood
