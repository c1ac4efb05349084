"""`doctor` on the machine and on what was written: each check is seen to object."""

import json
import shutil
import sys
from datetime import timedelta
from email.utils import format_datetime
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from chump_orchestrator.adapters.host import HostClock
from chump_orchestrator.doctor.findings import Status, ok
from chump_orchestrator.doctor.machine import (
    judged_clock,
    judged_descriptors,
    judged_file_systems,
    judged_memory,
    judged_python,
    judged_watchers,
)
from tests.e2e.clinic import Clinic, run_apart

# --- python, disk, file systems, limits


@pytest.mark.parametrize(
    ("python", "database", "status"),
    [
        ((3, 11, 7), (3, 40, 1), Status.OK),
        ((3, 14, 0), (3, 35, 0), Status.OK),
        ((3, 10, 14), (3, 40, 1), Status.FAIL),
        ((3, 15, 0), (3, 40, 1), Status.WARN),
        ((3, 11, 7), (3, 34, 9), Status.FAIL),
    ],
)
def test_versions_of_python_and_sqlite_are_judged(
    python: tuple[int, ...], database: tuple[int, ...], status: Status
) -> None:
    assert [one.status for one in judged_python(python, database)] == [status]


def test_too_little_room_is_broken(clinic: Clinic) -> None:
    clinic.settings(min_free="900000000GiB")

    found = clinic.check("disk")

    assert found.status == "fail"
    assert "MiB are wanted" in found.found
    assert "make room" in found.remedy


def test_little_more_room_than_is_left_free_is_odd(clinic: Clinic) -> None:
    free = shutil.disk_usage(clinic.root).free * 3 // 4 // 2**20
    clinic.settings(min_free=f"{free}MiB")

    found = clinic.check("disk")

    assert found.status == "warn"


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs", "9p"])
def test_state_on_a_network_is_broken(kind: str) -> None:
    table = [("/", "ext4"), ("/home", kind)]

    (found,) = judged_file_systems([Path("/home/me/repository/.chump")], table)

    assert found.status is Status.FAIL
    assert kind in found.found


def test_the_innermost_and_latest_mount_counts() -> None:
    table = [("/", "nfs4"), ("/home", "nfs4"), ("/home", "btrfs"), ("/homes", "cifs")]

    (found,) = judged_file_systems([Path("/home/me/.chump"), Path("/home/me/.locks")], table)

    assert found == ok("state and databases are on btrfs")


def test_nothing_is_said_where_the_system_tells_nothing() -> None:
    assert [one.status for one in judged_file_systems([Path("/x")], [])] == [Status.SKIP]


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs a file system in memory")
def test_state_in_memory_is_odd(clinic: Clinic) -> None:
    in_memory = Path("/dev/shm") / f"chump-{clinic.folder.parent.name}-{clinic.folder.name}"
    in_memory.mkdir()
    clinic.state.symlink_to(in_memory)
    try:
        found = clinic.check("filesystem")
    finally:
        in_memory.rmdir()

    assert found.status == "warn"
    assert "tmpfs" in found.found


def test_too_few_open_files_are_broken(clinic: Clinic) -> None:
    command = f"ulimit -Sn 100; exec {sys.executable} -m chump_orchestrator doctor limits --json"

    done = run_apart(clinic, "sh", "-c", command)

    (one,) = json.loads(done.stdout)["checks"]
    assert (done.returncode, one["status"]) == (1, "fail")
    assert "allows 100 open files, and 2 agents at once may need 160" in one["found"]


def test_the_limit_of_the_installed_unit_counts(clinic: Clinic) -> None:
    clinic.unit(LimitNOFILE="64:4096")

    found = clinic.check("limits")

    assert found.status == "fail"
    assert "chump-orchestrator@x.service allows 64 open files" in found.found


def test_more_agents_than_memory_holds_are_odd(clinic: Clinic) -> None:
    clinic.patch.setenv("CHUMP_DISPATCH_CAPACITY", "1000")

    assert "max_parallel is 1000" in clinic.check("limits").found
    assert judged_memory(8 * 2**30, 32) == []
    (found,) = judged_memory(8 * 2**30, 33)
    assert found.status is Status.WARN
    assert found.remedy == "lower max_parallel to 32 or less"


def test_limits_are_judged_by_how_many_agents_there_are() -> None:
    assert judged_descriptors(256, 8, "it") == []
    assert judged_descriptors(-1, 1000, "it") == []
    assert [one.status for one in judged_descriptors(255, 8, "it")] == [Status.FAIL]
    assert judged_watchers(128, 100, 3) == []
    assert [one.status for one in judged_watchers(128, 100, 4)] == [Status.WARN]


# --- clocks


@pytest.mark.parametrize(
    ("ahead", "status"),
    [
        (timedelta(seconds=60), None),
        (timedelta(seconds=61), Status.WARN),
        (timedelta(seconds=-61), Status.WARN),
        (timedelta(minutes=6), Status.FAIL),
        (timedelta(hours=-1), Status.FAIL),
    ],
)
def test_a_clock_is_judged_by_how_far_it_is_off(ahead: timedelta, status: Status | None) -> None:
    found = judged_clock("the forge", ahead, timedelta(minutes=1))

    assert [one.status for one in found] == ([] if status is None else [status])


@pytest.mark.parametrize(("hours", "word"), [(1, "ahead"), (-1, "behind")])
def test_a_clock_that_differs_from_the_forges_is_broken(
    clinic: Clinic, hours: int, word: str
) -> None:
    moment = HostClock().now() + timedelta(hours=hours)
    clinic.gh(headers={"Date": format_datetime(moment, usegmt=True)})

    found = clinic.check("clock")

    assert found.status == "fail"
    assert word in found.found
    assert "the forge" in found.found


class Late(BaseHTTPRequestHandler):
    """A repository over HTTP whose server is a day behind."""

    def do_GET(self) -> None:
        is_known = self.path.startswith("/anvil.git/info/refs")
        self.send_response(200 if is_known else 404)
        self.end_headers()
        if is_known:
            self.wfile.write(b"0123456789012345678901234567890123456789\trefs/heads/main\n")

    def date_time_string(self, timestamp: float | None = None) -> str:
        return format_datetime(HostClock().now() - timedelta(days=1), usegmt=True)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as it is inherited
        pass


def test_a_clock_that_differs_from_the_remotes_is_broken(clinic: Clinic) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Late) as server:
        thread = Thread(target=partial(server.serve_forever, poll_interval=0.01))
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}/anvil.git"
        clinic.repository.git("remote", "set-url", "origin", url)
        try:
            found = clinic.check("clock")
        finally:
            server.shutdown()
            thread.join()

    assert found.status == "fail"
    assert "the clock of the remote is 86" in found.found


def test_a_state_folder_that_nobody_can_write_to_tells_no_time(clinic: Clinic) -> None:
    clinic.state.symlink_to("/proc")

    found = clinic.check("clock")

    assert found.status == "fail"
    assert "cannot be written" in found.found


# --- what was written


def test_a_table_of_routes_that_is_malformed_is_broken(clinic: Clinic) -> None:
    clinic.repository.write("docs/dispatch/routing.yaml", "routes: 7\n")

    found = clinic.check("settings")

    assert found.status == "fail"
    assert "routing.yaml" in found.found


def test_settings_that_are_odd_are_told(clinic: Clinic) -> None:
    clinic.patch.setenv("CHUMP_FAULT_INJECT", "exit_1")

    found = clinic.check("settings")

    assert found.status == "warn"
    assert "CHUMP_FAULT_INJECT" in found.found


def test_within_an_agent_no_agent_could_be_dispatched(clinic: Clinic) -> None:
    """Behaviour D6."""
    clinic.patch.setenv("CHUMP_DISPATCH_DEPTH", "1")

    found = clinic.check("settings")

    assert found.status == "fail"
    assert "CHUMP_DISPATCH_DEPTH" in found.found


def test_a_backlog_that_is_not_there_is_broken(clinic: Clinic) -> None:
    (clinic.root / "docs" / "gaps.yaml").unlink()

    found = clinic.check("backlog")

    assert found.status == "fail"
    assert "gaps.yaml" in found.found


def test_entries_that_cannot_be_used_are_counted(clinic: Clinic) -> None:
    clinic.repository.write(
        "docs/gaps.yaml",
        "gaps:\n- {id: A-1, status: open}\n- {id: bad id, status: open}\n- {id: 7}\n",
    )

    found = clinic.check("backlog")

    assert found.status == "warn"
    assert found.found.startswith("2 of 3 entries cannot be used: bad id (")
    assert "backlog check" in found.remedy


def a_secret(clinic: Clinic, mode: int = 0o600) -> Path:
    path = clinic.repository.write(".chump/secrets.env", "GH_TOKEN=ghx_0123456789\n")
    path.chmod(mode)
    return path


def test_secrets_that_others_can_read_are_broken_and_mended(clinic: Clinic) -> None:
    path = a_secret(clinic, 0o644)

    before = clinic.found("secrets", "settings")
    mended = clinic.check("secrets", fix=True)
    again = clinic.check("secrets", fix=True)

    assert before["secrets"]["status"] == "fail"
    assert before["settings"]["status"] == "ok"  # told once is enough
    assert "others may read or change it (mode 0644)" in before["secrets"]["found"]
    assert (mended.status, again.status) == ("ok", "ok")
    assert mended.fixed == [
        f"chmod 600 {path}",
        "added /.chump/secrets.env to .git/info/exclude",
    ]
    assert again.fixed == []
    assert path.stat().st_mode & 0o777 == 0o600
    assert "GH_TOKEN (secrets.env)" in again.found


def test_a_line_of_secrets_that_is_wrong_is_broken_and_left_to_its_writer(clinic: Clinic) -> None:
    path = a_secret(clinic)
    path.write_text("hush-hush-hush\n")

    found = clinic.check("secrets", fix=True)

    assert found.status == "fail"
    assert f"{path}:1: this is no variable" in found.found
    assert path.read_text() == "hush-hush-hush\n"


def test_secrets_that_git_would_take_are_odd_and_mended(clinic: Clinic) -> None:
    a_secret(clinic)

    before = clinic.check("secrets")
    mended = clinic.check("secrets", fix=True)

    assert before.status == "warn"
    assert "not ignored by git" in before.found
    assert mended.status == "ok"
    assert "secrets.env" not in clinic.repository.git("status", "--porcelain", "-uall")


def test_secrets_that_git_has_are_broken(clinic: Clinic) -> None:
    a_secret(clinic)
    clinic.repository.git("add", "-f", ".chump/secrets.env")

    found = clinic.check("secrets", fix=True)

    assert found.status == "fail"
    assert "tracked by git" in found.found
    assert "git rm --cached" in found.remedy


def test_an_empty_credential_is_odd(clinic: Clinic) -> None:
    credentials = clinic.folder / "credentials"
    credentials.mkdir()
    (credentials / "gh-token").write_text("\n")
    clinic.patch.setenv("CREDENTIALS_DIRECTORY", str(credentials))

    found = clinic.found("secrets", "settings")

    assert (found["secrets"]["status"], found["settings"]["status"]) == ("warn", "ok")
    assert "counts as not given" in found["secrets"]["found"]
