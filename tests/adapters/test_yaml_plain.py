"""The quick way to read an entry says what the parser says, or nothing."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from yaml.nodes import SequenceNode

from chump_orchestrator.adapters import yaml_entries
from chump_orchestrator.adapters.yaml_entries import Entries
from chump_orchestrator.adapters.yaml_nodes import Broken, Remark, compose, value_of
from chump_orchestrator.adapters.yaml_plain import plain_entry
from tests.backlog_fixture import backlog

ENTRY = """\
  - id: A-1
    title: x y, (PR#12) at 12:30 of http://x/y#z
    domain: 'a: b'
    priority: "P1 "
    status:
    paths: []
    depends_on: [A-2, null, b.c]
    description: |
      one: 1  # no comment
        two

      three

    acceptance_criteria:
      - a b
      - "c: d"
      - 'e'
      - null
    file_scope:
    - p/q

    note:

    closed_date: ~x
"""
READ = ENTRY.replace("    closed_date: ~x\n", "    closed_date: 2026-04-27\n")

TEXTS = (
    "x",
    "null",
    "NULL",
    "a b",
    "a:b",
    "a: b",
    "a #b",
    "a#b",
    "é",
    "~",
    "-",
    "- x",
    "[]",
    "[a]",
)
SIGNS = (
    "'",
    '"',
    "'a'",
    '"a"',
    '"\\n"',
    "|",
    ">",
    "|-",
    "&a x",
    "*a",
    "!t x",
    "{}",
    "# x",
    "x ",
    "%",
)
BREAKS = (
    "",
    "\n",
    " \n",
    "        \n",
    "    # x\n",
    "      more\n",
    "    - x\n",
    "      - x\n",
    "\t\n",
)

keys = st.sampled_from(("id", "title", "depends_on", "a-b", "<<", "1", "x y", ""))
values = st.sampled_from((*TEXTS, *SIGNS)) | st.text("ab:#- '\"|[],\n", max_size=6)
fields = st.builds("    {}:{}{}\n{}".format, keys, st.sampled_from((" ", "", "  ")), values,
                   st.sampled_from(BREAKS))  # fmt: skip
entries = st.lists(fields, min_size=1, max_size=4).map(
    lambda made: "  - " + "".join(made).removeprefix("    ")
)


@st.composite
def altered(draw: st.DrawFn) -> str:
    """Return the entry above with something else in a place or two."""
    text = READ
    for _ in range(draw(st.integers(1, 2))):
        at = draw(st.integers(0, len(text)))
        left_out = draw(st.integers(0, 8))
        put_in = draw(st.sampled_from(("", *TEXTS, *SIGNS, *BREAKS, " ", "    ")))
        text = text[:at] + put_in + text[at + left_out :]
    return text


def parsed(piece: str) -> object:
    """Return what the parser makes of a piece: what it holds, and where."""
    try:
        root = compose(piece.encode())
    except Broken as broken:
        return broken
    if not isinstance(root, SequenceNode) or len(root.value) != 1:
        return None
    remarks: list[Remark] = []
    held = value_of(root.value[0], remarks)
    mark = root.value[0].start_mark
    return (held, mark.column), mark.line, remarks


@given(entries | altered())
@example(READ)
@example("- id: a\n  x: |\n   a\n\n\n  y: b\n\n")
@example("  - id: a\n    x: |\n      a\n     b\n")
@settings(max_examples=300, deadline=None)
def test_what_is_read_quickly_is_what_the_parser_reads(piece: str) -> None:
    found = plain_entry(piece.encode())

    assert found is None or parsed(piece) == (found, 0, [])


def test_every_usual_form_is_read_quickly() -> None:
    found = plain_entry(READ.encode())

    assert found is not None
    assert found[0]["description"] == "one: 1  # no comment\n  two\n\nthree\n"
    assert found[0]["depends_on"] == ["A-2", None, "b.c"]
    assert parsed(READ) == (found, 0, [])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("closed_date: 2026-04-27", "closed_date: ~"),
        ("title: x y", "id: x y"),
        ("title: x y", "title: &a x"),
        ("    note:", "    # note\n    note:"),
        ("      - a b", "      - a: b"),
        ("      - a b", "      - - a"),
        ("    title", "     title"),
        ("\n        two", "\n  \n        two"),
        ("'e'", "'it''s'"),
        ('"P1 "', '"P1\\t"'),
        ("a b", "a\tb"),
        ("a b", "a\ufeffb"),
    ],
)
def test_whatever_is_out_of_the_ordinary_is_left_to_the_parser(old: str, new: str) -> None:
    assert old in READ

    assert plain_entry(READ.replace(old, new, 1).encode()) is None


def test_a_real_backlog_needs_no_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    data = backlog(40).encode()
    expected = Entries("gaps.yaml").read_whole(data, lambda: None)
    monkeypatch.setattr(yaml_entries, "compose", None)

    assert Entries("gaps.yaml").read(lambda: (data,), lambda: None) == expected


def test_a_text_that_nearly_fits_is_given_up_without_trying_all_ways() -> None:
    """Two ways to match the same text would take these for ever."""
    chance = random.Random(7)
    for sign in (":", "#", " ", "a:", "a #", "\n", "- a\n", "      - a\n"):
        piece = f"- id: {sign * 200_000}{chance.choice('ab')}: x"

        assert plain_entry(piece.encode()) is None
