"""The service under a real systemd: ready, watched, reloaded, started anew, stopped.

Everything here needs root, to make a machine of namespaces.
"""

from __future__ import annotations

import pytest

from tests.service.machine import Machine
from tests.service.projects import Project

pytestmark = pytest.mark.root

BLOCKED = """\
import signal, time
def block(number, frame):
    time.sleep(600)
signal.signal(signal.SIGUSR2, block)
"""
"""Found by Python at its start; a signal then blocks the daemon's only loop, as a bug would."""


@pytest.fixture
def project(machine: Machine) -> Project:
    """A project of `dev`, who is logged in, with two gaps and agents that work on for long."""
    machine.log_in()
    return Project.make(machine, "A-1", "A-2")


def test_a_start_waits_until_the_daemon_is_ready_and_the_status_says_what_it_is_at(
    project: Project,
) -> None:
    project.serve(agents=2)

    told = project.properties()

    assert (told["ActiveState"], told["SubState"], told["Type"]) == ("active", "running", "notify")
    assert project.machine.eventually(
        lambda: "2/2 running, 0 ready" in project.properties()["StatusText"]
    )


def test_the_journal_has_a_record_with_fields_for_every_event(project: Project) -> None:
    project.agent("exit 7")
    project.serve(agents=0)
    journal = project.machine.journal

    settled = project.machine.eventually(lambda: journal("EVENT=dispatch.settled", "GAP=A-1"))

    (record,) = settled
    assert record["_SYSTEMD_USER_UNIT"] == project.unit
    assert record["SYSLOG_IDENTIFIER"] == "chump-orchestrator"
    assert (record["OUTCOME"], record["REASON"], record["PRIORITY"]) == (
        "killed",
        "exit code 7",
        "6",
    )
    assert record["DISPATCH"].startswith("a-1-")
    assert journal(f"DISPATCH={record['DISPATCH']}", "EVENT=dispatch.launched")
    # Whoever owns the service may read its log.
    own = project.machine.out("journalctl", "--user", "-u", project.unit, "GAP=A-1", user="dev")
    assert "exit code 7" in own


def test_a_daemon_whose_loop_is_blocked_is_started_anew_and_takes_its_agents_up(
    project: Project,
) -> None:
    """Reliability, fault 11: the watchdog ends the daemon, and nothing else."""
    project.machine.write("/home/dev/blocked/sitecustomize.py", BLOCKED)
    project.drop_in("Environment=PYTHONPATH=/home/dev/blocked\nWatchdogSec=2\nRestartSec=100ms")
    project.serve(agents=2)
    before, agents = project.properties(), project.agents()

    project.systemctl("kill", "--kill-who=main", "--signal=SIGUSR2", project.unit)

    after = project.machine.eventually(
        lambda: (
            now
            if (now := project.properties())["NRestarts"] == "1"
            and now["ActiveState"] == "active"
            and now["MainPID"] != "0"
            else {}
        )
    )
    assert after["MainPID"] != before["MainPID"]
    assert project.agents() == agents
    assert all(map(project.lives, agents.values()))
    taken = project.machine.journal("EVENT=dispatch.taken_up", f"_PID={after['MainPID']}")
    assert {record["GAP"] for record in taken} == {"A-1", "A-2"}


def test_a_reload_takes_over_good_settings_and_leaves_bad_ones(project: Project) -> None:
    project.serve(agents=2)
    daemon = project.properties()["MainPID"]

    project.configure(above="max_parallel = 5\n")
    good = project.systemctl("reload", project.unit)
    assert project.machine.eventually(lambda: "2/5 running" in project.properties()["StatusText"])
    project.configure("[pick]\nkynd = 'user'\n")
    bad = project.systemctl("reload", project.unit, check=False)

    told = project.properties()
    assert (good.returncode, bad.returncode != 0) == (0, True)
    assert (told["ActiveState"], told["MainPID"]) == ("active", daemon)
    assert "pick.kynd" in project.machine.out(
        "journalctl", "--user", "-u", project.unit, user="dev"
    )
    assert len(project.agents()) == 2


def test_a_hangup_with_bad_settings_is_told_in_the_status(project: Project) -> None:
    """Reliability, fault 14: what is wrong is not taken over, and not forgotten either."""
    project.serve(agents=2)

    project.configure("[pick]\nkynd = 'user'\n")
    project.systemctl("kill", "--kill-who=main", "--signal=SIGHUP", project.unit)

    assert project.machine.eventually(lambda: "kynd" in project.properties()["StatusText"])
    assert project.properties()["ActiveState"] == "active"

    project.configure()
    project.systemctl("kill", "--kill-who=main", "--signal=SIGHUP", project.unit)

    assert project.machine.eventually(lambda: "kynd" not in project.properties()["StatusText"])


def test_a_restart_leaves_the_same_agents_at_work(project: Project) -> None:
    """Promise I8, reliability, fault 16."""
    project.serve(agents=2)
    before, agents = project.properties(), project.agents()

    project.systemctl("restart", project.unit)

    after = project.properties()
    assert after["MainPID"] != before["MainPID"]
    assert (after["ActiveState"], after["Result"]) == ("active", "success")
    assert project.agents() == agents
    # They are in units of their own, so nothing is left over in the daemon's.
    said = project.machine.out("journalctl", "--user", "-u", project.unit, user="dev")
    assert "left-over" not in said
    assert all(map(project.lives, agents.values()))


def test_a_daemon_that_is_killed_comes_back_to_the_same_agents(project: Project) -> None:
    project.drop_in("RestartSec=100ms")
    project.serve(agents=2)
    before, agents = project.properties(), project.agents()

    project.systemctl("kill", "--kill-who=main", "--signal=SIGKILL", project.unit)

    project.machine.eventually(
        lambda: (
            project.properties()["NRestarts"] == "1"
            and project.properties()["ActiveState"] == "active"
        )
    )
    assert project.properties()["MainPID"] != before["MainPID"]
    assert all(map(project.lives, agents.values()))


def test_a_stop_ends_every_agent_within_its_limit(project: Project) -> None:
    """Also those that do not want to: reliability, faults 12 and 18."""
    project.agent("trap '' INT TERM; while :; do sleep 1; done")
    project.serve(agents=2)
    agents = project.agents()

    project.systemctl("stop", project.unit)

    told = project.properties()
    assert (told["ActiveState"], told["Result"]) == ("inactive", "success")
    assert not any(map(project.lives, agents.values()))
    assert project.outcomes() == {"A-1": "cancelled", "A-2": "cancelled"}


def test_a_drain_takes_longer_than_the_limit_of_a_stop(project: Project) -> None:
    """It asks for more time as long as it goes on."""
    project.agent("while [ ! -e /home/dev/go ]; do sleep 0.1; done")
    project.drop_in("TimeoutStopSec=2")
    project.configure('[stop]\non_signal = "drain"\n')
    project.serve(agents=2)

    project.systemctl("stop", "--no-block", project.unit)
    # Longer than the limit: systemd itself tells that it has passed.
    project.machine.run("sleep", "4")
    meanwhile = project.properties()
    project.machine.write("/home/dev/go", "")

    assert (meanwhile["SubState"], len(project.agents())) == ("stop-sigterm", 2)
    project.machine.eventually(lambda: project.properties()["ActiveState"] == "inactive")
    assert project.properties()["Result"] == "success"
    assert set(project.outcomes().values()) == {"stalled"}


def test_settings_that_cannot_be_used_keep_a_daemon_from_starting_until_they_are_mended(
    project: Project,
) -> None:
    project.serve(agents=2)
    project.drop_in("RestartSec=200ms")
    project.systemctl("stop", project.unit)
    project.configure("[pick]\nkynd = 'user'\n")

    start = project.systemctl("start", project.unit, check=False)

    assert start.returncode != 0
    assert "pick.kynd" in project.machine.out(
        "journalctl", "--user", "-u", project.unit, "-n", "20", user="dev"
    )

    project.configure()

    project.machine.eventually(lambda: project.properties()["ActiveState"] == "active")


def test_an_agent_that_uses_too_much_memory_is_killed_and_nothing_else(
    machine_with_limits: Machine,
) -> None:
    """Behaviour P4 and O2, reliability, fault 34: the service stays up, and so do the others."""
    project = Project.make(machine_with_limits, "A-1", "A-2", is_system=True)
    # Where control groups are of version 1 only root's own manager limits memory.
    project.machine.run("chown", "-R", "root:", "/srv")
    project.run_as = "root"
    greedy = "import sys; sys.stdout.write(str(len(bytearray(b'x' * (600 << 20)))))"
    project.agent(f'[ $1 = A-2 ] || exec python3 -c "{greedy}"; exec sleep 600')
    project.configure('[limits]\nmemory = "100MiB"\n')

    project.serve(agents=0)
    (record,) = project.machine.eventually(
        lambda: project.machine.journal("EVENT=dispatch.settled", "GAP=A-1")
    )

    told = project.properties()
    assert (record["OUTCOME"], record["CAUSE"]) == ("killed", "out-of-memory")
    assert (told["ActiveState"], told["NRestarts"]) == ("active", "0")
    assert set(project.agents_at_work()) == {"A-2"}
