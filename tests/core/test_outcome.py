"""What to do about a dispatch, given what can be seen of it (behaviour P2 to P5, O1)."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from chump_orchestrator.core.causes import Cause
from chump_orchestrator.core.dispatch import Deadlines
from chump_orchestrator.core.outcome import (
    EXTENSION_LEAD,
    STOPPED_BY_OPERATOR,
    Checks,
    Exit,
    Observation,
    Outcome,
    OutcomeKind,
    PullRequest,
    PullState,
    Settle,
    Stop,
    StopReason,
    Verdict,
    Wait,
    judge,
)
from tests.builders import a_pull

S = timedelta(seconds=1)
M = timedelta(minutes=1)
H = timedelta(hours=1)
ZERO = timedelta(0)

HOUR = Deadlines(soft=60 * M)
"""Overdue at 60 minutes, stopped at 120, or at 180 if the forge is silent."""

NONE = a_pull(PullState.NONE)
OPEN = a_pull(PullState.OPEN)
FAILING = a_pull(PullState.OPEN, checks=Checks.FAILING)
MERGED = a_pull(PullState.MERGED)
CLOSED = a_pull(PullState.CLOSED)


UNCLOSED = "the forge gave no answer for 1 day, 0:00:00 after its pull request was closed"


def settled(kind: OutcomeKind, reason: str, cause: Cause | None = None) -> Settle:
    return Settle(Outcome(kind, reason, cause))


@pytest.mark.parametrize(
    ("active", "pull", "looked", "verdict"),
    [
        (ZERO, None, None, Wait(recheck=60 * M)),
        (59 * M, NONE, ZERO, Wait(recheck=1 * M)),
        (60 * M, NONE, ZERO, Wait(overdue=True, recheck=60 * M - 20 * S)),
        (119 * M, NONE, ZERO, Wait(overdue=True, recheck=40 * S)),
        (120 * M - 20 * S, NONE, ZERO, Wait(overdue=True, recheck=20 * S, hard=180 * M)),
        (120 * M - 1 * S, None, None, Wait(overdue=True, recheck=1 * S, hard=180 * M)),
        (120 * M, NONE, ZERO, Stop(StopReason.DEADLINE)),
        (121 * M, NONE, 60 * S, Stop(StopReason.DEADLINE)),
        (121 * M, CLOSED, 60 * S, Stop(StopReason.DEADLINE)),
        (121 * M, NONE, 61 * S, Wait(overdue=True, recheck=59 * M, hard=180 * M, look=True)),
        (121 * M, CLOSED, 61 * S, Wait(overdue=True, recheck=59 * M, hard=180 * M, look=True)),
        (121 * M, None, None, Wait(overdue=True, recheck=59 * M, hard=180 * M, look=True)),
        (180 * M - 1 * S, None, None, Wait(overdue=True, recheck=S, hard=180 * M, look=True)),
        (180 * M, None, None, Stop(StopReason.DEADLINE)),
        (180 * M, NONE, 2 * H, Stop(StopReason.DEADLINE)),
    ],
)
def test_the_ladder_while_no_request_is_known(
    active: timedelta, pull: PullRequest | None, looked: timedelta | None, verdict: Verdict
) -> None:
    """Behaviour P2, P3: overdue at one, stopped at two soft deadlines, three without an answer."""
    assert judge(Observation(active, pull=pull, looked=looked), HOUR) == verdict


def test_a_short_deadline_is_extended_a_quarter_of_it_before_its_end() -> None:
    """Behaviour P3: the shim is told of the last deadline before it stops at the hard one."""
    short = Deadlines(soft=4 * S)

    assert judge(Observation(6.9 * S), short) == Wait(overdue=True, recheck=0.1 * S)
    assert judge(Observation(7 * S), short) == Wait(overdue=True, recheck=1 * S, hard=12 * S)


@pytest.mark.parametrize("pull", [OPEN, FAILING, MERGED])
@pytest.mark.parametrize(
    ("active", "opened", "verdict"),
    [
        (5 * M, 5 * M, Wait(recheck=115 * M, hard=120 * M)),
        (61 * M, 5 * M, Wait(recheck=59 * M, hard=120 * M)),
        (100 * M, 90 * M, Wait(recheck=50 * M, hard=150 * M)),
        (125 * M, 5 * M, Stop(StopReason.PULL_OVERTIME)),
        (149 * M, 90 * M, Wait(recheck=1 * M, hard=150 * M)),
        (150 * M, 90 * M, Stop(StopReason.PULL_OVERTIME)),
        (181 * M, 179 * M, Wait(recheck=58 * M, hard=239 * M)),
    ],
)
def test_the_ladder_rests_while_there_is_a_request(
    pull: PullRequest, active: timedelta, opened: timedelta, verdict: Verdict
) -> None:
    """Behaviour P4: the agent may run on for one soft deadline more; never shorter than without."""
    for looked in (ZERO, 90 * M):
        seen = Observation(active, pull=pull, looked=looked, pull_seen_active=opened)

        assert judge(seen, HOUR) == verdict


@pytest.mark.parametrize("pull", [None, NONE, OPEN, MERGED, CLOSED])
@pytest.mark.parametrize("reason", [StopReason.OPERATOR, StopReason.TEARDOWN])
def test_a_stop_that_was_asked_for_comes_first(
    pull: PullRequest | None, reason: StopReason
) -> None:
    assert judge(Observation(1 * M, pull=pull, stop_asked=reason), HOUR) == Stop(reason)


CODE_7 = Exit(code=7)
CODE_0 = Exit(code=0)
AT_LIMIT = "killed at its limit of 96 MiB of memory"
UNANSWERED = "the forge gave no answer for 1 day, 0:00:00 after the agent had ended"


def after(
    ended: Exit,
    since: timedelta,
    pull: PullRequest | None,
    looked: timedelta | None,
    quiet: tuple[int, timedelta] = (0, ZERO),
) -> Observation:
    return Observation(
        10 * M + 0.5 * S,
        ended,
        since,
        pull,
        looked,
        pull_opened=5 * M,
        quiet_looks=quiet[0],
        quiet_span=quiet[1],
    )


@pytest.mark.parametrize(
    ("ended", "verdict"),
    [
        (CODE_7, settled(OutcomeKind.KILLED, "exit code 7", Cause.EXIT_CODE)),
        (Exit(signal=9), settled(OutcomeKind.KILLED, "signal 9", Cause.EXIT_CODE)),
        (
            Exit(signal=15, stopped_by="deadline"),
            settled(
                OutcomeKind.KILLED,
                "no pull request after 0:10:00, stopped at the deadline",
                Cause.DEADLINE,
            ),
        ),
        (
            Exit(code=0, stopped_by="pull-overtime"),
            settled(
                OutcomeKind.KILLED,
                "no pull request after 0:10:00, stopped at the deadline",
                Cause.DEADLINE,
            ),
        ),
        (
            Exit(signal=2, stopped_by="operator"),
            settled(OutcomeKind.CANCELLED, STOPPED_BY_OPERATOR),
        ),
        (
            Exit(code=0, stopped_by="teardown"),
            settled(OutcomeKind.CANCELLED, "stopped with the orchestrator"),
        ),
        (
            Exit(signal=15, stopped_by="host"),
            settled(OutcomeKind.CANCELLED, "stopped with the host"),
        ),
        (
            Exit(lost="its shim was killed"),
            settled(OutcomeKind.LOST, "its shim was killed", Cause.LOST),
        ),
        *(
            (ended, settled(OutcomeKind.KILLED, AT_LIMIT, Cause.OUT_OF_MEMORY))
            for ended in (
                Exit(signal=9, out_of_memory=AT_LIMIT),
                Exit(code=1, out_of_memory=AT_LIMIT),
                Exit(lost="its shim was killed", out_of_memory=AT_LIMIT),
            )
        ),
        (
            Exit(signal=9, stopped_by="operator", out_of_memory=AT_LIMIT),
            settled(OutcomeKind.CANCELLED, STOPPED_BY_OPERATOR),
        ),
    ],
)
def test_without_a_request_the_exit_decides_by_a_look_made_after_it(
    ended: Exit, verdict: Verdict
) -> None:
    """Behaviour P4, O1."""
    assert judge(after(ended, 1 * M, NONE, 1 * M), HOUR) == verdict
    for pull, looked in ((NONE, 1 * M + S), (CLOSED, 2 * M), (None, None)):
        waits = Wait(recheck=24 * H - 1 * M, look=True)
        assert judge(after(ended, 1 * M, pull, looked), HOUR) == waits


@pytest.mark.parametrize(
    "ended",
    [
        CODE_0,
        CODE_7,
        Exit(signal=9),
        Exit(lost="gone"),
        *(Exit(code=1, stopped_by=reason) for reason in StopReason),
    ],
)
class TestWhateverTheExit:
    """Behaviour P3, P4: what holds for every way in which an agent can end."""

    @pytest.mark.parametrize("looked", [ZERO, 99 * H])
    def test_a_merged_request_has_shipped(self, ended: Exit, looked: timedelta) -> None:
        assert judge(after(ended, 1 * M, MERGED, looked), HOUR) == settled(
            OutcomeKind.SHIPPED, "pull request 412 merged"
        )

    def test_a_closed_request_has_failed(self, ended: Exit) -> None:
        assert judge(after(ended, 1 * M, CLOSED, 1 * M), HOUR) == settled(
            OutcomeKind.CI_FAILED, "pull request 412 closed without a merge"
        )

    @pytest.mark.parametrize("looked", [ZERO, 30 * M])
    def test_an_open_request_is_waited_for(self, ended: Exit, looked: timedelta) -> None:
        assert judge(after(ended, 1 * M, OPEN, looked), HOUR) == Wait(recheck=24 * H - 5 * M)

    @pytest.mark.parametrize(("pull", "looked"), [(None, None), (NONE, 25 * H), (CLOSED, 25 * H)])
    def test_a_forge_that_stays_silent_is_given_up(
        self, ended: Exit, pull: PullRequest | None, looked: timedelta | None
    ) -> None:
        nearly = after(ended, 24 * H - S, pull, looked)

        assert judge(nearly, HOUR) == Wait(recheck=S, look=True)
        assert judge(replace(nearly, since_exit=24 * H), HOUR) == settled(
            OutcomeKind.STALLED, UNANSWERED, Cause.NETWORK
        )

    def test_a_forge_that_nobody_asked_was_not_silent(self, ended: Exit) -> None:
        seen = replace(after(ended, 48 * H, None, None), watched=1 * H)

        assert judge(seen, HOUR) == Wait(recheck=23 * H, look=True)


NO_PULL = settled(
    OutcomeKind.STALLED, "the agent ended with exit code 0 and left no pull request", Cause.NO_PULL
)


@pytest.mark.parametrize(
    ("since", "looked", "quiet", "verdict"),
    [
        (10 * S, 11 * S, (0, ZERO), Wait(recheck=24 * H - 10 * S, look=True)),
        (10 * S, 4 * S, (1, ZERO), Wait(recheck=26 * S)),
        (33 * S, 30 * S, (1, ZERO), Wait(recheck=24 * H - 33 * S, look=True)),
        (33 * S, ZERO, (2, 29 * S), Wait(recheck=1 * S)),
        (40 * S, 6 * S, (2, 29 * S), Wait(recheck=24 * H - 40 * S, look=True)),
        (33 * S, ZERO, (2, 30 * S), NO_PULL),
        (3 * H, 1 * H, (9, 1 * H), NO_PULL),
        (24 * H, 23 * H, (1, ZERO), settled(OutcomeKind.STALLED, UNANSWERED, Cause.NETWORK)),
    ],
)
def test_exit_0_without_a_request_takes_two_looks_some_time_apart(
    since: timedelta, looked: timedelta, quiet: tuple[int, timedelta], verdict: Verdict
) -> None:
    """Behaviour P4."""
    assert judge(after(CODE_0, since, NONE, looked, quiet), HOUR) == verdict


def test_the_second_look_comes_after_a_shorter_interval_of_looking() -> None:
    """Behaviour P4: `min(30 s, pulls.interval)`."""
    often = replace(HOUR, look_interval=2 * S)

    assert judge(after(CODE_0, 9 * S, NONE, ZERO, (2, 2 * S)), often) == NO_PULL
    assert judge(after(CODE_0, 9 * S, NONE, 1 * S, (1, ZERO)), often) == Wait(recheck=1 * S)


@pytest.mark.parametrize(
    ("pull", "opened", "failed", "looked", "verdict"),
    [
        (OPEN, 1 * H, None, ZERO, Wait(recheck=23 * H)),
        (FAILING, 1 * H, 10 * M, ZERO, Wait(recheck=20 * M)),
        (FAILING, 24 * H - S, 10 * M, ZERO, Wait(recheck=1 * S)),
        (
            FAILING,
            1 * H,
            30 * M,
            ZERO,
            settled(OutcomeKind.CI_FAILED, "pull request 412 has had failing checks for 0:30:00"),
        ),
        (FAILING, 1 * H, 31 * M, 2 * M, Wait(recheck=23 * H, look=True)),
        (FAILING, 1 * H, 30 * M, 1 * S, Wait(recheck=23 * H, look=True)),
        (OPEN, 1 * H, 31 * M, ZERO, Wait(recheck=23 * H)),
        (
            OPEN,
            25 * H,
            None,
            1 * H,
            settled(
                OutcomeKind.STALLED, "pull request 412 open for 1 day, 0:00:00 without a merge"
            ),
        ),
        (
            OPEN,
            24 * H,
            None,
            ZERO,
            settled(
                OutcomeKind.STALLED, "pull request 412 open for 1 day, 0:00:00 without a merge"
            ),
        ),
        (OPEN, 25 * H, None, 1 * H + S, Wait(recheck=23 * H, look=True)),
        (
            FAILING,
            25 * H,
            2 * H,
            ZERO,
            settled(OutcomeKind.CI_FAILED, "pull request 412 has had failing checks for 0:30:00"),
        ),
        (
            OPEN,
            48 * H,
            None,
            30 * H,
            settled(
                OutcomeKind.STALLED,
                "the forge gave no answer for 1 day, 0:00:00 after its pull request was to be"
                " merged",
                Cause.NETWORK,
            ),
        ),
    ],
)
def test_an_open_request_is_waited_for_so_long_and_no_longer(
    pull: PullRequest,
    opened: timedelta,
    failed: timedelta | None,
    looked: timedelta,
    verdict: Verdict,
) -> None:
    """Behaviour P5, and P3: by an answer to a question of after that time."""
    seen = Observation(
        10 * M, CODE_0, 50 * H, pull, looked, pull_opened=opened, checks_failed=failed
    )

    assert judge(seen, HOUR) == verdict


def test_an_agent_that_never_ran_has_failed_to_spawn_whatever_the_forge_says() -> None:
    """Behaviour A4, D2."""
    for pull in (None, NONE, OPEN, CLOSED):
        assert judge(after(Exit(spawn_error="no such file"), ZERO, pull, None), HOUR) == settled(
            OutcomeKind.SPAWN_FAILED, "no such file", Cause.SPAWN
        )


@pytest.mark.parametrize(
    ("since", "looked", "verdict"),
    [
        (ZERO, ZERO, Wait(recheck=30 * S)),
        (20 * S, 20 * S, Wait(recheck=10 * S)),
        (20 * S, ZERO, Wait(recheck=10 * S)),
        (30 * S, 30 * S, Wait(recheck=24 * H - 30 * S, look=True)),
        (31 * S, 2 * S, Wait(recheck=24 * H - 31 * S, look=True)),
        (31 * S, S, settled(OutcomeKind.CI_FAILED, "pull request 412 closed without a merge")),
        (9 * M, ZERO, settled(OutcomeKind.CI_FAILED, "pull request 412 closed without a merge")),
        (24 * H, 24 * H, settled(OutcomeKind.STALLED, UNCLOSED, Cause.NETWORK)),
    ],
)
def test_a_closed_request_is_given_up_when_it_stays_so_from_one_look_to_another(
    since: timedelta, looked: timedelta, verdict: Verdict
) -> None:
    """Behaviour P4: people close a request and open it at once, to have its checks run again."""
    seen = Observation(10 * M, CODE_0, 25 * H, CLOSED, looked, pull_opened=since)

    assert judge(seen, HOUR) == verdict


def test_failing_checks_of_before_the_agent_s_end_are_looked_at_once_more() -> None:
    """Behaviour P5, P10: what was pushed last is another head, whose checks begin anew."""
    stale = Observation(10 * M, CODE_0, 5 * S, FAILING, 20 * S, 8 * H, checks_failed=40 * M)
    verdict = judge(stale, HOUR)

    assert isinstance(verdict, Wait)
    assert verdict.look
    assert isinstance(judge(replace(stale, looked=ZERO), HOUR), Settle)


def test_failing_checks_are_named_in_the_reason() -> None:
    """Behaviour P5."""
    many = tuple(f"shard {n}" for n in range(12))
    for failing, named in ((("build", "ci/old"), "build, ci/old"), (many, "shard 9 and 2 more")):
        red = replace(FAILING, failing=failing)
        seen = Observation(10 * M, CODE_0, 9 * H, red, ZERO, 8 * H, checks_failed=30 * M)
        verdict = judge(seen, HOUR)

        assert isinstance(verdict, Settle)
        assert verdict.outcome.reason.startswith(
            "pull request 412 has had failing checks for 0:30:00: "
        )
        assert verdict.outcome.reason.endswith(named)


def test_a_request_without_a_number_is_called_by_its_branch() -> None:
    """Behaviour P7: the provider `git` has no numbers."""
    merged = a_pull(PullState.MERGED, number=None)

    assert judge(after(CODE_0, ZERO, merged, ZERO), HOUR) == settled(
        OutcomeKind.SHIPPED, "branch claude/infra-1 merged"
    )


@pytest.mark.parametrize(
    ("kind", "outcome_class"),
    [
        ("shipped", "success"),
        ("ci_failed", "failure"),
        ("stalled", "failure"),
        ("killed", "failure"),
        ("race_abandoned", "success"),
        ("spawn_failed", "failure"),
        ("lost", "failure"),
        ("cancelled", "cancelled"),
    ],
)
def test_every_outcome_has_its_class(kind: str, outcome_class: str) -> None:
    """Behaviour O1."""
    assert OutcomeKind(kind).outcome_class == outcome_class
    assert Outcome(OutcomeKind(kind)).is_failure is (outcome_class == "failure")


def test_there_are_no_other_outcomes() -> None:
    """Behaviour O1."""
    assert len(OutcomeKind) == 8


SPANS = st.integers(0, 30 * 3600).map(lambda s: timedelta(seconds=s)) | st.sampled_from(
    [ZERO, 20 * M, 40 * M, 60 * M, 80 * M, 24 * H]
)
SHORT = st.sampled_from([ZERO, 1 * S, 29 * S, 30 * S, 31 * S, 5 * M, 40 * M])
EXITS = st.builds(
    Exit,
    code=st.sampled_from([0, 1, 7]),
    stopped_by=st.sampled_from(["", "", *StopReason]),
    lost=st.sampled_from(["", "", "", "gone"]),
    spawn_error=st.sampled_from(["", "", "", "", "no such file"]),
)
DEADLINES = st.builds(
    Deadlines,
    soft=st.sampled_from([2 * S, 20 * M, 60 * M]),
    pull=st.sampled_from([30 * M, 24 * H]),
    ci_grace=st.sampled_from([1 * M, 30 * M]),
    look_interval=st.sampled_from([1 * S, 30 * S]),
)


@st.composite
def observations(draw: st.DrawFn) -> Observation:
    """Draw what can be seen at one moment, without contradictions."""
    pull = draw(st.sampled_from([None, NONE, OPEN, FAILING, MERGED, CLOSED]))
    active = draw(SPANS)
    known = pull is not None and pull.state is not PullState.NONE
    ended = draw(st.none() | EXITS)
    since_exit = ZERO if ended is None else draw(SHORT | SPANS)
    looked = None if pull is None else draw(SHORT | SPANS)
    quiet = pull is NONE and ended is not None and looked is not None and looked <= since_exit
    looks = draw(st.integers(1, 3)) if quiet else 0
    span = ZERO
    if looks > 1 and looked is not None:
        span = min(draw(SHORT), since_exit - looked)
    return Observation(
        active=active,
        exit=ended,
        since_exit=since_exit,
        pull=pull,
        looked=looked,
        pull_opened=draw(SPANS) if known else ZERO,
        pull_seen_active=min(draw(SPANS), active) if known else ZERO,
        checks_failed=draw(SPANS) if pull is FAILING else None,
        quiet_looks=looks,
        quiet_span=span,
        stop_asked=draw(st.none() | st.none() | st.sampled_from(StopReason)),
        watched=draw(st.none() | SPANS),
    )


def later(seen: Observation, by: timedelta) -> Observation:
    """The same when nothing but time has passed."""
    running = seen.exit is None
    return replace(
        seen,
        active=seen.active + by if running else seen.active,
        since_exit=ZERO if running else seen.since_exit + by,
        looked=None if seen.looked is None else seen.looked + by,
        pull_opened=seen.pull_opened + by,
        checks_failed=None if seen.checks_failed is None else seen.checks_failed + by,
        watched=None if seen.watched is None else seen.watched + by,
    )


@given(observations(), DEADLINES)
def test_nobody_is_stopped_before_two_soft_deadlines_but_by_somebody(
    seen: Observation, deadlines: Deadlines
) -> None:
    """Behaviour P2."""
    verdict = judge(seen, deadlines)

    if isinstance(verdict, Stop) and verdict.reason is not seen.stop_asked:
        assert seen.active >= 2 * deadlines.soft


@given(observations(), DEADLINES)
def test_nobody_runs_longer_than_the_request_gives_time_for(
    seen: Observation, deadlines: Deadlines
) -> None:
    """Behaviour P3, P4: three soft deadlines, or one more than when the request was seen."""
    assume(seen.exit is None)
    end = max(deadlines.last, seen.pull_seen_active + deadlines.soft)

    assert isinstance(judge(replace(seen, active=max(seen.active, end)), deadlines), Stop)


@given(observations(), DEADLINES)
def test_while_an_agent_runs_nothing_is_settled_and_afterwards_nobody_is_stopped(
    seen: Observation, deadlines: Deadlines
) -> None:
    """Promise I3: a settled dispatch has no living agent."""
    assert isinstance(judge(seen, deadlines), Settle if seen.exit is None else Stop) is False


@given(observations(), DEADLINES)
def test_a_merged_request_always_ends_shipped_once_the_agent_is_gone(
    seen: Observation, deadlines: Deadlines
) -> None:
    """Behaviour P4."""
    assume(seen.exit is not None and not seen.exit.spawn_error)
    merged = replace(seen, pull=MERGED)

    assert judge(merged, deadlines) == settled(OutcomeKind.SHIPPED, "pull request 412 merged")


def test_what_we_stopped_ourselves_is_not_lost() -> None:
    """Its files may have gone; who stopped it is known all the same."""
    gone = Exit(lost="the files of the dispatch have gone", clean=False)
    stopped = replace(gone, stopped_by=str(StopReason.TEARDOWN))

    assert judge(after(gone, ZERO, NONE, ZERO), HOUR) == settled(
        OutcomeKind.LOST, gone.lost, Cause.LOST
    )
    assert judge(after(stopped, ZERO, NONE, ZERO), HOUR) == settled(
        OutcomeKind.CANCELLED, "stopped with the orchestrator"
    )


@given(observations(), DEADLINES)
def test_only_a_merged_request_is_shipped(seen: Observation, deadlines: Deadlines) -> None:
    """Behaviour P4: success is evidence, never an exit code."""
    verdict = judge(seen, deadlines)

    if isinstance(verdict, Settle) and verdict.outcome.kind is OutcomeKind.SHIPPED:
        assert seen.pull is MERGED


@given(observations(), DEADLINES)
def test_that_there_is_no_request_takes_a_look_made_after_the_exit(
    seen: Observation, deadlines: Deadlines
) -> None:
    """Behaviour P3, P4."""
    verdict = judge(seen, deadlines)

    if not isinstance(verdict, Settle) or seen.exit is None or seen.exit.spawn_error:
        return
    if verdict.outcome.kind in (OutcomeKind.KILLED, OutcomeKind.CANCELLED, OutcomeKind.LOST):
        assert seen.pull is NONE
        assert seen.looked is not None
        assert seen.looked <= seen.since_exit
    if verdict.outcome.cause is Cause.NO_PULL:
        assert seen.exit.code == 0
        assert seen.quiet_looks >= 2
        assert seen.quiet_span >= min(30 * S, deadlines.look_interval)
    if verdict.outcome.kind is OutcomeKind.CI_FAILED and seen.pull is CLOSED:
        assert seen.looked is not None
        assert seen.looked <= seen.since_exit


@given(observations(), DEADLINES)
def test_the_network_is_blamed_only_after_waiting_for_it(
    seen: Observation, deadlines: Deadlines
) -> None:
    """Behaviour P3."""
    verdict = judge(seen, deadlines)

    if isinstance(verdict, Settle) and verdict.outcome.cause is Cause.NETWORK:
        assert max(seen.since_exit, seen.pull_opened - deadlines.pull) >= deadlines.pull
        assert seen.watched is None or seen.watched >= deadlines.pull


@given(observations(), DEADLINES, SHORT | SPANS)
def test_a_verdict_is_not_taken_back_as_time_passes(
    seen: Observation, deadlines: Deadlines, by: timedelta
) -> None:
    """Behaviour P2 to P5: waiting, then stopping or settling, and that for the same reason."""
    before = judge(seen, deadlines)
    afterwards = judge(later(seen, by), deadlines)

    match before:
        case Wait(overdue=True):
            assert not isinstance(afterwards, Wait) or afterwards.overdue
        case Stop():
            assert afterwards == before
        case Settle(outcome):
            assert isinstance(afterwards, Settle)
            assert (afterwards.outcome.kind, afterwards.outcome.cause) == (
                outcome.kind,
                outcome.cause,
            )
        case _:
            pass


@given(observations(), DEADLINES)
def test_who_rechecks_when_told_comes_to_an_end_and_does_not_spin(
    seen: Observation, deadlines: Deadlines
) -> None:
    """Behaviour P3, P5: even when the forge never answers again."""
    rechecks = 0
    while isinstance(verdict := judge(seen, deadlines), Wait):
        assert verdict.recheck is not None
        assert verdict.recheck > ZERO
        seen = later(seen, verdict.recheck)
        rechecks += 1

        assert rechecks <= 6


@given(observations(), DEADLINES)
def test_the_shim_is_never_told_to_stop_an_agent_that_may_run_on(
    seen: Observation, deadlines: Deadlines
) -> None:
    """Behaviour P3, P4: the shim's deadline lies ahead, and not before two soft ones."""
    verdict = judge(seen, deadlines)

    if isinstance(verdict, Wait) and verdict.hard is not None:
        assert verdict.hard > seen.active
        assert verdict.hard >= deadlines.hard


@given(DEADLINES)
def test_the_shim_has_been_told_of_a_silent_forge_before_its_first_deadline(
    deadlines: Deadlines,
) -> None:
    """Behaviour P3: following the rechecks, the extension comes before two soft deadlines."""
    active = ZERO
    told = deadlines.hard
    while active < deadlines.hard:
        verdict = judge(Observation(active), deadlines)
        assert isinstance(verdict, Wait)
        assert verdict.recheck is not None
        told = verdict.hard or told
        active += verdict.recheck

    assert told == deadlines.last
    assert timedelta(0) < EXTENSION_LEAD <= 20 * S


def test_an_agent_that_ended_well_is_not_judged_by_what_was_killed_in_it() -> None:
    """A compiler, say, that it did without."""
    ended = Exit(code=0, out_of_memory=AT_LIMIT)

    assert judge(after(ended, 1 * M, NONE, 1 * S, (2, 30 * S)), HOUR) == settled(
        OutcomeKind.STALLED,
        "the agent ended with exit code 0 and left no pull request",
        Cause.NO_PULL,
    )
