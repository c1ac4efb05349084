"""`doctor` on what the orchestrator keeps and leaves behind: each check is seen to object."""

import fcntl
import json
import os
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from chump_orchestrator import config, premises
from chump_orchestrator.core.records import Pause
from chump_orchestrator.doctor.left_behind import SHOWN
from tests.builders import NOW
from tests.e2e.cli_repository import ended, running
from tests.e2e.clinic import Clinic
from tests.e2e.projects import Make, gaps

# --- the daemon


class Answers:
    """What a daemon tells of itself."""

    def __init__(self, **daemon: Any) -> None:
        self.daemon = {"pid": 4242, "state": "running", "since": "2026-04-27T12:00:00Z"} | daemon

    async def status(self) -> dict[str, Any]:
        return {"daemon": self.daemon, "dispatches": []}


@pytest.mark.parametrize(
    ("told", "status", "found"),
    [
        ({}, "ok", "it runs (pid 4242) and is running"),
        ({"paused_by": "lunch"}, "warn", "held up: lunch"),
        ({"backlog_problem": "torn"}, "warn", "the backlog is used as it was: torn"),
        ({"forge_silent_s": 1200.0}, "warn", "has not answered the daemon for 20 min"),
        ({"forge_silent_s": 40.0}, "ok", "it runs"),
        ({"loop": {"longest_turn_ms": 12.3}}, "ok", "longest turn of its loop of late took 12 ms"),
        ({"loop": {"longest_turn_ms": 2345.6}}, "warn", "could not answer for a while: the long"),
        ({"loop": None}, "ok", "it runs (pid 4242) and is running"),
    ],
)
def test_a_daemon_tells_how_it_is(
    clinic: Clinic, told: dict[str, Any], status: str, found: str
) -> None:
    with clinic.repository.daemon(Answers(**told)):  # type: ignore[arg-type]
        said = clinic.check("daemon")

    assert said.status == status
    assert found in said.found


def test_a_daemon_that_answers_nonsense_is_broken(clinic: Clinic) -> None:
    clinic.state.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as listener:
        clinic.patch.chdir(clinic.state)
        listener.bind("control.sock")
        listener.listen()

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1024)
                connection.sendall(b"what?\n")

        thread = threading.Thread(target=answer)
        thread.start()
        clinic.patch.chdir(clinic.root)
        found = clinic.check("daemon")
        thread.join()

    assert found.status == "fail"
    assert "does not answer" in found.found


def test_a_daemon_that_does_not_listen_is_broken(clinic: Clinic) -> None:
    with premises.daemon_lock(clinic.root, config.load(clinic.root)):
        found = clinic.check("daemon")

    assert found.status == "fail"
    assert "does not listen" in found.found


def test_a_pause_on_record_is_told_where_no_daemon_runs(clinic: Clinic) -> None:
    clinic.repository.in_ledger(
        lambda ledger: ledger.set_pause(Pause("operator", "until Monday", NOW))
    )

    found = clinic.check("daemon")

    assert found.status == "warn"
    assert "until Monday" in found.found


# --- the folder


def test_what_others_can_read_of_the_state_is_broken_and_mended(clinic: Clinic) -> None:
    clinic.repository.in_ledger(ended)
    for path, mode in ((clinic.state, 0o755), (clinic.state / "ledger.db", 0o644)):
        path.chmod(mode)

    before = clinic.check("state")
    mended = clinic.check("state", fix=True)
    again = clinic.check("state", fix=True)

    assert before.status == "fail"
    assert f"others may read {clinic.state} and 1 more" in before.found
    assert (mended.status, again.status) == ("ok", "ok")
    assert mended.fixed == [
        f"chmod go= {clinic.state}",
        f"chmod go= {clinic.state / 'ledger.db'}",
    ]
    assert again.fixed == []
    assert clinic.state.stat().st_mode & 0o777 == 0o700
    assert (clinic.state / "ledger.db").stat().st_mode & 0o777 == 0o600


def test_a_state_folder_that_is_a_file_is_broken(clinic: Clinic) -> None:
    clinic.state.touch()

    assert clinic.check("state").status == "fail"


@pytest.mark.root
def test_a_state_folder_of_another_user_is_broken(clinic: Clinic) -> None:
    clinic.state.mkdir(mode=0o700)
    (clinic.state / "ledger.db").touch(mode=0o600)
    os.chown(clinic.state / "ledger.db", 65534, 65534)

    found = clinic.check("state", fix=True)

    assert found.status == "fail"
    assert "ledger.db belongs to another user" in found.found
    assert "chown -R" in found.remedy
    assert found.fixed == []


# --- databases


def test_a_damaged_ledger_is_broken(clinic: Clinic) -> None:
    clinic.repository.in_ledger(ended)
    (clinic.state / "ledger.db").write_bytes(b"garbage" * 4096)

    found = clinic.check("database")

    assert found.status == "fail"
    assert "is damaged or no database" in found.found
    assert "start `run`" in found.remedy


def test_damage_within_a_database_is_found(clinic: Clinic) -> None:
    path = clinic.root / "sessions" / "chump_memory.db"
    path.parent.mkdir()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE t (a TEXT)")
        connection.executemany("INSERT INTO t VALUES (?)", [("x" * 500,)] * 2000)
    connection.close()
    with path.open("r+b") as file:
        file.seek(4096 * 20)
        file.write(b"\xff" * 4096)

    found = clinic.check("database")

    assert found.status == "fail"
    assert str(path) in found.found
    assert "move it away" in found.remedy


def test_a_ledger_of_a_newer_version_is_broken(clinic: Clinic) -> None:
    clinic.repository.in_ledger(ended)
    with sqlite3.connect(clinic.state / "ledger.db") as connection:
        connection.execute("PRAGMA user_version = 999")
    connection.close()

    found = clinic.check("database")

    assert found.status == "fail"
    assert "has schema 999" in found.found


def test_a_database_that_another_program_locks_is_odd(clinic: Clinic) -> None:
    clinic.patch.setattr("chump_orchestrator.doctor.state.BUSY_S", 0.05)
    path = clinic.root / ".chump" / "state.db"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("CREATE TABLE t (a)")
    connection.execute("BEGIN EXCLUSIVE")
    try:
        found = clinic.check("database")
    finally:
        connection.close()

    assert found.status == "warn"
    assert "locked by another program" in found.found


def test_databases_that_are_whole_are_fine(clinic: Clinic) -> None:
    clinic.repository.in_ledger(ended)

    found = clinic.check("database")

    assert (found.status, found.found) == ("ok", "ledger.db is whole")


# --- the socket


def test_a_folder_in_which_no_socket_can_be_made_is_broken(clinic: Clinic) -> None:
    clinic.state.symlink_to("/proc")

    found = clinic.check("socket")

    assert found.status == "fail"
    assert "no socket can be made" in found.found


def test_a_path_that_is_too_long_for_a_socket_is_told_and_works(clinic: Clinic) -> None:
    long = "x" * 90
    clinic.settings(f'[state]\ndir = "{long}/state"\n')
    (clinic.root / long / "state").mkdir(parents=True)

    found = clinic.check("socket")

    assert found.status == "ok"
    assert "more than the 100 that sockets take" in found.found
    assert list((clinic.root / long / "state").iterdir()) == []


# --- leases


def a_lease(clinic: Clinic, holder: str, *, until: datetime, ours: bool = True) -> Path:
    return clinic.repository.write(
        f".chump-locks/{holder}.json",
        json.dumps(
            {
                "session_id": holder,
                "taken_at": f"{datetime.now(UTC) - timedelta(hours=1):%Y-%m-%dT%H:%M:%SZ}",
                "expires_at": f"{until:%Y-%m-%dT%H:%M:%SZ}",
                "gap_id": "DEMO-4",
                **({"made_by": "chump-orchestrator"} if ours else {}),
            }
        ),
    )


def test_leases_of_dispatches_that_have_ended_are_odd_and_removed_once(clinic: Clinic) -> None:
    later = datetime.now(UTC) + timedelta(hours=3)
    over = clinic.repository.in_ledger(ended)
    alive = clinic.repository.in_ledger(lambda ledger: running(ledger, "DEMO-4"))
    stale = [a_lease(clinic, over, until=later), a_lease(clinic, "old-1", until=NOW)]
    kept = [a_lease(clinic, alive, until=later), a_lease(clinic, "of-a-clone", until=later)]
    kept.append(a_lease(clinic, "somebody", until=later, ours=False))

    before = clinic.check("leases")
    mended = clinic.check("leases", fix=True)
    again = clinic.check("leases", fix=True)

    assert before.status == "warn"
    assert "2 of ours for dispatches that have ended" in before.found
    assert (mended.status, again.status) == ("ok", "ok")
    assert sorted(mended.fixed) == sorted(
        [f"removed the lease of {over}", "removed the lease of old-1"]
    )
    assert again.fixed == []
    assert [path.exists() for path in stale] == [False, False]
    assert all(path.exists() for path in kept)


def test_leases_that_cannot_be_read_are_told_and_left_alone(clinic: Clinic) -> None:
    paths = [clinic.repository.write(f".chump-locks/{n}.json", "{") for n in range(SHOWN + 2)]

    found = clinic.check("leases", fix=True)

    assert found.status == "warn"
    assert f"{SHOWN + 2} cannot be read" in found.found
    assert "and 2 more" in found.found
    assert found.fixed == []
    assert all(path.exists() for path in paths)


def test_a_lease_of_anothers_that_never_ends_is_odd(clinic: Clinic) -> None:
    a_lease(clinic, "somebody", until=datetime.now(UTC) + timedelta(days=365), ours=False)

    found = clinic.check("leases")

    assert found.status == "warn"
    assert "DEMO-4 by somebody until" in found.found


# --- processes


@contextmanager
def an_agent(clinic: Clinic, dispatch: str, **variables: str) -> Iterator[int]:
    """Have a process about that looks like an agent's."""
    temporary = clinic.state / "d" / dispatch / "tmp"
    temporary.mkdir(parents=True)
    own = {"CHUMP_DISPATCH_ID": dispatch, "TMPDIR": str(temporary)}
    code = "import sys; print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, **own, **variables},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process.pid
        finally:
            process.kill()


def test_a_process_without_a_shim_is_told_and_never_ended(clinic: Clinic) -> None:
    with an_agent(clinic, "demo-1-x") as pid:
        found = clinic.check("processes", fix=True)

        assert found.status == "warn"
        assert f"({pid}) of demo-1-x" in found.found
        assert f"kill {pid}" in found.remedy
        assert found.fixed == []
        os.kill(pid, 0)


def test_a_process_of_a_dispatch_that_is_looked_after_is_none_of_these(clinic: Clinic) -> None:
    with an_agent(clinic, "demo-1-x"), (clinic.state / "d/demo-1-x/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        assert clinic.check("processes").status == "ok"


def test_a_process_of_another_repositorys_dispatch_is_none_of_these(clinic: Clinic) -> None:
    with an_agent(clinic, "demo-1-x", TMPDIR="/tmp"):
        clinic.patch.chdir(clinic.root)

        found = clinic.check("processes")

    # It works in this repository, but neither in its worktrees nor in its state.
    assert found.status == "ok"


def test_a_process_that_is_on_record_is_known_wherever_it_works(clinic: Clinic) -> None:
    over = clinic.repository.in_ledger(ended)
    with an_agent(clinic, over, TMPDIR="/tmp") as pid:
        found = clinic.check("processes")

    assert found.status == "warn"
    assert f"({pid}) of {over}" in found.found


def test_of_a_daemon_at_work_nothing_is_amiss_and_nothing_is_mended(make: Make) -> None:
    """Behaviour C7."""
    project = make(gaps("A-1"), "time.sleep(600)")
    project.start()
    project.eventually(project.processes)
    project.eventually(lambda: list((project.root / ".chump-locks").glob("*.json")))

    document = project.json("doctor", "--fix")
    agents = project.processes()

    found = {one["name"]: one for one in document["checks"]}
    assert document["ok"] is True, [one for one in document["checks"] if one["status"] == "fail"]
    for name in ("daemon", "state", "database", "socket", "leases", "processes", "worktrees"):
        assert found[name]["status"] == "ok", found[name]
    assert found["daemon"]["found"].startswith("it runs")
    assert not any(one["fixed"] for one in document["checks"])
    assert agents
    project.program("stop", "A-1", "--now")
    project.program("drain")
    assert project.daemon is not None
    assert project.daemon.wait(60) == 0
