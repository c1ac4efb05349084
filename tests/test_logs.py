"""What becomes of events on their way out: nothing breaks, leaks, or moves a terminal."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

import pytest
import structlog

from chump_orchestrator import logs
from tests.e2e.cli_repository import a_quiet_log

SECRET = "hush-hush-hush"

NO_JOURNAL = "/nowhere/journal"
"""No test speaks to the journal of the machine that it runs on."""


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with a_quiet_log():
        yield


def told(
    say: Callable[[Any], object], *, style: str = "json", secrets: tuple[str, ...] = ()
) -> str:
    """Return what the log says when `say` is handed a logger."""
    stream = io.StringIO()
    logs.configure(format=style, secrets=secrets, stream=stream, journal=NO_JOURNAL)
    say(structlog.get_logger())
    return stream.getvalue()


def a_pipe_that_nobody_reads() -> TextIO:
    ours, theirs = os.pipe()
    os.close(ours)
    return os.fdopen(theirs, "w", buffering=1)


def a_full_disk() -> TextIO:
    return Path("/dev/full").open("w", buffering=1)


def a_terminal_that_hung_up() -> TextIO:
    ours, theirs = os.openpty()
    stream = os.fdopen(theirs, "w", buffering=1)
    os.close(ours)
    return stream


def a_closed_file() -> TextIO:
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("style", ["auto", "console", "json", "journal"])
@pytest.mark.parametrize(
    "lost",
    [
        a_pipe_that_nobody_reads,
        pytest.param(
            a_full_disk,
            marks=pytest.mark.skipif(
                not Path("/dev/full").exists(), reason="there is no /dev/full"
            ),
        ),
        a_terminal_that_hung_up,
        a_closed_file,
    ],
)
def test_a_log_that_cannot_be_written_harms_nobody(lost: Callable[[], TextIO], style: str) -> None:
    """Promise I1: the daemon outlives whoever read its log."""
    stream = lost()
    logs.configure(format=style, stream=stream, journal=NO_JOURNAL)

    for _ in range(3):
        structlog.get_logger().info("dispatch.launched", text="x" * 20_000)

    with pytest.raises((OSError, ValueError)):
        print("x" * 20_000, file=stream, flush=True)
    with suppress(OSError, ValueError):  # what is buffered must not fail the collector
        stream.detach() if isinstance(stream, io.StringIO) else stream.close()


def test_without_a_standard_error_nothing_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", None)
    logs.configure()

    structlog.get_logger().error("daemon.failed")


def raising(text: str) -> Callable[[Any], object]:
    def say(log: Any) -> None:
        try:
            raise ValueError(text)
        except ValueError:
            log.exception("daemon.failed", error=text)

    return say


@pytest.mark.parametrize("style", ["console", "json", "journal"])
def test_secrets_are_cut_out_of_tracebacks_too(style: str) -> None:
    """Promise I6."""
    said = told(raising(f"no access with {SECRET}"), style=style, secrets=(SECRET,))

    assert "Traceback" in said
    assert "ValueError" in said
    assert SECRET not in said
    assert said.count(logs.REDACTED) >= 2


@pytest.mark.parametrize(
    "value",
    [
        SECRET,
        [SECRET],
        (1, [SECRET]),
        {SECRET},
        {"env": {"A": [SECRET]}},
        {SECRET: 1},
        Path("/tmp") / SECRET,
        ValueError(SECRET),
    ],
    ids=repr,
)
def test_secrets_are_cut_out_however_deep_they_lie(value: object) -> None:
    said = told(lambda log: log.info("agent.exited", what=value), secrets=(SECRET,))

    assert SECRET not in said
    assert logs.REDACTED in said


def test_what_is_no_secret_stays_what_it_is() -> None:
    said = told(
        lambda log: log.info("agent.exited", a=1, b=[True, None, 0.5], c={"d": "e"}),
        secrets=(SECRET, "short"),
    )

    document = json.loads(said)
    assert {key: document[key] for key in "abc"} == {
        "a": 1,
        "b": [True, None, 0.5],
        "c": {"d": "e"},
    }


def test_texts_of_others_neither_move_a_terminal_nor_forge_lines() -> None:
    """Promise I7."""
    evil = "x\x1b[2J\x1b]0;title\x07\r\n12:00:00 [error] daemon.failed\u202e"

    tight = "x\x1b[2Jy\x07"  # what has no blanks, structlog prints as it is
    said = told(
        lambda log: log.warning("lease.ignored", path=evil, tight=tight, more=[evil]),
        style="console",
    )

    assert said.count("\n") == 1
    assert not set("\x1b\x07\r\u202e") & set(said)
    assert "12:00:00 [error] daemon.failed" in said


def test_a_traceback_keeps_its_lines_and_nothing_worse() -> None:
    said = told(raising("a\x1b[2Jb"), style="console")

    assert "\x1b" not in said
    assert said.count("\n") > 3
    assert "ValueError: a[2Jb" in said


@pytest.mark.parametrize(
    ("level", "heard"),
    [
        ("debug", "diwe"),
        ("info", "iwe"),
        ("warning", "we"),
        ("error", "e"),
        ("critical", ""),
    ],
)
def test_a_level_leaves_out_what_is_below_it(level: str, heard: str) -> None:
    stream = io.StringIO()
    logs.configure(format="json", level=level, stream=stream)
    log = structlog.get_logger()

    for method in ("debug", "info", "warning", "error"):
        getattr(log, method)("daemon.started")

    assert [json.loads(line)["level"][0] for line in stream.getvalue().splitlines()] == list(heard)


def test_colours_go_by_where_the_log_goes() -> None:
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w", buffering=1) as terminal:
        logs.configure(format="console", stream=terminal)
        structlog.get_logger().info("daemon.started")
        shown = os.read(ours, 4096)
    os.close(ours)

    assert b"\x1b[" in shown
    assert "\x1b[" not in told(lambda log: log.info("daemon.started"), style="console")
