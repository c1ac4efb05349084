"""Which gaps next, and why not the others (behaviour K1 to K5)."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chump_orchestrator.core.backlog import Backlog, Hold, HoldKind, assemble
from chump_orchestrator.core.gap import Effort, Gap, Kind, Place, Priority, Rejection
from chump_orchestrator.core.picker import (
    PickPolicy,
    Refusal,
    biased_domain,
    choose,
    in_order,
    pick,
    refusal,
)
from tests.builders import a_backlog, a_gap

DAY = date(2026, 4, 27)
EVERYTHING = PickPolicy(
    kind=None, priorities=frozenset(Priority), exclude_efforts=frozenset(), bias_threshold=1.0
)


def ids(gaps: tuple[Gap, ...]) -> list[str]:
    return [gap.id for gap in gaps]


def objection(gap: Gap, policy: PickPolicy | None = None, **fields: Any) -> str | None:
    backlog = a_backlog(gap, a_gap("DONE-1", status="done"), a_gap("OPEN-1"), **fields)
    found = refusal(gap, backlog, policy or PickPolicy())
    assert found is None or found.id == gap.id
    return found.reason if found is not None else None


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"priority": Priority.P0},
        {"priority": Priority.P2, "effort": Effort.L},
        {"effort": Effort.UNKNOWN},
        {"depends_on": ("DONE-1",)},
    ],
)
def test_an_open_gap_is_eligible_by_default(fields: dict[str, Any]) -> None:
    """Behaviour K1."""
    assert objection(a_gap(**fields)) is None


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"status": "done"}, "its status is done"),
        ({"status": "blocked"}, "its status is blocked"),
        ({"status": ""}, "its status is missing"),
        ({"kind": Kind.SYSTEM}, "kind system, and only user gaps are picked (pick.kind)"),
        ({"status": "perpetual"}, "perpetual gaps are dispatched for kind system only"),
        (
            {"priority": Priority.P3},
            "priority P3 is not among P0 P1 P2 (pick.priorities)",
        ),
        (
            {"priority": Priority.UNKNOWN},
            "priority unknown is not among P0 P1 P2 (pick.priorities)",
        ),
        ({"effort": Effort.XL}, "effort xl is excluded (pick.exclude_efforts)"),
        ({"depends_on": ("DONE-1", "OPEN-1")}, "waits for OPEN-1, whose status is open"),
        ({"depends_on": ("NO-1",)}, "waits for NO-1, which is nowhere in the backlog"),
    ],
)
def test_what_is_not_eligible_by_default_has_its_reason(
    fields: dict[str, Any], reason: str
) -> None:
    """Behaviour K1, K5, B3."""
    assert objection(a_gap(**fields)) == reason


@pytest.mark.parametrize(
    ("policy", "fields", "reason"),
    [
        (PickPolicy(kind=Kind.SYSTEM), {"kind": Kind.SYSTEM}, None),
        (PickPolicy(kind=Kind.SYSTEM), {"kind": Kind.SYSTEM, "status": "perpetual"}, None),
        (
            PickPolicy(kind=Kind.SYSTEM),
            {},
            "kind user, and only system gaps are picked (pick.kind)",
        ),
        (PickPolicy(kind=None), {"kind": Kind.SYSTEM}, None),
        (PickPolicy(priorities=frozenset({Priority.P3})), {"priority": Priority.P3}, None),
        (
            PickPolicy(priorities=frozenset()),
            {},
            "priority P1 is not among none (pick.priorities)",
        ),
        (PickPolicy(exclude_efforts=frozenset()), {"effort": Effort.XL}, None),
        (PickPolicy(require_opt_in=True), {"auto_dispatch_ok": True}, None),
        (
            PickPolicy(require_opt_in=True),
            {},
            "auto_dispatch_ok is not set, and pick.require_opt_in is",
        ),
    ],
)
def test_the_policy_decides_what_is_eligible(
    policy: PickPolicy, fields: dict[str, Any], reason: str | None
) -> None:
    """Behaviour K1."""
    assert objection(a_gap(**fields), policy) == reason


@pytest.mark.parametrize(
    ("kind", "until", "reason"),
    [
        (HoldKind.ACTIVE, None, "active: why"),
        (HoldKind.LEASED, datetime(2026, 4, 27, 12, 5, tzinfo=UTC), ""),
        (HoldKind.PARKED, None, "parked: why"),
        (HoldKind.BACKOFF, datetime(2026, 4, 27, 12, 5, tzinfo=UTC), ""),
        (HoldKind.RESTING, None, "resting: why"),
    ],
)
def test_a_gap_that_is_held_is_not_eligible(
    kind: HoldKind, until: datetime | None, reason: str
) -> None:
    """Behaviour K1, L3, X: leases, dispatches, parking and backoffs come as holds."""
    holds = {"INFRA-1": Hold(kind, "why", until)}

    expected = reason or f"{kind}: why, until 2026-04-27T12:05:00Z"
    assert objection(a_gap(), holds=holds) == expected


def test_a_dependency_that_was_left_out_counts_when_it_is_done() -> None:
    """Behaviour B3."""
    bad = [
        Rejection(one, "bad kind", Place("f", 1, 1), status, one.lower())
        for one, status in (("X-1", "done"), ("Y-1", "open"))
    ]
    first, second = a_gap("A-1", depends_on=("X-1",)), a_gap("A-2", depends_on=("Y-1",))

    choice = choose(assemble([first, second, *bad]), 9, PickPolicy())

    assert choice.picked == (first,)
    assert choice.refused == (Refusal("A-2", "waits for Y-1, which was left out: bad kind"),)


def test_what_we_shipped_is_done_though_its_entry_is_still_open() -> None:
    """Behaviour B6."""
    backlog = a_backlog(
        a_gap("A-1"), a_gap("A-2", depends_on=("A-1",)), a_gap("A-3", depends_on=("A-2",))
    ).with_holds({}, {"A-1": DAY})

    choice = choose(backlog, 9, PickPolicy())

    assert ids(choice.picked) == ["A-2"]
    assert choice.refused == (
        Refusal("A-1", "shipped by this orchestrator on 2026-04-27, its entry still open"),
        Refusal("A-3", "waits for A-2, whose status is open"),
    )


def test_a_perpetual_gap_comes_again_after_it_was_shipped() -> None:
    """Behaviour K1: what keeps it for `pick.repeat` is a hold."""
    again = a_gap("A-1", status="perpetual", kind=Kind.SYSTEM)
    backlog = a_backlog(again, a_gap("A-2", depends_on=("A-1",), kind=Kind.SYSTEM))
    policy = PickPolicy(kind=Kind.SYSTEM)

    assert ids(pick(backlog.with_holds({}, {"A-1": DAY}), 9, policy)) == ["A-1", "A-2"]


def test_the_order_is_priority_then_effort_then_place() -> None:
    """Behaviour K2."""
    backlog = a_backlog(
        a_gap("D-1", priority=Priority.P2, effort=Effort.XS),
        a_gap("C-1", priority=Priority.P1, effort=Effort.UNKNOWN),
        a_gap("B-1", priority=Priority.P1, effort=Effort.M),
        a_gap("B-2", priority=Priority.P1, effort=Effort.M),
        a_gap("E-1", priority=Priority.UNKNOWN, effort=Effort.XS),
        a_gap("F-1", priority=Priority.P4, effort=Effort.XL),
        a_gap("A-2", priority=Priority.P0, effort=Effort.XL),
        a_gap("A-1", priority=Priority.P0, effort=Effort.XS),
    )

    order = ["A-1", "A-2", "B-1", "B-2", "C-1", "D-1", "F-1", "E-1"]
    assert ids(pick(backlog, 9, EVERYTHING)) == order


def test_the_declared_order_leaves_effort_out() -> None:
    """Behaviour K2: `pick.order = "declared"`."""
    backlog = a_backlog(
        a_gap("B-1", effort=Effort.L), a_gap("B-2", effort=Effort.XS), a_gap("A-1", priority="P0")
    )

    order = ids(pick(backlog, 9, PickPolicy(by_effort=False)))

    assert order == ["A-1", "B-1", "B-2"]


@pytest.mark.parametrize(("slots", "picked"), [(-1, 0), (0, 0), (1, 1), (3, 3), (4, 3)])
def test_no_more_are_picked_than_there_are_slots(slots: int, picked: int) -> None:
    """Behaviour K4."""
    backlog = a_backlog(a_gap("A-1"), a_gap("A-2"), a_gap("A-3"))

    choice = choose(backlog, slots, PickPolicy())

    assert len(choice.picked) == picked
    assert ids(choice.picked + choice.waiting) == ["A-1", "A-2", "A-3"]


def test_every_open_gap_that_is_not_picked_has_a_reason() -> None:
    """Behaviour K5."""
    backlog = a_backlog(
        a_gap("A-4", priority=Priority.P4),
        a_gap("A-1"),
        a_gap("A-2"),
        a_gap("A-3"),
        a_gap("A-5", status="done"),
    )

    choice = choose(backlog, 1, PickPolicy())

    assert choice.reasons() == (
        Refusal("A-2", "no slot, place 2"),
        Refusal("A-3", "no slot, place 3"),
        Refusal("A-4", "priority P4 is not among P0 P1 P2 (pick.priorities)"),
    )


def test_what_is_held_is_told_apart_from_what_the_policy_excludes() -> None:
    """Behaviour C8: a run lists at its end what it was for and could not do."""
    backlog = a_backlog(
        a_gap("A-1", priority=Priority.P4),
        a_gap("A-2", effort=Effort.XL),
        a_gap("A-3"),
        a_gap("A-4", depends_on=("A-1",)),
        a_gap("A-5"),
        a_gap("A-6", status="done"),
        holds={
            "A-1": Hold(HoldKind.PARKED, "it failed"),
            "A-3": Hold(HoldKind.PARKED, "it failed"),
        },
    )

    assert choose(backlog, 0, PickPolicy()).held == (
        Refusal("A-3", "parked: it failed"),
        Refusal("A-4", "waits for A-1, whose status is open"),
    )


def shipped(domain: str, number: int, days_ago: int | None = 0) -> Gap:
    when = None if days_ago is None else DAY - timedelta(days=days_ago)
    return a_gap(f"{domain}-9{number:03}", status="done", closed_date=when)


def latest(*domains: str, days_ago: int | None = 0) -> list[Gap]:
    return [shipped(domain, n, days_ago) for n, domain in enumerate(domains)]


@pytest.mark.parametrize(
    ("gaps", "domain"),
    [
        ([], None),
        (latest(*["A"] * 9, "B"), "A"),
        (latest(*["A"] * 8, "B", "B"), None),
        (latest(*["A"] * 10), "A"),
        (latest(*["A"] * 8), None),
        (latest(*["A"] * 9), "A"),
        (latest(*["A"] * 10) + latest(*["B"] * 10, days_ago=1), "A"),
        (latest(*["A"] * 10, days_ago=1) + latest(*["B"] * 10), "B"),
        (latest(*["A"] * 10, days_ago=None) + latest(*["B"] * 10, days_ago=900), "B"),
        (latest(*["a"] * 5, *["A"] * 4), "A"),
    ],
)
def test_a_domain_is_biased_when_it_has_most_of_the_latest_window(
    gaps: list[Gap], domain: str | None
) -> None:
    """Behaviour K3: more than 0.80 of the last 10, latest first, undated last."""
    numbered = [replace(gap, id=f"{gap.id}-{n}") for n, gap in enumerate(gaps)]

    assert biased_domain(a_backlog(*numbered), PickPolicy()) == domain


def test_threshold_and_window_can_be_set() -> None:
    """Behaviour K3."""
    backlog = a_backlog(*latest("A", "A", "B"))

    assert biased_domain(backlog, PickPolicy(bias_window=3, bias_threshold=0.6)) == "A"
    assert biased_domain(backlog, PickPolicy(bias_window=3, bias_threshold=0.7)) is None
    assert biased_domain(backlog, PickPolicy(bias_window=0)) is None


def test_what_we_shipped_counts_for_the_bias_by_the_day_we_did() -> None:
    """Behaviour K3, B6."""
    ours = [a_gap(f"A-{n}") for n in range(9)]
    theirs = latest(*["B"] * 10, days_ago=1)
    backlog = a_backlog(*ours, *theirs)
    policy = PickPolicy()

    assert biased_domain(backlog, policy) == "B"
    assert biased_domain(backlog.with_holds({}, {g.id: DAY for g in ours}), policy) == "A"


def test_a_biased_domain_stands_one_priority_lower_and_behind_the_others() -> None:
    """Behaviour K3; P0 is exempt."""
    backlog = a_backlog(
        *latest(*["A"] * 10),
        a_gap("A-1", priority=Priority.P1, effort=Effort.XS),
        a_gap("A-2", priority=Priority.P2, effort=Effort.XS),
        a_gap("B-3", priority=Priority.P3),
        a_gap("B-2", priority=Priority.P2, effort=Effort.L),
        a_gap("B-1", priority=Priority.P1, effort=Effort.L),
        a_gap("B-0", priority=Priority.P0, effort=Effort.L),
        a_gap("A-0", priority=Priority.P0, effort=Effort.S),
    )
    policy = replace(EVERYTHING, bias_threshold=0.8)

    order = ["A-0", "B-0", "B-1", "B-2", "A-1", "B-3", "A-2"]
    assert ids(pick(backlog, 9, policy)) == order


GAPS = st.lists(
    st.builds(
        Gap,
        id=st.sampled_from(["A", "B", "C"]).flatmap(
            lambda domain: st.integers(1, 6).map(lambda n: f"{domain}-{n}")
        ),
        priority=st.sampled_from(Priority),
        effort=st.sampled_from(Effort),
        status=st.sampled_from(["open", "open", "open", "done", "perpetual", "blocked"]),
        kind=st.sampled_from(Kind),
        depends_on=st.lists(
            st.sampled_from(["A-1", "B-1", "C-1", "A-2", "Z-1"]), max_size=2, unique=True
        ).map(tuple),
        closed_date=st.none() | st.dates(date(2026, 1, 1), date(2026, 1, 5)),
        auto_dispatch_ok=st.booleans(),
    ),
    max_size=14,
    unique_by=lambda gap: gap.id,
)
POLICIES = st.builds(
    PickPolicy,
    kind=st.none() | st.sampled_from(Kind),
    priorities=st.just(frozenset(Priority)) | st.frozensets(st.sampled_from(Priority)),
    exclude_efforts=st.frozensets(st.sampled_from(Effort), max_size=2),
    by_effort=st.booleans(),
    require_opt_in=st.booleans(),
    bias_threshold=st.sampled_from([0.5, 0.8]),
    bias_window=st.integers(0, 5),
)
IDS = st.sampled_from(["A-1", "A-2", "B-1", "B-2", "C-1", "Z-1"])


@given(
    GAPS,
    POLICIES,
    st.frozensets(IDS, max_size=2),
    st.dictionaries(IDS, st.dates(date(2026, 1, 1), date(2026, 1, 5)), max_size=3),
    st.integers(0, 6),
)
def test_choosing_is_sorting_what_nobody_objects_to(
    gaps: list[Gap],
    policy: PickPolicy,
    held: frozenset[str],
    ours: dict[str, date],
    slots: int,
) -> None:
    """Behaviour K1 to K5: the index that makes it fast changes nothing."""
    backlog = a_backlog(*gaps).with_holds({one: Hold(HoldKind.LEASED, "x") for one in held}, ours)

    choice = choose(backlog, slots, policy)

    reasons = {gap.id: refusal(gap, backlog, policy) for gap in backlog.gaps if gap.is_open}
    eligible = [gap for gap in backlog.gaps if gap.is_open and reasons[gap.id] is None]
    ordered = in_order(eligible, biased_domain(backlog, policy), policy)
    assert (choice.picked, choice.waiting) == (ordered[:slots], ordered[slots:])
    assert choice.refused == tuple(r for r in reasons.values() if r is not None)
    assert len(choice.picked) + len(choice.reasons()) == len(reasons)


@given(GAPS, POLICIES, st.dictionaries(IDS, st.just(date(2026, 1, 3)), max_size=3))
def test_p0_always_leads(gaps: list[Gap], policy: PickPolicy, ours: dict[str, date]) -> None:
    """Behaviour K2, K3."""
    picked = pick(a_backlog(*gaps).with_holds({}, ours), 99, policy)

    urgent = [gap.priority is Priority.P0 for gap in picked]
    assert urgent == sorted(urgent, reverse=True)


@given(GAPS, POLICIES, st.dictionaries(IDS, st.just(date(2026, 1, 3)), max_size=3))
def test_the_bias_looks_at_the_latest_by_a_plain_count(
    gaps: list[Gap], policy: PickPolicy, ours: dict[str, date]
) -> None:
    """Behaviour K3: the index that makes it fast changes nothing."""
    backlog = a_backlog(*gaps).with_holds({}, ours)

    finished = [gap for gap in backlog.gaps if gap.is_done or gap.id in ours]
    finished.sort(key=lambda g: g.closed_date or ours.get(g.id) or date.min, reverse=True)
    domains = [gap.domain for gap in finished[: policy.bias_window]]
    over = {d for d in domains if domains.count(d) / policy.bias_window > policy.bias_threshold}
    assert biased_domain(backlog, policy) == (over.pop() if over else None)


def test_the_first_of_very_many_gaps_is_found_without_looking_at_all() -> None:
    """Behaviour K: a pick looks at the gaps in the order of work and stops when it has enough."""

    class Looked(dict[str, Hold]):
        times = 0

        def __contains__(self, key: object) -> bool:
            self.times += 1
            return super().__contains__(key)

    looked = Looked()
    backlog: Backlog = a_backlog(*(a_gap(f"A-{n}") for n in range(10_000)))

    assert ids(pick(backlog.with_holds(looked, {}), 2, PickPolicy())) == ["A-0", "A-1"]
    assert looked.times == 2
