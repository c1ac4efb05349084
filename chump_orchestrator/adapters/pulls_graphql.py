"""The question put to a GitHub, and its answer, read with suspicion. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar
from urllib.parse import quote

from chump_orchestrator.adapters.pulls_ours import is_oid
from chump_orchestrator.core.pull import Checks, MergeState, PullState, Review

_LARGEST_NUMBER = 2**31 - 1
"""GraphQL's integers have 32 bits."""

REQUESTS_PER_BRANCH = 10
"""Newest first; more than one only where a branch was used again."""

# The checks are those of the head's commit, not of `commits(last: 1)`: that would cost a point
# more for every ten branches.
_ALWAYS = """\
  number state createdAt headRefOid headRefName isCrossRepository url
  headRef { target { ... on Commit { oid statusCheckRollup { state } } } }
"""

OPTIONAL: Mapping[str, str] = {
    "isDraft": "isDraft",
    "reviewDecision": "reviewDecision",
    "mergeStateStatus": "mergeStateStatus",
    "mergeQueueEntry": "mergeQueueEntry { state }",
    "autoMergeRequest": "autoMergeRequest { enabledAt }",
}
"""What an older GitHub Enterprise server may lack, and how it is asked for. Nothing is settled on
any of it."""

_STATES = {"OPEN": PullState.OPEN, "CLOSED": PullState.CLOSED, "MERGED": PullState.MERGED}
_CHECKS = {
    "SUCCESS": Checks.PASSING,
    "FAILURE": Checks.FAILING,
    "ERROR": Checks.FAILING,
    "PENDING": Checks.PENDING,
    "EXPECTED": Checks.PENDING,
}

_REVIEWS = {review.name: review for review in Review}
_MERGE_STATES = {state.name: state for state in MergeState}
_UNKNOWN = re.compile(r"Field '(\w{1,64})' (?:doesn't|does not) exist on type '\w+'")

_URL = re.compile(r"(?:git\+)?(?:https?|ssh|git)(?:\+ssh)?://(?:[^/@]*@)?([^/:@]+)(?::\d+)?/(.+)")
_SCP = re.compile(r"(?:[^/@:]+@)?([^/:@]+):(?!/)(.+)")
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?")
_WORD = re.compile(r"[A-Za-z0-9_.-]*[A-Za-z0-9_][A-Za-z0-9_.-]*")

DEFAULT_HOST = "github.com"

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository on a GitHub, as `gh` names it."""

    host: str
    owner: str
    name: str

    def __str__(self) -> str:
        return f"{self.host}/{self.owner}/{self.name}"


@dataclass(frozen=True, slots=True)
class Request:
    """A pull request as GitHub tells of it, whosesoever; `url` is empty when it is strange."""

    number: int
    state: PullState
    created_at: datetime
    head: str
    is_fork: bool
    checks: Checks
    url: str
    review: Review = Review.NONE
    merge_state: MergeState = MergeState.UNKNOWN
    is_draft: bool = False
    is_queued: bool = False
    is_armed: bool = False


@dataclass(frozen=True, slots=True)
class Rate:
    """What a question has cost, in points, and what is left of the hour's `limit` until a reset."""

    cost: int
    left: int
    resets_at: datetime
    limit: int | None = None


def repository_named(text: str, default_host: str = "") -> Repository | None:
    """Read `[HOST/]OWNER/NAME`, or a URL; `None` when it is neither."""
    if ":" in text:
        return repository_at(text, default_host)
    host, path = text.split("/", 1) if text.count("/") > 1 else ("", text)
    return _repository((host or default_host or DEFAULT_HOST).lower(), path)


def repository_at(url: str, default_host: str = "") -> Repository | None:
    """Read a remote's URL: https, ssh, or ssh in the manner of scp; `None` for any other.

    A host without a dot is an alias of ssh's: then it is `default_host`, if there is one.
    """
    match = _URL.fullmatch(url) or _SCP.fullmatch(url)
    if match is None:
        return None
    host, path = match[1].lower(), match[2].strip("/")
    if "." not in host:
        host = default_host
    for alias in ("ssh.", "www."):
        if host == alias + DEFAULT_HOST:
            host = DEFAULT_HOST
    return _repository(host, path.removesuffix(".git"))


def _repository(host: str, path: str) -> Repository | None:
    owner, _, name = path.partition("/")
    if _HOST.fullmatch(host) and _WORD.fullmatch(owner) and _WORD.fullmatch(name):
        return Repository(host, owner, name)
    return None


def question(
    repository: Repository, branches: Sequence[str], lacking: Collection[str] = ()
) -> dict[str, Any]:
    """Return the GraphQL request about all `branches`; their names travel as variables.

    `lacking` names the `OPTIONAL` fields that the server does not have.
    """
    variables = {f"b{n}": branch for n, branch in enumerate(branches)}
    declared = "".join(f", ${alias}: String!" for alias in variables)
    rules = (
        f"first: {REQUESTS_PER_BRANCH}, states: [OPEN, CLOSED, MERGED],"
        " orderBy: {field: CREATED_AT, direction: DESC}"
    )
    aliases = "\n".join(
        f"    {alias}: pullRequests(headRefName: ${alias}, {rules}) {{ nodes {{ ...request }} }}"
        for alias in variables
    )
    optional = " ".join(text for name, text in OPTIONAL.items() if name not in lacking)
    query = (
        f"query($owner: String!, $name: String!{declared}) {{\n"
        "  rateLimit { limit cost remaining resetAt }\n"
        f"  repository(owner: $owner, name: $name) {{\n{aliases}\n  }}\n}}\n"
        f"fragment request on PullRequest {{\n{_ALWAYS}  {optional}\n}}\n"
    )
    return {
        "query": query,
        "variables": {"owner": repository.owner, "name": repository.name, **variables},
    }


def data_of(text: str) -> dict[str, Any]:
    """Return the data of any answer; `ValueError`, with the reason, when it is not plainly one."""
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no JSON came, but {text[:80]!r}") from error
    if isinstance(answer, dict) and answer.get("errors"):
        raise ValueError(f"errors came: {json.dumps(answer['errors'])}")
    data = part(answer, "data", dict)
    if "repository" in data and data["repository"] is None:
        raise ValueError("the answer names no repository")
    part(data, "repository", dict)
    return data


def unknown_fields(text: str, said: str) -> frozenset[str]:
    """Return the fields that a server says it does not have, or does not show to this token.

    `text` is its answer, `said` what `gh` made of that. Only its errors count: in its data, there
    are names that anybody may have given.
    """
    unknown = set(_UNKNOWN.findall(said))
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        return frozenset(unknown)
    errors = answer.get("errors") if isinstance(answer, dict) else None
    for error in errors if isinstance(errors, list) else ():
        message, path = _given(error, "message"), _given(error, "path")
        unknown.update(_UNKNOWN.findall(message) if isinstance(message, str) else ())
        if _given(error, "type") == "FORBIDDEN" and isinstance(path, list) and path:
            unknown.add(str(path[-1]))
    return frozenset(unknown)


def rate_of(data: Mapping[str, Any]) -> Rate | None:
    """Return what an answer says of the budget; `None` where the server has no limits."""
    rate = data.get("rateLimit")
    if rate is None:
        return None
    limit = rate.get("limit") if isinstance(rate, dict) else None
    return Rate(
        cost=part(rate, "cost", int),
        left=part(rate, "remaining", int),
        resets_at=_instant(part(rate, "resetAt", str)),
        limit=limit if isinstance(limit, int) else None,
    )


def read_requests(
    data: Mapping[str, Any], branches: Sequence[str]
) -> Mapping[str, tuple[Request, ...]]:
    """Read the requests of every branch from the answer to `question`; `ValueError` for none."""
    aliases = part(data, "repository", dict)
    return {
        branch: tuple(
            request
            for node in part(part(aliases, f"b{n}", dict), "nodes", list)
            if (request := _request(node, branch)) is not None
        )
        for n, branch in enumerate(branches)
    }


def _request(node: object, branch: str) -> Request | None:
    """Read one request; `None` when its branch is named otherwise, be it only by case."""
    if part(node, "headRefName", str) != branch:
        return None
    head = part(node, "headRefOid", str)
    number = part(node, "number", int)
    if not is_oid(head) or isinstance(number, bool) or not 1 <= number <= _LARGEST_NUMBER:
        raise ValueError(f"a request has head {head!r} and number {number!r}")
    state = _STATES.get(part(node, "state", str))
    if state is None:
        raise ValueError(f"request {number} is in a state that is none")
    url = part(node, "url", str)
    is_plain = url.startswith("https://") and url == quote(url, safe=":/._-~%")
    return Request(
        number=number,
        state=state,
        created_at=_instant(part(node, "createdAt", str)),
        head=head,
        is_fork=part(node, "isCrossRepository", bool),
        checks=_checks(node, head),
        url=url if is_plain else "",
        review=_word(node, "reviewDecision", _REVIEWS, Review.NONE),
        merge_state=_word(node, "mergeStateStatus", _MERGE_STATES, MergeState.UNKNOWN),
        is_draft=_given(node, "isDraft") is True,
        is_queued=isinstance(_given(node, "mergeQueueEntry"), dict),
        is_armed=isinstance(_given(node, "autoMergeRequest"), dict),
    )


def _given(node: object, name: str) -> object:
    """Return what an optional field holds; `None` where it is not there."""
    return node.get(name) if isinstance(node, dict) else None


def _word(node: object, name: str, known: Mapping[str, _T], otherwise: _T) -> _T:
    word = _given(node, name)
    return known.get(word, otherwise) if isinstance(word, str) else otherwise


def _checks(node: object, head: str) -> Checks:
    """The state of the head's checks; a branch that is gone, or has moved on, tells nothing."""
    inner = node
    for name in ("headRef", "target"):
        inner = inner.get(name) if isinstance(inner, dict) else None
    if not isinstance(inner, dict) or inner.get("oid") != head:
        return Checks.NONE
    rollup = inner.get("statusCheckRollup")
    if rollup is None:
        return Checks.NONE
    return _CHECKS.get(part(rollup, "state", str), Checks.NONE)


def _instant(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone")
    return moment


def part(whole: object, name: str, kind: type[_T]) -> _T:
    """Return a part of a foreign answer; `ValueError` when it is not there, or of another kind."""
    value = whole.get(name) if isinstance(whole, dict) else None
    if not isinstance(value, kind):
        raise ValueError(f"the answer has no {name} that is a {kind.__name__}")  # noqa: TRY004 - foreign
    return value
