"""One question to a GitHub through `gh`, and what that costs: limits kept, refusals waited out.

Whatever is not plainly an answer is no news, and said to be (`Unavailable`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import structlog

from chump_orchestrator.adapters.git import Git
from chump_orchestrator.adapters.process import run as run_program
from chump_orchestrator.adapters.pulls_graphql import (
    Rate,
    Repository,
    data_of,
    rate_of,
    unknown_fields,
)
from chump_orchestrator.adapters.pulls_ours import in_short
from chump_orchestrator.core.errors import RateLimited, Unavailable
from chump_orchestrator.core.ports import Clock
from chump_orchestrator.core.records import ForgeBudget

log = structlog.get_logger()

LONGEST_ANSWER_BYTES = 8 * 1024 * 1024

RESERVE_POINTS = 100
"""Of the hourly budget, so many are left to the people and agents who share it, however many
daemons do; a tenth, where the budget is a small one."""

FIRST_QUIET = timedelta(minutes=1)
LONGEST_QUIET = timedelta(minutes=15)
"""After a refusal by a rate limit that names no end; doubled each time."""

LONGEST_RESET = timedelta(minutes=65)
"""No reset time is believed beyond that: GitHub's budgets last an hour."""

TOO_MANY, FORBIDDEN = 429, 403
LEAST_OF_A_FAULT = 500

_RATE = re.compile(r"rate.?limit|\b429\b|abuse detection", re.IGNORECASE)
_BUDGET = re.compile(r"(?<!secondary )rate limit exceeded|RATE_LIMITED")
_STATUS = re.compile(r"HTTP/[\d.]+ (\d{3})\b")
_ADVICE = (
    (
        r"\b401\b|bad credentials|gh auth|authenticat",
        "run `gh auth login --hostname {host}`, or give the daemon a valid GH_TOKEN",
    ),
    (
        r"could not resolve to a repository|names no repository",
        "see that the name is right and that the token may read it, or set GH_REPO",
    ),
    (
        r"\b403\b|not accessible",
        "see that the token may read this repository's pull requests and checks",
    ),
    (r"exist on type|unknown argument", "this GitHub is too old; set pulls.use = git"),
    (r"", "nothing was learned from it, and it will be asked again"),
)


@dataclass(frozen=True, slots=True)
class _Head:
    """The head of an answer; `status` of 0 where none came."""

    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)


class Wire:
    """Puts questions to one GitHub, one at a time, and leaves it alone when it wants to be.

    `gh` sees `env` and no more. Cancelling ends `gh` and leaves nothing behind.
    """

    def __init__(
        self, *, git: Git, env: Mapping[str, str], clock: Clock, program: str, timeout: timedelta
    ) -> None:
        self._git = git
        self._clock = clock
        self._program = program
        self.timeout = timeout
        self._env = env
        self._lacking: frozenset[str] = frozenset()
        self._quiet_until = float("-inf")
        self._quiet_why = ""
        self._refusals = 0
        self._requests = 0
        self._points = 0
        self._rate: Rate | None = None

    @property
    def budget(self) -> ForgeBudget:
        """What was asked so far, what it cost, and what is left."""
        rate = self._rate
        return ForgeBudget(
            requests=self._requests,
            points=self._points,
            left=rate.left if rate else None,
            limit=rate.limit if rate else None,
            resets_at=rate.resets_at if rate else None,
        )

    async def put(
        self,
        repository: Repository,
        question: Callable[[Collection[str]], Mapping[str, Any]],
        optional: Collection[str],
    ) -> Mapping[str, Any]:
        """Return the data of the answer to `question`.

        That is asked for without those of the `optional` fields that the server said it lacks, or
        does not show to this token; the first time it says so, it is asked again at once. Raises
        `RateLimited`, without asking, while the server is to be left alone, and `Unavailable` for
        what is no answer.
        """
        while True:
            left = self._quiet_until - self._clock.monotonic()
            if left > 0:
                raise RateLimited(f"{self._quiet_why}; it is left alone for {left:.0f} s more")
            code, head, text, said = await self._ask(repository, question(self._lacking))
            lacking = unknown_fields(text, said) if code != 0 or '"errors"' in text else ()
            if not lacking or not self._lacking.isdisjoint(lacking) or set(lacking) - {*optional}:
                break
            self._lacking = self._lacking.union(lacking)
            log.warning("pulls.field_missing", host=repository.host, fields=sorted(lacking))
        if code != 0:
            raise self._no_news(repository, said or text, head)
        try:
            data = data_of(text)
            rate = rate_of(data)
        except ValueError as error:
            raise self._no_news(repository, str(error), head) from error
        self._refusals = 0
        self._account(repository, rate)
        return data

    async def _ask(
        self, repository: Repository, question: Mapping[str, Any]
    ) -> tuple[int, _Head, str, str]:
        """Return the exit status of `gh`, the head of the answer, its body, and what `gh` said."""
        self._requests += 1
        options = ("--include", "--hostname", repository.host, "--input", "-")
        finished = await run_program(
            (self._program, "api", "graphql", *options),
            cwd=self._git.root,
            env=self._env,
            timeout=self.timeout,
            feed=json.dumps(question).encode(),
            limit=LONGEST_ANSWER_BYTES,
        )
        head, text = _parted(finished.out.decode("utf-8", "replace"))
        return finished.code, head, text, finished.err.decode("utf-8", "replace")

    def unread(self, repository: Repository, error: ValueError) -> Unavailable:
        """Return what to raise for data in which something is missing."""
        return self._no_news(repository, str(error), _Head())

    def _no_news(self, repository: Repository, said: str, head: _Head) -> Unavailable:
        for name, value in self._env.items():
            if "TOKEN" in name and value:
                said = said.replace(value, "***")
        what = f"gh could not tell of pull requests in {repository}: {in_short(said)}"
        named = self._named_wait(head)
        is_limit = head.status in (TOO_MANY, FORBIDDEN) and named is not None
        if _RATE.search(said) or is_limit or head.status == TOO_MANY:
            self._refusals += 1
            wait = min(FIRST_QUIET * 2 ** min(self._refusals - 1, 10), LONGEST_QUIET)
            if named is not None:
                wait = named
            elif _BUDGET.search(said):
                wait = self._until_reset() or wait
            self._be_quiet(what, wait)
            return RateLimited(f"{what}; it is left alone for a while, and asked again then")
        if head.status >= LEAST_OF_A_FAULT and named is not None:
            self._be_quiet(what, min(named, LONGEST_QUIET))
        advice = next(text for hint, text in _ADVICE if re.search(hint, said, re.IGNORECASE))
        return Unavailable(f"{what}; {advice.format(host=repository.host)}")

    def _named_wait(self, head: _Head) -> timedelta | None:
        """Return for how long the head of a refusal asks to be left alone; `None` if it does not.

        `Retry-After` counts most, in seconds or as a date; then the reset of a budget that is used
        up. Nothing is believed beyond `LONGEST_RESET`.
        """
        now = self._clock.now()
        text = head.headers.get("retry-after", "")
        if text.isascii() and text.isdigit():
            return min(timedelta(seconds=int(text[:9])), LONGEST_RESET)
        until: datetime | None = None
        reset = head.headers.get("x-ratelimit-reset", "")
        try:
            if text:
                until = parsedate_to_datetime(text)
            elif head.headers.get("x-ratelimit-remaining") == "0" and reset:
                until = datetime.fromtimestamp(int(reset[:12]), UTC)
        except (ValueError, OverflowError, OSError):
            return None
        if until is None or until.tzinfo is None or until <= now:
            return None
        return min(until - now, LONGEST_RESET)

    def _account(self, repository: Repository, rate: Rate | None) -> None:
        self._rate = rate
        if rate is None:
            return
        self._points += max(rate.cost, 0)
        reserve = RESERVE_POINTS if rate.limit is None else min(RESERVE_POINTS, rate.limit // 10)
        wait = self._until_reset()
        if rate.left - rate.cost < reserve and wait:
            what = f"{rate.left} points are left of the hour's on {repository.host}"
            self._be_quiet(what, wait)

    def _until_reset(self) -> timedelta:
        if self._rate is None:
            return timedelta(0)
        left = self._rate.resets_at - self._clock.now()
        return min(max(left, timedelta(0)), LONGEST_RESET)

    def _be_quiet(self, why: str, wait: timedelta) -> None:
        self._quiet_until = self._clock.monotonic() + wait.total_seconds()
        self._quiet_why = why
        log.warning("pulls.rate_limited", reason=why, wait_s=wait.total_seconds())


def _parted(text: str) -> tuple[_Head, str]:
    """Return the head that `gh --include` writes, and the body after it."""
    status = _STATUS.match(text)
    if status is None:
        return _Head(), text
    head, _, body = text.replace("\r\n", "\n").partition("\n\n")
    lines = (line.partition(":") for line in head.split("\n")[1:])
    headers = {name.strip().lower(): value.strip() for name, _, value in lines}
    return _Head(int(status[1]), headers), body
