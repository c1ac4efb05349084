"""Pull requests on GitHub, through `gh`: one question for all branches (behaviour P7).

Whatever is not plainly an answer is no news, and said to be (`Unavailable`).
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial

import anyio.to_thread
import structlog

from chump_orchestrator.adapters.git import Git
from chump_orchestrator.adapters.process import run as run_program
from chump_orchestrator.adapters.pulls_explained import Explainer
from chump_orchestrator.adapters.pulls_graphql import (
    Answer,
    Repository,
    Request,
    question,
    read_answer,
    repository_at,
    repository_named,
)
from chump_orchestrator.adapters.pulls_ours import SLACK, Commits, as_of_launch, in_short
from chump_orchestrator.core.complaints import Complaint
from chump_orchestrator.core.errors import ConfigError, MissingProgram, RateLimited, Unavailable
from chump_orchestrator.core.outcome import PullRequest, PullState
from chump_orchestrator.core.ports import Clock
from chump_orchestrator.core.records import Watch

log = structlog.get_logger()

TIMEOUT = timedelta(seconds=20)
"""Longest that GitHub may take to answer; a silent server never ends by itself."""

BRANCHES_AT_ONCE = 50
"""Asked about in one request, which costs one point of an hour's 5,000."""

LONGEST_ANSWER_BYTES = 8 * 1024 * 1024

RESERVE_POINTS = 100
"""Of the hourly budget, so many are left to the people and agents who share it."""

FIRST_QUIET = timedelta(minutes=1)
LONGEST_QUIET = timedelta(minutes=15)
"""After a refusal by a rate limit that names no end; doubled each time."""

LONGEST_RESET = timedelta(minutes=65)
"""No reset time is believed beyond that: GitHub's budgets last an hour."""

KEPT_IN_MEMORY = 500
"""Of so many dispatches that are not asked about any more, what was seen is kept."""

_RANKS = (PullState.MERGED, PullState.OPEN, PullState.CLOSED)
_RATE = re.compile(r"rate.?limit|\b429\b|abuse detection", re.IGNORECASE)
_BUDGET = re.compile(r"(?<!secondary )rate limit exceeded|RATE_LIMITED")
_ADVICE = (
    (
        r"\b401\b|bad credentials|gh auth|authenticat",
        "run `gh auth login --hostname {host}`, or give the daemon a valid GH_TOKEN",
    ),
    (
        r"could not resolve to a repository|names no repository",
        "see that the name is right and that the token may read it, or set GH_REPO",
    ),
    (r"\b403\b", "see that the token may read this repository's pull requests and checks"),
    (r"exist on type|unknown argument", "this GitHub is too old; set pulls.use = git"),
    (r"", "nothing was learned from it, and it will be asked again"),
)


class GhPulls:
    """Asks GitHub, or a GitHub Enterprise server, about all branches at once.

    The repository is that of `GH_REPO` in `env`, else that of `remote`'s URL; where neither tells,
    `check` and `look` raise `ConfigError`. `gh` sees `env` and no more. Ask one question at a time;
    cancelling ends `gh` and leaves nothing behind.
    """

    def __init__(
        self,
        *,
        git: Git,
        env: Mapping[str, str],
        clock: Clock,
        program: str = "gh",
        remote: str = "origin",
        timeout: timedelta = TIMEOUT,
    ) -> None:
        self._git = git
        self._clock = clock
        self._program = program
        self._remote = remote
        self._timeout = timeout
        self._commits = Commits(git, remote)
        # These would add colours, or traces, to what is read here.
        noisy = ("CLICOLOR_FORCE", "GH_DEBUG", "GH_FORCE_TTY")
        self._env = {name: value for name, value in env.items() if name not in noisy} | {
            "GH_NO_UPDATE_NOTIFIER": "1",
            "GH_PROMPT_DISABLED": "1",
            "NO_COLOR": "1",
        }
        self._repository: Repository | None = None
        self._quiet_until = float("-inf")
        self._quiet_why = ""
        self._refusals = 0
        self._reset_at: datetime | None = None
        self._points_left: int | None = None
        self._accepted: dict[str, set[int]] = {}
        self._doubted: dict[str, frozenset[tuple[int, str]]] = {}
        self._sightings: dict[str, PullRequest] = {}

    @property
    def requests_left(self) -> int | None:
        """Points that GitHub said are left of the hour's; `None` where it has not said."""
        return self._points_left

    async def check(self) -> None:
        """See `core.ports.Pulls`: that the repository is known, and that there is a `gh`."""
        self._repository = await self._find_repository()
        path = self._env.get("PATH", os.defpath)
        if await anyio.to_thread.run_sync(partial(shutil.which, self._program, path=path)) is None:
            missing = MissingProgram(f"{self._program} was not found")
            raise ConfigError(
                f"pulls.use: there is no {self._program} on the PATH; install it"
                " (https://cli.github.com), or set pulls.use = git"
            ) from missing

    async def look(self, watches: Sequence[Watch]) -> Mapping[str, PullRequest]:
        if not watches:
            return {}
        left = self._quiet_until - self._clock.monotonic()
        if left > 0:
            raise RateLimited(f"{self._quiet_why}; it is left alone for {left:.0f} s more")
        if self._repository is None:
            self._repository = await self._find_repository()
        asked_at = self._clock.now()
        branches = list(dict.fromkeys(watch.branch for watch in watches))
        requests: dict[str, tuple[Request, ...]] = {}
        for start in range(0, len(branches), BRANCHES_AT_ONCE):
            some = branches[start : start + BRANCHES_AT_ONCE]
            requests |= await self._ask(self._repository, some)

        names = {ref for watch in watches for ref in self._commits.watched_refs(watch)}
        trunk = f"refs/remotes/{self._remote}/HEAD"
        refs = await self._commits.refs({trunk, *names})
        answer = {}
        # Where two dispatches used one branch, the later one's word is the branch's.
        for watch in sorted(watches, key=lambda watch: watch.since):
            possible = [
                request
                for request in requests[watch.branch]
                if not request.is_fork and request.created_at >= watch.since - SLACK
            ]
            try:
                seen = await self._choose(watch, possible, refs, refs.get(trunk, ""), asked_at)
            except Unavailable as error:
                log.warning("pulls.branch_unread", branch=watch.branch, error=str(error))
                seen = self._sightings.get(watch.dispatch) or as_of_launch(watch)
            answer[watch.branch] = self._sightings[watch.dispatch] = seen
        await self._commits.let_go(watches, self._sightings, asked_at)
        self._forget(watches)
        return answer

    async def explain(self, watch: Watch, pull: PullRequest) -> tuple[Complaint, ...]:
        """See `core.complaints.ExplainsFailures`."""
        repository = self._repository = self._repository or await self._find_repository()
        gh = Explainer(self._program, self._env, self._git.root, repository, self._timeout)
        return await gh.explain(watch, pull)

    async def _choose(
        self,
        watch: Watch,
        possible: Sequence[Request],
        refs: Mapping[str, str],
        base_tip: str,
        asked_at: datetime,
    ) -> PullRequest:
        """Return the request that is ours; `Unavailable` when that cannot be told yet.

        That none is ours is said when a second look in a row finds the same strangers.
        """
        # That of an attempt which this one goes on with was ours before.
        before = set() if watch.accepted is None else {watch.accepted}
        accepted = self._accepted.setdefault(watch.dispatch, before)
        strangers = set()
        for request in sorted(possible, key=lambda one: (_RANKS.index(one.state), -one.number)):
            # What was ours stays so, though its branch be rebased on GitHub.
            if request.number not in accepted:
                if not await self._is_ours(watch, request, refs, base_tip):
                    strangers.add((request.number, request.head))
                    continue
                accepted.add(request.number)
            self._doubted.pop(watch.dispatch, None)
            return PullRequest(
                watch.branch,
                request.state,
                asked_at,
                number=request.number,
                checks=request.checks,
                head=request.head,
                url=request.url,
                changes_requested=request.changes_requested,
            )
        if not strangers:
            self._doubted.pop(watch.dispatch, None)
        elif not strangers <= self._doubted.get(watch.dispatch, frozenset()):
            self._doubted[watch.dispatch] = frozenset(strangers)
            numbers = ", ".join(f"#{number}" for number, _ in sorted(strangers))
            raise Unavailable(f"{numbers} seems to be another's; look again to be sure")
        return PullRequest(watch.branch, PullState.NONE, asked_at)

    async def _is_ours(
        self, watch: Watch, request: Request, refs: Mapping[str, str], base_tip: str
    ) -> bool:
        head = request.head
        if not await self._commits.known([head]):
            # GitHub keeps a request's commits there when its branch is gone.
            await self._commits.fetch([f"refs/pull/{request.number}/head"], self._timeout)
            if not await self._commits.known([head]):
                raise Unavailable(f"#{request.number} was pushed to meanwhile; look again")
        if not await self._commits.is_ours(watch, head, refs, base_tip):
            return False
        await self._commits.remember(watch, head, refs)
        return True

    async def _ask(
        self, repository: Repository, branches: Sequence[str]
    ) -> Mapping[str, tuple[Request, ...]]:
        finished = await run_program(
            (self._program, "api", "graphql", "--hostname", repository.host, "--input", "-"),
            cwd=self._git.root,
            env=self._env,
            timeout=self._timeout,
            feed=json.dumps(question(repository, branches)).encode(),
            limit=LONGEST_ANSWER_BYTES,
        )
        text = finished.out.decode("utf-8", "replace")
        if finished.code != 0:
            raise self._no_news(repository, finished.err.decode("utf-8", "replace") or text)
        try:
            answer = read_answer(text, branches)
        except ValueError as error:
            raise self._no_news(repository, str(error)) from error
        self._refusals = 0
        self._budget(repository, answer)
        return answer.requests

    def _no_news(self, repository: Repository, said: str) -> Unavailable:
        for name, value in self._env.items():
            if "TOKEN" in name and value:
                said = said.replace(value, "***")
        what = f"gh could not tell of pull requests in {repository}: {in_short(said)}"
        if _RATE.search(said):
            self._refusals += 1
            wait = min(FIRST_QUIET * 2 ** min(self._refusals - 1, 10), LONGEST_QUIET)
            if _BUDGET.search(said):
                wait = self._until_reset() or wait
            self._be_quiet(what, wait)
            return RateLimited(f"{what}; it is left alone for a while, and asked again then")
        advice = next(text for hint, text in _ADVICE if re.search(hint, said, re.IGNORECASE))
        return Unavailable(f"{what}; {advice.format(host=repository.host)}")

    def _budget(self, repository: Repository, answer: Answer) -> None:
        self._reset_at, self._points_left = answer.reset_at, answer.points_left
        wait = self._until_reset()
        if answer.points_left is not None and answer.points_left < RESERVE_POINTS and wait:
            what = f"{answer.points_left} points are left of the hour's on {repository.host}"
            self._be_quiet(what, wait)

    def _until_reset(self) -> timedelta:
        if self._reset_at is None:
            return timedelta(0)
        left = self._reset_at - self._clock.now()
        return min(max(left, timedelta(0)), LONGEST_RESET)

    def _be_quiet(self, why: str, wait: timedelta) -> None:
        self._quiet_until = self._clock.monotonic() + wait.total_seconds()
        self._quiet_why = why
        log.warning("pulls.rate_limited", reason=why, wait_s=wait.total_seconds())

    async def _find_repository(self) -> Repository:
        default_host = self._env.get("GH_HOST", "")
        if named := self._env.get("GH_REPO", ""):
            if repository := repository_named(named, default_host):
                return repository
            raise ConfigError("GH_REPO names no repository; write [HOST/]OWNER/NAME")
        found = await self._git.run("remote", "get-url", self._remote)
        url = found.out.decode("utf-8", "replace").strip()
        repository = repository_at(url, default_host) if found.code == 0 else None
        if repository is None:
            raise ConfigError(
                f"the URL of remote {self._remote} in {self._git.root} names no repository on a"
                " GitHub; set GH_REPO=[HOST/]OWNER/NAME, or pulls.use = git"
            )
        return repository

    def _forget(self, watches: Sequence[Watch]) -> None:
        if len(self._sightings) <= KEPT_IN_MEMORY + len(watches):
            return
        asked = {watch.dispatch for watch in watches}
        self._sightings = {name: one for name, one in self._sightings.items() if name in asked}
        self._accepted = {name: one for name, one in self._accepted.items() if name in asked}
        self._doubted = {name: one for name, one in self._doubted.items() if name in asked}
        self._commits.forget(watches)
