"""Pull requests on GitHub, through `gh`: one question for all branches (behaviour P7).

Whatever is not plainly an answer is no news, and said to be (`Unavailable`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial

import anyio.to_thread
import structlog

from chump_orchestrator.adapters.git import Git
from chump_orchestrator.adapters.pulls_checks import (
    MOST_PAGES,
    REQUIRED,
    Asked,
    Judged,
    Page,
    judged,
    read_pages,
)
from chump_orchestrator.adapters.pulls_checks import question as checks_question
from chump_orchestrator.adapters.pulls_explained import Explainer
from chump_orchestrator.adapters.pulls_graphql import (
    OPTIONAL,
    Repository,
    Request,
    question,
    read_requests,
    repository_at,
    repository_named,
)
from chump_orchestrator.adapters.pulls_ours import SLACK, Commits, as_of_launch
from chump_orchestrator.adapters.pulls_wire import Wire
from chump_orchestrator.core.complaints import Complaint
from chump_orchestrator.core.errors import ConfigError, MissingProgram, Unavailable
from chump_orchestrator.core.ports import Clock
from chump_orchestrator.core.pull import Checks, PullRequest, PullState
from chump_orchestrator.core.records import ForgeBudget, Watch

log = structlog.get_logger()

TIMEOUT = timedelta(seconds=20)
"""Longest that GitHub may take to answer; a silent server never ends by itself."""

BRANCHES_AT_ONCE = 50
"""Asked about in one request, which costs one point of an hour's 5,000."""

CHECKS_AGAIN = timedelta(minutes=5)
CHECKS_UNREAD = timedelta(minutes=1)
"""While a request stays red its single checks are asked about so often, and at once when its head
has changed: what is required may change, and what is not may hide what is. After a question that
was not answered, none is asked for so long."""

KEPT_IN_MEMORY = 500
"""Of so many dispatches that are not asked about any more, what was seen is kept."""

_RANKS = (PullState.MERGED, PullState.OPEN, PullState.CLOSED)


@dataclass(frozen=True, slots=True)
class _Red:
    """What the single checks of the commit `head` came to when they were read."""

    head: str
    read_s: float
    judged: Judged


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
        self._commits = Commits(git, remote)
        # These would add colours, or traces, to what is read here.
        noisy = ("CLICOLOR_FORCE", "GH_DEBUG", "GH_FORCE_TTY")
        self._env = {name: value for name, value in env.items() if name not in noisy} | {
            "GH_NO_UPDATE_NOTIFIER": "1",
            "GH_PROMPT_DISABLED": "1",
            "NO_COLOR": "1",
        }
        self._wire = Wire(git=git, env=self._env, clock=clock, program=program, timeout=timeout)
        self._repository: Repository | None = None
        self._accepted: dict[str, set[int]] = {}
        self._doubted: dict[str, frozenset[tuple[int, str]]] = {}
        self._sightings: dict[str, PullRequest] = {}
        self._red: dict[str, _Red] = {}
        self._reads_checks = True
        self._closer_s = float("-inf")

    @property
    def budget(self) -> ForgeBudget:
        """What GitHub was asked so far, and what it grants."""
        return self._wire.budget

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
        await self._look_closer(self._repository, watches, answer)
        await self._commits.let_go(watches, self._sightings, asked_at)
        self._forget(watches)
        return answer

    async def explain(self, watch: Watch, pull: PullRequest) -> tuple[Complaint, ...]:
        """See `core.complaints.ExplainsFailures`."""
        repository = self._repository = self._repository or await self._find_repository()
        gh = Explainer(self._program, self._env, self._git.root, repository, self._wire.timeout)
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
                review=request.review,
                merge_state=request.merge_state,
                is_draft=request.is_draft,
                is_queued=request.is_queued,
                is_armed=request.is_armed,
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
            await self._commits.fetch([f"refs/pull/{request.number}/head"], self._wire.timeout)
            if not await self._commits.known([head]):
                raise Unavailable(f"#{request.number} was pushed to meanwhile; look again")
        if not await self._commits.is_ours(watch, head, refs, base_tip):
            return False
        await self._commits.remember(watch, head, refs)
        return True

    async def _ask(
        self, repository: Repository, branches: Sequence[str]
    ) -> Mapping[str, tuple[Request, ...]]:
        data = await self._wire.put(
            repository, lambda lacking: question(repository, branches, lacking), OPTIONAL
        )
        try:
            return read_requests(data, branches)
        except ValueError as error:
            raise self._wire.unread(repository, error) from error

    async def _look_closer(
        self, repository: Repository, watches: Sequence[Watch], answer: dict[str, PullRequest]
    ) -> None:
        """Say of the red requests in `answer` what the checks that count come to.

        While the single checks cannot be read, and nothing is known of them since the last commit,
        a request is not said to be red: on that, it could be given up.
        """
        red = {
            watch.dispatch: answer[watch.branch]
            for watch in watches
            if answer[watch.branch].state is PullState.OPEN
            and answer[watch.branch].checks is Checks.FAILING
        }
        now_s = self._clock.monotonic()
        due = {
            pull.number
            for dispatch, pull in red.items()
            if pull.number is not None and self._is_due(self._red.get(dispatch), pull, now_s)
        }
        told: Mapping[int, tuple[str, Judged]] = {}
        try:
            if due and now_s >= self._closer_s:
                told = await self._read_checks(repository, sorted(due))
                self._reads_checks = True
        except Unavailable as error:
            self._closer_s = now_s + CHECKS_UNREAD.total_seconds()
            if self._reads_checks:
                log.warning("pulls.checks_unread", error=str(error))
            self._reads_checks = False
        for dispatch, pull in red.items():
            head, now = told.get(pull.number or 0, ("", None))
            if now is not None and head == pull.head:
                self._red[dispatch] = _Red(pull.head, now_s, now)
            known = self._red.get(dispatch)
            is_known = known is not None and known.head == pull.head
            verdict = known.judged if known is not None and is_known else Judged(Checks.PENDING)
            answer[pull.branch] = self._sightings[dispatch] = replace(
                pull, checks=verdict.state, failing=verdict.failing, failing_url=verdict.url
            )
        gone = {watch.dispatch for watch in watches} - red.keys()
        self._red = {name: one for name, one in self._red.items() if name not in gone}

    @staticmethod
    def _is_due(known: _Red | None, pull: PullRequest, now_s: float) -> bool:
        if known is None or known.head != pull.head:
            return True
        return now_s - known.read_s >= CHECKS_AGAIN.total_seconds()

    async def _read_checks(
        self, repository: Repository, numbers: Sequence[int]
    ) -> Mapping[int, tuple[str, Judged]]:
        """Return the head of each request, and what its checks come to."""
        found: dict[int, tuple[str, Judged]] = {}
        for start in range(0, len(numbers), BRANCHES_AT_ONCE):
            asked = [Asked(number) for number in numbers[start : start + BRANCHES_AT_ONCE]]
            read: dict[int, list[Page]] = {}
            for _ in range(MOST_PAGES):
                pages = await self._read_pages(repository, asked) if asked else {}
                for number, page in pages.items():
                    read.setdefault(number, []).append(page)
                asked = [Asked(number, page.after) for number, page in pages.items() if page.after]
            for number, parts in read.items():
                # Pushed to between two of them, they tell of different commits.
                if len({page.head for page in parts}) == 1:
                    checks = (check for page in parts for check in page.checks)
                    verdict = judged(checks, is_whole=not parts[-1].after)
                    found[number] = parts[0].head, verdict
        return found

    async def _read_pages(
        self, repository: Repository, asked: Sequence[Asked]
    ) -> Mapping[int, Page]:
        data = await self._wire.put(
            repository, lambda lacking: checks_question(repository, asked, lacking), (REQUIRED,)
        )
        try:
            return read_pages(data, asked)
        except ValueError as error:
            raise self._wire.unread(repository, error) from error

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
        self._red = {name: one for name, one in self._red.items() if name in asked}
        self._commits.forget(watches)
