"""Limits of agents, held by control groups below one that was delegated; the kernel is the judge.

Control groups take root and version 2 of them, limits the controllers as well. On a machine that
keeps those in version 1 the tests that need them are skipped, by name.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import structlog.testing

from chump_orchestrator.core.causes import Cause
from chump_orchestrator.core.dispatch import Deadlines, Limits
from chump_orchestrator.core.errors import Refused
from chump_orchestrator.core.outcome import (
    Exit,
    Observation,
    Outcome,
    OutcomeKind,
    PullRequest,
    PullState,
    Settle,
    judge,
)
from chump_orchestrator.shim.cgroup import Cgroup
from tests.adapters.launches import Bench, eventually, ignore, python
from tests.adapters.limited import (
    BOMB,
    GREEDY_CHILD,
    LIMIT,
    greedy,
    is_alive,
    skip_without,
    sleeper,
)
from tests.builders import NOW
from tests.service import user_manager


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    found = Bench(tmp_path)
    yield found
    await found.clean()


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group, as a service manager would delegate one, without controllers for now."""
    if objection := user_manager.objection():
        pytest.skip(objection)
    with user_manager.a_group("chump-limits") as made:
        yield made


@pytest.fixture
def parent(group: Path) -> Path:
    """One whose groups can have limits."""
    skip_without("memory", "pids", "cpu")
    user_manager.enable(group)
    return group


def settled(ended: Exit) -> Outcome:
    """What comes of a dispatch that ended so and has no pull request."""
    none = PullRequest("claude/infra-1", PullState.NONE, NOW)
    verdict = judge(
        Observation(ended.active, exit=ended, pull=none, looked=timedelta(0)),
        Deadlines(timedelta(hours=1)),
    )
    assert isinstance(verdict, Settle)
    return verdict.outcome


async def test_an_agent_that_needs_more_memory_than_it_may_have_is_killed(
    bench: Bench, parent: Path
) -> None:
    executor = bench.executor(cgroups=parent, limits=Limits(memory=LIMIT))
    agent, dispatch_id = await bench.launch(greedy(), executor=executor)

    ended = await agent.follow(ignore)

    assert (ended.signal, ended.lost, ended.clean) == (signal.SIGKILL, "", True)
    assert settled(ended) == Outcome(
        OutcomeKind.KILLED, "killed at its limit of 96 MiB of memory", Cause.OUT_OF_MEMORY
    )
    record = json.loads((bench.folder(dispatch_id) / "exit.json").read_text())
    assert record["out_of_memory"]["at_limit"] is True
    assert [path for path in parent.iterdir() if path.is_dir()] == []


async def test_all_of_an_agent_goes_when_a_part_of_it_uses_too_much(
    bench: Bench, parent: Path
) -> None:
    executor = bench.executor(cgroups=parent, limits=Limits(memory=LIMIT))
    agent, _ = await bench.launch(python(GREEDY_CHILD), executor=executor)

    ended = await agent.follow(ignore)

    assert ended.signal == signal.SIGKILL
    assert ended.out_of_memory


async def test_another_daemon_tells_the_same_of_an_agent_whose_shim_died_too(
    bench: Bench, parent: Path
) -> None:
    executor = bench.executor(cgroups=parent, limits=Limits(memory=LIMIT))
    script = (
        "import sys, time\nwhile not time.sleep(0.05) and open(sys.argv[1]).read() != 'go': 0\n"
    )
    gate = bench.state.parent / "gate"
    gate.write_text("")
    agent, dispatch_id = await bench.launch(
        python(f"{script}bytearray(b'x' * {4 * LIMIT})", str(gate)), executor=executor
    )
    shim = bench.shim_of(dispatch_id)
    os.kill(shim, signal.SIGSTOP)
    gate.write_text("go")
    events = parent / f"chump-{dispatch_id}" / "memory.events"
    await eventually(lambda: "oom_kill 1" in events.read_text())

    os.kill(shim, signal.SIGKILL)
    await agent.follow(ignore)
    again = await bench.executor().attach(dispatch_id)

    assert again is not None
    assert again.exit is not None
    assert again.exit.clean
    assert settled(again.exit).cause == Cause.OUT_OF_MEMORY


async def test_an_agent_has_no_more_processes_than_it_may(bench: Bench, parent: Path) -> None:
    executor = bench.executor(cgroups=parent, limits=Limits(tasks=20))
    agent, _ = await bench.launch(python(BOMB), executor=executor)
    lines: list[str] = []

    ended = await agent.follow(lines.append)

    assert lines == ["no more than 19"]
    assert settled(ended).cause == Cause.EXIT_CODE


async def test_an_agent_has_the_share_of_the_processors_that_was_set(
    bench: Bench, parent: Path
) -> None:
    executor = bench.executor(cgroups=parent, limits=Limits(cpu_weight=37))
    _, dispatch_id = await bench.launch(sleeper(), executor=executor)

    assert (parent / f"chump-{dispatch_id}" / "cpu.weight").read_text() == "37\n"


async def test_memory_that_is_limited_is_not_swapped_out_instead(
    bench: Bench, parent: Path
) -> None:
    executor = bench.executor(cgroups=parent, limits=Limits(memory=LIMIT))
    _, dispatch_id = await bench.launch(sleeper(), executor=executor)

    swap = parent / f"chump-{dispatch_id}" / "memory.swap.max"
    if not swap.exists():
        pytest.skip("this kernel does not count what is swapped")
    assert swap.read_text() == "0\n"


async def test_limits_that_cannot_be_had_keep_nobody_from_starting_and_are_told_once(
    bench: Bench, group: Path
) -> None:
    executor = bench.executor(cgroups=group, limits=Limits(memory=LIMIT, tasks=500))

    with structlog.testing.capture_logs() as said:
        for _ in range(2):
            agent, _ = await bench.launch(python(""), executor=executor)
            assert (await agent.follow(ignore)).code == 0

    (warning,) = [line for line in said if line["event"] == "limits.unheld"]
    assert warning["log_level"] == "warning"
    assert warning["limits"] == ("memory", "tasks")
    assert "has no controller for memory, pids" in warning["why"]


async def test_without_any_control_group_limits_are_told_not_to_hold(bench: Bench) -> None:
    executor = bench.executor(limits=Limits(cpu_weight=50))

    with structlog.testing.capture_logs() as said:
        agent, _ = await bench.launch(python(""), executor=executor)
        assert (await agent.follow(ignore)).code == 0

    (warning,) = [line for line in said if line["event"] == "limits.unheld"]
    assert warning["limits"] == ("cpu_weight",)
    assert "no service manager" in warning["why"]


async def test_nothing_is_told_where_nothing_is_limited(bench: Bench) -> None:
    with structlog.testing.capture_logs() as said:
        agent, _ = await bench.launch(python(""))
        await agent.follow(ignore)

    assert [line for line in said if line["log_level"] != "debug"] == []


async def test_required_limits_that_cannot_be_had_start_nobody(bench: Bench) -> None:
    """And it is not the gap's fault."""
    executor = bench.executor(limits=Limits(memory=LIMIT, required=True))
    trace = bench.state.parent / "ran"

    with pytest.raises(Refused, match=r"limits\.required .* \(memory\)"):
        await bench.launch(python(f"open({str(trace)!r}, 'w')"), executor=executor)

    (dispatch_id,) = bench.launched
    assert await bench.executor().attach(dispatch_id) is None
    assert not trace.exists()


async def test_required_limits_that_can_be_had_are_no_hindrance(bench: Bench, parent: Path) -> None:
    limits = Limits(memory=LIMIT, tasks=500, cpu_weight=50, required=True)
    agent, _ = await bench.launch(
        python(""), executor=bench.executor(cgroups=parent, limits=limits)
    )

    assert (await agent.follow(ignore)).code == 0


async def test_of_agent_and_shim_the_agent_goes_first(bench: Bench) -> None:
    """When the machine as a whole has no memory left."""
    agent, dispatch_id = await bench.launch(sleeper())

    def likelihood(pid: int) -> int:
        return int(Path(f"/proc/{pid}/oom_score_adj").read_text())

    assert likelihood(agent.pid) > likelihood(bench.shim_of(dispatch_id))


def test_what_a_daemon_for_that_killed_counts_as_well(group: Path) -> None:
    """systemd-oomd kills whole groups before the kernel has to, and leaves a note."""
    assert Cgroup(str(group)).out_of_memory() is None
    try:
        os.setxattr(group, "user.oomd_kill", b"3")
    except OSError as error:
        pytest.skip(f"control groups take no attributes here: {error.strerror}")

    assert Cgroup(str(group)).out_of_memory() == {"kills": 3, "at_limit": False, "limit": None}


def test_a_group_that_has_gone_tells_nothing(tmp_path: Path) -> None:
    assert Cgroup(str(tmp_path / "gone")).out_of_memory() is None


async def test_what_an_agent_hides_in_groups_of_its_own_making_goes_as_well(
    bench: Bench, group: Path
) -> None:
    """Tools that run containers make such groups, where they may."""
    script = (
        "import os, sys, time\n"
        "inside = sys.argv[1] + '/chump-' + os.environ['CHUMP_DISPATCH_ID'] + '/theirs'\n"
        "os.mkdir(inside)\n"
        "if os.fork() == 0:\n"
        " os.setsid()\n"
        " open(inside + '/cgroup.procs', 'w').write('0')\n"
        " print(os.getpid(), flush=True)\n"
        " time.sleep(600)\n"
        "time.sleep(0.5)\n"
    )
    agent, _ = await bench.launch(
        python(script, str(group)), executor=bench.executor(cgroups=group)
    )
    lines: list[str] = []

    ended = await agent.follow(lines.append)

    assert ended.code == 0
    assert ended.clean
    assert not is_alive(int(lines[0]))
    assert [path for path in group.iterdir() if path.is_dir()] == []
