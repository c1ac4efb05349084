"""What a shim tells of a flood on standard error comes to the same as all of it (behaviour T1)."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chump_orchestrator.adapters.local import output
from chump_orchestrator.adapters.local.output import LAST_BYTES, Output
from chump_orchestrator.core import tail
from chump_orchestrator.shim import gist
from chump_orchestrator.shim.gist import BURST, MESSAGE, PAUSE_S, RATE, Gist, Pace
from tests.adapters.shims import Line, Shim, eventually, python

PIECES = st.sampled_from(
    [
        b"\n",
        b"\r\n",
        b"error",
        b"ERR",
        b"OR",
        b"Warn",
        b"fai",
        b"l",
        b"paNic",
        b"\xff\xc3",
        b"fine\n",
        b"error\n" * 70,
        b"error\nfine\n" * 3,
        b"x" * (tail.LINE_BYTES - 2),
        b"x" * (tail.LINE_BYTES + 1),
        b"pan" + b"x" * tail.LINE_BYTES,
        b"warn" + b"y" * LAST_BYTES,
    ]
) | st.binary(max_size=6)

STEPS = st.lists(st.tuples(st.lists(PIECES, max_size=4).map(b"".join), st.booleans()), max_size=40)
"""Chunks of a stream, and after which of them the daemon is told what it does not know yet."""


def told(stream: Gist, offset: int, size: int) -> output.Gist:
    telling, begun, end = stream.since(offset, size)
    return output.Gist(offset, size, telling, begun, end)


def kept(of: Output) -> tuple[object, ...]:
    return of.tail.lines(), of.tail._open, of.last_words(), of.offsets


def test_the_shim_goes_by_the_rule_of_the_core() -> None:
    """It stands alone, and so says it again."""
    assert (gist.LINES, gist.LINE_BYTES, gist.WORDS, gist.END_BYTES) == (
        tail.TAIL_LINES,
        tail.LINE_BYTES,
        tail.WORDS,
        LAST_BYTES,
    )


@given(STEPS, st.booleans())
@example([(b"err", True), (b"or\nwarn", False), (b"ing\nfa", True), (b"il", True)], True)
@example([(b"x" * (tail.LINE_BYTES - 4), True), (b"error\n", True)], False)
@example([(b"error\n" * 70, False), (b"fine\n", True)], True)
@example([(b"error: " + b"y" * 3 * LAST_BYTES, True), (b"\nfail", False)], False)
def test_a_stream_told_in_gists_comes_to_the_same_as_all_of_it(
    steps: list[tuple[bytes, bool]], bytes_between: bool
) -> None:
    """With `bytes_between` every other time it is the bytes themselves that are told."""
    shims, all_of_it, in_short = Gist(), Output(), Output()
    waiting, tellings = b"", 0
    offset = 0
    for chunk, is_time in [*steps, (b"", True)]:
        shims.feed(offset, chunk)
        all_of_it.note("stderr", offset, chunk)
        offset += len(chunk)
        waiting += chunk
        if is_time and waiting:
            begins = offset - len(waiting)
            if bytes_between and tellings % 2:
                in_short.note("stderr", begins, waiting)
            else:
                in_short.leap("stderr", told(shims, begins, len(waiting)))
            waiting, tellings = b"", tellings + 1
            assert kept(in_short) == kept(all_of_it)

    for one in (all_of_it, in_short):
        one.tail.finish()
    assert kept(in_short) == kept(all_of_it)


@given(STEPS)
def test_whoever_comes_late_learns_what_whoever_was_there_did(
    steps: list[tuple[bytes, bool]],
) -> None:
    shims, all_of_it, late = Gist(), Output(), Output()
    offset = 0
    for chunk, _ in steps:
        shims.feed(offset, chunk)
        all_of_it.note("stderr", offset, chunk)
        offset += len(chunk)
    if offset:
        late.leap("stderr", told(shims, 0, offset))

    assert kept(late) == kept(all_of_it)


def test_a_gist_has_a_size_whatever_the_stream_has() -> None:
    stream = Gist()
    for number in range(3000):
        stream.feed(number * 8200, b"error " + b"x" * 8193 + b"\n")
    stream.feed(3000 * 8200, b"panic" * 10_000)
    telling, begun, end = stream.since(0, 10**9)

    assert len(telling) == gist.LINES * (gist.LINE_BYTES + 1)
    assert (len(begun), len(end)) == (gist.LINE_BYTES, gist.END_BYTES)


def test_what_comes_at_the_speed_of_people_is_told_as_it_is() -> None:
    pace = Pace(0.0)

    assert all(pace.allows(80, second / 100) for second in range(10_000))


def test_a_burst_is_told_as_it_is_and_a_flood_is_not() -> None:
    pace = Pace(0.0)
    size = BURST // 4 - MESSAGE

    assert [pace.allows(size, 0.0) for _ in range(5)] == [True] * 4 + [False]
    assert [pace.allows(size, 0.1), pace.allows(size, 10.0)] == [False, True]


@pytest.mark.parametrize("size", [0, 20_000, 600_000])
def test_gists_are_never_told_faster_than_the_rate(size: int) -> None:
    pace, now, sizes = Pace(0.0), 0.0, 0
    for _ in range(100):
        pace.spend(size, now)
        assert not pace.allows(1, now)
        assert pace.next_at - now > PAUSE_S - 1e-9
        now, sizes = pace.next_at, sizes + size

    assert sizes <= BURST + RATE * now + 1


FLOOD = """\
import os, sys, time
while not os.path.exists({go!r}): time.sleep(0.01)
for number in range({count}):
    os.write(2, b"ERROR %06d\\n" % number + b"dull and long enough\\n" * 3000)
os.write(2, b"warn: the last, \\xff, and fail")
"""


def flood(count: int) -> bytes:
    """All that the agent above writes."""
    dull = b"dull and long enough\n" * 3000
    errors = b"".join(b"ERROR %06d\n" % number + dull for number in range(count))
    return errors + b"warn: the last, \xff, and fail"


@pytest.fixture
def shim(tmp_path: Path) -> Iterator[Shim]:
    made = Shim(tmp_path / "dispatch", f"cog-001-{uuid.uuid4().hex[:12]}")
    yield made
    made.clean()


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def hear(line: Line, into: Output) -> list[dict[str, Any]]:
    """Take what comes until it is said to end, as the daemon does; give the headers."""
    headers = []
    while "end" not in (header := line.hear()):
        headers.append(header)
        body = line._reader.read(header["length"])
        offset = header["offset"]
        assert offset == into.offsets["stderr"]
        if "stands_for" in header:
            ends = header["telling"] + header["begun"]
            parts = body[: header["telling"]], body[header["telling"] : ends], body[ends:]
            into.leap("stderr", output.Gist(offset, header["stands_for"], *parts))
        else:
            into.note("stderr", offset, body)
    return headers


def test_of_a_flood_the_gist_is_told_and_nothing_that_counts_is_left_out(
    shim: Shim, tmp_path: Path
) -> None:
    go, count = tmp_path / "go", 2000
    shim.start(python(FLOOD.format(go=str(go), count=count)))
    heard = Output()
    with shim.connect() as line:
        line.ask(op="follow", stream="stderr", offset=0, gist=True)
        go.touch()
        headers = hear(line, heard)
    record = shim.exit()
    everything = Output()
    everything.note("stderr", 0, flood(count))

    assert record["code"] == 0
    assert record["bytes"]["stderr"] == heard.offsets["stderr"] == len(flood(count))
    assert kept(heard) == kept(everything)
    assert sum("stands_for" in header for header in headers) >= 1
    assert sum(header["length"] for header in headers) < len(flood(count)) / 10


def test_who_did_not_ask_for_the_gist_is_told_all(shim: Shim, tmp_path: Path) -> None:
    """As a daemon of an earlier version is. Control for the test above."""
    go, count = tmp_path / "go", 100
    shim.start(python(FLOOD.format(go=str(go), count=count)))
    heard = Output()
    with shim.connect() as line:
        line.ask(op="follow", stream="stderr", offset=0)
        go.touch()
        headers = hear(line, heard)

    assert not any("stands_for" in header for header in headers)
    assert sum(header["length"] for header in headers) == len(flood(count))


def test_of_standard_output_everything_is_told(shim: Shim) -> None:
    shim.start(
        python("import os, time; time.sleep(0.5)\nfor _ in range(99): os.write(1, b'x' * 60000)")
    )
    with shim.connect() as line:
        line.ask(op="follow", stream="stdout", offset=0, gist=True)
        frames = list(line.frames())

    assert b"".join(data for _, data in frames) == b"x" * 60_000 * 99


def test_single_lines_are_told_at_once_and_as_they_are(shim: Shim, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    script = (
        f"import os\nos.mkfifo({str(fifo)!r})\nfifo = os.open({str(fifo)!r}, os.O_RDONLY)\n"
        "while said := os.read(fifo, 4096): os.write(2, said)"
    )
    shim.start(python(script))
    eventually(fifo.exists)
    with shim.connect() as line, fifo.open("wb", buffering=0) as to_agent:
        line.ask(op="follow", stream="stderr", offset=0, gist=True)
        offset = 0
        for number in range(50):
            said = b"error %d\n" % number
            to_agent.write(said)
            assert line.hear() == {"offset": offset, "length": len(said)}
            assert line._reader.read(len(said)) == said
            offset += len(said)


def test_who_comes_back_late_is_told_what_the_logs_have_lost(shim: Shim, tmp_path: Path) -> None:
    """The telling lines are at the front, and all that the logs have kept is dull."""
    script = (
        "import os, time\nos.write(2, b'panic: %s\\nfail' % (b'z' * 9000))\n"
        "os.write(2, b'ed\\n' + b'dull\\n' * 100_000); time.sleep(60)"
    )
    shim.start(python(script), head_bytes=1000, ring_bytes=4000)
    eventually(lambda: shim.ask(op="status")["bytes"]["stderr"] == 509_015)
    heard = Output()
    with shim.connect() as line:
        answer = line.ask(op="follow", stream="stderr", offset=0, gist=True)
        shim.ask(op="stop", reason="test", now=True)
        hear(line, heard)

    assert answer == {"ok": True, "offset": 0}
    assert heard.tail.lines() == (("panic: " + "z" * 9000)[: tail.LINE_BYTES], "failed")
    assert heard.last_words() == ("dull\n" * 100_000)[-LAST_BYTES:]


def test_a_follower_that_does_not_read_misses_nothing_that_counts(
    shim: Shim, tmp_path: Path
) -> None:
    go, count = tmp_path / "go", 1000
    shim.start(python(FLOOD.format(go=str(go), count=count) + "time.sleep(60)"))
    heard = Output()
    with shim.connect() as line:
        line.ask(op="follow", stream="stderr", offset=0, gist=True)
        go.touch()
        eventually(lambda: shim.ask(op="status")["bytes"]["stderr"] == len(flood(count)))
        shim.ask(op="stop", reason="test", now=True)
        hear(line, heard)
    everything = Output()
    everything.note("stderr", 0, flood(count))

    assert kept(heard) == kept(everything)
