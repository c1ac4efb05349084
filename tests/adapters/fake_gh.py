"""A small, honest `gh`: what the real one answers to `gh api`, from a JSON file.

It looks requests up by GraphQL, opens and labels them by REST, and arms their merge by GraphQL.

Tests use `FakeGh` to install it into a folder of their PATH and to say what the forge knows. The
very same file, with another first line, is the script: it reads `forge.json` beside it, computes
its answer from the aliases of the query it is handed, and appends each call to `calls.jsonl`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
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


LOST = "lost"
"""An answer to what changes something: it is done, and then the line is cut."""


class FakeGh:
    """The forge as a test sees it: what it knows, how it answers, what it was asked.

    `origin` is the bare repository behind it, in which branches are looked up when a request is
    opened. `denies` says how single calls are answered: `look`, `create`, `label`, `find`, `arm`.
    """

    def __init__(
        self, folder: Path, *, repository: str = "acme/anvil", origin: Path | None = None
    ) -> None:
        self.folder = folder
        self.repository = repository
        self.origin = origin
        self.requests: list[dict[str, Any]] = []
        self.answer = "ok"
        self.rest: dict[str, Any] = {}
        self.denies: dict[str, str] = {}
        self.allows_drafts = True
        self.allows_auto_merge = True
        self.merges_when_armed = False
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
        self.requests = self.known()
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
        self.requests = self.known()
        self.answer = kind
        self.save()

    def denying(self, **calls: str) -> None:
        """Answer these calls like that from now on, and all others as before."""
        self.requests = self.known()
        self.denies = calls
        self.save()

    def merge(self, number: int) -> None:
        """Mark a request as merged."""
        self.requests = self.known()
        for one in self.requests:
            if one["number"] == number:
                one["state"] = "MERGED"
        self.save()

    def known(self) -> list[dict[str, Any]]:
        """Return the requests there are by now, those that were opened by a call too."""
        if not (self.folder / FORGE).exists():
            return self.requests
        found = json.loads((self.folder / FORGE).read_text("utf-8"))["requests"]
        return list(found)

    def save(self) -> None:
        known = {
            "repository": self.repository,
            "origin": str(self.origin or ""),
            "denies": self.denies,
            "allows_drafts": self.allows_drafts,
            "allows_auto_merge": self.allows_auto_merge,
            "merges_when_armed": self.merges_when_armed,
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


def _create(body: dict[str, Any], forge: dict[str, Any]) -> dict[str, Any] | str:
    """Open a request as GitHub does; a text is why it does not."""
    branch, base = body["head"], body["base"]
    heads = {}
    for name in (branch, base):
        told = subprocess.run(
            ["git", "--git-dir", forge["origin"], "rev-parse", "--verify", f"refs/heads/{name}"],
            capture_output=True,
            text=True,
            check=False,
        )
        if told.returncode != 0:
            return f"PullRequest {'head' if name == branch else 'base'} invalid"
        heads[name] = told.stdout.strip()
    if any(one["headRefName"] == branch and one["state"] == "OPEN" for one in forge["requests"]):
        return f"A pull request already exists for acme:{branch}."
    beyond = subprocess.run(
        ["git", "--git-dir", forge["origin"], "rev-list", f"{heads[base]}..{heads[branch]}"],
        capture_output=True,
        check=True,
    )
    if not beyond.stdout:
        return f"No commits between {base} and {branch}"
    if body["draft"] and not forge["allows_drafts"]:
        return "Draft pull requests are not supported in this repository."
    number = max([0, *(one["number"] for one in forge["requests"])]) + 1
    one = {
        "number": number,
        "state": "OPEN",
        "createdAt": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "headRefOid": heads[branch],
        "headRefName": branch,
        "isCrossRepository": False,
        "isDraft": body["draft"],
        "url": f"https://github.com/{forge['repository']}/pull/{number}",
        "mergedAt": None,
        "reviewDecision": None,
        "checks": None,
        "tip": heads[branch],
        "title": body["title"],
        "body": body["body"],
        "base": base,
        "labels": [],
        "armed": "",
    }
    forge["requests"].append(one)
    return {"number": number, "html_url": one["url"], "node_id": f"PR_{number}"}


def _find(body: dict[str, Any], forge: dict[str, Any]) -> dict[str, Any]:
    number = body["variables"]["number"]
    one = next((one for one in forge["requests"] if one["number"] == number), None)
    if one is None:
        message = f"Could not resolve to a PullRequest with the number of {number}."
        return {"data": {"repository": {"pullRequest": None}}, "errors": [{"message": message}]}
    armed = {"enabledAt": one["createdAt"]} if one.get("armed") else None
    told = {"id": f"PR_{number}", "state": one["state"], "autoMergeRequest": armed}
    return {"data": {"repository": {"pullRequest": told}}}


def _arm(body: dict[str, Any], forge: dict[str, Any]) -> dict[str, Any]:
    if not forge["allows_auto_merge"]:
        message = "Auto merge is not allowed for this repository"
        return {"data": {"enablePullRequestAutoMerge": None}, "errors": [{"message": message}]}
    for one in forge["requests"]:
        if f"PR_{one['number']}" == body["variables"]["id"]:
            one["armed"] = body["variables"]["method"]
            if forge["merges_when_armed"]:
                _merge(one, forge["origin"])
    return {"data": {"enablePullRequestAutoMerge": {"pullRequest": {"number": 1}}}}


def _merge(one: dict[str, Any], origin: str) -> None:
    """Merge a request into its base, as a forge does whose checks are green at once."""

    def git(*args: str) -> str:
        told = subprocess.run(
            ["git", "--git-dir", origin, "-c", "user.name=F", "-c", "user.email=f@x", *args],
            capture_output=True,
            check=True,
            text=True,
        )
        return told.stdout.strip()

    base, head = f"refs/heads/{one['base']}", one["headRefOid"]
    tree = git("merge-tree", "--write-tree", base, head).splitlines()[0]
    commit = git("commit-tree", "-p", base, "-p", head, "-m", one["title"], tree)
    git("update-ref", base, commit)
    one["state"] = "MERGED"


def _kind_of(argv: list[str], body: dict[str, Any]) -> str:
    """Return which call this is; empty for one that this small gh does not know."""
    if argv[:2] == ["api", "graphql"]:
        query = body["query"]
        if "enablePullRequestAutoMerge" in query:
            return "arm"
        return "find" if "pullRequest(number" in query else "look"
    if argv[:3] == ["api", "--method", "POST"]:
        place = re.fullmatch(r"repos/[\w.-]+/[\w.-]+/(pulls|issues/\d+/labels)", argv[3])
        if place is not None:
            return "create" if place[1] == "pulls" else "label"
    return ""


def _carry_out(
    kind: str, argv: list[str], body: dict[str, Any], forge: dict[str, Any]
) -> dict[str, Any] | str:
    match kind:
        case "create":
            return _create(body, forge)
        case "label":
            number = int(argv[3].split("/")[4])
            for one in forge["requests"]:
                if one["number"] == number:
                    one["labels"] = sorted({*one["labels"], *body["labels"]})
            return {"labels": body["labels"]}
        case "find":
            return _find(body, forge)
        case "arm":
            return _arm(body, forge)
        case _:
            return _answer_to(body, forge)


@contextlib.contextmanager
def _turn(here: Path) -> Iterator[None]:
    with (here / "turn").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(here: Path) -> int:
    argv = sys.argv[1:]
    if argv[:2] == ["api", "--hostname"] and argv[-1].startswith("repos/"):
        return _rest(here)
    if argv[-2:] != ["--input", "-"]:
        sys.stderr.write(f"unknown command {argv!r} for this small gh\n")
        return 1
    body = json.loads(sys.stdin.read())
    call_kind = _kind_of(argv, body)
    if not call_kind:
        sys.stderr.write(f"unknown command {argv!r} for this small gh\n")
        return 1
    with (here / CALLS).open("a", encoding="utf-8") as log:
        call = {"argv": argv, "body": body, "env": dict(os.environ), "kind": call_kind}
        log.write(json.dumps(call) + "\n")
    forge = json.loads((here / FORGE).read_text("utf-8"))
    kind = forge["denies"].get(call_kind) or forge["answer"]
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
    with _turn(here):
        forge = json.loads((here / FORGE).read_text("utf-8"))
        answer = _carry_out(call_kind, argv, body, forge)
        if call_kind in ("create", "label", "arm"):
            new = here / (FORGE + ".newer")
            new.write_text(json.dumps(forge), "utf-8")
            new.replace(here / FORGE)
    if kind == LOST:
        sys.stderr.write("error connecting to api.github.com\n")
        return 1
    if isinstance(answer, str):
        told = {"message": "Validation Failed", "errors": [{"message": answer}]}
        sys.stdout.write(json.dumps(told))
        sys.stderr.write(f"gh: Validation Failed (HTTP 422)\n{answer}\n")
        return 1
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
