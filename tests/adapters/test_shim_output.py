"""What becomes of an agent's output: drained, capped, redacted, followed."""

import os
import re
import resource
import signal
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.adapters.shims import Shim, eventually, python

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

SMALL = {"head_bytes": 1000, "ring_bytes": 4000}


@pytest.fixture
def shim(tmp_path: Path) -> Iterator[Shim]:
    made = Shim(tmp_path / "dispatch", f"cog-001-{uuid.uuid4().hex[:12]}")
    yield made
    made.clean()


def flood(megabytes: int, stream: str = "stderr") -> list[str]:
    return python(
        f"import sys\nfor _ in range({megabytes}): sys.{stream}.buffer.write(b'x' * 1_000_000)"
    )


def peak_rss(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


def lines(count: int) -> bytes:
    """Lines of ten bytes, each of which says at which offset it is."""
    return b"".join(b"%09d\n" % (10 * number) for number in range(count))


def print_lines(first: int, count: int) -> str:
    return (
        f"for n in range({first}, {first + count}): sys.stdout.write('%09d\\n' % (10 * n))\n"
        "sys.stdout.flush()\n"
    )


def flood_is_bounded(shim: Shim, megabytes: int) -> None:
    shim.start([*flood(megabytes)[:-1], flood(megabytes)[-1] + "\nimport time; time.sleep(60)"])
    total = megabytes * 1_000_000
    eventually(lambda: shim.ask(op="status")["bytes"]["stderr"] >= total - 64)
    memory = peak_rss(shim.pid)
    eventually(lambda: shim.ask(op="status")["bytes"]["stderr"] == total)
    shim.ask(op="stop", reason="test", now=True)
    record = shim.exit()

    kept = len(shim.log("stderr"))
    assert record["bytes"]["stderr"] == total
    assert record["dropped"]["stderr"] == total - kept
    assert 262_144 + 3 * 8_388_608 // 4 < kept <= 262_144 + 8_388_608
    assert memory < 40_000_000


def test_a_flood_without_a_line_break_stays_within_bounds(shim: Shim) -> None:
    """Case 24 of the fault catalogue, in small."""
    flood_is_bounded(shim, 200)


@pytest.mark.slow
def test_a_gigabyte_without_a_line_break_stays_within_bounds(shim: Shim) -> None:
    """Cases 24 and 26 of the fault catalogue."""
    flood_is_bounded(shim, 1_000)


def test_bytes_are_kept_as_they_are(shim: Shim) -> None:
    """Case 25 of the fault catalogue."""
    data = bytes(range(256)) * 4 + b"\xff\xfe\0\x1b[31m\xe2\x80\xae\r\n"
    shim.start(python(f"import sys; sys.stderr.buffer.write({data!r})"))
    shim.exit()

    assert shim.log("stderr") == data


def test_the_head_stays_and_the_oldest_of_the_rest_goes(shim: Shim) -> None:
    shim.start(python("import sys\n" + print_lines(0, 1000)), **SMALL)
    record = shim.exit()

    names = sorted(path.name for path in shim.directory.glob("stdout.*.log"))
    assert names == [f"stdout.{offset:015d}.log" for offset in (6000, 7000, 8000, 9000)]
    assert (shim.directory / "stdout.log").read_bytes() == lines(100)
    assert shim.log("stdout") == lines(100) + lines(1000)[6000:]
    assert record["bytes"]["stdout"] == 10_000
    assert record["dropped"]["stdout"] == 5_000


def test_an_agent_may_close_its_stderr_and_run_on(shim: Shim) -> None:
    """Case 30 of the fault catalogue."""
    shim.start(python("import os, time; os.close(2); time.sleep(0.5); print('on'); os._exit(6)"))
    record = shim.exit()

    assert record["code"] == 6


def waits_and_prints(first: int, then: int) -> list[str]:
    """An agent that prints lines, and more of them when it gets SIGUSR1."""
    return python(
        "import signal, sys\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})\n"  # may come before sigwait
        + print_lines(0, first)
        + "print('ready', file=sys.stderr, flush=True)\n"
        + "signal.sigwait({signal.SIGUSR1})\n"
        + print_lines(first, then)
    )


def test_a_disk_that_takes_no_more_never_stops_an_agent(shim: Shim) -> None:
    """Case 47 of the fault catalogue: bytes are lost and counted; a follower still sees them."""
    agent = shim.start(waits_and_prints(0, 1000), head_bytes=3000, ring_bytes=100_000)["pid"]
    eventually(lambda: b"ready" in shim.log("stderr"))
    resource.prlimit(shim.pid, resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
    with shim.connect() as line:
        line.ask(op="follow", stream="stdout", offset=0)
        os.kill(agent, signal.SIGUSR1)
        followed = b"".join(data for _, data in line.frames())
    record = shim.exit()

    kept = shim.log("stdout")
    assert followed == lines(1000)
    assert record["code"] == 0
    assert record["bytes"]["stdout"] == 10_000
    assert record["dropped"]["stdout"] == 10_000 - len(kept) > 0
    assert (shim.directory / "stdout.log").read_bytes() == lines(200)


def test_an_outcome_waits_for_a_disk_that_takes_no_more(shim: Shim) -> None:
    """Case 47 of the fault catalogue: an outcome is never dropped."""
    agent = shim.start(waits_and_prints(0, 1))["pid"]
    eventually(lambda: b"ready" in shim.log("stderr"))
    resource.prlimit(shim.pid, resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))
    os.kill(agent, signal.SIGUSR1)
    # All of the complaint that the limit leaves room for.
    eventually(lambda: (shim.directory / "shim.log").read_bytes() == b"cannot wri")
    time.sleep(1.5)  # it tries again, and complaining fails as well

    assert shim.ask(op="status")["state"] == "sweeping"
    assert not (shim.directory / "exit.json").exists()

    resource.prlimit(
        shim.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    )
    assert shim.exit()["code"] == 0


def test_a_follower_gets_history_and_then_what_comes(shim: Shim) -> None:
    agent = shim.start(waits_and_prints(50, 50))["pid"]
    eventually(lambda: b"ready" in shim.log("stderr"))
    with shim.connect() as line:
        answer = line.ask(op="follow", stream="stdout", offset=120)
        frames = line.frames()
        first = next(frames)
        os.kill(agent, signal.SIGUSR1)
        rest = list(frames)

    assert answer == {"ok": True, "offset": 120}
    assert first == (120, lines(50)[120:])
    assert b"".join(data for _, data in rest) == lines(100)[500:]
    assert rest[0][0] == 500


def test_a_follower_is_told_where_it_ends(shim: Shim) -> None:
    shim.start(python("import time; time.sleep(0.3); print('hello')"))
    with shim.connect() as line:
        line.ask(op="follow", stream="stdout", offset=0)
        header = line.hear()
        line._reader.read(header["length"])
        end, closed = line.hear(), line.hear()

    assert end == {"end": True, "offset": 6}
    assert closed == {}
    assert shim.exit()["bytes"]["stdout"] == 6


def test_a_follower_from_the_future_begins_at_the_end(shim: Shim) -> None:
    shim.start(python("import time; print('hello', flush=True); time.sleep(60)"))
    eventually(lambda: shim.ask(op="status")["bytes"]["stdout"] == 6)

    assert shim.ask(op="follow", stream="stdout", offset=10**9) == {"ok": True, "offset": 6}


def test_a_follower_of_what_was_dropped_begins_at_what_is_kept(shim: Shim) -> None:
    script = "import sys, time\n" + print_lines(0, 1000) + "time.sleep(60)"
    shim.start(python(script), **SMALL)
    eventually(lambda: shim.ask(op="status")["bytes"]["stdout"] == 10_000)

    assert shim.ask(op="follow", stream="stdout", offset=1000) == {"ok": True, "offset": 6000}
    assert shim.ask(op="follow", stream="stdout", offset=999) == {"ok": True, "offset": 999}


def test_a_follower_that_does_not_read_is_carried_over_a_gap(shim: Shim) -> None:
    """Back-pressure never reaches the agent."""
    script = "import sys\nfor n in range(6_000_000): sys.stdout.write('%09d\\n' % (10 * n))"
    shim.order(python("import time; time.sleep(0.5)\n" + script))
    shim.begin()
    shim.said()
    with shim.connect() as line:
        line.ask(op="follow", stream="stdout", offset=0)
        eventually(lambda: shim.ask(op="status")["bytes"]["stdout"] > 50_000_000)
        frames = list(line.frames())
    record = shim.exit()

    position, gaps = 0, 0
    for offset, data in frames:
        assert offset >= position
        gaps += offset > position
        position = offset + len(data)
        assert data[(-offset) % 10 :][:10] == b"%09d\n" % (offset + (-offset) % 10)
    assert gaps >= 1
    assert record["code"] == 0
    assert record["bytes"]["stdout"] == 60_000_000


def test_secrets_reach_neither_disk_nor_follower_across_chunks(shim: Shim) -> None:
    """Promise I7."""
    secret, token = "correct-horse-battery", "ghp_" + "a1B2" * 9
    text = f"key={secret} token={token} Authorization: Bearer {'x9' * 40}, done\n"
    script = (
        "import os, time\n"
        f"for byte in {text.encode()!r}:\n"
        "    os.write(1, bytes([byte]))\n"
        "time.sleep(0.5)\n"
    )
    shim.order(python(script))
    shim.begin(redact=[secret])
    shim.said()
    with shim.connect() as line:
        line.ask(op="follow", stream="stdout", offset=0)
        followed = b"".join(data for _, data in line.frames())
    shim.exit()

    expected = b"key=[redacted] token=[redacted] Authorization: Bearer [redacted], done\n"
    assert shim.log("stdout") == followed == expected


def test_an_unfinished_line_is_shown_after_a_moment(shim: Shim) -> None:
    shim.start(python("import sys, time; print('no end', end='', flush=True); time.sleep(60)"))

    eventually(lambda: shim.log("stdout") == b"no end", "the unfinished line")


def test_silence_is_measured(shim: Shim) -> None:
    shim.start(python("import time; print('hello', flush=True); time.sleep(60)"))
    eventually(lambda: shim.ask(op="status")["bytes"]["stdout"] == 6)
    time.sleep(0.6)
    status = shim.ask(op="status")

    assert 0.5 <= status["silent_s"] <= status["active_s"]
