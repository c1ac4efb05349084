"""Why a dispatch failed, by stable name, read from an agent's last words (behaviour O2)."""

from __future__ import annotations

import re
from enum import StrEnum


class Cause(StrEnum):
    """Causes of failure; the strings are stable and stored."""

    BINARY_WEDGE = "chump-binary-wedge"
    BOT_MERGE_HUNG = "bot-merge-hung"
    BUILD_TIMEOUT = "cargo-build-timeout"
    CREDIT_EXHAUSTED = "API-credit-exhausted"
    USAGE_LIMIT = "usage-limit"
    RATE_LIMITED = "rate-limited"
    AUTH = "auth"
    NETWORK = "network"
    OUT_OF_MEMORY = "out-of-memory"
    NO_PULL = "no-pr"
    EXIT_CODE = "exit-code"
    DEADLINE = "deadline"
    SPAWN = "spawn"
    LOST = "lost"
    UNKNOWN = "unknown"


_SIGNS: tuple[tuple[Cause, re.Pattern[str]], ...] = tuple(
    (cause, re.compile(pattern, re.IGNORECASE))
    for cause, pattern in (
        (Cause.BINARY_WEDGE, r"chump-binary-wedge|\bchump\b[^\n]{0,80}\bwedged?\b"),
        (
            Cause.BOT_MERGE_HUNG,
            r"\[bot-merge\][^\n]{0,400}(timed[ -]?out|timeout|signal:|\bkilled\b)",
        ),
        (
            Cause.BUILD_TIMEOUT,
            r"cargo[ -](build|check|test|clippy)[^\n]{0,200}(timed[ -]?out|timeout)",
        ),
        (
            Cause.CREDIT_EXHAUSTED,
            r"(\bHTTP\b|\bstatus(?: code)?\b|\bcode\b)\W{0,4}402\b|\b402 Payment Required"
            r"|credit[^\n]{0,40}(exhausted|too low|insufficient|used up)"
            r"|insufficient[_ ](credit|quota|balance|funds)|quota[^\n]{0,40}exhausted"
            r"|exceeded your current quota",
        ),
        (
            Cause.USAGE_LIMIT,
            r"usage[ -]limit|(hit|reached) your[^\n]{0,30}limit|limit reached[^\n]{0,40}resets?",
        ),
        (
            Cause.RATE_LIMITED,
            r"rate[ -_]?limit(ed)?|too many requests|Request rejected \(429\)"
            r"|(\bHTTP\b|\bstatus(?: code)?\b|API Error:)\W{0,4}(429|529)\b|\boverloaded\b",
        ),
        (
            Cause.AUTH,
            r"invalid[ _]api[ _]key|not logged in|authentication[ _](failed|error)|unauthorized"
            r"|(\bHTTP\b|\bstatus(?: code)?\b|API Error:)\W{0,4}401\b|bad credentials"
            r"|please run /login",
        ),
        (
            Cause.NETWORK,
            r"could not resolve host|connection ?(refused|reset|timed out)|unable to connect"
            r"|network is unreachable|name resolution|\bECONN(REFUSED|RESET)\b|\bETIMEDOUT\b"
            r"|(\bHTTP\b|API Error:)\W{0,4}50[0234]\b",
        ),
        (
            Cause.OUT_OF_MEMORY,
            r"out of memory|cannot allocate memory|\bOOM\b|\boom-?kill|heap limit"
            r"|\bENOMEM\b|\bMemoryError\b",
        ),
    )
)

SEARCHED = 262_144
"""Characters of an agent's last words that are searched, from the end."""


def cause_in(text: str) -> Cause | None:
    """Return the first cause whose signs stand in `text`, or `None`.

    Signs name their context: `HTTP 402` is an exhausted account, `402 lines` is nothing.
    """
    searched = text[-SEARCHED:]
    return next((cause for cause, sign in _SIGNS if sign.search(searched)), None)


def cause_of(given: Cause | None, last_words: str) -> Cause:
    """Return the cause of a failure: what the agent said, else what is known, else unknown.

    `given` is what the verdict knew. A deadline stays a deadline; but the agent's own words tell
    more than the bare fact that it ended with an exit code or without a request.
    """
    if given in (None, Cause.EXIT_CODE, Cause.NO_PULL):
        return cause_in(last_words) or given or Cause.UNKNOWN
    return given or Cause.UNKNOWN
