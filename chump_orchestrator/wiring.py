"""The composition root: settings become a running orchestrator, or the parts that a command needs.

Here alone adapters, daemon and settings meet. Chance is made here, from a seed that is logged.
"""

from __future__ import annotations

import contextlib
import faulthandler
import random
import secrets
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import structlog

from chump_orchestrator import config, equipment, logs, monitoring, plugins, premises
from chump_orchestrator.adapters import (
    backends,  # noqa: F401 - read now, not by the first dispatch
    process,
)
from chump_orchestrator.adapters.git import Git
from chump_orchestrator.adapters.host import HostClock, zone
from chump_orchestrator.adapters.ledger import SqliteLedger
from chump_orchestrator.adapters.local import cgroups
from chump_orchestrator.adapters.power import Wakefulness
from chump_orchestrator.adapters.pushes import Pushes
from chump_orchestrator.adapters.service_manager import NotifySocket
from chump_orchestrator.adapters.turns import turns_counted
from chump_orchestrator.adapters.worktrees.dispatches import GitWorktrees
from chump_orchestrator.core.routing import Route
from chump_orchestrator.daemon import awake, preparing
from chump_orchestrator.daemon.account import Account, account
from chump_orchestrator.daemon.control import serve
from chump_orchestrator.daemon.operations import Operator
from chump_orchestrator.daemon.orchestrator import Manner, Orchestrator
from chump_orchestrator.daemon.reopening import former_of
from chump_orchestrator.daemon.roster import Assignment
from chump_orchestrator.daemon.world import Policies, World
from chump_orchestrator.decisions import check, policies, waits_for_restart
from chump_orchestrator.premises import (
    Busy,
    backlog_source,
    control_path,
    daemon_lock,
    leases,
    load,
    locate,
    open_ledger,
    pick_policy,
    read_backlog,
    routes,
    standing,
    state_dir,
)

if TYPE_CHECKING:
    from anyio.abc import TaskStatus

    from chump_orchestrator.config import Loaded, Settings
    from chump_orchestrator.core.ports import Backend, Journal
    from chump_orchestrator.core.records import Record

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
    "session_of",
    "standing",
    "start_logging",
    "state_dir",
]

log = structlog.get_logger()

LAST_WRITES_S = 10.0
"""How long the journal's writes may take that were begun before the end."""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What one run is asked for, beside the settings.

    `once` ends when nothing is eligible any more; `gaps` empty means all; `pull_wait` is how long
    a single run waits for open requests, `None` for as long as the settings let them be;
    `on_event` is told of every event. `flags` are those of the command line, which outrank the
    files on every reload, too. `beside` is run with the daemon, to ask and to steer it, and
    cancelled when it ends. `around` is handed the world before anything begins, to measure it.
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
    around: Callable[[World], None] | None = None


def _backends(settings: Settings) -> Callable[[str], Backend]:
    made: dict[str, Backend] = {}

    def backend(name: str) -> Backend:
        if name not in made:
            made[name] = premises.backend(settings, name)
        return made[name]

    return backend


async def session_of(root: Path, loaded: Loaded, ledger: SqliteLedger, gap_id: str) -> Record:
    """Return the dispatch whose session a gap would go on with; `Refused` with why there is none.

    For whoever asks without a daemon; changes nothing.
    """
    settings, git = loaded.settings, Git(root, config.environment(loaded))
    base = root / settings.worktrees.base
    worktrees = GitWorktrees(git=git, base_dir=base, clock=HostClock())
    return await former_of(gap_id, ledger, worktrees.holder, _backends(settings))


def start_logging(root: Path, loaded: Loaded, *, shown: str = "") -> None:
    """Log to where the settings say, secrets cut out; `shown` outranks their level on a terminal.

    A loop that is blocked is ended by the service manager, with SIGABRT. Then, as in a crash, the
    standard error tells where every thread was.
    """
    settings = loaded.settings.log
    file = None
    if settings.file:
        file = logs.RotatingFile(root / settings.file, settings.max_size, settings.keep)
    logs.configure(
        format=str(settings.format),
        level=str(settings.level),
        secrets=config.hidden(loaded),
        journal_stream=config.environment().get("JOURNAL_STREAM", ""),
        file=file,
        shown=shown,
    )
    with contextlib.suppress(OSError, ValueError, AttributeError):
        if not faulthandler.is_enabled():
            faulthandler.enable()


async def run(root: Path, loaded: Loaded, options: RunOptions) -> Account:
    """Be the daemon of `root` until it is drained, stopped, or done; returns what it came to.

    `Busy` when another one has the repository, `ConfigError` for what an operator must change.
    """
    decided = await policies(root, loaded)
    fault = check(root, loaded, decided.routes, faults_allowed=options.faults_allowed)
    with process.children_watched_by_loop(), daemon_lock(root, loaded):
        async with open_ledger(root, loaded, readonly=False, rebuilds=True) as ledger:
            orchestrator = await _orchestrator(root, loaded, options, ledger, decided, fault)
            try:
                with turns_counted(orchestrator.world.turns.count):
                    async with monitoring.in_the_stream(root, loaded, orchestrator.world):
                        await orchestrator.run()
            finally:
                await _close(orchestrator.world.journal)
            if not options.once:
                return Account({}, interrupted=orchestrator.interrupted)
            return await account(orchestrator.scheduler, interrupted=orchestrator.interrupted)


async def _close(journal: Journal | None) -> None:
    """Let go of the journal's files, where it has some, so that others find all in them."""
    close = getattr(journal, "close", None)
    if close is not None:
        with anyio.move_on_after(LAST_WRITES_S, shield=True):
            await close()


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
    environ = config.environment(loaded)
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
        prepared_dir=state_dir(root, loaded) / "prepared",
    )
    await worktrees.exclude()

    async def again(world: World) -> str:
        fresh = await anyio.to_thread.run_sync(load, root, options.flags)
        new = await policies(root, fresh)
        check(root, fresh, new.routes, faults_allowed=options.faults_allowed)
        world.policies, world.backend = new, _backends(fresh.settings)
        late = waits_for_restart(settings, fresh.settings)
        late += ["secrets"] if fresh.secrets != loaded.secrets else []
        return f"these take effect at the next start: {', '.join(late)}" if late else ""

    async def control(
        daemon: Orchestrator, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        operator = Operator(daemon)
        async with anyio.create_task_group() as group:
            await group.start(serve, control_path(root, loaded), operator)
            task_status.started()
            if options.beside is not None:
                group.start_soon(_beside, options.beside, operator)

    ships = equipment.is_daemon_shipping(settings)
    if fault is not None:
        decided = replace(decided, routes=replace(decided.routes, override=fault))
    world: World = World(
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
                "environment": equipment.environment_of_agents(settings, environ),
                "secrets": partial(config.secret_values, always=loaded.hidden),
                "overlay": equipment.overlay_of_agents(settings),
                "cgroups": cgroups.delegated(),
                "managers": partial(cgroups.managers, environ.get("XDG_RUNTIME_DIR", "")),
                "limits": lambda: world.policies.limits,
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
        prompts=plugins.make(
            "prompts",
            "repository",
            {"template": settings.prompt.template, "is_shipped": ships},
        ),
        backend=_backends(settings),
        policies=decided,
        chance=random.Random(seed),
        lessons=getattr(journal, "lessons", None),
        listeners=[options.on_event] if options.on_event else [],
        hide=logs.Redaction(config.hidden(loaded)).text,
        manager=NotifySocket.from_environment(environ),
        zone=zone,
        has_pushed=Pushes(git, settings.base_ref).has_pushed,
        shipper=equipment.shipper(root, loaded, git, environ),
        ships=ships,
    )
    if options.around is not None:
        options.around(world)
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
        beside=(
            *monitoring.over_http(root, loaded),
            preparing.run,
            partial(awake.run, wakefulness=Wakefulness(environ)),
        ),
    )
    return orchestrator
