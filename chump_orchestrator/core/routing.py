"""Which backend and model a gap goes to, and why (behaviour G1 to G4)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import field, replace

from chump_orchestrator.core.deferred import dataclass
from chump_orchestrator.core.errors import ConfigError
from chump_orchestrator.core.gap import Effort, Gap, Priority, is_null, on_one_line

BUILT_IN_CLASSES = {"EVAL-": "research", "RESEARCH-": "research", "COG-": "cognition"}
"""Beginnings of ids that tell the task class (behaviour G2)."""


@dataclass(frozen=True, slots=True)
class Route:
    """Who does a gap: backend and, where given, model and provider prefix; empty is its default.

    `odds` is how likely a draw was to put it first, 0 to 1; `None` where nothing was drawn.
    """

    backend: str
    model: str = ""
    provider_pfx: str = ""
    why: str = ""
    odds: float | None = None

    def because(self, reason: str) -> Route:
        """Return the candidate with one more reason, before its own."""
        return replace(self, why=f"{reason}; {self.why}" if self.why else reason)


Candidate = tuple[str, str, str]
"""What tells a candidate from others: backend, model, prefix of its provider."""


def key_of(candidate: Route) -> Candidate:
    """Return what tells a candidate from the others of its route."""
    return candidate.backend, candidate.model, candidate.provider_pfx


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
    """Where gaps go: the operator's override, the table, or the default backend, in this order.

    `learns` says whether the candidates of the table are ranked by what was learnt of them.
    """

    default: Route
    override: Route | None = None
    table: RoutingTable = field(default_factory=RoutingTable)
    classes: Mapping[str, str] = field(default_factory=dict)
    learns: bool = False


def task_class(gap_id: str, classes: Mapping[str, str] | None = None) -> str:
    """Return the class of work by the beginning of the id, or empty (behaviour G2).

    `classes` adds beginnings of ids or replaces the built-in ones; the longest one that fits
    counts.
    """
    ours = {start.upper(): name for start, name in (classes or {}).items()}
    known = {**BUILT_IN_CLASSES, **ours}
    fitting = [start for start in known if gap_id.upper().startswith(start)]
    return known[max(fitting, key=len)] if fitting else ""


def route(gap: Gap, policy: RoutePolicy) -> tuple[Route, ...]:
    """Return the candidates for `gap`, best first, never none, each with its reason."""
    if policy.override is not None:
        return (policy.override.because("the operator's override"),)
    kind_of_task = task_class(gap.id, policy.classes)
    for number, rule in enumerate(policy.table.rules, 1):
        if rule.matches(gap, kind_of_task):
            label = f"route {number}" + (f": {rule.why}" if rule.why else "")
            return tuple(candidate.because(label) for candidate in rule.candidates)
    if policy.table.default_candidates:
        return tuple(
            candidate.because("default of the routing table")
            for candidate in policy.table.default_candidates
        )
    return (policy.default.because("the default backend"),)


def read_table(document: object, backends: Collection[str], file: str) -> RoutingTable:
    """Turn the parsed routing file into a table (behaviour G1).

    Keys that are not known are ignored, as older tables carry some. Raises `ConfigError` with
    every problem at once; a backend that is not among `backends` is one.
    """
    if _is_nothing(document):
        return RoutingTable()
    if not isinstance(document, Mapping):
        raise ConfigError(f"{file}: expected a mapping with routes and default_candidates")
    reader = _Reader(frozenset(backends))
    default = reader.candidates(document.get("default_candidates"), "default_candidates")
    rules = reader.rules(document.get("routes"))
    if reader.problems:
        raise ConfigError("\n".join(f"{file}: {problem}" for problem in reader.problems))
    return RoutingTable(rules, default)


def _is_nothing(value: object) -> bool:
    return value is None or (isinstance(value, str) and is_null(value))


_PRIORITIES = {priority.lower(): str(priority) for priority in Priority}
_EFFORTS = {effort.lower(): str(effort) for effort in Effort}


class _Reader:
    """Reads the parts of a routing file and collects what is wrong with them."""

    def __init__(self, backends: frozenset[str]) -> None:
        self.problems: list[str] = []
        self._backends = backends

    def rules(self, raw: object) -> tuple[Rule, ...]:
        if _is_nothing(raw):
            return ()
        if not isinstance(raw, list):
            self.problems.append("routes: expected a list")
            return ()
        found = (self._rule(item, f"routes[{number}]") for number, item in enumerate(raw, 1))
        return tuple(rule for rule in found if rule is not None)

    def _rule(self, raw: object, where: str) -> Rule | None:
        if not isinstance(raw, Mapping):
            self.problems.append(f"{where}: expected a mapping with match and candidates")
            return None
        match = raw.get("match")
        if _is_nothing(match):
            match = {}
        if not isinstance(match, Mapping):
            self.problems.append(f"{where}.match: expected a mapping")
            return None
        listed = raw.get("candidates")
        if _is_nothing(listed) or listed == []:
            self.problems.append(f"{where}.candidates: at least one is needed")
        return Rule(
            self.candidates(listed, f"{where}.candidates"),
            self._words(match.get("priority"), f"{where}.match.priority", _PRIORITIES),
            self._words(match.get("effort"), f"{where}.match.effort", _EFFORTS),
            self._words(match.get("task_class"), f"{where}.match.task_class", None),
            self._text(raw.get("why"), f"{where}.why"),
        )

    def candidates(self, raw: object, where: str) -> tuple[Route, ...]:
        if _is_nothing(raw):
            return ()
        if not isinstance(raw, list):
            self.problems.append(f"{where}: expected a list of candidates")
            return ()
        found = (self._candidate(item, f"{where}[{number}]") for number, item in enumerate(raw, 1))
        return tuple(route for route in found if route is not None)

    def _candidate(self, raw: object, where: str) -> Route | None:
        if not isinstance(raw, Mapping) or _is_nothing(raw.get("backend")):
            self.problems.append(f"{where}: expected a mapping with a backend")
            return None
        backend = canonical_backend(self._text(raw.get("backend"), f"{where}.backend"))
        if backend and backend not in self._backends:
            installed = ", ".join(sorted(self._backends))
            self.problems.append(
                f"{where}.backend: no backend named {backend!r}; installed: {installed}"
            )
        return Route(
            backend,
            self._text(raw.get("model"), f"{where}.model"),
            self._text(raw.get("provider_pfx"), f"{where}.provider_pfx"),
            self._text(raw.get("why"), f"{where}.why"),
        )

    def _text(self, value: object, where: str) -> str:
        if _is_nothing(value):
            return ""
        if isinstance(value, str):
            return on_one_line(value)
        self.problems.append(f"{where}: expected text; put it in quotes")
        return ""

    def _words(self, raw: object, where: str, valid: Mapping[str, str] | None) -> frozenset[str]:
        if _is_nothing(raw):
            return frozenset()
        items = raw if isinstance(raw, list) else [raw]
        texts = [on_one_line(item) for item in items if isinstance(item, str)]
        if len(texts) < len(items):
            self.problems.append(f"{where}: expected text or a list of texts")
            return frozenset()
        if valid is None:
            return frozenset(texts)
        self.problems += (
            f"{where}: {text!r} is not among {', '.join(valid.values())}"
            for text in dict.fromkeys(texts)
            if text.lower() not in valid
        )
        return frozenset(valid.get(text.lower(), text) for text in texts)


def canonical_backend(name: str) -> str:
    """Return the registered name for one of the spellings in use (behaviour A1)."""
    return "chump-local" if name in ("chump_local", "local") else name
