"""`doctor` of a service that a real systemd runs, as its user and as others have it.

Everything here needs root, to make a machine of namespaces.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.service.machine import ENVIRONMENTS, PROGRAMS, Machine
from tests.service.projects import SYSTEM_USER, Project

pytestmark = pytest.mark.root

SERVICE = ("service", "service-path", "service-drift", "lingering", "daemon", "agent")


def found(project: Project, *names: str, **options: Any) -> dict[str, Any]:
    """Return what each check found, by its name."""
    said = project.say("doctor", "--json", *names, check=False, **options)
    return {one["name"]: one for one in json.loads(said.stdout)["checks"]}


def statuses(checks: dict[str, Any]) -> dict[str, str]:
    return {name: one["status"] for name, one in checks.items()}


def test_of_an_installed_service_it_is_told_what_keeps_it_from_its_work(machine: Machine) -> None:
    machine.log_in()
    project = Project.make(machine)
    project.say("service", "install", "--yes", "--no-pause", "--no-linger")
    project.agents_at_work()

    healthy = found(project, *SERVICE)
    # This shell finds the agent still, in a folder that the service has never heard of.
    machine.run("mv", "/home/dev/.local/bin/my-agent", "/home/dev/my-agent")
    more = {"PATH": f"/home/dev:{ENVIRONMENTS['dev']['PATH']}"}
    without = found(project, "agent", "service-path", env=more)
    machine.run("mv", "/home/dev/my-agent", "/home/dev/.local/bin/my-agent")
    unit = machine.path(f"{project.units}/{project.unit}")
    unit.write_text(unit.read_text().replace("WatchdogSec=60", "WatchdogSec=0"))
    edited = found(project, "service-drift")
    machine.path("/var/lib/systemd/linger").mkdir(parents=True, exist_ok=True)
    machine.path("/var/lib/systemd/linger/dev").touch()
    lingering = found(project, "lingering")

    assert statuses(healthy) == {
        "service": "ok",
        "service-path": "ok",
        "service-drift": "ok",
        "lingering": "warn",
        "daemon": "ok",
        "agent": "ok",
    }
    assert healthy["daemon"]["found"].startswith("it runs (pid ")
    assert statuses(without) == {"agent": "fail", "service-path": "fail"}
    assert "this shell finds /home/dev/my-agent" in without["service-path"]["remedy"]
    assert statuses(edited) == {"service-drift": "warn"}
    assert "changed by hand" in edited["service-drift"]["found"]
    assert statuses(lingering) == {"lingering": "ok"}


def test_a_variable_of_this_shell_is_none_of_the_service(machine: Machine) -> None:
    """What its own manager was told, it has."""
    machine.log_in()
    project = Project.make(machine)
    project.configure(above='pass_env = ["MY_*"]\n')
    machine.write(
        "/home/dev/.local/bin/gh",
        '#!/bin/sh\ncase "$1" in --version) echo gh version 2.60.0;; *) printf "HTTP/2.0 200 OK\\n'
        'Date: x\\r\\n\\r\\n{}"; env > /home/dev/gh-has;; esac\n',
        mode=0o755,
    )
    file = f"{project.root}/.chump/orchestrator.toml"
    text = machine.path(file).read_text().replace('use = "git"', 'use = "gh"')
    machine.write(file, text)
    project.systemctl("set-environment", "GH_REPO=acme/anvil", "FROM_MANAGER=1")
    project.say("service", "install", "--yes", "--no-linger")

    checks = found(project, "gh", env={"FROM_SHELL": "1"})

    had = machine.path("/home/dev/gh-has").read_text().splitlines()
    assert checks["gh"]["status"] == "ok"
    assert "FROM_MANAGER=1" in had
    assert "FROM_SHELL=1" not in had


def test_a_system_service_is_examined_by_its_user(machine: Machine) -> None:
    project = Project.make(machine, is_system=True)
    project.say("service", "install", "--yes", "--no-pause")
    project.agents_at_work()
    own = ("setpriv", "--reuid", SYSTEM_USER, "--regid", SYSTEM_USER, "--init-groups", "--")
    program = f"{PROGRAMS}/bin/chump-orchestrator"
    home = {"HOME": f"/var/lib/{SYSTEM_USER}", "USER": SYSTEM_USER}

    said = machine.run(*own, program, "doctor", "--json", at=project.root, env=home, check=False)
    by_root = found(project, "repository")

    checks = {one["name"]: one for one in json.loads(said.stdout)["checks"]}
    amiss = {name: one for name, one in checks.items() if one["status"] in ("fail", "warn")}
    assert amiss == {}
    assert checks["service"]["found"] == f"{project.unit}, a system service"
    assert checks["service-path"]["status"] == "ok"
    assert "safe.directory" in by_root["repository"]["remedy"]
