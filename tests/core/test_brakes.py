"""When not to try again (behaviour X1, X2, X5)."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chump_orchestrator.core.brakes import (
    MAY_PASS,
    Consequence,
    Free,
    Fuse,
    History,
    Park,
    Retry,
    RetryPolicy,
    consequence,
    fingerprint,
)
from chump_orchestrator.core.causes import Cause
from chump_orchestrator.core.gap import Effort, Priority
from chump_orchestrator.core.outcome import STOPPED_BY_OPERATOR, Outcome, OutcomeKind
from tests.builders import NOW, a_gap

S = timedelta(seconds=1)
M = timedelta(minutes=1)
H = timedelta(hours=1)
PATIENT = RetryPolicy(max_attempts=99, sessions=99)


def killed(cause: Cause | None) -> Outcome:
    return Outcome(OutcomeKind.KILLED, "exit code 7", cause)


def decide(
    outcome: Outcome,
    failures: int = 1,
    refusals: int = 0,
    sessions: int = 1,
    policy: RetryPolicy | None = None,
    jitter: float = 0.0,
    *,
    clean: bool = True,
    lease_ends_in: timedelta | None = None,
) -> Consequence:
    return consequence(
        outcome,
        History(failures, refusals, sessions),
        policy or RetryPolicy(),
        jitter,
        clean=clean,
        lease_ends_in=lease_ends_in,
    )


@pytest.mark.parametrize("cause", sorted(MAY_PASS))
def test_causes_that_may_pass_are_tried_again_once(cause: Cause) -> None:
    """Behaviour X1: `retry.max_attempts` is 2."""
    assert decide(killed(cause)) == Retry(10 * S, "killed (exit code 7); attempt 2 follows")
    assert decide(killed(cause), failures=2) == Park("killed (exit code 7); attempt 2 of 2 failed")


def test_these_causes_may_pass() -> None:
    """Behaviour X1."""
    assert {str(cause) for cause in MAY_PASS} == {
        "network",
        "rate-limited",
        "out-of-memory",
        "exit-code",
        "spawn",
        "lost",
    }


@pytest.mark.parametrize("cause", sorted(set(Cause) - MAY_PASS - {Cause.USAGE_LIMIT}))
def test_other_causes_wait_for_a_person(cause: Cause) -> None:
    """Behaviour X1: never for `deadline` or `no-pr`; a failed gap is parked, not free."""
    assert decide(killed(cause), policy=PATIENT) == Park(
        f"killed (exit code 7); cause {cause} is not tried again by itself"
    )


@pytest.mark.parametrize("kind", [OutcomeKind.KILLED, OutcomeKind.STALLED])
def test_a_limit_of_the_account_is_no_failure_of_the_gap(kind: OutcomeKind) -> None:
    """Behaviour X4; but X2 counts its sessions."""
    outcome = Outcome(kind, "exit code 1", Cause.USAGE_LIMIT)

    assert decide(outcome, failures=99, sessions=2) == Free()
    assert decide(outcome, failures=0, sessions=3) == Park(
        f"{kind} (exit code 1); the account met its limit; 3 sessions without accepted progress"
    )
    assert isinstance(decide(outcome, clean=False), Park)


def test_a_failure_without_a_cause_waits_for_a_person() -> None:
    """Behaviour X1."""
    assert decide(Outcome(OutcomeKind.STALLED)) == Park(
        "stalled (unknown); cause unknown is not tried again by itself"
    )


@pytest.mark.parametrize("cause", [None, *Cause])
def test_failed_checks_are_never_tried_again(cause: Cause | None) -> None:
    """Behaviour X1."""
    outcome = Outcome(OutcomeKind.CI_FAILED, "checks", cause)

    assert isinstance(decide(outcome, policy=PATIENT), Park)


@pytest.mark.parametrize(
    ("failures", "jitter", "wait"),
    [
        (0, 0.0, 10 * S),
        (1, 0.0, 10 * S),
        (1, 1.0, 12 * S),
        (2, 0.0, 20 * S),
        (3, 0.5, 44 * S),
        (5, 0.0, 160 * S),
        (6, 0.0, 300 * S),
        (6, 1.0, 300 * S),
        (98, 0.0, 300 * S),
    ],
)
def test_the_backoff_doubles_up_to_its_cap(failures: int, jitter: float, wait: timedelta) -> None:
    """Behaviour X1: 10 s, doubled each time, up to 5 min, with jitter."""
    found = decide(killed(Cause.NETWORK), failures, policy=PATIENT, jitter=jitter)

    assert isinstance(found, Retry)
    assert found.after == wait


@given(
    st.integers(0, 98),
    st.floats(0, 1),
    st.timedeltas(S, timedelta(days=3650)),
    st.timedeltas(S, timedelta(days=3650)),
)
def test_a_backoff_is_never_longer_than_its_cap(
    failures: int, jitter: float, base: timedelta, cap: timedelta
) -> None:
    """Behaviour X1: whatever the settings, nothing overflows."""
    policy = replace(PATIENT, base=base, cap=cap)

    found = decide(killed(Cause.NETWORK), failures, policy=policy, jitter=jitter)

    assert isinstance(found, Retry)
    assert min(base, cap) <= found.after <= cap


@pytest.mark.parametrize(
    "kind", sorted(set(OutcomeKind) - {OutcomeKind.SHIPPED, OutcomeKind.RACE_ABANDONED})
)
def test_what_may_still_live_is_not_joined_by_another(kind: OutcomeKind) -> None:
    """Behaviour X1, promise I1: tried again only where it is proved that nothing lives."""
    outcome = Outcome(kind, "it is gone", Cause.LOST)

    assert decide(outcome, clean=False) == Park(
        f"{kind} (it is gone); it could not be proved that nothing of the agent lives"
    )


@pytest.mark.parametrize(
    ("refusals", "ends_in", "wait"),
    [
        (1, None, 5 * M),
        (2, None, 10 * M),
        (3, None, 20 * M),
        (99, None, 4 * H),
        (1, 37 * M, 37 * M),
        (3, 1 * S, 1 * S),
        (1, timedelta(0), 5 * M),
        (2, -1 * M, 10 * M),
    ],
)
def test_a_refused_lease_is_asked_for_again_when_it_ends(
    refusals: int, ends_in: timedelta | None, wait: timedelta
) -> None:
    """Behaviour X1: not before it expires, or 5 min, doubling."""
    outcome = Outcome(OutcomeKind.RACE_ABANDONED, "held by somebody")

    found = decide(outcome, 99, refusals, 99, lease_ends_in=ends_in)

    assert found == Retry(wait, "lease refused: held by somebody")


def test_what_was_shipped_is_free() -> None:
    assert decide(Outcome(OutcomeKind.SHIPPED), 9, 9, 9, clean=False) == Free()


def test_what_an_operator_stopped_stays_stopped() -> None:
    assert decide(Outcome(OutcomeKind.CANCELLED, STOPPED_BY_OPERATOR)) == Park(
        "stopped by an operator"
    )


def test_what_was_stopped_with_us_is_free_however_often() -> None:
    """Behaviour X2: the end of the daemon is no judgement about the gap."""
    outcome = Outcome(OutcomeKind.CANCELLED, "stopped with the orchestrator")

    assert decide(outcome, sessions=99) == Free()


@pytest.mark.parametrize(("sessions", "parked"), [(2, False), (3, True), (4, True)])
def test_sessions_without_progress_park_a_gap(sessions: int, parked: bool) -> None:
    """Behaviour X2: `brake.sessions` is 3."""
    found = decide(killed(Cause.NETWORK), sessions=sessions, policy=RetryPolicy(max_attempts=9))

    assert isinstance(found, Park) is parked
    if parked:
        assert found == Park(f"killed (exit code 7); {sessions} sessions without accepted progress")


@pytest.mark.parametrize(
    "fields",
    [
        {"title": "another"},
        {"description": "more"},
        {"acceptance": ("a",)},
        {"acceptance": ("a b",)},
        {"acceptance": ("a", "b")},
        {"depends_on": ("A-1",)},
        {"depends_on": ("A-1", "B-1")},
    ],
)
def test_a_parked_gap_is_freed_when_what_it_asks_for_changes(fields: dict[str, object]) -> None:
    """Behaviour X2: title, description, acceptance criteria, dependencies."""
    variants = [a_gap(), replace(a_gap(), **fields)]  # type: ignore[arg-type]

    assert len({fingerprint(gap) for gap in variants}) == 2


def test_it_is_freed_by_nothing_else() -> None:
    """Behaviour X2."""
    other = replace(
        a_gap(),
        priority=Priority.P0,
        effort=Effort.XL,
        status="perpetual",
        paths=("x",),
        order=9,
        auto_dispatch_ok=True,
        deadline=H,
        declared_domain="y",
    )

    assert fingerprint(other) == fingerprint(a_gap())


def test_texts_that_move_from_field_to_field_are_a_change() -> None:
    """Behaviour X2."""
    variants = [
        a_gap(title="a", description="b"),
        a_gap(title="b", description="a"),
        a_gap(title="ab"),
        a_gap(title="", description="a", acceptance=("b",)),
        a_gap(title="", description="a", depends_on=("b",)),
        a_gap(title="a", acceptance=("b",)),
    ]

    assert len({fingerprint(gap) for gap in variants}) == len(variants)


def test_x4_limits_in_a_row_do_not_pause_dispatching() -> None:
    fuse = Fuse()
    for number in range(6):
        fuse = fuse.ended(f"d{number}", killed(Cause.USAGE_LIMIT), NOW)

    assert fuse == Fuse()


def test_x4_a_trial_that_meets_a_limit_proves_nothing() -> None:
    before = blown().started("trial")

    after = before.ended("trial", killed(Cause.USAGE_LIMIT), NOW)

    assert after == replace(before, trial="")


def blown(cause: Cause = Cause.AUTH) -> Fuse:
    fuse = Fuse()
    for number in range(5):
        fuse = fuse.ended(f"d{number}", killed(cause), NOW)
    return fuse


def test_five_failures_of_one_cause_within_an_hour_blow_the_fuse() -> None:
    """Behaviour X5."""
    fuse = Fuse()
    for number in range(4):
        fuse = fuse.ended(f"d{number}", killed(Cause.AUTH), NOW + number * 15 * M)
        assert fuse.allows(NOW + H, 3) == 3

    fuse = fuse.ended("d4", killed(Cause.AUTH), NOW + H)

    assert (fuse.cause, fuse.blown_until, fuse.wait) == (Cause.AUTH, NOW + 75 * M, 15 * M)
    assert fuse.allows(NOW + H, 3) == 0


def test_failures_that_are_further_apart_do_not() -> None:
    """Behaviour X5."""
    fuse = Fuse()
    for number in range(9):
        fuse = fuse.ended(f"d{number}", killed(Cause.AUTH), NOW + number * 15.1 * M)

    assert fuse.blown_until is None


def test_failures_of_several_causes_and_successes_do_not() -> None:
    """Behaviour X5: of one cause; nothing but a failure counts."""
    fuse = Fuse()
    for _ in range(4):
        fuse = fuse.ended("a", killed(Cause.AUTH), NOW)
        fuse = fuse.ended("b", killed(Cause.NETWORK), NOW)
        fuse = fuse.ended("c", killed(None), NOW)
        for kind in (OutcomeKind.SHIPPED, OutcomeKind.CANCELLED, OutcomeKind.RACE_ABANDONED):
            fuse = fuse.ended("d", Outcome(kind, cause=Cause.AUTH), NOW)

    assert fuse.blown_until is None
    assert fuse.ended("e", killed(None), NOW).cause is Cause.UNKNOWN


def test_one_trial_follows_the_pause() -> None:
    """Behaviour X5: after 15 min one trial dispatch."""
    fuse = blown()

    assert [fuse.allows(NOW + span, 4) for span in (0 * M, 15 * M - S, 15 * M, H)] == [0, 0, 1, 1]
    assert fuse.allows(NOW + H, 0) == 0
    assert fuse.started("trial").allows(NOW + H, 4) == 0


def test_a_trial_that_ships_resumes() -> None:
    """Behaviour X5."""
    fuse = blown().started("trial").ended("trial", Outcome(OutcomeKind.SHIPPED), NOW + H)

    assert fuse == Fuse()


def test_trials_that_fail_double_the_wait_up_to_four_hours() -> None:
    """Behaviour X5."""
    fuse, now, waits = blown(), NOW, []
    for _ in range(6):
        now += 5 * H
        assert fuse.allows(now, 4) == 1
        fuse = fuse.started("trial").ended("trial", killed(Cause.NETWORK), now)
        waits.append(fuse.wait)
        assert fuse.blown_until == now + fuse.wait

    assert waits == [30 * M, H, 2 * H, 4 * H, 4 * H, 4 * H]


@pytest.mark.parametrize("kind", [OutcomeKind.CANCELLED, OutcomeKind.RACE_ABANDONED])
def test_a_trial_that_proves_nothing_is_followed_by_another(kind: OutcomeKind) -> None:
    """Behaviour X5."""
    fuse = blown().started("trial").ended("trial", Outcome(kind), NOW + H)

    assert (fuse, fuse.allows(NOW + H, 4)) == (blown(), 1)


def test_a_trial_that_never_started_is_followed_by_another() -> None:
    """Behaviour X5: nothing may pause for ever because an outcome never came."""
    fuse = blown().started("trial")

    assert fuse.forgotten("another") == fuse
    assert fuse.forgotten("trial") == blown()


def test_dispatches_from_before_neither_resume_nor_lengthen_the_pause() -> None:
    """Behaviour X5."""
    fuse = blown().started("trial").started("by hand")

    after = fuse.ended("d9", Outcome(OutcomeKind.SHIPPED), NOW + M)
    later = after.ended("d10", killed(Cause.AUTH), NOW + 2 * M)

    assert after == fuse
    assert (later.trial, later.blown_until, later.wait) == ("trial", NOW + 15 * M, 15 * M)


def test_started_changes_nothing_while_all_is_well() -> None:
    assert Fuse().started("d1") == Fuse()


def test_a_clock_that_was_put_back_does_not_lengthen_the_pause() -> None:
    """Behaviour X5: never more than its wait."""
    assert blown().allows(NOW - timedelta(days=1), 4) == 1
