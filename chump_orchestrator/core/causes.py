"""Why a dispatch failed, by stable name, read from an agent's last words (behaviour O2)."""

from __future__ import annotations

import re
from enum import StrEnum
from functools import cache

from chump_orchestrator.core.deferred import dataclass


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
    SHIP_REFUSED = "ship-refused"
    EXIT_CODE = "exit-code"
    DEADLINE = "deadline"
    SPAWN = "spawn"
    LOST = "lost"
    SESSION = "session"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class _Sign:
    """What tells of a cause, in lower case: `pattern`, or `then` soon after it on its line.

    `pattern` is looked for only where one of `words` stands, which is much cheaper to find out.
    """

    cause: Cause
    words: tuple[str, ...]
    pattern: str
    then: str = ""
    within: int = 0


_STATUS = (
    r"(?:http(?:/[\d.]{1,3})?(?: status| error)?(?: code)?|status code|_status|\"status\""
    r"|error code|\"code\"|api error)\W{0,4}"
)
"""What stands before a number that is the status of an answer; any other number is nothing."""

_SIGNS = (
    _Sign(Cause.BINARY_WEDGE, ("chump-binary-wedge",), "chump-binary-wedge"),
    _Sign(Cause.BINARY_WEDGE, ("wedged",), r"chump\b", r"wedged\b", 80),
    _Sign(
        Cause.BOT_MERGE_HUNG,
        ("[bot-merge]",),
        r"\[bot-merge\]",
        r"timed[ -]?out|time-?out|signal:|\bkilled\b",
        4096,
    ),
    _Sign(
        Cause.BUILD_TIMEOUT,
        ("cargo",),
        r"cargo[ -](?:build|check|test|clippy|nextest)\b",
        r"timed[ -]?out|time-?out",
        200,
    ),
    _Sign(Cause.BUILD_TIMEOUT, ("cargo-build-timeout",), "cargo-build-timeout"),
    # Two texts that speak of a quota and mean that it is full again before long.
    _Sign(Cause.USAGE_LIMIT, ("quota will",), r"quota will (?:be )?reset\b"),
    _Sign(
        Cause.RATE_LIMITED,
        ("resource", "quota metric"),
        r"resource has been exhausted\b|quota exceeded for quota metric\b",
    ),
    _Sign(Cause.CREDIT_EXHAUSTED, ("402",), _STATUS + r"402\b|402 payment required"),
    _Sign(
        Cause.CREDIT_EXHAUSTED,
        ("credit", "quota"),
        r"credits?\b|quota\b",
        r"exhausted\b|too low\b|insufficient\b|used up\b",
        40,
    ),
    _Sign(Cause.CREDIT_EXHAUSTED, ("exhausted",), r"exhausted\b", r"credits?\b|quota\b", 40),
    _Sign(
        Cause.CREDIT_EXHAUSTED,
        ("insufficient", "quota", "out of credit"),
        r"insufficient[_ ](?:credits?|quota|balance|funds)\b|exceeded your current quota\b"
        r"|\bquota exceeded\b|out of credits?\b",
    ),
    _Sign(
        Cause.USAGE_LIMIT,
        ("usage",),
        r"usage[ -]limits?(?: has been| was| is)? (?:reached|exceeded|hit)\b"
        r"|(?:reached|hit|exceeded|met)[\w' ]{0,30} usage[ -]limit\b",
    ),
    _Sign(Cause.USAGE_LIMIT, ("your",), r"(?:hit|reached) your\b", r"limit\b", 30),
    _Sign(Cause.USAGE_LIMIT, ("limit reached",), r"limit reached\b", r"resets?\b", 40),
    _Sign(
        Cause.RATE_LIMITED,
        ("rate", "too many"),
        r"rate[ _-]?limit(?:ed\b|_?error\b|[ _-](?:exceeded|reached|hit)\b)"
        r"|(?:exceeded|hit|reached)[\w ]{0,30}\brate[ -]limit\b|too many requests\b",
    ),
    _Sign(
        Cause.RATE_LIMITED,
        ("429", "529", "overloaded", "high demand"),
        r"request rejected \(429\)|" + _STATUS + r"(?:429|529)\b|529 overloaded\b"
        r"|overloaded_error\b|api error: overloaded\b|model is overloaded\b"
        r"|experiencing high demand\b",
    ),
    _Sign(
        Cause.AUTH,
        ("401", "auth", "api", "logged in", "credentials", "/login"),
        r"(?:invalid|incorrect)[ _](?:x-)?api[ _-]key\b|api key not valid\b|not logged in\b"
        r"|failed to authenticate\b|oauth token has expired\b"
        r"|authentication(?:[ _](?:failed|error|required)|error)\b|bad credentials\b"
        r"|invalid auth method\b|please set an auth method\b"
        r"|please run /login|401 unauthorized\b|" + _STATUS + r"401\b",
    ),
    _Sign(
        Cause.NETWORK,
        (
            "resol",
            "connect",
            "network",
            "econn",
            "timed",
            "etimedout",
            "api error",
            "http",
            "50",
            "fetch failed",
            "socket",
        ),
        r"could ?n[o']t resolve host|connection ?(?:refused|reset|timed out|failed|error)\b"
        r"|(?:unable to|could not) connect\b|network is unreachable\b|name resolution\b"
        r"|econ(?:nrefused|nreset)\b|etimedout\b|\brequest timed out\b|\bfetch failed\b"
        r"|socket hang up\b|socket connection was closed\b|stream disconnected before\b"
        r"|network error\b|connection closed mid-response\b|server error mid-response\b"
        r"|\b50[0234] (?:internal server error|bad gateway|service unavailable|gateway time)"
        r"|" + _STATUS + r"50[0234]\b",
    ),
    _Sign(
        Cause.OUT_OF_MEMORY,
        ("memory", "oom", "heap limit", "enomem"),
        r"out of memory\b|cannot allocate memory\b|\boom\b|\boom-?kill|heap limit\b"
        r"|enomem\b|memoryerror\b",
    ),
    # What every client says of a session that is not there, and two of one that is taken.
    _Sign(
        Cause.SESSION,
        ("session", "no rollout"),
        r"no (?:conversation|saved session|session) found with (?:session )?(?:id|name)\b"
        r"|no rollout found for thread id\b|error: (?:\x1b?\[0m)?session not found\b"
        r"|error resuming session\b"
        r"|session id \S{1,80} is already in use\b",
    ),
    # What the operator allows an agent was used up before it had opened a request.
    _Sign(
        Cause.NO_PULL,
        ("reached max", "usd budget", "error_max_", "unknown command: /"),
        r"reached max(?:imum)? (?:number of )?(?:session )?(?:turns|budget)\b"
        r"|exceeded usd budget\b|error_max_(?:turns|budget_usd)\b|unknown command: /",
    ),
)


@cache
def _compiled(sign: _Sign) -> re.Pattern[str]:
    # When it is first looked for: to compile all of them takes longer than most commands have.
    return re.compile(f"({sign.pattern})|{sign.then}|\\n" if sign.then else sign.pattern)


SEARCHED = 262_144
"""Characters of an agent's last words that are searched, from the end."""


def cause_in(text: str) -> Cause | None:
    """Return the first cause whose signs stand in `text`, or `None`.

    Signs name their context: `HTTP 402` is an exhausted account, `402 lines` is nothing. Takes
    time in proportion to the text, whatever it says.
    """
    lowered = text[-SEARCHED:].lower()
    return next((sign.cause for sign in _SIGNS if _stands(sign, lowered)), None)


def _stands(sign: _Sign, lowered: str) -> bool:
    if not any(word in lowered for word in sign.words):
        return False
    if not sign.then:
        return _compiled(sign).search(lowered) is not None
    # One pass over both parts and the ends of lines: a bounded wildcard between the parts would
    # be tried from each first part anew.
    first_ends: int | None = None
    for found in _compiled(sign).finditer(lowered):
        if found[0] == "\n":
            first_ends = None
        elif found[1] is not None:
            first_ends = found.end()
        elif first_ends is not None and found.start() - first_ends <= sign.within:
            return True
    return False


def cause_of(given: Cause | None, last_words: str) -> Cause:
    """Return the cause of a failure: what the agent said, else what is known, else unknown.

    `given` is what the verdict knew. A deadline stays a deadline; but the agent's own words tell
    more than the bare fact that it ended with an exit code or without a request.
    """
    if given in (None, Cause.EXIT_CODE, Cause.NO_PULL):
        return cause_in(last_words) or given or Cause.UNKNOWN
    return given or Cause.UNKNOWN
