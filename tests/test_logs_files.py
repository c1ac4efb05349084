"""A log in a file of its own: it is bounded, its owner's alone, and harms nobody when it fails."""

from __future__ import annotations

import io
import json
import os
import resource
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import structlog

from chump_orchestrator import logs
from tests.e2e.cli_repository import a_quiet_log

SECRET = "hush-hush-hush"


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with a_quiet_log():
        yield
    logs.release()


def a_file(path: Path, *, max_bytes: int = 1000, keep: int = 3) -> logs.RotatingFile:
    return logs.RotatingFile(path, max_bytes, keep)


def lines_in(path: Path) -> list[str]:
    return path.read_text().splitlines()


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """As on a full disk, a write that would make a larger one takes what fits, and then fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_file_is_put_aside_and_the_oldest_goes(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    file = a_file(path, max_bytes=1000, keep=3)

    for number in range(100):
        file.write(f"{number:099}\n")
    file.close()

    there = {one.name: [int(line) for line in lines_in(one)] for one in tmp_path.iterdir()}
    assert there == {
        "x.log.2": list(range(70, 80)),
        "x.log.1": list(range(80, 90)),
        "x.log": list(range(90, 100)),
    }


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_there_are_never_more_nor_larger_ones_than_was_said(tmp_path: Path, keep: int) -> None:
    file = a_file(tmp_path / "x.log", max_bytes=1000, keep=keep)

    for number in range(200):
        file.write("x" * (number * 7 % 400) + "\n")
        sizes = [one.stat().st_size for one in tmp_path.iterdir()]
        assert len(sizes) <= keep
        assert max(sizes) <= 1000
    file.close()


def test_a_line_larger_than_a_file_has_one_to_itself(tmp_path: Path) -> None:
    file = a_file(tmp_path / "x.log", max_bytes=100)

    for text in ("a\n", "b" * 500 + "\n", "c\n"):
        file.write(text)
    file.close()

    assert [lines_in(tmp_path / f"x.log{end}") for end in (".2", ".1", "")] == [
        ["a"],
        ["b" * 500],
        ["c"],
    ]


def test_what_an_earlier_daemon_wrote_is_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    path.write_text("earlier\n")
    file = a_file(path)

    file.write("later\n")
    file.close()

    assert lines_in(path) == ["earlier", "later"]


def test_only_its_owner_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "x.log"
    before = os.umask(0)
    try:
        file = a_file(path)
        file.write("text\n")
        file.close()
    finally:
        os.umask(before)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("what", ["moved", "deleted", "with its folder"])
def test_a_file_that_somebody_took_away_is_begun_anew(tmp_path: Path, what: str) -> None:
    """Other programs, too, put logs aside."""
    path = tmp_path / "logs" / "x.log"
    file = a_file(path)
    file.write("one\n")
    match what:
        case "moved":
            path.rename(tmp_path / "taken")
        case "deleted":
            path.unlink()
        case _:
            path.unlink()
            path.parent.rmdir()

    file.write("two\n")
    file.close()

    assert lines_in(path) == ["two"]


def test_no_link_leads_the_log_to_another_file(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine\n")
    (tmp_path / "x.log").symlink_to(tmp_path / "precious")
    file = a_file(tmp_path / "x.log")

    file.write("text\n")

    assert (tmp_path / "precious").read_text() == "mine\n"


@pytest.mark.parametrize("obstacle", ["a folder", "a pipe", "a file for a folder"])
def test_what_is_in_the_way_harms_nobody(tmp_path: Path, obstacle: str) -> None:
    path = tmp_path / "logs" / "x.log"
    match obstacle:
        case "a folder":
            path.mkdir(parents=True)
        case "a pipe":
            path.parent.mkdir()
            os.mkfifo(path)
        case _:
            path.parent.touch()
    file = a_file(path)

    assert file.write("text\n") == 5
    file.close()


def test_when_the_disk_is_full_lines_are_lost_and_later_ones_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    file = a_file(path, max_bytes=10_000)
    file.write("before\n")

    with no_file_larger_than(20):
        for _ in range(3):
            file.write("x" * 100 + "\n")
    file.write("after\n")
    file.close()

    first, *torn, last = lines_in(path)
    assert (first, last) == ("before", "after")
    assert len("".join(torn)) <= 20


def test_files_are_given_back(tmp_path: Path) -> None:
    before = len(list(Path("/dev/fd").iterdir()))
    for _ in range(20):
        logs.configure(stream=io.StringIO(), file=a_file(tmp_path / "x.log", max_bytes=100))
        structlog.get_logger().info("a.b", text="x" * 90)
    logs.release()

    assert len(list(Path("/dev/fd").iterdir())) == before


def test_with_a_file_the_stream_gets_nothing(tmp_path: Path) -> None:
    """launchd keeps what a service writes there for ever, in one file without bounds."""
    stream = io.StringIO()
    logs.configure(stream=stream, file=a_file(tmp_path / "x.log"), secrets=(SECRET,))

    structlog.get_logger().info("a.b", text=f"so {SECRET}")

    assert stream.getvalue() == ""
    (line,) = lines_in(tmp_path / "x.log")
    told = json.loads(line)
    assert (told["event"], told["level"], told["text"]) == ("a.b", "info", "so [redacted]")
    assert told["timestamp"].endswith("Z")


def test_a_terminal_gets_its_own_lines_beside_the_file(tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w", buffering=1) as terminal:
        logs.configure(stream=terminal, file=a_file(tmp_path / "x.log"), shown="warning")
        structlog.get_logger().info("a.quiet")
        structlog.get_logger().warning("a.loud")
        shown = os.read(ours, 4096).decode()
    os.close(ours)

    assert "a.loud" in shown
    assert "a.quiet" not in shown
    assert [json.loads(line)["event"] for line in lines_in(tmp_path / "x.log")] == [
        "a.quiet",
        "a.loud",
    ]


def test_a_file_for_people_has_dates_and_no_colours(tmp_path: Path) -> None:
    logs.configure(format="console", stream=io.StringIO(), file=a_file(tmp_path / "x.log"))

    structlog.get_logger().warning("a.b", text="one\x1b[2J\ntwo")

    (line,) = lines_in(tmp_path / "x.log")
    assert line[:2] == "20"
    assert line[10] == "T"
    assert "a.b" in line
    assert "\x1b" not in line


def test_lines_of_many_threads_stay_whole(tmp_path: Path) -> None:
    """Adapters tell things from threads of their own."""
    logs.configure(stream=io.StringIO(), file=a_file(tmp_path / "x.log", max_bytes=5000, keep=100))
    log = structlog.get_logger()

    def tell(who: int) -> None:
        for number in range(100):
            log.info("a.b", who=who, number=number, text="x" * 50)

    threads = [threading.Thread(target=tell, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    told = [json.loads(line) for one in tmp_path.iterdir() for line in lines_in(one)]
    assert len({(one["who"], one["number"]) for one in told}) == len(told) == 400
