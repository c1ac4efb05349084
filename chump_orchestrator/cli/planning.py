"""What would be dispatched now, and why not the rest; looks only (behaviour C6, K5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from chump_orchestrator import looking, premises
from chump_orchestrator.adapters.host import HostClock
from chump_orchestrator.cli.refs import taken_names
from chump_orchestrator.config import Loaded
from chump_orchestrator.core.backlog import Backlog
from chump_orchestrator.core.cascade import Round, attempts, in_turn, rounds
from chump_orchestrator.core.deferred import dataclass
from chump_orchestrator.core.dispatch import Names, names
from chump_orchestrator.core.gap import Gap, on_one_line
from chump_orchestrator.core.learning import Experience, ranked
from chump_orchestrator.core.picker import Choice, PickPolicy, choose
from chump_orchestrator.core.routing import Route, RoutePolicy, key_of


@dataclass(frozen=True, slots=True)
class Picked:
    """A gap that would be dispatched; `worktree` is where, `model` empty for the backend's own."""

    gap: Gap
    names: Names
    worktree: Path
    route: Route
    model: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What would be dispatched into `slots` free slots; `notes` say what would still hold it up.

    `walks` are the candidates of gaps that have handed them over (behaviour G5), `attempts` how
    many each gap has had; `experience` is what was learnt, `None` where nothing is (behaviour G4).
    """

    backlog: Backlog
    policy: PickPolicy
    choice: Choice
    picked: tuple[Picked, ...]
    slots: int
    notes: tuple[str, ...]
    routes: RoutePolicy
    walks: Mapping[str, Round]
    attempts: Mapping[str, int]
    experience: Experience | None

    def route(self, gap: Gap) -> tuple[Route, ...]:
        """Return the candidates of a gap, as the daemon has them."""
        return ranked(gap, self.routes, self.experience, self.attempts.get(gap.id, 0))

    def candidates(self, gap: Gap) -> list[Mapping[str, object]]:
        """Return the candidates of a gap, and what became of each, as `why --json` tells it."""
        known = self.walks.get(gap.id, {})
        return [
            {
                "backend": one.backend,
                "model": one.model or None,
                "provider_pfx": one.provider_pfx or None,
                "why": one.why,
                "odds": one.odds,
                "handed_over": (setback := known.get(key_of(one))) and str(setback.cause),
                "handed_over_at": setback and setback.at and f"{setback.at:%Y-%m-%dT%H:%M:%SZ}",
            }
            for one in self.route(gap)
        ]

    def document(self) -> Mapping[str, object]:
        """Return the shape of `plan --json` (behaviour C6)."""
        return {
            "total": self.backlog.total,
            "open": self.backlog.open,
            "done": len(self.backlog.done),
            "picked": [
                {
                    "id": one.gap.id,
                    "priority": str(one.gap.priority),
                    "effort": str(one.gap.effort),
                    "title": one.gap.title,
                    "branch": one.names.branch,
                    "worktree": str(one.worktree),
                    "backend": one.route.backend,
                    "model": one.model or None,
                }
                for one in self.picked
            ],
            "refused": [
                {"id": refusal.id, "reason": refusal.reason} for refusal in self.choice.reasons()
            ],
            "rejected": rejected(self.backlog),
        }


def rejected(backlog: Backlog) -> list[Mapping[str, object]]:
    """Return the entries that were left out, with reason and place (behaviour C6)."""
    return [
        {
            "id": entry.id,
            "reason": entry.reason,
            "file": entry.place.file,
            "line": entry.place.line,
            "column": entry.place.column,
        }
        for entry in backlog.rejected
    ]


def plan(root: Path, loaded: Loaded) -> Plan:
    """Work out what the daemon would do now with the slots that are free.

    Needs no commit, no remote, no forge and no daemon. Raises `ConfigError` when the backlog or
    the routing table cannot be used.
    """
    return looking.at_once(partial(_planned, root, loaded))


async def _planned(root: Path, loaded: Loaded) -> Plan:
    settings = loaded.settings
    backlog = looking.read_backlog(root, loaded)
    async with looking.open_ledger(root, loaded) as ledger:
        standing = await looking.standing(root, loaded, backlog, ledger)
        active = await ledger.records(active=True)
        pause = await ledger.pause()
        budget = await premises.todays_budget(loaded, ledger, HostClock().now())
        chronicle = await ledger.chronicle()
    routes = premises.routes_at_once(root, loaded)
    experience = premises.experience(root, loaded)
    slots = max(settings.max_parallel - sum(1 for one in active if one.holds_slot), 0)
    policy = premises.pick_policy(settings)
    choice = choose(standing, slots, policy)
    base = root / settings.worktrees.base
    taken = taken_names(root, base, settings.worktrees.prefix)
    notes = []
    if pause is not None:
        reason = on_one_line(pause.reason) or "no reason given"
        notes.append(f"dispatching is paused by {pause.by}: {reason}")
    if slots < settings.max_parallel:
        notes.append(f"{settings.max_parallel - slots} of {settings.max_parallel} slots are taken")
    opened = sum(1 for one in active if one.pull is not None and one.pull.state == "open")
    if opened >= settings.max_open_pulls:
        notes.append(f"{opened} pull requests are open, and max_open_pulls is reached")
    if budget["reached"]:
        notes.append(str(budget["held"]))
    planned = Plan(
        backlog=standing,
        policy=policy,
        choice=choice,
        picked=(),
        slots=slots,
        notes=tuple(notes),
        routes=routes,
        walks=rounds(chronicle),
        attempts=attempts(chronicle),
        experience=experience,
    )
    picked = [_picked(gap, planned, loaded, taken, base) for gap in choice.picked]
    return replace(planned, picked=tuple(picked))


def _picked(gap: Gap, planned: Plan, loaded: Loaded, taken: set[str], base: Path) -> Picked:
    others = {other.slug for other in planned.backlog.gaps if other.id != gap.id}
    found = names(gap, taken | others, prefix=loaded.settings.worktrees.prefix)
    chosen = in_turn(planned.route(gap), planned.walks.get(gap.id, {}))[0]
    model = chosen.model or loaded.settings.backend.of(chosen.backend).model
    return Picked(gap, found, base / found.folder, chosen, model)
