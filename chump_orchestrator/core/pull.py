"""What a forge says of a branch's pull request, its checks, and those who are to merge it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum

from chump_orchestrator.core.deferred import dataclass

MOST_NAMED = 10
"""Of failing checks, so many are named; a matrix may have hundreds."""


class PullState(StrEnum):
    """What a forge says of a branch's pull request."""

    NONE = "none"
    OPEN = "open"
    MERGED = "merged"
    CLOSED = "closed"


class Checks(StrEnum):
    """The required checks of an open request, taken together."""

    NONE = "none"
    PENDING = "pending"
    PASSING = "passing"
    FAILING = "failing"


class Review(StrEnum):
    """What reviewers have decided; `NONE` where nobody has to."""

    NONE = "none"
    APPROVED = "approved"
    CHANGES_REQUESTED = "changes_requested"
    REVIEW_REQUIRED = "review_required"


class MergeState(StrEnum):
    """Whether a request could be merged now; `UNKNOWN` is not computed yet, which is no news."""

    UNKNOWN = "unknown"
    BEHIND = "behind"
    BLOCKED = "blocked"
    CLEAN = "clean"
    DIRTY = "dirty"
    DRAFT = "draft"
    HAS_HOOKS = "has_hooks"
    UNSTABLE = "unstable"


@dataclass(frozen=True, slots=True)
class PullRequest:
    """What the forge last said about a branch.

    `asked_at` is the moment, in UTC, before which the question was put: whatever happened up to
    it is in the answer. `head` is the commit at the request's tip, or empty. `failing` names the
    failing checks that count, `MOST_NAMED` at most; `failing_url` is where one of them tells of
    itself, or empty. `is_queued` says that a merge queue has it, `is_armed` that the forge merges
    it by itself as soon as it may.
    """

    branch: str
    state: PullState
    asked_at: datetime
    number: int | None = None
    checks: Checks = Checks.NONE
    head: str = ""
    url: str = ""
    review: Review = Review.NONE
    merge_state: MergeState = MergeState.UNKNOWN
    is_draft: bool = False
    is_queued: bool = False
    is_armed: bool = False
    failing: tuple[str, ...] = ()
    failing_url: str = ""

    @property
    def changes_requested(self) -> bool:
        """Whether a reviewer, as far as the forge counts one, wants it changed."""
        return self.review is Review.CHANGES_REQUESTED

    @property
    def gist(self) -> tuple[object, ...]:
        """What makes it another than before.

        Whether it could be merged is left out: that changes with every merge of another one.
        """
        standing = (self.review, self.is_draft, self.is_queued, self.is_armed, self.failing)
        return (self.state, self.number, self.checks, self.head, *standing)

    @property
    def in_words(self) -> str:
        """How it stands, in a sentence for people; empty where there is none."""
        if self.state is PullState.NONE:
            return ""
        name = f"pull request {self.number}" if self.number else f"branch {self.branch}"
        told = [f"{name} is {self.state}"]
        if self.state is PullState.OPEN:
            failing = f" ({listed(self.failing)})" if self.failing else ""
            told += [f"checks {self.checks}{failing}"] if self.checks is not Checks.NONE else []
            told += [str(self.review).replace("_", " ")] if self.review is not Review.NONE else []
            told += ["a draft"] if self.is_draft else []
            told += ["in the merge queue"] if self.is_queued else []
            told += ["to be merged by itself"] if self.is_armed else []
            told += ["in conflict"] if self.merge_state is MergeState.DIRTY else []
        return ", ".join(told)

    def facts(self) -> dict[str, object]:
        """Return what a status tells of it, by name (behaviour C6)."""
        return {
            "number": self.number,
            "state": str(self.state),
            "checks": str(self.checks),
            "failing": list(self.failing),
            "failing_url": self.failing_url or None,
            "review": str(self.review),
            "merge_state": str(self.merge_state),
            "draft": self.is_draft,
            "queued": self.is_queued,
            "auto_merge": self.is_armed,
            "url": self.url or None,
        }


def listed(names: Sequence[str]) -> str:
    """Return `names` for a sentence, the first `MOST_NAMED`; empty for none."""
    more = len(names) - MOST_NAMED
    shown = ", ".join(names[:MOST_NAMED])
    return f"{shown} and {more} more" if more > 0 else shown
