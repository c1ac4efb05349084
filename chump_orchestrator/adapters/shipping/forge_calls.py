"""What is put to a GitHub to open a request, and what it answers, read with suspicion. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from chump_orchestrator.core.shipping import Opened

_LARGEST_NUMBER = 2**31 - 1

_ID = """
query($owner: String!, $name: String!, $number: Int!) {
  repository(owner: $owner, name: $name) {
    pullRequest(number: $number) { id state autoMergeRequest { enabledAt } }
  }
}
"""
_ARM = """
mutation($id: ID!, $method: PullRequestMergeMethod!) {
  enablePullRequestAutoMerge(input: {pullRequestId: $id, mergeMethod: $method}) {
    pullRequest { number }
  }
}
"""


@dataclass(frozen=True, slots=True)
class Standing:
    """A request before its merge is armed: the id that mutations know it by."""

    id: str
    is_open: bool
    is_armed: bool


def creating(branch: str, base: str, title: str, body: str, *, draft: bool) -> dict[str, Any]:
    """Return what a new request is made of."""
    return {"title": title, "head": branch, "base": base, "body": body, "draft": draft}


def created(text: str) -> Opened:
    """Read the answer to `creating`; `ValueError` when it is not plainly one."""
    answer = _object(text)
    number = answer.get("number")
    if isinstance(number, bool) or not isinstance(number, int):
        raise ValueError("the answer has no number of a request")  # noqa: TRY004 - foreign
    if not 1 <= number <= _LARGEST_NUMBER:
        raise ValueError(f"no request has the number {number}")
    return Opened(number, _plain_url(answer.get("html_url")))


def asking_for(owner: str, name: str, number: int) -> dict[str, Any]:
    """Return the question for the id of a request, and whether its merge is armed."""
    return {"query": _ID, "variables": {"owner": owner, "name": name, "number": number}}


def standing(text: str) -> Standing:
    """Read the answer to `asking_for`; `ValueError`, with the reason, when it is none."""
    answer = _object(text)
    if answer.get("errors"):
        raise ValueError(in_words(answer))
    found: Any = answer
    for part in ("data", "repository", "pullRequest"):
        found = found.get(part) if isinstance(found, dict) else None
    if not isinstance(found, dict) or not isinstance(found.get("id"), str):
        raise ValueError("the answer tells of no request")  # noqa: TRY004 - foreign
    return Standing(found["id"], found.get("state") == "OPEN", bool(found.get("autoMergeRequest")))


def arming(request_id: str, method: str) -> dict[str, Any]:
    """Return the mutation that has a request merged as soon as it may be."""
    return {"query": _ARM, "variables": {"id": request_id, "method": method.upper()}}


def in_words(answer: Mapping[str, Any]) -> str:
    """Return what an answer of either kind says has gone wrong, `message` and all, or empty."""
    errors = answer.get("errors")
    inner = [one for one in errors if isinstance(one, dict)] if isinstance(errors, list) else []
    texts = [answer.get("message"), *(one.get("message") for one in inner)]
    return "; ".join(dict.fromkeys(text for text in texts if isinstance(text, str) and text))


def said(text: str) -> str:
    """Return the same of an answer that is text; empty when it is no object."""
    try:
        return in_words(_object(text))
    except ValueError:
        return ""


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no JSON came, but {text[:80]!r}") from error
    if not isinstance(found, dict):
        raise ValueError("the answer is no object")  # noqa: TRY004 - foreign
    return found


def _plain_url(url: object) -> str:
    is_plain = isinstance(url, str) and url.startswith("https://")
    return str(url) if is_plain and url == quote(str(url), safe=":/._-~%") else ""
