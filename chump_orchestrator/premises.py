"""What a command begins with: the repository, its settings, and what lies there, looked at only.

Whatever costs time to import is imported where it is used, so that a command which looks at
something does not wait for what only a daemon needs.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping
from dataclasses import fields
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from chump_orchestrator import config
from chump_orchestrator.core import budget
from chump_orchestrator.core.backlog import Backlog
from chump_orchestrator.core.budget import BudgetPolicy
from chump_orchestrator.core.errors import ConfigError, Refused, Unavailable
from chump_orchestrator.core.gap import Kind
from chump_orchestrator.core.picker import PickPolicy
from chump_orchestrator.core.routing import Route, RoutePolicy
from chump_orchestrator.telling import Logger

if TYPE_CHECKING:
    from chump_orchestrator.adapters.git import Git
    from chump_orchestrator.adapters.leases import FileLeases
    from chump_orchestrator.adapters.ledger import SqliteLedger
    from chump_orchestrator.config import Loaded, Settings
    from chump_orchestrator.core.learning import Experience
    from chump_orchestrator.core.ports import Backend, BacklogSource, Ledger
    from chump_orchestrator.daemon.standing import LiveLeases

log = Logger()

LEDGER_PATIENCE_S = 60.0
"""How long another program may keep the ledger locked before a start gives up."""


class Busy(Exception):
    """Another daemon has this repository."""


def locate(repo_root: Path | None, cwd: Path) -> Path:
    """Return the main work tree to work on; `ConfigError` when there is none."""
    from chump_orchestrator.adapters.git_asked import find_repository  # noqa: PLC0415 - slow to import

    try:
        return find_repository(repo_root or cwd, config.environment())
    except (Refused, Unavailable) as error:
        raise ConfigError(str(error)) from error


def load(root: Path, flags: Mapping[str, object]) -> Loaded:
    """Read the settings of the repository at `root`; `ConfigError` with all that is wrong."""
    return config.load(root, flags=flags)


def state_dir(root: Path, loaded: Loaded) -> Path:
    """Return the folder of our own state; absolute, not made here."""
    return root / loaded.settings.state.dir


def backlog_cache(root: Path, loaded: Loaded) -> Path:
    """Return the file that keeps what the backlog held when it was read last."""
    return state_dir(root, loaded) / "backlog.cache"


def control_path(root: Path, loaded: Loaded) -> Path:
    """Return where a daemon of this repository listens."""
    return state_dir(root, loaded) / "control.sock"


@contextlib.contextmanager
def daemon_lock(root: Path, loaded: Loaded) -> Iterator[None]:
    """Hold the lock that a daemon holds for its life; `Busy` when another has it.

    The kernel gives it back on any death, so a stale one cannot be.
    """
    folder = state_dir(root, loaded)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with contextlib.suppress(FileExistsError), (folder / ".gitignore").open("x") as ignore:
            ignore.write("*\n")
            os.fchmod(ignore.fileno(), 0o600)
        descriptor = os.open(folder / "daemon.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        msg = f"state.dir: {error.filename or folder} cannot be written: {error.strerror}"
        raise ConfigError(msg) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "?"
            msg = f"another orchestrator (pid {holder}) works on {root}"
            raise Busy(msg) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def backlog_source(
    root: Path, loaded: Loaded, git: Git, *, is_fetching: bool = False
) -> BacklogSource:
    """Return where gaps come from: a file, a folder, or a file at a ref (behaviour B1, B5).

    With `is_fetching`, a ref of a remote's is fetched as often as the forge is looked at.
    """
    from chump_orchestrator import plugins  # noqa: PLC0415 - slow to import
    from chump_orchestrator.adapters.host import HostClock  # noqa: PLC0415 - slow to import
    from chump_orchestrator.adapters.worktrees.upstream import Upstream  # noqa: PLC0415 - slow to import

    where = loaded.settings.backlog
    path = root / where.path
    upstream = Upstream(
        git=git, base_ref=where.ref, interval=loaded.settings.pulls.interval, clock=HostClock()
    )

    async def tree() -> str:
        return await upstream.refresh() if is_fetching else where.ref

    async def read() -> bytes:
        finished = await git.run("cat-file", "blob", f"{await tree()}:{where.path}")
        if finished.code:
            msg = f"backlog.ref: git has no {where.path} at {where.ref}"
            raise Unavailable(msg)
        return finished.out

    async def identify() -> str:
        wanted = f"{await tree()}:{where.path}"
        finished = await git.run("rev-parse", "--verify", "--quiet", "--end-of-options", wanted)
        return finished.out.decode("ascii", "replace").strip()

    kind = "yaml-ref" if where.ref else "yaml-dir" if path.is_dir() else "yaml-file"
    name = f"{where.ref}:{where.path}"
    ingredients = {
        "path": path,
        "cache": backlog_cache(root, loaded),
        "name": name,
        "read": read,
        "identify": identify,
    }
    source: BacklogSource = plugins.make("backlogs", kind, ingredients)
    return source


async def read_backlog(root: Path, loaded: Loaded) -> Backlog:
    """Read the backlog once; `ConfigError` when it cannot be read."""
    from chump_orchestrator.adapters.git import Git  # noqa: PLC0415 - slow to import

    try:
        return await backlog_source(root, loaded, Git(root, config.environment(loaded))).load()
    except (Unavailable, Refused) as error:
        raise ConfigError(str(error)) from error


@contextlib.asynccontextmanager
async def open_ledger(
    root: Path, loaded: Loaded, *, readonly: bool, rebuilds: bool = False
) -> AsyncIterator[SqliteLedger]:
    """Open the ledger; for writing only under `daemon_lock`.

    `ConfigError` when it is damaged. With `rebuilds`, which is for a daemon alone, a damaged one is
    moved aside and a new one begun that is paused; recovery fills it.
    """
    from chump_orchestrator.adapters.sqlite import Corrupt  # noqa: PLC0415 - slow to import

    folder = state_dir(root, loaded)
    if not readonly:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / "ledger.db"
    try:
        async with await _opened(path, readonly=readonly, rebuilds=rebuilds) as ledger:
            yield ledger
    except Corrupt as error:
        raise damaged(error) from error


def damaged(error: Exception) -> ConfigError:
    """Return what to raise for a ledger that nobody can read any more."""
    return ConfigError(
        f"{error}; `run` moves it aside and makes a new one from the folders of the"
        " dispatches, in which living agents stay under their shims"
    )


async def _opened(path: Path, *, readonly: bool, rebuilds: bool) -> SqliteLedger:
    """Open the ledger; one that another program holds locked is waited for before writing."""
    import anyio  # noqa: PLC0415 - slow to import

    from chump_orchestrator.adapters.host import HostClock  # noqa: PLC0415 - slow to import
    from chump_orchestrator.adapters.ledger import SqliteLedger  # noqa: PLC0415 - slow to import
    from chump_orchestrator.adapters.sqlite import Corrupt  # noqa: PLC0415 - slow to import

    open_it: Callable[..., Awaitable[SqliteLedger]] = partial(SqliteLedger.open, readonly=readonly)
    if rebuilds:
        from chump_orchestrator.adapters.ledger_damage import open_or_begin_anew  # noqa: PLC0415 - slow to import

        open_it = open_or_begin_anew
    give_up = anyio.current_time() + LEDGER_PATIENCE_S
    while True:
        try:
            return await open_it(path, clock=HostClock())
        except Unavailable as error:
            if readonly or isinstance(error, Corrupt) or anyio.current_time() >= give_up:
                raise
            log.warning("ledger.unavailable", error=str(error))
            await anyio.sleep(1)


def leases(root: Path, loaded: Loaded) -> FileLeases:
    """Return the leases of this repository."""
    from chump_orchestrator.adapters.host import HostClock  # noqa: PLC0415 - slow to import
    from chump_orchestrator.adapters.leases import FileLeases  # noqa: PLC0415 - slow to import

    settings = loaded.settings
    return FileLeases(
        dir=root / settings.leases.dir,
        ttl=settings.leases.ttl,
        worktrees_dir=root / settings.worktrees.base,
        clock=HostClock(),
        env=config.environment(loaded),
    )


async def standing(
    root: Path,
    loaded: Loaded,
    backlog: Backlog,
    ledger: Ledger,
    held: LiveLeases | None = None,
) -> Backlog:
    """Return the backlog as leases and ledger leave it, without changing anything.

    `held` tells of the leases, by default `leases` of this repository.
    """
    from chump_orchestrator.adapters.host import HostClock  # noqa: PLC0415 - slow to import
    from chump_orchestrator.daemon.standing import standing as standing_of  # noqa: PLC0415 - slow to import

    active = {r.dispatch.gap.id: r.dispatch.id for r in await ledger.records(active=True)}
    found = await standing_of(
        backlog,
        ledger,
        leases(root, loaded) if held is None else held,
        HostClock().now(),
        active=active,
        repeat=loaded.settings.pick.repeat,
    )
    return budget.held_back(found, await over_budget(loaded, ledger))


async def over_budget(loaded: Loaded, ledger: Ledger) -> dict[str, str]:
    """Return the gaps that have cost as much as one may, and what to do about it."""
    policy = budget_policy(loaded.settings)
    if not policy.usd_per_gap:
        return {}
    spent = budget.spent_on_gaps(await ledger.chronicle())
    return {gap: why for gap, usd in spent.items() if (why := budget.over_budget(policy, usd))}


async def todays_budget(loaded: Loaded, ledger: Ledger, now: datetime) -> dict[str, object]:
    """Return what today has cost, and what is left of its budgets, as the ledger has it.

    What agents at work have told meanwhile only their daemon knows.
    """
    from chump_orchestrator.adapters.host import zone  # noqa: PLC0415 - slow to import

    policy, here = budget_policy(loaded.settings), zone("") or UTC
    began, ends = budget.day_of(now, here)
    ended = budget.used(await ledger.chronicle())
    spent = budget.spent_between(ended, began, ends)
    at_work = 0
    for record in await ledger.records(active=True):
        if record.exited_at is not None and began <= record.exited_at < ends:
            spent = spent.plus(record.cost_usd, record.tokens)
        at_work += record.holds_slot
    day = budget.Outlook(spent, at_work)
    until = f"{ends.astimezone(here):%H:%M}"
    found = budget.verdict(policy, day, budget.Estimate(), until)
    return budget.document(policy, day, ends, found)


def budget_policy(settings: Settings) -> BudgetPolicy:
    """Return what may be spent, and what backends let an agent of theirs use."""
    caps = {name: one.max_budget_usd for name, one in settings.backend.options.items()}
    return BudgetPolicy(
        usd_per_gap=settings.budget.usd_per_gap,
        usd_per_day=settings.budget.usd_per_day,
        tokens_per_day=settings.budget.tokens_per_day,
        caps={name: cap for name, cap in caps.items() if cap},
    )


def pick_policy(settings: Settings) -> PickPolicy:
    """Return what the settings allow to be picked."""
    pick = settings.pick
    kind = {"user": Kind.USER, "system": Kind.SYSTEM}.get(str(pick.kind))
    return PickPolicy(
        kind=kind,
        priorities=frozenset(pick.priorities),
        exclude_efforts=frozenset(pick.exclude_efforts),
        by_effort=str(pick.order) == "effort",
        require_opt_in=pick.require_opt_in,
        bias_threshold=pick.bias_threshold,
        bias_window=pick.bias_window,
    )


def backend(settings: Settings, name: str) -> Backend:
    """Return a backend as its settings have it; `ConfigError` when there is none of that name."""
    from chump_orchestrator import plugins  # noqa: PLC0415 - slow to import
    from chump_orchestrator.adapters.backends import BackendOptions  # noqa: PLC0415 - seldom used

    given = settings.backend.of(name)
    options = BackendOptions(**{f.name: getattr(given, f.name) for f in fields(given)})
    made: Backend = plugins.make("backends", name, {"options": options})
    return made


async def routes(root: Path, loaded: Loaded) -> RoutePolicy:
    """Return where gaps go; `ConfigError` when the routing table is malformed."""
    import anyio.to_thread  # noqa: PLC0415 - slow to import

    return await anyio.to_thread.run_sync(routes_at_once, root, loaded)


def routes_at_once(root: Path, loaded: Loaded) -> RoutePolicy:
    """Return what `routes` does. Blocks for as long as a small file takes to read."""
    from chump_orchestrator.adapters.routing_file import load_table  # noqa: PLC0415 - slow to import

    settings = loaded.settings
    table = load_table(root / settings.routing.table, _backends)
    use = settings.backend.use
    return RoutePolicy(
        default=Route(use, settings.backend.of(use).model, why="backend.use"),
        override=settings.override,
        table=table,
        classes=settings.routing.classes,
        learns=settings.routing.learn,
    )


def _backends() -> Collection[str]:
    from chump_orchestrator import plugins  # noqa: PLC0415 - slow to import

    return plugins.installed("backends")


def experience(root: Path, loaded: Loaded) -> Experience | None:
    """Return what earlier dispatches taught of candidates; `None` where nothing is learnt (G4).

    Blocks. `Unavailable` when the routing outcomes cannot be read now.
    """
    return outcomes(root, loaded) if loaded.settings.routing.learn else None


def outcomes(root: Path, loaded: Loaded) -> Experience:
    """Return what routing outcomes tell of candidates, whether or not that is acted upon. Blocks.

    `Unavailable` when they cannot be read now.
    """
    from chump_orchestrator.adapters.host import HostClock  # noqa: PLC0415 - seldom used
    from chump_orchestrator.adapters.journal_outcomes import read_at_once  # noqa: PLC0415

    settings = loaded.settings
    return read_at_once(root / settings.journal.routing, HostClock().now().date())
