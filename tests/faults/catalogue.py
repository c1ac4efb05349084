"""The fault catalogue as a table: `make faults`, or pytest with `-p tests.faults.catalogue`.

A test belongs to the case whose number its name begins with, `test_case_12_…`; control arms, which
show that a case fails once the mechanism under trial is switched off, have `control` behind it.
"""

from __future__ import annotations

import re
from collections import defaultdict

import pytest

CASES = {
    1: "the daemon is killed at each of its steps",
    2: "the shim is killed at each of its steps",
    3: "a shim comes late, and recovery was first",
    4: "a storm of kills",
    5: "an agent ends while no daemon runs",
    6: "a deadline passes while no daemon runs",
    7: "shims of another release",
    8: "the machine was started anew",
    9: "a recorded process id is another's by now",
    10: "two daemons on one repository",
    11: "the loop is blocked for long",
    12: "SIGTERM with four agents",
    13: "SIGINT twice",
    14: "SIGHUP with files that cannot be used",
    15: "a signal during each step of a launch",
    16: "a restart under running agents",
    17: "everything is suspended for a while",
    18: "an agent ignores TERM",
    19: "a wrapper does not pass TERM on",
    20: "a grandchild holds standard error",
    21: "double forks and sessions of their own",
    22: "processes that clear their environment",
    23: "a process bomb",
    24: "standard error without a line's end",
    25: "bytes that are no text, and text that moves terminals",
    26: "very much standard output",
    27: "a brief that nobody reads",
    28: "exit 0 without a request",
    29: "exit 1 after its request was merged",
    30: "an agent closes standard error and runs on",
    31: "an agent is stopped by SIGSTOP",
    32: "an agent that cannot be killed",
    33: "a program that cannot be started",
    34: "an agent is killed for memory",
    35: "twenty dispatches at once",
    36: "git is killed in the middle of an add",
    37: "a stranger's broken worktree",
    38: "stale and living locks of git's",
    39: "hooks, filters and prompts that hang or fail",
    40: "worktrees with work that is nowhere else",
    41: "something is in the way of a worktree",
    42: "a forge that fails in every way",
    43: "limits of the forge's rate",
    44: "requests that are not ours",
    45: "requests that are closed, reopened, drafts, or red",
    46: "databases that others hold locked",
    47: "the disk is full",
    48: "databases that are damaged, newer or read-only",
    49: "the clock jumps by a day",
    50: "a torn, replaced or vanished backlog",
    51: "entries that contradict one another",
    52: "very large and very deep backlogs",
    53: "hostile ids and titles",
    54: "a soak",
}

_CASE = re.compile(r"test_case_(\d+)_(control_)?")

_found: dict[tuple[int, bool], list[tuple[str, float, str]]] = defaultdict(list)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note what became of a test, once it has been called or was skipped."""
    found = _CASE.match(report.nodeid.rpartition("::")[2])
    if found is None or not (report.when == "call" or report.skipped or report.failed):
        return
    why = ""
    if report.skipped and isinstance(report.longrepr, tuple):
        why = str(report.longrepr[2]).removeprefix("Skipped: ")
    _found[int(found[1]), bool(found[2])].append((report.outcome, report.duration, why))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the catalogue: case, result, seconds, and how many control arms held."""
    terminalreporter.section("fault catalogue")
    total = 0.0
    for number, title in CASES.items():
        tests, controls = _found[number, False], _found[number, True]
        seconds = sum(duration for _, duration, _ in (*tests, *controls))
        total += seconds
        held = sum(outcome == "passed" for outcome, _, _ in controls)
        arms = f", {held} of {len(controls)} control arms hold" if controls else ""
        terminalreporter.write_line(
            f"{number:>3}  {title:<56} {_result(tests):<18} {seconds:7.1f} s{arms}"
        )
        for reason in sorted({why for _, _, why in (*tests, *controls) if why}):
            terminalreporter.write_line(f"     skipped: {reason}")
    terminalreporter.write_line(f"     {'in all, one after the other':<75} {total:7.1f} s")


def _result(tests: list[tuple[str, float, str]]) -> str:
    outcomes = [outcome for outcome, _, _ in tests]
    if not outcomes:
        return "not there"
    if "failed" in outcomes:
        return f"FAILED {outcomes.count('failed')} of {len(outcomes)}"
    passed = outcomes.count("passed")
    return f"passed {passed}" if passed == len(outcomes) else f"passed {passed}/{len(outcomes)}"
