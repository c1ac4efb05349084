"""The composition root: settings become a running orchestrator, or the parts that a command needs.

Here alone adapters, daemon and settings meet. Chance is made here, from a seed that is logged.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import structlog

from chump_orchestrator import config, logs, plugins
from chump_orchestrator.adapters.backends import BackendOptions
from chump_orchestrator.adapters.git import Git, find_repository
from chump_orchestrator.adapters.host import HostClock
from chump_orchestrator.adapters.leases import FileLeases
from chump_orchestrator.adapters.ledger import SqliteLedger
from chump_orchestrator.adapters.sqlite import Corrupt
from chump_orchestrator.adapters.upstream import Upstream
from chump_orchestrator.adapters.worktrees import GitWorktrees
from chump_orchestrator.core.backlog import Backlog
from chump_orchestrator.core.errors import ConfigError, Refused, Unavailable
from chump_orchestrator.core.routing import Route
from chump_orchestrator.daemon.account import Account, account
from chump_orchestrator.daemon.control import serve
from chump_orchestrator.daemon.operations import Operator
from chump_orchestrator.daemon.orchestrator import Manner, Orchestrator
from chump_orchestrator.daemon.roster import Assignment
from chump_orchestrator.daemon.standing import standing as standing_of
from chump_orchestrator.daemon.world import Policies, World
from chump_orchestrator.decisions import (
    check,
    pick_policy,
    policies,
    routes,
    waits_for_restart,
)

if TYPE_CHECKING:
    from chump_orchestrator.config import Loaded, Settings
    from chump_orchestrator.core.ports import Backend, BacklogSource, Ledger

__all__ = [
    "Busy",
    "RunOptions",
    "check",
    "control_path",
    "daemon_lock",
    "load",
    "locate",
    "open_ledger",
    "pick_policy",
    "read_backlog",
    "routes",
    "run",
    "standing",
    "start_logging",
    "state_dir",
]

log = structlog.get_logger()


LEDGER_PATIENCE_S = 60.0
"""How long another program may keep the ledger locked before a start gives up."""


class Busy(Exception):
    """Another daemon has this repository."""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What one run is asked for, beside the settings.

    `once` ends when nothing is eligible any more; `gaps` empty means all; `pull_wait` is how long
    a single run waits for open requests, `None` for as long as the settings let them be;
    `on_event` is told of every event. `flags` are those of the command line, which outrank the
    files on every reload, too. `beside` is run with the daemon, to ask and to steer it, and
    cancelled when it ends.
    """

    once: bool = False
    gaps: tuple[str, ...] = ()
    limit: int | None = None
    until: datetime | None = None
    pull_wait: timedelta | None = None
    faults_allowed: bool = False
    reflect: bool = True
    on_event: Callable[[str, Mapping[str, object]], None] | None = None
    flags: Mapping[str, object] = field(default_factory=dict)
    beside: Callable[[Operator], Coroutine[object, object, None]] | None = None


def locate(repo_root: Path | None, cwd: Path) -> Path:
    """Return the main work tree to work on; `ConfigError` when there is none."""
    try:
        return anyio.run(find_repository, repo_root or cwd, config.environment())
    except (Refused, Unavailable) as error:
        raise ConfigError(str(error)) from error


def load(root: Path, flags: Mapping[str, object]) -> Loaded:
    """Read the settings of the repository at `root`; `ConfigError` with all that is wrong."""
    return config.load(root, flags=flags)


def state_dir(root: Path, loaded: Loaded) -> Path:
    """Return the folder of our own state; absolute, not made here."""
    return root / loaded.settings.state.dir


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
    ingredients = {"path": path, "name": name, "read": read, "identify": identify}
    source: BacklogSource = plugins.make("backlogs", kind, ingredients)
    return source


async def read_backlog(root: Path, loaded: Loaded) -> Backlog:
    """Read the backlog once; `ConfigError` when it cannot be read."""
    try:
        return await backlog_source(root, loaded, Git(root, config.environment())).load()
    except (Unavailable, Refused) as error:
        raise ConfigError(str(error)) from error


@contextlib.asynccontextmanager
async def open_ledger(root: Path, loaded: Loaded, *, readonly: bool) -> AsyncIterator[SqliteLedger]:
    """Open the ledger; for writing only under `daemon_lock`."""
    folder = state_dir(root, loaded)
    if not readonly:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    async with await _opened(folder / "ledger.db", readonly=readonly) as ledger:
        yield ledger


async def _opened(path: Path, *, readonly: bool) -> SqliteLedger:
    """Open the ledger; one that another program holds locked is waited for before writing."""
    give_up = anyio.current_time() + LEDGER_PATIENCE_S
    while True:
        try:
            return await SqliteLedger.open(path, clock=HostClock(), readonly=readonly)
        except Corrupt as error:
            msg = (
                f"{error}; move it aside and start again: living agents stay under their shims,"
                " and their dispatches are told by the folders beside it"
            )
            raise ConfigError(msg) from error
        except Unavailable as error:
            if readonly or anyio.current_time() >= give_up:
                raise
            log.warning("ledger.unavailable", error=str(error))
            await anyio.sleep(1)


def leases(root: Path, loaded: Loaded) -> FileLeases:
    """Return the leases of this repository."""
    settings = loaded.settings
    return FileLeases(
        dir=root / settings.leases.dir,
        ttl=settings.leases.ttl,
        worktrees_dir=root / settings.worktrees.base,
        clock=HostClock(),
        env=config.environment(),
    )


async def standing(root: Path, loaded: Loaded, backlog: Backlog, ledger: Ledger) -> Backlog:
    """Return the backlog as leases and ledger leave it, without changing anything."""
    active = {r.dispatch.gap.id: r.dispatch.id for r in await ledger.records(active=True)}
    return await standing_of(
        backlog,
        ledger,
        leases(root, loaded),
        HostClock().now(),
        active=active,
        repeat=loaded.settings.pick.repeat,
    )


def _backends(settings: Settings) -> Callable[[str], Backend]:
    made: dict[str, Backend] = {}

    def backend(name: str) -> Backend:
        if name not in made:
            given = settings.backend.of(name)
            options = BackendOptions(
                program=given.program,
                model=given.model,
                extra_args=given.extra_args,
                pass_env=given.pass_env,
                argv=given.argv,
                stop_signals=given.stop_signals,
            )
            made[name] = plugins.make("backends", name, {"options": options})
        return made[name]

    return backend


IDENTITY = {
    "GIT_AUTHOR_NAME": "Chump Dispatched",
    "GIT_COMMITTER_NAME": "Chump Dispatched",
    "GIT_AUTHOR_EMAIL": "chump-dispatch@chump.bot",
    "GIT_COMMITTER_EMAIL": "chump-dispatch@chump.bot",
    "GIT_CONFIG_COUNT": "1",
    "GIT_CONFIG_KEY_0": "commit.gpgsign",
    "GIT_CONFIG_VALUE_0": "false",
}
"""Who an agent's commits are by, and that nobody is asked for a passphrase (behaviour D5)."""


def _agent_environment(
    settings: Settings, environ: Mapping[str, str]
) -> Callable[[tuple[str, ...]], Mapping[str, str]]:
    def environment(more: tuple[str, ...]) -> Mapping[str, str]:
        patterns = (*config.FORGE_VARIABLES, *settings.pass_env, *more)
        return config.agent_environment(environ, patterns)

    return environment


def start_logging(loaded: Loaded, *, level: str | None = None) -> None:
    """Log to standard error as the settings say, secrets of the environment cut out.

    `level` outranks that of the settings.
    """
    settings = loaded.settings.log
    secret = config.secret_values(config.environment())
    logs.configure(format=str(settings.format), level=level or str(settings.level), secrets=secret)


async def run(root: Path, loaded: Loaded, options: RunOptions) -> Account:
    """Be the daemon of `root` until it is drained, stopped, or done; returns what it came to.

    `Busy` when another one has the repository, `ConfigError` for what an operator must change.
    """
    decided = await policies(root, loaded)
    fault = check(root, loaded, decided.routes, faults_allowed=options.faults_allowed)
    with daemon_lock(root, loaded):
        async with open_ledger(root, loaded, readonly=False) as ledger:
            orchestrator = await _orchestrator(root, loaded, options, ledger, decided, fault)
            await orchestrator.run()
            if not options.once:
                return Account({}, interrupted=orchestrator.interrupted)
            return await account(orchestrator.scheduler, interrupted=orchestrator.interrupted)


async def _beside(
    work: Callable[[Operator], Coroutine[object, object, None]], operator: Operator
) -> None:
    """Run what only watches, so that its failure harms nobody."""
    try:
        await work(operator)
    except Exception:
        log.exception("observer.failed")


async def _orchestrator(
    root: Path,
    loaded: Loaded,
    options: RunOptions,
    ledger: SqliteLedger,
    decided: Policies,
    fault: Route | None,
) -> Orchestrator:
    settings, clock = loaded.settings, HostClock()
    environ = config.environment()
    git = Git(root, environ)
    seed = secrets.randbits(64)
    log.info("daemon.seeded", seed=seed)
    base = root / settings.worktrees.base
    source = backlog_source(root, loaded, git, is_fetching=True)
    journal = None
    if settings.journal.enabled and options.reflect:
        journal = plugins.make(
            "journals",
            "sqlite",
            {
                "reflections": root / settings.journal.reflections,
                "routing": root / settings.journal.routing,
            },
        )
    worktrees = GitWorktrees(
        git=git,
        base_dir=base,
        prefix=settings.worktrees.prefix,
        base_ref=settings.base_ref,
        interval=settings.pulls.interval,
        keep_days=settings.worktrees.keep_days,
        keep_ignored=settings.worktrees.keep_ignored,
        min_free=settings.worktrees.min_free,
        clock=clock,
        reserved=lambda: {gap.slug for gap in orchestrator.keeper.backlog.gaps},
    )
    await worktrees.exclude()

    async def again(world: World) -> str:
        fresh = await anyio.to_thread.run_sync(load, root, options.flags)
        new = await policies(root, fresh)
        check(root, fresh, new.routes, faults_allowed=options.faults_allowed)
        world.policies, world.backend = new, _backends(fresh.settings)
        late = waits_for_restart(settings, fresh.settings)
        return f"these take effect at the next start: {', '.join(late)}" if late else ""

    async def control(daemon: Orchestrator) -> None:
        operator = Operator(daemon)
        async with anyio.create_task_group() as group:
            group.start_soon(serve, control_path(root, loaded), operator)
            if options.beside is not None:
                group.start_soon(_beside, options.beside, operator)

    if fault is not None:
        decided = replace(decided, routes=replace(decided.routes, override=fault))
    world = World(
        clock=clock,
        ledger=ledger,
        journal=journal,
        worktrees=worktrees,
        leases=leases(root, loaded),
        executor=plugins.make(
            "executors",
            "local",
            {
                "state": state_dir(root, loaded),
                "environment": _agent_environment(settings, environ),
                "secrets": config.secret_values,
                "overlay": IDENTITY,
                "clock": clock,
            },
        ),
        pulls=plugins.make(
            "pulls",
            settings.pulls.use,
            {
                "git": git,
                "env": environ,
                "clock": clock,
                "base_ref": settings.base_ref,
                "interval": settings.pulls.interval,
            },
        ),
        prompts=plugins.make("prompts", "repository", {"template": settings.prompt.template}),
        backend=_backends(settings),
        policies=decided,
        chance=random.Random(seed),
        lessons=getattr(journal, "lessons", None),
        listeners=[options.on_event] if options.on_event else [],
    )
    orchestrator = Orchestrator(
        world,
        source,
        Assignment(
            frozenset(options.gaps),
            options.limit,
            options.until,
            options.once,
            options.pull_wait,
        ),
        on_signal=Manner(str(settings.stop.on_signal)),
        reload=None if fault else again,
        control=control,
        trusts_backlog=bool(settings.backlog.ref),
    )
    return orchestrator
