"""Tries the whole pipeline without an agent: each fault must end as it should (behaviour F1)."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass

from chump_orchestrator import throwaway, wiring

BACKLOG = """\
gaps:
- {id: SELF-TEST, title: Tries the pipeline, priority: P0, effort: xs, status: open}
"""

SETTINGS = """\
max_parallel = 1
[deadlines]
xs = "1s"
grace = "1s"
[pulls]
use = "git"
interval = "1s"
deadline = "30s"
[retry]
max_attempts = 1
[worktrees]
min_free = "0GiB"
"""

EXPECTED = {
    "spawn_fail": ("spawn_failed", "spawn"),
    "exit_1": ("killed", "exit-code"),
    "exit_0_no_pr": ("stalled", "no-pr"),
    "monitor_timeout": ("killed", "deadline"),
}


@dataclass(frozen=True, slots=True)
class Result:
    """How one fault ended, and how it should have."""

    fault: str
    found: tuple[str, str]

    @property
    def is_right(self) -> bool:
        """Whether it ended as it should."""
        return self.found == EXPECTED[self.fault]


async def self_test(say: Callable[[str], None]) -> int:
    """Inject each fault into a throw-away repository and say how it ended; 0 if all is right."""
    results = [await _try(fault) for fault in EXPECTED]
    for result in results:
        outcome, cause = result.found
        wanted = "" if result.is_right else f", expected {' '.join(EXPECTED[result.fault])}"
        mark = "ok  " if result.is_right else "FAIL"
        say(f"{mark} {result.fault:<16} {outcome} ({cause}){wanted}")
    return 0 if all(result.is_right for result in results) else 1


async def _try(fault: str) -> Result:
    root, _ = await throwaway.repository("self-test", BACKLOG, SETTINGS)
    loaded = throwaway.load(root, {"CHUMP_FAULT_INJECT": fault})
    try:
        options = wiring.RunOptions(once=True, faults_allowed=True)
        account = await wiring.run(root, loaded, options)
        outcome = account.outcomes.get("SELF-TEST")
    finally:
        shutil.rmtree(root.parent, ignore_errors=True)
    if outcome is None:
        return Result(fault, ("nothing", "no outcome"))
    return Result(fault, (str(outcome.kind), str(outcome.cause or "")))
