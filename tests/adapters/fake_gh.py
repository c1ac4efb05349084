"""A small, honest `gh`: what the real one answers to `gh api`, from a JSON file.

Tests use `FakeGh` to install it into a folder of their PATH and to say what the forge knows. The
very same file, with another first line, is the script: it reads `forge.json` beside it, computes
its answer from the aliases of the query it is handed, and appends each call to `calls.jsonl`.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

FORGE = "forge.json"
CALLS = "calls.jsonl"

FIELDS = {
    "number",
    "state",
    "createdAt",
    "headRefOid",
    "headRefName",
    "isCrossRepository",
    "isDraft",
    "url",
    "mergedAt",
    "reviewDecision",
}
"""What this forge knows of a request, beside its checks."""

FAILURES = {
    "401": "gh: Bad credentials (HTTP 401)\nTry authenticating with:  gh auth login\n",
    "403": "gh: Resource not accessible by personal access token (HTTP 403)\n",
    "429": "gh: HTTP 429: Too Many Requests\n",
    "502": "gh: HTTP 502\n",
    "rate-limited": "gh: API rate limit exceeded for user ID 583231.\n",
    "secondary": "gh: You have exceeded a secondary rate limit. (HTTP 403)\n",
    "errors": "gh: Something went wrong while executing your query.\n",
    "refused": "error connecting to api.github.com\ncheck your internet connection\n",
}
"""Answers with exit status 1, and what is then written to standard error."""

BODIES = {
    "html": "<!DOCTYPE html>\n<html><body>Unicorn!</body></html>\n",
    "empty": "",
    "{}": "{}",
    "null-data": '{"data":null}',
    "null-repository": '{"data":{"rateLimit":null,"repository":null}}',
    "number": "7",
    "rate-limited-200": '{"data":null,"errors":[{"type":"RATE_LIMITED","message":"Slow down"}]}',
    "errors-exit-0": '{"data":null,"errors":[{"message":"Something went wrong"}]}',
}
"""Answers with exit status 0 that are none."""


class FakeGh:
    """The forge as a test sees it: what it knows, how it answers, what it was asked."""

    def __init__(self, folder: Path, *, repository: str = "acme/anvil") -> None:
        self.folder = folder
        self.repository = repository
        self.requests: list[dict[str, Any]] = []
        self.answer = "ok"
        self.rest: dict[str, Any] = {}
        self.rate: dict[str, Any] | None = {
            "cost": 1,
            "remaining": 4900,
            "resetAt": "2026-04-27T12:30:00Z",
        }
        folder.mkdir(parents=True, exist_ok=True)
        script = folder / "gh"
        source = Path(__file__).read_text("utf-8")
        script.write_text(f"#!{sys.executable} -IS\n{source}", "utf-8")
        script.chmod(0o755)
        self.save()

    def request(
        self,
        number: int,
        branch: str,
        head: str,
        created: datetime,
        *,
        state: str = "OPEN",
        fork: bool = False,
        checks: str | None = None,
        review: str | None = None,
        tip: str = "",
    ) -> None:
        """Put a pull request there, or another in the place of the one with that number.

        `tip` is where its branch is by now, if that is no longer `head`.
        """
        places = [one["number"] for one in self.requests]
        place = places.index(number) if number in places else len(places)
        self.requests[place : place + 1] = [
            {
                "number": number,
                "state": state,
                "createdAt": created.strftime("%Y-%m-%dT%H:%M:%SZ"),
                "headRefOid": head,
                "headRefName": branch,
                "isCrossRepository": fork,
                "isDraft": False,
                "url": f"https://github.com/{self.repository}/pull/{number}",
                "mergedAt": None,
                "reviewDecision": review,
                "checks": checks,
                "tip": tip or head,
            }
        ]
        self.save()

    def answers(self, kind: str) -> None:
        """Answer like this from now on: `ok`, or a key of `FAILURES` or `BODIES`, or another."""
        self.answer = kind
        self.save()

    def save(self) -> None:
        known = {
            "repository": self.repository,
            "requests": self.requests,
            "answer": self.answer,
            "rate": self.rate,
            "rest": self.rest,
        }
        new = self.folder / (FORGE + ".new")
        new.write_text(json.dumps(known), "utf-8")
        new.replace(self.folder / FORGE)

    @property
    def calls(self) -> list[dict[str, Any]]:
        """Every call so far: its `argv`, `body`, and `env`."""
        log = self.folder / CALLS
        if not log.exists():
            return []
        return [json.loads(line) for line in log.read_text("utf-8").splitlines()]


def _answer_to(body: dict[str, Any], forge: dict[str, Any]) -> dict[str, Any]:
    query, variables = body["query"], body.get("variables", {})
    declared = set(re.findall(r"\$(\w+)\s*:\s*String!", query))
    errors = [
        {"message": f"Variable ${name} of type String! was provided invalid value"}
        for name in sorted(declared)
        if not isinstance(variables.get(name), str)
    ]
    asked = re.search(r"fragment \w+ on PullRequest\s*\{(.*)", query, re.DOTALL)
    words = set(re.findall(r"\b[a-z]\w+", asked[1] if asked else ""))
    known = FIELDS | {"headRef", "target", "on", "oid", "statusCheckRollup"}
    errors += [
        {"message": f"Field '{word}' doesn't exist on type 'PullRequest'"}
        for word in sorted(words - known)
    ]
    if errors:
        return {"errors": errors}
    data: dict[str, Any] = {}
    if "rateLimit" in query:
        data["rateLimit"] = forge["rate"]
    data["repository"] = None
    if f"{variables['owner']}/{variables['name']}".lower() == forge["repository"].lower():
        data["repository"] = {
            alias: {"nodes": _requests(variables[name], int(first), words, forge)}
            for alias, name, first in re.findall(
                r"(\w+)\s*:\s*pullRequests\(\s*headRefName:\s*\$(\w+)[^)]*first:\s*(\d+)", query
            )
        }
        return {"data": data}
    missing = f"Could not resolve to a Repository with the name '{variables['name']}'."
    return {"data": data, "errors": [{"type": "NOT_FOUND", "message": missing}]}


def _requests(
    branch: str, first: int, words: set[str], forge: dict[str, Any]
) -> list[dict[str, Any]]:
    found = [one for one in forge["requests"] if one["headRefName"].lower() == branch.lower()]
    found.sort(key=lambda one: (one["createdAt"], one["number"]), reverse=True)
    nodes = []
    for one in found[:first]:
        node = {name: one[name] for name in FIELDS & words}
        if "headRef" in words:
            rollup = one["checks"] and {"state": one["checks"]}
            node["headRef"] = {"target": {"oid": one["tip"], "statusCheckRollup": rollup}}
        nodes.append(node)
    return nodes


def _rest(here: Path) -> int:
    """Answer what is asked by a path: as it is told to, and with 404 for all else."""
    what = sys.argv[-1].partition("?")[0]
    answer = json.loads((here / FORGE).read_text("utf-8"))["rest"].get(what)
    if answer is None:
        sys.stdout.write('{"message":"Not Found"}')
        sys.stderr.write("gh: Not Found (HTTP 404)\n")
        return 1
    sys.stdout.write(answer if isinstance(answer, str) else json.dumps(answer))
    return 0


def _run(here: Path) -> int:
    if sys.argv[1:3] == ["api", "--hostname"] and sys.argv[-1].startswith("repos/"):
        return _rest(here)
    if sys.argv[1:3] != ["api", "graphql"] or sys.argv[-2:] != ["--input", "-"]:
        sys.stderr.write(f"unknown command {sys.argv[1:]!r} for this small gh\n")
        return 1
    text = sys.stdin.read()
    body = json.loads(text)
    with (here / CALLS).open("a", encoding="utf-8") as log:
        call = {"argv": sys.argv[1:], "body": body, "env": dict(os.environ)}
        log.write(json.dumps(call) + "\n")
    forge = json.loads((here / FORGE).read_text("utf-8"))
    kind = forge["answer"]
    if kind == "hang":
        time.sleep(3600)
    if kind == "echo-token":
        sys.stderr.write(f"gh: token {os.environ['GH_TOKEN']} is no good\n")
        return 1
    if kind in FAILURES:
        sys.stderr.write(FAILURES[kind])
        return 1
    if kind in BODIES:
        sys.stdout.write(BODIES[kind])
        return 0
    answer = _answer_to(body, forge)
    if kind == "missing-alias":
        answer["data"]["repository"].popitem()
    if kind == "other-shape":
        answer["data"]["repository"] = {key: [7] for key in answer["data"]["repository"]}
    written = json.dumps(answer)
    sys.stdout.write(written[: len(written) // 2] if kind == "truncated" else written)
    if "errors" in answer:
        sys.stderr.write(f"gh: {answer['errors'][0]['message']}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_run(Path(sys.argv[0]).resolve().parent))
