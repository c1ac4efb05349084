"""The LaunchAgent: read as launchd would read it, and lived through with a launchd of our own.

What only a Mac can show is listed in docs/how-to/macos.md.
"""

from __future__ import annotations

import json
import os
import plistlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from chump_orchestrator.cli.root import main
from chump_orchestrator.service import templates
from chump_orchestrator.service.launchd import Launchd
from chump_orchestrator.service.naming import label_of
from chump_orchestrator.service.property_list import objections
from tests.e2e.cli_repository import Said, a_quiet_log
from tests.e2e.projects import Project
from tests.service.surveys import a_survey

NAPPING = ["sleep", "601.5"]
LAUNCHCTL = Path(__file__).with_name("launchctl.py")


ROOT = "/Users/dev/src/my repo & more"


def rendered(**fields: Any) -> str:
    manager = Launchd("dev", 501, {"HOME": "/Users/dev"})
    seen = a_survey(ROOT, home="/Users/dev", **fields)
    (unit,) = manager.units(seen, ["/Users/dev/.local/bin/chump-orchestrator"])
    return unit.text


def test_the_property_list_says_what_launchd_needs_to_know() -> None:
    document = plistlib.loads(rendered().encode())

    name = label_of(Path(ROOT)).removeprefix("dev.chump.orchestrator.")
    logs = "/Users/dev/Library/Logs/chump-orchestrator"
    assert document == {
        "Label": f"dev.chump.orchestrator.{name}",
        "ProgramArguments": ["/Users/dev/.local/bin/chump-orchestrator", "run"],
        "WorkingDirectory": ROOT,
        "EnvironmentVariables": {
            "PATH": "/Users/dev/.local/bin:/usr/local/bin:/usr/bin:/bin",
            "LANG": "en_US.UTF-8",
            "CHUMP_LOG_FILE": f"{logs}/{name}.log",
        },
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "ThrottleInterval": 30,
        "ExitTimeOut": 120,
        "AbandonProcessGroup": True,
        "ProcessType": "Standard",
        "SoftResourceLimits": {"NumberOfFiles": 8192},
        "StandardOutPath": f"{logs}/{name}.err",
        "StandardErrorPath": f"{logs}/{name}.err",
    }
    assert objections(rendered()) == ()


def test_a_file_for_the_log_in_the_settings_is_not_overruled() -> None:
    document = plistlib.loads(rendered(log="/var/log/mine.log").encode())

    assert "CHUMP_LOG_FILE" not in document["EnvironmentVariables"]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"Keepalive": True}, "Keepalive: launchd has no such key; write KeepAlive"),
        ({"Surprise": 1}, "Surprise: launchd has no such key"),
        ({"ThrottleInterval": "30"}, "ThrottleInterval: str in the place of int"),
        ({"RunAtLoad": 1}, "RunAtLoad: int in the place of bool"),
        ({"Label": ""}, "Label: it must have one"),
        ({"ProgramArguments": []}, "ProgramArguments: there is nothing to start"),
        ({"ProgramArguments": ["/bin/x", 3]}, "ProgramArguments[1]: int in the place of str"),
        ({"ProgramArguments": ["~/x"]}, "ProgramArguments[0]: launchd expands nothing in '~/x'"),
        ({"WorkingDirectory": "src"}, "WorkingDirectory: 'src' is no path from the root"),
        ({"WorkingDirectory": "$HOME"}, "WorkingDirectory: launchd expands nothing in '$HOME'"),
        (
            {"KeepAlive": {"SuccesfulExit": False}},
            "KeepAlive.SuccesfulExit: launchd would ignore it",
        ),
        (
            {"KeepAlive": True},
            "KeepAlive: it would start again after a stop; write SuccessfulExit = false",
        ),
        (
            {"ProcessType": "background"},
            "ProcessType: one of Adaptive, Background, Interactive, Standard",
        ),
        ({"SoftResourceLimits": {"Files": 1}}, "SoftResourceLimits.Files: launchd would ignore it"),
        (
            {"EnvironmentVariables": {"A": "1"}},
            "EnvironmentVariables.PATH: without it neither git nor an agent may be found",
        ),
        (
            {"EnvironmentVariables": {"PATH": "/bin", "GH_TOKEN": "x"}},
            "EnvironmentVariables.GH_TOKEN: everybody can read this file; keep secrets elsewhere",
        ),
        ({"ExitTimeOut": 20}, "ExitTimeOut: agents need 60 s at least to be stopped"),
        ({"ThrottleInterval": 1}, "ThrottleInterval: 10 s at least"),
    ],
)
def test_what_launchd_would_ignore_or_get_wrong_is_told(
    change: dict[str, object], complaint: str
) -> None:
    document = plistlib.loads(rendered().encode()) | change

    assert objections(plistlib.dumps(document).decode()) == (complaint,)


@pytest.mark.parametrize(
    "text", ["", "<plist", "<?xml version='1.0'?><plist><array/></plist>", "[Unit]\n"]
)
def test_what_is_no_property_list_is_told(text: str) -> None:
    assert len(objections(text)) == 1


def test_the_template_is_what_is_filled_in() -> None:
    template = templates.read(templates.LAUNCH_AGENT)

    kept = [line for line in template.splitlines() if "@" not in line]
    assert [line for line in kept if line not in rendered().splitlines()] == []


# The rest lives through it.


class Mac:
    """The command line as on a Mac, in this process, with a launchd of its own."""

    def __init__(self, project: Project, home: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.project = project
        self.home = home
        self._capture = capture
        self.label = label_of(project.root)
        self.file = home / "Library" / "LaunchAgents" / f"{self.label}.plist"
        self._jobs = Path(os.environ["FAKE_LAUNCHD"])

    def say(self, *arguments: str) -> Said:
        self._capture.readouterr()
        with a_quiet_log():
            code = main(arguments)
        return Said(code, *self._capture.readouterr())

    def install(self, *more: str) -> Said:
        """Install; temporary folders are no places for good, and a test has no others."""
        said = self.say("service", "install", "--yes", "--force", "--no-pause", *more)
        assert said.code == 0, said.err
        return said

    @property
    def job(self) -> dict[str, Any]:
        file = self._jobs / f"{self.label}.json"
        found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
        return found

    def agents(self) -> list[int]:
        """Return the living agents' processes."""
        return [
            int(json.loads(file.read_text())["pid"])
            for file in self.project.state.glob("d/*/running.json")
            if not (file.parent / "exit.json").exists()
        ]

    def eventually(self, claim: Callable[[], Any]) -> Any:
        until = time.monotonic() + 60
        while not (value := claim()):
            assert time.monotonic() < until, self.say("service", "status").out
            time.sleep(0.05)
        return value


@pytest.fixture
def mac(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Mac]:
    home, programs, jobs = (tmp_path / name for name in ("home", "programs", "jobs"))
    for folder in (home, programs, jobs):
        folder.mkdir()
    launchctl = programs / "launchctl"
    launchctl.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{LAUNCHCTL}" "$@"\n')
    launchctl.chmod(0o755)
    gaps = "- {id: A-1, title: One, priority: P1, effort: s, status: open}\n"
    project = Project.make(tmp_path / "p", gaps, agent="time.sleep(600)")
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("FAKE_LAUNCHD", str(jobs))
    monkeypatch.setenv("FAKE_LAUNCHD_SCALE", "0.05")
    monkeypatch.setenv("PATH", f"{programs}:/usr/local/bin:/usr/bin:/bin")
    monkeypatch.chdir(project.root)
    found = Mac(project, home, capsys)
    yield found
    if found.job:
        os.kill(found.job["keeper"], signal.SIGTERM)
        found.eventually(lambda: not found.job)
    project.clean()


def test_installing_loads_the_job_and_waits_until_the_daemon_answers(mac: Mac) -> None:
    mac.install()

    status = mac.say("service", "status", "--json").json()
    assert mac.file.exists()
    assert (status["active"], status["ready"], status["pid"]) == ("active", True, mac.job["pid"])
    assert (status["daemon"], status["linger"], status["drift"]) == ("running", None, [])
    mac.eventually(mac.agents)
    log = mac.home / "Library" / "Logs" / "chump-orchestrator"
    (file,) = log.glob("*.log")
    assert '"daemon.started"' in file.read_text()


def test_a_first_installation_is_paused(mac: Mac) -> None:
    said = mac.say("service", "install", "--force")

    assert said.code == 0, said.err
    assert "resume" in said.err
    assert mac.say("service", "status", "--json").json()["daemon"] == "paused"


def test_a_job_that_crashes_comes_back_to_the_same_agents(mac: Mac) -> None:
    mac.install()
    before, agents = mac.job, mac.eventually(mac.agents)

    os.kill(before["pid"], signal.SIGKILL)
    mac.eventually(lambda: mac.job["runs"] == 2)

    assert mac.job["pid"] != before["pid"]
    assert mac.agents() == agents
    os.kill(agents[0], 0)


def test_a_job_is_replaced_under_its_agents(mac: Mac) -> None:
    mac.install()
    before, agents = mac.job, mac.eventually(mac.agents)
    settings = mac.project.root / ".chump" / "orchestrator.toml"
    settings.write_text(settings.read_text() + '[log]\nfile = "daemon.log"\n')

    said = mac.install()

    assert "-\t\t<key>CHUMP_LOG_FILE</key>\n" in said.out
    assert mac.job["pid"] != before["pid"]
    assert mac.agents() == agents
    os.kill(agents[0], 0)


def test_uninstalling_ends_the_agents_and_removes_the_file(mac: Mac) -> None:
    mac.install()
    agents = mac.eventually(mac.agents)

    said = mac.say("service", "uninstall", "--yes")

    assert said.code == 0, said.err
    assert not mac.file.exists()
    mac.eventually(lambda: not mac.job)
    with pytest.raises(ProcessLookupError):
        os.kill(agents[0], 0)
    assert mac.say("service", "status").code == 3


def test_uninstalling_can_leave_the_agents_to_their_shims(mac: Mac) -> None:
    mac.install()
    agents = mac.eventually(mac.agents)

    said = mac.say("service", "uninstall", "--keep-agents")

    assert said.code == 0, said.err
    assert not mac.file.exists()
    mac.eventually(lambda: not mac.job)
    os.kill(agents[0], 0)


def test_there_is_no_system_service_on_a_mac(mac: Mac) -> None:
    said = mac.say("service", "install", "--system")

    assert said.code == 69
    assert "--system" in said.err


@pytest.mark.parametrize("abandons", [False, True])
def test_this_launchd_kills_what_a_job_leaves_in_its_group_unless_told_otherwise(
    mac: Mac, tmp_path: Path, abandons: bool
) -> None:
    """The control arm: what the tests above rely on is done, and can be seen."""
    script, file, label = tmp_path / "job.sh", tmp_path / "job.plist", "job"
    script.write_text("sleep 601.5 & echo $! > child; exit 1\n")
    document = {
        "Label": label,
        "ProgramArguments": ["/bin/sh", str(script)],
        "WorkingDirectory": str(tmp_path),
        "StandardOutPath": str(tmp_path / "out"),
        "StandardErrorPath": str(tmp_path / "out"),
        "AbandonProcessGroup": abandons,
    }
    file.write_bytes(plistlib.dumps(document))
    told = Path(os.environ["FAKE_LAUNCHD"]) / f"{label}.json"

    subprocess.run(["launchctl", "bootstrap", "gui/501", str(file)], check=True)
    mac.eventually(lambda: json.loads(told.read_text())["exit"] == 1)

    child = psutil.Process(int((tmp_path / "child").read_text())) if abandons else None
    left = [one for one in psutil.process_iter(["cmdline"]) if one.info["cmdline"] == NAPPING]
    subprocess.run(["launchctl", "bootout", f"gui/501/{label}"], check=True)
    mac.eventually(lambda: not told.exists())
    assert (child in left) is abandons
    if child is not None:
        child.kill()
