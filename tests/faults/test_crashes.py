"""Cases 1 to 4 of the fault catalogue: every step of daemon and shim may be the last one."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time

import pytest

from tests.adapters.shims import at_work_on, marked
from tests.faults import rigs
from tests.faults.conftest import Begin
from tests.faults.trials import BYSTANDER, Trial, wait_until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(240)]

WORKING = (
    'commit(gap + "-made.txt", gap)\nif gap == "OTHER-1":\n    leave("notes.txt", "notes")\nship()'
)
"""One worktree can be removed, the other one is to be kept."""

READY_FIRST = (
    'commit(gap + "-made.txt", gap)\nleave("notes.txt", "notes")\n'
    'print("ready", flush=True)\ntime.sleep(0.3)\nship()'
)

UNTIL_GO = """\
while gap == "ANY-1" and not os.path.exists(os.path.join(here, "go")):
    time.sleep(0.02)
ship()
"""


def around(*steps: str) -> tuple[str, ...]:
    return tuple(f"{step}-{when}" for step in steps for when in ("before", "after"))


CHAINS = {
    # The row says LAUNCHING (d4) before the order is written (d3).
    "d1 to d2": around("d1-expected", "d1", "d2", "d2-lease"),
    "d3 to d5": around("d4", "d3", "d5", "d5-told"),
    "d6 to d7": around("d6", "d7", "d7-outcome"),
    "d8 to d9": around("d8", "d8-half", "d9"),
    "d10": around("d10-lease", "d10-worktree", "d10-thrown", "d10"),
    "start of a recovery": ("d2-after", *around("heal", "attach")),
    "recovery of what never ran": (
        *("d3-after", *around("tombstone"), "sweep-after", *around("d10-lease")),
        *("d10-worktree-before", "d10-thrown-after", "d10-worktree-after"),
        *(*around("abort"), *around("held")),
    ),
    "recovery of what runs": ("d6-before", "attach-after", "d6-before", "d6-after"),
    "recovery of what is over": ("d7-outcome-after", "d10-thrown-after", "d10-after"),
    "delivery of what is over": ("d7-outcome-after", "d8-half-after", "d8-after"),
}
"""Where one daemon after another dies; each has first to recover from the death of the last."""


@pytest.mark.parametrize("chain", CHAINS)
def test_case_01_daemons_are_killed_at_one_step_after_another(begin: Begin, chain: str) -> None:
    trial = begin("ANY-1", agent=WORKING)

    for at in CHAINS[chain]:
        rigs.crash(trial, at)
    trial.settle()

    trial.check()
    assert trial.outcomes() == {"ANY-1": "shipped", BYSTANDER: "shipped"}


@pytest.mark.parametrize("at", ["burial-before", "sweep-after", "burial-after"])
def test_case_01_the_daemon_is_killed_while_it_buries_an_agent(begin: Begin, at: str) -> None:
    """The shim was killed, too."""
    trial = begin("ANY-1", agent=READY_FIRST.replace("(0.3)", "(0.3 if gap == 'OTHER-1' else 9)"))
    program = rigs.shim_program(trial, {"any-1": "s6-after"}, is_held=True)
    rigs.crash(trial, "d6-after:2", shim=program)
    (trial.folder / "crash").touch()
    wait_until((trial.folder / "any-1.done").exists)

    rigs.crash(trial, at)
    trial.settle()

    trial.check()
    assert trial.outcomes()["ANY-1"] == "lost"


def test_case_01_control_without_ids_already_delivered_a_reflection_comes_twice(
    begin: Begin,
) -> None:
    trial = begin("ANY-1", agent=WORKING)
    rigs.crash(trial, "d8-after")

    rigs.run(trial, without=["delivered"])

    with pytest.raises(AssertionError, match="I2"):
        trial.check()


@pytest.mark.parametrize("is_guarded", [True, False])
def test_case_01_control_without_the_one_active_dispatch_a_gap_gets_two_agents(
    begin: Begin, is_guarded: bool
) -> None:
    """The ledger's index is what is left when recovery and leases have failed."""
    trial = begin("ANY-1", agent=UNTIL_GO)
    rigs.crash(trial, "d6-after:2")
    without = ["recovery", "leases", *(() if is_guarded else ("one-active",))]

    rigs.start(trial, "--once", "--gap", "ANY-1", without=without)
    if is_guarded:
        wait_until(lambda: "has an active dispatch already" in trial.log())
    else:
        wait_until(lambda: len(trial.starts("ANY-1")) == 2)
    end(trial)
    (trial.evidence / "go").touch()
    trial.settle()

    if is_guarded:
        trial.check()
        assert len(trial.starts("ANY-1")) == 1
    else:
        with pytest.raises(AssertionError, match="I1"):
            trial.check()


def end(trial: Trial) -> None:
    """Kill the daemon."""
    assert trial.daemon is not None
    trial.daemon.kill()
    trial.daemon.wait()


SHIM = (
    ("s1-before", "s1-after", "s2-before", "s2-after"),
    ("s3-before", "s3-orphaned", "s3-after", "s4-before"),
    ("s4-torn", "s4-after", "s5-before", "s5-after"),
    ("s6-before", "s6-after", "s7-before", "s7-after"),
    ("s8-before", "s8-after", "s9-before", "s9-after"),
    ("s10-before", "s10-torn", "s10-after", "s11-before", "s11-after"),
)
UNRECORDED = {*SHIM[0], *SHIM[1], "s4-torn"}
RECORDED = {"s10-after", "s11-before", "s11-after"}
"""Until when nothing says that there was an agent, and from when its end is told by its shim."""


@pytest.mark.parametrize("steps", SHIM, ids=lambda steps: f"{steps[0]}-to-{steps[-1]}")
@pytest.mark.parametrize("is_seen", [True, False], ids=["seen", "unseen"])
def test_case_02_shims_are_killed_at_every_step(
    begin: Begin, steps: tuple[str, ...], is_seen: bool
) -> None:
    """Each shim at another step, under the eyes of a daemon, or while none runs."""
    gaps = {f"ANY-{number}": step for number, step in enumerate(steps)}
    trial = begin(*gaps, agent=READY_FIRST, slots=len(gaps))
    program = rigs.shim_program(trial, {gap.lower(): step for gap, step in gaps.items()})

    if is_seen:
        rigs.run(trial, shim=program)
    else:
        rigs.crash(trial, f"d5-told-after:{len(gaps)}", shim=program)
    wait_until(lambda: all((trial.folder / f"{gap.lower()}.done").exists() for gap in gaps))
    trial.settle()

    trial.check()
    outcomes = trial.outcomes()
    for gap, step in gaps.items():
        if step in RECORDED:
            assert outcomes[gap] == "shipped", step
        elif step in UNRECORDED and not is_seen:
            # Tried again, unless the daemon saw it just before it died itself.
            assert outcomes[gap] in ("shipped", "spawn_failed"), step
        else:
            assert outcomes[gap] in ("spawn_failed", "lost", "shipped"), step


def test_case_02_control_without_the_barrier_an_agent_runs_that_nobody_knows_of(
    begin: Begin,
) -> None:
    trial = begin("ANY-1", agent=READY_FIRST)
    program = rigs.shim_program(trial, {"any-1": "s4-before"}, pause_s=1.0, without=["barrier"])
    rigs.crash(trial, "d5-told-after:2", shim=program)
    wait_until((trial.folder / "any-1.done").exists)

    trial.settle()

    with pytest.raises(AssertionError, match="I2"):
        trial.check()


@pytest.mark.parametrize("swept", [True, False])
def test_case_02_control_without_parent_death_and_sweep_an_agent_outlives_its_shim(
    begin: Begin, swept: bool
) -> None:
    """Either of the two alone is enough."""
    trial = begin("ANY-1", agent=READY_FIRST + '\ntime.sleep(30 if gap == "ANY-1" else 0)')
    program = rigs.shim_program(trial, {"any-1": "s6-after"}, without=["parent-death"])

    rigs.run(trial, shim=program, without=[] if swept else ["sweep"])

    if swept:
        trial.check()
    else:
        with pytest.raises(AssertionError, match="I3"):
            trial.check()


SEEDS = int(os.environ.get("FAULT_SEEDS", "3"))


@pytest.mark.parametrize("number", range(SEEDS))
def test_case_03_late_shims_and_recovery_agree(begin: Begin, number: int) -> None:
    """Each shim begins up to 500 ms after recovery does, which takes 250 ms to look at it."""
    seed = int(os.environ.get("FAULT_SEED", "0")) + number
    print("seed", seed)
    trial = begin("ANY-1", "ANY-2", "ANY-3", agent="time.sleep(0.3)\n" + WORKING, slots=4)
    program = rigs.shim_program(trial, {f"any-{n}": "" for n in (1, 2, 3)}, late="go", seed=seed)
    rigs.crash(trial, "d5-told-after:4", shim=program)

    rigs.run(trial, at="attach-before", by="go")
    trial.settle()

    trial.check()
    assert set(trial.outcomes().values()) == {"shipped"}


@pytest.mark.parametrize("is_forbidden", [True, False])
def test_case_03_control_without_the_tombstone_a_late_shim_starts_a_second_agent(
    begin: Begin, is_forbidden: bool
) -> None:
    trial = begin("ANY-1", agent='time.sleep(2 if gap == "ANY-1" else 0)\nship()')
    program = rigs.shim_program(trial, {"any-1": ""}, late="rival")
    rigs.crash(trial, "d5-told-after:2", shim=program)

    rigs.run(trial, without=[] if is_forbidden else ["tombstone"])
    late = min(trial.state.glob("d/any-1-*"), key=lambda found: found.stat().st_ctime)
    wait_until(lambda: not trial.processes() and not at_work_on(late))
    trial.settle()

    if is_forbidden:
        trial.check()
    else:
        with pytest.raises(AssertionError, match=r"I1|I2"):
            trial.check()


KILLS = int(os.environ.get("FAULT_KILLS", "25"))
GAPS = 20
STORMY = (
    'time.sleep(0.2)\ncommit(gap + "-made.txt", gap)\nleave("notes.txt", "notes")\n'
    "time.sleep(int.from_bytes(os.urandom(1)) / 128)\nship()"
)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("number", range(max(1, SEEDS // 3)))
def test_case_04_a_storm_of_kills(begin: Begin, number: int) -> None:
    """Daemon, shims and agents, whichever comes."""
    seed = int(os.environ.get("FAULT_SEED", "0")) + number
    print("seed", seed)
    chance = random.Random(seed)
    trial = begin(*(f"ANY-{n}" for n in range(GAPS)), agent=STORMY, slots=4)
    for _ in range(KILLS):
        if trial.daemon is None or trial.daemon.poll() is not None:
            trial.program("resume")  # a row of deaths blows the fuse, as it should
            trial.start("--once", **trial.env)
        time.sleep(chance.uniform(0.1, 1.1))
        kill_something(trial, chance)
    end(trial)
    trial.program("resume")
    mend_origin(trial)
    trial.settle("--pull-wait", "0s")

    mend_origin(trial)
    trial.program("resume")
    trial.settle()

    trial.check(bystander=False)
    assert len(trial.outcomes()) == GAPS + 1


def kill_something(trial: Trial, chance: random.Random) -> None:
    """Kill the daemon, or a shim or an agent that is on record."""
    assert trial.daemon is not None
    what = chance.choice(("daemon", "daemon", "shim_pid", "pid"))
    folders = sorted(trial.state.glob("d/*/running.json"))
    alive = [f for f in folders if not f.with_name("exit.json").exists()]
    if what == "daemon" or not alive:
        end(trial)
        return
    running = chance.choice(alive)
    folder = running.parent
    pid = json.loads(running.read_bytes())[what]
    if pid in (marked(folder.name) if what == "pid" else at_work_on(folder)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def mend_origin(trial: Trial) -> None:
    """Do what a forge does by itself: no killed push keeps it locked, and people close requests."""
    wait_until(lambda: not trial.processes())
    for lock in trial.origin.rglob("*.lock"):
        lock.unlink()
    heads = trial.git("for-each-ref", "--format=%(refname)", "refs/heads/claude", at=trial.origin)
    for head in heads.split():
        trial.git("update-ref", "-d", head, at=trial.origin)
