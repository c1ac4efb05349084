"""Agents in units of their own, made by a real service manager of a user's, started for the tests.

Where the machine keeps its controllers in version 1 of control groups the manager has none to give:
then the units contain agents all the same, and tests of what limits come to are skipped, by name.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import structlog.testing

from chump_orchestrator.core.dispatch import Limits
from tests.adapters.launches import Bench, eventually, ignore, python
from tests.adapters.limited import (
    ESCAPE,
    GREEDY_CHILD,
    LIMIT,
    escaped,
    greedy,
    is_alive,
    skip_without,
    sleeper,
)
from tests.adapters.shims import Shim
from tests.adapters.shims import eventually as eventually_
from tests.adapters.shims import python as argv
from tests.service.user_manager import UserManager, objection, user_manager


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UserManager]:
    if why := objection():
        pytest.skip(why)
    with user_manager(tmp_path_factory.mktemp("manager")) as found:
        yield found


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    found = Bench(tmp_path)
    yield found
    await found.clean()


@pytest.fixture
def shim(tmp_path: Path) -> Iterator[Shim]:
    made = Shim(tmp_path / "dispatch", f"cog-001-{uuid.uuid4().hex[:12]}")
    yield made
    made.clean()


def group_of(pid: int) -> str:
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    return next(line.removeprefix("0::") for line in lines if line.startswith("0::"))


def shown(manager: UserManager, dispatch_id: str, *names: str) -> dict[str, str]:
    """Properties of a dispatch's unit, as the manager tells them."""
    told = manager.run(
        "systemctl", "--user", "show", f"chump-{dispatch_id}.scope", f"--property={','.join(names)}"
    )
    return dict(line.partition("=")[::2] for line in told.splitlines())


async def test_agent_and_shim_are_in_a_unit_of_their_own(
    bench: Bench, manager: UserManager
) -> None:
    agent, dispatch_id = await bench.launch(
        sleeper(), executor=bench.executor(managers=(manager.socket,))
    )

    unit = f"/chump.slice/chump-agents.slice/chump-{dispatch_id}.scope"
    assert group_of(agent.pid).endswith(f"{unit}/agent")
    assert group_of(bench.shim_of(dispatch_id)).endswith(f"{unit}/shim")
    assert shown(manager, dispatch_id, "ActiveState", "Slice", "Description") == {
        "ActiveState": "active",
        "Slice": "chump-agents.slice",
        "Description": "Agent on INFRA-1",
    }


async def test_the_unit_has_the_limits_and_a_last_one_of_time(
    bench: Bench, manager: UserManager
) -> None:
    """Beyond every deadline: three soft ones of a minute, one more, 5 s of grace, and 5 min."""
    limits = Limits(memory=512 * 2**20, tasks=300, cpu_weight=40)
    _, dispatch_id = await bench.launch(
        sleeper(), executor=bench.executor(managers=(manager.socket,), limits=limits)
    )

    names = ("MemoryMax", "TasksMax", "CPUWeight", "RuntimeMaxUSec", "TimeoutStopUSec", "Delegate")
    assert shown(manager, dispatch_id, *names) == {
        "MemoryMax": str(576 * 2**20),
        "TasksMax": "308",
        "CPUWeight": "40",
        "RuntimeMaxUSec": "9min 5s",
        "TimeoutStopUSec": "20s",
        "Delegate": "yes",
    }


async def test_nothing_of_a_unit_stays_when_its_agent_has_ended(
    bench: Bench, manager: UserManager
) -> None:
    agent, dispatch_id = await bench.launch(
        python("raise SystemExit(3)"), executor=bench.executor(managers=(manager.socket,))
    )

    assert (await agent.follow(ignore)).code == 3

    unit = {"LoadState": "not-found"}
    await eventually(lambda: shown(manager, dispatch_id, "LoadState") == unit)
    assert list(manager.group.glob(f"**/chump-{dispatch_id}*")) == []


SERVICE = """\
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import anyio
from tests.adapters.launches import Bench, python
async def main():
    bench = Bench(Path(sys.argv[2]))
    executor = bench.executor(managers=(sys.argv[3],))
    agent = python("import time; time.sleep(600)")
    await bench.launch(agent, dispatch_id=sys.argv[4], executor=executor)
    await anyio.sleep_forever()
anyio.run(main)
"""


@pytest.mark.parametrize("verb", ["restart", "stop", "kill"])
async def test_i8_an_agent_outlives_the_unit_that_launched_it(
    tmp_path: Path, bench: Bench, manager: UserManager, verb: str
) -> None:
    """Also one that kills all that is in its control group, and however its daemon ends."""
    dispatch_id = bench.id()
    name = f"daemon-{dispatch_id}.service"
    root = str(Path(__file__).parents[2])
    socket_inside = "/run/user/0/systemd/private"
    elsewhere = Bench(tmp_path / "service")
    manager.run(
        *("systemd-run", "--user", f"--unit={name}", "--property=KillMode=control-group"),
        *(f"--setenv=PATH={os.environ['PATH']}", sys.executable, "-c", SERVICE),
        *(root, str(tmp_path / "daemon"), socket_inside, dispatch_id),
    )
    elsewhere.state = tmp_path / "daemon" / "state"
    elsewhere.launched.append(dispatch_id)
    try:
        running = elsewhere.folder(dispatch_id) / "running.json"
        await eventually(running.exists)
        agent = json.loads(running.read_text())["pid"]
        before = manager.run("systemctl", "--user", "show", name, "--property=MainPID")

        manager.run("systemctl", "--user", verb, name)

        if verb != "restart":  # the new one finds the dispatch there, and fails
            idle = ("ActiveState=inactive\n", "ActiveState=failed\n", "")
            await eventually(
                lambda: (
                    manager.run("systemctl", "--user", "show", name, "--property=ActiveState")
                    in idle
                )
            )
        assert before != manager.run("systemctl", "--user", "show", name, "--property=MainPID")
        assert is_alive(agent)
        again = await elsewhere.executor().attach(dispatch_id)
        assert again is not None
        assert (again.pid, again.exit) == (agent, None)
    finally:
        manager.run("systemctl", "--user", "stop", name, check=False)
        manager.run("systemctl", "--user", "reset-failed", name, check=False)
        await elsewhere.clean()


async def test_i3_what_escapes_a_dead_shim_is_found_in_its_unit(
    bench: Bench, manager: UserManager
) -> None:
    executor = bench.executor(managers=(manager.socket,))
    agent, dispatch_id = await bench.launch(python(ESCAPE), executor=executor)
    shim = bench.shim_of(dispatch_id)
    (hidden,) = await eventually(lambda: escaped(agent.pid, shim))

    os.kill(shim, signal.SIGKILL)
    await agent.follow(ignore)
    again = await bench.executor().attach(dispatch_id)

    assert again is not None
    assert again.exit is not None
    assert again.exit.clean
    assert not is_alive(hidden)


async def test_an_agent_that_uses_too_much_costs_neither_its_shim_nor_its_siblings(
    bench: Bench, manager: UserManager
) -> None:
    skip_without("memory")
    executor = bench.executor(managers=(manager.socket,), limits=Limits(memory=LIMIT))
    sibling, _ = await bench.launch(sleeper(), executor=executor)
    agents = [
        (await bench.launch(command, executor=executor))[0]
        for command in (greedy(), python(GREEDY_CHILD))
    ]

    ends = [await agent.follow(ignore) for agent in agents]

    told = "killed at its limit of 96 MiB of memory"
    assert [(ended.signal, ended.lost, ended.out_of_memory) for ended in ends] == [
        (signal.SIGKILL, "", told),
        (signal.SIGKILL, "", told),
    ]
    assert sibling.exit is None
    assert is_alive(sibling.pid)


async def test_all_limits_hold_in_a_unit(bench: Bench, manager: UserManager) -> None:
    skip_without("memory", "pids", "cpu")
    limits = Limits(memory=LIMIT, tasks=100, cpu_weight=40, required=True)
    executor = bench.executor(managers=(manager.socket,), limits=limits)

    agent, _ = await bench.launch(python(""), executor=executor)

    assert (await agent.follow(ignore)).code == 0


def test_a_manager_ends_what_a_shim_should_have_ended_long_before(
    shim: Shim, manager: UserManager
) -> None:
    shim.start(
        argv("import time; time.sleep(600)"),
        hard_s=600.0,
        runtime_s=0.5,
        managers=[manager.socket],
    )

    record = shim.exit()

    assert record["killed_by"] == "host"
    assert record["survivors"] == 0


def test_a_shim_that_was_stopped_itself_does_not_keep_its_agent_from_that(
    shim: Shim, manager: UserManager
) -> None:
    """What a manager ends it has go on first."""
    agent = shim.start(
        argv("import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.pause()"),
        runtime_s=0.5,
        grace_s=0.0,
        managers=[manager.socket],
    )["pid"]
    os.kill(shim.pid, signal.SIGSTOP)

    eventually_(lambda: not is_alive(agent))


def test_an_agent_that_is_ended_with_all_of_its_unit_was_ended_by_the_host(
    shim: Shim, manager: UserManager
) -> None:
    """As when the machine is shut down: everybody is told at once, in any order."""
    agent = shim.start(argv("import time; time.sleep(600)"), managers=[manager.socket])["pid"]
    os.kill(agent, signal.SIGTERM)

    manager.run("systemctl", "--user", "stop", f"chump-{shim.dispatch}.scope")

    record = shim.exit()
    assert (record["signal"], record["killed_by"]) == (signal.SIGTERM, "host")


async def test_the_daemons_own_unit_is_stopped_before_those_of_agents(
    shim: Shim, manager: UserManager
) -> None:
    """So that it can end them in good order when all is stopped."""
    shim.start(
        argv("import time; time.sleep(600)"), unit="our-daemon.service", managers=[manager.socket]
    )

    before = shown(manager, shim.dispatch, "Before")["Before"]
    assert "our-daemon.service" in before.split()


async def test_where_a_manager_cannot_do_it_the_next_way_is_taken(
    tmp_path: Path, bench: Bench, manager: UserManager
) -> None:
    gone, deaf = tmp_path / "gone", tmp_path / "deaf"
    with socket.socket(socket.AF_UNIX) as nobody, socket.socket(socket.AF_UNIX) as listening:
        nobody.bind(str(gone))
        listening.bind(str(deaf))
        listening.listen()
        executor = bench.executor(managers=(str(gone), str(deaf), manager.socket))

        agent, dispatch_id = await bench.launch(sleeper(), executor=executor)

    assert group_of(agent.pid).endswith(f"chump-{dispatch_id}.scope/agent")


async def test_without_any_manager_that_answers_an_agent_runs_all_the_same(
    bench: Bench, manager: UserManager
) -> None:
    os.kill(manager.pid, signal.SIGSTOP)
    try:
        executor = bench.executor(managers=(manager.socket,), limits=Limits(memory=LIMIT))
        with structlog.testing.capture_logs() as said:
            agent, dispatch_id = await bench.launch(python(""), executor=executor)
            ended = await agent.follow(ignore)
    finally:
        os.kill(manager.pid, signal.SIGCONT)

    assert ended.code == 0
    (warning,) = [line for line in said if line["event"] == "limits.unheld"]
    assert "it did not answer in time" in warning["why"]
    # What the manager makes of the request, when it comes to that, has nobody in it.
    unit = {"LoadState": "not-found"}
    await eventually(lambda: shown(manager, dispatch_id, "LoadState") == unit)
