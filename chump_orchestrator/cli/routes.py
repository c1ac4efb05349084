"""Shows where gaps go, and what was learnt of who does them: `routes` (behaviour G1 to G4)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import click

from chump_orchestrator import premises
from chump_orchestrator.cli.options import Invocation, as_json, everywhere
from chump_orchestrator.cli.render import dollars, emit, note, say, table
from chump_orchestrator.cli.repository import opened, wait_for
from chump_orchestrator.config import Loaded
from chump_orchestrator.core.deferred import dataclass
from chump_orchestrator.core.learning import Experience
from chump_orchestrator.core.routing import Route, RoutePolicy, Rule


@dataclass(frozen=True, slots=True)
class _Shown:
    """What there is to show: the policy, and what was learnt, whether or not it is acted upon."""

    policy: RoutePolicy
    experience: Experience


@click.command("routes")
@as_json
@everywhere
@click.pass_obj
def routes_command(invocation: Invocation, *, as_json: bool) -> None:
    """Show where gaps go, and how it went."""
    root, loaded = opened(invocation, aloud=True)
    shown = wait_for(partial(_look, root, loaded))
    if as_json:
        emit(_document(shown, loaded))
        return
    _tell_rules(shown.policy, loaded)
    _tell_experience(shown)


async def _look(root: Path, loaded: Loaded) -> _Shown:
    policy = await premises.routes(root, loaded)
    return _Shown(policy, premises.outcomes(root, loaded))


def _tell_rules(policy: RoutePolicy, loaded: Loaded) -> None:
    if policy.override is not None:
        say(f"every gap: {_named(policy.override)}, by CHUMP_DISPATCH_BACKEND")
        click.echo()
    rows = [
        (place, what, _named(one), "; ".join(filter(None, (why, one.why))) or "-")
        for place, what, why, candidates in _rules(policy)
        for one in candidates
    ]
    table(("ROUTE", "GAPS", "CANDIDATE", "WHY"), rows)
    if not policy.table.rules:
        note(f"there are no routes in {loaded.settings.routing.table}")


def _rules(policy: RoutePolicy) -> Iterator[tuple[str, str, str, Sequence[Route]]]:
    for number, rule in enumerate(policy.table.rules, 1):
        yield str(number), _criteria(rule), rule.why, rule.candidates
    rest = "all others" if policy.table.rules else "all"
    yield "default", rest, "", policy.table.default_candidates or (policy.default,)


def _criteria(rule: Rule) -> str:
    told = [f"{name} {' or '.join(words)}" for name, words in _match(rule).items() if words]
    return ", ".join(told) or "all"


def _match(rule: Rule) -> Mapping[str, list[str]]:
    return {
        "priority": sorted(rule.priorities),
        "effort": sorted(rule.efforts),
        "task_class": sorted(rule.task_classes),
    }


def _tell_experience(shown: _Shown) -> None:
    rows = [
        (
            kind[0] or "-",
            kind[1],
            " ".join(filter(None, candidate)),
            f"{belief.shipped:.1f}",
            f"{belief.failed:.1f}",
            dollars(belief.usd),
        )
        for kind, beliefs in sorted(shown.experience.beliefs.items())
        for candidate, belief in sorted(beliefs.items())
    ]
    if rows:
        click.echo()
        table(("CLASS", "EFFORT", "CANDIDATE", "SHIPPED", "FAILED", "COST"), rows)
        note("counts weigh less with age: half after 30 days")
    else:
        note("no dispatch has ended here yet")
    if not shown.policy.learns:
        note("candidates are asked in the order of the table; routing.learn = true ranks them")


def _named(route: Route) -> str:
    return " ".join(filter(None, (route.backend, route.model, route.provider_pfx)))


def _document(shown: _Shown, loaded: Loaded) -> Mapping[str, object]:
    policy = shown.policy
    return {
        "table": loaded.settings.routing.table,
        "learns": policy.learns,
        "override": None if policy.override is None else _candidate(policy.override),
        "routes": [
            {
                "match": _match(rule),
                "why": rule.why,
                "candidates": [_candidate(one) for one in rule.candidates],
            }
            for rule in policy.table.rules
        ],
        "default": [
            _candidate(one) for one in policy.table.default_candidates or (policy.default,)
        ],
        "experience": [
            {
                "task_class": kind[0] or None,
                "effort": kind[1],
                "backend": backend,
                "model": model or None,
                "provider_pfx": provider or None,
                "shipped": round(belief.shipped, 3),
                "failed": round(belief.failed, 3),
                "cost_usd": belief.usd,
            }
            for kind, beliefs in sorted(shown.experience.beliefs.items())
            for (backend, model, provider), belief in sorted(beliefs.items())
        ],
    }


def _candidate(route: Route) -> Mapping[str, object]:
    return {
        "backend": route.backend,
        "model": route.model or None,
        "provider_pfx": route.provider_pfx or None,
        "why": route.why,
    }
