"""A project in a machine, with a bare origin, a backlog and a scripted agent; and its service."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from chump_orchestrator.service.naming import unit_of
from chump_orchestrator.service.units import system_units, user_units
from tests.service.machine import DEV_UID, PROGRAMS, Machine
from tests.service.surveys import a_survey

PROGRAM = (f"{PROGRAMS}/bin/chump-orchestrator",)
PATH = ("/home/dev/.local/bin", "/usr/local/bin", "/usr/bin", "/bin")
SYSTEM_USER, SYSTEM_UID = "worker", 1600

SETTINGS = """\
[deadlines]
grace = "1s"
[backend]
use = "custom"
[backend.custom]
argv = ["my-agent", "{gap}"]
[pulls]
use = "git"
interval = "1s"
[retry]
max_attempts = 1
[worktrees]
min_free = "0GiB"
"""

MAKE = """\
set -e
mkdir -p "$1/project/docs" "$1/project/.chump"
git init -q --bare -b main "$1/origin.git"
git init -q -b main "$1/project"
cd "$1/project"
printf 'gaps:\\n' > docs/gaps.yaml
shift
for gap in "$@"; do
    echo "- {id: $gap, title: $gap, priority: P1, effort: s, status: open}" >> docs/gaps.yaml
done
git add docs
git -c user.name=T -c user.email=t@example.org commit -qm Begin
git remote add origin ../origin.git
git push -qu origin main
git remote set-head origin main
"""


class Project:
    """A repository in a machine, and its service; `root` is where it is seen there.

    `user` is who works with it: `dev`, or root for a system unit, which runs as `SYSTEM_USER`.
    """

    def __init__(self, machine: Machine, folder: str, *, is_system: bool = False) -> None:
        self.machine = machine
        self.root = f"{folder}/project"
        self.is_system = is_system
        self.user = "root" if is_system else "dev"
        self.owner = SYSTEM_UID if is_system else DEV_UID
        self.unit_owner = 0 if is_system else DEV_UID
        self.units = "/etc/systemd/system" if is_system else "/home/dev/.config/systemd/user"
        self.run_as = SYSTEM_USER if is_system else "dev"
        # It follows from the path alone, and there are no links on it.
        self.unit = unit_of(Path(self.root))

    @classmethod
    def make(
        cls, machine: Machine, *gaps: str, is_system: bool = False, folder: str = ""
    ) -> Project:
        """Make one with these open gaps, and an agent that works on them for ten minutes."""
        folder = folder or ("/srv" if is_system else "/home/dev")
        project = cls(machine, folder, is_system=is_system)
        if is_system:
            home = f"/var/lib/{SYSTEM_USER}"
            machine.run(
                *("useradd", "--system", "--uid", str(SYSTEM_UID), "--user-group"),
                *("--create-home", "--home-dir", home, SYSTEM_USER),
            )
        machine.run("bash", "-c", MAKE, "make", folder, *(gaps or ("A-1",)), user=project.user)
        project.agent("exec sleep 600")
        project.configure()
        if is_system:
            machine.run("chown", "-R", f"{SYSTEM_USER}:", project.root, f"{folder}/origin.git")
        return project

    def agent(self, script: str) -> None:
        """Have agents be this script for sh, with the gap as `$1`."""
        place = "/usr/local/bin" if self.is_system else "/home/dev/.local/bin"
        text = f"#!/bin/sh\n{script}\n"
        self.machine.write(f"{place}/my-agent", text, mode=0o755, owner=self.unit_owner)

    def configure(self, more: str = "", *, above: str = "") -> None:
        """Write the settings, with `more` behind the usual ones and `above` before their tables."""
        file = f"{self.root}/.chump/orchestrator.toml"
        self.machine.write(file, above + SETTINGS + more, owner=self.owner)

    def say(self, *argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run the program in the project."""
        given = {"user": self.user, "at": self.root} | options
        return self.machine.run("chump-orchestrator", *argv, **given)

    def systemctl(self, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Ask the service manager for something."""
        whose = () if self.is_system else ("--user",)
        return self.machine.run("systemctl", *whose, *words, **({"user": self.user} | options))

    def serve(self, agents: int = 1) -> Project:
        """Have the units that `service install` writes, start them, and wait for the agents."""
        home = f"/var/lib/{SYSTEM_USER}" if self.is_system else "/home/dev"
        origin = str(Path(self.root).with_name("origin.git"))
        seen = a_survey(self.root, home=home, path=PATH, places=(home, self.root, origin))
        units = (
            system_units(seen, PROGRAM, self.run_as)
            if self.is_system
            else user_units(seen, PROGRAM)
        )
        for unit in units:
            self.machine.write(f"{self.units}/{unit.name}", unit.text, owner=self.unit_owner)
        self.systemctl("daemon-reload")
        self.systemctl("start", self.unit)
        self.agents_at_work(agents)
        return self

    def properties(self) -> dict[str, str]:
        """Return what the service manager knows of the unit."""
        told = self.systemctl("show", self.unit).stdout
        return dict(line.split("=", 1) for line in told.splitlines() if "=" in line)

    def drop_in(self, text: str) -> None:
        """Change the unit by a drop-in for its section `Service`."""
        place = f"{self.units}/{self.unit}.d/test.conf"
        self.machine.write(place, f"[Service]\n{text}\n", owner=self.unit_owner)
        self.systemctl("daemon-reload")

    def agents(self) -> dict[str, int]:
        """Return the process id of each gap's agent, once it runs, as the machine has it."""
        found = {}
        for file in self.machine.path(f"{self.root}/.chump/orchestrator/d").glob("*/running.json"):
            if not (file.parent / "exit.json").exists():
                gap = json.loads((file.parent / "spec.json").read_text())["gap"]
                found[str(gap)] = int(json.loads(file.read_text())["pid"])
        return found

    def agents_at_work(self, count: int = 1) -> dict[str, int]:
        """Wait until so many agents run, and return them."""
        self.machine.eventually(lambda: len(self.agents()) == count)
        return self.agents()

    def lives(self, pid: int) -> bool:
        """Say whether a process of the machine lives."""
        return self.machine.run("kill", "-0", str(pid), check=False).returncode == 0

    def outcomes(self) -> dict[str, str]:
        """Return the latest outcome of each gap."""
        told = json.loads(self.say("history", "--json").stdout)["dispatches"]
        return {one["gap"]: one["outcome"] for one in reversed(told)}
