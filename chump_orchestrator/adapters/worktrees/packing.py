"""git's own upkeep: of what commits leave behind, thousands of small files, it makes packs.

As a rule git does that by itself, in the background, once a command has left much. But what agents
leave in the background ends with them, and an upkeep that was cut short keeps git from the next one
for a day; meanwhile everything in the repository takes longer and longer. So agents' commands
begin none, and this daemon has git look whether there is much.
"""

from __future__ import annotations

from datetime import timedelta

from chump_orchestrator.adapters.git import TIMEOUT, Git, failure
from chump_orchestrator.adapters.git_manners import NOTHING_OF_THE_REPOSITORY, last_lines
from chump_orchestrator.adapters.process import Finished
from chump_orchestrator.adapters.process import run as run_program
from chump_orchestrator.core.errors import Unavailable

_LOOK = timedelta(seconds=30)
"""Longest git may take to look; what there is to do then, it does in a process of its own."""

_BESIDE = (
    *("-c", "gc.autoDetach=true", "-c", "maintenance.autoDetach=true"),
    # One that failed keeps git from the next for so long, not for a day.
    *("-c", "gc.logExpiry=1.hour"),
)


async def pack(git: Git) -> None:
    """Have git pack what has gathered in its repository, where it finds that to be much.

    It does so beside us, even when we end, and as the operator has set `gc.*` and `maintenance.*`:
    with `maintenance.auto=false` or `gc.auto=0` never. Raises `Unavailable` and `Refused` as git
    does, and `Unavailable` when the last time went wrong.
    """
    asked = await _run(git, "config", "--type=bool", "--get", "maintenance.auto")
    if asked.out.strip() == b"false":
        return
    done = await _run(git, *_BESIDE, "maintenance", "run", "--auto", "--quiet", limit=_LOOK)
    if done.code != 0:
        raise failure(("maintenance",), done)
    if said := last_lines(done.err):
        raise Unavailable(said)


async def _run(git: Git, *args: str, limit: timedelta = TIMEOUT) -> Finished:
    command = ("git", *NOTHING_OF_THE_REPOSITORY, *args)
    return await run_program(command, cwd=git.root, env=git.env, timeout=limit)
