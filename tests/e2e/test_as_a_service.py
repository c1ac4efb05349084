"""The program as whoever starts services sees it: what it is told, and where the log goes."""

from __future__ import annotations

import json
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.projects import Make, Project, gaps

pytestmark = pytest.mark.slow

WAITS = "while not os.path.exists('../../../../go'): time.sleep(0.05)\nship()"


class Manager:
    """A service manager's socket, and all that was told there."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(60)
        self.environment = {"NOTIFY_SOCKET": str(path)}
        self.told: list[str] = []

    def until(self, pattern: str) -> str:
        """Read until something is told that has `pattern` in it, and return that."""
        while True:
            self.told.append(self._socket.recv(65536).decode())
            if re.search(pattern, self.told[-1]):
                return self.told[-1]

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(tmp_path / "notify")
    yield made
    made.close()


def log_of(project: Project) -> str:
    return (project.folder / "daemon.log").read_text()


def test_a_service_manager_is_told_from_the_start_to_the_end(make: Make, manager: Manager) -> None:
    project = make(gaps("DEMO-1"), WAITS)
    settings = project.root / ".chump" / "orchestrator.toml"
    good = settings.read_text()
    daemon = project.start(**manager.environment, WATCHDOG_USEC="60000000")

    manager.until("^READY=1$")
    assert project.json("status")["daemon"]["pid"] == daemon.pid  # ready to be asked, too
    manager.until("^STATUS=1/2 running, 0 ready")
    settings.write_text(good.replace("max_parallel", "max_paralel"))
    daemon.send_signal(signal.SIGHUP)
    manager.until("^RELOADING=1\nMONOTONIC_USEC=[0-9]+$")
    manager.until("^READY=1$")
    failed = manager.until("^STATUS=.*last reload failed")
    settings.write_text(good)
    daemon.send_signal(signal.SIGHUP)
    manager.until("^READY=1$")
    well = manager.until("^STATUS=")
    daemon.send_signal(signal.SIGUSR1)
    manager.until("^STOPPING=1$")

    assert daemon.wait(60) == 0
    assert "orchestrator.toml:1: max_paralel: there is no such key" in failed
    assert "failed" not in well
    assert "WATCHDOG=1" in manager.told
    (folder,) = project.state.glob("d/*")
    environments = [
        Path(f"/proc/{pid}/environ").read_bytes()
        for pid in running(folder)
        if Path("/proc").exists()
    ]
    assert not [one for one in environments if b"NOTIFY_SOCKET" in one or b"WATCHDOG" in one]


def running(folder: Path) -> list[int]:
    """Return the processes of shim and agent."""
    told = json.loads((folder / "running.json").read_text())
    return [told["shim_pid"], told["pid"]]


def test_what_keeps_it_from_starting_is_told(make: Make, manager: Manager) -> None:
    project = make(gaps("DEMO-1"))
    project.write_backlog("- [\n")

    done = project.program("run", **manager.environment)

    assert done.returncode == 78
    assert "docs/gaps.yaml" in manager.until("^STATUS=could not start: ")


def test_the_log_goes_to_a_file_of_its_own(make: Make) -> None:
    project = make(gaps("DEMO-1"), more="[log]\nfile = '.chump/orchestrator/daemon.log'\n")

    done = project.program("run", "--once")

    assert done.returncode == 0
    assert done.stderr == ""
    lines = (project.state / "daemon.log").read_text().splitlines()
    events = [json.loads(line)["event"] for line in lines]
    assert (events[0], events[-1]) == ("daemon.seeded", "daemon.stopped")
    assert events.count("dispatch.settled") == 1
    assert project.git("status", "--porcelain", "-uall") == "?? .chump/orchestrator.toml\n"


def test_a_variable_says_where_the_log_goes(make: Make, tmp_path: Path) -> None:
    project = make(gaps("DEMO-1"))

    done = project.program("run", "--once", CHUMP_LOG_FILE=str(tmp_path / "logs" / "x.log"))

    assert (done.returncode, done.stderr) == (0, "")
    assert "dispatch.settled" in (tmp_path / "logs" / "x.log").read_text()


def test_one_that_is_aborted_says_where_it_stood(make: Make) -> None:
    """A watchdog that has waited in vain sends this signal."""
    project = make(gaps("DEMO-1"), WAITS)
    daemon = project.start()
    project.eventually(lambda: "dispatch.launched" in log_of(project))

    daemon.send_signal(signal.SIGABRT)

    assert daemon.wait(60) == -signal.SIGABRT
    told = log_of(project)
    assert "Fatal Python error: Aborted" in told
    assert re.search(r'File ".*asyncio.*", line \d+ in ', told)
