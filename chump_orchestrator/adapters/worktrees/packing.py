"""git's own upkeep: of what commits leave behind, thousands of small files, it makes packs.

As a rule git does that by itself, in the background, once a command has left much. But what agents
leave in the background ends with them, and an upkeep that was cut short keeps git from the next one
for a day; meanwhile everything in the repository takes longer and longer. So agents' commands
begin none, and this daemon has git look whether there is much.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import anyio.to_thread

from chump_orchestrator.adapters.git import TIMEOUT, Git, failure
from chump_orchestrator.adapters.git_manners import NOTHING_OF_THE_REPOSITORY, last_lines
from chump_orchestrator.adapters.process import Finished
from chump_orchestrator.adapters.process import run as run_program
from chump_orchestrator.core.errors import Unavailable

_LOOK = timedelta(seconds=30)
"""Longest git may take to look; what there is to do then, it does in a process of its own."""

_BESIDE = (
    *("-c", "gc.autoDetach=true", "-c", "maintenance.autoDetach=true"),
    # One that failed keeps git from the next for as long as us, not for a day.
    *("-c", "gc.logExpiry=1.hour"),
)

_REST_S = 3600.0
"""So long after a failure nothing is begun, by git or by us: the hour above."""


async def pack(git: Git, now: datetime) -> None:
    """Have git pack what has gathered in its repository, where it finds that to be much.

    It does so beside us, even when we end, and as the operator has set `gc.*` and `maintenance.*`:
    with `maintenance.auto=false` or `gc.auto=0` never. Raises `Unavailable` and `Refused` as git
    does, and `Unavailable` when the last time went wrong.
    """
    asked = await _run(git, "config", "--type=bool", "--get", "maintenance.auto")
    if asked.out.strip() == b"false":
        return
    log = git.common_dir / "gc.log"
    if said := await anyio.to_thread.run_sync(_last_failure, log, now.timestamp()):
        raise Unavailable(f"git could not pack {git.root}: {said}")
    done = await _run(git, *_BESIDE, "maintenance", "run", "--auto", "--quiet", limit=_LOOK)
    if done.code != 0:
        raise failure(("maintenance",), done)


def _last_failure(log: Path, now_s: float) -> str:
    """Return what went wrong within the last hour; empty when nothing did."""
    try:
        is_over = now_s - log.stat().st_mtime > _REST_S
        return "" if is_over else last_lines(log.read_bytes())
    except OSError:
        return ""


async def _run(git: Git, *args: str, limit: timedelta = TIMEOUT) -> Finished:
    command = ("git", *NOTHING_OF_THE_REPOSITORY, *args)
    return await run_program(command, cwd=git.root, env=git.env, timeout=limit)
