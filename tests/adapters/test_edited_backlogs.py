"""A text that was edited is read like any other, and only where the edit is."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from chump_orchestrator.adapters import yaml_entries
from chump_orchestrator.adapters.parsed import Found
from chump_orchestrator.adapters.yaml_entries import Entries
from chump_orchestrator.adapters.yaml_nodes import Broken
from chump_orchestrator.adapters.yaml_pieces import Text
from chump_orchestrator.core.gap import Gap, Place, Rejection, read_gap
from tests.backlog_fixture import backlog


def never() -> None:
    """Nobody wants the reading to end."""


def read(entries: Entries, text: str) -> Found | str:
    try:
        return entries.read(lambda: (text.encode(),), never)
    except Broken as broken:
        return str(broken)


def opened(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return where it is noted that a text is cut up from its beginning on."""
    noted: list[int] = []
    open_list = Text.open_list

    def told(text: Text) -> int:
        noted.append(1)
        return open_list(text)

    monkeypatch.setattr(Text, "open_list", told)
    return noted


TEXT = backlog(12)
ENTRY = "  - id: NEW-1\n    title: x\n    title: y\n    status: open\n"
ODD = ("\n", " ", "-", "- ", '"', "#", ":", "x: y\n", "  - id: A-1\n", "---\n", "\r", "é", ENTRY)

SMALL = "a: b\ngaps:\n" + "".join(f"  - id: A-{n}\n    title: x\n" for n in range(6)) + "c: d\n"
BORDERS = [at for at in range(len(SMALL)) if SMALL.startswith("  - id", at)]

places = st.integers(0, len(SMALL)) | st.builds(
    lambda border, away: border + away, st.sampled_from(BORDERS), st.integers(-2, 6)
)
edits = st.lists(
    st.tuples(places, st.integers(0, 3) | st.integers(0, 99), st.sampled_from(("", "4", *ODD))),
    min_size=1,
    max_size=4,
)


@given(edits)
@example([(BORDERS[2], 4, "    ")])
@example([(BORDERS[3], 0, "x: y\n")])
@example([(BORDERS[1] + len("  - id: A-"), 1, "4")])
@example([(BORDERS[3], 0, ENTRY), (BORDERS[1], 0, ENTRY), (BORDERS[2], 0, ENTRY)])
@settings(max_examples=200, deadline=None)
def test_after_any_edits_a_text_means_what_it_means_to_a_stranger(
    changes: list[tuple[int, int, str]],
) -> None:
    known, text = Entries("gaps.yaml"), SMALL
    read(known, text)
    for at, left_out, put_in in changes:
        text = text[:at] + put_in + text[at + left_out :]

        assert read(known, text) == read(Entries("gaps.yaml"), text)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("  effort: m\n", "  effort: l\n"),
        ("  effort: m\n", "  effort: m\n    note: a line more\n"),
        ("  - id: COG-109\n", ENTRY + "  - id: COG-109\n"),
        ("\n    depends_on: []\n", "\n"),
    ],
)
def test_an_edit_in_the_midst_is_read_alone(
    old: str, new: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = Entries("gaps.yaml")
    read(known, TEXT)
    parsed: list[object] = []

    def told(entry: object, *, order: int, place: Place) -> Gap | Rejection:
        parsed.append(entry)
        return read_gap(entry, order=order, place=place)

    cut_up = opened(monkeypatch)
    monkeypatch.setattr(yaml_entries, "read_gap", told)
    text = TEXT.replace(old, new, 1)

    found = read(known, text)

    assert not cut_up
    assert len(parsed) == 1
    assert found == read(Entries("gaps.yaml"), text)
    assert text != TEXT


def test_entries_that_change_places_and_vanish_are_not_parsed_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = Entries("gaps.yaml")
    first = read(known, TEXT)
    lines = TEXT.splitlines(keepends=True)
    begins = [at for at, line in enumerate(lines) if line.startswith("  - id:")]
    two, three, four = ("".join(lines[begins[n] : begins[n + 1]]) for n in (2, 3, 4))
    monkeypatch.setattr(yaml_entries, "read_gap", None)
    swapped = read(known, TEXT.replace(two + three, three + two))
    fewer = read(known, TEXT.replace(two + three + four, two))

    assert isinstance(first, Found)
    assert isinstance(swapped, Found)
    assert isinstance(fewer, Found)
    ids = [entry.id for entry in first.entries]
    assert [entry.id for entry in swapped.entries] == [*ids[:2], ids[3], ids[2], *ids[4:]]
    assert [entry.id for entry in fewer.entries] == [*ids[:3], *ids[5:]]
    assert [order(entry) for entry in fewer.entries] == list(range(len(ids) - 2))


def order(entry: Gap | Rejection) -> int:
    assert isinstance(entry, Gap)
    return entry.order


def test_what_was_handed_out_stays_as_it_was() -> None:
    known = Entries("gaps.yaml")
    before = read(known, TEXT)
    assert isinstance(before, Found)
    places = [entry.place.line for entry in before.entries]
    read(known, TEXT.replace("gaps:\n", "gaps:\n" + ENTRY))
    read(known, TEXT.replace("  effort: m\n", "  effort: m\n    note: more\n", 1))

    assert [entry.place.line for entry in before.entries] == places
