"""What a check says: how things stand, what was found, and what to do about it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chump_orchestrator.doctor.subject import Subject


class Status(StrEnum):
    """How things stand: in order, odd, broken, or not to be said here."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIP = "skip"


_WORST_FIRST = (Status.FAIL, Status.WARN, Status.OK, Status.SKIP)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found; `remedy` is empty where there is nothing to do."""

    status: Status
    found: str
    remedy: str = ""


def ok(found: str) -> Finding:
    """Return that something is in order."""
    return Finding(Status.OK, found)


def warn(found: str, remedy: str) -> Finding:
    """Return that something is odd, or will be trouble one day."""
    return Finding(Status.WARN, found, remedy)


def fail(found: str, remedy: str) -> Finding:
    """Return that something keeps agents from working, or work from being kept."""
    return Finding(Status.FAIL, found, remedy)


def skip(found: str) -> Finding:
    """Return why there is nothing to say."""
    return Finding(Status.SKIP, found)


def told(error: Exception, otherwise: str) -> Finding:
    """Return what an error says as a failure: what happened, and behind a semicolon what to do.

    `otherwise` is what to do where it does not say.
    """
    found, semicolon, remedy = str(error).rpartition("; ")
    if not semicolon or remedy.startswith(("error:", "fatal:")):
        return fail(str(error), otherwise)
    return fail(found, remedy)


def worst(findings: Iterable[Finding]) -> Status:
    """Return the status of several findings together; of none, `SKIP`."""
    present = {finding.status for finding in findings}
    return next((status for status in _WORST_FIRST if status in present), Status.SKIP)


Look = Callable[["Subject"], Awaitable[Sequence[Finding]]]
Mend = Callable[["Subject"], Awaitable[Sequence[str]]]


@dataclass(frozen=True, slots=True)
class Check:
    """One question about the subject.

    `asks` completes "asks whether …". `look` changes nothing. `mend`, where there is one, does
    what is safe, and returns a sentence for each thing it did. Both raise the three errors of the
    boundary at most; whatever else they raise is a bug, and told as the check's failure.
    `limit_s` is the longest that either may take.
    """

    name: str
    theme: str
    asks: str
    look: Look
    mend: Mend | None = None
    needs_repository: bool = True
    limit_s: float = 15.0
