"""The telling lines of standard error (behaviour T1)."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chump_orchestrator.core.tail import LINE_BYTES, TAIL_LINES, Tail


def tail_of(*chunks: bytes) -> tuple[str, ...]:
    tail = Tail()
    for chunk in chunks:
        tail.feed(chunk)
    tail.finish()
    return tail.lines()


def line_by_line(stream: bytes) -> tuple[str, ...]:
    """The same, said as the rule says it."""
    cut = [line[:LINE_BYTES] for line in stream.split(b"\n")]
    words = (b"error", b"warn", b"fail", b"panic")
    telling = [line for line in cut if any(word in line.lower() for word in words)]
    return tuple(line.decode("utf-8", "replace").rstrip("\r") for line in telling[-TAIL_LINES:])


@pytest.mark.parametrize(
    "word", ["ERROR", "error", "ErRoR", "WARN", "warning", "Fail", "FAILED", "panicked", "PANIC"]
)
def test_a_line_with_a_word_of_trouble_is_kept(word: str) -> None:
    line = f"src/x.py:3: {word}: no"

    assert tail_of(b"all is well\n" + line.encode() + b"\nstill well\n") == (line,)


@pytest.mark.parametrize("line", ["", "ok", "erro", "w a r n", "e\u0301rror: f\u0430il"])
def test_a_line_without_one_is_not(line: str) -> None:
    assert tail_of(line.replace("rror", "").encode() + b"\n") == ()


@pytest.mark.parametrize("size", [1, 7, 100, 4096, 65536])
def test_the_last_lines_stay_oldest_first(size: int) -> None:
    stream = b"".join(b"error %d\nfine %d\n" % (n, n) for n in range(500))

    chunks = [stream[at : at + size] for at in range(0, len(stream), size)]

    assert tail_of(*chunks) == tuple(f"error {n}" for n in range(500 - TAIL_LINES, 500))


def test_sixty_four_lines_are_kept() -> None:
    assert (TAIL_LINES, LINE_BYTES) == (64, 8192)
    assert len(tail_of(b"error\n" * 64)) == 64
    assert tail_of(b"error 0\n" + b"error\n" * 64) == ("error",) * 64


def test_a_long_line_is_cut_and_what_was_cut_off_tells_nothing() -> None:
    start = b"error: " + b"x" * (LINE_BYTES - 7)
    late = b"y" * LINE_BYTES + b"panic"
    torn = b"z" * (LINE_BYTES - 3) + b"panic"

    for chunks in ((start + b"tail\n", late + b"\n", torn + b"\n"), (start, b"a", b"b\n", late)):
        assert tail_of(*chunks) == (start.decode(),)


def test_a_line_without_an_end_takes_no_memory() -> None:
    tail = Tail()
    for _ in range(1000):
        tail.feed(b"error " * 1000)

    held = [value for value in vars(tail).values() if isinstance(value, bytes)]
    assert sum(map(len, held)) <= LINE_BYTES
    tail.feed(b"\nfail\n")
    assert tail.lines() == (("error " * 1366)[:LINE_BYTES], "fail")


def test_an_unfinished_line_counts_at_the_end_only() -> None:
    tail = Tail()

    tail.feed(b"warn: half a li")
    before = tail.lines()
    tail.finish()
    tail.finish()

    assert (before, tail.lines()) == ((), ("warn: half a li",))


def test_after_missing_bytes_a_line_begins_anew() -> None:
    tail = Tail()

    tail.feed(b"fail: one")
    tail.gap()
    tail.feed(b"error: two\n")

    assert tail.lines() == ("fail: one", "error: two")


def test_bytes_that_are_not_utf_8_are_replaced() -> None:
    assert tail_of(b"error \xff\xfe\x00 \xe2\x82\n") == ("error \ufffd\ufffd\x00 \ufffd",)


def test_line_ends_of_other_systems_are_taken_off() -> None:
    assert tail_of(b"error 1\r\nprogress\rerror 2\r\r\n") == ("error 1", "progress\rerror 2")


PIECES = st.sampled_from(
    [
        b"\n",
        b"\n\n",
        b"\r\n",
        b"error",
        b"ERR",
        b"OR",
        b"Warn",
        b"fai",
        b"l",
        b"paNic",
        b"\xff",
        b"fine\n",
        b"error\n" * 70,
        b"x" * (LINE_BYTES - 2),
        b"x" * (LINE_BYTES + 1),
        b"pan" + b"x" * LINE_BYTES,
    ]
) | st.binary(max_size=6)


@given(
    st.lists(PIECES, max_size=30).map(b"".join),
    st.lists(st.integers(1, 3 * LINE_BYTES) | st.integers(1, 9), min_size=1, max_size=12),
)
@example(b"x" * (LINE_BYTES - 5) + b"error\n", [LINE_BYTES - 2])
@example(b"x" * (LINE_BYTES - 4) + b"error\n", [LINE_BYTES - 2])
@example(b"\nerror\n", [3])
@example(b"x" * LINE_BYTES + b"error\n\nfail", [LINE_BYTES])
def test_however_the_stream_is_torn_the_lines_are_those_of_the_rule(
    stream: bytes, sizes: list[int]
) -> None:
    chunks: list[bytes] = []
    at = 0
    while at < len(stream):
        size = sizes[len(chunks) % len(sizes)]
        chunks.append(stream[at : at + size])
        at += size

    assert tail_of(*chunks) == line_by_line(stream)
    assert tail_of(stream) == line_by_line(stream)
