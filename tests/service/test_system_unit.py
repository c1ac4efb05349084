"""The system unit: as a user of its own, kept to its places, and open to agents' own sandboxes.

Everything here needs root, to make a machine of namespaces.
"""

from __future__ import annotations

import re

import pytest

from tests.service.machine import Machine
from tests.service.projects import SYSTEM_USER, Project

pytestmark = pytest.mark.root

HIGHEST_EXPOSURE = 3.0

LANDLOCK = "import ctypes; assert ctypes.CDLL(None).syscall(444, None, 0, 1) > 0"
"""Asks for the version of Landlock."""

SECCOMP = (
    "import ctypes, os; number = dict(x86_64=317, aarch64=277)[os.uname().machine];"
    " allow = ctypes.c_uint32(0x7FFF0000);"
    " assert ctypes.CDLL(None).syscall(number, 2, 0, ctypes.byref(allow)) == 0"
)
"""Asks whether there is such an action of filters."""

PROBES = f"""\
try() {{ if sh -c "$2" >/dev/null 2>&1; then echo "$1 yes"; else echo "$1 no"; fi; }}
try own-home 'touch /var/lib/{SYSTEM_USER}/probe'
try repository 'touch /srv/project/probe'
try origin 'touch /srv/origin.git/probe'
try temporary 'touch /tmp/probe /var/tmp/probe'
try others-open-folder 'touch /srv/open/probe'
try other-home 'ls /home/dev'
try become-root 'test "$(id-of-root -u)" = 0'
try other-processes 'cat /proc/1/status'
try user-namespace 'unshare --user --map-root-user true'
try mount-in-namespace 'unshare -Urm mount -t tmpfs none /mnt'
try proc-in-namespace 'unshare -Urmpf --mount-proc true'
try network-namespace 'unshare -Urn true'
try root-in-namespace 'unshare -Urm sh -ec "
    mount -t tmpfs none /mnt; mkdir /mnt/old; /usr/sbin/pivot_root /mnt /mnt/old"'
try landlock '{{python}} -c "{LANDLOCK}"'
try seccomp '{{python}} -c "{SECCOMP}"'
echo end probes
"""
"""What somebody finds that they can do, a line each."""

PLACES = {"own-home": "yes", "repository": "yes", "origin": "yes", "temporary": "yes"}
FORBIDDEN = ("others-open-folder", "other-home", "become-root", "other-processes")
SANDBOXES = (
    "user-namespace",
    "mount-in-namespace",
    "network-namespace",
    "root-in-namespace",
    "landlock",
    "seccomp",
)


@pytest.fixture
def project(machine: Machine) -> Project:
    """A project of a user of its own, for a system unit."""
    return Project.make(machine, is_system=True)


def test_a_system_service_runs_as_the_owner_of_its_repository(project: Project) -> None:
    said = project.say("service", "install", "--yes", "--no-pause")

    (agent,) = project.agents_at_work().values()
    told = project.properties()
    assert (told["User"], told["ActiveState"]) == (SYSTEM_USER, "active")
    assert "is active" in said.stdout
    processes = (f"/proc/{told['MainPID']}", f"/proc/{agent}")
    owners = project.machine.out("stat", "--format=%U", *processes)
    assert owners.split() == [SYSTEM_USER] * 2

    status = project.say("service", "status")
    by_others = project.say("service", "status", "--repo-root", project.root, user="dev")
    removed = project.say("service", "uninstall", "--yes")

    assert "drift  none" in re.sub(" +", "  ", status.stdout)
    assert project.unit in by_others.stdout
    assert "only its user and root can tell" in by_others.stdout
    assert "removed" in removed.stdout
    assert not project.lives(agent)
    left = project.machine.path(project.units).glob("chump*")
    assert [path.name for path in left] == []


def test_only_root_installs_a_system_service_and_never_for_root(project: Project) -> None:
    by_dev = project.say("service", "install", "--system", user="dev", check=False)
    project.machine.run("chown", "-R", "root:", project.root)
    for_root = project.say("service", "install", "--yes", check=False)
    for_nobody = project.say("service", "install", "--yes", "--as", "no-such-user", check=False)

    assert by_dev.returncode in (77, 78)
    assert (for_root.returncode, for_nobody.returncode) == (78, 78)
    assert "--as USER" in for_root.stderr
    assert "useradd" in for_nobody.stderr
    assert not list(project.machine.path(project.units).glob("chump*"))


def test_agents_reach_their_places_and_no_others_and_can_make_sandboxes(project: Project) -> None:
    """Each has a control arm: what the same user can do without the unit."""
    machine = project.machine
    machine.run("mkdir", "-m", "777", "/srv/open")
    machine.run("install", "-m", "4755", "/usr/bin/id", "/usr/local/bin/id-of-root")
    machine.run("chmod", "755", "/home/dev")
    python = machine.out("readlink", "-f", "/opt/chump-orchestrator/bin/python").strip()
    probes = PROBES.replace("{python}", python)
    machine.write("/usr/local/bin/probes", f"#!/bin/sh\n{probes}", mode=0o755, owner=0)
    project.agent("probes > /srv/project/found; exec sleep 600")
    as_worker = ("setpriv", "--reuid", SYSTEM_USER, "--regid", SYSTEM_USER, "--clear-groups")

    outside = dict(line.split() for line in machine.out(*as_worker, "probes").splitlines())
    project.serve()
    found = machine.path(f"{project.root}/found")
    machine.eventually(lambda: found.exists() and "end" in found.read_text())

    inside = dict(line.split() for line in found.read_text().splitlines())
    assert outside | PLACES | dict.fromkeys(FORBIDDEN, "yes") == outside
    assert inside | PLACES | dict.fromkeys(FORBIDDEN, "no") == inside
    assert {name: inside[name] for name in SANDBOXES} == {name: outside[name] for name in SANDBOXES}
    # This machine covers a part of /proc, which keeps sandboxes outside from one of their own.
    assert inside["proc-in-namespace"] == inside["mount-in-namespace"]


def test_the_system_unit_is_little_exposed(project: Project) -> None:
    project.serve()

    told = project.machine.out(
        "systemd-analyze",
        "security",
        "--offline=yes",
        "--no-pager",
        f"{project.units}/{project.unit}",
    )

    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", told)
    assert found is not None
    assert float(found[1]) < HIGHEST_EXPOSURE


def test_a_system_service_keeps_its_agents_over_a_restart_and_ends_them_with_a_stop(
    project: Project,
) -> None:
    project.serve()
    before, agents = project.properties(), project.agents()

    project.systemctl("restart", project.unit)
    restarted, lived = project.properties(), [project.lives(pid) for pid in agents.values()]
    project.systemctl("stop", project.unit)

    assert restarted["MainPID"] != before["MainPID"]
    assert restarted["ActiveState"] == "active"
    assert lived == [True]
    assert not any(map(project.lives, agents.values()))
    assert project.properties()["Result"] == "success"


def test_a_file_for_credentials_reaches_the_agent_that_asks_for_it(project: Project) -> None:
    """From a folder that root alone can read, and under a name of its own."""
    secret = "s3cret-value-of-a-token"
    machine = project.machine
    machine.write(
        "/etc/chump-orchestrator/credentials/my_token", f"{secret}\n", mode=0o600, owner=0
    )
    project.agent('printf %s "$MY_TOKEN" > /srv/project/token; exec sleep 600')
    project.configure(above='pass_env = ["MY_TOKEN"]\n')

    project.say("service", "install", "--yes", "--no-pause")

    token = machine.path(f"{project.root}/token")
    machine.eventually(lambda: token.exists() and token.read_text() == secret)
    unit = machine.path(f"{project.units}/{project.unit}").read_text()
    assert secret not in unit
