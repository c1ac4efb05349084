"""A small, honest `gh`: what the real one answers to `gh api graphql`, from a JSON file.

Tests use `FakeGh` to install it into a folder of their PATH and to say what the forge knows. The
script there has `answer_as_told` of this very module read `forge.json` beside it, let
`forge_graphql` answer the query it is handed and `forge_changes` carry out what changes something,
and append each call to `calls.jsonl`. It is started many hundred times, so what it need not
import it does not.
"""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path
    from typing import Any

FORGE = "forge.json"
CALLS = "calls.jsonl"
COSTS = "costs"

SCRIPT = """\
#!{python} -IS
import sys
sys.path.insert(0, {here!r})
from fake_gh import answer_as_told
sys.exit(answer_as_told({folder!r}))
"""

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

STATUSES = {"401": 401, "403": 403, "429": 429, "502": 502, "secondary": 403, "refused": 0}
"""Of the failures, and 200 of the others; 0 is no answer at all."""

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
        self.rate: dict[str, Any] | None = {"remaining": 4900, "resetAt": "2026-04-27T12:30:00Z"}
        self.headers: dict[str, str] = {}
        self.lacking: list[str] = []
        self.is_counting = False
        self.rest: dict[str, Any] = {}
        self.denies: dict[str, str] = {}
        self.allows_drafts = True
        self.allows_auto_merge = True
        self.merges_when_armed = False
        folder.mkdir(parents=True, exist_ok=True)
        script = folder / "gh"
        here = os.path.dirname(os.path.abspath(__file__))
        told = SCRIPT.format(python=sys.executable, here=here, folder=str(folder.absolute()))
        script.write_text(told, "utf-8")
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
        **fields: Any,
    ) -> None:
        """Put a pull request there, or another in the place of the one with that number.

        `tip` is where its branch is by now, if that is no longer `head`; `contexts` are its single
        checks. Other fields are as the forge names them.
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
                "mergeStateStatus": "UNKNOWN",
                "mergeQueueEntry": None,
                "autoMergeRequest": None,
                "checks": checks,
                "tip": tip or head,
                **fields,
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
            "requests": self.requests,
            "answer": self.answer,
            "rate": self.rate,
            "headers": self.headers,
            "lacking": self.lacking,
            "is_counting": self.is_counting,
            "origin": str(self.origin or ""),
            "rest": self.rest,
            "denies": self.denies,
            "allows_drafts": self.allows_drafts,
            "allows_auto_merge": self.allows_auto_merge,
            "merges_when_armed": self.merges_when_armed,
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

    @property
    def points(self) -> int:
        """What every answer so far has cost."""
        log = self.folder / COSTS
        return len(log.read_bytes()) if log.exists() else 0


def _rest(here: str) -> int:
    """Answer what is asked by a path: as it is told to, and with 404 for all else."""
    what = sys.argv[-1].partition("?")[0]
    answer = _forge(here)["rest"].get(what)
    if answer is None:
        sys.stdout.write('{"message":"Not Found"}')
        sys.stderr.write("gh: Not Found (HTTP 404)\n")
        return 1
    sys.stdout.write(answer if isinstance(answer, str) else json.dumps(answer))
    return 0


def _forge(here: str) -> dict[str, Any]:
    with open(f"{here}/{FORGE}", encoding="utf-8") as file:
        forge: dict[str, Any] = json.load(file)
        return forge


def answer_as_told(here: str) -> int:
    """Be the `gh` of this folder, and return its exit status."""
    argv = sys.argv[1:]
    if argv[:2] == ["api", "--hostname"] and argv[-1].startswith("repos/"):
        return _rest(here)
    changes = importlib.import_module("forge_changes")
    body = json.loads(sys.stdin.read()) if argv[-2:] == ["--input", "-"] else {}
    call = changes.kind_of(argv, body) if body else ""
    if not call:
        sys.stderr.write(f"unknown command {argv!r} for this small gh\n")
        return 1
    with open(f"{here}/{CALLS}", "a", encoding="utf-8") as log:
        told = {"argv": argv, "body": body, "env": dict(os.environ), "kind": call}
        log.write(json.dumps(told) + "\n")
    forge = _forge(here)
    kind = forge["denies"].get(call) or forge["answer"]
    if kind == "hang":
        time.sleep(3600)
    if kind == "echo-token":
        sys.stderr.write(f"gh: token {os.environ['GH_TOKEN']} is no good\n")
        return 1
    if kind in FAILURES:
        if status := STATUSES.get(kind, 200):
            _write_head(status, forge)
        sys.stderr.write(FAILURES[kind])
        return 1
    _write_head(200, forge)
    if kind in BODIES:
        sys.stdout.write(BODIES[kind])
        return 0
    if call == "look":
        return _answer(here, kind, body, forge)
    with open(f"{here}/turn", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        forge = _forge(here)
        answer = changes.carried_out(call, argv, body, forge)
        if call != "find":
            with open(f"{here}/{FORGE}.newer", "w", encoding="utf-8") as new:
                new.write(json.dumps(forge))
            os.replace(f"{here}/{FORGE}.newer", f"{here}/{FORGE}")
    if kind == LOST:
        sys.stderr.write("error connecting to api.github.com\n")
        return 1
    if isinstance(answer, str):
        refused = {"message": "Validation Failed", "errors": [{"message": answer}]}
        sys.stdout.write(json.dumps(refused))
        sys.stderr.write(f"gh: Validation Failed (HTTP 422)\n{answer}\n")
        return 1
    return _written(answer, kind)


def _write_head(status: int, forge: dict[str, Any]) -> None:
    """Write what `--include` asks for, as the real one does: its first line ends otherwise."""
    if "--include" in sys.argv:
        sys.stdout.write(f"HTTP/2.0 {status} Whatever\n")
        for name, value in {"Content-Type": "application/json", **forge["headers"]}.items():
            sys.stdout.write(f"{name}: {value}\r\n")
        sys.stdout.write("\r\n")


def _answer(here: str, kind: str, body: dict[str, Any], forge: dict[str, Any]) -> int:
    graphql = importlib.import_module("forge_graphql")
    answer, cost = graphql.answered(body, forge)
    with open(f"{here}/{COSTS}", "a", encoding="ascii") as log:
        log.write("." * cost)
    rate = answer.get("data", {}).get("rateLimit")
    if forge["is_counting"] and rate:
        rate["remaining"] -= os.stat(f"{here}/{COSTS}").st_size
        if rate["remaining"] < 0:
            sys.stderr.write(FAILURES["rate-limited"])
            return 1
    if kind == "says-so-for-ever":
        sys.stderr.write("gh: Field 'isDraft' doesn't exist on type 'PullRequest'\n")
        return 1
    if kind == "forbidden" and "mergeQueueEntry" in body["query"]:
        path = ["repository", "b0", "nodes", 0, "mergeQueueEntry"]
        unseen = {"type": "FORBIDDEN", "path": path, "message": "Resource not accessible"}
        sys.stdout.write(json.dumps({**answer, "errors": [unseen]}))
        sys.stderr.write("gh: Resource not accessible by integration\n")
        return 1
    if kind == "no-checks" and "contexts" in body["query"]:
        sys.stderr.write("gh: Resource not accessible by personal access token\n")
        return 1
    if kind == "missing-alias":
        answer["data"]["repository"].popitem()
    if kind == "other-shape":
        answer["data"]["repository"] = {key: [7] for key in answer["data"]["repository"]}
    return _written(answer, kind)


def _written(answer: dict[str, Any], kind: str) -> int:
    written = json.dumps(answer)
    sys.stdout.write(written[: len(written) // 2] if kind == "truncated" else written)
    if "errors" in answer:
        told = "\n".join(one["message"] for one in answer["errors"])
        sys.stderr.write(f"gh: {told}\n")
        return 1
    return 0
