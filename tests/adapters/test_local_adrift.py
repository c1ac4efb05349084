"""Agents whose files were deleted, or whose shim does not answer: still stopped, and buried."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import anyio
import anyio.abc
import pytest

from chump_orchestrator.adapters.local import ShimAgent, remains, wire
from chump_orchestrator.adapters.local import agent as agents
from chump_orchestrator.adapters.local.shims import shims_of
from chump_orchestrator.core.errors import Refused, Unavailable
from chump_orchestrator.core.outcome import StopReason
from tests.adapters.launches import FOR_A_WHILE, Bench, eventually, ignore, python
from tests.adapters.shims import marked

AND_WAIT = "import time; time.sleep(60)"
STUBBORN = (
    "import signal, time\n"
    "for n in (signal.SIGINT, signal.SIGTERM): signal.signal(n, signal.SIG_IGN)\n"
    "open('ready', 'w')\ntime.sleep(60)"
)
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

LOST = "the files of the dispatch have gone"


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    yield made
    await made.clean()


def take_files(bench: Bench) -> None:
    """Delete all state, as `git clean` in the main work tree does; shims may write meanwhile."""
    while bench.state.exists():
        shutil.rmtree(bench.state, ignore_errors=True)


async def stop_while_followed(agent: ShimAgent, *, now: bool = False) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(agent.follow, ignore)
        await anyio.sleep(0.1)
        await agent.stop(StopReason.OPERATOR, now=now)


@pytest.mark.parametrize("now", [False, True])
async def test_an_agent_whose_files_have_gone_is_stopped_and_known_to_have_left_nothing(
    bench: Bench, now: bool
) -> None:
    """Control: stopping used to be taken for done, and the end waited for in vain."""
    command = python(STUBBORN) if now else FOR_A_WHILE
    agent, dispatch_id = await bench.launch(command, grace_s=600 if now else 5)
    if now:
        await eventually((bench.worktree / "ready").exists)

    async with anyio.create_task_group() as group:
        group.start_soon(agent.follow, ignore)
        await anyio.sleep(0.2)
        take_files(bench)
        await agent.stop(StopReason.OPERATOR, now=now)

    assert agent.exit is not None
    assert (agent.exit.lost, agent.exit.clean) == (LOST, True)
    assert agent.exit.stopped_by == "operator"
    assert agent.exit.signal == (signal.SIGKILL if now else signal.SIGINT)
    assert agent.exit.active > timedelta(0)
    assert not marked(dispatch_id)
    assert not bench.shims(dispatch_id)


async def test_an_agent_whose_files_have_gone_is_followed_to_its_own_end(bench: Bench) -> None:
    """Control: the slot used to be held for ever."""
    script = "import time; time.sleep(1); print('late', flush=True); raise SystemExit(3)"
    agent, _ = await bench.launch(python(script))
    lines: list[str] = []

    async with anyio.create_task_group() as group:
        group.start_soon(agent.follow, lines.append)
        await anyio.sleep(0.2)
        take_files(bench)

    assert agent.exit is not None
    assert (agent.exit.code, agent.exit.lost, agent.exit.clean) == (3, LOST, True)
    assert lines == ["late"]


async def test_that_nothing_is_left_is_not_taken_for_granted(bench: Bench) -> None:
    """Reliability, recovery: nobody heard the shim, and a sweep by the marker is no proof."""
    agent, dispatch_id = await bench.launch(FOR_A_WHILE)
    take_files(bench)
    os.kill(bench.shim_of(dispatch_id), signal.SIGKILL)

    ended = await agent.follow(ignore)

    assert (ended.lost, ended.clean) == (LOST, False)
    await eventually(lambda: not marked(dispatch_id))


async def test_an_agent_whose_files_have_gone_is_taken_up_again(bench: Bench) -> None:
    """Promise I1: it lives, so its gap is not free."""
    first, dispatch_id = await bench.launch(FOR_A_WHILE)
    take_files(bench)

    again = await bench.executor().attach(dispatch_id)

    assert again is not None
    assert (again.pid, again.exit) == (first.pid, None)
    assert timedelta(0) < again.active() < timedelta(minutes=1)
    with pytest.raises(Unavailable):
        await again.extend(timedelta(hours=1))
    await stop_while_followed(again)
    assert again.exit is not None
    assert (again.exit.lost, again.exit.clean) == (LOST, False)
    assert not marked(dispatch_id)
    assert await bench.executor().attach(dispatch_id) is None


async def test_what_lives_on_without_files_and_shim_is_swept(bench: Bench) -> None:
    script = f"import os\nif os.fork() == 0: os.setsid()\n{AND_WAIT}"
    _, dispatch_id = await bench.launch(python(script))
    await eventually(lambda: len(marked(dispatch_id)) == 2)
    take_files(bench)
    os.kill(bench.shim_of(dispatch_id), signal.SIGKILL)
    await eventually(lambda: not bench.shims(dispatch_id))

    assert await bench.executor().attach(dispatch_id) is None
    assert not marked(dispatch_id)


async def test_a_shim_whose_socket_has_gone_is_stopped_by_a_signal(bench: Bench) -> None:
    agent, dispatch_id = await bench.launch(FOR_A_WHILE)
    (bench.folder(dispatch_id) / "ctl.sock").unlink()

    await agent.stop(StopReason.TEARDOWN)
    await agent.stop(StopReason.TEARDOWN)
    ended = await agent.follow(ignore)

    assert (ended.signal, ended.stopped_by, ended.lost) == (signal.SIGINT, "teardown", "")


async def test_a_folder_known_by_two_paths_is_one_dispatch(bench: Bench) -> None:
    _, dispatch_id = await bench.launch(FOR_A_WHILE)
    other = bench.state.parent / "link"
    other.symlink_to(bench.state)

    found = shims_of(other / "d" / dispatch_id)

    assert [process.pid for process in found] == [bench.shim_of(dispatch_id)]
    assert not shims_of(bench.worktree / dispatch_id)


async def test_a_stopped_shim_is_woken_to_stop_its_agent(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: the daemon used to wait until somebody else woke it."""
    monkeypatch.setattr(wire, "ANSWER_S", 0.3)
    agent, dispatch_id = await bench.launch(FOR_A_WHILE)
    os.kill(bench.shim_of(dispatch_id), signal.SIGSTOP)

    await stop_while_followed(agent)

    assert agent.exit is not None
    assert (agent.exit.stopped_by, agent.exit.lost) == ("operator", "")


async def test_a_shim_that_cannot_be_woken_is_killed_and_its_agent_buried(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise I3, by the last resort."""
    monkeypatch.setattr(wire, "ANSWER_S", 0.2)
    monkeypatch.setattr(agents, "LAST_RESORT_S", 0.5)
    monkeypatch.setattr(agents, "wake_shim", lambda directory: bool(shims_of(directory)))
    script = f"import os\nif os.fork() == 0: os.setsid()\n{AND_WAIT}"
    agent, dispatch_id = await bench.launch(python(script))
    await eventually(lambda: len(marked(dispatch_id)) == 2)
    os.kill(bench.shim_of(dispatch_id), signal.SIGSTOP)

    await stop_while_followed(agent, now=True)

    assert agent.exit is not None
    assert "shim was killed" in agent.exit.lost
    assert (agent.exit.clean, agent.exit.stopped_by) == (False, "operator")
    assert not marked(dispatch_id)
    assert not bench.shims(dispatch_id)


async def test_what_holds_the_lock_in_the_place_of_a_dead_shim_is_swept_in_the_end(
    bench: Bench,
) -> None:
    script = (
        "import fcntl, os, signal, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    lock = open(os.path.dirname(os.environ['TMPDIR']) + '/lock', 'a')\n"
        "    fcntl.flock(lock, fcntl.LOCK_EX)\n"
        "    open('ready', 'w')\n"
        f"{AND_WAIT}"
    )
    agent, dispatch_id = await bench.launch(python(script))
    await eventually(lambda: len(marked(dispatch_id)) == 2)
    os.kill(bench.shim_of(dispatch_id), signal.SIGKILL)
    await eventually((bench.worktree / "ready").exists)

    with pytest.raises(Unavailable, match="holds its lock"):
        await agent.stop(StopReason.OPERATOR)
    await stop_while_followed(agent, now=True)

    assert agent.exit is not None
    assert agent.exit.lost
    assert not marked(dispatch_id)


async def test_an_agent_whose_lock_was_deleted_is_not_taken_for_dead(bench: Bench) -> None:
    """Control: it used to be killed as one that had lost its shim."""
    agent, dispatch_id = await bench.launch(FOR_A_WHILE)
    (bench.folder(dispatch_id) / "lock").unlink()

    again = await bench.executor().attach(dispatch_id)

    assert again is not None
    assert (again.pid, again.exit) == (agent.pid, None)
    assert agent.pid in marked(dispatch_id)
    with pytest.raises(Refused, match="its agent runs"):
        await bench.executor().discard(dispatch_id)
    await stop_while_followed(again)
    assert again.exit is not None
    assert (again.exit.stopped_by, again.exit.lost) == ("operator", "")


@pytest.mark.parametrize("name", ["exit.json", "lock"])
async def test_a_folder_in_the_place_of_a_file_is_moved_aside(bench: Bench, name: str) -> None:
    """Control: the dispatch could be neither taken up nor settled."""
    _, dispatch_id = await bench.launch(FOR_A_WHILE)
    os.kill(bench.shim_of(dispatch_id), signal.SIGKILL)
    await eventually(lambda: not remains.is_held(bench.folder(dispatch_id)))
    place = bench.folder(dispatch_id) / name
    place.unlink(missing_ok=True)
    (place / "full").mkdir(parents=True)

    again = await bench.executor().attach(dispatch_id)

    assert again is not None
    assert again.exit is not None
    assert again.exit.lost
    assert place.is_file()


NUMBERS = {"NaN": "NaN", "endless": "1e999", "large": "1e300", "huge": "1" + "0" * 400}
STRANGE = {**NUMBERS, "negative": "-1", "a word": '"7"', "a list": "[7]", "true": "true"}


@pytest.mark.parametrize("number", STRANGE.values(), ids=STRANGE)
@pytest.mark.parametrize("key", ["active_s", "cpu_s", "peak_rss_bytes", "signal", "code"])
async def test_an_absurd_number_of_an_end_is_not_known(bench: Bench, key: str, number: str) -> None:
    """Promise I6. Control: the daemon could not be started any more."""
    folder = bench.folder("a-dispatch")
    folder.mkdir(parents=True)
    told = {"code": "0", "active_s": "1.5", "cpu_s": "0.5", "peak_rss_bytes": "9", key: number}
    text = ", ".join(f'"{name}": {value}' for name, value in told.items())
    (folder / "exit.json").write_text("{" + text + "}")

    again = await bench.executor().attach("a-dispatch")

    assert again is not None
    ended = again.exit
    assert ended is not None
    assert ended.active == timedelta(seconds=0 if key == "active_s" else 1.5)
    assert ended.cpu == timedelta(seconds=0 if key == "cpu_s" else 0.5)
    assert ended.peak_rss_bytes == (0 if key == "peak_rss_bytes" else 9)
    assert (ended.code, bool(ended.lost)) == ((None, True) if key == "code" else (0, False))
    assert ended.signal is None


@pytest.mark.parametrize("number", STRANGE.values(), ids=STRANGE)
@pytest.mark.parametrize("key", ["pid", "pgid", "start", "shim_pid", "shim_start", "boot_id"])
async def test_an_absurd_number_of_a_start_is_not_known(
    bench: Bench, key: str, number: str
) -> None:
    _, dispatch_id = await bench.launch(python("pass"))
    await eventually((bench.folder(dispatch_id) / "exit.json").exists)
    await eventually(lambda: not remains.is_held(bench.folder(dispatch_id)))
    (bench.folder(dispatch_id) / "exit.json").unlink()
    record = bench.folder(dispatch_id) / "running.json"
    told = json.loads(record.read_text())
    told[key] = "HERE"
    record.write_text(json.dumps(told).replace('"HERE"', number))

    again = await bench.executor().attach(dispatch_id)

    assert again is not None
    assert again.exit is not None
    assert again.exit.lost
    # Another start of the machine is known by a word, and is the one proof that nothing lives.
    assert again.exit.clean == ((key, number) == ("boot_id", STRANGE["a word"]))


@pytest.mark.parametrize(
    "moment",
    [
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59-14:00",
        "1066-10-14T09:00:00+00:00",
        "2026-01-01T00:00:00",
    ],
)
async def test_a_moment_outside_of_time_is_not_known(bench: Bench, moment: str) -> None:
    folder = bench.folder("a-dispatch")
    folder.mkdir(parents=True)
    (folder / "running.json").write_text(json.dumps({"started_at": moment, "pid": 10**30}))
    (folder / "spec.json").write_text('{"hard_s": NaN}')

    again = await bench.executor().attach("a-dispatch")

    assert again is not None
    assert again.exit is not None
    assert again.pid == 0
    assert again.exit.active == timedelta(0)
    assert json.loads((folder / "exit.json").read_text())["started_at"] is None


async def test_a_last_word_from_the_future_is_no_reason_to_have_run_for_ages(bench: Bench) -> None:
    folder = bench.folder("a-dispatch")
    folder.mkdir(parents=True)
    (folder / "running.json").write_text('{"started_at": "2026-01-01T00:00:00Z"}')
    (folder / "stdout.log").touch()
    (folder / "stderr.log").symlink_to("nowhere")
    os.utime(folder / "stdout.log", (10**10, 10**10))

    again = await bench.executor().attach("a-dispatch")

    assert again is not None
    assert again.active() <= timedelta(days=3660)
    assert again.exit is not None
    assert again.exit.lost != LOST


class Impostor:
    """Answers in the place of a shim, over and over with the same."""

    def __init__(self, folder: Path, answer: bytes) -> None:
        self.folder = folder
        self.answer = answer

    async def serve(self, task_status: anyio.abc.TaskStatus[None]) -> None:
        async with await anyio.create_unix_listener(self.folder / "ctl.sock") as listener:
            task_status.started()
            await listener.serve(self._answer)

    async def _answer(self, stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.receive()
            await stream.send(self.answer + b"\n")


@pytest.mark.parametrize("number", STRANGE.values(), ids=STRANGE)
async def test_an_absurd_number_in_an_answer_is_not_known(bench: Bench, number: str) -> None:
    folder = bench.folder("a-dispatch")
    folder.mkdir(parents=True)
    (folder / "running.json").write_text('{"pid": ' + number + "}")
    answer = f'{{"ok": true, "active_s": {number}, "silent_s": {number}}}'
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        async with anyio.create_task_group() as group:
            await group.start(Impostor(folder, answer.encode()).serve)
            again = await bench.executor().attach("a-dispatch")
            group.cancel_scope.cancel()

    assert again is not None
    assert again.pid == 0
    assert again.active() < timedelta(minutes=1)
    assert again.silent() < timedelta(minutes=1)


@pytest.mark.parametrize("number", STRANGE.values(), ids=STRANGE)
@pytest.mark.parametrize("key", ["offset", "length"])
async def test_a_frame_with_an_absurd_number_breaks_the_connection(
    bench: Bench, key: str, number: str
) -> None:
    folder = bench.folder("a-dispatch")
    folder.mkdir(parents=True)
    frame = {"offset": "0", "length": "1", key: number}
    answer = "{" + ", ".join(f'"{name}": {value}' for name, value in frame.items()) + "}"
    taken: list[tuple[int, bytes]] = []

    async def take(offset: int, data: bytes) -> None:
        taken.append((offset, data))

    async with anyio.create_task_group() as group:
        await group.start(Impostor(folder, answer.encode()).serve)
        assert await wire.listen(folder, "stdout", 0, take, lambda: None) is None
        group.cancel_scope.cancel()

    assert taken == []


async def test_discarding_waits_for_whoever_only_looks(bench: Bench) -> None:
    """A dispatch that is being taken up has its lock held for a moment."""
    executor = bench.executor()
    agent, dispatch_id = await bench.launch(python("pass"), executor=executor)
    await agent.follow(ignore)
    with (bench.folder(dispatch_id) / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        async with anyio.create_task_group() as group:
            group.start_soon(executor.discard, dispatch_id)
            await anyio.sleep(0.1)
            assert bench.folder(dispatch_id).exists()
            fcntl.flock(lock, fcntl.LOCK_UN)

    assert await executor.known() == ()


async def test_taking_up_and_discarding_at_once_leaves_all_or_nothing(bench: Bench) -> None:
    executor = bench.executor()
    for _ in range(10):
        agent, dispatch_id = await bench.launch(python("pass"), executor=executor)
        await agent.follow(ignore)
        found: list[ShimAgent | None] = []

        async def take_up(dispatch_id: str, found: list[ShimAgent | None]) -> None:
            found.append(await executor.attach(dispatch_id))

        async with anyio.create_task_group() as group:
            group.start_soon(take_up, dispatch_id, found)
            group.start_soon(executor.discard, dispatch_id)

        assert all(one is None or one.exit is None or not one.exit.lost for one in found)
        assert await executor.known() == ()
        assert not list((bench.state / "d").iterdir())


async def test_what_deletions_left_that_were_cut_short_is_deleted_once(bench: Bench) -> None:
    left = bench.state / "d" / ".trash-infra-1"
    (left / "tmp").mkdir(parents=True)

    assert await bench.executor().known() == ()
    assert not left.exists()
