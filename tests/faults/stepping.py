"""A daemon that sends itself a signal at one step of a launch (case 15 of the fault catalogue).

A step is the name of one below, and may end in `:2` for its second time. The signal is under way
while the step is taken.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from chump_orchestrator.adapters.leases import FileLeases
from chump_orchestrator.adapters.ledger import SqliteLedger
from chump_orchestrator.adapters.local import LocalExecutor, launching, standby
from chump_orchestrator.adapters.prompts import RepositoryPrompts
from chump_orchestrator.adapters.worktrees.dispatches import GitWorktrees

STEPS: dict[str, tuple[Any, str]] = {
    "spawn": (asyncio, "create_subprocess_exec"),
    "refresh": (GitWorktrees, "refresh"),
    "propose": (GitWorktrees, "propose"),
    "plan": (SqliteLedger, "add"),
    "worktree": (GitWorktrees, "add"),
    "record": (SqliteLedger, "update"),
    "claim": (FileLeases, "claim"),
    "brief": (RepositoryPrompts, "prompt"),
    "launch": (LocalExecutor, "launch"),
    "prepare": (launching, "_prepare"),
    "hand-over": (launching, "_hand_over"),
    "see-off": (launching, "see_off"),
}
"""In their order: where each step's function lies, and what it is called there."""

ALL = (
    *("spawn", "refresh", "propose", "plan", "worktree", "record", "claim", "brief", "record:2"),
    *("launch", "prepare", "hand-over", "see-off", "record:3"),
)
"""Every step of one launch, in its order."""


def signalling(step: Callable[..., Any], number: int, at: int) -> Callable[..., Any]:
    """Wrap a step so that this process is sent the signal as it is taken for the `at`th time."""
    taken = 0

    def taking(*args: Any, **options: Any) -> Any:
        nonlocal taken
        # git is started by the same function as the shim.
        if step.__name__ != "create_subprocess_exec" or standby._SHIM in args:
            taken += 1
            if taken == at:
                print("about to send", signal.Signals(number).name, file=sys.stderr, flush=True)
                os.kill(os.getpid(), number)
        return step(*args, **options)

    return taking


def spoil(name: str, number: int) -> None:
    """Have this process send itself the signal at this step."""
    step, _, time = name.partition(":")
    owner, function = STEPS[step]
    setattr(owner, function, signalling(getattr(owner, function), number, int(time or 1)))
