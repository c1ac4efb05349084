"""What a GitHub holds against a request: logs of failed checks, reviews, remarks; read warily.

Whoever may comment can have written what stands there. Of people who have no say in the repository
nothing is passed on but that there was something.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import chain
from typing import Any
from urllib.parse import quote

from chump_orchestrator.adapters.process import run as run_program
from chump_orchestrator.adapters.pulls_graphql import Repository
from chump_orchestrator.adapters.pulls_ours import in_short, is_oid
from chump_orchestrator.core.complaints import MOST, TEXT_LIMIT, Complaint, ComplaintKind
from chump_orchestrator.core.errors import Refused, Unavailable
from chump_orchestrator.core.gap import on_one_line
from chump_orchestrator.core.outcome import PullRequest
from chump_orchestrator.core.records import Watch

HAVE_A_SAY = frozenset({"OWNER", "MEMBER", "COLLABORATOR"})
"""Associations with a repository whose remarks reach an agent."""

FAILED = frozenset({"failure", "timed_out", "cancelled", "action_required", "startup_failure"})
"""Conclusions of checks that keep a request from being merged."""

LOGS = 5
"""At most so many logs are fetched; of further checks their own summary is told."""

LONGEST_LOG_BYTES = 64 * 2**20
LONGEST_LIST_BYTES = 8 * 2**20

_STAMP = re.compile(r"^\d{4}-\d\d-\d\dT[\d:.]+Z ", re.MULTILINE)
"""Before each line of a job's log."""


@dataclass(frozen=True, slots=True)
class Explainer:
    """Asks about one repository through `gh`, which sees `env` and no more."""

    program: str
    env: Mapping[str, str]
    folder: str | os.PathLike[str]
    repository: Repository
    timeout: timedelta

    async def explain(self, watch: Watch, pull: PullRequest) -> tuple[Complaint, ...]:
        """See `core.complaints.ExplainsFailures`."""
        number = pull.number or watch.accepted
        if number is None or not is_oid(pull.head):
            raise Unavailable(f"nothing is known of the request of {watch.branch} to ask about")
        runs = await self._list(f"commits/{pull.head}/check-runs?filter=latest&per_page=100")
        status = await self._one(f"commits/{pull.head}/status?per_page=100")
        reviews = await self._list(f"pulls/{number}/reviews?per_page=100")
        newest = "per_page=50&sort=created&direction=desc"
        lines = await self._list(f"pulls/{number}/comments?{newest}")
        talk = await self._list(f"issues/{number}/comments?per_page=50")
        checks = [*[one async for one in self._runs(runs)], *_contexts(status)]
        said = chain(_reviews(reviews), _lines(lines), _talk(talk))
        return (*checks, *said)

    async def _runs(self, runs: list[Any]) -> AsyncIterator[Complaint]:
        logs = 0
        for run in runs:
            if _text(run, "conclusion") not in FAILED:
                continue
            text = ""
            if _text(_part(run, "app"), "slug") == "github-actions" and logs < LOGS:
                logs += 1
                text = await self._log(_part(run, "id"))
            told = _part(run, "output")
            summary = [_text(told, key) for key in ("title", "summary", "text")]
            text = text or "\n".join((*filter(None, summary), *await self._notes(run)))
            at = _instant(run, "completed_at")
            yield Complaint(ComplaintKind.CHECK, _name(run, "name"), text[-2 * TEXT_LIMIT :], at=at)

    async def _log(self, job: object) -> str:
        """Return the log of a job; empty when it cannot be had, as logs are not kept for ever."""
        if not isinstance(job, int) or isinstance(job, bool):
            return ""
        try:
            text = await self._ask(f"actions/jobs/{job}/logs", LONGEST_LOG_BYTES)
        except (Unavailable, Refused):
            return ""
        return _STAMP.sub("", text[-4 * TEXT_LIMIT :])

    async def _notes(self, run: object) -> list[str]:
        """Return what a check has noted of single lines."""
        identity, count = _part(run, "id"), _part(_part(run, "output"), "annotations_count")
        if not isinstance(identity, int) or not isinstance(count, int) or count <= 0:
            return []
        try:
            notes = await self._list(f"check-runs/{identity}/annotations?per_page=50")
        except (Unavailable, Refused):
            return []
        return [
            f"{_name(one, 'path')}:{_part(one, 'start_line')}: {_text(one, 'message')}"
            for one in notes
        ]

    async def _list(self, what: str) -> list[Any]:
        answer = await self._json(what)
        if isinstance(answer, dict):
            answer = answer.get("check_runs")
        if not isinstance(answer, list):
            raise Unavailable(f"{self.repository} did not list its {what.partition('?')[0]}")
        return answer

    async def _one(self, what: str) -> dict[str, Any]:
        answer = await self._json(what)
        if not isinstance(answer, dict):
            raise Unavailable(f"{self.repository} did not tell of its {what.partition('?')[0]}")
        return answer

    async def _json(self, what: str) -> object:
        text = await self._ask(what, LONGEST_LIST_BYTES)
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise Unavailable(f"{self.repository} answered with {in_short(text[:200])}") from error

    async def _ask(self, what: str, limit: int) -> str:
        owner, name = quote(self.repository.owner), quote(self.repository.name)
        finished = await run_program(
            (
                *(self.program, "api", "--hostname", self.repository.host),
                f"repos/{owner}/{name}/{what}",
            ),
            cwd=self.folder,
            env=self.env,
            timeout=self.timeout,
            limit=limit,
        )
        if finished.code != 0:
            said = finished.err.decode("utf-8", "replace")
            for variable, value in self.env.items():
                if "TOKEN" in variable and value:
                    said = said.replace(value, "***")
            raise Unavailable(f"gh could not tell of {what.partition('?')[0]}: {in_short(said)}")
        return finished.out.decode("utf-8", "replace")


def _contexts(status: Mapping[str, Any]) -> Iterator[Complaint]:
    listed = status.get("statuses")
    for one in listed if isinstance(listed, list) else []:
        if _text(one, "state") in ("failure", "error"):
            name, at = _name(one, "context"), _instant(one, "updated_at")
            yield Complaint(ComplaintKind.CHECK, name, _text(one, "description"), at=at)


def _reviews(reviews: list[Any]) -> Iterator[Complaint]:
    """Tell what each person said last that asked for something, and what they said beside it."""
    latest = {_login(one): one for one in reviews if _text(one, "state") in _DECIDING}
    for one in latest.values():
        if _text(one, "state") == "CHANGES_REQUESTED":
            yield _said(ComplaintKind.REVIEW, one, "submitted_at")
    for one in reviews[-MOST:]:
        if _text(one, "state") == "COMMENTED" and _text(one, "body").strip():
            yield _said(ComplaintKind.COMMENT, one, "submitted_at")


def _lines(lines: list[Any]) -> Iterator[Complaint]:
    """Tell what was said of single lines that are still there, oldest first."""
    for one in reversed(lines):
        line = _part(one, "line")
        if isinstance(line, int):
            place = f"{_name(one, 'path')}:{line}"
            yield _said(ComplaintKind.COMMENT, one, "created_at", place)


def _talk(talk: list[Any]) -> Iterator[Complaint]:
    for one in talk[-MOST:]:
        yield _said(ComplaintKind.COMMENT, one, "created_at")


_DECIDING = ("APPROVED", "CHANGES_REQUESTED", "DISMISSED")


def _said(kind: ComplaintKind, one: object, when: str, place: str = "") -> Complaint:
    name, at = _login(one), _instant(one, when)
    if _text(one, "author_association") not in HAVE_A_SAY:
        return Complaint(kind, name, at=at, is_withheld=True)
    return Complaint(kind, name, _text(one, "body")[: 2 * TEXT_LIMIT], place, at)


def _login(one: object) -> str:
    return _name(_part(one, "user"), "login")


def _part(whole: object, name: str) -> object:
    return whole.get(name) if isinstance(whole, dict) else None


def _text(whole: object, name: str) -> str:
    value = _part(whole, name)
    return value if isinstance(value, str) else ""


def _name(whole: object, name: str) -> str:
    return on_one_line(_text(whole, name)[:1000])[:200]


def _instant(whole: object, name: str) -> datetime | None:
    try:
        at = datetime.fromisoformat(_text(whole, name))
    except ValueError:
        return None
    return at if at.tzinfo is not None else None
