"""What the operator wrote, turned into the policies of the core, and what must not run refused."""

from __future__ import annotations

from datetime import timedelta
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

from chump_orchestrator.adapters.faults import FAULTS, first_fault
from chump_orchestrator.core.brakes import RetryPolicy
from chump_orchestrator.core.dispatch import DeadlinePolicy, Limits, depth_objection
from chump_orchestrator.core.errors import ConfigError
from chump_orchestrator.core.routing import Route, RoutePolicy
from chump_orchestrator.daemon.world import Policies
from chump_orchestrator.premises import budget_policy, pick_policy, routes
from chump_orchestrator.settings.choices import OnFailedChecks

if TYPE_CHECKING:
    from chump_orchestrator.config import Loaded, Settings

BYPASSING = frozenset({"claude", "codex", "gemini", "opencode", "goose", "qwen", "aider"})
"""Backends that run an agent past its own permission prompts (behaviour A5)."""

LONGEST_RENEWAL = timedelta(minutes=10)
"""How often leases are renewed; more often where they last less than half an hour."""

FIXED = (
    "base_ref",
    "pass_env",
    "backlog",
    "commits",
    "prompt",
    "pulls.use",
    "ship",
    "worktrees.base",
    "worktrees.prefix",
    "worktrees.keep_days",
    "worktrees.keep_ignored",
    "worktrees.min_free",
    "leases",
    "journal",
    "state.dir",
    "stop",
    "log",
    "http",
    "faults",
)
"""Settings that a running daemon keeps, whatever their file says by now."""


async def policies(root: Path, loaded: Loaded) -> Policies:
    """Return everything that the operator decided, for the daemon."""
    settings = loaded.settings
    return Policies(
        pick=pick_policy(settings),
        routes=await routes(root, loaded),
        deadlines=DeadlinePolicy(
            soft=settings.deadlines.soft,
            grace=settings.deadlines.grace,
            silent=settings.deadlines.silent,
            pull=settings.pulls.deadline,
            ci_grace=settings.pulls.ci_grace,
            look_interval=settings.pulls.interval,
        ),
        retry=RetryPolicy(
            max_attempts=settings.retry.max_attempts,
            base=settings.retry.base,
            cap=settings.retry.cap,
            sessions=settings.brake.sessions,
            usd=settings.brake.usd,
        ),
        budget=budget_policy(settings),
        max_parallel=settings.max_parallel,
        max_open_pulls=settings.max_open_pulls,
        repeat=settings.pick.repeat,
        lessons=settings.lessons.enabled,
        limits=Limits(
            memory=settings.limits.memory or None,
            tasks=settings.limits.tasks or None,
            cpu_weight=settings.limits.cpu_weight or None,
            required=settings.limits.required,
            nice=settings.limits.nice,
        ),
        keep_awake=settings.power.keep_awake,
        prepared=settings.worktrees.prepared,
        resumes_failed=settings.pulls.on_failed_checks is OnFailedChecks.RESUME,
        keep_logs=timedelta(days=settings.state.keep_days),
        renewal=min(LONGEST_RENEWAL, settings.leases.ttl / 3),
    )


def check(root: Path, loaded: Loaded, routed: RoutePolicy, *, faults_allowed: bool) -> Route | None:
    """Refuse what must not run: `ConfigError` for depth, missing consent, forbidden faults.

    Returns the route to a fault where one is asked for and allowed (behaviour F1).
    """
    settings = loaded.settings
    if objection := depth_objection(settings.depth):
        raise ConfigError(objection)
    faults_allowed = faults_allowed or settings.faults.allowed
    fault = first_fault(settings.fault_inject) if settings.fault_inject else None
    if fault is not None and faults_allowed:
        return Route(fault, why="CHUMP_FAULT_INJECT")
    backends = sorted(reachable(routed))
    if not faults_allowed and (injected := [name for name in backends if name in FAULTS]):
        msg = f"backend {injected[0]} injects a fault; only faults.allowed lets one be chosen"
        raise ConfigError(msg)
    bypassing = [name for name in backends if name in BYPASSING]
    if bypassing and not settings.consent:
        msg = (
            f"{root}: {bypassing[0]} would run here without asking before it acts, with your"
            " rights; agree once with `chump-orchestrator init --yes`, or set consent = true in"
            " .chump/orchestrator.toml"
        )
        raise ConfigError(msg)
    return None


def reachable(routed: RoutePolicy) -> set[str]:
    """Return the backends that some gap may go to."""
    if routed.override is not None:
        return {routed.override.backend}
    rows = (*(rule.candidates for rule in routed.table.rules), routed.table.default_candidates)
    return {routed.default.backend} | {one.backend for row in rows for one in row}


def waits_for_restart(running: Settings, fresh: Settings) -> list[str]:
    """Return the settings that differ and that a running daemon does not take over."""
    return [name for name in FIXED if attrgetter(name)(running) != attrgetter(name)(fresh)]
