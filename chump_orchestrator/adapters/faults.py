"""Agents that misbehave on purpose, for trying the whole pipeline without one (behaviour F1).

A fault is a backend like any other, found under its name; nothing in production knows of it.
"""

from __future__ import annotations

import sys

from chump_orchestrator.core.dispatch import Command
from chump_orchestrator.core.gap import Gap
from chump_orchestrator.core.records import Progress, Usage
from chump_orchestrator.core.routing import Route

FAULTS = ("spawn_fail", "exit_1", "exit_0_no_pr", "monitor_timeout")
"""The words that `CHUMP_FAULT_INJECT` may hold, which are the backends' names."""

SLEEP_S = 3600
"""How long `monitor_timeout` sleeps; any deadline of a test is over by then."""


def first_fault(text: str) -> str | None:
    """Return the first known word of a comma-separated list, `None` when there is none."""
    words = (word.strip() for word in text.split(","))
    return next((word for word in words if word in FAULTS), None)


class _Fault:
    """Has a label, ignores its options and reads nothing."""

    def __init__(self, options: object = None) -> None:
        del options

    def read(self, line: str) -> Usage | Progress | None:  # noqa: ARG002
        return None


class SpawnFail(_Fault):
    """Names a program that does not exist."""

    label = "spawn_fail"

    def command(self, gap: Gap, route: Route, prompt: str) -> Command:  # noqa: ARG002
        return Command(programs=("./no-such-program/fault-injected",))


class ExitOne(_Fault):
    """Fails after 0.1 s."""

    label = "exit_1"

    def command(self, gap: Gap, route: Route, prompt: str) -> Command:  # noqa: ARG002
        return _python("import sys, time; time.sleep(0.1); sys.exit(1)")


class ExitZeroNoPull(_Fault):
    """Ends well after 0.1 s, and has shipped nothing."""

    label = "exit_0_no_pr"

    def command(self, gap: Gap, route: Route, prompt: str) -> Command:  # noqa: ARG002
        return _python("import time; time.sleep(0.1)")


class MonitorTimeout(_Fault):
    """Says nothing and does not end before its deadline."""

    label = "monitor_timeout"

    def command(self, gap: Gap, route: Route, prompt: str) -> Command:  # noqa: ARG002
        return Command(programs=("/bin/sleep", "/usr/bin/sleep", "sleep"), args=(str(SLEEP_S),))


def _python(script: str) -> Command:
    return Command(programs=(sys.executable, "python3"), args=("-I", "-S", "-c", script))
