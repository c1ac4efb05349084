"""`service install`, `uninstall`, `status` and `print`, as a user of a real systemd has them.

Everything here needs root, to make a machine of namespaces.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.service.machine import ENVIRONMENTS, PROGRAMS, Machine
from tests.service.projects import Project

pytestmark = pytest.mark.root

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial" / "service.md"
OWN_SETTINGS = "/home/dev/.config/chump-orchestrator/orchestrator.toml"
LINGERING = "/var/lib/systemd/linger/dev"


@pytest.fixture
def project(machine: Machine) -> Project:
    """A project of `dev`, who is logged in; nothing is installed."""
    machine.log_in()
    return Project.make(machine)


def unit_file(project: Project) -> Path:
    return project.machine.path(f"{project.units}/{project.unit}")


def lacks(project: Project, place: str) -> bool:
    return not project.machine.path(place).exists()


def test_two_commands_lead_from_a_clone_to_a_service_with_its_plan_on_the_screen(
    machine: Machine,
) -> None:
    """The journey of docs/tutorial/service.md, with its very commands, `--yes` behind each."""
    page = TUTORIAL.read_text("utf-8")
    first, second, begin = re.findall(
        r"^```sh\nchump-orchestrator (init|service install|resume)\n```$", page, re.MULTILINE
    )
    machine.log_in()
    Project.make(machine, "A-1", "A-2")
    machine.run("git", "clone", "-q", "origin.git", "clone/project", user="dev", at="/home/dev")
    project = Project(machine, "/home/dev/clone")
    machine.write("/home/dev/.local/bin/claude", "#!/bin/sh\nexec sleep 600\n", mode=0o755)
    # There is no GitHub in there, so this user's settings say that there is none.
    machine.write(OWN_SETTINGS, '[pulls]\nuse = "git"\n')

    project.say(*first.split(), "--yes")
    install = project.say(*second.split(), "--yes")

    assert f"{project.unit} is active" in install.stdout
    assert "claude/a-1" in install.stdout
    assert "claude/a-2" in install.stdout
    assert "nothing is dispatched yet" in install.stderr
    assert machine.path(LINGERING).exists()
    assert "paused" in project.properties()["StatusText"]
    assert project.agents() == {}

    project.say(begin)

    assert set(project.agents_at_work(2)) == {"A-1", "A-2"}


def test_a_dry_run_shows_everything_and_changes_nothing(project: Project) -> None:
    said = project.say("service", "install", "--dry-run", "--linger", env={"GH_TOKEN": "s3cret"})

    assert "GH_TOKEN is set in this shell" in said.stderr
    assert "s3cret" not in said.stdout + said.stderr
    lines = said.stdout.splitlines()
    assert f"+WorkingDirectory={project.root}" in lines
    assert [line.split(" '")[0] for line in lines if line and line[0] not in "+-@"] == [
        "loginctl enable-linger dev",
        f"write {project.units}/{project.unit}",
        f"write {project.units}/chump-agents.slice",
        "systemctl --user daemon-reload",
        f"systemctl --user enable {project.unit}",
        f"{PROGRAMS}/bin/chump-orchestrator pause",
        f"systemctl --user start {project.unit}",
    ]
    assert lacks(project, project.units)
    assert lacks(project, LINGERING)
    assert lacks(project, f"{project.root}/.chump/orchestrator")


def test_what_is_up_to_date_is_left_alone(project: Project) -> None:
    project.say("service", "install", "--no-linger")
    before = project.properties()

    again = project.say("service", "install", "--no-linger")

    assert "up to date" in again.stdout
    assert project.properties()["MainPID"] == before["MainPID"]


def test_a_unit_of_ours_that_differs_is_shown_and_overwritten_on_request_only(
    project: Project,
) -> None:
    """Its agents go on, under a daemon with the new unit."""
    project.say("service", "install", "--no-linger", "--no-pause")
    agents = project.agents_at_work()
    old = unit_file(project).read_text()
    more = {"PATH": f"/home/dev/more:{ENVIRONMENTS['dev']['PATH']}"}
    project.machine.run("mkdir", "/home/dev/more", user="dev")

    refused = project.say("service", "install", env=more, check=False)
    kept = unit_file(project).read_text()
    agreed = project.say("service", "install", "--yes", "--no-linger", env=more)

    assert (refused.returncode, kept) == (1, old)
    for said in (refused, agreed):
        assert "+Environment=PATH=/home/dev/more:" in said.stdout
        assert "\n-Environment=PATH=/home/dev/.local/bin:" in said.stdout
    assert "PATH=/home/dev/more:" in unit_file(project).read_text()
    assert project.properties()["ActiveState"] == "active"
    assert project.agents() == agents
    assert all(map(project.lives, agents.values()))


def test_a_unit_that_was_changed_by_hand_is_overwritten_by_force_alone(project: Project) -> None:
    project.say("service", "install", "--no-linger")
    edited = unit_file(project).read_text().replace("WatchdogSec=60", "WatchdogSec=90")
    unit_file(project).write_text(edited)

    refused = project.say("service", "install", "--yes", check=False)
    kept = unit_file(project).read_text()
    forced = project.say("service", "install", "--force", "--no-linger")

    assert (refused.returncode, kept) == (1, edited)
    assert "drop-in" in refused.stderr
    assert "-WatchdogSec=90\n+WatchdogSec=60\n" in forced.stdout
    assert unit_file(project).read_text() != edited


def test_a_slice_that_was_changed_by_hand_stays_as_it_is(project: Project) -> None:
    """It is for all repositories, and its limits are the operator's to choose."""
    project.machine.write(f"{project.units}/chump-agents.slice", "[Slice]\nCPUWeight=20\n")

    said = project.say("service", "install", "--yes", "--no-linger")

    kept = project.machine.path(f"{project.units}/chump-agents.slice").read_text()
    assert kept == "[Slice]\nCPUWeight=20\n"
    assert "stays as it is" in said.stderr


def test_uninstalling_ends_the_agents_and_takes_every_file_away(project: Project) -> None:
    project.say("service", "install", "--no-linger", "--no-pause")
    (agent,) = project.agents_at_work().values()

    asked = project.say("service", "uninstall", check=False)
    stays = project.properties()["ActiveState"]
    said = project.say("service", "uninstall", "--yes")

    assert (asked.returncode, stays) == (1, "active")
    assert "removed" in said.stdout
    assert not project.lives(agent)
    assert [path.name for path in project.machine.path(project.units).iterdir()] == []
    assert project.properties()["LoadState"] == "not-found"
    assert "not installed" in project.say("service", "uninstall").stdout


def test_uninstalling_can_leave_the_agents_to_their_shims(project: Project) -> None:
    project.say("service", "install", "--no-linger", "--no-pause")
    (agent,) = project.agents_at_work().values()

    said = project.say("service", "uninstall", "--keep-agents")

    assert "1 agents go on under their shims" in said.stderr
    assert project.properties()["LoadState"] == "not-found"
    assert project.lives(agent)

    # They are the next daemon's.
    project.say("service", "install", "--no-linger", "--no-pause")

    assert project.agents() == {"A-1": agent}


def test_the_service_of_a_repository_that_is_gone_can_still_be_removed(project: Project) -> None:
    project.serve()
    # In one step: its daemon lives, and may write there while all of it is being removed.
    project.machine.run("mv", project.root, f"{project.root}.gone")

    said = project.say(
        "service", "uninstall", "--yes", "--keep-agents", "--repo-root", project.root, at="/"
    )

    assert "removed" in said.stdout
    assert project.properties()["LoadState"] == "not-found"


def test_a_person_is_asked_before_lingering_and_before_a_unit_is_overwritten(
    project: Project,
) -> None:
    asked = project.say("service", "install", answers="y\n")
    unit_file(project).write_text(unit_file(project).read_text() + "# mine\n")
    no = project.say("service", "install", answers="n\n", check=False)
    kept = unit_file(project).read_text()
    yes = project.say("service", "install", answers="y\n")

    assert "lingering" in asked.stderr
    assert not lacks(project, LINGERING)
    assert (no.returncode, kept.endswith("# mine\n")) == (1, True)
    assert "changed by hand" in yes.stderr
    assert not unit_file(project).read_text().endswith("# mine\n")


def test_one_repository_is_served_by_one_manager_only(project: Project) -> None:
    project.serve()

    said = project.say("service", "install", "--system", user="root", check=False)

    assert said.returncode == 78
    assert f"{project.unit} serves this repository already" in said.stderr


def test_a_service_with_lingering_runs_without_anybody_logged_in(machine: Machine) -> None:
    """Also where nobody is when it is installed: by ssh without a session, or from a script."""
    project = Project.make(machine)

    refused = project.say("service", "install", "--no-linger", check=False)
    project.say("service", "install", "--linger", "--no-pause")

    assert refused.returncode == 69
    assert "--linger" in refused.stderr
    assert machine.out("loginctl", "show-user", "dev", "-p", "Sessions", "--value").strip() == ""
    assert json.loads(project.say("service", "status", "--json").stdout)["linger"] is True
    (agent,) = project.agents_at_work().values()

    # As a boot does it: logind, which knows of nobody yet, starts the managers of those who linger.
    machine.run("systemctl", "stop", "user@1500.service", "systemd-logind.service")
    machine.run("sh", "-c", "rm -f /run/systemd/users/*")
    machine.run("systemctl", "start", "systemd-logind.service")

    machine.eventually(lambda: machine.path("/run/user/1500/systemd/private").exists())
    machine.eventually(lambda: project.properties().get("ActiveState") == "active")
    assert not project.lives(agent)


def test_status_tells_how_the_service_fares_and_what_has_drifted(project: Project) -> None:
    absent = project.say("service", "status", "--json", check=False)
    project.say("service", "install", "--no-linger")
    fine = project.say("service", "status", "--json")
    project.machine.path("/home/dev/.local/bin/my-agent").unlink()
    unit_file(project).write_text(unit_file(project).read_text() + "# mine\n")
    drifted = json.loads(project.say("service", "status", "--json").stdout)
    project.systemctl("stop", project.unit)
    stopped = project.say("service", "status", check=False)

    assert (absent.returncode, json.loads(absent.stdout)["installed"]) == (3, False)
    told = json.loads(fine.stdout)
    assert told | {"pid": 0, "since": "", "says": ""} == {
        "schema_version": 1,
        "unit": project.unit,
        "file": f"{project.units}/{project.unit}",
        "installed": True,
        "scope": "user",
        "enabled": "enabled",
        "active": "active",
        "sub": "running",
        "pid": 0,
        "since": "",
        "says": "",
        "ready": True,
        "restarts": 0,
        "result": "success",
        "drop_ins": [],
        "linger": False,
        "daemon": "paused",
        "drift": [],
    }
    assert told["pid"] == drifted["pid"] > 0
    assert any("changed by hand" in one for one in drifted["drift"])
    assert any(one.startswith("my-agent was not found") for one in drifted["drift"])
    assert stopped.returncode == 3
    assert "inactive" in stopped.stdout


def test_what_print_shows_is_what_systemd_takes_and_what_is_installed(project: Project) -> None:
    printed = project.say("service", "print").stdout
    project.machine.write(f"/home/dev/{project.unit}", printed)

    verified = project.machine.run(
        "systemd-analyze", "--user", "verify", f"/home/dev/{project.unit}", user="dev"
    )
    project.say("service", "install", "--no-linger")

    assert verified.stderr == ""
    assert unit_file(project).read_text() == printed


def test_a_path_that_systemd_would_take_apart_is_written_so_that_it_does_not(
    machine: Machine,
) -> None:
    machine.log_in()
    project = Project.make(machine, folder='/home/dev/100% "my" $HOME')
    machine.run("mkdir", "/home/dev/100%", user="dev")

    project.say("service", "install", "--no-linger", "--no-pause", "--path", "/home/dev/100%")

    told = project.properties()
    assert told["ActiveState"] == "active"
    assert told["WorkingDirectory"] == project.root
    assert set(project.agents_at_work()) == {"A-1"}


def test_a_program_that_is_missing_is_told_before_anything_is_installed(project: Project) -> None:
    project.machine.path("/home/dev/.local/bin/my-agent").unlink()

    said = project.say("service", "install", "--yes", check=False)

    assert said.returncode == 69
    assert "my-agent was not found on PATH" in said.stderr
    assert lacks(project, project.units)


def test_settings_that_cannot_be_used_are_told_before_anything_is_installed(
    project: Project,
) -> None:
    project.configure("[pick]\nkynd = 'user'\n")

    said = project.say("service", "install", "--yes", check=False)

    assert said.returncode == 78
    assert "pick.kynd" in said.stderr
    assert lacks(project, project.units)


def test_a_daemon_in_the_foreground_is_not_run_into(project: Project) -> None:
    project.machine.run(
        "bash",
        "-c",
        "setsid chump-orchestrator run >/dev/null 2>&1 & "
        "until chump-orchestrator status; do sleep 0.1; done",
        user="dev",
        at=project.root,
    )

    said = project.say("service", "install", "--yes", check=False)

    assert said.returncode == 75
    assert "already" in said.stderr
    assert lacks(project, project.units)


def test_a_start_that_fails_says_why(project: Project) -> None:
    project.drop_in(
        "SyslogIdentifier=chump-orchestrator\n"
        "ExecStart=\nExecStart=/bin/sh -c 'echo the disk is on fire; exit 78'"
    )

    said = project.say("service", "install", "--yes", "--no-linger", check=False)

    assert said.returncode == 1
    assert "the disk is on fire" in said.stderr
    assert project.properties()["ActiveState"] == "failed"


def test_without_a_service_manager_it_is_said_what_to_do(project: Project) -> None:
    """Exit 69; and `print` shows a unit all the same, for whatever starts services there."""
    hidden = (
        'mount -t tmpfs none /run/systemd; exec setpriv --reuid dev --regid dev --init-groups "$@"'
    )
    program = f"{PROGRAMS}/bin/chump-orchestrator"

    def without(*words: str) -> tuple[int, str, str]:
        done = project.machine.run(
            *("unshare", "--mount", "sh", "-c", hidden, "hidden", program, "service", *words),
            at=project.root,
            env={"HOME": "/home/dev", "PATH": "/home/dev/.local/bin:/usr/bin:/bin"},
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    install, status, shown = without("install"), without("status"), without("print")

    assert (install[0], status[0], shown[0]) == (69, 69, 0)
    assert "chump-orchestrator run" in install[2]
    assert "ExecStart=" in shown[1]
