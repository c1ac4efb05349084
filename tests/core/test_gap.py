"""One entry of the backlog, read at the door (behaviour B1 to B3, C4, D1, K3)."""

from __future__ import annotations

import unicodedata
from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chump_orchestrator.core.gap import (
    Effort,
    Gap,
    Kind,
    Place,
    Priority,
    Rejection,
    domain_of,
    duration_from,
    is_gap_id,
    is_null,
    on_one_line,
    plain,
    read_gap,
    slug_of,
)

FIELDS = (
    "id",
    "title",
    "domain",
    "priority",
    "effort",
    "status",
    "kind",
    "depends_on",
    "closed_date",
    "auto_dispatch_ok",
    "deadline",
    "paths",
    "file_scope",
    "description",
    "acceptance_criteria",
    "acceptance",
)
HERE = Place("docs/gaps.yaml", 12, 5)


def read(entry: object) -> Gap | Rejection:
    return read_gap(entry, order=7, place=HERE)


def reason_for(**fields: object) -> str:
    found = read({"id": "INFRA-1", "status": "open", **fields})

    assert isinstance(found, Rejection)
    assert (found.id, found.status, found.slug, found.place) == (
        "INFRA-1",
        "open",
        "infra-1",
        HERE,
    )
    return found.reason


def gap_with(**fields: object) -> Gap:
    found = read({"id": "INFRA-1", "status": "open", **fields})

    assert isinstance(found, Gap)
    return found


def test_every_field_is_read() -> None:
    """Behaviour B2."""
    found = read(
        {
            "id": "COG-009b",
            "title": "Teach it to\tlearn",
            "domain": "cognition",
            "priority": "P0",
            "effort": "xs",
            "status": "perpetual",
            "kind": "system",
            "depends_on": ["INFRA-1", "INFRA_2"],
            "closed_date": "2026-04-27",
            "auto_dispatch_ok": "true",
            "deadline": "90m",
            "paths": ["src/a.py"],
            "description": "  Two\nlines.\n",
            "acceptance_criteria": ["it learns", "it forgets"],
            "something_else": {"deep": ["down"]},
        }
    )

    assert found == Gap(
        id="COG-009b",
        title="Teach it to learn",
        priority=Priority.P0,
        effort=Effort.XS,
        status="perpetual",
        kind=Kind.SYSTEM,
        depends_on=("INFRA-1", "INFRA_2"),
        closed_date=date(2026, 4, 27),
        auto_dispatch_ok=True,
        deadline=timedelta(minutes=90),
        paths=("src/a.py",),
        description="Two\nlines.",
        acceptance=("it learns", "it forgets"),
        declared_domain="cognition",
        order=7,
        place=HERE,
    )


@pytest.mark.parametrize("nothing", [None, "", "null", "~", "NULL"])
def test_what_is_missing_or_null_is_empty(nothing: str | None) -> None:
    """Behaviour B2: missing text is empty, null is an empty list, kind is user by default."""
    empty = Gap(id="INFRA-1", status="", order=7, place=HERE)

    assert read({"id": "INFRA-1"}) == empty
    assert read({"id": "INFRA-1", **dict.fromkeys(FIELDS[1:], nothing)}) == empty


def test_case_and_blanks_of_enumerations_do_not_matter() -> None:
    """Behaviour B2."""
    found = gap_with(priority=" p1 ", effort=" XL", status=" Open ", kind="USER ")

    assert (found.priority, found.effort, found.status, found.kind, found.is_open) == (
        Priority.P1,
        Effort.XL,
        "open",
        Kind.USER,
        True,
    )


@pytest.mark.parametrize("status", ["deferred", "blocked", "in_progress", ""])
def test_a_status_without_meaning_is_neither_open_nor_done(status: str) -> None:
    """Behaviour B2."""
    found = gap_with(status=status)

    assert (found.status, found.is_open, found.is_done) == (status, False, False)


def test_values_that_are_not_known_are_unknown_and_no_reason_to_reject() -> None:
    """Behaviour B2, K2."""
    found = gap_with(priority="P9", effort="huge", closed_date="unknown")

    assert (found.priority, found.effort, found.closed_date) == (
        Priority.UNKNOWN,
        Effort.UNKNOWN,
        None,
    )


@pytest.mark.parametrize(
    ("value", "read_as"),
    [
        ("INFRA-2", ("INFRA-2",)),
        (["INFRA-2", " INFRA-3 ", "INFRA-2"], ("INFRA-2", "INFRA-3")),
        ([], ()),
        ([None, "null", ""], ()),
    ],
)
def test_dependencies_are_a_list_or_a_lone_text(value: object, read_as: tuple[str, ...]) -> None:
    """Behaviour B2."""
    assert gap_with(depends_on=value).depends_on == read_as


def test_either_name_of_a_field_serves() -> None:
    """Behaviour B2: paths or file_scope, acceptance_criteria or acceptance."""
    found = gap_with(
        paths="null", file_scope="src", acceptance_criteria=[], acceptance="it works\n"
    )

    assert (found.paths, found.acceptance) == (("src",), ("it works",))


def test_a_sentence_that_yaml_took_for_a_mapping_is_put_together_again() -> None:
    found = gap_with(acceptance=[{"verify": "it works", "and": ["more"]}, "done"])

    assert found.acceptance == ("verify: it works", "and:", "done")


@pytest.mark.parametrize(
    ("text", "when"),
    [
        ("2026-04-27", date(2026, 4, 27)),
        ("2026-04-27T10:00:00Z", date(2026, 4, 27)),
        ("last week", None),
        ("2026-13-01", None),
    ],
)
def test_a_closing_date_is_read_or_the_gap_is_undated(text: str, when: date | None) -> None:
    """Behaviour B2, B4."""
    assert gap_with(closed_date=text).closed_date == when


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("title", ["a"], "title: expected text, found a list"),
        ("description", {"a": "b"}, "description: expected text, found a mapping"),
        ("priority", ["P1"], "priority: expected text, found a list"),
        ("kind", "robot", "kind: 'robot' is neither user nor system"),
        ("depends_on", {"A-1": "x"}, "depends_on: expected a list of texts, found a mapping"),
        (
            "depends_on",
            ["A-1", ["B-1"]],
            "depends_on: expected a list of texts, one of its items is something else",
        ),
        ("depends_on", ["A-1", "INFRA-1"], "depends_on: the gap depends on itself"),
        ("depends_on", "INFRA-1", "depends_on: the gap depends on itself"),
        ("auto_dispatch_ok", "maybe", "auto_dispatch_ok: 'maybe' is neither true nor false"),
        ("deadline", "0m", "deadline: '0m' leaves no time at all"),
        (
            "deadline",
            "soon",
            "deadline: 'soon' is not a duration; write a number and ms, s, m, h or d, such as 90m",
        ),
        (
            "acceptance",
            [["a"]],
            "acceptance: expected a list of texts, one of its items is a list",
        ),
    ],
)
def test_a_field_of_the_wrong_type_rejects_the_entry(
    field: str, value: object, reason: str
) -> None:
    """Behaviour B3."""
    assert reason_for(**{field: value}) == reason


def test_a_status_of_the_wrong_type_rejects_the_entry() -> None:
    """Behaviour B3."""
    assert read({"id": "INFRA-1", "status": ["open"]}) == Rejection(
        "INFRA-1", "status: expected text, found a list", HERE, "", "infra-1"
    )


@pytest.mark.parametrize(
    ("entry", "rejection"),
    [
        (["INFRA-1"], Rejection("", "the entry is a list, expected a mapping", HERE)),
        (None, Rejection("", "the entry is null, expected a mapping", HERE)),
        ({"status": "done"}, Rejection("", "the entry has no id", HERE, "done")),
        ({"id": "null"}, Rejection("", "the entry has no id", HERE)),
        ({"id": ["A-1"]}, Rejection("", "bad id: expected text, found a list", HERE)),
        (
            {"id": "../x\n", "status": "open"},
            Rejection(
                "../x",
                "bad id '../x': expected letters and digits in parts joined by - or _, such as"
                " INFRA-12, at most 64 characters",
                HERE,
                "open",
            ),
        ),
    ],
)
def test_an_entry_without_a_usable_id_is_rejected(entry: object, rejection: Rejection) -> None:
    """Behaviour B3."""
    assert read(entry) == rejection


@pytest.mark.parametrize(
    "gap_id",
    [
        "EVAL-031",
        "COG-009b",
        "COMP-005a-fe",
        "INFRA-AB-TOOL-CALL-COUNTER",
        "INFRA-CLIPPY-RUST195",
        "A_1",
        "A-" + "1" * 62,
    ],
)
def test_ids_of_real_backlogs_are_ids(gap_id: str) -> None:
    """Behaviour B4."""
    assert is_gap_id(gap_id)


@pytest.mark.parametrize(
    "gap_id",
    [
        "INFRA",
        "INFRA-",
        "-INFRA-1",
        "INFRA--1",
        "1-A",
        "INFRA-1\n",
        "INFRA-1 ",
        "INFRA-1/../x",
        "INFRA-é",
        "INFRA-\u0661",
        "A-" + "1" * 63,
        "INFRA-1.lock",
    ],
)
def test_what_could_not_be_a_branch_is_no_id(gap_id: str) -> None:
    """Behaviour B3: rejected, never sanitised."""
    assert not is_gap_id(gap_id)


@given(st.from_regex(r"[A-Za-z][A-Za-z0-9]{0,9}([-_][A-Za-z0-9]{1,9}){1,4}", fullmatch=True))
def test_a_slug_is_lower_case_without_underscores(gap_id: str) -> None:
    """Behaviour D1."""
    slug = slug_of(gap_id)

    assert set(slug) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert len(slug) == len(gap_id)
    assert slug == slug_of(slug) == slug_of(gap_id.upper())


@pytest.mark.parametrize(
    ("gap_id", "domain"),
    [("COMP-005a-fe", "COMP"), ("infra-1", "INFRA"), ("a_b-1", "A_B"), ("A_1", "A_1")],
)
def test_the_domain_is_the_id_up_to_its_first_dash_in_capitals(gap_id: str, domain: str) -> None:
    """Behaviour K3."""
    assert domain_of(gap_id) == domain
    assert Gap(id=gap_id).domain == domain


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("30s", 30), ("90m", 5400), ("1.5h", 5400), (" 2 d ", 172800), ("0s", 0)],
)
def test_durations_are_read(text: str, seconds: float) -> None:
    """Behaviour C4."""
    assert duration_from(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text", ["", "90", "m", "-1m", "1e3s", "1,5h", "1m30s", "1w", "9" * 400 + "d", "3651d"]
)
def test_what_is_no_duration_is_refused_with_words(text: str) -> None:
    """Behaviour C4."""
    with pytest.raises(ValueError, match=r"is not a duration; write|longer than ten years") as e:
        duration_from(text)

    assert len(str(e.value)) < 200


@given(st.text())
def test_plain_text_hides_and_forges_nothing(text: str) -> None:
    shown = plain(text)

    unseen = {c for c in shown if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co")}
    assert unseen <= {"\n", "\t"}
    assert plain(shown) == shown
    kept = [c for c in text if unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co")]
    assert [c for c in shown if c not in "\n\t"] == kept


def test_plain_text_loses_direction_marks_and_escapes() -> None:
    assert plain("a\u202eb\x1b[31mc\r\nd\te\u200b — é") == "ab[31mc\nd\te — é"


@given(st.text())
def test_a_title_stays_on_one_line(text: str) -> None:
    line = on_one_line(text)

    assert len(line.splitlines()) <= 1
    assert line == line.strip()
    assert "\t" not in line


@given(
    st.recursive(
        st.none() | st.text(max_size=8) | st.sampled_from(["A-1", "open", "null", "P1", "5m"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(FIELDS),
                inner,
                max_size=8,
            )
        ),
        max_leaves=20,
    )
)
def test_whatever_stands_in_the_backlog_becomes_a_gap_or_a_rejection(entry: object) -> None:
    """Behaviour B3: one bad entry loses nothing but itself."""
    found = read(entry)

    if isinstance(found, Gap):
        assert is_gap_id(found.id)
        assert found.id not in found.depends_on
    else:
        assert found.reason
        assert len(found.reason) < 400
        assert found.slug == (slug_of(found.id) if is_gap_id(found.id) else "")


def test_null_has_several_spellings() -> None:
    assert [is_null(text) for text in ("", " ", "~", "null", "Null", "nil", "0")] == [
        *[True] * 5,
        False,
        False,
    ]
