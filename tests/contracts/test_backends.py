"""What every reader of agents' output promises (`core.testimony.Reader`), on made-up transcripts.

However a stream is torn, whatever stands between its lines and whatever its values are, the same
is understood, nothing is raised, and all that is kept is bounded and can be stored.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chump_orchestrator.adapters.backends.aider import Aider
from chump_orchestrator.adapters.backends.claude import Claude
from chump_orchestrator.adapters.backends.codex import Codex
from chump_orchestrator.adapters.backends.gemini import Gemini
from chump_orchestrator.adapters.backends.goose import Goose
from chump_orchestrator.adapters.backends.opencode import Opencode
from chump_orchestrator.adapters.backends.qwen import Qwen
from chump_orchestrator.adapters.ledger_rows import REPORT
from chump_orchestrator.adapters.local.output import Lines
from chump_orchestrator.core.causes import Cause, cause_in
from chump_orchestrator.core.ports import Backend
from chump_orchestrator.core.testimony import WORDS, MakesReaders, Reader, Report, Usage

TRANSCRIPTS = Path(__file__).parent.parent / "adapters" / "transcripts"

MIB = 2**20

BACKENDS: dict[str, Callable[[], MakesReaders]] = {
    "aider": Aider,
    "claude": Claude,
    "codex": Codex,
    "gemini": Gemini,
    "goose": Goose,
    "opencode": Opencode,
    "qwen": Qwen,
}

ONE, OTHER = "11111111-2222-5333-8444-555555555555", "99999999-2222-5333-8444-555555555555"


@dataclass(frozen=True, slots=True)
class Told:
    """What is to be understood of a transcript; `cause` is what its words tell."""

    session: str = ""
    usage: Usage = field(default_factory=Usage)
    tool_calls: int = 0
    pull: int | None = None
    answer: str = ""
    failure: str = ""
    cause: Cause | None = None
    resets_at: datetime | None = None


UNKNOWN_KEY = "no such key"
UNAUTHORIZED = f"unexpected status 401 Unauthorized: {UNKNOWN_KEY}"

TOLD: dict[str, Told] = {
    "claude_ships": Told(ONE, Usage(0.1875, 5404, 4), 3, 412, "412"),
    "claude_is_killed": Told(ONE, Usage(None, 2440, 2), 2, answer="Now the rest of it."),
    "claude_meets_its_limit": Told(
        ONE,
        Usage(0.02, 2450, 2),
        2,
        failure="You've hit your session limit · resets 10pm (Europe/Berlin)\nHTTP 429\n"
        "usage limit reached",
        cause=Cause.USAGE_LIMIT,
        resets_at=datetime(2026, 4, 27, 20, 0, tzinfo=UTC),
    ),
    "claude_is_not_served": Told(
        ONE,
        Usage(0.0, 0, 1),
        failure="API Error: 529 Overloaded. Usually temporary.",
        cause=Cause.RATE_LIMITED,
    ),
    "claude_spends_what_it_may": Told(
        ONE,
        Usage(0.51, 1220, 1),
        1,
        failure="Reached maximum budget ($0.5)",
        cause=Cause.NO_PULL,
    ),
    "claude_is_started_again_by_a_wrapper": Told(OTHER, Usage(0.03, 1740, 2), 1, 413, "413"),
    "codex_ships": Told(
        "0190-thread",
        Usage(None, 2250, 1),
        2,
        412,
        "Opened the pull request:\n\nhttps://forge.example/o/r/pull/412",
    ),
    "codex_is_not_known": Told(
        "0190-thread", Usage(turns=1), failure=UNAUTHORIZED, cause=Cause.AUTH
    ),
    "codex_waits_for_the_network": Told(
        "0190-thread",
        Usage(turns=1),
        failure="Reconnecting... waiting for network (Connection failed: error sending request)",
        cause=Cause.NETWORK,
    ),
    "gemini_ships": Told(
        ONE, Usage(None, 2345, 2), 1, 412, "The request is #412.\n\n#412", cause=None
    ),
    "gemini_is_not_known": Told(
        ONE,
        Usage(tokens=0),
        failure='[API Error: {"error":{"code":401,"message":"no such key",'
        '"status":"UNAUTHENTICATED"}}]',
        cause=Cause.AUTH,
    ),
    "qwen_ships": Told(ONE, Usage(None, 2115, 2), 1, 412, "412"),
    "qwen_is_not_known": Told(
        ONE, Usage(None, 0, 1), failure="[API Error: 401 no such key]", cause=Cause.AUTH
    ),
    "opencode_ships": Told("ses_one", Usage(0.015, 2297, 2), 1, 412, "Opened:\n\n412"),
    "opencode_is_not_known": Told(
        "ses_one", failure="API error 401: no such key", cause=Cause.AUTH
    ),
    "goose_ships": Told("", Usage(0.0059, 2214, 2), 1, 412, "It is pull request 412"),
    "goose_is_not_served": Told(
        "",
        Usage(None, 0, 1),
        failure="Ran into this error: Server error: Server error (500 Internal Server Error) at"
        " http://127.0.0.1.\n\nPlease retry.",
        cause=Cause.NETWORK,
    ),
    "goose_is_interrupted": Told("", Usage(turns=1), 1, failure="Headless run interrupted"),
    "aider_edits": Told("", Usage(0.05, 13_800, 2)),
    "aider_is_not_known": Told(
        "",
        failure="litellm.AuthenticationError: AuthenticationError: OpenAIException - Incorrect"
        " API key provided\nThe API provider is not able to authenticate you. Check your API key.",
        cause=Cause.AUTH,
    ),
}
"""Every transcript, by the name of its file, which begins with that of its backend."""

JSON = [name for name in TOLD if not name.startswith("aider")]


def stream_of(name: str) -> bytes:
    (found,) = TRANSCRIPTS.glob(f"{name}.*")
    return found.read_bytes()


def reader_for(name: str) -> Reader:
    return BACKENDS[name.partition("_")[0]]().reader()


def understood(name: str, chunks: Iterable[bytes]) -> Report:
    """Return what a reader makes of a stream that comes in these chunks."""
    reader = reader_for(name)
    lines, report = Lines(reader.longest_line), Report()
    for chunk in chunks:
        for line in lines.feed(chunk):
            report = report.after(reader.read(line))
    for line in (*lines.finish(), ""):
        report = report.after(reader.read(line))
    return report


def gist(report: Report) -> Told:
    usage = report.usage
    cost = None if usage.cost_usd is None else round(usage.cost_usd, 9)
    return Told(
        report.session,
        replace(usage, cost_usd=cost),
        report.tool_calls,
        report.pull_number,
        report.answer,
        report.failure,
        cause_in(report.words),
        report.resets_at,
    )


def test_every_transcript_is_among_the_cases() -> None:
    assert {path.stem for path in TRANSCRIPTS.iterdir()} == TOLD.keys()


@pytest.mark.parametrize("name", TOLD)
def test_a_stream_tells_what_is_in_it(name: str) -> None:
    report = understood(name, [stream_of(name)])

    assert gist(report) == TOLD[name]
    assert report.is_stream


@pytest.mark.parametrize("name", TOLD)
def test_a_stream_that_comes_byte_by_byte_tells_the_same(name: str) -> None:
    stream = stream_of(name)

    assert gist(understood(name, (stream[i : i + 1] for i in range(len(stream))))) == TOLD[name]


@pytest.mark.parametrize("name", TOLD)
def test_a_stream_that_is_torn_at_any_byte_tells_the_same(name: str) -> None:
    stream = stream_of(name)

    for at in range(0, len(stream), 7):
        assert gist(understood(name, [stream[:at], stream[at:]])) == TOLD[name]


@pytest.mark.parametrize("name", TOLD)
def test_a_stream_that_ends_anywhere_is_understood_up_to_there(name: str) -> None:
    stream = stream_of(name)

    for at in range(0, len(stream), 23):
        cut = understood(name, [stream[:at]])
        assert sane(cut)
        assert cut.steps <= understood(name, [stream]).steps


GARBAGE = (
    b"",
    b"   ",
    b"\xff\xfe\x00 not UTF-8",
    b"{",
    b'{"type":',
    b'{"type":"result","result":"999","is_error":tr',
    b'{"type":"turn.failed","error":{"message":"HTTP 402"',
    b"[]",
    b"null",
    b"412.5",
    b'"a text"',
    b"}{",
    b"\x1b[31mred\x1b[0m",
    b"[" * 100_000,
    b'{"type":' + b"[" * 100_000,
    b'{"type":"' + b"x" * 100_000 + b'"}',
    b'{"type":"of_tomorrow","message":{"text":"HTTP 402"},"error":"HTTP 402"}',
)


@pytest.mark.parametrize("name", JSON)
def test_garbage_between_the_lines_changes_nothing(name: str) -> None:
    chance = random.Random(7)
    lines = [
        mess for line in stream_of(name).splitlines() for mess in (chance.choice(GARBAGE), line)
    ]
    report = understood(name, [b"\n".join([*GARBAGE, *lines, *GARBAGE]) + b"\n"])

    assert gist(report) == TOLD[name]


@pytest.mark.parametrize("name", ["claude_ships", "qwen_ships"])
@pytest.mark.parametrize("size", [9_000, 900_000])
def test_a_long_last_line_still_gives_its_number(name: str, size: int) -> None:
    """A line of a plain agent ends after 8 KiB; one of an event may have 1 MiB."""
    *lines, last = stream_of(name).splitlines()
    told = {**json.loads(last), "result": "blah " * (size // 5) + "\n\n**#413**"}
    stream = b"\n".join([*lines, json.dumps(told).encode()])

    report = understood(name, [stream[at : at + 65_536] for at in range(0, len(stream), 65_536)])

    assert report.pull_number == 413
    assert report.answer.endswith("**#413**")
    assert len(report.answer) <= WORDS
    assert report.usage == understood(name, [stream_of(name)]).usage


@pytest.mark.parametrize("name", JSON)
def test_a_line_beyond_all_measure_costs_itself_alone(name: str) -> None:
    first, *others = stream_of(name).splitlines()
    monster = b'{"type":"user","message":{"content":"' + b"HTTP 402 " * (MIB // 3) + b'"}}'
    stream = b"\n".join([first, monster, *others]) + b"\n"

    report = understood(name, [stream[at : at + 65_536] for at in range(0, len(stream), 65_536)])

    assert gist(report) == TOLD[name]


@pytest.mark.parametrize("label", BACKENDS)
def test_no_reader_wants_lines_without_end(label: str) -> None:
    assert 0 < BACKENDS[label]().reader().longest_line <= MIB


@pytest.mark.parametrize("label", BACKENDS)
def test_readers_do_not_know_of_one_another(label: str) -> None:
    backend = BACKENDS[label]()
    one, other = backend.reader(), backend.reader()
    name = next(name for name in TOLD if name.startswith(label))
    for line in stream_of(name).decode().splitlines():
        one.read(line)

    assert one is not other
    assert Report().after(other.read("")) == Report()


def sane(report: Report) -> bool:
    """Whether a report is bounded, and comes back from the ledger as it went there."""
    usage = report.usage
    texts = (
        report.session,
        report.model,
        report.activity,
        report.answer,
        report.failure,
        report.aside,
    )
    for text in texts:
        text.encode()
    return (
        all(len(text) <= WORDS for text in texts)
        and (usage.cost_usd is None or (usage.cost_usd >= 0 and math.isfinite(usage.cost_usd)))
        and (usage.tokens is None or 0 <= usage.tokens < 2**60)
        and (usage.turns is None or 0 <= usage.turns < 2**60)
        and (report.pull_number is None or 0 < report.pull_number < 10**9)
        and REPORT.loads(REPORT.dumps(report)) == report
    )


NASTY: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1.5,
    10**400,
    -(10**400),
    2**63,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "\ud800",
    "\u202e\x1b]0;title\x07\x00",
    "x" * 100_000,
    "412\ud800",
    "API Error: \ud800",
    [],
    [[[]]],
    {},
    {"type": {}},
    [None, 1, "x", {"type": "text", "text": None}],
)


def poisoned(event: Any) -> Iterator[Any]:
    """Yield the event with each of its parts in turn replaced by every nasty value."""
    if isinstance(event, dict):
        for key, value in event.items():
            for other in (*NASTY, *poisoned(value)):
                yield {**event, key: other}
            yield {k: v for k, v in event.items() if k != key}
    elif isinstance(event, list):
        for at, value in enumerate(event):
            for other in (*NASTY, *poisoned(value)):
                yield [*event[:at], other, *event[at + 1 :]]


@pytest.mark.parametrize("name", ["claude_ships", "claude_meets_its_limit", *JSON[6:]])
def test_values_that_make_no_sense_are_no_values(name: str) -> None:
    lines = [line for line in stream_of(name).decode().splitlines() if line.startswith("{")]
    for line in lines:
        for event in poisoned(json.loads(line)):
            reader = reader_for(name)
            said = [reader.read(lines[0]), reader.read(json.dumps(event)), reader.read(lines[-1])]
            for one in said:
                assert not isinstance(one, Report) or sane(one)


@pytest.mark.parametrize("name", JSON)
@pytest.mark.parametrize(
    "text",
    [
        '{"type":"result","total_cost_usd":NaN,"num_turns":Infinity}',
        '{"type":"result","num_turns":' + "9" * 5000 + "}",
        '{"type":' + '{"a":' * 50_000 + "1" + "}" * 50_000 + "}",
        '{"type":"result","result":"\\ud800"}',
        '{"type":"result","type":"result","result":"1","result":"2"}',
    ],
    ids=["constants", "digits", "depth", "surrogate", "twice"],
)
def test_hostile_json_is_survived(name: str, text: str) -> None:
    reader = reader_for(name)
    said = reader.read(text)
    after = Report().after(reader.read(stream_of(name).decode().splitlines()[0]))

    assert not isinstance(said, Report) or sane(said)
    assert sane(after)


KEYS = st.sampled_from(
    [
        "type",
        "subtype",
        "session_id",
        "model",
        "message",
        "content",
        "id",
        "usage",
        "input_tokens",
        "output_tokens",
        "name",
        "text",
        "result",
        "errors",
        "is_error",
        "total_cost_usd",
        "num_turns",
        "modelUsage",
        "rate_limit_info",
        "status",
        "resetsAt",
        "attempt",
        "error",
        "item",
        "thread_id",
        "part",
        "sessionID",
        "tokens",
        "total",
        "cost",
        "tool",
        "role",
        "delta",
        "stats",
        "total_tokens",
        "toolCall",
        "value",
        "cost_usd",
        "data",
        "statusCode",
        "severity",
        "tool_name",
    ]
)
WORDS_OF_STREAMS = st.sampled_from(
    [
        "system",
        "init",
        "assistant",
        "user",
        "result",
        "rate_limit_event",
        "rejected",
        "text",
        "tool_use",
        "error",
        "item.started",
        "item.completed",
        "turn.completed",
        "turn.failed",
        "thread.started",
        "agent_message",
        "message",
        "step_start",
        "step_finish",
        "complete",
        "toolRequest",
        "tool_result",
        "success",
    ]
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | WORDS_OF_STREAMS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=12,
)


@pytest.mark.parametrize("label", BACKENDS)
@given(events=st.lists(st.dictionaries(KEYS, VALUES, max_size=6), max_size=8))
@settings(max_examples=60, deadline=None)
def test_whatever_events_come_the_report_is_sane(label: str, events: list[Any]) -> None:
    reader, report = BACKENDS[label]().reader(), Report()
    for event in events:
        report = report.after(reader.read(json.dumps(event)))

    assert sane(report)


@pytest.mark.parametrize("label", BACKENDS)
@given(lines=st.lists(st.binary(max_size=60) | st.text(max_size=60).map(str.encode)))
@settings(max_examples=60, deadline=None)
def test_whatever_bytes_come_the_report_is_sane(label: str, lines: list[bytes]) -> None:
    assert sane(understood(label, lines))


@pytest.mark.parametrize("label", BACKENDS)
def test_every_streaming_backend_is_a_backend_too(label: str) -> None:
    backend = BACKENDS[label]()
    as_backend: Any = backend

    def takes(one: Backend) -> str:
        return one.label

    assert isinstance(backend, MakesReaders)
    assert takes(as_backend) == label
