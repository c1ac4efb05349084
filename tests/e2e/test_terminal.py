"""What people see of a run: a table that stays in place, and an account at the end."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import sys
import termios
from pathlib import Path

import pytest

from tests.e2e.cli_repository import Repository
from tests.e2e.projects import Make, gaps

pytestmark = pytest.mark.timeout(240)

AGENT = """\
print("WARN: \\x1b[31mlooking around", file=sys.stderr, flush=True)
if gap == "FAIL-1":
    sys.exit(7)
time.sleep(1.5)
ship()
"""


def on_a_terminal(
    folder: Path, *arguments: str, columns: int = 130, term: str = "xterm"
) -> tuple[int, str]:
    """Run the program on a terminal of its own; return its exit code and all that it wrote."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.environ["TERM"] = term
        os.environ["COLUMNS"] = str(columns)
        os.execv(sys.executable, [sys.executable, "-m", "chump_orchestrator", *arguments])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    written = bytearray()
    while True:
        try:
            chunk = os.read(terminal, 65536)
        except OSError:  # EIO on Linux, where others just end, once the last writer has gone
            break
        if not chunk:
            break
        written += chunk
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), written.decode()


def without_style(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


def test_a_run_on_a_terminal_shows_a_table_the_story_and_the_account(make: Make) -> None:
    """Behaviour C8: what was not done is listed at the end, with the reason."""
    project = make(
        gaps("GOOD-1", "FAIL-1")
        + "- {id: NEXT-1, title: t, priority: P1, effort: s, status: open, depends_on: [FAIL-1]}\n"
        + "- {id: LATER-1, title: t, priority: P4, effort: s, status: open}\n",
        AGENT,
    )

    code, written = on_a_terminal(project.root, "run", "--once")

    shown = without_style(written)
    assert code == 1, shown
    assert re.search(r"GAP +STATE +TIME +SILENT +PULL +BACKEND +LAST WORDS", shown)
    assert re.search(r"GOOD-1 +running .* of 20m 00s .*looking around", shown)
    assert re.search(r"\d\d:\d\d:\d\d GOOD-1 +agent \d+ works on branch claude/good-1", shown)
    assert re.search(r"GOOD-1 +SHIPPED", shown)
    assert "dispatch.launched" not in shown, "the story stands for the log"
    account = shown[shown.rindex("OUTCOME") :]
    assert re.search(r"FAIL-1 +killed +exit code 7", account)
    assert re.search(r"GOOD-1 +shipped", account)
    assert re.search(r"FAIL-1 +parked: ", account)
    assert re.search(r"NEXT-1 +waits for FAIL-1", account)
    assert "LATER-1" not in account, "it was never for this run"


def test_what_an_agent_says_moves_no_terminal(make: Make) -> None:
    """Promise I7: an escape sequence in its output comes out as text, or not at all."""
    project = make(gaps("GOOD-1"), AGENT)

    _, written = on_a_terminal(project.root, "run", "--once")

    assert "looking around" in written
    assert "\x1b[31mlooking" not in written


@pytest.mark.parametrize("term", ["dumb", "xterm"])
def test_a_terminal_that_cannot_hold_a_table_gets_the_log(make: Make, term: str) -> None:
    """Settings may ask for the log, too: `log.format = "console"`."""
    log = "" if term == "dumb" else '[log]\nformat = "console"\n'
    project = make(gaps("GOOD-1"), "ship()", more=log)

    code, written = on_a_terminal(project.root, "run", "--once", term=term)

    assert code == 0, written
    assert "dispatch.launched" in written
    assert "LAST WORDS" not in written


def test_a_narrow_terminal_gets_fewer_columns(make: Make) -> None:
    project = make(gaps("GOOD-1"), AGENT)

    _, written = on_a_terminal(project.root, "run", "--once", columns=80)

    shown = without_style(written)
    assert re.search(r"GAP +STATE +TIME +SILENT +PULL", shown)
    assert "LAST WORDS" not in shown


def test_without_a_terminal_the_account_is_the_data_and_the_log_is_talk(make: Make) -> None:
    project = make(gaps("GOOD-1"))

    done = project.program("run", "--once")

    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"GAP +OUTCOME +REASON\nGOOD-1 +shipped +branch \S+ merged\n", done.stdout)
    assert "dispatch.launched" in done.stderr


def test_status_is_watched_until_the_daemon_ends(make: Make) -> None:
    project = make(gaps("GOOD-1"), AGENT)
    daemon = project.start("--once")
    project.eventually((project.state / "control.sock").exists)

    code, written = on_a_terminal(project.root, "status", "--watch")

    shown = without_style(written)
    assert code == 3, shown
    assert re.search(r"GOOD-1 +running ", shown)
    assert "no daemon runs" in shown
    assert daemon.wait(60) == 0


@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_status_is_watched_on_a_terminal_only(
    repository: Repository, arguments: tuple[str, ...]
) -> None:
    said = repository.say("status", "--watch", *arguments)

    assert said.code == 2
    assert "terminal" in said.err
