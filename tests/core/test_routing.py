"""Which backend and model a gap goes to, and why (behaviour G1 to G3, A1)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chump_orchestrator.core.errors import ConfigError
from chump_orchestrator.core.gap import Effort, Priority
from chump_orchestrator.core.routing import (
    Route,
    RoutePolicy,
    RoutingTable,
    Rule,
    canonical_backend,
    read_table,
    route,
    task_class,
)
from tests.builders import a_gap

DEFAULT = Route("claude")
BACKENDS = ("claude", "chump-local", "codex")
FILE = "docs/dispatch/routing.yaml"


def problems_of(document: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read_table(document, BACKENDS, FILE)
    lines = str(caught.value).splitlines()

    assert all(line.startswith(f"{FILE}: ") for line in lines)
    return [line.removeprefix(f"{FILE}: ") for line in lines]


def test_a_table_is_read() -> None:
    """Behaviour G1."""
    document = {
        "version": "3",
        "default_candidates": [{"backend": "claude", "model": "opus", "model_class": "big"}],
        "routes": [
            {
                "match": {"priority": "p0", "effort": ["XS", " s "], "task_class": "research"},
                "candidates": [
                    {"backend": "local", "model": "qwen", "provider_pfx": "TOGETHER", "why": "a"},
                    {"backend": "claude", "model": None},
                ],
                "why": "cheap\nfirst",
            },
            {"candidates": [{"backend": "codex"}]},
        ],
    }

    assert read_table(document, BACKENDS, FILE) == RoutingTable(
        rules=(
            Rule(
                candidates=(Route("chump-local", "qwen", "TOGETHER", "a"), Route("claude")),
                priorities=frozenset({"P0"}),
                efforts=frozenset({"xs", "s"}),
                task_classes=frozenset({"research"}),
                why="cheap first",
            ),
            Rule(candidates=(Route("codex"),)),
        ),
        default_candidates=(Route("claude", "opus"),),
    )


@pytest.mark.parametrize(
    "document",
    [None, "", "null", {}, {"routes": None}, {"routes": [], "default_candidates": "~"}],
)
def test_an_empty_table_has_no_rules(document: object) -> None:
    """Behaviour G1."""
    assert read_table(document, BACKENDS, FILE) == RoutingTable()


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        (["x"], "expected a mapping with routes and default_candidates"),
        ({"routes": {"a": "b"}}, "routes: expected a list"),
        ({"routes": ["x"]}, "routes[1]: expected a mapping with match and candidates"),
        ({"routes": [{"match": {}}]}, "routes[1].candidates: at least one is needed"),
        ({"routes": [{"candidates": []}]}, "routes[1].candidates: at least one is needed"),
        (
            {"routes": [{"candidates": "claude"}]},
            "routes[1].candidates: expected a list of candidates",
        ),
        (
            {"routes": [{"candidates": ["claude"]}]},
            "routes[1].candidates[1]: expected a mapping with a backend",
        ),
        (
            {"default_candidates": [{"model": "opus"}]},
            "default_candidates[1]: expected a mapping with a backend",
        ),
        (
            {"default_candidates": [{"backend": "claude"}, {"backend": "gpt"}]},
            "default_candidates[2].backend: no backend named 'gpt'; installed: chump-local,"
            " claude, codex",
        ),
        (
            {"default_candidates": [{"backend": "claude", "model": 4.5}]},
            "default_candidates[1].model: expected text; put it in quotes",
        ),
        (
            {"routes": [{"match": ["P0"], "candidates": [{"backend": "codex"}]}]},
            "routes[1].match: expected a mapping",
        ),
        (
            {"routes": [{"match": {"priority": "P7"}, "candidates": [{"backend": "codex"}]}]},
            "routes[1].match.priority: 'P7' is not among P0, P1, P2, P3, P4, unknown",
        ),
        (
            {"routes": [{"match": {"effort": ["s", 3]}, "candidates": [{"backend": "codex"}]}]},
            "routes[1].match.effort: expected text or a list of texts",
        ),
    ],
)
def test_a_malformed_table_is_refused_with_the_place(document: object, problem: str) -> None:
    """Behaviour G1."""
    assert problems_of(document) == [problem]


def test_every_problem_is_told_at_once() -> None:
    """Behaviour G1, C4."""
    document = {
        "routes": [
            {"match": {"priority": ["P7", "P8"]}, "candidates": [{"backend": "gpt"}]},
            {"candidates": []},
            7,
        ]
    }

    assert [problem.partition(": ")[0] for problem in problems_of(document)] == [
        "routes[1].candidates[1].backend",
        "routes[1].match.priority",
        "routes[1].match.priority",
        "routes[2].candidates",
        "routes[3]",
    ]


def table(*rules: Rule, default: tuple[Route, ...] = ()) -> RoutePolicy:
    return RoutePolicy(DEFAULT, table=RoutingTable(rules, default))


@pytest.mark.parametrize(
    ("match", "fits"),
    [
        ({}, True),
        ({"priorities": frozenset({"P1", "P2"})}, True),
        ({"priorities": frozenset({"P0"})}, False),
        ({"efforts": frozenset({"s"})}, True),
        ({"efforts": frozenset({"m"})}, False),
        ({"task_classes": frozenset({"cognition"})}, True),
        ({"task_classes": frozenset({"research"})}, False),
        ({"priorities": frozenset({"P1"}), "efforts": frozenset({"m"})}, False),
        ({"priorities": frozenset({"P1"}), "efforts": frozenset({"s", "m"})}, True),
    ],
)
def test_all_criteria_given_must_match(match: dict[str, Any], fits: bool) -> None:
    """Behaviour G1."""
    gap = a_gap("COG-1", priority=Priority.P1, effort=Effort.S)

    found = route(gap, table(Rule((Route("codex"),), **match)))

    assert [candidate.backend for candidate in found] == ["codex" if fits else "claude"]


def test_the_first_match_wins_and_its_candidates_keep_their_order() -> None:
    """Behaviour G1."""
    policy = table(
        Rule((Route("codex"),), priorities=frozenset({"P0"})),
        Rule((Route("chump-local", why="free"), Route("claude", "opus")), why="small ones"),
        Rule((Route("codex"),)),
    )

    assert route(a_gap(), policy) == (
        Route("chump-local", why="route 2: small ones; free"),
        Route("claude", "opus", why="route 2: small ones"),
    )


def test_without_a_match_the_defaults_of_the_table_serve_then_the_backend_in_use() -> None:
    """Behaviour G1."""
    rule = Rule((Route("codex"),), priorities=frozenset({"P0"}))

    assert route(a_gap(), table(rule, default=(Route("codex", "x"),))) == (
        Route("codex", "x", why="default of the routing table"),
    )
    assert route(a_gap(), table(rule)) == (Route("claude", why="the default backend"),)
    assert route(a_gap(), RoutePolicy(DEFAULT)) == (Route("claude", why="the default backend"),)


def test_the_operators_override_outranks_the_table_and_says_so() -> None:
    """Behaviour G3: the reason is recorded."""
    override = Route("codex", "m", "PFX", "CHUMP_DISPATCH_BACKEND")
    rules = RoutingTable((Rule((Route("chump-local"),)),), (Route("claude"),))

    assert route(a_gap(), RoutePolicy(DEFAULT, override, rules)) == (
        Route("codex", "m", "PFX", "the operator's override; CHUMP_DISPATCH_BACKEND"),
    )


@pytest.mark.parametrize(
    ("gap_id", "name"),
    [
        ("EVAL-031", "research"),
        ("RESEARCH-1", "research"),
        ("COG-009b", "cognition"),
        ("cog-1", "cognition"),
        ("EVALS-1", ""),
        ("INFRA-COG-1", ""),
    ],
)
def test_the_beginning_of_the_id_tells_the_task_class(gap_id: str, name: str) -> None:
    """Behaviour G2."""
    assert task_class(gap_id) == name


def test_settings_add_and_replace_task_classes_and_the_longest_beginning_counts() -> None:
    """Behaviour G2."""
    classes = {"infra-": "ops", "INFRA-CI-": "ci", "cog-": "thinking"}

    found = [task_class(one, classes) for one in ("INFRA-1", "INFRA-CI-2", "COG-1", "EVAL-1")]

    assert found == ["ops", "ci", "thinking", "research"]


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("local", "chump-local"),
        ("chump_local", "chump-local"),
        ("chump-local", "chump-local"),
        ("claude", "claude"),
        ("locals", "locals"),
    ],
)
def test_a_backend_has_one_name(name: str, canonical: str) -> None:
    """Behaviour A1."""
    assert canonical_backend(name) == canonical


@given(
    st.recursive(
        st.none() | st.integers() | st.sampled_from(["P0", "claude", "xs", "x", ""]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["routes", "candidates", "match", "priority", "backend", "why", "effort"]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=25,
    )
)
def test_any_document_is_a_table_or_a_refusal(document: object) -> None:
    """Behaviour G1."""
    try:
        found = read_table(document, BACKENDS, FILE)
    except ConfigError:
        return

    assert all(rule.candidates for rule in found.rules)
    assert route(a_gap(), RoutePolicy(DEFAULT, table=found))
