"""The remote and the forge, each asked one question, and what their answers tell beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

from chump_orchestrator.adapters.git import Git, failure
from chump_orchestrator.adapters.process import run
from chump_orchestrator.adapters.pulls_graphql import (
    Repository,
    repository_at,
    repository_named,
)
from chump_orchestrator.core.errors import ConfigError
from chump_orchestrator.core.ports import Clock
from chump_orchestrator.settings.secrets import masked

PATIENCE = timedelta(seconds=20)
"""For one answer; what takes longer will not do for every half minute either."""

LONGEST_ANSWER = 4 * 2**20

_TRACE = {"GIT_TRACE_CURL": "1", "GIT_TRACE_CURL_NO_DATA": "1"}
"""Has git tell the headers of what it gets over HTTP, credentials cut out by itself."""

_DATE = re.compile(rb"<= Recv header:\s*date:\s*([^\r\n]+)", re.IGNORECASE)
_STATUS = re.compile(r"HTTP/[\d.]+ (\d{3})")


@dataclass(frozen=True, slots=True)
class Remote:
    """A remote that has answered.

    `head` is its HEAD branch, or empty; `branches` are all that it has. `date` is its own time as
    told at `seen_at` by our clock, `None` where it does not tell; both are in UTC.
    """

    name: str
    url: str
    head: str
    branches: frozenset[str]
    took_s: float
    seen_at: datetime
    date: datetime | None = None


@dataclass(frozen=True, slots=True)
class Forge:
    """What `gh` told of the repository.

    `status` is that of HTTP, 0 where no server has answered; `said` is what `gh` wrote beside the
    answer. `scopes` are those of the token, `None` where the server does not tell them.
    """

    repository: Repository
    version: str
    status: int
    said: str
    seen_at: datetime
    date: datetime | None = None
    scopes: frozenset[str] | None = None
    body: Mapping[str, Any] | None = None


async def ask_remote(git: Git, name: str, clock: Clock) -> Remote:
    """Ask a remote for its branches.

    Raises `ConfigError` where there is none, `Refused` where it says no, and `Unavailable` where
    it is not reached.
    """
    if not name:
        raise ConfigError("the repository has no remote; add one with `git remote add origin URL`")
    found = await git.run("remote", "get-url", "--", name)
    url = found.out.decode("utf-8", "replace").strip()
    if found.code != 0 or url == name:
        raise ConfigError(f"remote {name} has no URL; run `git remote set-url {name} URL`")
    began = clock.monotonic()
    question = ("ls-remote", "--symref", "--", name, "HEAD", "refs/heads/*")
    answer = await git.run(*question, timeout=PATIENCE, env=_TRACE)
    if answer.code != 0:
        raise failure(question, answer)
    head, branches = "", set()
    for line in answer.out.decode("utf-8", "replace").splitlines():
        value, _, ref = line.partition("\t")
        if value.startswith("ref: refs/heads/") and ref == "HEAD":
            head = value.removeprefix("ref: refs/heads/")
        elif ref.startswith("refs/heads/"):
            branches.add(ref.removeprefix("refs/heads/"))
    dates = _DATE.findall(answer.err)
    return Remote(
        name,
        masked(url),
        head,
        frozenset(branches),
        took_s=clock.monotonic() - began,
        seen_at=clock.now(),
        date=_instant(dates[-1].decode("ascii", "replace")) if dates else None,
    )


async def ask_forge(git: Git, variables: Mapping[str, str], clock: Clock) -> Forge:
    """Ask GitHub for the repository, through `gh`.

    Raises `MissingProgram` without `gh`, `ConfigError` where nothing names a repository, and
    `Unavailable` where `gh` does not end. Whatever the server says is in the answer.
    """
    noisy = ("CLICOLOR_FORCE", "GH_DEBUG", "GH_FORCE_TTY")
    env = {name: value for name, value in variables.items() if name not in noisy} | {
        "GH_NO_UPDATE_NOTIFIER": "1",
        "GH_PROMPT_DISABLED": "1",
        "NO_COLOR": "1",
    }
    told = await run(("gh", "--version"), cwd=git.root, env=env, timeout=PATIENCE)
    version = re.search(r"\d+(?:\.\d+)+", told.out.decode("utf-8", "replace"))
    repository = await _repository(git, variables)
    path = f"repos/{repository.owner}/{repository.name}"
    answer = await run(
        ("gh", "api", "--include", "--hostname", repository.host, path),
        cwd=git.root,
        env=env,
        timeout=PATIENCE,
        limit=LONGEST_ANSWER,
    )
    head, _, body = answer.out.decode("utf-8", "replace").replace("\r\n", "\n").partition("\n\n")
    lines = head.split("\n")
    status = _STATUS.match(lines[0])
    headers = {
        name.strip().lower(): value.strip()
        for name, colon, value in (line.partition(":") for line in lines[1:])
        if colon
    }
    scopes = headers.get("x-oauth-scopes")
    return Forge(
        repository,
        version[0] if version else "",
        int(status[1]) if status else 0,
        answer.err.decode("utf-8", "replace").strip(),
        seen_at=clock.now(),
        date=_instant(headers.get("date", "")),
        scopes=None if scopes is None else frozenset(filter(None, re.split(r"[,\s]+", scopes))),
        body=_object(body),
    )


async def _repository(git: Git, variables: Mapping[str, str]) -> Repository:
    host = variables.get("GH_HOST", "")
    if named := variables.get("GH_REPO", ""):
        repository = repository_named(named, host)
        hint = "GH_REPO names no repository; write [HOST/]OWNER/NAME"
    else:
        found = await git.run("remote", "get-url", "--", "origin")
        url = found.out.decode("utf-8", "replace").strip()
        repository = repository_at(url, host) if found.code == 0 else None
        hint = (
            "the URL of the remote origin names no repository on a GitHub; set"
            " GH_REPO=[HOST/]OWNER/NAME, or pulls.use = git"
        )
    if repository is None:
        raise ConfigError(hint)
    return repository


def _object(text: str) -> Mapping[str, Any] | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _instant(text: str) -> datetime | None:
    """Return an HTTP date in UTC; `None` when it is none."""
    try:
        moment = parsedate_to_datetime(text.strip())
    except (ValueError, TypeError, IndexError):
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
