"""How a shim ends an agent and everything that the agent started (behaviour P2, promise I3)."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.adapters.shims import SHIM, Shim, eventually, marked, python

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

SLACK_S = 10.0
"""What a busy machine may add to a bound."""

STUBBORN = (
    "import signal, time\n"
    "for n in (signal.SIGINT, signal.SIGTERM): signal.signal(n, signal.SIG_IGN)\n"
)

FAMILY = (
    STUBBORN + "import os\n"
    "if os.fork() == 0:\n"
    "    while True: time.sleep(1)\n"  # a plain child
    "if os.fork() == 0:\n"
    "    os.setsid()\n"  # one with a session of its own
    "    while True: time.sleep(1)\n"
    "if os.fork() == 0:\n"
    "    os.setsid()\n"
    "    if os.fork(): os._exit(0)\n"  # one that nobody is the parent of
    "    while True: time.sleep(1)\n"
    "os.wait()\n"
    "print('ready', flush=True)\n"
)

DIARY = (
    "import os, signal, sys, time\n"
    # Not by print, within which a signal may come, too.
    "def note(n, _): os.write(1, f'{signal.Signals(n).name} {time.monotonic()}\\n'.encode())\n"
    "for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):\n"
    "    signal.signal(n, note)\n"
    "print('ready', flush=True)\n"
    "while True: time.sleep(0.05)\n"  # a signal just before a sleep is noted after it
)


@pytest.fixture
def shim(tmp_path: Path) -> Iterator[Shim]:
    made = Shim(tmp_path / "dispatch", f"cog-001-{uuid.uuid4().hex[:12]}")
    yield made
    made.clean()


def is_ready(shim: Shim) -> bool:
    return b"ready" in shim.log("stdout")


def test_the_ladder_asks_then_tells_then_kills(shim: Shim) -> None:
    shim.start(python(DIARY), grace_s=3.0)
    eventually(lambda: is_ready(shim))
    asked_at = time.monotonic()
    answer = shim.ask(op="stop", reason="operator")
    record = shim.exit()
    took = time.monotonic() - asked_at

    notes = [line.split() for line in shim.log("stdout").decode().splitlines()[1:]]
    assert answer == {"ok": True}
    assert [name for name, _ in notes] == ["SIGINT", "SIGTERM"]
    assert float(notes[1][1]) - float(notes[0][1]) >= 0.9
    assert (record["signal"], record["killed_by"]) == (signal.SIGKILL, "operator")
    assert 2.9 <= took < 3.0 + SLACK_S


def test_other_signals_may_come_first(shim: Shim) -> None:
    shim.start(python(DIARY), grace_s=0.6, stop_signals=["USR1"])
    eventually(lambda: is_ready(shim))
    shim.ask(op="stop", reason="operator")
    shim.exit()

    assert [line.split()[0] for line in shim.log("stdout").decode().splitlines()[1:]] == ["SIGUSR1"]


def test_the_first_signal_is_for_the_agent_alone(shim: Shim) -> None:
    script = (
        "import os, signal, sys, time\n"
        "child = os.fork() == 0\n"
        "def note(n, _): os.write(1, f'{child} {signal.Signals(n).name}\\n'.encode())\n"
        "for n in (signal.SIGINT, signal.SIGTERM): signal.signal(n, note)\n"
        "print('ready', flush=True)\n"
        "while True: time.sleep(0.05)\n"
    )
    shim.start(python(script), grace_s=1.2)
    eventually(lambda: shim.log("stdout").count(b"ready") == 2)
    shim.ask(op="stop", reason="operator")
    shim.exit()

    notes = shim.log("stdout").decode().split("\n")
    assert notes.count("False SIGINT") == 1
    assert notes.count("True SIGINT") == 0
    assert notes.count("False SIGTERM") == notes.count("True SIGTERM") == 1


def test_an_agent_that_obeys_keeps_its_own_exit_code(shim: Shim) -> None:
    script = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGINT, lambda *_: sys.exit(4))\n"
        "print('ready', flush=True)\n"
        "while True: time.sleep(1)\n"
    )
    shim.start(python(script), grace_s=60.0)
    eventually(lambda: is_ready(shim))
    shim.ask(op="stop", reason="operator")
    record = shim.exit()

    assert (record["code"], record["signal"], record["killed_by"]) == (4, None, "operator")


def test_stop_now_kills_at_once(shim: Shim) -> None:
    shim.start(python(FAMILY + "while True: time.sleep(1)"), grace_s=600.0)
    eventually(lambda: is_ready(shim))
    assert len(marked(shim.dispatch)) == 4
    shim.ask(op="stop", reason="operator", now=True)
    record = shim.exit()

    assert (record["signal"], record["killed_by"]) == (signal.SIGKILL, "operator")
    assert marked(shim.dispatch) == []


def test_stop_now_cuts_a_ladder_short(shim: Shim) -> None:
    shim.start(
        python(STUBBORN + "print('ready', flush=True)\nwhile True: time.sleep(1)"), grace_s=600.0
    )
    eventually(lambda: is_ready(shim))
    shim.ask(op="stop", reason="first")
    assert shim.ask(op="status")["state"] == "stopping"
    shim.ask(op="stop", reason="second", now=True)

    assert shim.exit()["killed_by"] == "first"


def test_at_the_deadline_everything_goes_however_it_forked(shim: Shim) -> None:
    """Cases 18 and 21 of the fault catalogue."""
    began = time.monotonic()
    shim.start(python(FAMILY + "while True: time.sleep(1)"), hard_s=1.0, grace_s=1.0)
    eventually(lambda: is_ready(shim))
    record = shim.exit()
    took = time.monotonic() - began

    assert (record["signal"], record["killed_by"]) == (signal.SIGKILL, "deadline")
    assert record["survivors"] == 0
    assert marked(shim.dispatch) == []
    assert 1.9 <= took < 1.0 + 1.0 + 2.0 + SLACK_S


def test_what_an_agent_leaves_is_swept_when_it_has_ended(shim: Shim) -> None:
    shim.start(python(FAMILY + "raise SystemExit(5)"), grace_s=0.5)
    record = shim.exit()

    assert (record["code"], record["killed_by"]) == (5, None)
    assert (record["swept"], record["survivors"]) == (3, 0)
    assert marked(shim.dispatch) == []


def test_what_ends_when_asked_is_not_waited_for(shim: Shim) -> None:
    shim.start(["/bin/sh", "-c", "sleep 600 & setsid sleep 600 & exit 0"], grace_s=600.0)
    record = shim.exit()

    assert (record["code"], record["swept"]) == (0, 2)


def test_what_clears_its_environment_is_swept_too(shim: Shim, tmp_path: Path) -> None:
    """Case 22 of the fault catalogue."""
    pid_file = tmp_path / "pid"
    script = f"env -i setsid sh -c 'echo $$ > {pid_file}; exec sleep 600' & sleep 0.5"
    shim.start(["/bin/sh", "-c", script], grace_s=0.5)
    record = shim.exit()

    assert record["swept"] == 1
    assert not Path(f"/proc/{pid_file.read_text().strip()}").exists()


def test_a_grandchild_that_holds_the_pipe_delays_nobody_for_long(shim: Shim) -> None:
    """Case 20 of the fault catalogue."""
    script = STUBBORN + (
        "import os, sys\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    while True: time.sleep(1)\n"
        "print('done', file=sys.stderr)\n"
    )
    began = time.monotonic()
    shim.start(python(script), grace_s=1.0)
    record = shim.exit()

    assert (record["code"], record["swept"]) == (0, 1)
    assert shim.log("stderr") == b"done\n"
    assert time.monotonic() - began < 1.0 + 2.0 + SLACK_S


def test_a_stranger_that_holds_the_pipe_delays_nobody_for_long(shim: Shim, tmp_path: Path) -> None:
    """A process outside the tree got the agent's output; it is not ours to kill."""
    fifo = tmp_path / "go"
    os.mkfifo(fifo)
    shim.start(["/bin/sh", "-c", f"read go < {fifo}; exit 0"])
    agent = shim.read("running.json")["pid"]
    stranger = os.open(f"/proc/{agent}/fd/2", os.O_WRONLY)
    try:
        fifo.write_text("go\n")
        record = shim.exit()
    finally:
        os.close(stranger)

    assert record["code"] == 0


def test_a_stopped_agent_is_ended_at_its_deadline(shim: Shim) -> None:
    """Case 31 of the fault catalogue."""
    shim.start(python("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)"), hard_s=1.0)

    assert shim.exit()["killed_by"] == "deadline"


def test_a_process_bomb_is_cleared(shim: Shim) -> None:
    """Case 23 of the fault catalogue, in small: it forks on for as long as anything of it lives."""
    script = STUBBORN + (
        "import os\n"
        "print('ready', flush=True)\n"
        "fuse = time.monotonic() + 60\n"  # should the shim fail, the machine is not lost
        "for _ in range(8):\n"
        "    if os.fork() == 0: break\n"
        "while time.monotonic() < fuse:\n"
        "    if os.fork():\n"
        "        time.sleep(0.02)\n"
        "        os._exit(0)\n"  # a new number every moment, never the same parent
    )
    shim.start(python(script), grace_s=0.5)
    eventually(lambda: len(marked(shim.dispatch)) >= 8)
    shim.ask(op="stop", reason="operator")
    record = shim.exit()

    assert record["survivors"] == 0
    assert marked(shim.dispatch) == []


CHAIN = (
    "import os, sys, time\n"
    "fuse = time.monotonic() + 60\n"
    "while time.monotonic() < fuse:\n"
    "    if os.fork(): os._exit(0)\n"  # none lives longer than it takes to fork
)

LOOKER = (
    "import os, sys\n"
    "sys.path.insert(0, sys.argv[1])\n"
    "from chump_orchestrator.shim import tree\n"
    "tree.adopt_orphans()\n"
    "agent = os.fork()\n"
    "if agent == 0: os.execv(sys.executable, [sys.executable, '-I', '-S', '-c', sys.argv[2]])\n"
    "watched = tree.Tree(agent, 'a-1')\n"
    "while not watched.has_agent_ended(): pass\n"
    "looks = [bool(watched.living()) for _ in range(500)]\n"
    "while watched.living(): watched.kill_all()\n"
    "print(sum(looks))\n"
)


def test_a_chain_of_forks_is_never_taken_for_gone() -> None:
    """Each link lives for less time than a look at all of them takes."""
    looker = subprocess.run(
        python(LOOKER, str(SHIM.parents[1]), CHAIN),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (looker.stdout, looker.stderr) == ("500\n", "")


def test_the_end_of_the_host_is_recorded(shim: Shim) -> None:
    shim.start(python("import time; print('ready', flush=True); time.sleep(60)"))
    eventually(lambda: is_ready(shim))
    os.kill(shim.pid, signal.SIGTERM)
    record = shim.exit()

    assert (record["signal"], record["killed_by"]) == (signal.SIGINT, "host")


CATCHES_TERM = (
    "import signal, sys, time\n"
    "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
    "print('ready', flush=True)\n"
    "time.sleep(60)\n"
)


@pytest.mark.parametrize(
    "script", ["print('ready', flush=True); import time; time.sleep(60)", CATCHES_TERM]
)
def test_who_ends_the_host_may_tell_the_agent_before_its_shim(shim: Shim, script: str) -> None:
    """A shutdown tells everybody at once; a moment later the shim knows that it was one."""
    agent = shim.start(python(script))["pid"]
    eventually(lambda: shim.log("stdout"), "an agent that is ready")
    os.kill(agent, signal.SIGTERM)
    os.kill(shim.pid, signal.SIGTERM)

    assert shim.exit()["killed_by"] == "host"


def test_an_agent_that_ended_well_was_not_ended_by_the_host_that_ends_next(shim: Shim) -> None:
    script = (
        "import os, signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "if os.fork() == 0:\n"
        " time.sleep(60)\n"
    )
    shim.start(python(script), grace_s=2.0)
    eventually(lambda: shim.ask(op="status")["state"] == "sweeping", "the agent's end")
    os.kill(shim.pid, signal.SIGTERM)

    record = shim.exit()
    assert (record["code"], record["killed_by"]) == (0, None)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGUSR1])
def test_what_is_meant_for_the_daemon_does_not_stop_a_shim(
    shim: Shim, number: signal.Signals
) -> None:
    shim.start(python("import time; time.sleep(0.5)"))
    os.kill(shim.pid, number)

    assert shim.exit()["killed_by"] is None


def test_the_deadline_can_be_moved(shim: Shim) -> None:
    """Behaviour P3: the daemon grants time while the forge is silent."""
    shim.start(python("import time; time.sleep(2.5)"), hard_s=1.5)
    answer = shim.ask(op="deadline", hard_s=600)

    assert answer == {"ok": True}
    assert shim.ask(op="status")["hard_s"] == 600
    assert shim.exit()["code"] == 0


def test_the_deadline_can_be_moved_to_now(shim: Shim) -> None:
    shim.start(python("import time; time.sleep(60)"))
    shim.ask(op="deadline", hard_s=0)

    assert shim.exit()["killed_by"] == "deadline"


@pytest.mark.slow
def test_time_in_which_a_shim_was_stopped_does_not_count(shim: Shim) -> None:
    """Case 17 of the fault catalogue: no mass kill on waking."""
    shim.start(python("import time; time.sleep(60)"), hard_s=12.0)
    os.kill(shim.pid, signal.SIGSTOP)
    before = time.monotonic()
    time.sleep(13.0)
    os.kill(shim.pid, signal.SIGCONT)
    stood_still = time.monotonic() - before

    status = shim.ask(op="status")
    assert status["state"] == "running"
    assert status["active_s"] < stood_still


FREEZER = Path("/sys/fs/cgroup/freezer")


@pytest.fixture
def freezer() -> Iterator[Path]:
    group = FREEZER / f"chump-test-{uuid.uuid4().hex[:12]}"
    group.mkdir()
    yield group
    (group / "freezer.state").write_text("THAWED")
    eventually(lambda: not (group / "cgroup.procs").read_text())
    group.rmdir()


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.skipif(not FREEZER.is_dir(), reason="needs a freezer of the first kind")
@pytest.mark.parametrize("frozen", ["agent", "child"])
def test_what_cannot_be_killed_is_counted_and_not_waited_for(
    shim: Shim, freezer: Path, frozen: str
) -> None:
    """Case 32 of the fault catalogue."""
    agent = shim.start(["/bin/sh", "-c", "sleep 600 & echo $!; read never < /dev/tty; wait"])["pid"]
    child = int(eventually(lambda: shim.log("stdout")))
    (freezer / "cgroup.procs").write_text(str(agent if frozen == "agent" else child))
    (freezer / "freezer.state").write_text("FROZEN")
    shim.ask(op="stop", reason="operator", now=True)
    record = shim.exit()

    assert record["survivors"] == 1
    assert record["killed_by"] == "operator"
    assert record["signal"] == (None if frozen == "agent" else signal.SIGKILL)
