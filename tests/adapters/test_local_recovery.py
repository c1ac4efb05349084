"""Taking agents up again: living, ended, lost, or never started (reliability, recovery table)."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import anyio
import psutil
import pytest

from chump_orchestrator.adapters.local import executor as executors
from chump_orchestrator.adapters.local import remains, wire
from chump_orchestrator.core.errors import Unavailable
from tests.adapters.launches import FOR_A_WHILE, Bench, eventually, ignore, python
from tests.adapters.shims import SHIM, marked

if sys.platform == "linux":
    from chump_orchestrator.shim import linux as host
else:
    from chump_orchestrator.shim import macos as host

AND_WAIT = "import time; time.sleep(60)"


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    yield made
    await made.clean()


def change(file: Path, **fields: object) -> None:
    """Replace fields of a JSON file."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def late_shim(bench: Bench, dispatch_id: str) -> subprocess.CompletedProcess[bytes]:
    """Start a shim on the folder of a dispatch, as one that was slow to start."""
    told = {"env": {"CHUMP_DISPATCH_ID": dispatch_id}, "redact": []}
    return subprocess.run(
        [sys.executable, "-I", "-S", str(SHIM), str(bench.folder(dispatch_id))],
        input=json.dumps(told).encode(),
        capture_output=True,
        check=False,
        timeout=60,
    )


async def test_a_living_agent_is_taken_up_and_its_exact_end_told(bench: Bench) -> None:
    """Promise I8."""
    go = bench.worktree / "go"
    script = (
        "import os, sys, time\nprint('early', flush=True); print('WARN', file=sys.stderr)\n"
        f"while not os.path.exists({str(go)!r}): time.sleep(0.01)\nprint('late'); sys.exit(7)"
    )
    first, dispatch_id = await bench.launch(python(script))
    lines: list[str] = []

    again = await bench.executor().attach(dispatch_id)
    assert again is not None
    assert (again.pid, again.exit, again.ended_at) == (first.pid, None, None)
    assert timedelta(0) < again.active() < timedelta(minutes=1)
    go.touch()
    ended = await again.follow(lines.append)

    assert (ended.code, ended.signal, ended.lost) == (7, None, "")
    assert lines == ["early", "late"]
    assert again.tail() == ("WARN",)


async def test_an_agent_that_ended_while_nobody_looked_is_told_of_from_its_files(
    bench: Bench,
) -> None:
    """Reliability, fault 5."""
    script = (
        "import os, signal, sys\n"
        "for n in range(200_000): print('line', n)\n"
        "for n in range(100): print('ERROR', n, file=sys.stderr)\n"
        "sys.stdout.flush(); sys.stderr.flush(); os.kill(os.getpid(), signal.SIGSEGV)"
    )
    first, dispatch_id = await bench.launch(python(script))
    await eventually(lambda: not remains.is_held(bench.folder(dispatch_id)))
    lines: list[str] = []

    agent = await bench.executor().attach(dispatch_id)

    assert agent is not None
    assert agent.exit is not None
    assert agent.pid == first.pid
    assert (agent.exit.signal, agent.exit.code) == (signal.SIGSEGV, None)
    assert agent.active() == agent.exit.active
    assert agent.tail() == tuple(f"ERROR {number}" for number in range(36, 100))
    assert "line 199999\n" in agent.last_words()
    assert agent.last_words().endswith("ERROR 99\n")
    assert await agent.follow(lines.append) == agent.exit
    assert lines == [f"line {number}" for number in range(200_000)]
    assert agent.tail() == tuple(f"ERROR {number}" for number in range(36, 100))


async def test_of_a_log_that_ran_over_what_is_kept_is_read(bench: Bench) -> None:
    script = (
        "import os\nos.write(1, b'first\\n')\n"
        "for n in range(2000): os.write(1, b'%d ' % n + b'x' * 9000 + b'\\n')"
    )
    _, dispatch_id = await bench.launch(python(script))
    await eventually(lambda: not remains.is_held(bench.folder(dispatch_id)))
    lines: list[str] = []

    agent = await bench.executor().attach(dispatch_id)
    assert agent is not None
    await agent.follow(lines.append)

    numbers = [int(line.split()[0]) for line in lines[1:] if line.split()[0].isdecimal()]
    assert lines[0] == "first"
    assert numbers[-1] == 1999
    assert numbers == sorted(set(numbers))
    assert 700 < len(numbers) < 1100


@pytest.mark.parametrize("followed", [True, False])
async def test_an_agent_whose_shim_was_killed_is_lost_and_nothing_of_it_lives(
    bench: Bench, followed: bool
) -> None:
    """Reliability, faults 2 and 21."""
    script = (
        "import os, sys, time\n"
        "if os.fork() == 0:\n os.setsid()\n if os.fork() == 0:\n  time.sleep(600)\n os._exit(0)\n"
        "print('ERROR early', file=sys.stderr, flush=True)\ntime.sleep(600)"
    )
    agent, dispatch_id = await bench.launch(python(script))
    log = bench.folder(dispatch_id) / "stderr.log"
    await eventually(lambda: log.read_bytes() and len(marked(dispatch_id)) == 2)

    os.kill(bench.shim_of(dispatch_id), signal.SIGKILL)
    ended = await agent.follow(ignore) if followed else None
    again = await bench.executor().attach(dispatch_id)

    assert again is not None
    assert again.exit is not None
    assert "shim" in again.exit.lost
    assert (again.exit.clean, again.exit.code, again.exit.signal) == (False, None, None)
    assert again.tail() == ("ERROR early",)
    assert again.ended_at is not None
    assert not marked(dispatch_id)
    if followed:
        assert ended == again.exit
        assert agent.tail() == again.tail()


async def test_an_agent_of_before_a_reboot_is_lost_for_certain(bench: Bench) -> None:
    """Reliability, faults 8 and 9: its pid may be another's by now, who is left alone."""
    _, dispatch_id = await bench.launch(FOR_A_WHILE)
    os.kill(bench.shim_of(dispatch_id), signal.SIGKILL)
    await eventually(lambda: not marked(dispatch_id))
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as stranger:
        change(
            bench.folder(dispatch_id) / "running.json",
            boot_id="another",
            pid=stranger.pid,
            pgid=stranger.pid,
            start=host.start_of(stranger.pid),
        )

        agent = await bench.executor().attach(dispatch_id)
        survived = stranger.poll() is None
        stranger.kill()

    assert agent is not None
    assert agent.exit is not None
    assert (agent.exit.clean, agent.exit.code) == (True, None)
    assert "anew" in agent.exit.lost
    assert survived


@pytest.mark.parametrize(("offset", "survives"), [(0, False), (1, True)])
async def test_a_process_group_is_killed_only_if_its_leader_is_the_one_on_record(
    bench: Bench, offset: int, survives: bool
) -> None:
    """Reliability, fault 9."""
    _, dispatch_id = await bench.launch(FOR_A_WHILE)
    os.kill(bench.shim_of(dispatch_id), signal.SIGKILL)
    await eventually(lambda: not marked(dispatch_id))
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as unmarked:
        start = host.start_of(unmarked.pid)
        assert isinstance(start, int)
        change(
            bench.folder(dispatch_id) / "running.json",
            pid=unmarked.pid,
            pgid=unmarked.pid,
            start=start + offset,
        )

        agent = await bench.executor().attach(dispatch_id)
        if not survives:
            unmarked.wait(30)
        survived = unmarked.poll() is None
        unmarked.kill()

    assert agent is not None
    assert agent.exit is not None
    assert (agent.exit.clean, survived) == (False, survives)


async def test_what_is_lost_is_lost_once(bench: Bench) -> None:
    _, dispatch_id = await bench.launch(FOR_A_WHILE)
    os.kill(bench.shim_of(dispatch_id), signal.SIGKILL)

    first = await bench.executor().attach(dispatch_id)
    second = await bench.executor().attach(dispatch_id)

    assert first is not None
    assert second is not None
    assert first.exit == second.exit
    assert first.ended_at == second.ended_at


async def test_of_a_dispatch_without_a_folder_nothing_is_taken_up(bench: Bench) -> None:
    assert await bench.executor().attach("never-heard-of") is None
    assert await bench.executor().known() == ()
    assert not bench.state.exists()


async def test_a_shim_that_comes_after_recovery_leaves(bench: Bench) -> None:
    """Reliability, fault 3."""
    agent, dispatch_id = await bench.launch(python("open('started', 'w')"))
    await agent.follow(ignore)
    (bench.worktree / "started").unlink()
    for name in ("running.json", "exit.json"):
        (bench.folder(dispatch_id) / name).unlink()

    assert await bench.executor().attach(dispatch_id) is None
    late = late_shim(bench, dispatch_id)

    assert json.loads(late.stdout) == {"state": "left", "why": "tombstone exists"}
    assert not (bench.worktree / "started").exists()
    assert await bench.executor().attach(dispatch_id) is None


@pytest.mark.slow
async def test_a_late_shim_and_recovery_agree_whoever_is_first(bench: Bench) -> None:
    """Reliability, fault 3: either the agent is taken up, or it never starts."""
    model, dispatch_id = await bench.launch(python("import time; time.sleep(0.05)"))
    await model.follow(ignore)
    order = (bench.folder(dispatch_id) / "spec.json").read_bytes()
    verdicts = set()
    for number in range(45):
        other = f"{dispatch_id}-{number}"
        bench.folder(other).mkdir(mode=0o700)
        (bench.folder(other) / "prompt.txt").write_text("")
        (bench.folder(other) / "spec.json").write_bytes(
            order.replace(dispatch_id.encode(), other.encode())
        )
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.to_thread.run_sync, late_shim, bench, other)
            await anyio.sleep(0.001 * 1.25**number)
            agent = await bench.executor().attach(other)
        ran = (bench.folder(other) / "running.json").exists()

        assert ran == (agent is not None)
        verdicts.add(ran)
        if agent is not None:
            assert (await agent.follow(ignore)).code == 0
        if len(verdicts) == 2 and number >= 25:
            break

    assert verdicts == {True, False}


HANGING_SHIM = """\
import fcntl, os, sys, time
if os.fork():
    os._exit(0)
lock = open(os.path.join(sys.argv[1], "lock"), "a")
fcntl.flock(lock, fcntl.LOCK_EX)
time.sleep(600)
"""


async def test_a_shim_that_does_not_come_to_start_its_agent_is_killed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executors, "STARTING_S", 0.5)
    agent, dispatch_id = await bench.launch(python("pass"))
    await agent.follow(ignore)
    for name in ("running.json", "exit.json"):
        (bench.folder(dispatch_id) / name).unlink()
    program = bench.worktree / "shim" / "__main__.py"
    program.parent.mkdir()
    program.write_text(HANGING_SHIM)
    with subprocess.Popen(
        [sys.executable, "-I", "-S", str(program), str(bench.folder(dispatch_id))],
        stdout=subprocess.DEVNULL,
    ) as hanging:
        await eventually(lambda: remains.is_held(bench.folder(dispatch_id)))

        assert hanging.wait(30) == 0
        assert bench.shims(dispatch_id)

        agent_found = await bench.executor().attach(dispatch_id)

    assert agent_found is None
    assert not bench.shims(dispatch_id)
    assert (bench.folder(dispatch_id) / "tombstone").exists()


async def test_a_lock_that_a_stranger_holds_is_told_and_he_is_left_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executors, "STARTING_S", 0.2)
    bench.folder("a-dispatch").mkdir(parents=True)
    with (bench.folder("a-dispatch") / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        with pytest.raises(Unavailable, match="see what that is"):
            await bench.executor().attach("a-dispatch")

    assert not (bench.folder("a-dispatch") / "tombstone").exists()


async def test_an_agent_whose_shim_is_stopped_is_taken_up_later(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executors, "STARTING_S", 0.3)
    monkeypatch.setattr(wire, "ANSWER_S", 0.2)
    first, dispatch_id = await bench.launch(FOR_A_WHILE)
    shim = bench.shim_of(dispatch_id)
    os.kill(shim, signal.SIGSTOP)

    with pytest.raises(Unavailable, match="did not answer"):
        await bench.executor().attach(dispatch_id)
    os.kill(shim, signal.SIGCONT)
    again = await bench.executor().attach(dispatch_id)

    assert again is not None
    assert again.pid == first.pid in marked(dispatch_id)


async def test_an_agent_whose_shim_is_finishing_is_waited_for(bench: Bench) -> None:
    agent, dispatch_id = await bench.launch(python("pass"))
    await agent.follow(ignore)
    again = None
    with (bench.folder(dispatch_id) / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        again = await bench.executor().attach(dispatch_id)
        assert again is not None
        assert again.exit is None
        with anyio.move_on_after(0.3) as scope:
            await again.follow(ignore)
        assert scope.cancelled_caught

    assert (await again.follow(ignore)).code == 0
    assert again.pid == agent.pid


@pytest.mark.parametrize("name", ["exit.json", "running.json"])
async def test_a_record_that_cannot_be_read_means_lost(bench: Bench, name: str) -> None:
    agent, dispatch_id = await bench.launch(python("pass"))
    await agent.follow(ignore)
    (bench.folder(dispatch_id) / "exit.json").unlink()
    (bench.folder(dispatch_id) / name).write_bytes(b'{"v": 1, "co')

    again = await bench.executor().attach(dispatch_id)

    assert again is not None
    assert again.exit is not None
    assert again.exit.lost
    assert not again.exit.clean


async def test_an_agent_whose_files_are_deleted_beneath_it_is_lost(bench: Bench) -> None:
    agent, dispatch_id = await bench.launch(FOR_A_WHILE)
    shim = bench.shim_of(dispatch_id)
    bench.folder(dispatch_id).rename(bench.state / "moved")

    os.kill(shim, signal.SIGKILL)
    ended = await agent.follow(ignore)

    assert "have gone" in ended.lost
    assert not ended.clean
    await eventually(lambda: not marked(dispatch_id))


async def test_a_lost_agent_ran_until_its_last_word_and_no_longer_than_its_deadline(
    bench: Bench,
) -> None:
    _, dispatch_id = await bench.launch(python("print(1, flush=True); " + AND_WAIT))
    folder = bench.folder(dispatch_id)
    await eventually((folder / "stdout.log").read_bytes)
    os.kill(bench.shim_of(dispatch_id), signal.SIGKILL)
    await eventually(lambda: not remains.is_held(folder))
    started = time.time() - 1000
    change(
        folder / "running.json",
        started_at=time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(started)),
    )
    os.utime(folder / "stdout.log", (started + 50, started + 50))
    os.utime(folder / "stderr.log", (started + 20, started + 20))

    agent = await bench.executor().attach(dispatch_id)

    assert agent is not None
    assert abs(agent.active().total_seconds() - 50) < 2


async def test_a_survivor_makes_an_end_unclean(bench: Bench) -> None:
    agent, dispatch_id = await bench.launch(python("pass"))
    await agent.follow(ignore)
    change(bench.folder(dispatch_id) / "exit.json", survivors=1)

    again = await bench.executor().attach(dispatch_id)

    assert again is not None
    assert again.exit is not None
    assert not again.exit.clean


async def test_a_sweep_leaves_this_process_and_other_dispatches_alone(bench: Bench) -> None:
    other, _ = await bench.launch(FOR_A_WHILE)
    _, dispatch_id = await bench.launch(FOR_A_WHILE)
    os.kill(bench.shim_of(dispatch_id), signal.SIGKILL)

    lost = await bench.executor().attach(dispatch_id)

    assert lost is not None
    assert lost.exit is not None
    assert psutil.pid_exists(other.pid)
    assert other.pid in marked(other._directory.name)
