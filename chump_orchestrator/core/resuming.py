"""Going on where an agent stopped: what can be gone on with, what it is told, what follows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Protocol, runtime_checkable

from chump_orchestrator.core.brakes import Consequence, Park
from chump_orchestrator.core.brief import ANSWER_OF_COMMITTER, committing
from chump_orchestrator.core.causes import Cause
from chump_orchestrator.core.complaints import Complaint, left_out, told
from chump_orchestrator.core.dispatch import Command, Dispatch, Resumed, Workspace
from chump_orchestrator.core.gap import Gap, on_one_line
from chump_orchestrator.core.outcome import Outcome, OutcomeKind, PullState, StopReason
from chump_orchestrator.core.records import Record, Removal
from chump_orchestrator.core.routing import Route

_SESSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}", re.ASCII)
"""What the id of a session looks like: agents tell it, and it becomes an argument of theirs."""

REASON_LIMIT = 300
"""Characters of an outcome's reason that a brief repeats."""


@runtime_checkable
class Resumes(Protocol):
    """A backend whose agents can go on with a session of theirs."""

    def resume_command(self, gap: Gap, route: Route, prompt: str, session: str) -> Command | None:
        """Return what goes on with `session`, in the worktree that it was begun in.

        `None` when that cannot be done by this route. Pure, as `Backend.command` is.
        """
        ...


class KeptWorktrees(Protocol):
    """Worktrees that outlast their dispatch, and change hands."""

    async def keep(self, workspace: Workspace, dispatch_id: str) -> Removal:
        """Leave a settled dispatch's worktree as it is, for as long as the operator keeps them.

        What would be lost with it is put under a salvage ref as well. What has been given to
        another dispatch since is left alone, and counts as removed.
        """
        ...

    async def holder(self, workspace: Workspace) -> str:
        """Return the dispatch that a worktree is for; empty when it is gone, or another's."""
        ...

    async def hand_over(self, workspace: Workspace, giver: str, taker: str) -> bool:
        """Give a worktree that is for `giver` to `taker`, in one step, and touch nothing in it.

        Says whether it is `taker`'s now, which it may have been before. `Unavailable` when that
        cannot be told or done now.
        """
        ...


class Wishes(Protocol):
    """What is wanted next, by name; durable."""

    async def request_dispatch(self, gap: str, *, resume: int | None = None) -> None:
        """Store that this gap is wanted next; lasts over restarts.

        `resume` of `None` wants a new attempt, a number the last session: 0 as an operator's word,
        else as `core.dispatch.Resumed.times`.
        """
        ...

    async def requested(self) -> tuple[str, ...]:
        """Return the gaps that were asked for, oldest first."""
        ...

    async def resumptions(self) -> Mapping[str, int]:
        """Return those of them of which the last session is wanted, and `resume` of each."""
        ...

    async def request_done(self, gap: str) -> None:
        """Forget such a request."""
        ...


def last_at_work(records: Sequence[Record]) -> Record | None:
    """Return the latest of a gap's dispatches, newest first, that had an agent; or `None`."""
    return next((one for one in records if one.launched_at is not None), None)


def objection(gap_id: str, records: Sequence[Record], *, is_shipped: bool) -> str:
    """Say why a gap's last session cannot be gone on with; empty as far as the ledger tells.

    `records` are its dispatches, newest first.
    """
    active = next((one for one in records if one.state.is_active), None)
    if active is not None:
        return f"{gap_id} has a dispatch under way, {active.dispatch.id}; stop it first"
    last = last_at_work(records)
    if last is None:
        return f"{gap_id} has had no agent yet; `retry {gap_id}` starts one"
    what, anew = f"dispatch {last.dispatch.id}", f"`retry {gap_id}` begins anew"
    if is_shipped or (last.outcome is not None and last.outcome.kind is OutcomeKind.SHIPPED):
        return f"{gap_id} was shipped; {anew}"
    if not _SESSION.fullmatch(last.report.session):
        return f"no session of {what} is known; {anew}"
    if last.workspace is None:
        return f"no worktree of {what} is known; {anew}"
    if last.exit is not None and not last.exit.clean:
        return f"it could not be proved that nothing of {what} lives; see to its processes first"
    return ""


def is_resumable(record: Record) -> bool:
    """Whether an ended dispatch has left what it takes to go on with it, the backend apart."""
    ended = record.exit
    return bool(
        ended is not None
        and not ended.spawn_error
        and ended.clean
        and record.workspace is not None
        and _SESSION.fullmatch(record.report.session)
    )


def taking_over(former: Record, *, times: int = 0) -> Resumed:
    """Return what a new attempt goes on with; `times` as in `core.dispatch.Resumed`."""
    dispatch, pull = former.dispatch, former.pull
    began = dispatch.resumed.since if dispatch.resumed else former.launched_at
    is_open = pull is not None and pull.state is PullState.OPEN
    return Resumed(
        dispatch=dispatch.id,
        session=former.report.session,
        since=began or dispatch.created_at,
        number=pull.number if pull is not None and is_open else None,
        head=pull.head if pull is not None and is_open else "",
        times=times,
    )


def made_progress(record: Record) -> bool:
    """Whether something of a dispatch was accepted (X2): its request, or a push to an earlier one.

    What an attempt that it goes on with had pushed is not its own.
    """
    pull, resumed = record.pull, record.dispatch.resumed
    if pull is None or pull.state is PullState.NONE:
        return False
    is_as_found = resumed is not None and bool(resumed.head) and pull.head == resumed.head
    return not is_as_found or pull.state is PullState.MERGED


def watched_since(record: Record) -> datetime:
    """Return from when on a request of its branch is a dispatch's own (behaviour P6)."""
    dispatch = record.dispatch
    if dispatch.resumed is not None:
        return dispatch.resumed.since
    return record.launched_at or dispatch.created_at


def consequence_for(
    dispatch: Dispatch, what: Consequence | None, outcome: Outcome
) -> Consequence | None:
    """Return what an outcome means for the gap, where its attempt had gone on with another one.

    Nothing begins anew by itself what somebody wanted to be gone on with: such a gap is parked
    unless it was shipped.
    """
    is_settled = isinstance(what, Park) or outcome.kind is OutcomeKind.SHIPPED
    if dispatch.resumed is None or is_settled:
        return what
    return Park(f"{outcome.kind} ({outcome.reason or outcome.cause or Cause.UNKNOWN})")


def offer(gap_id: str, outcome: Outcome) -> str:
    """Return how a parked gap that has left its session may be gone on with, for its reason."""
    if outcome.cause is Cause.SESSION:
        return f"its session cannot be used; `retry {gap_id}` begins anew, the worktree is kept"
    return f"`retry {gap_id} --resume` goes on with it"


def resumption_brief(
    gap: Gap,
    workspace: Workspace,
    former: Record,
    complaints: Sequence[Complaint] = (),
    *,
    is_shipped: bool = False,
) -> str:
    """Return what an agent is told that goes on with its session; all else it has been told.

    With `is_shipped` the daemon ships what it commits.
    """
    pull, branch = former.pull, workspace.branch
    is_open = pull is not None and pull.state is PullState.OPEN
    sections = [
        f"You are still working on gap {gap.id}, in the worktree and on the branch that you began"
        f" it with, {branch}. Nobody watches this run and nobody can answer questions.",
        f"What has happened: {what_happened(former)}. The worktree is as it was left then; look at"
        " it before you go on, by git status and git log for instance.",
    ]
    if pull is not None and is_open:
        name = f"pull request {pull.number}" if pull.number else "its request"
        failing = ", ".join(on_one_line(one)[:200] for one in pull.failing)
        known = f" These checks have failed: {failing}." if failing else ""
        sections += [
            f"The branch is pushed, and {name} is open.{known}",
            *filter(None, (told(complaints), left_out(complaints))),
            "Put right what is wrong. "
            + (
                committing(branch)
                if is_shipped
                else "Commit it, and push it to the same branch"
                f" (git push origin HEAD:refs/heads/{branch}). Open no other pull request."
            ),
        ]
    elif is_shipped:
        sections.append(f"Finish what you were told to do at first. {committing(branch)}")
    else:
        sections.append("Finish what you were told to do at first, and ship it as you were told.")
    sections.append(ANSWER_OF_COMMITTER if is_shipped else _ANSWER)
    return "\n\n".join(sections) + "\n"


_ANSWER = (
    "Your only final answer is the number of the pull request, and nothing else. If you cannot"
    " finish, say why in one line and exit with a non-zero status."
)


def what_happened(former: Record) -> str:
    """Say how a session ended, for its agent."""
    ended, outcome = former.exit, former.outcome
    if outcome is not None and outcome.kind is OutcomeKind.CI_FAILED:
        return on_one_line(outcome.reason)[:REASON_LIMIT] or "its checks failed"
    match ended.stopped_by if ended is not None else "":
        case StopReason.DEADLINE:
            return "you were stopped at the deadline, before there was a pull request"
        case StopReason.PULL_OVERTIME:
            return "you were stopped, as your pull request had been open for long enough"
        case StopReason.OPERATOR:
            return "an operator stopped you"
        case StopReason.TEARDOWN:
            return "you were stopped together with the orchestrator"
        case StopReason.HOST:
            return "you were stopped together with the machine"
        case _:
            pass
    if ended is not None and ended.lost:
        return "you were cut off; nothing is known of how"
    reason = on_one_line(outcome.reason)[:REASON_LIMIT] if outcome is not None else ""
    return f"your last run ended ({reason})" if reason else "your last run ended"
