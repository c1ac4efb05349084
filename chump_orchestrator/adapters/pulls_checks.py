"""The second question to a GitHub: which checks of a red request failed, and which must not. Pure.

The first question's answer is one word for all checks of a commit. It says failure also where
nobody requires the one that failed (behaviour P5).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from chump_orchestrator.adapters.pulls_graphql import Repository, part
from chump_orchestrator.core.gap import on_one_line
from chump_orchestrator.core.pull import MOST_NAMED, Checks

REQUIRED = "isRequired"
"""A field that older GitHub Enterprise servers lack. There, every check counts."""

CHECKS_AT_ONCE = 100
"""Of one request in one answer; a server gives no more."""

MOST_PAGES = 5
"""So many answers are asked for, for one request; beyond, the server's one word counts."""

LONGEST_NAME = 80
LONGEST_URL = 300

_PASSED = frozenset({"SUCCESS", "NEUTRAL", "SKIPPED"})
_FAILED = frozenset(
    {"ACTION_REQUIRED", "CANCELLED", "ERROR", "FAILURE", "STARTUP_FAILURE", "TIMED_OUT"}
)
"""Conclusions of check runs and states of status contexts. Every other one, `STALE` or one of a
later year, may still become either."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request whose checks are asked about, from the place `after` on; empty is the beginning."""

    number: int
    after: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """One check of a request's head; `is_required` of `None` where the server cannot tell."""

    name: str
    state: Checks
    is_required: bool | None
    url: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """Some checks of the commit `head`; `after` is where the next ones begin, empty for the end."""

    head: str
    checks: tuple[Check, ...]
    after: str = ""


@dataclass(frozen=True, slots=True)
class Judged:
    """What the checks that count come to, and the failing ones by name."""

    state: Checks
    failing: tuple[str, ...] = ()
    url: str = ""


def question(
    repository: Repository, asked: Sequence[Asked], lacking: Collection[str] = ()
) -> dict[str, Any]:
    """Return the GraphQL request about the single checks of all these requests."""
    variables: dict[str, Any] = {"owner": repository.owner, "name": repository.name}
    declared, aliases = "", []
    for n, one in enumerate(asked):
        variables[f"n{n}"], variables[f"a{n}"] = one.number, one.after or None
        declared += f", $n{n}: Int!, $a{n}: String"
        required = "" if REQUIRED in lacking else f" {REQUIRED}(pullRequestNumber: $n{n})"
        aliases.append(
            f"    r{n}: pullRequest(number: $n{n}) {{ headRef {{ target {{ ... on Commit {{ oid"
            f" statusCheckRollup {{ contexts(first: {CHECKS_AT_ONCE}, after: $a{n}) {{\n"
            "      pageInfo { hasNextPage endCursor }\n"
            "      nodes { __typename\n"
            f"        ... on CheckRun {{ name status conclusion detailsUrl{required} }}\n"
            f"        ... on StatusContext {{ context state targetUrl{required} }}\n"
            "      }\n    } } } } } }"
        )
    inner = "\n".join(aliases)
    query = (
        f"query($owner: String!, $name: String!{declared}) {{\n"
        "  rateLimit { limit cost remaining resetAt }\n"
        f"  repository(owner: $owner, name: $name) {{\n{inner}\n  }}\n}}\n"
    )
    return {"query": query, "variables": variables}


def read_pages(data: Mapping[str, Any], asked: Sequence[Asked]) -> Mapping[int, Page]:
    """Read the answer to `question`, by the numbers of requests; `ValueError` when it is none.

    A request is left out whose branch has gone, or whose commit has no checks any more.
    """
    aliases = part(data, "repository", dict)
    pages = {}
    for n, one in enumerate(asked):
        inner: object = aliases.get(f"r{n}")
        for name in ("headRef", "target"):
            inner = inner.get(name) if isinstance(inner, dict) else None
        if not isinstance(inner, dict) or inner.get("statusCheckRollup") is None:
            continue
        contexts = part(part(inner, "statusCheckRollup", dict), "contexts", dict)
        place = part(contexts, "pageInfo", dict)
        after = part(place, "endCursor", str) if part(place, "hasNextPage", bool) else ""
        checks = tuple(_check(node) for node in part(contexts, "nodes", list))
        pages[one.number] = Page(part(inner, "oid", str), checks, after)
    return pages


def judged(checks: Iterable[Check], *, is_whole: bool) -> Judged:
    """Say what `checks` come to: the required ones, or all of them where none is required.

    When there are more than were read, and none of these has failed, the server's one word stands:
    something has.
    """
    known = tuple(checks)
    counting = [one for one in known if one.is_required] or list(known)
    failed = {one.name: one.url for one in counting if one.state is Checks.FAILING}
    if failed:
        url = next((url for url in failed.values() if url), "")
        return Judged(Checks.FAILING, tuple(failed)[:MOST_NAMED], url)
    if not is_whole:
        return Judged(Checks.FAILING, ("one of more checks than were read",))
    if any(one.state is Checks.PENDING for one in counting):
        return Judged(Checks.PENDING)
    return Judged(Checks.PASSING if counting else Checks.NONE)


def _check(node: object) -> Check:
    if part(node, "__typename", str) == "CheckRun":
        name, url = part(node, "name", str), _or_empty(node, "detailsUrl")
        is_over = part(node, "status", str) == "COMPLETED"
        word = _or_empty(node, "conclusion") if is_over else ""
    else:
        name, url = part(node, "context", str), _or_empty(node, "targetUrl")
        word = part(node, "state", str)
    state = Checks.PENDING
    if word in _PASSED:
        state = Checks.PASSING
    elif word in _FAILED:
        state = Checks.FAILING
    required = node.get(REQUIRED) if isinstance(node, dict) else None
    return Check(_named(name), state, required if isinstance(required, bool) else None, _url(url))


def _or_empty(node: object, name: str) -> str:
    value = node.get(name) if isinstance(node, dict) else None
    return value if isinstance(value, str) else ""


def _named(name: str) -> str:
    """Return a check's name as one that moves no terminal and fills no row."""
    line = " ".join(on_one_line(name.encode("utf-8", "replace").decode()).split())
    return (
        line[: LONGEST_NAME - 1] + "…" if len(line) > LONGEST_NAME else line
    ) or "without a name"


def _url(url: str) -> str:
    is_plain = url.startswith("https://") and url == quote(url, safe=":/._-~%?&=#+,;@")
    return url if is_plain and len(url) <= LONGEST_URL else ""
