"""What a command that only looks finds in a repository: read at once, in its own thread.

Such a command does one thing after the other and then ends. It needs no loop, and not to import
one is most of what makes it quick. What is asked for, and what the answers mean, is the same code
as in a daemon: coroutines that have nothing to wait for here.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from chump_orchestrator import config, premises
from chump_orchestrator.core.backlog import Backlog
from chump_orchestrator.core.errors import ConfigError, Refused, Unavailable

if TYPE_CHECKING:
    from chump_orchestrator.adapters.ledger import SqliteLedger
    from chump_orchestrator.config import Loaded
    from chump_orchestrator.core.ports import Ledger

Result = TypeVar("Result")

INSTALLED = (".dist-info", ".egg-info")
"""How the folders end in which packages tell what is in them."""


def at_once(work: Callable[[], Awaitable[Result]]) -> Result:
    """Carry out `work`, which waits for nothing, without a loop; return what it returns.

    Raises what it raises, and `RuntimeError` where it waits after all.
    """
    steps = work().__await__()
    try:
        next(steps)
    except StopIteration as end:
        found: Result = end.value
        return found
    steps.close()
    raise RuntimeError(f"{work!r} waits for something, which takes a loop")


def read_backlog(root: Path, loaded: Loaded) -> Backlog:
    """Read the backlog once; `ConfigError` when it cannot be read."""
    from chump_orchestrator.adapters import backlogs  # noqa: PLC0415 - slow to import

    if _may_be_anothers():
        import anyio  # noqa: PLC0415 - slow to import, and nearly never needed

        return anyio.run(premises.read_backlog, root, loaded)
    where = loaded.settings.backlog
    path = root / where.path
    try:
        if where.ref:
            return backlogs.read_at_once(f"{where.ref}:{where.path}", _at_ref(root, loaded))
        if path.is_dir():
            return backlogs.YamlDirectory(path=path).load_at_once()
        cache = premises.backlog_cache(root, loaded)
        return backlogs.YamlFile(path=path, cache=cache).load_at_once()
    except (Unavailable, Refused) as error:
        raise ConfigError(str(error)) from error


def _may_be_anothers() -> bool:
    """Whether somebody else's plug-in, too, has a kind of backlog, which a daemon would ask.

    `importlib.metadata` tells it with certainty and takes ten times as long to import.
    """
    found = 0
    for place in sys.path:
        with contextlib.suppress(OSError), os.scandir(place or ".") as listed:
            for folder in (one.path for one in listed if one.name.endswith(INSTALLED)):
                with contextlib.suppress(OSError):
                    told = Path(folder, "entry_points.txt").read_bytes()
                    found += b"[chump_orchestrator.backlogs]" in told
    return found > 1


def _at_ref(root: Path, loaded: Loaded) -> bytes:
    """Return the bytes of the backlog as its ref has them, as far as that was fetched."""
    from chump_orchestrator.adapters.git_asked import ask  # noqa: PLC0415 - slow to import

    where = loaded.settings.backlog
    blob = ("cat-file", "blob", f"{where.ref}:{where.path}")
    answer = ask(root, config.environment(loaded), *blob)
    if answer.returncode:
        raise Unavailable(f"backlog.ref: git has no {where.path} at {where.ref}")
    return answer.stdout


@contextlib.asynccontextmanager
async def open_ledger(root: Path, loaded: Loaded) -> AsyncIterator[SqliteLedger]:
    """Open the ledger for reading; `ConfigError` when it is damaged.

    A missing one is as good as an empty one, and is not made.
    """
    from chump_orchestrator.adapters.host import HostClock  # noqa: PLC0415 - slow to import
    from chump_orchestrator.adapters.ledger_at_once import look_into  # noqa: PLC0415 - slow to import
    from chump_orchestrator.adapters.sqlite import Corrupt  # noqa: PLC0415 - slow to import

    path = premises.state_dir(root, loaded) / "ledger.db"
    try:
        async with await look_into(path, clock=HostClock()) as ledger:
            yield ledger
    except Corrupt as error:
        raise premises.damaged(error) from error


async def standing(root: Path, loaded: Loaded, backlog: Backlog, ledger: Ledger) -> Backlog:
    """Return the backlog as leases and ledger leave it, without changing anything."""
    from chump_orchestrator.adapters.host import HostClock  # noqa: PLC0415 - slow to import
    from chump_orchestrator.adapters.lease_files import LeaseFolder, LeasesAtOnce  # noqa: PLC0415 - slow to import

    settings = loaded.settings
    folder = LeaseFolder(root / settings.leases.dir, root / settings.worktrees.base)
    held = LeasesAtOnce(folder, HostClock())
    return await premises.standing(root, loaded, backlog, ledger, held)
