"""Following agents on this machine, stopping them, and giving them more time."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import SocketStream

from chump_orchestrator.adapters.local import agent as agents
from chump_orchestrator.adapters.local import wire
from chump_orchestrator.adapters.local.output import Gist, Lines, Output
from chump_orchestrator.core.errors import Unavailable
from chump_orchestrator.core.outcome import StopReason
from tests.adapters.launches import FOR_A_WHILE, Bench, eventually, ignore, python
from tests.adapters.shims import marked


async def take_nothing(_offset: int, _data: bytes) -> None:
    """Take bytes of a stream and do nothing with them."""


AND_WAIT = "import time; time.sleep(60)"


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    yield made
    await made.clean()


async def test_lines_come_while_the_agent_runs(bench: Bench) -> None:
    lines: list[str] = []
    agent, _ = await bench.launch(python(f"print('first', flush=True); {AND_WAIT}"))

    async with anyio.create_task_group() as group:
        group.start_soon(agent.follow, lines.append)
        await eventually(lambda: lines == ["first"])
        group.cancel_scope.cancel()

    assert agent.exit is None
    assert agent.pid in marked(agent._directory.name)


async def test_an_agent_that_is_heard_of_is_not_looked_for(bench: Bench) -> None:
    """Its shim hangs up when it ends. Control: without that, there is a look every 50 ms."""
    go = bench.worktree / "go"
    script = f"import os, time\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)"
    agent, _ = await bench.launch(python(script))
    look, looks = agent._look, []

    async def counted() -> object:
        looks.append(anyio.current_time())
        return await look()

    agent._look = counted  # type: ignore[method-assign, assignment]
    async with anyio.create_task_group() as group:
        group.start_soon(agent.follow, ignore)
        await eventually(lambda: len(agent._heard_from) == 2)
        looks.clear()
        await anyio.sleep(1)
        while_it_ran = len(looks)
        go.touch()

    assert while_it_ran <= 1
    assert agent.exit is not None
    assert agent.exit.code == 0


async def test_letting_go_and_following_again_loses_and_repeats_no_line(bench: Bench) -> None:
    go = bench.worktree / "go"
    script = (
        "import os, time\nprint('one\\ntw', end='', flush=True)\n"
        f"while not os.path.exists({str(go)!r}): time.sleep(0.01)\nprint('o\\nthree')"
    )
    lines: list[str] = []
    agent, _ = await bench.launch(python(script))

    async with anyio.create_task_group() as group:
        group.start_soon(agent.follow, lines.append)
        await eventually(lambda: lines == ["one"])
        await eventually(lambda: agent.last_words().endswith("tw"))
        group.cancel_scope.cancel()
    go.touch()
    ended = await agent.follow(lines.append)

    assert lines == ["one", "two", "three"]
    assert ended.code == 0


async def test_an_agent_that_is_asked_to_stop_climbs_down_the_ladder(bench: Bench) -> None:
    """Behaviour P2."""
    script = (
        "import os, signal, sys, time\n"
        # Not by print: on a busy machine one signal may come while the other is being told.
        "signal.signal(signal.SIGINT, lambda *_: os.write(1, b'INT\\n'))\n"
        "signal.signal(signal.SIGTERM, lambda *_: (os.write(1, b'TERM\\n'), sys.exit(3)))\n"
        "print('ready', flush=True)\nwhile True: time.sleep(1)"
    )
    lines: list[str] = []
    agent, dispatch_id = await bench.launch(python(script), grace_s=1.5)

    async with anyio.create_task_group() as group:
        group.start_soon(agent.follow, lines.append)
        await eventually(lambda: lines == ["ready"])
        await agent.stop(StopReason.OPERATOR)
        await agent.stop(StopReason.TEARDOWN)

    assert agent.exit is not None
    assert (agent.exit.code, agent.exit.stopped_by) == (3, "operator")
    assert lines == ["ready", "INT", "TERM"]
    assert not marked(dispatch_id)


async def test_stopping_now_kills(bench: Bench) -> None:
    agent, dispatch_id = await bench.launch(FOR_A_WHILE, grace_s=600)

    await agent.stop(StopReason.TEARDOWN)
    await agent.stop(StopReason.TEARDOWN, now=True)
    ended = await agent.follow(ignore)

    assert ended.stopped_by == "teardown"
    assert ended.signal in (signal.SIGKILL, signal.SIGINT)
    assert not marked(dispatch_id)


async def test_nothing_is_told_to_an_agent_that_has_ended(bench: Bench) -> None:
    agent, dispatch_id = await bench.launch(python("pass"))
    unfollowed = await bench.executor().attach(dispatch_id)
    await agent.follow(ignore)

    for one in (agent, unfollowed):
        assert one is not None
        await one.stop(StopReason.OPERATOR)
        await one.stop(StopReason.OPERATOR, now=True)
        await one.extend(timedelta(hours=1))
    assert agent.exit is not None
    assert (agent.exit.code, agent.exit.stopped_by) == (0, "")


async def test_a_deadline_can_be_moved_and_is_then_held_by_the_shim(bench: Bench) -> None:
    """Behaviour P3."""
    agent, _ = await bench.launch(FOR_A_WHILE)

    await agent.extend(timedelta(seconds=0.2))
    ended = await agent.follow(ignore)

    assert ended.stopped_by == "deadline"
    assert timedelta(seconds=0.2) <= ended.active < timedelta(seconds=60)


async def test_a_deadline_that_comes_too_late_is_no_matter(bench: Bench) -> None:
    ignoring = "import signal; signal.signal(2, signal.SIG_IGN); print('ready', flush=True); "
    agent, _ = await bench.launch(python(ignoring + AND_WAIT), grace_s=600)
    await agent.stop(StopReason.OPERATOR)

    await agent.extend(timedelta(hours=1))
    await agent.stop(StopReason.OPERATOR, now=True)
    ended = await agent.follow(ignore)

    assert ended.stopped_by == "operator"


async def test_a_shim_that_does_not_answer_is_unavailable(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "ANSWER_S", 0.2)
    agent, dispatch_id = await bench.launch(FOR_A_WHILE)
    os.kill(bench.shim_of(dispatch_id), signal.SIGSTOP)

    with pytest.raises(Unavailable, match="did not answer"):
        await agent.extend(timedelta(hours=1))

    os.kill(bench.shim_of(dispatch_id), signal.SIGCONT)
    await agent.stop(StopReason.OPERATOR, now=True)
    assert (await agent.follow(ignore)).stopped_by == "operator"


async def test_a_lost_connection_is_made_anew_where_it_broke(bench: Bench) -> None:
    """Nothing is lost or repeated while the shim lives."""
    go = bench.worktree / "go"
    script = (
        "import os, time\nprint('one\\ntw', end='', flush=True)\n"
        f"while not os.path.exists({str(go)!r}): time.sleep(0.01)\nprint('o\\nthree')"
    )
    lines: list[str] = []
    agent, _ = await bench.launch(python(script))
    cut: list[str] = []
    real = wire._Connection._receive

    async def receive(self: wire._Connection) -> bytes:
        if lines == ["one"] and len(cut) < 2:
            cut.append("cut")
            await self._socket.aclose()
            if len(cut) == 2:
                go.touch()
            raise wire._BrokenError("cut")
        return await real(self)

    wire._Connection._receive = receive  # type: ignore[method-assign]
    try:
        ended = await agent.follow(lines.append)
    finally:
        wire._Connection._receive = real  # type: ignore[method-assign]

    assert cut == ["cut", "cut"]
    assert lines == ["one", "two", "three"]
    assert ended.code == 0


async def test_a_grandchild_that_holds_the_pipe_does_not_hold_up_the_end(bench: Bench) -> None:
    """Reliability, fault 20."""
    script = (
        "import os, time\n"
        "if os.fork() == 0:\n os.setsid()\n time.sleep(600)\n"
        "os.write(2, b'ERROR: one\\n')"
    )
    began = time.monotonic()
    agent, dispatch_id = await bench.launch(python(script), grace_s=1)

    ended = await agent.follow(ignore)

    assert (ended.code, ended.clean) == (0, True)
    assert agent.tail() == ("ERROR: one",)
    assert not marked(dispatch_id)
    assert time.monotonic() - began < 60


async def test_a_flood_of_errors_leaves_the_loop_its_turns_and_the_tail_right(
    bench: Bench,
) -> None:
    """Promise I5; behaviour T1."""
    script = (
        "import os\n"
        "block = b''.join(b'line %d is dull and long enough\\n' % n for n in range(2000))\n"
        "left = 200_000_000\n"
        "while left > 0: left -= os.write(2, block)\n"
        "os.write(2, b'\\n' + b''.join(b'ERROR %d\\n' % n for n in range(100)))"
    )
    lags: list[float] = []

    async def watch() -> None:
        while True:
            began = time.perf_counter()
            await anyio.sleep(0.001)
            lags.append(time.perf_counter() - began)

    agent, _ = await bench.launch(python(script))
    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        ended = await agent.follow(ignore)
        group.cancel_scope.cancel()

    assert ended.code == 0
    assert agent.tail() == tuple(f"ERROR {number}" for number in range(36, 100))
    assert agent.last_words().endswith("ERROR 99\n")
    assert len(agent.last_words()) == 16 * 1024
    assert sorted(lags)[len(lags) // 2] < 0.1
    assert max(lags) < 1


@pytest.mark.parametrize("in_short", [True, False])
async def test_of_a_flood_the_same_is_kept_whether_it_was_told_in_short_or_not(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, *, in_short: bool
) -> None:
    """Behaviour T1. Not in short is how shims of an earlier version tell it."""
    script = (
        "import os, time\n"
        "for n in range(300):\n"
        "    os.write(2, b'Warning %d' % n + b'dull \\xff\\n' * 9000 + b'fai')\n"
        "    os.write(2, b'led')\n"
    )
    leaps: list[Gist] = []
    heard: list[bool] = []
    leap, listen = Output.leap, wire.listen

    def counted(self: Output, stream: str, gist: Gist) -> None:
        leaps.append(gist)
        heard.append(agent._last_at > 0)
        agent._last_at = 0.0  # until something is heard again
        leap(self, stream, gist)

    async def listen_to_all(*arguments: Any) -> Any:
        return await listen(*arguments[:5])

    monkeypatch.setattr(Output, "leap", counted)
    if not in_short:
        monkeypatch.setattr(agents, "listen", listen_to_all)
    agent, _ = await bench.launch(python(script))
    ended = await agent.follow(ignore)

    assert ended.code == 0
    assert (len(leaps) > 0) is in_short
    assert all(heard)
    assert agent._output.offsets == {"stdout": 0, "stderr": 18_904_990}
    assert agent.tail()[0] == "failedWarning 237dull \ufffd"
    assert agent.tail()[-1] == "failed"
    assert len(agent.tail()) == 64
    assert agent.last_words().endswith("dull \ufffd\nfailed")


@pytest.mark.parametrize(
    "header",
    [
        {"offset": -1, "length": 0, "stands_for": 1, "telling": 0, "begun": 0},
        {"offset": 0, "length": 0, "stands_for": "1", "telling": 0, "begun": 0},
        {"offset": 0, "length": 2**40, "stands_for": 1, "telling": 0, "begun": 0},
        {"offset": 0, "length": 4, "stands_for": 1, "telling": 3, "begun": 2},
        {"offset": 0, "length": 4, "stands_for": 1, "telling": True, "begun": 0},
        {"offset": 0, "length": 4, "stands_for": 1},
    ],
)
async def test_a_gist_that_makes_no_sense_is_not_taken(
    tmp_path: Path, header: dict[str, object]
) -> None:
    """An agent could listen in its shim's place."""
    gists: list[Gist] = []
    asked: list[bytes] = []

    async def impostor(stream: SocketStream) -> None:
        async with stream:
            asked.append(await stream.receive())
            await stream.send(b'{"ok":true}\n' + json.dumps(header).encode() + b"\nerror")
            await anyio.sleep(60)

    async with (
        await anyio.create_unix_listener(tmp_path / "ctl.sock") as listener,
        anyio.create_task_group() as group,
    ):
        group.start_soon(listener.serve, impostor)
        with anyio.fail_after(30):
            said = await wire.listen(
                tmp_path, "stderr", 0, take_nothing, lambda: None, gists.append
            )
        group.cancel_scope.cancel()

    assert said is None
    assert gists == []
    assert json.loads(asked[0])["gist"] is True


async def test_a_flood_of_empty_lines_leaves_the_loop_its_turns(bench: Bench) -> None:
    count = 0

    def slowly(_line: str) -> None:
        nonlocal count
        count += 1
        time.sleep(0.0001)

    longest = 0.0
    output = Output()
    async with anyio.create_task_group() as group:

        async def watch() -> None:
            nonlocal longest
            while True:
                began = time.perf_counter()
                await anyio.lowlevel.checkpoint()
                longest = max(longest, time.perf_counter() - began)

        group.start_soon(watch)
        await anyio.lowlevel.checkpoint()
        await output.take("stdout", 0, b"\n" * 10_000, slowly)
        await anyio.sleep(0.01)
        group.cancel_scope.cancel()

    assert count == 10_000
    assert longest < 0.5  # all of them take a second and more


async def test_output_that_is_no_text_is_told_as_far_as_it_is(bench: Bench) -> None:
    """Reliability, fault 25."""
    script = (
        r"import os; os.write(1, b'a\xff\0\x1b[1m\r\nb'); os.write(2, b'err\xfeor ERROR\xff\n')"
    )
    lines: list[str] = []
    agent, _ = await bench.launch(python(script))

    await agent.follow(lines.append)

    assert lines == ["a\ufffd\0\x1b[1m", "b"]
    assert agent.tail() == ("err\ufffdor ERROR\ufffd",)


async def test_a_line_without_an_end_is_cut(bench: Bench) -> None:
    """Reliability, fault 24; behaviour T1."""
    script = "import os\nfor _ in range(300): os.write(1, b'x' * 10000)\nos.write(1, b'\\nnext\\n')"
    lines: list[str] = []
    agent, _ = await bench.launch(python(script))

    await agent.follow(lines.append)

    assert lines == ["x" * 8192, "next"]


async def test_a_brief_that_is_never_read_holds_nobody_up(bench: Bench) -> None:
    """Reliability, fault 27."""
    agent, _ = await bench.launch(python("print('did not look')"), prompt="x" * 5_000_000)

    assert (await agent.follow(ignore)).code == 0


async def test_a_state_folder_may_have_a_long_path(bench: Bench) -> None:
    bench.state = bench.state / ("long" * 20) / ("longer" * 20)
    agent, dispatch_id = await bench.launch(python(f"print('here', flush=True); {AND_WAIT}"))
    again = await bench.executor().attach(dispatch_id)
    lines: list[str] = []

    assert again is not None
    async with anyio.create_task_group() as group:
        group.start_soon(agent.follow, lines.append)
        await eventually(lambda: lines == ["here"])
        await again.stop(StopReason.OPERATOR, now=True)
    assert agent.exit is not None
    assert agent.exit.stopped_by == "operator"


async def test_a_long_path_is_no_trouble_without_proc_either(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "_OWN_DESCRIPTORS", Path("/nowhere"))
    bench.state = bench.state / ("long" * 20) / ("longer" * 20)
    agent, _ = await bench.launch(FOR_A_WHILE)

    await agent.stop(StopReason.OPERATOR, now=True)

    assert (await agent.follow(ignore)).stopped_by == "operator"


async def test_time_that_an_agent_is_silent_is_counted_from_its_last_byte(bench: Bench) -> None:
    lines: list[str] = []
    script = f"import time; time.sleep(0.5); print('at last', flush=True); {AND_WAIT}"
    agent, dispatch_id = await bench.launch(python(script))

    async with anyio.create_task_group() as group:
        group.start_soon(agent.follow, lines.append)
        await eventually(lambda: agent.silent() > timedelta(seconds=0.3))
        await eventually(lambda: lines)
        silent, active = agent.silent(), agent.active()
        group.cancel_scope.cancel()
    await anyio.sleep(0.3)
    again = await bench.executor().attach(dispatch_id)

    assert silent < active - timedelta(seconds=0.3)
    assert again is not None
    assert timedelta(seconds=0.2) < again.silent() < again.active()


async def test_old_words_that_come_again_do_not_make_an_agent_talkative(bench: Bench) -> None:
    """After a restart all of its output is read anew; it has been silent all the same."""
    more = bench.worktree / "more"
    script = (
        "import os, time; print('old', flush=True)\n"
        f"while not os.path.exists({str(more)!r}): time.sleep(0.01)\n"
        f"print('new', flush=True); {AND_WAIT}"
    )
    agent, dispatch_id = await bench.launch(python(script))
    await eventually(lambda: (bench.folder(dispatch_id) / "stdout.log").stat().st_size)
    await anyio.sleep(0.5)
    again = await bench.executor().attach(dispatch_id)
    lines: list[str] = []

    assert again is not None
    async with anyio.create_task_group() as group:
        group.start_soon(again.follow, lines.append)
        await eventually(lambda: lines == ["old"])
        silent = again.silent()
        more.touch()
        await eventually(lambda: lines == ["old", "new"])
        spoken = again.silent()
        group.cancel_scope.cancel()

    assert silent >= timedelta(seconds=0.4)
    assert spoken < silent
    assert agent.pid == again.pid


async def test_two_may_follow_one_agent(bench: Bench) -> None:
    go = bench.worktree / "go"
    script = f"import os, time\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)\nprint(1)"
    agent, dispatch_id = await bench.launch(python(script))
    again = await bench.executor().attach(dispatch_id)
    lines: list[str] = []

    assert again is not None
    async with anyio.create_task_group() as group:
        group.start_soon(agent.follow, lines.append)
        group.start_soon(again.follow, lines.append)
        go.touch()

    assert lines == ["1", "1"]
    assert agent.exit == again.exit
    assert agent.ended_at == again.ended_at


def test_lines_are_the_same_however_they_are_torn() -> None:
    data = b"a\n\nbb\r\n" + b"c" * 9000 + b"\nd"
    whole = ["a", "", "bb", "c" * 8192, "d"]

    for size in (1, 2, 3, 7, 100, 8191, 8192, 8193, 100_000):
        lines = Lines()
        told: list[str] = []
        for start in range(0, len(data), size):
            told += lines.feed(data[start : start + size])
        told += lines.finish()
        assert (size, told) == (size, whole)


@pytest.mark.parametrize("longest", [1, 8192, 20_000])
def test_lines_are_cut_where_they_are_wanted_to_be(longest: int) -> None:
    data = b"a" * 30_000 + b"\n" + b"b" * longest + b"\n" + b"c" * 30_000
    whole = ["a" * longest, "b" * longest, "c" * longest]

    for size in (1, 7, 8192, 100_000):
        lines = Lines(longest)
        told: list[str] = []
        for start in range(0, len(data), size):
            told += lines.feed(data[start : start + size])
        told += lines.finish()
        assert (size, told) == (size, whole)


def test_an_endless_line_fills_no_memory() -> None:
    lines = Lines(1000)

    for _ in range(2000):
        assert list(lines.feed(b"x" * 65_536)) == []

    assert list(lines.finish()) == ["x" * 1000]


async def test_a_hole_in_a_stream_does_not_join_what_is_not_adjacent() -> None:
    lines: list[str] = []
    output = Output()

    await output.take("stdout", 0, b"beginning", lines.append)
    await output.take("stdout", 5000, b"end\n", lines.append)
    await output.take("stderr", 0, b"ERR", lines.append)
    await output.take("stderr", 5000, b"OR\n", lines.append)
    await output.finish(lines.append)

    assert lines == ["beginning", "end"]
    assert output.tail.lines() == ()
    assert output.offsets == {"stdout": 5004, "stderr": 5003}
