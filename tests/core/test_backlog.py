"""What of a backlog can be used, and how it is counted (behaviour B3, B6, C6)."""

from __future__ import annotations

from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chump_orchestrator.core.backlog import SHOWN_CIRCLE, Backlog, Hold, HoldKind, assemble
from chump_orchestrator.core.gap import Gap, Notice, Place, Rejection
from tests.builders import a_gap

MANY = 30_000
"""Too many for recursion, and for anything that takes quadratic time or text."""


def at(line: int) -> Place:
    return Place("docs/gaps.yaml", line, 3)


def gap(gap_id: str, *needs: str, line: int = 1, status: str = "open") -> Gap:
    return a_gap(gap_id, depends_on=needs, place=at(line), order=line, status=status)


def rejected(gap_id: str, *, line: int = 1, status: str = "open", slug: str = "") -> Rejection:
    return Rejection(gap_id, "some reason", at(line), status, slug)


def reasons(backlog: Backlog) -> dict[str, str]:
    return {entry.id: entry.reason for entry in backlog.rejected}


def ids(backlog: Backlog) -> list[str]:
    return [one.id for one in backlog.gaps]


def test_entries_that_agree_are_all_kept_in_their_order() -> None:
    """Behaviour B3, C6."""
    first, second = gap("B-1", line=1), gap("A-1", "B-1", line=2, status="done")
    bad = rejected("x", line=3, status="perpetual")
    notice = Notice("a key is given twice", at(4))

    backlog = assemble([first, second, bad], [notice])

    assert backlog == Backlog(
        gaps=(first, second), rejected=(bad,), warnings=(notice,), total=3, open=2
    )


def test_the_counts_are_of_entries_as_they_stand_in_the_file() -> None:
    """Behaviour C6: `total` and `open` count entries, `done` distinct ids."""
    backlog = assemble(
        [
            gap("A-1", status="done"),
            gap("A-1", status="done"),
            gap("B-1"),
            gap("B-1"),
            gap("C-1", status="perpetual"),
            gap("D-1", status="deferred"),
            rejected("E-1", slug="e-1"),
            rejected("", status="done"),
        ]
    )

    assert (backlog.total, backlog.open, len(backlog.done)) == (8, 4, 1)


def test_of_an_id_given_twice_the_first_entry_counts_with_a_warning() -> None:
    """Behaviour B3."""
    first, again = gap("A-1", line=1), gap("A-1", "B-1", line=9)

    backlog = assemble([first, again])

    assert backlog.gaps == (first,)
    assert backlog.rejected == ()
    assert backlog.warnings == (
        Notice("id A-1 is given again; the entry at docs/gaps.yaml:1:3 counts", at(9)),
    )


def test_of_an_id_given_twice_with_different_statuses_neither_counts() -> None:
    """Behaviour B3."""
    backlog = assemble([gap("A-1", line=1), gap("B-1"), gap("A-1", line=9, status="")])

    reason = "the id is given 2 times with different statuses (open at line 1, missing at line 9)"
    assert ids(backlog) == ["B-1"]
    assert [(entry.reason, entry.place.line) for entry in backlog.rejected] == [
        (reason, 1),
        (reason, 9),
    ]


def test_a_usable_entry_counts_where_another_of_its_id_is_unusable() -> None:
    """Behaviour B3."""
    bad, good = rejected("A-1", line=1, slug="a-1"), gap("A-1", line=2)

    backlog = assemble([bad, good])

    assert (backlog.gaps, backlog.rejected) == ((good,), (bad,))
    assert [notice.place for notice in backlog.warnings] == [at(1)]


def test_an_unusable_entry_of_another_status_takes_the_usable_one_with_it() -> None:
    """Behaviour B3: a gap may be open or done, but not both."""
    backlog = assemble([rejected("A-1", status="done", slug="a-1"), gap("A-1", line=2)])

    assert backlog.gaps == ()
    assert [entry.place.line for entry in backlog.rejected] == [1, 2]


def test_ids_that_share_a_slug_are_all_left_out() -> None:
    """Behaviour B3, D1."""
    three = [gap("INFRA-A_B", line=1), gap("infra-a-b", line=2), gap("INFRA_A-B", line=3)]

    backlog = assemble([*three, gap("INFRA-C", line=4)])

    assert ids(backlog) == ["INFRA-C"]
    other, first = "infra-a-b (docs/gaps.yaml:2:3)", "INFRA-A_B (docs/gaps.yaml:1:3)"
    assert reasons(backlog) == {
        "INFRA-A_B": f"its branch name collides with that of {other} and 1 more",
        "infra-a-b": f"its branch name collides with that of {first} and 1 more",
        "INFRA_A-B": f"its branch name collides with that of {first} and 1 more",
    }


def test_a_slug_collides_with_that_of_an_unusable_entry_too() -> None:
    """Behaviour B3."""
    backlog = assemble([rejected("A_1", line=1, slug="a-1"), gap("A-1", line=2)])

    assert reasons(backlog) == {
        "A_1": "some reason",
        "A-1": "its branch name collides with that of A_1 (docs/gaps.yaml:1:3)",
    }


def test_the_members_of_a_cycle_are_left_out_and_those_who_wait_for_it_are_not() -> None:
    """Behaviour B3."""
    backlog = assemble(
        [
            gap("A-1", "B-1"),
            gap("B-1", "X-9", "C-1"),
            gap("C-1", "A-1", "D-1"),
            gap("D-1"),
            gap("E-1", "A-1"),
        ]
    )

    assert ids(backlog) == ["D-1", "E-1"]
    assert reasons(backlog) == {
        "A-1": "dependency cycle: A-1 -> B-1 -> C-1 -> A-1",
        "B-1": "dependency cycle: B-1 -> C-1 -> A-1 -> B-1",
        "C-1": "dependency cycle: C-1 -> A-1 -> B-1 -> C-1",
    }


def test_a_gap_that_depends_on_itself_is_left_out() -> None:
    """Behaviour B3."""
    backlog = assemble([gap("A-1", "A-1"), gap("B-1")])

    assert reasons(backlog) == {"A-1": "depends_on: the gap depends on itself"}


def test_the_shortest_cycle_of_each_member_is_told() -> None:
    """Behaviour B3: in a knot of cycles each reason begins and ends with its own gap."""
    backlog = assemble([gap("A-1", "B-1", "C-1"), gap("B-1", "C-1"), gap("C-1", "A-1")])

    assert reasons(backlog) == {
        "A-1": "dependency cycle: A-1 -> C-1 -> A-1",
        "B-1": "dependency cycle: B-1 -> C-1 -> A-1 -> B-1",
        "C-1": "dependency cycle: C-1 -> A-1 -> C-1",
    }


def test_a_cycle_of_very_many_gaps_is_found_and_told_briefly() -> None:
    """Behaviour B3: no recursion, no quadratic time or text."""
    backlog = assemble(gap(f"A-{n}", f"A-{(n + 1) % MANY}", line=n) for n in range(MANY))

    assert backlog.gaps == ()
    assert len(backlog.rejected) == MANY
    way = " -> ".join(f"A-{n}" for n in range(SHOWN_CIRCLE // 2))
    assert backlog.rejected[0].reason == f"dependency cycle: {way} -> … (30000 gaps)"
    assert max(len(entry.reason) for entry in backlog.rejected) < 200


def test_a_chain_of_very_many_gaps_is_no_cycle() -> None:
    """Behaviour B3."""
    backlog = assemble(gap(f"A-{n}", f"A-{n + 1}", line=n) for n in range(MANY))

    assert (len(backlog.gaps), backlog.rejected) == (MANY, ())


def test_a_hub_of_many_cycles_takes_no_quadratic_time() -> None:
    """Behaviour B3: every member's way leads through the one with all the dependencies."""
    size = 20_000
    members = [f"M-{n}" for n in range(size)]
    leaves = [f"LEAF-{n}" for n in range(size)]

    backlog = assemble([gap("HUB-1", *leaves, *members), *(gap(m, "HUB-1") for m in members)])

    assert len(backlog.rejected) == size + 1


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["A-1", "A_1", "a-1", "B-1", "C-1", "D-1"]),
            st.sampled_from(["open", "done", "deferred"]),
            st.lists(st.sampled_from(["A-1", "A_1", "B-1", "C-1", "D-1", "E-1"]), max_size=2),
            st.booleans(),
        ),
        max_size=8,
    )
)
def test_what_is_kept_is_consistent_and_what_is_not_has_a_reason(
    drawn: list[tuple[str, str, list[str], bool]],
) -> None:
    """Behaviour B3."""
    entries: list[Gap | Rejection] = [
        gap(one, *needs, line=n, status=status)
        if usable
        else rejected(one, line=n, status=status, slug=a_gap(one).slug)
        for n, (one, status, needs, usable) in enumerate(drawn)
    ]

    backlog = assemble(entries)

    kept = {one.id: one for one in backlog.gaps}
    every: list[Gap | Rejection] = [*backlog.gaps, *backlog.rejected]
    lines = sorted(e.place.line for e in every) + [
        n.place.line for n in backlog.warnings if n.place not in {e.place for e in every}
    ]
    assert sorted(lines) == list(range(len(drawn)))
    assert backlog.total == len(drawn)
    assert backlog.open == sum(1 for entry in entries if entry.status == "open")
    assert len(kept) == len(backlog.gaps) == len({one.slug for one in backlog.gaps})
    for one in backlog.gaps:
        assert {e.status for e in entries if e.id == one.id} == {one.status}
        assert {e.id for e in entries if e.slug == one.slug} == {one.id}
        assert not reaches_itself(one.id, kept)
    assert [entry.place for entry in backlog.gaps] == sorted(
        (entry.place for entry in backlog.gaps), key=lambda place: place.line
    )


def reaches_itself(start: str, gaps: dict[str, Gap]) -> bool:
    seen: set[str] = set()
    ahead = list(gaps[start].depends_on)
    while ahead:
        here = ahead.pop()
        if here == start:
            return True
        if here in gaps and here not in seen:
            seen.add(here)
            ahead += gaps[here].depends_on
    return False


def test_done_is_what_the_backlog_says_and_what_we_shipped() -> None:
    """Behaviour B3, B6: an unusable entry that is done is done."""
    backlog = assemble(
        [
            gap("A-1", status="done"),
            gap("B-1"),
            gap("C-1"),
            rejected("D-1", status="done", slug="d-1"),
            rejected("E-1", slug="e-1"),
            rejected("", status="done"),
        ]
    ).with_holds({}, {"B-1": date(2026, 4, 27)})

    assert backlog.done == {"A-1", "B-1", "D-1"}
    assert {one for one in ("A-1", "B-1", "C-1", "D-1", "E-1", "") if backlog.is_done(one)} == {
        "A-1",
        "B-1",
        "D-1",
    }


def test_holds_change_nothing_but_the_holds() -> None:
    before = assemble([gap("A-1"), rejected("B-1")])
    holds = {"A-1": Hold(HoldKind.LEASED, "by somebody")}
    shipped = {"C-1": date(2026, 4, 27)}

    after = before.with_holds(holds, shipped)

    assert after == Backlog(
        before.gaps, before.rejected, before.warnings, before.total, before.open, holds, shipped
    )
    assert after.index is before.index


@pytest.mark.parametrize(("gap_id", "line"), [("A-1", 1), ("B-1", 2), ("C-1", None)])
def test_an_entry_is_found_by_its_id_usable_or_not(gap_id: str, line: int | None) -> None:
    backlog = assemble([gap("A-1", line=1), rejected("B-1", line=2)])

    found = backlog.find(gap_id)

    assert (found.place.line if found is not None else None) == line
