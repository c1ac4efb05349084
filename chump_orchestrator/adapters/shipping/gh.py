"""Pull requests opened on GitHub through `gh`, at most one for a branch however often it is tried.

GitHub itself keeps a second request of the same branch from being opened; a request whose
opening was not answered is found the next time.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import anyio.to_thread

from chump_orchestrator.adapters.git import Git
from chump_orchestrator.adapters.process import Finished
from chump_orchestrator.adapters.process import run as run_program
from chump_orchestrator.adapters.pulls_graphql import (
    DEFAULT_HOST,
    OPTIONAL,
    Repository,
    Request,
    data_of,
    question,
    read_requests,
    repository_at,
    repository_named,
)
from chump_orchestrator.adapters.shipping.forge_calls import (
    arming,
    asking_for,
    created,
    creating,
    said,
    standing,
)
from chump_orchestrator.adapters.shipping.push import GitShipper
from chump_orchestrator.core.dispatch import Workspace
from chump_orchestrator.core.errors import ConfigError, RateLimited, Refused, Unavailable
from chump_orchestrator.core.gap import on_one_line
from chump_orchestrator.core.outcome import PullState
from chump_orchestrator.core.shipping import Letter, Opened, Sealed, Withheld

TIMEOUT = timedelta(seconds=30)
"""Longest that GitHub may take to answer; a silent server never ends by itself."""

LONGEST_ANSWER_BYTES = 4 * 1024 * 1024
SAID_LIMIT = 300

SLACK = timedelta(minutes=5)
"""How far clocks may differ (behaviour P6)."""

_RATE = re.compile(r"rate.?limit|\b429\b|abuse detection", re.IGNORECASE)
_STATUS = re.compile(r"\(HTTP (\d{3})\)")
_EXISTS = re.compile(r"pull request already exists", re.IGNORECASE)
_NO_DRAFTS = re.compile(r"draft pull requests are not supported", re.IGNORECASE)
_HOST = re.compile(r"[A-Za-z0-9.-]+", re.ASCII)
_TOKENS = ("GH_TOKEN", "GITHUB_TOKEN", "GH_ENTERPRISE_TOKEN", "GITHUB_ENTERPRISE_TOKEN")


class GhShipper:
    """Pushes by git and opens pull requests by `gh`; see `core.shipping.Shipper`.

    The repository is that of `GH_REPO` in `env`, else that of the remote's URL. `gh` sees `env` and
    no more. `auto_merge` is `merge`, `squash` or `rebase`, or empty for leaving it to people.
    """

    def __init__(
        self,
        *,
        git: Git,
        env: Mapping[str, str],
        base_ref: str,
        forbidden: Iterable[str] = (),
        always: Iterable[str] = (),
        secrets: Iterable[str] = (),
        allow: Iterable[str] = (),
        commits: bool = False,
        identity: Mapping[str, str] | None = None,
        draft: bool = False,
        labels: Sequence[str] = (),
        auto_merge: str = "",
        program: str = "gh",
        timeout: timedelta = TIMEOUT,
    ) -> None:
        noisy = ("CLICOLOR_FORCE", "GH_DEBUG", "GH_FORCE_TTY")
        self._env = {name: value for name, value in env.items() if name not in noisy} | {
            "GH_NO_UPDATE_NOTIFIER": "1",
            "GH_PROMPT_DISABLED": "1",
            "NO_COLOR": "1",
        }
        self._git = git
        self._program = program
        self._timeout = timeout
        self._draft = draft
        self._labels = tuple(labels)
        self._auto_merge = auto_merge
        self._repository: Repository | None = None
        self._told: set[str] = set()
        self._carrier = GitShipper(
            git=git,
            base_ref=base_ref,
            forbidden=forbidden,
            always=always,
            secrets=secrets,
            allow=allow,
            commits=commits,
            identity=identity,
            variables=_credentials_of_gh(self._env),
        )

    async def check(self) -> None:
        await self._carrier.check()
        name, _ = await self._carrier.remote.place()
        if not name:
            raise ConfigError(
                "ship.by: this repository has no remote to push to; add one (`git remote add origin"
                " URL`), or set pulls.use = git"
            )
        await self._find_repository()
        path = self._env.get("PATH", os.defpath)
        if await anyio.to_thread.run_sync(partial(shutil.which, self._program, path=path)) is None:
            raise ConfigError(
                f"ship.by: there is no {self._program} on the PATH to open pull requests with;"
                " install it (https://cli.github.com), or set pulls.use = git"
            )

    async def inspect(self, workspace: Workspace, message: str) -> Sealed | Withheld:
        return await self._carrier.inspect(workspace, message)

    async def push(self, workspace: Workspace, head: str) -> None:
        await self._carrier.push(workspace, head)

    async def open(
        self, workspace: Workspace, head: str, letter: Letter, since: datetime
    ) -> Opened | None:
        repository = await self._find_repository()
        if there := await self._found(repository, workspace.branch, head, since):
            return there
        base = (await self._carrier.remote.survey(workspace.branch)).base_branch
        if not base:
            raise Unavailable("the remote does not tell its HEAD branch; set base_ref")
        place = f"repos/{repository.owner}/{repository.name}/pulls"
        for draft in (True, False) if self._draft else (False,):
            body = creating(workspace.branch, base, letter.title, letter.body, draft=draft)
            finished = await self._call(repository, ("--method", "POST", place), body)
            if finished.code == 0:
                return self._read(repository, finished)
            why = self._words(finished)
            if draft and _NO_DRAFTS.search(why):
                continue
            if _EXISTS.search(why):
                # It was opened a moment ago, and the list of requests does not have it yet.
                raise Unavailable(f"{repository} has a request already that it does not show yet")
            raise self._trouble(repository, finished, "could not open a pull request")
        raise Unavailable(f"{repository} could not be asked")

    async def finish(self, opened: Opened) -> tuple[str, ...]:
        repository = await self._find_repository()
        lacking = []
        if self._labels and (why := await self._label(repository, opened.number)):
            lacking.append(f"no labels: {why}")
        if self._auto_merge and (why := await self._arm(repository, opened.number)):
            lacking.append(f"no auto-merge: {why}")
        # What a repository does not allow, it allows no request.
        news = tuple(one for one in lacking if one not in self._told)
        self._told.update(news)
        return news

    async def _found(
        self, repository: Repository, branch: str, head: str, since: datetime
    ) -> Opened | None:
        """Return the request that there is for this branch, open ones first."""
        asked = question(repository, [branch], OPTIONAL.keys())
        finished = await self._call(repository, ("graphql",), asked)
        if finished.code != 0:
            raise self._trouble(repository, finished, "could not tell of pull requests")
        try:
            data = data_of(finished.out.decode("utf-8", "replace"))
            found = read_requests(data, [branch])[branch]
        except ValueError as error:
            raise Unavailable(self._safe(f"gh could not tell of requests: {error}")) from error

        def is_it(request: Request) -> bool:
            is_recent = request.created_at >= since - SLACK
            is_open = request.state is PullState.OPEN
            return not request.is_fork and (is_open or is_recent or request.head == head)

        requests = [one for one in found if is_it(one)]
        requests.sort(key=lambda one: (one.state is not PullState.OPEN, -one.number))
        return Opened(requests[0].number, requests[0].url) if requests else None

    def _read(self, repository: Repository, finished: Finished) -> Opened:
        try:
            return created(finished.out.decode("utf-8", "replace"))
        except ValueError as error:
            # It may be there: the next look tells.
            text = f"gh did not tell what became of a request in {repository}: {error}"
            raise Unavailable(self._safe(text)) from error

    async def _label(self, repository: Repository, number: int) -> str:
        """Give a request its labels; return why it did not get them, or empty."""
        place = f"repos/{repository.owner}/{repository.name}/issues/{number}/labels"
        body = {"labels": list(self._labels)}
        finished = await self._call(repository, ("--method", "POST", place), body)
        return self._denied(repository, finished, "could not label a request")

    async def _arm(self, repository: Repository, number: int) -> str:
        """Arm a request's merge; return why that was not granted, or empty."""
        asked = asking_for(repository.owner, repository.name, number)
        finished = await self._call(repository, ("graphql",), asked)
        if why := self._denied(repository, finished, "could not tell of a request"):
            return why
        try:
            found = standing(finished.out.decode("utf-8", "replace"))
        except ValueError as error:
            raise Unavailable(self._safe(f"gh could not tell of #{number}: {error}")) from error
        if not found.is_open or found.is_armed:
            return ""
        body = arming(found.id, self._auto_merge)
        finished = await self._call(repository, ("graphql",), body)
        return self._denied(repository, finished, "could not arm a merge")

    def _denied(self, repository: Repository, finished: Finished, what: str) -> str:
        """Return why something was denied for good, or empty; raises `Unavailable` for a while."""
        why = said(finished.out.decode("utf-8", "replace"))
        if finished.code == 0 and not why:
            return ""
        trouble = self._trouble(repository, finished, what)
        if isinstance(trouble, Unavailable):
            raise trouble
        return self._safe(why or str(trouble))

    async def _call(
        self, repository: Repository, args: Sequence[str], body: Mapping[str, Any]
    ) -> Finished:
        """Put something to GitHub; its text travels on standard input alone."""
        return await run_program(
            (self._program, "api", *args, "--hostname", repository.host, "--input", "-"),
            cwd=self._git.root,
            env=self._env,
            timeout=self._timeout,
            feed=json.dumps(body).encode(),
            limit=LONGEST_ANSWER_BYTES,
        )

    def _words(self, finished: Finished) -> str:
        """Return what GitHub says has gone wrong: `gh` prints the answer, and a line about it."""
        told = said(finished.out.decode("utf-8", "replace"))
        return "; ".join(filter(None, (told, finished.err.decode("utf-8", "replace").strip())))

    def _trouble(
        self, repository: Repository, finished: Finished, what: str
    ) -> Unavailable | Refused:
        words = self._words(finished)
        text = self._safe(f"gh {what} in {repository}: {words or 'it said nothing'}")
        if _RATE.search(words):
            return RateLimited(text)
        status = _STATUS.search(words)
        # 401 and 403 are the operator's to mend, which the work need not be lost for; 404 is how
        # GitHub says 403 of what is private.
        is_final = status is not None and status[1] in ("400", "409", "410", "422")
        is_denied = status is None and bool(said(finished.out.decode("utf-8", "replace")))
        return Refused(text) if is_final or is_denied else Unavailable(text)

    def _safe(self, text: str) -> str:
        for name, value in self._env.items():
            if "TOKEN" in name and value:
                text = text.replace(value, "***")
        return on_one_line(text)[:SAID_LIMIT]

    async def _find_repository(self) -> Repository:
        if self._repository is None:
            host = self._env.get("GH_HOST", "")
            if named := self._env.get("GH_REPO", ""):
                found = repository_named(named, host)
            else:
                name, _ = await self._carrier.remote.place()
                told = await self._git.run("remote", "get-url", name or "origin")
                url = told.out.decode("utf-8", "replace").strip()
                found = repository_at(url, host) if told.code == 0 else None
            if found is None:
                raise ConfigError(
                    "ship.by: neither GH_REPO nor the remote's URL names a repository on a GitHub;"
                    " set GH_REPO=[HOST/]OWNER/NAME, or pulls.use = git"
                )
            self._repository = found
        return self._repository


def _credentials_of_gh(env: Mapping[str, str]) -> dict[str, str]:
    """Return variables by which git gets over https what `gh` was given in its environment.

    Where `gh` has no token of its own, git finds its credentials as it does for the operator.
    """
    host = env.get("GH_HOST", "") or DEFAULT_HOST
    if not any(env.get(name) for name in _TOKENS) or not _HOST.fullmatch(host):
        return {}
    key = f"credential.https://{host}.helper"
    return {
        "GIT_CONFIG_COUNT": "2",
        # The empty one takes back those of others, who might answer first.
        "GIT_CONFIG_KEY_0": key,
        "GIT_CONFIG_VALUE_0": "",
        "GIT_CONFIG_KEY_1": key,
        "GIT_CONFIG_VALUE_1": "!gh auth git-credential",
    }
