"""The words that some settings choose from."""

from __future__ import annotations

from enum import StrEnum


class PickKind(StrEnum):
    """Whose gaps are picked."""

    USER = "user"
    SYSTEM = "system"
    ANY = "any"


class PickOrder(StrEnum):
    """What decides within a priority: effort, then place; or place alone (behaviour K2)."""

    EFFORT = "effort"
    DECLARED = "declared"


class OnSignal(StrEnum):
    """What SIGTERM means for running agents: stop them, leave them, or wait for them."""

    TEARDOWN = "teardown"
    DETACH = "detach"
    DRAIN = "drain"


class OnFailedChecks(StrEnum):
    """What follows when checks or reviewers find fault: nothing, or another session (P10)."""

    WAIT = "wait"
    RESUME = "resume"


class LogFormat(StrEnum):
    """How log lines look; `AUTO` goes by where they go."""

    AUTO = "auto"
    CONSOLE = "console"
    JSON = "json"
    JOURNAL = "journal"


class LogLevel(StrEnum):
    """The least important lines that are logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class ShipBy(StrEnum):
    """Who pushes and opens requests: agents themselves, or the daemon for them."""

    AGENT = "agent"
    DAEMON = "daemon"


class Uncommitted(StrEnum):
    """What the daemon does with work that an agent has not committed."""

    FAIL = "fail"
    COMMIT = "commit"


class AutoMerge(StrEnum):
    """How a forge merges a request as soon as it may; empty leaves that to people."""

    NO = ""
    MERGE = "merge"
    SQUASH = "squash"
    REBASE = "rebase"
