"""A control group for each dispatch, where one is delegated: what escapes everything else is in it.

These tests make control groups of their own, which takes root, version 2 of them, and a kernel that
has `cgroup.kill`. Where that is not to be had they are skipped; the subreaper, which is what does
their work there, has tests of its own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from chump_orchestrator.adapters.local import cgroups
from chump_orchestrator.shim.cgroup import confine
from tests.adapters.launches import Bench, eventually, ignore, python

ESCAPE = (
    "import os, sys, time\n"
    "if os.fork() == 0:\n"
    " os.setsid()\n"
    " if os.fork() == 0:\n"
    "  os.execve(sys.executable, [sys.executable, '-c', 'import time; time.sleep(600)'], {})\n"
    " os._exit(0)\n"
    "os.wait()\n"
    "time.sleep(600)\n"
)
"""Leaves a grandchild in a session of its own, without the marker in its environment."""


def _hierarchy() -> Path | None:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if after.split(" ")[0] == "cgroup2":
            return Path(before.split(" ")[4])
    return None


@pytest.fixture
def parent() -> Iterator[Path]:
    """A control group below which others may be made, as a service manager would delegate one."""
    top = _hierarchy()
    if sys.platform != "linux" or top is None:
        pytest.skip("control groups of version 2 are not there")
    folder = top / f"chump-tests-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error.strerror}")
    if not (folder / "cgroup.kill").exists():
        folder.rmdir()
        pytest.skip("this kernel has no cgroup.kill")
    yield folder
    for below in folder.iterdir():
        if below.is_dir():
            assert cgroups.empty(str(below))
    folder.rmdir()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    found = Bench(tmp_path)
    yield found
    await found.clean()


def members(folder: Path) -> list[int]:
    """The processes in all groups below a folder."""
    return [
        int(pid) for procs in folder.glob("*/cgroup.procs") for pid in procs.read_text().split()
    ]


async def test_an_agent_runs_in_a_group_of_its_own_that_goes_with_it(
    bench: Bench, parent: Path
) -> None:
    agent, dispatch_id = await bench.launch(
        python("import sys; sys.stdin.read()"), executor=bench.executor(cgroups=parent)
    )
    await agent.follow(ignore)

    running = json.loads((bench.folder(dispatch_id) / "running.json").read_text())
    assert running["cgroup"] == str(parent / f"chump-{dispatch_id}")
    assert [path for path in parent.iterdir() if path.is_dir()] == []


async def test_the_shim_and_the_daemon_stay_outside(bench: Bench, parent: Path) -> None:
    agent, dispatch_id = await bench.launch(
        python("import time; time.sleep(600)"), executor=bench.executor(cgroups=parent)
    )

    assert members(parent) == [agent.pid]
    assert bench.shim_of(dispatch_id) not in members(parent)


@pytest.mark.parametrize("is_confined", [True, False])
async def test_what_escapes_a_dead_shim_is_found_in_its_group(
    bench: Bench, parent: Path, is_confined: bool
) -> None:
    """Promise I3 and reliability, fault 22; without a group it is not found, nor claimed to be."""
    executor = bench.executor(cgroups=parent if is_confined else None)
    agent, dispatch_id = await bench.launch(python(ESCAPE), executor=executor)
    escaped = (await eventually(lambda: _escaped(agent.pid, bench.shim_of(dispatch_id))))[0]
    try:
        os.kill(bench.shim_of(dispatch_id), signal.SIGKILL)
        await agent.follow(ignore)

        again = await bench.executor().attach(dispatch_id)
        assert again is not None
        assert again.exit is not None
        assert again.exit.clean is is_confined
        assert is_alive(escaped) is not is_confined
    finally:
        with suppress(ProcessLookupError):
            os.kill(escaped, signal.SIGKILL)


def is_alive(pid: int) -> bool:
    """Whether there is such a process, and it is no zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _escaped(agent: int, shim: int) -> list[int]:
    children = Path(f"/proc/{shim}/task/{shim}/children").read_text().split()
    return [
        int(pid)
        for pid in children
        if int(pid) != agent and Path(f"/proc/{pid}/environ").read_bytes() == b""
    ]


async def test_a_group_that_cannot_be_made_is_done_without(bench: Bench, tmp_path: Path) -> None:
    """A folder that is no control group, say: the agent runs, contained by its shim alone."""
    agent, dispatch_id = await bench.launch(
        python(""), executor=bench.executor(cgroups=tmp_path / "nowhere")
    )

    assert (await agent.follow(ignore)).code == 0
    running = json.loads((bench.folder(dispatch_id) / "running.json").read_text())
    assert running["cgroup"] is None


def test_only_what_the_service_manager_has_delegated_is_used(parent: Path) -> None:
    """Asked by a process that is in the group in question."""
    ask = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from chump_orchestrator.adapters.local.cgroups import delegated; print(delegated())"
    )

    def asked() -> str:
        join = 'echo 0 > "$0"; exec "$@"'
        command = (sys.executable, "-c", ask, str(Path(__file__).parents[2]))
        done = subprocess.run(
            ["sh", "-c", join, str(inside / "cgroup.procs"), *command],
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip()

    inside = parent / "a.service"
    inside.mkdir()
    assert asked() == "None"
    try:
        os.setxattr(inside, "user.delegate", b"1")
    except OSError as error:
        pytest.skip(f"control groups take no attributes here: {error.strerror}")
    assert asked() == str(inside)


def test_a_forged_record_names_no_other_group() -> None:
    assert cgroups.is_ours("/sys/fs/cgroup/x/chump-a-1", "a-1")
    for path in ("/sys/fs/cgroup/x", "/sys/fs/cgroup/chump-a-2", "chump-a-1", None, 7):
        assert not cgroups.is_ours(path, "a-1")


def test_a_process_that_has_gone_is_confined_nowhere(parent: Path) -> None:
    assert confine(2**22 + 1, str(parent), "a-1") is None
    assert [path for path in parent.iterdir() if path.is_dir()] == []
