"""The shared stream: whole lines among others' whole lines, and no harm to whoever tells."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import structlog

from chump_orchestrator.adapters import ambient
from chump_orchestrator.adapters.ambient import LINE_BYTES, OLD_FILES, AmbientStream
from chump_orchestrator.adapters.host import HostClock
from tests.builders import NOW

PATIENCE_S = 20.0

SECRET = "hush-hush-hush"


class StandingClock:
    """Shows one time only."""

    def now(self) -> Any:
        return NOW

    def monotonic(self) -> float:
        return 0.0


def a_stream(folder: Path, *, session: str = "orchestrator-7") -> AmbientStream:
    return AmbientStream(
        folder,
        StandingClock(),
        session=session,
        worktree="repo",
        hide=lambda text: text.replace(SECRET, "[redacted]"),
    )


def lines_of(*files: Path) -> list[Any]:
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def told(folder: Path, event: str, **fields: object) -> dict[str, Any]:
    """Return the line that the stream has of one event."""
    stream = a_stream(folder)
    stream.hear(event, fields)
    stream.close(PATIENCE_S)
    found: dict[str, Any] = lines_of(folder / "ambient.jsonl")[-1]
    return found


def eventually(claim: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not claim():
        assert time.monotonic() < until, "not in time"
        time.sleep(0.01)


def test_e1_a_start_is_told_as_readers_of_the_stream_know_it(tmp_path: Path) -> None:
    """Behaviour E1."""
    line = told(
        tmp_path,
        "dispatch.launched",
        gap="A-1",
        dispatch="a-1-x",
        backend="claude",
        pid=4711,
        branch="claude/a-1",
        worktree="/repo/.claude/worktrees/a-1",
    )

    assert line == {
        "ts": "2026-04-27T12:00:00Z",
        "session": "a-1-x",
        "event": "session_start",
        "kind": "dispatch_started",
        "gap": "A-1",
        "dispatch": "a-1-x",
        "backend": "claude",
        "pid": 4711,
        "branch": "claude/a-1",
        "path": "/repo/.claude/worktrees/a-1",
        "worktree": "repo",
        "harness": "fleet-dispatcher",
    }
    assert list(line)[:4] == ["ts", "session", "event", "kind"]


@pytest.mark.parametrize(
    ("event", "fields", "name", "kind"),
    [
        ("dispatch.silent", {"dispatch": "d"}, "ALERT", "silent_subagent"),
        ("dispatch.overdue", {"dispatch": "d"}, "ALERT", "overdue_subagent"),
        ("dispatch.settled", {"dispatch": "d"}, "session_end", "dispatch_settled"),
        ("pull.changed", {"dispatch": "d"}, "pull_changed", "pull_changed"),
        ("daemon.started", {}, "daemon_started", "daemon_started"),
        ("dispatching.paused", {"by": "operator"}, "dispatching_paused", "dispatching_paused"),
        ("dispatching.paused", {"by": "fuse"}, "ALERT", "dispatching_paused"),
        ("backend.parked", {}, "ALERT", "backend_parked"),
        ("pulls.unavailable", {}, "ALERT", "pulls_unavailable"),
    ],
)
def test_e1_what_somebody_should_look_at_is_an_alert(
    tmp_path: Path, event: str, fields: Mapping[str, object], name: str, kind: str
) -> None:
    """Behaviour E1."""
    line = told(tmp_path, event, **fields)

    assert (line["event"], line["kind"]) == (name, kind)
    assert line["session"] == fields.get("dispatch", "orchestrator-7")


def test_what_is_unknown_or_empty_is_left_out(tmp_path: Path) -> None:
    line = told(tmp_path, "dispatch.settled", pull=None, reason="", cost_usd=0.0, siblings=0)

    assert {"pull", "reason"} & line.keys() == set()
    assert (line["cost_usd"], line["siblings"]) == (0.0, 0)


def test_i7_nothing_secret_and_nothing_that_moves_a_terminal_gets_into_a_line(
    tmp_path: Path,
) -> None:
    """Promise I7."""
    line = told(tmp_path, "x.y", reason=f"key {SECRET}\x1b[2J\x00\r\nforged\u202e\ud800 \u2028 é")

    text = (tmp_path / "ambient.jsonl").read_bytes()
    assert line["reason"] == "key [redacted] forged   é"
    assert text.count(b"\n") == 1
    assert not any((byte < 32 and byte != 10) or byte > 126 for byte in text)


def test_fields_cannot_pass_for_what_every_line_has(tmp_path: Path) -> None:
    line = told(tmp_path, "x.y", kind="forged", session="forged", ts="forged", harness="forged")

    assert (line["kind"], line["session"]) == ("x_y", "orchestrator-7")
    assert (line["ts"], line["harness"]) == ("2026-04-27T12:00:00Z", "fleet-dispatcher")


def test_a_line_is_never_longer_than_what_is_appended_in_one_piece(tmp_path: Path) -> None:
    told(tmp_path, "x.y", **{f"f{n}": "\N{PILE OF POO}" * 10_000 for n in range(12)})

    assert 1000 < len((tmp_path / "ambient.jsonl").read_bytes()) <= LINE_BYTES


def test_a_number_beyond_all_numbers_is_still_a_line_of_json(tmp_path: Path) -> None:
    assert told(tmp_path, "x.y", duration_s=10**30)["duration_s"] == 10**30


def test_lines_of_others_stay_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "ambient.jsonl"
    before = b'{"event":"file_edit"}\nno json at all\n\xff\n'
    file.write_bytes(before)

    told_by_us = a_stream(tmp_path)
    told_by_us.hear("x.y", {})
    told_by_us.close(PATIENCE_S)

    assert file.read_bytes().startswith(before)
    assert json.loads(file.read_bytes()[len(before) :])["kind"] == "x_y"


def test_a_line_that_another_left_torn_does_not_swallow_ours(tmp_path: Path) -> None:
    file = tmp_path / "ambient.jsonl"
    file.write_text('{"event":"torn')

    stream = a_stream(tmp_path)
    stream.hear("x.y", {})
    stream.close(PATIENCE_S)

    torn, ours = file.read_text().splitlines()
    assert torn == '{"event":"torn'
    assert json.loads(ours)["kind"] == "x_y"


def test_the_folder_is_made_when_it_is_missing(tmp_path: Path) -> None:
    assert told(tmp_path / "a" / "locks", "x.y")["kind"] == "x_y"


WRITER = """
import sys
from pathlib import Path
from chump_orchestrator.adapters import ambient
from chump_orchestrator.adapters.host import HostClock
ambient.MOST_BYTES = int(sys.argv[3])
stream = ambient.AmbientStream(
    Path(sys.argv[1]), HostClock(), session=sys.argv[2], worktree="repo", hide=str
)
for number in range(500):
    stream.hear("x.y", {"number": number, "text": "t" * 200})
stream.close(30)
"""


def a_writer(folder: Path, session: str, most_bytes: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", WRITER, str(folder), session, str(most_bytes)])


def shell_writer(folder: Path, lines: int) -> subprocess.Popen[bytes]:
    """A tool that appends in the manner of shells, without any lock."""
    script = (
        f'i=0; while [ $i -lt {lines} ]; do echo "{{\\"session\\":\\"shell\\",\\"number\\":$i}}"'
        f' >> "{folder}/ambient.jsonl"; i=$((i+1)); done'
    )
    return subprocess.Popen(["sh", "-c", script])


def test_two_writers_at_once_and_a_shell_lose_no_line_and_mix_none(tmp_path: Path) -> None:
    writers = [a_writer(tmp_path, name, 2**30) for name in ("a", "b")]
    writers.append(shell_writer(tmp_path, 500))

    assert [writer.wait(60) for writer in writers] == [0, 0, 0]

    found = lines_of(tmp_path / "ambient.jsonl")
    assert Counter(line["session"] for line in found) == {"a": 500, "b": 500, "shell": 500}
    for name in ("a", "b", "shell"):
        numbers = [line["number"] for line in found if line["session"] == name]
        assert numbers == list(range(500))


def test_what_is_put_aside_meanwhile_loses_no_line_either(tmp_path: Path) -> None:
    """Some 400 kB of lines; a file is put aside at 120 kB, and three old ones are kept."""
    writers = [a_writer(tmp_path, name, 120_000) for name in ("a", "b")]
    writers.append(shell_writer(tmp_path, 500))

    assert [writer.wait(60) for writer in writers] == [0, 0, 0]

    old = sorted(tmp_path.glob("ambient.jsonl.[0-9]"))
    found = lines_of(*old, tmp_path / "ambient.jsonl")
    assert 2 <= len(old) <= OLD_FILES
    assert Counter(line["session"] for line in found) == {"a": 500, "b": 500, "shell": 500}


def test_only_the_latest_old_files_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ambient, "MOST_BYTES", 1)
    stream = a_stream(tmp_path)
    for number in range(6):
        stream.hear("x.y", {"number": number})
    stream.close(PATIENCE_S)

    names = sorted(path.name for path in tmp_path.glob("ambient.jsonl*") if "lock" not in path.name)
    assert names == [f"ambient.jsonl.{n}" for n in (1, 2, 3)]
    numbers = [lines_of(tmp_path / name)[0]["number"] for name in names]
    assert numbers == [5, 4, 3]


def test_a_file_that_somebody_else_puts_aside_is_left_to_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ambient, "MOST_BYTES", 1)
    with (tmp_path / "ambient.jsonl.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stream = a_stream(tmp_path)
        stream.hear("x.y", {"number": 1})
        stream.close(PATIENCE_S)

    assert lines_of(tmp_path / "ambient.jsonl")[0]["number"] == 1
    assert list(tmp_path.glob("ambient.jsonl.1")) == []


@contextlib.contextmanager
def a_small_disk(folder: Path, size: str) -> Iterator[Path]:
    disk = folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False).returncode != 0:
        pytest.skip("no file system can be mounted here")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.root
def test_a_full_disk_costs_nobody_time_and_its_lines_come_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ambient, "AGAIN_S", 0.05)
    monkeypatch.setattr(ambient, "LONGEST_AGAIN_S", 0.05)
    with a_small_disk(tmp_path, "64k") as disk, structlog.testing.capture_logs() as logged:
        (disk / "ballast").write_bytes(b"x" * 60 * 1024)
        stream = a_stream(disk)
        for number in range(100):
            stream.hear("x.y", {"number": number, "text": "t" * 250})
        eventually(lambda: bool(logged))
        (disk / "ballast").unlink()
        stream.close(PATIENCE_S)
        lines = (disk / "ambient.jsonl").read_bytes().split(b"\n")

    whole = []
    for line in lines:
        with contextlib.suppress(ValueError):
            whole.append(json.loads(line)["number"])
    assert whole == list(range(100))
    assert [one["event"] for one in logged] == ["ambient.unwritten", "ambient.resumed"]
    assert logged[0]["error"] == "No space left on device"


def test_what_cannot_be_written_is_kept_then_counted_then_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ambient, "AGAIN_S", 0.02)
    monkeypatch.setattr(ambient, "LONGEST_AGAIN_S", 0.02)
    monkeypatch.setattr(ambient, "MOST_WAITING", 10)
    in_the_way = tmp_path / "ambient.jsonl"
    in_the_way.mkdir()
    stream = a_stream(tmp_path)
    with structlog.testing.capture_logs() as logged:
        stream.hear("x.y", {"number": 0})
        eventually(lambda: bool(logged))  # the thread is at it, and its queue is empty
        for number in range(1, 41):
            stream.hear("x.y", {"number": number})
        in_the_way.rmdir()
        eventually(lambda: len(logged) == 2)
        eventually(lambda: len(lines_of(in_the_way)) >= 11)
        stream.hear("x.y", {"number": 41})
        stream.close(PATIENCE_S)

    found = [(line["kind"], line.get("number", line.get("count"))) for line in lines_of(in_the_way)]
    assert found == [
        *(("x_y", number) for number in range(11)),
        ("events_dropped", 30),
        ("x_y", 41),
    ]
    assert [(one["event"], one["log_level"]) for one in logged] == [
        ("ambient.unwritten", "warning"),
        ("ambient.resumed", "info"),
    ]


@pytest.mark.parametrize("there", ["a pipe", "a link", "a device"])
def test_only_a_file_of_its_own_is_written_to(tmp_path: Path, there: str) -> None:
    path = tmp_path / "ambient.jsonl"
    precious = tmp_path / "precious"
    precious.write_text("precious\n")
    if there == "a pipe":
        os.mkfifo(path)
    elif there == "a link":
        path.symlink_to(precious)
    else:
        path.symlink_to("/dev/null")
    stream = a_stream(tmp_path)
    with structlog.testing.capture_logs() as logged:
        stream.hear("x.y", {})
        eventually(lambda: bool(logged))
        stream.close(PATIENCE_S)

    assert logged[0]["event"] == "ambient.unwritten"
    assert precious.read_text() == "precious\n"


def test_a_pipe_that_somebody_reads_is_none_to_write_to_either(tmp_path: Path) -> None:
    path = tmp_path / "ambient.jsonl"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    stream = a_stream(tmp_path)
    try:
        with structlog.testing.capture_logs() as logged:
            stream.hear("x.y", {})
            eventually(lambda: bool(logged))
            stream.close(PATIENCE_S)
    finally:
        os.close(reader)

    assert logged[0]["error"] == "it is no ordinary file"


def test_no_thread_begins_before_there_is_something_to_tell_nor_outlives_its_end(
    tmp_path: Path,
) -> None:
    def threads() -> int:
        return sum(1 for thread in threading.enumerate() if thread.name == "ambient")

    before = threads()
    stream = a_stream(tmp_path)
    idle = threads()
    stream.hear("x.y", {})
    at_work = threads()
    stream.close(PATIENCE_S)

    assert (idle - before, at_work - before, threads() - before) == (0, 1, 0)


def test_the_time_is_that_of_the_clock_in_utc(tmp_path: Path) -> None:
    stream = AmbientStream(tmp_path, HostClock(), session="s", worktree="w", hide=str)
    stream.hear("x.y", {})
    stream.close(PATIENCE_S)

    (line,) = lines_of(tmp_path / "ambient.jsonl")
    assert len(line["ts"]) == len("2026-04-27T12:00:00Z")
    assert line["ts"].endswith("Z")
