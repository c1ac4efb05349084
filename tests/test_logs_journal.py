"""Events as records of the journal: what arrives at its socket, and what becomes of it without."""

from __future__ import annotations

import fcntl
import io
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from chump_orchestrator import logs
from chump_orchestrator.logs import chain
from chump_orchestrator.logs.journald import HELD_BACK, field_name, record
from tests.e2e.cli_repository import a_quiet_log

SECRET = "hush-hush-hush"


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with a_quiet_log():
        yield
    logs.release()


class Journal:
    """What listens where the journal does, and reads its records by the rules of its protocol."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)

    def read(self) -> dict[str, str]:
        """Return the next record; `BlockingIOError` when there is none."""
        data, files, _, _ = socket.recv_fds(self._socket, 1 << 20, 1)
        if files:
            assert data == b""
            with os.fdopen(files[0], "rb") as file:
                self.sealed = _seals(file.fileno())
                file.seek(0)
                data = file.read()
        return dict(parsed(data))

    def waiting(self) -> list[dict[str, str]]:
        """Return all records that have arrived."""
        found = []
        while True:
            try:
                found.append(self.read())
            except BlockingIOError:
                return found

    def close(self) -> None:
        self._socket.close()


def _seals(descriptor: int) -> int:
    return fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) if sys.platform == "linux" else 0


def parsed(data: bytes) -> Iterator[tuple[str, str]]:
    """Take a record apart as the journal does, which knows nothing of how we put it together."""
    while data:
        line, _, rest = data.partition(b"\n")
        name, has_value, value = line.partition(b"=")
        if not has_value:
            (size,) = struct.unpack_from("<Q", rest)
            value, rest = rest[8 : 8 + size], rest[8 + size :]
            assert rest[:1] == b"\n"
            rest = rest[1:]
        yield name.decode("ascii"), value.decode()
        data = rest


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    made = Journal(tmp_path / "journal")
    yield made
    made.close()


def tell(
    journal: Path, say: Callable[[Any], object], *, level: str = "debug", **options: Any
) -> str:
    """Have `say` tell things to a log that goes to `journal`; return what the stream got."""
    stream = io.StringIO()
    logs.configure(format="journal", level=level, stream=stream, journal=str(journal), **options)
    say(structlog.get_logger())
    return stream.getvalue()


def test_an_event_is_a_record_that_can_be_searched_by_its_fields(journal: Journal) -> None:
    def say(log: Any) -> None:
        structlog.contextvars.bind_contextvars(
            gap="INFRA-12", dispatch="infra-12-x", backend="claude", attempt=2
        )
        log.info(
            "dispatch.settled",
            outcome="killed",
            cause="deadline",
            reason="no pull request after 40m",
            pull=None,
            duration_s=2400,
            next="",
        )

    said = tell(journal.path, say)
    structlog.contextvars.clear_contextvars()

    assert said == ""
    assert journal.waiting() == [
        {
            "MESSAGE": "dispatch.settled gap=INFRA-12 outcome=killed cause=deadline"
            ' reason="no pull request after 40m" duration_s=2400'
            " dispatch=infra-12-x backend=claude attempt=2",
            "PRIORITY": "6",
            "SYSLOG_IDENTIFIER": "chump-orchestrator",
            "EVENT": "dispatch.settled",
            "GAP": "INFRA-12",
            "DISPATCH": "infra-12-x",
            "BACKEND": "claude",
            "ATTEMPT": "2",
            "OUTCOME": "killed",
            "CAUSE": "deadline",
            "REASON": "no pull request after 40m",
            "DURATION_S": "2400",
        }
    ]


@pytest.mark.parametrize(
    ("method", "priority"),
    [("debug", "7"), ("info", "6"), ("warning", "4"), ("error", "3"), ("exception", "3")],
)
def test_its_level_is_its_priority(journal: Journal, method: str, priority: str) -> None:
    tell(journal.path, lambda log: getattr(log, method)("daemon.started"))

    assert [one["PRIORITY"] for one in journal.waiting()] == [priority]


def test_a_value_of_several_lines_arrives_whole(journal: Journal) -> None:
    tell(journal.path, lambda log: log.warning("settings.kept", problem="one\ntwo=2\n\nthree"))

    (got,) = journal.waiting()
    assert got["PROBLEM"] == "one\ntwo=2\n\nthree"
    assert got["MESSAGE"] == 'settings.kept problem="one\\ntwo=2\\n\\nthree"'


def test_a_traceback_is_part_of_the_message(journal: Journal) -> None:
    """`journalctl` shows nothing else unless it is asked to."""

    def say(log: Any) -> None:
        try:
            raise ValueError("it broke")
        except ValueError:
            log.exception("dispatch.broken", gap="A-1")

    tell(journal.path, say)

    (got,) = journal.waiting()
    first, *rest = got["MESSAGE"].splitlines()
    assert first == "dispatch.broken gap=A-1"
    assert rest[0].startswith("Traceback")
    assert rest[-1] == "ValueError: it broke"
    assert "EXCEPTION" not in got


@pytest.mark.parametrize("size", [100_000, 300_000, 3_000_000])
@pytest.mark.skipif(sys.platform != "linux", reason="the journal is Linux's")
def test_a_record_of_any_size_arrives(journal: Journal, size: int) -> None:
    said = tell(journal.path, lambda log: log.info("daemon.started", text="x" * size))

    (got,) = journal.waiting()
    assert said == ""
    assert len(got["TEXT"]) == size
    if size > 1_000_000:
        # Shrink, grow, write, and the seals themselves: the journal refuses what could change.
        assert journal.sealed & 0b1111 == 0b1111


def test_secrets_get_into_no_field(journal: Journal) -> None:
    """Promise I7."""

    def say(log: Any) -> None:
        log.info("a.b", text=SECRET, more=[{"deep": SECRET}], path=Path("/x") / SECRET)
        try:
            raise ValueError(SECRET)
        except ValueError as error:
            log.exception("a.c", error=error)

    tell(journal.path, say, secrets=(SECRET,))

    got = journal.waiting()
    assert len(got) == 2
    assert SECRET not in repr(got)
    assert repr(got).count(logs.REDACTED) >= 8


def test_what_would_move_a_terminal_is_taken_out(journal: Journal) -> None:
    """The journal would show no such message at all."""
    tell(journal.path, lambda log: log.info("a.b", text="x\x1b[2J\x07\u202ey\rz"))

    (got,) = journal.waiting()
    assert got["TEXT"] == "x[2Jyz"
    assert got["MESSAGE"] == "a.b text=x[2Jyz"


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("duration_s", "DURATION_S"),
        ("message", "CHUMP_MESSAGE"),
        ("priority", "CHUMP_PRIORITY"),
        ("unit", "CHUMP_UNIT"),
        ("syslog_identifier", "CHUMP_SYSLOG_IDENTIFIER"),
        ("code_line", "CHUMP_CODE_LINE"),
        ("_pid", "PID"),
        ("9lives", "LIVES"),
        ("größe in m²", "GR_SSE_IN_M_"),
        ("__", "FIELD"),
        ("x" * 100, "X" * 64),
    ],
)
def test_a_field_is_called_what_the_journal_allows(key: str, name: str) -> None:
    assert field_name(key) == name


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text())


@given(st.dictionaries(st.text(), VALUES))
def test_every_event_is_a_record_that_can_be_read(fields: Mapping[str, object]) -> None:
    event = {**fields, "event": "a.b", "level": "info"}

    names = [name for name, _ in parsed(record(event))]

    assert names[:3] == ["MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER"]
    assert names.count("MESSAGE") == names.count("PRIORITY") == 1
    for name in names:
        assert len(name) <= 64
        assert name[0].isalpha()
        assert set(name) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")


def test_without_a_journal_each_line_tells_its_priority(tmp_path: Path) -> None:
    def say(log: Any) -> None:
        log.warning("dispatch.overdue", gap="A-1")
        log.error("daemon.failed", exception="Traceback:\n  a line")

    said = tell(tmp_path / "nothing", say)

    assert said.splitlines() == [
        "<4>dispatch.overdue gap=A-1",
        "<3>daemon.failed",
        "<3>Traceback:",
        "<3>  a line",
    ]


def test_a_journal_that_has_gone_for_a_while_is_done_without(journal: Journal) -> None:
    stream = io.StringIO()
    logs.configure(format="journal", stream=stream, journal=str(journal.path))
    log = structlog.get_logger()

    log.info("a.first")
    first = journal.waiting()
    journal.close()
    journal.path.unlink()
    log.info("a.second")
    again = Journal(journal.path)
    log.info("a.third")
    third = again.waiting()
    again.close()

    assert [one["EVENT"] for one in (*first, *third)] == ["a.first", "a.third"]
    assert stream.getvalue() == "<6>a.second\n"


def test_a_journal_that_is_slow_holds_nobody_up_and_loses_nothing(journal: Journal) -> None:
    stream = io.StringIO()
    logs.configure(format="journal", stream=stream, journal=str(journal.path))
    log = structlog.get_logger()
    # More than fits into the queue of a socket, fewer than that and what is held back.
    count = HELD_BACK

    for number in range(count):
        log.info("a.b", number=number)
    got = journal.waiting()
    while len(got) < count:
        before = len(got)
        log.info("a.more")
        got += [one for one in journal.waiting() if one["EVENT"] == "a.b"]
        assert len(got) > before

    assert [one["NUMBER"] for one in got] == [str(number) for number in range(count)]
    assert stream.getvalue() == ""


def test_a_journal_that_never_reads_costs_no_more_than_the_oldest_events(journal: Journal) -> None:
    logs.configure(format="journal", stream=io.StringIO(), journal=str(journal.path))
    log = structlog.get_logger()

    for number in range(5 * HELD_BACK):
        log.info("a.b", number=number)
    got = journal.waiting()
    while got[-1]["EVENT"] != "a.c":
        log.info("a.c")
        got += journal.waiting()

    numbers = [int(one["NUMBER"]) for one in got if "NUMBER" in one]
    assert numbers == sorted(numbers)
    assert len(numbers) >= HELD_BACK - 2
    assert numbers[-1] == 5 * HELD_BACK - 1


def test_what_still_waits_at_the_end_is_sent(journal: Journal) -> None:
    logs.configure(format="journal", stream=io.StringIO(), journal=str(journal.path))
    sent = 0
    while len(journal_waits()) == 0:
        structlog.get_logger().info("a.b", number=(sent := sent + 1))
    got = journal.waiting()

    logs.release()

    assert len(got) + len(journal.waiting()) == sent


def journal_waits() -> list[object]:
    """What the log that is set up holds back."""
    (close,) = chain._closing
    waiting = close.__self__._waiting  # type: ignore[attr-defined]
    return list(waiting)


def stream_of(file: io.TextIOBase) -> str:
    found = os.fstat(file.fileno())
    return f"{found.st_dev}:{found.st_ino}"


def test_auto_is_the_journal_where_the_stream_leads_there(journal: Journal, tmp_path: Path) -> None:
    with (tmp_path / "stderr").open("w+") as stream:
        logs.configure(stream=stream, journal=str(journal.path), journal_stream=stream_of(stream))
        structlog.get_logger().info("daemon.started")

        assert [one["EVENT"] for one in journal.waiting()] == ["daemon.started"]
        assert Path(stream.name).read_text() == ""


@pytest.mark.parametrize("variable", ["", "1:2", "x"])
def test_auto_is_no_journal_for_a_stream_that_leads_elsewhere(
    journal: Journal, tmp_path: Path, variable: str
) -> None:
    """Who starts a program with another stderr hands the variable down all the same."""
    with (tmp_path / "stderr").open("w+") as stream:
        logs.configure(stream=stream, journal=str(journal.path), journal_stream=variable)
        structlog.get_logger().info("daemon.started")

        assert journal.waiting() == []
        assert '"event": "daemon.started"' in Path(stream.name).read_text()


def test_auto_on_a_terminal_is_for_people_whatever_the_variable_says(journal: Journal) -> None:
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w", buffering=1) as terminal:
        logs.configure(
            stream=terminal, journal=str(journal.path), journal_stream=stream_of(terminal)
        )
        structlog.get_logger().info("daemon.started")
        shown = os.read(ours, 4096)
    os.close(ours)

    assert b"daemon.started" in shown
    assert journal.waiting() == []
