"""The real daemon as it is seen from outside: over HTTP, and in the shared stream."""

from __future__ import annotations

import json
import re
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.projects import Make, Project, gaps

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def at() -> Iterator[Path]:
    """Where a socket may lie: paths of sockets are limited to a hundred characters or so."""
    with tempfile.TemporaryDirectory(prefix="chump-", dir="/tmp") as folder:
        yield Path(folder) / "http.sock"


def listening(at: Path) -> str:
    return f'[http]\nlisten = "unix:{at}"\n'


def ask(at: Path, request: bytes) -> bytes:
    """Send bytes to the socket and return all that comes back."""
    with socket.socket(socket.AF_UNIX) as visitor:
        visitor.settimeout(20)
        visitor.connect(str(at))
        visitor.sendall(request)
        answer = b""
        while piece := visitor.recv(65536):
            answer += piece
        return answer


def page(at: Path, path: str) -> tuple[int, str]:
    try:
        answer = ask(at, f"GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
    except OSError:
        return 0, ""
    head, _, body = answer.decode().partition("\r\n\r\n")
    return int(head.split()[1]), body


def is_ready(at: Path) -> bool:
    return page(at, "/readyz")[0] == 200


def now(at: Path) -> Any:
    return json.loads(page(at, "/api/v1/state")[1])


def stream(project: Project) -> list[Any]:
    file = project.root / ".chump-locks" / "ambient.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def log_of(project: Project) -> list[Any]:
    """Return the daemon's log, all of which has to be lines of JSON."""
    return [json.loads(line) for line in (project.folder / "daemon.log").read_text().splitlines()]


def test_a_daemon_is_watched_from_its_start_to_its_end(make: Make, at: Path) -> None:
    project = make(
        gaps("A-1", "A-2"), "ship() if gap == 'A-1' else sys.exit(7)", more=listening(at), slots=1
    )
    daemon = project.start()
    project.eventually(lambda: is_ready(at))
    project.eventually(lambda: "killed" in (told := now(at))["settled"] and not told["dispatches"])

    state = now(at)
    status = project.json("status")
    metrics = page(at, "/metrics")[1]
    ask(at, b"\0\0 nonsense\r\n\r\n")
    daemon.send_signal(signal.SIGTERM)

    assert daemon.wait(30) == 0
    turns = [told["daemon"].pop("loop")["turns"] for told in (state, status)]  # these go on
    assert 0 < turns[0] < turns[1]
    assert state == status
    assert state["settled"] == {"shipped": 1, "killed": 1}
    for line in (
        'chump_dispatches_total{backend="custom",cause="none",outcome="shipped"} 1.0',
        'chump_dispatches_total{backend="custom",cause="exit-code",outcome="killed"} 1.0',
        'chump_dispatches_launched_total{backend="custom"} 2.0',
        'chump_pull_changes_total{state="merged"} 1.0',
        "chump_gaps_parked 1.0",
        "chump_daemon_ready 1.0",
        "chump_slots 1.0",
    ):
        assert f"\n{line}\n" in metrics
    assert not at.exists()
    assert {"http.listening"} == {
        one["event"] for one in log_of(project) if one["event"].startswith("http.")
    }


def test_e1_other_tools_read_in_the_stream_what_becomes_of_a_dispatch(make: Make) -> None:
    """Behaviour E1: start, silent agent, settled."""
    project = make(gaps("A-1"), "time.sleep(3); sys.exit(7)")
    settings = project.root / ".chump" / "orchestrator.toml"
    settings.write_text(settings.read_text().replace('grace = "2s"', 'grace = "2s"\nsilent = "1s"'))
    before = {"ts": "2026-04-27T12:00:00Z", "session": "x", "event": "file_edit", "path": "a.py"}
    (project.root / ".chump-locks").mkdir()
    (project.root / ".chump-locks" / "ambient.jsonl").write_text(json.dumps(before) + "\n")

    project.program("run", "--once")

    others, *lines = stream(project)
    of_the_dispatch = [line for line in lines if line.get("gap") == "A-1"]
    assert others == before
    assert [(one["event"], one["kind"]) for one in of_the_dispatch] == [
        ("session_start", "dispatch_started"),
        ("ALERT", "silent_subagent"),
        ("agent_exited", "agent_exited"),
        ("session_end", "dispatch_settled"),
        ("dispatch_tidied", "dispatch_tidied"),
    ]
    assert len({one["session"] for one in of_the_dispatch}) == 1
    assert of_the_dispatch[0]["session"] == project.json("history")["dispatches"][0]["id"]
    assert of_the_dispatch[-2]["reason"] == "exit code 7"
    assert [one["kind"] for one in lines if "gap" not in one] == [
        "backlog_loaded",
        "daemon_started",
        "daemon_stopped",
    ]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", one["ts"]) for one in lines)


def test_i7_a_secret_that_a_tool_quotes_is_not_passed_on(make: Make) -> None:
    """Promise I7: whatever is on the stream has been cleaned of the daemon's secrets."""
    project = make(gaps("A-1"), "ship()")
    secret = "ghp_" + "a1b2c3d4e5" * 4

    daemon = project.start(GH_TOKEN=secret)
    project.eventually(lambda: project.program("status").returncode == 0)
    assert project.program("pause", f"leaked {secret}").returncode == 0
    project.eventually(lambda: any(one["kind"] == "dispatching_paused" for one in stream(project)))
    daemon.terminate()
    daemon.wait(30)

    (paused,) = [one for one in stream(project) if one["kind"] == "dispatching_paused"]
    assert paused["reason"] == "leaked [redacted]"


def test_a_stream_that_cannot_be_written_harms_no_dispatch(make: Make) -> None:
    project = make(gaps("A-1"))
    (project.root / ".chump-locks" / "ambient.jsonl").mkdir(parents=True)

    done = project.program("run", "--once")

    assert done.returncode == 0, done.stderr
    assert project.outcomes() == {"A-1": "shipped"}
    assert "ambient.unwritten" in done.stderr


def test_a_port_that_is_taken_harms_no_dispatch(make: Make) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        project = make(gaps("A-1"), more=f'[http]\nlisten = "127.0.0.1:{port}"\n')

        done = project.program("run", "--once")

    assert done.returncode == 0, done.stderr
    assert project.outcomes() == {"A-1": "shipped"}
    assert "http.unavailable" in done.stderr
    assert "Address already in use" in done.stderr


def test_the_next_daemon_is_watched_at_the_same_place_at_once(make: Make, at: Path) -> None:
    """Also when the one before was killed, and left its socket."""
    project = make(gaps("A-1"), "time.sleep(60)", more=listening(at))
    first = project.start()
    project.eventually(lambda: is_ready(at))
    project.eventually(lambda: [one for one in now(at)["dispatches"] if one["pid"]])
    first.kill()
    first.wait(30)
    left = at.exists()
    second = project.start()
    project.eventually(lambda: is_ready(at))
    state = now(at)
    second.send_signal(signal.SIGTERM)
    second.wait(60)

    assert left
    assert state["daemon"]["pid"] == second.pid
    assert [one["kind"] for one in stream(project)].count("dispatch_taken_up") == 1


def test_a_watched_daemon_ends_as_fast_as_any_other(make: Make, at: Path) -> None:
    """With connections open at which nobody says anything."""
    project = make("  []\n", more=listening(at))
    daemon = project.start()
    project.eventually(lambda: is_ready(at))
    idle = [socket.socket(socket.AF_UNIX) for _ in range(8)]
    for one in idle:
        one.connect(str(at))
    daemon.terminate()
    since = time.monotonic()

    assert daemon.wait(30) == 0
    assert time.monotonic() - since < 20, "it did not wait for them"
    for one in idle:
        one.close()
