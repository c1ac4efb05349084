"""What a GitHub answers to GraphQL, from what a test says it knows: read, checked, carried out.

Both stand-ins use it: the small `gh`, and the server that the real `gh` asks. So it imports the
standard library alone, and is as strict as the original: fields that a type does not have, lists
without a limit and variables of another type are errors, and an answer costs what GitHub's
published formula says. A field that `lacking` names is not in its schema, as on an older server.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Forge = Mapping[str, Any]
    Selection = dict[str, Any]

MOST_AT_ONCE = 100

SCALARS = {
    "RateLimit": {"limit", "cost", "remaining", "resetAt", "used", "nodeCount"},
    "PullRequest": {
        *("number", "state", "createdAt", "headRefOid", "headRefName", "isCrossRepository"),
        *("isDraft", "url", "mergedAt", "reviewDecision", "mergeStateStatus", "title", "closed"),
    },
    "Commit": {"oid"},
    "StatusCheckRollup": {"state"},
    "PageInfo": {"hasNextPage", "endCursor"},
    "MergeQueueEntry": {"state", "position", "enqueuedAt"},
    "AutoMergeRequest": {"enabledAt", "mergeMethod"},
    "CheckRun": {"name", "status", "conclusion", "detailsUrl", "isRequired"},
    "StatusContext": {"context", "state", "targetUrl", "isRequired"},
    "PullRequestConnection": {"totalCount"},
    "StatusCheckRollupContextConnection": {"totalCount"},
}
OBJECTS = {
    "Query": {"rateLimit": "RateLimit", "repository": "Repository"},
    "Repository": {"pullRequests": "PullRequestConnection", "pullRequest": "PullRequest"},
    "PullRequestConnection": {"nodes": "PullRequest", "pageInfo": "PageInfo"},
    "PullRequest": {
        "headRef": "Ref",
        "mergeQueueEntry": "MergeQueueEntry",
        "autoMergeRequest": "AutoMergeRequest",
    },
    "Ref": {"target": "GitObject"},
    "Commit": {"statusCheckRollup": "StatusCheckRollup"},
    "StatusCheckRollup": {"contexts": "StatusCheckRollupContextConnection"},
    "StatusCheckRollupContextConnection": {
        "nodes": "StatusCheckRollupContext",
        "pageInfo": "PageInfo",
    },
}
CONNECTIONS = {"pullRequests", "contexts"}
KINDS = {"String": str, "Int": int, "Boolean": bool}

_TOKEN = re.compile(r'\s*,*\s*(\.\.\.|\$?[A-Za-z_]\w*|-?\d+|"(?:[^"\\]|\\.)*"|[{}()\[\]:!=])')


class _Bad(Exception):
    """The question is none; the message is what GitHub says."""


class _Reader:
    """Reads a document into selections: aliases, arguments, what is selected below."""

    def __init__(self, text: str) -> None:
        self.tokens, place = [], 0
        text = text.rstrip(" \n,")
        while place < len(text):
            match = _TOKEN.match(text, place)
            if match is None:
                raise _Bad(f"Parse error on {text[place : place + 20]!r}")
            self.tokens.append(match[1])
            place = match.end()
        self.tokens.append("")

    def take(self, wanted: str = "") -> str:
        token = self.tokens.pop(0)
        if wanted and token != wanted:
            raise _Bad(f"Parse error on {token!r}, expected {wanted!r}")
        return token

    def document(self) -> tuple[dict[str, str], list[Selection], dict[str, Selection]]:
        declared: dict[str, str] = {}
        selected: list[Selection] = []
        fragments: dict[str, Selection] = {}
        while self.tokens[0]:
            if self.take() == "fragment":
                name = self.take()
                self.take("on")
                fragments[name] = {"on": self.take(), "below": self.selections()}
                continue
            if self.tokens[0] == "(":
                self.take()
                while self.tokens[0] != ")":
                    variable = self.take().removeprefix("$")
                    self.take(":")
                    declared[variable] = self.take()
                    if self.tokens[0] == "!":
                        declared[variable] += self.take()
                self.take()
            selected = self.selections()
        return declared, selected, fragments

    def selections(self) -> list[Selection]:
        found: list[Selection] = []
        self.take("{")
        while self.tokens[0] != "}":
            name = self.take()
            if name == "..." and self.tokens[0] == "on":
                self.take()
                found.append({"on": self.take(), "below": self.selections()})
                continue
            if name == "...":
                found.append({"spread": self.take()})
                continue
            field: Selection = {"alias": name, "name": name, "with": {}, "below": None}
            if self.tokens[0] == ":":
                self.take()
                field["name"] = self.take()
            if self.tokens[0] == "(":
                self.take()
                field["with"] = self.pairs(")")
            if self.tokens[0] == "{":
                field["below"] = self.selections()
            found.append(field)
        self.take()
        return found

    def pairs(self, end: str) -> dict[str, Any]:
        found = {}
        while self.tokens[0] != end:
            name = self.take()
            self.take(":")
            found[name] = self.value()
        self.take()
        return found

    def value(self) -> Any:
        token = self.take()
        if token == "[":
            found = []
            while self.tokens[0] != "]":
                found.append(self.value())
            self.take()
            return found
        if token == "{":
            return self.pairs("}")
        return int(token) if token.lstrip("-").isdigit() else token


def answered(body: Mapping[str, Any], forge: Forge) -> tuple[dict[str, Any], int]:
    """Return the answer to a question, and what it costs in points."""
    try:
        return _Answer(body, forge).whole()
    except _Bad as error:
        return {"errors": [{"message": text} for text in error.args[0].split("\n")]}, 1


class _Answer:
    def __init__(self, body: Mapping[str, Any], forge: Forge) -> None:
        self.declared, self.selected, self.fragments = _Reader(body["query"]).document()
        self.variables = body.get("variables", {})
        self.forge = forge
        self.errors: list[str] = []
        for name, kind in self.declared.items():
            value = self.variables.get(name)
            wrong = not isinstance(value, KINDS[kind.rstrip("!")])
            if wrong and (value is not None or kind.endswith("!")):
                self.errors.append(f"Variable ${name} of type {kind} was provided invalid value")
        connections = self.check("Query", self.selected, 1)
        if self.errors:
            raise _Bad("\n".join(dict.fromkeys(self.errors)))
        self.cost = max(1, int(connections / 100 + 0.5))

    def check(self, kind: str, selected: list[Selection], times: int) -> int:
        """Check fields below one of type `kind`; return how many requests its lists stand for."""
        needed = 0
        for field in selected:
            if "spread" in field:
                inner = self.fragments[field["spread"]]
                needed += self.check(inner["on"], inner["below"], times)
                continue
            if "on" in field:
                needed += self.check(field["on"], field["below"], times)
                continue
            name, below = field["name"], times
            if name in self.forge.get("lacking", ()) or (
                name != "__typename"
                and name not in SCALARS.get(kind, ())
                and name not in OBJECTS.get(kind, ())
            ):
                self.errors.append(f"Field '{name}' doesn't exist on type '{kind}'")
                continue
            if name == "isRequired" and "pullRequestNumber" not in field["with"]:
                self.errors.append("A pull request must be given to `isRequired`")
            if name in CONNECTIONS:
                first = field["with"].get("first")
                if not isinstance(first, int) or not 1 <= first <= MOST_AT_ONCE:
                    self.errors.append(f"You must provide a `first` value on `{name}`, 100 at most")
                    continue
                needed += times
                below = times * first
            if field["below"] is not None:
                inner_kind = OBJECTS.get(kind, {}).get(name)
                if inner_kind is None:
                    self.errors.append(f"Field '{name}' of type {kind} has no fields")
                    continue
                needed += self.check(inner_kind, field["below"], below)
        return needed

    def whole(self) -> tuple[dict[str, Any], int]:
        named = f"{self.variables.get('owner')}/{self.variables.get('name')}"
        is_there = named.lower() == self.forge["repository"].lower()
        rate = self.forge["rate"]
        found = {
            "rateLimit": rate and {"limit": 5000, **rate, "cost": self.cost},
            "repository": {} if is_there else None,
        }
        answer: dict[str, Any] = {"data": self.told("Query", found, self.selected)}
        missing = [f for f in self.numbered() if is_there and self.numbered_request(f) is None]
        if not is_there:
            text = f"Could not resolve to a Repository with the name '{named}'."
            answer["errors"] = [{"type": "NOT_FOUND", "message": text}]
        elif missing:
            text = "Could not resolve to a PullRequest with the number of that."
            answer["errors"] = [{"type": "NOT_FOUND", "message": text}]
        return answer, self.cost

    def numbered(self) -> Iterator[Selection]:
        for field in self.selected:
            for inner in field.get("below") or ():
                if inner.get("name") == "pullRequest":
                    yield inner

    def given(self, field: Selection, name: str) -> Any:
        value = field["with"].get(name)
        if isinstance(value, str) and value.startswith("$"):
            return self.variables.get(value[1:])
        return value

    def told(self, kind: str, value: Any, selected: list[Selection]) -> Any:
        """Return what was selected of `value`, which is of type `kind`."""
        if value is None:
            return None
        told: dict[str, Any] = {}
        for field in selected:
            if "spread" in field or "on" in field:
                inner = self.fragments[field["spread"]] if "spread" in field else field
                if inner["on"] == value.get("__typename", kind):
                    told |= self.told(inner["on"], value, inner["below"])
                continue
            found = self.found(kind, value, field)
            below = field["below"]
            if below is not None:
                inner_kind = OBJECTS[kind][field["name"]]
                if isinstance(found, list):
                    found = [self.told(inner_kind, one, below) for one in found]
                else:
                    found = self.told(inner_kind, found, below)
            told[field["alias"]] = found
        return told

    def found(self, kind: str, value: Any, field: Selection) -> Any:
        match kind, field["name"]:
            case "Repository", "pullRequests":
                return {"nodes": self.of_branch(self.given(field, "headRefName"), field)}
            case "Repository", "pullRequest":
                return self.numbered_request(field)
            case "PullRequest", "headRef":
                oid = value.get("tip")
                commit = {"__typename": "Commit", "oid": oid, "request": value}
                return {"target": commit} if oid else None
            case "Commit", "statusCheckRollup":
                contexts = contexts_of(value["request"])
                return {"contexts": contexts} if contexts else None
            case "StatusCheckRollup", "state":
                return rolled_up(value["contexts"])
            case "StatusCheckRollup", "contexts":
                begin = int(self.given(field, "after") or 0)
                end = begin + field["with"]["first"]
                more = end < len(value["contexts"])
                return {
                    "totalCount": len(value["contexts"]),
                    "nodes": value["contexts"][begin:end],
                    "pageInfo": {"hasNextPage": more, "endCursor": str(end) if more else None},
                }
            case _, name:
                return value.get(name)

    def numbered_request(self, field: Selection) -> dict[str, Any] | None:
        number = self.given(field, "number")
        return next((one for one in self.forge["requests"] if one["number"] == number), None)

    def of_branch(self, branch: str, field: Selection) -> list[dict[str, Any]]:
        found = [one for one in self.forge["requests"] if _is_of(one, branch)]
        found.sort(key=lambda one: (one["createdAt"], one["number"]), reverse=True)
        return found[: field["with"]["first"]]


def _is_of(request: Mapping[str, Any], branch: str) -> bool:
    return bool(request["headRefName"].lower() == branch.lower())


def a_run(name: str, conclusion: str | None = "SUCCESS", **fields: Any) -> dict[str, Any]:
    """Return a check run, not required; one without a conclusion is still at work."""
    return {
        "__typename": "CheckRun",
        "name": name,
        "status": "COMPLETED" if conclusion else "IN_PROGRESS",
        "conclusion": conclusion,
        "detailsUrl": f"https://github.com/acme/anvil/actions/runs/7/{len(name)}?pr=7",
        "isRequired": False,
    } | fields


def a_status(context: str, state: str = "SUCCESS", **fields: Any) -> dict[str, Any]:
    """Return a commit status, not required."""
    return {
        "__typename": "StatusContext",
        "context": context,
        "state": state,
        "targetUrl": None,
        "isRequired": False,
    } | fields


def contexts_of(request: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a request's checks; one that has but a state for all of them has one."""
    if request.get("contexts"):
        return list(request["contexts"])
    return [a_status("ci", request["checks"])] if request.get("checks") else []


def rolled_up(contexts: list[dict[str, Any]]) -> str:
    """Return the one word for all of a commit's checks, as GitHub finds it."""
    words = [one.get("conclusion") or one.get("state") or "PENDING" for one in contexts]
    if set(words) & {"FAILURE", "TIMED_OUT", "CANCELLED", "ACTION_REQUIRED", "STARTUP_FAILURE"}:
        return "FAILURE"
    if "ERROR" in words:
        return "ERROR"
    if set(words) <= {"SUCCESS", "NEUTRAL", "SKIPPED"}:
        return "SUCCESS"
    return words[0] if len(words) == 1 else "PENDING"
