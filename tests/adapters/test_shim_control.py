"""The control socket answers everybody and is held up by nobody."""

import os
import socket
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.adapters.shims import Shim, eventually, python

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.fixture
def shim(tmp_path: Path) -> Iterator[Shim]:
    made = Shim(tmp_path / "dispatch", f"cog-001-{uuid.uuid4().hex[:12]}")
    made.start(python("import time; time.sleep(60)"))
    yield made
    made.clean()


def is_let_in(shim: Shim) -> bool:
    with shim.connect() as line:
        try:
            return bool(line.ask(op="status"))
        except ConnectionError:
            return False


def test_status_tells_how_it_goes(shim: Shim) -> None:
    status = shim.ask(op="status")

    assert status.pop("active_s") >= 0
    assert status.pop("silent_s") >= 0
    assert status == {
        "ok": True,
        "v": 1,
        "state": "running",
        "pid": shim.read("running.json")["pid"],
        "hard_s": 60.0,
        "bytes": {"stdout": 0, "stderr": 0},
    }


def test_one_connection_may_ask_much(shim: Shim) -> None:
    with shim.connect() as line:
        line.say(b'{"op":"status"}\n{"op":"deadline","hard_s":90}\n{"op":"status"}\n')
        answers = [line.hear() for _ in range(3)]

    assert [answer.get("hard_s") for answer in answers] == [60.0, None, 90.0]


@pytest.mark.parametrize(
    "request_",
    [
        b"",
        b"garbage",
        b"[]",
        b"{}",
        b'{"op":"explode"}',
        b'{"op":["status"]}',
        b'{"op":"stop"}',
        b'{"op":"stop","reason":7}',
        b'{"op":"stop","reason":"x","now":"yes"}',
        b'{"op":"deadline"}',
        b'{"op":"deadline","hard_s":"1"}',
        b'{"op":"deadline","hard_s":true}',
        b'{"op":"deadline","hard_s":-1}',
        b'{"op":"deadline","hard_s":NaN}',
        b'{"op":"deadline","hard_s":Infinity}',
        b'{"op":"follow","stream":"stdin","offset":0}',
        b'{"op":"follow","stream":"../lock","offset":0}',
        b'{"op":"follow","stream":"stdout","offset":-1}',
        b'{"op":"follow","stream":"stdout","offset":1.5}',
        b'{"op":"follow","stream":"stdout"}',
        b"[" * 50_000,
        b"\xff\xfe\0",
    ],
)
def test_a_bad_request_is_refused_and_the_next_one_answered(shim: Shim, request_: bytes) -> None:
    with shim.connect() as line:
        line.say(request_ + b"\n")
        refused = line.hear()
        status = line.ask(op="status")

    assert refused["ok"] is False
    assert refused["error"]
    assert (status["ok"], status["state"], status["hard_s"]) == (True, "running", 60.0)


def test_a_request_without_an_end_is_cut_off(shim: Shim) -> None:
    with shim.connect() as line:
        line.say(b"x" * 70_000)
        refused, closed = line.hear(), line.hear()

    assert refused["ok"] is False
    assert closed == {}
    assert shim.ask(op="status")["ok"] is True


def test_who_asks_and_never_listens_holds_nobody_up(shim: Shim) -> None:
    with shim.connect() as rude:
        rude.connection.setblocking(False)
        try:
            for _ in range(100_000):
                rude.connection.send(b'{"op":"status"}\n' * 100)
        except BlockingIOError:
            pass

        assert shim.ask(op="status")["ok"] is True
        rss = Path(f"/proc/{shim.pid}/statm").read_text().split()[1]
        assert int(rss) * os.sysconf("SC_PAGE_SIZE") < 60_000_000


def test_who_has_finished_asking_is_still_answered(shim: Shim) -> None:
    with shim.connect() as line:
        line.say(b'{"op":"status"}\n')
        line.connection.shutdown(socket.SHUT_WR)
        answer, closed = line.hear(), line.hear()

    assert answer["ok"] is True
    assert closed == {}


def test_who_orders_and_leaves_is_obeyed(shim: Shim) -> None:
    with shim.connect() as line:
        line.say(b'{"op":"stop","reason":"a hurry","now":true}\n')

    assert shim.exit()["killed_by"] == "a hurry"


def test_a_crowd_is_not_let_in(shim: Shim) -> None:
    lines = [shim.connect() for _ in range(64)]
    try:
        assert lines[-1].ask(op="status")["ok"] is True
        with shim.connect() as one_more:
            assert one_more.hear() == {}
    finally:
        for line in lines:
            line.__exit__()
    eventually(lambda: is_let_in(shim), "room for one more")


def test_a_deadline_is_not_moved_while_the_agent_is_being_stopped(tmp_path: Path) -> None:
    deaf = "import signal, time; signal.signal(2, signal.SIG_IGN); print('ready', flush=True)\n"
    shim = Shim(tmp_path / "dispatch", f"cog-001-{uuid.uuid4().hex[:12]}")
    shim.start(python(deaf + "time.sleep(60)"))
    eventually(lambda: shim.log("stdout"))
    shim.ask(op="stop", reason="test")
    answer = shim.ask(op="deadline", hard_s=5)
    shim.clean()

    assert answer["ok"] is False


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs to be root")
def test_another_user_is_not_let_in(shim: Shim) -> None:
    shim.directory.chmod(0o777)
    (shim.directory / "ctl.sock").chmod(0o777)
    pid = os.fork()
    if pid == 0:
        os.setresuid(65534, 65534, 65534)
        try:
            with shim.connect() as line:
                line.say(b'{"op":"status"}\n')
                os._exit(0 if line.hear() else 3)
        except ConnectionError:
            os._exit(3)
        finally:
            os._exit(4)
    _, status = os.waitpid(pid, 0)

    assert os.waitstatus_to_exitcode(status) in (3, 4)
