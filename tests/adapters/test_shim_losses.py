"""A shim whose folder, or a file in it, is taken away or blocked while its agent runs."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.adapters.shims import Shim, at_work_on, eventually, marked, python

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

FOR_A_WHILE = "import time; time.sleep(60)"
STUBBORN = (
    "import signal, time\n"
    "for n in (signal.SIGINT, signal.SIGTERM): signal.signal(n, signal.SIG_IGN)\n"
    "print('ready', flush=True)\ntime.sleep(60)"
)


@pytest.fixture
def shim(tmp_path: Path) -> Iterator[Shim]:
    made = Shim(tmp_path / "dispatch", f"cog-001-{uuid.uuid4().hex[:12]}")
    yield made
    made.clean()


def has_left(shim: Shim) -> bool:
    return not at_work_on(shim.directory)


def test_without_its_folder_a_shim_still_holds_the_deadline_sweeps_and_leaves(shim: Shim) -> None:
    """Control: it used to try for ever to write its record into a folder that is not there."""
    script = f"import os\nif os.fork() == 0: os.setsid()\n{FOR_A_WHILE}"
    shim.start(python(script), hard_s=1.0, grace_s=0.5, cwd="/")
    with shim.connect() as line:
        line.ask(op="follow", stream="stdout", offset=0)
        shutil.rmtree(shim.directory)
        farewell = line.hear()

    eventually(lambda: has_left(shim), "the shim's end")
    assert not marked(shim.dispatch)
    assert not shim.directory.exists()
    assert farewell["end"] is True
    told = farewell["record"]
    assert (told["killed_by"], told["survivors"]) == ("deadline", 0)


def test_a_record_that_is_on_disk_is_not_told_as_a_farewell(shim: Shim) -> None:
    shim.start(python("import time; time.sleep(0.5)"))
    with shim.connect() as line:
        line.ask(op="follow", stream="stdout", offset=0)

        assert line.hear() == {"end": True, "offset": 0}


@pytest.mark.parametrize("taken_by", ["nobody", "a stranger"])
def test_a_socket_that_was_taken_away_is_made_anew(shim: Shim, taken_by: str) -> None:
    agent = shim.start(python(FOR_A_WHILE))["pid"]
    place = shim.directory / "ctl.sock"
    place.unlink()
    if taken_by == "a stranger":
        with socket.socket(socket.AF_UNIX) as theirs:
            here = os.open(shim.directory, os.O_PATH)
            theirs.bind(f"/proc/self/fd/{here}/ctl.sock")
            os.close(here)

    taken = place.lstat().st_ctime_ns if place.exists() else 0

    eventually(lambda: place.exists() and place.lstat().st_ctime_ns != taken, "a socket")
    assert shim.ask(op="status")["pid"] == agent
    assert shim.ask(op="stop", reason="operator", now=True) == {"ok": True}
    assert shim.exit()["killed_by"] == "operator"


def test_the_record_of_the_start_is_put_back(shim: Shim) -> None:
    shim.start(python(FOR_A_WHILE))
    before = (shim.directory / "running.json").read_bytes()
    (shim.directory / "running.json").unlink()

    eventually((shim.directory / "running.json").exists, "the record")
    assert (shim.directory / "running.json").read_bytes() == before


@pytest.mark.parametrize("place", ["exit.json", "exit.json.tmp"])
def test_what_stands_in_the_place_of_the_record_is_moved_aside(shim: Shim, place: str) -> None:
    script = f"import os; os.makedirs({place!r} + '/full'); print('made')"
    shim.start(python(script))

    eventually((shim.directory / "exit.json").is_file, "a record")
    assert shim.exit()["code"] == 0
    assert list(shim.directory.glob(f"{place}.*.aside/full"))


def test_being_sent_term_twice_kills_at_once(shim: Shim) -> None:
    shim.start(python(STUBBORN), grace_s=600.0)
    eventually(lambda: b"ready" in shim.log("stdout"))
    os.kill(shim.pid, signal.SIGTERM)
    eventually(lambda: shim.ask(op="status")["state"] == "stopping")
    time.sleep(0.2)

    assert marked(shim.dispatch)
    os.kill(shim.pid, signal.SIGTERM)

    record = shim.exit()
    assert (record["signal"], record["killed_by"]) == (signal.SIGKILL, "host")


def test_a_number_without_measure_does_not_end_a_shim(shim: Shim) -> None:
    shim.start(python(FOR_A_WHILE))
    with shim.connect() as line:
        line.say(b'{"op": "deadline", "hard_s": 1' + b"0" * 400 + b"}\n")

        assert line.hear()["ok"] is False
    assert shim.ask(op="status")["hard_s"] == 60.0
