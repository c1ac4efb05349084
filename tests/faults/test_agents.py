"""Cases 18 to 34 of the fault catalogue: what agents may do, and what may become of them."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.projects import gaps
from tests.faults.altered import CANNOT_FORK, NO_SUBREAPER, calling, shims
from tests.faults.conftest import Begin
from tests.faults.rewired import settle_rewired, start_rewired
from tests.faults.trials import BYSTANDER, Trial

pytestmark = [pytest.mark.faults, pytest.mark.timeout(240)]

ODDITIES = """\
def stay():
    while True:
        time.sleep(1)
def deaf():
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
def stray(environ=os.environ):
    # A grandchild in a session of its own, of which nobody is the parent.
    child = os.fork()
    if child == 0:
        os.setsid()
        deaf()
        if os.fork() == 0:
            sign("strays", gap, str(os.getpid()))
            os.execve("/bin/sleep", ["sleep", "600"], environ)
        os._exit(0)
    os.waitpid(child, 0)
    while not os.path.exists(os.path.join(here, "strays")):
        time.sleep(0.01)
"""

AT_ONCE = """\
match gap:
    case "TERM-18":
        deaf()
        stay()
    case "WRAP-19":
        # The shell outlives what it waits for, and goes on with the next command.
        os.execvp("sh", ["sh", "-c", "trap : INT TERM; sleep 600; sleep 600; true"])
    case "HELD-20":
        subprocess.Popen(["sleep", "600"], start_new_session=True)
    case "FORK-21":
        stray()
    case "BARE-22":
        stray({})
    case "LOUD-26":
        line = b"x" * 127 + b"\\n"
        for _ in range(64):
            os.write(1, line * 8192)
    case "NONE-28":
        sys.exit(0)
    case "LATE-29":
        ship()
        sys.exit(1)
    case "MUTE-30":
        os.close(1)
        os.close(2)
        time.sleep(1)
        for _ in range(2):
            os.open(os.devnull, os.O_WRONLY)
    case "STOP-31":
        os.kill(os.getpid(), signal.SIGSTOP)
ship()
"""

LIMITED = ("TERM-18", "WRAP-19", "STOP-31")
UNLIMITED = ("HELD-20", "FORK-21", "BARE-22", "LOUD-26", "NONE-28", "LATE-29", "MUTE-30")


@dataclass(frozen=True)
class Drained:
    """A backlog of odd agents, drained; what is told of each, and which promises were broken."""

    trial: Trial
    told: dict[str, dict[str, Any]]
    broken: list[str]

    def how(self, gap: str) -> tuple[str, str | None]:
        """Return outcome and cause of a gap, once it is sure that all promises were kept."""
        assert not self.broken, self.broken
        assert self.trial.left()["processes"] == []
        return self.told[gap]["outcome"], self.told[gap]["cause"]

    def exit(self, gap: str) -> dict[str, Any]:
        (path,) = self.trial.state.glob(f"d/{gap.lower()}-*/exit.json")
        found: dict[str, Any] = json.loads(path.read_text())
        return found


@pytest.fixture(scope="module")
def drained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drained]:
    """All that may run side by side, in one run: none of them may harm another one."""
    ids = (*LIMITED, *UNLIMITED)
    folder = tmp_path_factory.mktemp("odd") / "t"
    trial = Trial.begin(folder, *ids, agent=ODDITIES + AT_ONCE, slots=len(ids) + 1)
    trial.write_backlog(gaps(*LIMITED, deadline="3s") + gaps(*UNLIMITED, BYSTANDER))
    try:
        trial.settle()
        told = {one["gap"]: one for one in trial.json("history")["dispatches"]}
        yield Drained(trial, told, [*trial._objections(bystander=True)])
    finally:
        trial.clean()


def strays(trial: Trial) -> list[int]:
    """Return those that the agents have left behind on purpose and that live."""
    pids = [int(line[1]) for line in trial.noted("strays")]
    return [pid for pid in pids if Path(f"/proc/{pid}/cmdline").exists() and not is_dead(pid)]


def is_dead(pid: int) -> bool:
    """Whether only its entry is left, for whoever is to reap it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def end_strays(trial: Trial) -> None:
    for pid in strays(trial):
        os.kill(pid, signal.SIGKILL)


def set_setting(trial: Trial, old: str, new: str) -> None:
    path = trial.root / ".chump" / "orchestrator.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def may_try_again(trial: Trial) -> None:
    set_setting(trial, "max_attempts = 1", 'max_attempts = 2\nbase = "100ms"')


def test_case_18_who_ignores_term_is_killed_at_the_deadline(drained: Drained) -> None:
    assert drained.how("TERM-18") == ("killed", "deadline")
    assert drained.exit("TERM-18")["signal"] == signal.SIGKILL


def test_case_19_a_wrapper_that_passes_nothing_on_is_ended_with_what_it_wraps(
    drained: Drained,
) -> None:
    """The second rung is for the whole tree, so what is wrapped hears of it all the same."""
    assert drained.how("WRAP-19") == ("killed", "deadline")
    assert drained.exit("WRAP-19")["killed_by"] == "deadline"


def test_case_20_a_grandchild_that_holds_stderr_holds_nothing_up(drained: Drained) -> None:
    assert drained.how("HELD-20") == ("shipped", None)
    assert drained.exit("HELD-20")["swept"] == 1


def test_case_21_a_double_fork_into_a_session_of_its_own_is_swept(drained: Drained) -> None:
    assert drained.how("FORK-21") == ("shipped", None)
    assert drained.exit("FORK-21")["swept"] == 1
    assert strays(drained.trial) == []


def test_case_21_control_without_the_subreaper(begin: Begin) -> None:
    trial = begin("FORK-21", agent=ODDITIES + AT_ONCE)
    change = calling(shims(NO_SUBREAPER, trial.folder))
    try:
        assert settle_rewired(trial, change) == 0

        with pytest.raises(AssertionError, match="I3"):
            trial.check()
    finally:
        end_strays(trial)


def test_case_22_what_has_cleared_its_environment_is_swept_too(drained: Drained) -> None:
    assert drained.how("BARE-22") == ("shipped", None)
    assert drained.exit("BARE-22")["swept"] == 1
    assert strays(drained.trial) == []


ORPHANED = """\
if os.path.exists(os.path.join(here, "calm")) or gap != "LOST-22":
    ship()
    sys.exit()
stray({} if os.path.exists(os.path.join(here, "bare")) else os.environ)
stay()
"""


def lose_the_shim(trial: Trial, change: str = "") -> None:
    """Kill the shim of an agent that has a stray, and let the daemon find out."""
    daemon = start_rewired(trial, change, "--once", "--gap", "LOST-22")
    trial.eventually(lambda: trial.noted("strays"))
    (running,) = trial.state.glob("d/lost-22-*/running.json")
    os.kill(json.loads(running.read_text())["shim_pid"], signal.SIGKILL)
    assert daemon.wait(60) == 1
    assert trial.outcomes() == {"LOST-22": "lost"}


def test_case_22_what_a_dead_shim_leaves_is_known_by_its_environment(begin: Begin) -> None:
    trial = begin("LOST-22", agent=ODDITIES + ORPHANED)

    lose_the_shim(trial)

    assert strays(trial) == []
    trial.settle()
    trial.check()


def test_case_22_control_without_the_sweep_by_the_marker(begin: Begin) -> None:
    trial = begin("LOST-22", agent=ODDITIES + ORPHANED)
    try:
        lose_the_shim(trial, calling("no_marker_sweep()"))
        trial.settle()

        with pytest.raises(AssertionError, match="I3"):
            trial.check()
    finally:
        end_strays(trial)


def test_case_22_a_gap_whose_agent_cannot_be_proved_gone_is_not_tried_again(begin: Begin) -> None:
    """Promise I1: without shim and marker nobody can tell what lives; a person has to look."""
    trial = begin("LOST-22", agent=ODDITIES + ORPHANED)
    may_try_again(trial)
    (trial.evidence / "bare").touch()
    try:
        lose_the_shim(trial)
        trial.settle()

        assert strays(trial) != []
        assert len(trial.starts("LOST-22")) == 1
        assert "parked" in trial.program("why", "LOST-22").stdout
    finally:
        end_strays(trial)
    (trial.evidence / "calm").touch()
    trial.program("release", "LOST-22")
    trial.settle()
    trial.check()
    assert trial.outcomes()["LOST-22"] == "shipped"


BOMB = """\
if gap != "BOMB-23":
    ship()
    sys.exit()
deaf()
fuse = time.monotonic() + 20  # should the shim fail, it ends by itself
for n in range(2000):
    if os.fork() == 0:
        if n % 2:
            os.setsid()
        while time.monotonic() < fuse:
            time.sleep(1)
        os._exit(0)
sys.exit(3)
"""


def test_case_23_a_process_bomb_is_cleared(begin: Begin) -> None:
    trial = begin("BOMB-23", agent=ODDITIES + BOMB)

    trial.settle()

    trial.check()
    (path,) = trial.state.glob("d/bomb-23-*/exit.json")
    ended = json.loads(path.read_text())
    assert (ended["code"], ended["swept"], ended["survivors"]) == (3, 2000, 0)
    assert trial.outcomes()["BOMB-23"] == "killed"


ENDLESS = """\
if gap == "LONG-24":
    chunk = b"ERROR " + b"x" * ((1 << 20) - 6)
    for _ in range(int(open(os.path.join(here, "MiB")).read())):
        os.write(2, chunk)
    sys.exit(3)
ship()
"""

ROOM_MIB = 140
"""What a daemon with two agents needs, and a good deal more."""


def drain_endless_lines(trial: Trial, size_mib: int, *changes: str) -> None:
    """Have an agent write one line of so many MiB, and see what the daemon needed for it."""
    (trial.evidence / "MiB").write_text(str(size_mib))
    daemon = start_rewired(trial, calling(*changes), "--once")
    most = 0
    while daemon.poll() is None:
        most = max(most, high_water_mib(daemon.pid))
        time.sleep(0.01)
    assert daemon.returncode == 1
    assert 0 < most < ROOM_MIB, f"{most} MiB"


def high_water_mib(pid: int) -> int:
    """Return the most memory that a program ever held, in MiB; 0 for one that has ended.

    What `wait4` tells will not do: a child's mark begins with what its parent held at the fork.
    """
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) >> 10 if found else 0


def test_case_24_stderr_without_a_line_s_end_fills_neither_memory_nor_disk(begin: Begin) -> None:
    trial = begin("LONG-24", agent=ENDLESS)

    drain_endless_lines(trial, 100)

    trial.check()
    logs = sum(path.stat().st_size for path in trial.state.glob("d/long-24-*/stderr*.log"))
    assert logs < 16 << 20
    assert trial.outcomes()["LONG-24"] == "killed"


def test_case_24_control_without_the_cap_on_lines(begin: Begin) -> None:
    trial = begin("LONG-24", agent=ENDLESS)

    with pytest.raises(AssertionError, match="MiB"):
        drain_endless_lines(trial, 60, "endless_lines()")


NO_TEXT = """\
if gap == "TEXT-25":
    told = b"ERROR \\xff\\xfe\\x00\\x1b[31mred\\x1b]0;title\\x07 \\xe2\\x80\\xaeback"
    told += b" \\xc2\\x9b2J\\r end\\n"
    os.write(2, told)
    os.write(1, told)
    while not os.path.exists(os.path.join(here, "go")):
        time.sleep(0.05)
    sys.exit(3)
ship()
"""

CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""What moves a terminal or turns text around; tabs and the ends of lines are harmless."""


def test_case_25_what_is_no_text_reaches_no_terminal_and_no_row(begin: Begin) -> None:
    trial = begin("TEXT-25", agent=NO_TEXT)
    daemon = trial.start(**trial.env)
    trial.eventually(
        lambda: any("end" in (d["last_line"] or "") for d in trial.json("status")["dispatches"])
    )
    shown = [trial.program("status").stdout, on_a_terminal(trial, "logs", "TEXT-25")]
    (trial.evidence / "go").touch()
    trial.eventually(lambda: trial.log().count("dispatch.settled") == 2)
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(60) == 0

    asked = (("history",), ("why", "TEXT-25"), ("report",), ("status",))
    shown += [trial.program(*words).stdout for words in asked]
    shown += [json.dumps(trial.json("history"), ensure_ascii=False), trial.log(), *rows(trial)]
    assert "end" in shown[1]
    assert any("ERROR" in row for row in rows(trial))
    for text in shown:
        assert CONTROLS.findall(text) == [], text
    trial.check()


def on_a_terminal(trial: Trial, *args: str) -> str:
    """Return what a command shows on a terminal; a pipe is given the agent's very bytes."""
    ours, theirs = pty.openpty()
    with FileIO(ours) as screen:
        shown = subprocess.Popen(
            [sys.executable, "-m", "chump_orchestrator", *args],
            cwd=trial.root,
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs)
        told = b""
        with contextlib.suppress(OSError):  # that is how the end of a terminal reads
            while piece := screen.read(4096):
                told += piece
        assert shown.wait(60) == 0
    return told.decode().replace("\r\n", "\n")


def rows(trial: Trial) -> list[str]:
    """Return every text in the shared journal."""
    database = trial.root / "sessions" / "chump_memory.db"
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        return [
            str(value)
            for table in ("chump_reflections", "chump_improvement_targets")
            for row in connection.execute(f"SELECT * FROM {table}")
            for value in row
        ]


def test_case_26_very_much_standard_output_holds_nothing_up(drained: Drained) -> None:
    """64 MiB of it; a gigabyte is written in tests of the whole program."""
    assert drained.how("LOUD-26") == ("shipped", None)
    assert drained.exit("LOUD-26")["bytes"]["stdout"] > 64 << 20
    logs = drained.trial.state.glob("d/loud-26-*/stdout*.log")
    assert sum(path.stat().st_size for path in logs) < 16 << 20


def test_case_27_a_brief_of_five_megabytes_that_nobody_reads(begin: Begin) -> None:
    """Of which the brief takes the first; a pipe would hold a sixteenth of that."""
    trial = begin("BULK-27", agent="if gap == 'BULK-27':\n    os.close(0)\nship()")
    rules = trial.root / "docs" / "CHUMP_DISPATCH_RULES.md"
    rules.write_text("rule\n" * (1 << 20))
    trial.git("add", "docs")
    trial.git("-c", "user.name=T", "-c", "user.email=t@example.org", "commit", "-qm", "Rules")
    trial.git("push", "-q", "origin", "main")

    trial.settle()

    trial.check()
    (prompt,) = trial.state.glob("d/bulk-27-*/prompt.txt")
    assert prompt.stat().st_size > 1 << 20
    assert trial.outcomes()["BULK-27"] == "shipped"


def test_case_28_exit_code_0_without_a_request_is_no_success(drained: Drained) -> None:
    assert drained.how("NONE-28") == ("stalled", "no-pr")


def test_case_29_exit_code_1_after_the_merge_is_one(drained: Drained) -> None:
    assert drained.how("LATE-29") == ("shipped", None)
    assert drained.exit("LATE-29")["code"] == 1


def test_case_30_who_closes_its_streams_is_not_taken_for_gone(drained: Drained) -> None:
    assert drained.how("MUTE-30") == ("shipped", None)
    assert drained.exit("MUTE-30")["active_s"] > 1


def test_case_31_who_is_stopped_is_ended_at_the_deadline(drained: Drained) -> None:
    assert drained.how("STOP-31") == ("killed", "deadline")


FREEZER = Path("/sys/fs/cgroup/freezer")

UNKILLABLE = """\
if gap != "FROZ-32" or os.path.exists(os.path.join(here, "calm")):
    ship()
    sys.exit()
child = os.fork()
if child == 0:
    time.sleep(600)
freezer = open(os.path.join(here, "freezer")).read()
for name, value in (("cgroup.procs", str(child)), ("freezer.state", "FROZEN")):
    with open(os.path.join(freezer, name), "w") as file:
        file.write(value)
sys.exit(3)
"""


@pytest.fixture
def freezer() -> Iterator[Path]:
    group = FREEZER / f"chump-test-{uuid.uuid4().hex[:12]}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(
            f"nothing here is beyond the reach of KILL: no freezer of the first kind, {error}"
        )
    yield group
    (group / "freezer.state").write_text("THAWED")
    for _ in range(100):
        if not (group / "cgroup.procs").read_text():
            break
        signal.sigtimedwait((), 0.05)
    group.rmdir()


@pytest.mark.root
def test_case_32_who_cannot_be_killed_parks_the_gap(begin: Begin, freezer: Path) -> None:
    """Promise I1: not tried again, though its exit code alone would allow it."""
    trial = begin("FROZ-32", agent=UNKILLABLE)
    may_try_again(trial)
    (trial.evidence / "freezer").write_text(str(freezer))

    trial.settle()
    trial.settle()

    assert len(trial.starts("FROZ-32")) == 1
    assert "parked" in (why := trial.program("why", "FROZ-32").stdout)
    assert "could not be proved" in why
    (freezer / "freezer.state").write_text("THAWED")
    trial.eventually(lambda: not (freezer / "cgroup.procs").read_text())
    (trial.evidence / "calm").touch()
    trial.program("release", "FROZ-32")
    trial.settle()
    trial.check()
    assert trial.outcomes()["FROZ-32"] == "shipped"


CLAUDE = """\
[backend.claude]
program = {program}
extra_args = {args}
"""

ROUTES = "routes:\n- {match: {priority: P0}, candidates: [{backend: claude}]}\n"


def not_executable(folder: Path) -> str:
    program = folder / "program"
    program.write_text("#!/bin/sh\n")
    return str(program)


@pytest.mark.parametrize("fault", ["missing", "not-executable", "too-long", "no-format"])
def test_case_33_a_program_that_cannot_be_executed(
    begin: Begin, tmp_path: Path, fault: str
) -> None:
    """The gap fails, its backend is parked, and others go on with theirs (behaviour A4)."""
    program = {
        "missing": "/no/such/program",
        "not-executable": not_executable(tmp_path),
        "too-long": sys.executable,  # E2BIG: one argument of 128 KiB
        "no-format": not_executable(tmp_path),
    }[fault]
    if fault == "no-format":
        Path(program).write_bytes(b"\x00\x01")
        Path(program).chmod(0o755)
    args = json.dumps(["x" * 131_072] if fault == "too-long" else [])
    trial = begin(more=CLAUDE.format(program=json.dumps(program), args=args), slots=1)
    trial.write_backlog(gaps("ANY-1").replace("P1", "P0") + gaps(BYSTANDER))
    table = trial.root / "docs" / "dispatch" / "routing.yaml"
    table.parent.mkdir()
    table.write_text(ROUTES)

    trial.settle("--yes")

    trial.check()
    assert trial.outcomes()["ANY-1"] == "spawn_failed"
    assert trial.starts("ANY-1") == []
    assert trial.left()["worktrees"] == []


def test_case_33_a_worktree_that_vanishes_before_the_start_harms_no_other_gap(
    begin: Begin,
) -> None:
    trial = begin("ANY-1", slots=1)

    assert settle_rewired(trial, calling("no_worktree()")) == 1

    trial.check()
    assert trial.outcomes()["ANY-1"] == "spawn_failed"
    assert trial.starts("ANY-1") == []


def test_case_33_a_machine_without_a_process_left_is_tried_again(begin: Begin) -> None:
    """EAGAIN at the fork of the agent; it passes."""
    if os.getuid() == 0 and not Path("/sys/fs/cgroup/pids").is_dir():
        pytest.skip("no limit of processes holds for root here")
    trial = begin("ANY-1", slots=1)
    may_try_again(trial)
    change = calling(shims(CANNOT_FORK, trial.folder))

    assert settle_rewired(trial, change) == 0

    assert "Resource temporarily unavailable" in trial.log()
    trial.check()
    assert trial.outcomes() == {"ANY-1": "shipped", BYSTANDER: "shipped"}
    assert len(trial.starts()) == 2


@pytest.mark.parametrize("spare", [20, 25])
def test_case_33_a_daemon_short_of_descriptors_loses_nothing(begin: Begin, spare: int) -> None:
    """EMFILE, anywhere. What was not done for want of them is done by the next daemon."""
    trial = begin("ANY-1", "ANY-2", "ANY-3", agent="time.sleep(0.5)\nship()", slots=4)
    set_setting(trial, "max_attempts = 1", 'max_attempts = 9\nbase = "100ms"')
    daemon = start_rewired(trial, calling(f"few_descriptors({spare})"), "--once")
    try:
        daemon.wait(8)
    except subprocess.TimeoutExpired:
        daemon.send_signal(signal.SIGTERM)
        daemon.wait(60)

    trial.settle()

    trial.check()
    assert set(trial.outcomes().values()) == {"shipped"}


GREEDY = """\
if gap == "HUGE-34":
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (1 << 28, 1 << 28))
    bytearray(1 << 30)
ship()
"""

CONFINED = """\
if gap == "HUGE-34":
    with open(os.path.join(open(os.path.join(here, "group")).read(), "cgroup.procs"), "w") as file:
        file.write(str(os.getpid()))
    bytearray(b"x" * (1 << 28))
ship()
"""


def test_case_34_who_was_refused_memory_and_says_so(begin: Begin) -> None:
    trial = begin("HUGE-34", agent=GREEDY)

    trial.settle()

    trial.check()
    told = {one["gap"]: one for one in trial.json("history")["dispatches"]}
    assert (told["HUGE-34"]["outcome"], told["HUGE-34"]["cause"]) == ("killed", "out-of-memory")


MEMORY = Path("/sys/fs/cgroup/memory")


@pytest.fixture
def little_memory() -> Iterator[Path]:
    group = MEMORY / f"chump-test-{uuid.uuid4().hex[:12]}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"nobody is killed for memory alone here: {error}")
    (group / "memory.limit_in_bytes").write_text(str(64 << 20))
    yield group
    group.rmdir()


@pytest.mark.root
def test_case_34_who_was_killed_for_memory_harms_no_other(
    begin: Begin, little_memory: Path
) -> None:
    """The agent's last words say nothing of it: what is known is the signal."""
    trial = begin("HUGE-34", agent=CONFINED)
    (trial.evidence / "group").write_text(str(little_memory))

    trial.settle()

    trial.check()
    told = {one["gap"]: one for one in trial.json("history")["dispatches"]}
    assert (told["HUGE-34"]["outcome"], told["HUGE-34"]["reason"]) == ("killed", "signal 9")
