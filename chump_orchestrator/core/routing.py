"""Which backend and model a gap goes to, and why (behaviour G1 to G3)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

from chump_orchestrator.core.errors import ConfigError
from chump_orchestrator.core.gap import Effort, Gap, Priority, plain

BUILT_IN_CLASSES = {"EVAL-": "research", "RESEARCH-": "research", "COG-": "cognition"}
"""Beginnings of ids that tell the task class (behaviour G2)."""


@dataclass(frozen=True, slots=True)
class Route:
    """Who does a gap: backend and, where given, model and provider prefix; empty is its default."""

    backend: str
    model: str = ""
    provider_pfx: str = ""
    why: str = ""


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of the routing table; an empty set of a criterion matches everything."""

    candidates: tuple[Route, ...]
    priorities: frozenset[str] = frozenset()
    efforts: frozenset[str] = frozenset()
    task_classes: frozenset[str] = frozenset()
    why: str = ""

    def matches(self, gap: Gap, task_class: str) -> bool:
        """Say whether every criterion that was given fits."""
        return (
            (not self.priorities or gap.priority in self.priorities)
            and (not self.efforts or gap.effort in self.efforts)
            and (not self.task_classes or task_class in self.task_classes)
        )


@dataclass(frozen=True, slots=True)
class RoutingTable:
    """The rules of `docs/dispatch/routing.yaml`, in order, and what is used without a match."""

    rules: tuple[Rule, ...] = ()
    default_candidates: tuple[Route, ...] = ()


@dataclass(frozen=True, slots=True)
class RoutePolicy:
    """Where gaps go: the operator's override, the table, or the default backend, in this order."""

    default: Route
    override: Route | None = None
    table: RoutingTable = field(default_factory=RoutingTable)
    classes: Mapping[str, str] = field(default_factory=dict)


def task_class(gap_id: str, classes: Mapping[str, str] | None = None) -> str:
    """Return the class of work by the beginning of the id, or empty (behaviour G2).

    `classes` adds beginnings of ids or replaces the built-in ones; the longest one that fits
    counts.
    """
    known = {**BUILT_IN_CLASSES, **(classes or {})}
    fitting = [start for start in known if gap_id.upper().startswith(start.upper())]
    return known[max(fitting, key=len)] if fitting else ""


def route(gap: Gap, policy: RoutePolicy) -> tuple[Route, ...]:
    """Return the candidates for `gap`, best first, never none, each with its reason."""
    if policy.override is not None:
        return (policy.override,)
    kind_of_task = task_class(gap.id, policy.classes)
    for number, rule in enumerate(policy.table.rules, 1):
        if rule.matches(gap, kind_of_task):
            label = f"route {number}" + (f": {rule.why}" if rule.why else "")
            return tuple(_because(candidate, label) for candidate in rule.candidates)
    if policy.table.default_candidates:
        return tuple(
            _because(candidate, "default of the routing table")
            for candidate in policy.table.default_candidates
        )
    return (policy.default,)


def _because(candidate: Route, label: str) -> Route:
    return replace(candidate, why=f"{label}; {candidate.why}" if candidate.why else label)


def read_table(document: object, backends: Collection[str], file: str) -> RoutingTable:
    """Turn the parsed routing file into a table (behaviour G1).

    Keys that are not known are ignored, as older tables carry some. Raises `ConfigError` with
    every problem at once; a backend that is not among `backends` is one.
    """
    problems: list[str] = []
    if document is None:
        return RoutingTable()
    if not isinstance(document, Mapping):
        msg = f"{file}: expected a mapping with routes and default_candidates"
        raise ConfigError(msg)
    default = _candidates(document.get("default_candidates"), "default_candidates", problems)
    rules: list[Rule] = []
    raw_rules = document.get("routes")
    if raw_rules is not None and not isinstance(raw_rules, list):
        problems.append("routes: expected a list")
        raw_rules = None
    for number, raw in enumerate(raw_rules or (), 1):
        where = f"routes[{number}]"
        if not isinstance(raw, Mapping):
            problems.append(f"{where}: expected a mapping with match and candidates")
            continue
        candidates = _candidates(raw.get("candidates"), f"{where}.candidates", problems)
        if not candidates and not problems:
            problems.append(f"{where}.candidates: at least one is needed")
        match = raw.get("match") or {}
        if not isinstance(match, Mapping):
            problems.append(f"{where}.match: expected a mapping")
            continue
        priorities = _words(match, "priority", where, problems, tuple(Priority), str.upper)
        efforts = _words(match, "effort", where, problems, tuple(Effort), str.lower)
        classes = _words(match, "task_class", where, problems, (), str)
        rules.append(Rule(candidates, priorities, efforts, classes, _text(raw.get("why"))))
    every = [*default, *(c for rule in rules for c in rule.candidates)]
    problems += (
        f"no backend named {name!r}; installed: {', '.join(sorted(backends))}"
        for name in dict.fromkeys(c.backend for c in every)
        if name not in backends
    )
    if problems:
        raise ConfigError("\n".join(f"{file}: {problem}" for problem in problems))
    return RoutingTable(tuple(rules), default)


def _text(value: object) -> str:
    return plain(value).strip() if isinstance(value, str) else ""


def _candidates(raw: object, where: str, problems: list[str]) -> tuple[Route, ...]:
    if raw is None:
        return ()
    if not isinstance(raw, list):
        problems.append(f"{where}: expected a list of candidates")
        return ()
    found: list[Route] = []
    for number, item in enumerate(raw, 1):
        backend = _text(item.get("backend")) if isinstance(item, Mapping) else ""
        if not isinstance(item, Mapping) or not backend:
            problems.append(f"{where}[{number}]: expected a mapping with a backend")
            continue
        found.append(
            Route(
                canonical_backend(backend),
                _text(item.get("model")),
                _text(item.get("provider_pfx")),
                _text(item.get("why")),
            )
        )
    return tuple(found)


def _words(
    match: Mapping[str, object],
    key: str,
    where: str,
    problems: list[str],
    valid: tuple[str, ...],
    fold: Callable[[str], str],
) -> frozenset[str]:
    raw = match.get(key)
    items = raw if isinstance(raw, list) else [] if raw is None else [raw]
    texts = [item for item in items if isinstance(item, str)]
    if len(texts) < len(items):
        problems.append(f"{where}.match.{key}: expected text or a list of texts")
        return frozenset()
    words = frozenset(fold(text.strip()) for text in texts)
    unknown = sorted(words - set(valid)) if valid else []
    problems += (
        f"{where}.match.{key}: {word!r} is not among {', '.join(valid)}" for word in unknown
    )
    return words


def canonical_backend(name: str) -> str:
    """Return the registered name for one of the spellings in use (behaviour A1)."""
    return "chump-local" if name in ("chump_local", "local") else name
