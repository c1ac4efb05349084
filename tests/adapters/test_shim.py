"""How a shim starts an agent, or does not, and what it puts on record."""

import errno
import fcntl
import json
import os
import resource
import signal
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from chump_orchestrator.shim import owner
from tests.adapters.shims import Shim, eventually, marked, python

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.fixture
def shim(tmp_path: Path) -> Iterator[Shim]:
    made = Shim(tmp_path / "dispatch", f"cog-001-{uuid.uuid4().hex[:12]}")
    yield made
    made.clean()


def start_ticks(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def test_an_agent_is_on_record_from_its_start_to_its_end(shim: Shim) -> None:
    said = shim.start(python("import sys; print('hello'); sys.stdin.read(); sys.exit(7)"))
    record = shim.exit()

    assert said == {"state": "running", "pid": shim.read("running.json")["pid"]}
    assert record["dispatch"] == shim.dispatch
    assert (record["v"], record["code"], record["signal"], record["killed_by"]) == (
        1,
        7,
        None,
        None,
    )
    assert (record["swept"], record["survivors"], record["spawn_error"]) == (0, 0, None)
    assert record["bytes"] == {"stdout": 6, "stderr": 0}
    assert record["dropped"] == {"stdout": 0, "stderr": 0}
    assert record["peak_rss_bytes"] > 1_000_000
    assert record["cpu_s"] > 0
    assert record["started_at"] < record["ended_at"]
    assert shim.log("stdout") == b"hello\n"


def test_what_runs_can_be_told_from_another_process_of_the_same_number(shim: Shim) -> None:
    agent = shim.start(python("import time; time.sleep(60)"))["pid"]

    running = shim.read("running.json")
    assert running["pid"] == running["pgid"] == agent
    assert running["start"] == start_ticks(agent)
    assert (running["shim_pid"], running["shim_start"]) == (shim.pid, start_ticks(shim.pid))
    assert running["boot_id"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert running["dispatch"] == shim.dispatch


def test_its_files_are_for_its_user_alone(shim: Shim) -> None:
    shim.start(python("print('hello')"))
    shim.exit()

    for name in ("running.json", "exit.json", "lock", "stdout.log", "stderr.log"):
        assert (shim.directory / name).stat().st_mode & 0o777 == 0o600, name
    assert not (shim.directory / "ctl.sock").exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_the_signal_that_ended_an_agent_is_its_true_one(shim: Shim, number: int) -> None:
    shim.start(python(f"import os; os.kill(os.getpid(), {int(number)})"))
    record = shim.exit()

    assert (record["code"], record["signal"], record["killed_by"]) == (None, number, None)


def test_an_agent_sees_its_environment_and_nothing_of_the_shim(shim: Shim) -> None:
    script = (
        "import os, signal, sys\n"
        "print(os.getcwd())\n"
        "print(sorted(os.environ))\n"
        "print(sorted(map(int, os.listdir('/proc/self/fd')))[:-1])\n"
        "print(os.getsid(0) == os.getpid() == os.getpgid(0))\n"
        "status = dict(l.split(':\\t', 1) for l in open('/proc/self/status') if ':\\t' in l)\n"
        "print(int(status['SigBlk'], 16), status['Umask'].strip())\n"
        "print([n for n in (1, 2, 3, 10, 12, 13, 15, 17)\n"
        "       if int(os.environ['CHECK']) and signal.getsignal(n) is signal.SIG_IGN])\n"
    )
    # Python itself ignores SIGPIPE (13), so the mask that it was given is asked of a shell's child.
    shim.order(["/bin/sh", "-c", 'grep SigIgn /proc/self/status; exec "$@"', "sh", *python(script)])
    old = os.umask(0o027)
    try:
        shim.begin(told=None, env={"CHECK": "1"})
    finally:
        os.umask(old)
    shim.exit()

    ignored, cwd, names, descriptors, leads, mask, deaf = shim.log("stdout").decode().splitlines()
    # Signals 32 and 33 belong to the C library, which lets nobody change them.
    assert int(ignored.split()[1], 16) & ~(0b11 << 31) == 0
    assert cwd == str(shim.directory)
    assert "'CHECK'" in names
    assert descriptors == "[0, 1, 2]"
    assert leads == "True"
    assert mask == "0 0027"
    assert deaf == "[13]"


def test_a_prompt_that_is_never_read_holds_nobody_up(shim: Shim) -> None:
    """Case 27 of the fault catalogue."""
    shim.start(python("import sys; sys.exit(3)"), prompt=b"x" * 5_000_000)

    assert shim.exit()["code"] == 3


def test_a_prompt_arrives_whole(shim: Shim) -> None:
    script = "import sys, hashlib; print(len(sys.stdin.buffer.read()))"
    shim.start(python(script), prompt=b"/not a command\n" * 300_000)
    shim.exit()

    assert shim.log("stdout") == b"4500000\n"


@pytest.mark.parametrize(
    ("fault", "number"),
    [
        ("missing", errno.ENOENT),
        ("not executable", errno.EACCES),
        ("directory gone", errno.ENOENT),
        ("argument too long", errno.E2BIG),
        ("prompt gone", errno.ENOENT),
    ],
)
def test_what_cannot_be_started_is_told_with_its_reason(
    shim: Shim, tmp_path: Path, fault: str, number: int
) -> None:
    """Behaviour A4; case 33 of the fault catalogue."""
    plain = tmp_path / "plain"
    plain.write_text("no program")
    argv = {
        "missing": ["/nowhere/agent"],
        "not executable": [str(plain)],
        "argument too long": ["/bin/true", "x" * 140_000],
    }.get(fault, ["/bin/true"])
    changes = {"directory gone": {"cwd": "/nowhere"}, "prompt gone": {"stdin": "prompt"}}

    said = shim.start(argv, **changes.get(fault, {}))
    record = shim.exit()

    assert (said["state"], said["errno"]) == ("spawn_failed", number)
    assert record["spawn_error"] == {"errno": number, "message": said["error"]}
    assert os.strerror(number) in said["error"]
    assert (record["code"], record["signal"], record["killed_by"]) == (None, None, None)
    assert marked(shim.dispatch) == []


@pytest.mark.parametrize("name", ["tombstone", "running.json", "exit.json"])
def test_a_late_shim_starts_nothing(shim: Shim, tmp_path: Path, name: str) -> None:
    """Case 3 of the fault catalogue."""
    shim.order(["/bin/sh", "-c", f"touch {tmp_path}/started"])
    (shim.directory / name).write_text("{}")
    shim.begin()

    assert shim.said() == {"state": "left", "why": f"{name} exists"}
    shim.ends()
    assert not (tmp_path / "started").exists()
    assert (shim.directory / name).read_text() == "{}"


def test_a_second_shim_of_a_dispatch_leaves(shim: Shim, tmp_path: Path) -> None:
    shim.order(["/bin/sh", "-c", f"touch {tmp_path}/started"])
    with (shim.directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shim.begin()
        said = shim.said()

    assert said == {"state": "left", "why": "the lock is held by another process"}
    shim.ends()
    assert not (tmp_path / "started").exists()
    assert not (shim.directory / "running.json").exists()


@pytest.mark.parametrize(
    "told",
    [b"", b'{"env": {"PATH": "/bin"}, "redact": ["s3cr3t-val', b"[]", b'{"env": {}}', b"\xff"],
)
def test_without_its_whole_environment_nothing_is_started(
    shim: Shim, tmp_path: Path, told: bytes
) -> None:
    shim.order(["/bin/sh", "-c", f"touch {tmp_path}/started"])
    shim.begin(told=told)
    said = shim.said()

    assert said["state"] == "left"
    assert "s3cr3t" not in said["why"]
    shim.ends()
    assert not (tmp_path / "started").exists()
    assert not (shim.directory / "running.json").exists()


@pytest.mark.parametrize(
    "changes",
    [{"argv": []}, {"hard_s": "soon"}, {"stop_signals": ["NONSENSE"]}, {"stdin": "tty"}],
)
def test_an_order_that_makes_no_sense_starts_nothing(
    shim: Shim, changes: dict[str, object]
) -> None:
    shim.order(["/bin/true"])
    shim.order(**{"argv": ["/bin/true"], **changes})  # type: ignore[arg-type]
    shim.begin()

    assert shim.said()["why"].startswith("spec.json: ")
    shim.ends()
    assert not (shim.directory / "running.json").exists()


def test_the_lock_is_held_for_the_life_of_the_agent(shim: Shim) -> None:
    shim.start(python("import time; time.sleep(60)"))

    with (shim.directory / "lock").open("w") as lock:
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shim.ask(op="stop", reason="test", now=True)
        shim.exit()
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_an_agent_dies_with_its_shim_and_the_lock_is_free(shim: Shim) -> None:
    """Case 2 of the fault catalogue: nothing runs that nobody minds."""
    shim.start(python("import time; time.sleep(60)"))
    os.kill(shim.pid, signal.SIGKILL)
    shim.ends()

    eventually(lambda: not marked(shim.dispatch), "the agent's end")
    with (shim.directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert not (shim.directory / "exit.json").exists()


def test_a_shim_leaves_whoever_launched_it_and_stays_in_its_session(shim: Shim) -> None:
    shim.start(python("import time; time.sleep(60)"))
    assert shim.process is not None

    assert shim.process.wait(30) == 0
    assert shim.pid != shim.process.pid
    assert os.getsid(shim.pid) == shim.process.pid
    assert psutil.Process(shim.pid).ppid() != os.getpid()
    assert shim.ask(op="status")["state"] == "running"


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs to be root")
def test_without_a_process_left_a_shim_says_so_and_starts_nothing(tmp_path: Path) -> None:
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(tell, 1)
            resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
            os.setresuid(65534, 65534, 65534)
            os._exit(owner.main(["shim", str(tmp_path)]))
        finally:
            os._exit(1)
    os.close(tell)
    _, status = os.waitpid(pid, 0)
    with os.fdopen(told) as reader:
        said = json.loads(reader.read())

    assert os.waitstatus_to_exitcode(status) == 75
    assert said["state"] == "left"
    assert os.strerror(errno.EAGAIN) in said["why"]
    assert not list(tmp_path.iterdir())


def test_a_daemon_that_has_died_does_not_matter(shim: Shim) -> None:
    """Promise I8."""
    shim.order(python("import time; time.sleep(0.2); print('done')"))
    shim.begin()
    assert shim.process is not None
    assert shim.process.stdout is not None
    shim.process.stdout.close()

    assert shim.exit()["code"] == 0
    assert shim.log("stdout") == b"done\n"
