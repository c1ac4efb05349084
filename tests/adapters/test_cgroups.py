"""A control group for each dispatch, where one is delegated: what escapes everything else is in it.

These tests make control groups of their own, which takes root, version 2 of them, and a kernel that
has `cgroup.kill`. Where that is not to be had they are skipped; the subreaper, which is what does
their work there, has tests of its own.
"""

from __future__ import annotations

import json
import os
import pwd
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from chump_orchestrator.adapters.local import cgroups
from tests.adapters.launches import Bench, eventually, ignore, python
from tests.adapters.limited import ESCAPE, escaped, is_alive
from tests.service import user_manager


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
    shim = bench.shim_of(dispatch_id)
    (hidden,) = await eventually(lambda: escaped(agent.pid, shim))
    try:
        os.kill(bench.shim_of(dispatch_id), signal.SIGKILL)
        await agent.follow(ignore)

        again = await bench.executor().attach(dispatch_id)
        assert again is not None
        assert again.exit is not None
        assert again.exit.clean is is_confined
        assert is_alive(hidden) is not is_confined
    finally:
        with suppress(ProcessLookupError):
            os.kill(hidden, signal.SIGKILL)


async def test_a_group_that_cannot_be_made_is_done_without(bench: Bench, tmp_path: Path) -> None:
    """A folder that is no control group, say: the agent runs, contained by its shim alone."""
    agent, dispatch_id = await bench.launch(
        python(""), executor=bench.executor(cgroups=tmp_path / "nowhere")
    )

    assert (await agent.follow(ignore)).code == 0
    running = json.loads((bench.folder(dispatch_id) / "running.json").read_text())
    assert running["cgroup"] is None


HANDED_OVER = ("procs", "subtree_control", "threads")


def delegated_to(group: Path, uid: int = 0) -> str:
    """What a user's process in this group finds that it may make others below."""
    ask = (
        "import os, sys; sys.path.insert(0, sys.argv[1])\n"
        "from chump_orchestrator.adapters.local.cgroups import delegated\n"
        f"os.setresuid({uid}, {uid}, {uid}); print(delegated())"
    )
    return asked_in(group, ask)


def asked_in(group: Path, script: str) -> str:
    """What a script says that runs in this group."""
    join = 'echo 0 > "$0"; exec "$@"'
    command = (sys.executable, "-c", script, str(Path(__file__).parents[2]))
    done = subprocess.run(
        ["sh", "-c", join, str(group / "cgroup.procs"), *command],
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


def delegate(group: Path) -> None:
    try:
        os.setxattr(group, "user.delegate", b"1")
    except OSError as error:
        pytest.skip(f"control groups take no attributes here: {error.strerror}")


def test_only_what_the_service_manager_has_delegated_is_used(parent: Path) -> None:
    """Asked by a process that is in the group in question."""
    inside = parent / "a.service"
    inside.mkdir()
    assert delegated_to(inside) == "None"

    delegate(inside)

    assert delegated_to(inside) == str(inside)
    # No limits below: with them, the service could not be started again beside a living agent.
    assert (inside / "cgroup.subtree_control").read_text().strip() == ""


def test_a_daemon_in_a_group_of_its_own_has_those_beside_it_limited(parent: Path) -> None:
    """As by `DelegateSubgroup=`: what is started anew does not go into the service's own group."""
    has = set(user_manager.CONTROLLERS) & set((parent / "cgroup.controllers").read_text().split())
    user_manager.enable(parent)
    service = parent / "a.service"
    service.mkdir()
    delegate(service)
    (service / "daemon").mkdir()
    try:
        found = delegated_to(service / "daemon")
        enabled = set((service / "cgroup.subtree_control").read_text().split())
    finally:
        (service / "daemon").rmdir()

    assert found == str(service)
    assert enabled == has


def test_what_is_delegated_to_a_user_can_be_used_by_that_user(parent: Path) -> None:
    """A manager hands over the folder and three of its files; `cgroup.kill` is none of them."""
    nobody = 65534
    service = parent / "a.service"
    service.mkdir()
    delegate(service)
    assert delegated_to(service, nobody) == "None"

    for path in (service, *(service / f"cgroup.{name}" for name in HANDED_OVER)):
        os.chown(path, nobody, nobody)

    assert delegated_to(service, nobody) == str(service)


def test_a_unit_is_known_by_the_group_it_is_in(parent: Path) -> None:
    ask = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from chump_orchestrator.adapters.local.cgroups import own_unit; print(own_unit())"
    )
    inside = parent / "our.slice" / "a.service" / "daemon"
    inside.mkdir(parents=True)
    try:
        said = asked_in(inside, ask)
    finally:
        for folder in (inside, inside.parent):
            folder.rmdir()

    assert said == "a.service"


@pytest.mark.parametrize(
    ("uid", "runtime", "there", "found"),
    [
        (1000, "RUN/user/1000", ["user/1000"], ["user/1000"]),
        (1000, "", ["user/1000"], ["user/1000"]),
        (1000, "RUN/elsewhere", ["user/1000", "elsewhere"], ["elsewhere", "user/1000"]),
        (1000, "elsewhere", ["user/1000"], ["user/1000"]),
        (1000, "RUN/user/1000", [".", "user/0"], []),
        (0, "RUN/user/0", [".", "user/0"], [".", "user/0"]),
        (0, "", ["."], ["."]),
        (1000, "", [], []),
    ],
)
def test_the_managers_that_may_be_asked(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uid: int,
    runtime: str,
    there: list[str],
    found: list[str],
) -> None:
    """Root asks the system's own, which stays when root logs out; others have none but theirs."""
    private = managers_in(tmp_path, monkeypatch, there)
    monkeypatch.setattr(cgroups, "_is_of_user", lambda user: user == uid)

    managers = cgroups.managers(runtime.replace("RUN", str(tmp_path)), uid)

    assert managers == tuple(str(private(folder)) for folder in found)


@pytest.mark.parametrize(("is_lingering", "found"), [(True, 1), (False, 0)])
def test_a_manager_that_goes_when_its_user_does_is_not_for_a_service_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_lingering: bool, found: int
) -> None:
    """Its agents would end at the next logout."""
    uid = os.getuid()
    managers_in(tmp_path, monkeypatch, [f"user/{uid}"])
    monkeypatch.setattr(cgroups, "_is_of_user", lambda _: False)
    monkeypatch.setattr(cgroups, "_LINGERING", tmp_path / "linger")
    (tmp_path / "linger").mkdir()
    if is_lingering:
        (tmp_path / "linger" / pwd.getpwuid(uid).pw_name).touch()

    assert len(cgroups.managers("", uid)) == found


def managers_in(
    run: Path, monkeypatch: pytest.MonkeyPatch, there: list[str]
) -> Callable[[str], Path]:
    """Have sockets of managers in these folders of a `/run`; where each would be."""

    def private(folder: str) -> Path:
        return run / (f"{folder}/systemd/private" if folder != "." else "systemd/private")

    monkeypatch.setattr(cgroups, "_USERS", run / "user")
    monkeypatch.setattr(cgroups, "_SYSTEM", private("."))
    for folder in there:
        private(folder).parent.mkdir(parents=True, exist_ok=True)
        private(folder).touch()
    return private


def test_whose_session_a_process_is_in_is_known_by_its_group(parent: Path) -> None:
    ask = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from chump_orchestrator.adapters.local.cgroups import _is_of_user\n"
        "print(_is_of_user(1000), _is_of_user(100))"
    )
    inside = parent / "user-1000.slice" / "session-1.scope"
    inside.mkdir(parents=True)
    try:
        said = asked_in(inside, ask)
    finally:
        inside.rmdir()

    assert said == "True False"


def test_a_forged_record_names_no_other_group() -> None:
    assert cgroups.is_ours("/sys/fs/cgroup/x/chump-a-1", "a-1")
    assert cgroups.is_ours("/sys/fs/cgroup/x/chump-a-1.scope/agent", "a-1")
    for path in (
        "/sys/fs/cgroup/x",
        "/sys/fs/cgroup/chump-a-2",
        "/sys/fs/cgroup/chump-a-1.scope",
        "/sys/fs/cgroup/chump-a-1.scope/shim",
        "chump-a-1",
        None,
        7,
    ):
        assert not cgroups.is_ours(path, "a-1")
