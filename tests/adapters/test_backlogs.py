"""How YAML becomes a backlog: complete tables of B2 to B4, and texts that mean harm."""

from __future__ import annotations

import gc
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from chump_orchestrator.adapters import backlogs, yaml_entries, yaml_nodes
from chump_orchestrator.adapters.backlogs import YamlDirectory, YamlFile, YamlRef
from chump_orchestrator.adapters.parsed import Found
from chump_orchestrator.adapters.yaml_entries import Entries
from chump_orchestrator.adapters.yaml_nodes import LEVELS, Broken
from chump_orchestrator.core.backlog import Backlog
from chump_orchestrator.core.errors import Refused, Unavailable
from chump_orchestrator.core.gap import Effort, Gap, Kind, Place, Priority, Rejection, read_gap
from tests.backlog_fixture import FAMOUS, backlog

PATIENCE_S = 20.0

FILE = "gaps.yaml"


def never() -> None:
    """Go on: nobody cancels."""


def in_chunks(data: bytes, size: int) -> Iterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


def by_pieces(text: str | bytes, size: int = 1 << 20) -> Found | str:
    data = text.encode() if isinstance(text, str) else text
    try:
        return Entries(FILE).read(lambda: in_chunks(data, size), never)
    except Broken as broken:
        return f"{broken.line}:{broken.column}: {broken.problem}"


def as_a_whole(text: str | bytes) -> Found | str:
    data = text.encode() if isinstance(text, str) else text
    try:
        return Entries(FILE).read_whole(data, never)
    except Broken as broken:
        return f"{broken.line}:{broken.column}: {broken.problem}"


def is_cut_up(text: str) -> bool:
    entries = Entries(FILE)
    entries.read(lambda: (text.encode(),), never)
    return bool(entries.known)


async def load(tmp_path: Path, text: str | bytes) -> Backlog:
    path = tmp_path / FILE
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return await YamlFile(path=path).load()


async def only(tmp_path: Path, *lines: str) -> Gap | Rejection:
    """Return the one entry made of these lines, whichever it is."""
    loaded = await load(tmp_path, "gaps:\n  - " + "\n    ".join(lines) + "\n")
    entries: list[Gap | Rejection] = [*loaded.gaps, *loaded.rejected]
    (entry,) = entries
    return entry


LINES = (
    "gaps:",
    "gaps: # the work",
    "gaps: []",
    "gaps: null",
    "'gaps':",
    "gaps: &all",
    "  - id: A-1",
    "  - id: A-2",
    "  - id: B-1",
    "  -   id: B-2",
    "  -",
    "  - null",
    "  - just text",
    "  - [a, b]",
    "  - {id: C-1, status: open}",
    "  - {id: C-2,",
    "- id: D-1",
    "- id: D-2",
    "-",
    "  status: open",
    "  title: left",
    "    status: open",
    "    status: done",
    "    title: a title",
    '    title: "begun',
    'ended"',
    "    title: 'begun",
    "    description: |",
    "    description: >-",
    "      a text: with more",
    "      - a dash in it",
    "       deeper",
    "    depends_on: [A-1,",
    "  B-1]",
    "    depends_on:",
    "    - A-1",
    "      - A-2",
    "    <<: *x",
    "    <<: {effort: xs}",
    "    more: &x {effort: s}",
    "    more: &x",
    "    again: *x",
    "    ? key",
    "    : value",
    "    ? [a]",
    "  # a remark",
    "# a remark",
    "",
    "   ",
    "\t",
    "    tab:\there",
    "meta: 1",
    "meta: &x {effort: m}",
    "meta:",
    "  more: 2",
    "domains:",
    "---",
    "--- # begins",
    "...",
    "%YAML 1.1",
    "    title: !!str null",
    "    odd: a\x85b",
    "    odd: a\u2028  - id: E-1",
    "    odd: crlf\r",
    "    odd: é€😀",
    "\ufeffgaps:",
    "    bell: \a",
)


@st.composite
def documents(draw: st.DrawFn) -> str:
    start = draw(
        st.sampled_from(["", "gaps:\n", "gaps:\n  - id: A-1\n", "meta: 1\ngaps:\n- id: A-1\n"])
    )
    lines = draw(st.lists(st.sampled_from(LINES), max_size=14))
    return start + "\n".join(lines) + draw(st.sampled_from(["", "\n"]))


@settings(max_examples=1500)
@given(documents(), st.integers(20, 200))
@example("gaps:\n  - id: A-1\n    title: 'a\n  - id: B-1\n    title: b'\n", 64)
@example("gaps:\n  - id: A-1\n    x: [a,\n  - id: B-1\n  ]\n", 64)
@example("meta: 'x\ngaps:\n  - id: A-1\n'\n", 64)
@example("|\ngaps:\n  - id: A-1\n", 64)
@example("gaps:\n  - id: A-1\n...\n", 64)
@example("gaps:\n  - id: A-1\n  -", 64)
@example("gaps:\n- id: A-1\n-", 64)
@example("gaps:\n  - id: A-1\n    x: &x 1\n  - id: B-1\n    title: *x\n", 64)
@example("gaps:\n  - id: A-1\ngaps:\n  - id: B-1\n", 64)
@example("gaps:\n  - id: A-1\n'gaps':\n  - id: B-1\n", 64)
@example("gaps:\n  - id: A-1\n   - id: B-1\n", 64)
@example("gaps:\n  - id: A-1\n - id: B-1\n", 64)
@example("---\ngaps:\n  - id: A-1\n---\ngaps: []\n", 64)
@example("gaps:\n  - id: A-1\n<<<<<<< HEAD\n  - id: B-1\n", 64)
@example("gaps:\n  - id: A-1\n    \u2028id: A-2\n", 64)
@example("gaps:\n  - id: A-1\n    title: 'a\u2028\n      b'\n  - id: A-2\n", 64)
@example("gaps:\n  - id: A-1\n    title: 'a\r      b'\n  - id: A-2\n", 64)
@example("\ufeffmeta: 1\ngaps:\n  - id: A-1\n", 64)
@example("meta: 1\n...\ngaps:\n  - id: A-1\n", 64)
def test_cut_up_or_whole_a_text_means_the_same(text: str, size: int) -> None:
    assert by_pieces(text, size) == as_a_whole(text)


@settings(max_examples=60)
@given(st.integers(0, 10**9), st.binary(min_size=1, max_size=3), st.integers(1000, 9000))
def test_cut_up_or_whole_a_damaged_backlog_means_the_same(at: int, bad: bytes, size: int) -> None:
    data = backlog(12).encode()
    where = at % len(data)
    damaged = data[:where] + bad + data[where + len(bad) :]

    assert by_pieces(damaged, size) == as_a_whole(damaged)


@pytest.mark.parametrize("size", [1500, 4096, 100_000, 10**7])
def test_b4_cut_up_or_whole_a_real_backlog_means_the_same(size: int) -> None:
    text = backlog(twice=True)

    assert is_cut_up(text)
    assert by_pieces(text, size) == as_a_whole(text)


@pytest.mark.parametrize(
    "text",
    [
        "gaps:\n  - id: A-1\n  - id: A-2\n",
        "gaps:\n- id: A-1\n- id: A-2\nmeta: 1\n",
        "# remark\n---\nmeta:\n  x: 1\n\ngaps:   # here\n\n  # a remark\n    - id: A-1\n",
        "gaps:\n  - id: A-1\n\n  # between\n\n  - id: A-2\n# end\ndomains:\n  - x\n",
        'gaps:\n  - id: A-1\n    title: "R&D, *not* this"\n    more: R & D\n',
        "gaps:\n  -\n    id: A-1\n  - id: A-2",
    ],
)
def test_usual_shapes_are_cut_up(text: str) -> None:
    assert is_cut_up(text)
    assert by_pieces(text) == as_a_whole(text)


async def test_b4_a_real_backlog_loads_whole(tmp_path: Path) -> None:
    text = backlog()
    loaded = await load(tmp_path, text)

    statuses = Counter(gap.status for gap in loaded.gaps)
    assert 900_000 < len(text) < 960_000
    assert (loaded.total, loaded.open, len(loaded.gaps)) == (543, 113, 543)
    assert (loaded.rejected, loaded.warnings) == ((), ())
    assert (statuses["open"], statuses["done"]) == (113, 423)
    assert sum(gap.effort is Effort.XS for gap in loaded.gaps) == 98
    assert sum(gap.effort is Effort.UNKNOWN for gap in loaded.gaps) == 3
    assert sum(gap.priority is Priority.UNKNOWN for gap in loaded.gaps) == 3
    assert statuses[""] == 2
    assert sum(gap.closed_date is not None for gap in loaded.gaps) == 423
    assert tuple(gap.id for gap in loaded.gaps[:5]) == FAMOUS
    assert [gap.order for gap in loaded.gaps] == list(range(543))
    assert all(gap.description and gap.acceptance for gap in loaded.gaps)


async def test_b4_ids_and_keys_given_twice_are_told(tmp_path: Path) -> None:
    loaded = await load(tmp_path, backlog(twice=True))

    assert (loaded.total, len(loaded.gaps), loaded.rejected) == (545, 543, ())
    told = sorted(notice.message.partition(";")[0] for notice in loaded.warnings)
    again = sorted((loaded.gaps[20].id, loaded.gaps[33].id))
    assert told == [
        *(f"id {gap_id} is given again" for gap_id in again),
        "key effort is given again",
        "key priority is given again",
    ]


async def test_b2_every_field_is_read(tmp_path: Path) -> None:
    entry = await only(
        tmp_path,
        "id: COMP-005a-fe",
        "title: The title",
        "domain: Comp",
        "priority: ' p0 '",
        "effort: XS",
        "status: Open",
        "kind: System",
        "depends_on: [A-1, A-2]",
        "closed_date: 2026-04-27",
        "auto_dispatch_ok: yes",
        "deadline: 90m",
        "paths: src/a.py",
        "description: |",
        "  Two",
        "  lines",
        "acceptance_criteria:",
        "  - one",
        "  - two: parts",
        "anything_else: {deep: [1, 2]}",
    )

    assert entry == Gap(
        id="COMP-005a-fe",
        title="The title",
        declared_domain="Comp",
        priority=Priority.P0,
        effort=Effort.XS,
        status="open",
        kind=Kind.SYSTEM,
        depends_on=("A-1", "A-2"),
        closed_date=date(2026, 4, 27),
        auto_dispatch_ok=True,
        deadline=timedelta(minutes=90),
        paths=("src/a.py",),
        description="Two\nlines",
        acceptance=("one", "two: parts"),
        order=0,
        place=Place(str(tmp_path / FILE), 2, 5),
    )


@pytest.mark.parametrize("nothing", ["", "null", "~", "Null", "[]"])
async def test_b2_nothing_as_depends_on_is_none(tmp_path: Path, nothing: str) -> None:
    entry = await only(tmp_path, "id: A-1", f"depends_on: {nothing}")

    assert isinstance(entry, Gap)
    assert entry.depends_on == ()


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("no", "no"),
        ("1e3", "1e3"),
        ("0o17", "0o17"),
        ("12:30:45", "12:30:45"),
        ("2026-04-27", "2026-04-27"),
        ("true", "true"),
        ("=", "="),
        ("!!int 12", "12"),
        ("'a: b'", "a: b"),
    ],
)
async def test_yaml_makes_nothing_but_text_of_a_word(
    tmp_path: Path, written: str, read: str
) -> None:
    entry = await only(tmp_path, "id: A-1", f"title: {written}")

    assert isinstance(entry, Gap)
    assert entry.title == read


@pytest.mark.parametrize("bad", ["1e3", "no", "2026-04-27", "12", "../x-1", "[A-1]", "-x-1", "{}"])
async def test_b3_a_bad_id_is_left_out_with_its_place(tmp_path: Path, bad: str) -> None:
    loaded = await load(tmp_path, f"gaps:\n  - id: A-1\n  - title: x\n    id: {bad}\n  - id: A-3\n")

    (left_out,) = loaded.rejected
    assert [gap.id for gap in loaded.gaps] == ["A-1", "A-3"]
    assert "bad id" in left_out.reason
    assert str(left_out.place) == f"{tmp_path / FILE}:3:5"


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (("id: A-1", "depends_on: [A-1]"), "depends on itself"),
        (("id: A-1", "title: [x]"), "title: expected text, found a list"),
        (("id: A-1", "title: {{ name }}"), "title: expected text, found a mapping"),
        (("id: A-1", "depends_on: {a: b}"), "depends_on: expected a list of texts"),
        (("id: A-1", "kind: mine"), "kind: 'mine' is neither user nor system"),
        (("id: A-1", "deadline: soon"), "deadline: 'soon' is not a duration"),
        (("title: x",), "no id"),
        (("id:",), "no id"),
        (("just text",), "the entry is text, expected a mapping"),
        (("'null'",), "the entry is text, expected a mapping"),
        (("null",), "the entry is null, expected a mapping"),
        (("[a]",), "the entry is a list, expected a mapping"),
    ],
)
async def test_b3_what_cannot_be_used_is_left_out_with_its_reason(
    tmp_path: Path, lines: tuple[str, ...], reason: str
) -> None:
    entry = await only(tmp_path, *lines)

    assert isinstance(entry, Rejection)
    assert reason in entry.reason
    assert (entry.place.line, entry.place.column) == (2, 5)


async def test_b3_entries_that_contradict_one_another_are_left_out(tmp_path: Path) -> None:
    text = """gaps:
- {id: A-1, status: open, depends_on: [A-2]}
- {id: A-2, status: open, depends_on: A-1}
- {id: B_1, status: open}
- {id: b-1, status: open}
- {id: C-1, status: open}
- {id: C-1, status: done}
- {id: D-1, status: open, title: first}
- {id: D-1, status: open, title: second}
- {id: E-1, status: done, kind: wrong}
- {id: F-1, status: open, depends_on: [E-1, Z-9]}
"""
    loaded = await load(tmp_path, text)

    assert [(gap.id, gap.title) for gap in loaded.gaps] == [("D-1", "first"), ("F-1", "")]
    assert {entry.id: entry.place.line for entry in loaded.rejected if entry.id != "C-1"} == {
        "A-1": 2,
        "A-2": 3,
        "B_1": 4,
        "b-1": 5,
        "E-1": 10,
    }
    assert [entry.place.line for entry in loaded.rejected if entry.id == "C-1"] == [6, 7]
    assert "E-1" in loaded.done
    assert (loaded.total, loaded.open) == (10, 8)


async def test_b3_a_key_given_twice_is_told_and_its_last_value_counts(tmp_path: Path) -> None:
    loaded = await load(
        tmp_path, "gaps:\n  - id: A-1\n  - id: A-2\n    title: one\n    title: two\n"
    )

    (notice,) = loaded.warnings
    assert loaded.gaps[1].title == "two"
    assert notice.message == "key title is given again; the last one counts"
    assert str(notice.place) == f"{tmp_path / FILE}:5:5"


async def test_merge_keys_give_what_is_not_given(tmp_path: Path) -> None:
    text = """defaults: &usual {status: open, effort: m, priority: P2}
more: &more {effort: xl, kind: system}
gaps:
  - {<<: *usual, id: A-1, effort: xs}
  - {<<: [*usual, *more], id: A-2}
"""
    loaded = await load(tmp_path, text)

    first, second = loaded.gaps
    assert (first.status, first.effort, first.priority) == ("open", Effort.XS, Priority.P2)
    assert (second.effort, second.kind) == (Effort.M, Kind.SYSTEM)
    assert loaded.warnings == ()


@pytest.mark.parametrize("text", ["gaps: []\n", "gaps:\n", "gaps: ~\n", "meta: 1\ngaps: null\n"])
async def test_a_list_without_entries_is_a_backlog(tmp_path: Path, text: str) -> None:
    assert await load(tmp_path, text) == Backlog()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"", ":1:1: there is nothing in it"),
        (b"# only a remark\n", ":1:1: there is nothing in it"),
        (b"meta: 1\n", ":1:1: there is no list gaps"),
        (b"- id: A-1\n", ":1:1: expected a mapping with a list gaps"),
        (b"just text\n", ":1:1: expected a mapping with a list gaps"),
        (b"meta: 1\ngaps: {A-1: x}\n", ":2:7: gaps: expected a list of entries"),
        (b"meta: 1\ngaps: soon\n", ":2:7: gaps: expected a list of entries"),
        (b"gaps:\n  - id: 'A-1\n", ":3:1: "),
        (b"gaps:\n  - id: A-1\n    x: a: b\n", ":3:9: "),
        (b"gaps:\n  - id: A-1\n---\ngaps: []\n", ":3:1: "),
        (b"gaps:\n  - id: A-1\n<<<<<<< HEAD\n  - id: A-2\n", ":4:7: "),
        (b"gaps:\n  - id: A-1\n    title: *nothing\n", ":3:12: alias nothing stands for nothing"),
        (b"gaps:\n  - id: A-1\n    t: &a [*a]\n", ":3:12: alias a stands for nothing"),
        (b"gaps:\n  - id: A-1\n    title: \xc3\xa9 \xff\n", ":3:14: byte 0xff is not UTF-8"),
        (b"gaps:\n  - id: A-1\n    title: \xc3\xa9 \0\n", ":3:14: there is a NUL in it"),
        (b"gaps:\n  - id: A-1\n    title: \xc3\xa9 \a\n", ":3:14: character U+0007 is not allowed"),
        ("gaps:\n  - id: A-1\n".encode("utf-16"), ":1:1: byte 0xff is not UTF-8"),
        (b"gaps:\n  - id: A-1\n\ttitle: x\n", ":3:1: "),
    ],
)
async def test_what_is_no_backlog_is_refused_with_its_place(
    tmp_path: Path, text: bytes, told: str
) -> None:
    with pytest.raises(Refused) as caught:
        await load(tmp_path, text)

    assert str(caught.value).startswith(f"{tmp_path / FILE}{told}")
    assert "set backlog.path" in str(caught.value)


async def test_fault_50_no_truncation_does_more_than_shorten_or_refuse(tmp_path: Path) -> None:
    data = backlog(40).encode()
    path = tmp_path / FILE
    source = YamlFile(path=path)
    whole = {gap.id for gap in (await load(tmp_path, data)).gaps}
    seen = Counter[str]()

    for at in range(0, len(data), len(data) // 200):
        path.write_bytes(data[:at])
        try:
            loaded = await source.load()
        except Refused:
            seen["refused"] += 1
        else:
            seen["shortened"] += 1
            # The last id may be cut, too.
            assert len({gap.id for gap in loaded.gaps} - whole) <= 1

    assert seen.total() >= 200
    assert min(seen.values()) > 20


def bomb(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += (f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels))
    return "\n".join(lines)


async def test_fault_52_aliases_of_aliases_are_refused(tmp_path: Path) -> None:
    header = bomb(30)

    with pytest.raises(Refused, match="aliases make it too large"):
        await load(tmp_path, f"{header}\ngaps:\n  - {{id: A-1, depends_on: *a29}}\n")


async def test_fault_52_a_bomb_inside_one_entry_is_refused(tmp_path: Path) -> None:
    inside = bomb(30).replace("\n", "\n    ")

    with pytest.raises(Refused, match="aliases make it too large"):
        await load(tmp_path, f"gaps:\n  - id: A-1\n    {inside}\n    depends_on: *a29\n")


async def test_aliases_in_plenty_are_no_bomb(tmp_path: Path) -> None:
    text = "x: &x {status: open, effort: s}\ngaps:\n" + "".join(
        f"  - {{<<: *x, id: A-{number}}}\n" for number in range(3000)
    )
    loaded = await load(tmp_path, text)

    assert loaded.open == 3000


DEEP: dict[str, Callable[[int], str]] = {
    "brackets": lambda levels: "[" * levels + "]" * levels,
    "braces": lambda levels: "{a: " * levels + "}" * levels,
    "dashes": lambda levels: "\n     " + "- " * levels + "x",
    "question marks": lambda levels: "\n     " + "? " * levels + "x",
    "keys": lambda levels: "".join("\n" + " " * (5 + n) + "a:" for n in range(levels)),
    "lists": lambda levels: "".join("\n" + " " * (5 + n) + "-" for n in range(levels)),
}


def with_deep(deep: str, where: str) -> str:
    parts = dict.fromkeys(("header", "entry", "rest"), "")
    parts[where if where in parts else "entry"] = f"{where}: {deep}\n"
    # An anchor outside the list is nothing that can be cut up.
    header, use = ("x: &x 1\n", "    x: *x\n") if where == "whole" else ("", "")
    own = parts["entry"] and "    " + parts["entry"]
    return (
        f"{header}{parts['header']}gaps:\n  - id: A-1\n    title: kept\n{own}{use}  - id: A-2\n"
        f"{parts['rest']}"
    )


@pytest.mark.parametrize("kind", DEEP)
@pytest.mark.parametrize("where", ["entry", "header", "rest", "whole"])
async def test_fault_52_deep_nesting_harms_no_entry(tmp_path: Path, kind: str, where: str) -> None:
    loaded = await load(tmp_path, with_deep(DEEP[kind](600), where))

    assert [(gap.id, gap.title) for gap in loaded.gaps] == [("A-1", "kept"), ("A-2", "")]
    # What is deep and a key is left out for that already.
    told = "a key that is" if kind == "question marks" else f"nested deeper than {LEVELS} levels"
    assert [notice.message.startswith(told) for notice in loaded.warnings] == (
        [True] if where in ("entry", "whole") else []
    )


@pytest.mark.parametrize("kind", DEEP)
@pytest.mark.parametrize("where", ["entry", "header", "rest", "whole"])
async def test_fault_52_bottomless_nesting_is_refused(
    tmp_path: Path, kind: str, where: str
) -> None:
    with pytest.raises(Refused):
        await load(
            tmp_path, with_deep(DEEP[kind](3000 if kind in ("keys", "lists") else 10**5), where)
        )


@pytest.mark.parametrize("levels", [LEVELS - 1, LEVELS])
def test_the_limit_on_levels_is_the_same_cut_up_and_whole(levels: int) -> None:
    text = f"gaps:\n  - id: A-1\n    other: {'[' * levels}{']' * levels}\n"
    found = by_pieces(text)

    assert isinstance(found, Found)
    assert found == as_a_whole(text)
    assert len(found.notices) == (levels >= LEVELS)


@pytest.mark.parametrize(
    "piece",
    [
        "  - a: " + "[" * 40 + "]" * 40,
        "".join("\n" + " " * n + "a:" for n in range(2, 20)),
        "".join("\n" + " " * n + "a:\n" + " " * n + "-" for n in range(2, 19)),
        "  " + "- " * 9 + "x",
    ],
)
def test_what_is_parsed_in_c_is_never_deeper_than_the_limit(piece: str) -> None:
    data = piece.encode()
    depth = deepest = 0
    for event in yaml.parse(data, Loader=yaml.BaseLoader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        deepest = max(deepest, depth)

    assert not yaml_nodes._is_wild(data)
    assert deepest <= LEVELS


async def test_everything_works_without_libyaml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = backlog(40)
    expected = await load(tmp_path, text)
    monkeypatch.setattr(yaml_nodes, "_LOADER", yaml.BaseLoader)
    pure = type("_Pure", (yaml_nodes._Untyped, yaml.BaseLoader), {})
    monkeypatch.setattr(yaml_nodes, "_Nodes", pure)

    assert await load(tmp_path, text) == expected


async def test_only_what_changed_is_parsed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / FILE
    text = backlog(40)
    path.write_text(text, "utf-8")
    source = YamlFile(path=path)
    before = await source.load()
    parsed: list[object] = []

    def told(entry: object, *, order: int, place: Place) -> Gap | Rejection:
        parsed.append(entry)
        return read_gap(entry, order=order, place=place)

    monkeypatch.setattr(yaml_entries, "read_gap", told)
    old = f"  - id: {before.gaps[7].id}\n"
    path.write_text(text.replace(old, old + "    note: a line more\n"), "utf-8")
    after = await source.load()

    assert len(parsed) == 1
    assert after == await YamlFile(path=path).load()
    assert after.gaps[6] is before.gaps[6]
    assert after.gaps[8].place.line == before.gaps[8].place.line + 1


async def test_an_entry_that_stands_twice_has_two_places(tmp_path: Path) -> None:
    loaded = await load(tmp_path, "gaps:\n" + "  - id: A-1\n    title: x\n    title: y\n" * 3)

    keys = [notice.place.line for notice in loaded.warnings if "key" in notice.message]
    ids = [notice.place.line for notice in loaded.warnings if notice.message.startswith("id")]
    assert (keys, ids) == ([4, 7, 10], [5, 8])


async def test_a_file_that_grows_while_it_is_read_is_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / FILE
    path.write_text(backlog(40), "utf-8")
    monkeypatch.setattr(backlogs, "CHUNK", 20_000)
    written = threading.Event()

    def grow() -> None:
        if not written.is_set():
            with path.open("a", encoding="utf-8") as file:
                file.write("# more\n")
            written.set()

    monkeypatch.setattr(backlogs, "_pause", grow)
    source = YamlFile(path=path)

    with pytest.raises(Unavailable, match="it changed while it was read"):
        await source.load()
    assert len((await source.load()).gaps) == 40


async def test_a_file_beyond_the_limit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backlogs, "SIZE_LIMIT", 2**20)

    with pytest.raises(Refused, match="larger than 1 MiB"):
        await load(tmp_path, "gaps:\n  - id: A-1\n" + "#" * 2**20)


@pytest.mark.parametrize("kind", ["folder", "pipe", "loop"])
async def test_what_is_no_file_is_unavailable(tmp_path: Path, kind: str) -> None:
    path = tmp_path / FILE
    match kind:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case _:
            path.symlink_to(path)

    with pytest.raises(Unavailable, match=r"backlog\.path"):
        await YamlFile(path=path).load()


async def test_loading_ends_soon_when_nobody_wants_it_any_more(tmp_path: Path) -> None:
    path = tmp_path / FILE
    path.write_text(backlog(3000), "utf-8")
    source = YamlFile(path=path)

    with anyio.move_on_after(0.05) as scope:
        await source.load()
    loaded = await source.load()

    assert scope.cancelled_caught
    assert len(loaded.gaps) == 3000


async def test_the_loop_turns_while_a_backlog_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reading waits for the loop here: on the loop itself it would wait in vain."""
    path = tmp_path / FILE
    path.write_text(backlog(10), "utf-8")
    has_begun, may_go_on = threading.Event(), threading.Event()

    def pause() -> None:
        has_begun.set()
        assert may_go_on.wait(PATIENCE_S)

    monkeypatch.setattr(backlogs, "_pause", pause)
    async with anyio.create_task_group() as group:
        group.start_soon(YamlFile(path=path).load)
        assert await anyio.to_thread.run_sync(has_begun.wait, PATIENCE_S)
        may_go_on.set()


async def test_b1_a_folder_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    (tmp_path / "B-1.yaml").write_text("id: B-1\nstatus: open\n", "utf-8")
    (tmp_path / "A-1.yml").write_text("gaps:\n  - id: A-1\n  - id: A-2\n", "utf-8")
    (tmp_path / "C-1.yaml").write_text("id: 'C-1\n", "utf-8")
    (tmp_path / "D-1.yaml").write_text("- id: D-1\n", "utf-8")
    (tmp_path / "E-1.yaml").write_text("id: E-1\ntitle: x\ntitle: y\n", "utf-8")
    (tmp_path / "notes.md").write_text("id: F-1\n", "utf-8")
    (tmp_path / ".G-1.yaml").write_text("id: G-1\n", "utf-8")
    (tmp_path / "H-1.yaml").mkdir()
    (tmp_path / "empty.yaml").write_text("", "utf-8")
    loaded = await YamlDirectory(path=tmp_path).load()

    assert [gap.id for gap in loaded.gaps] == ["A-1", "A-2", "B-1", "E-1"]
    assert [gap.order for gap in loaded.gaps] == [0, 1, 2, 5]
    assert loaded.gaps[2].place == Place(str(tmp_path / "B-1.yaml"), 1, 1)
    assert [notice.place.line for notice in loaded.warnings] == [3]
    assert {entry.id: entry.place.line for entry in loaded.rejected} == {
        "C-1": 2,
        "D-1": 1,
        "H-1": 1,
        "": 1,
    }
    assert all("the file cannot be used: " in entry.reason for entry in loaded.rejected)


async def test_b1_in_a_folder_only_changed_files_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        (tmp_path / f"A-{number}.yaml").write_text(f"id: A-{number}\n", "utf-8")
    source = YamlDirectory(path=tmp_path)
    await source.load()
    read: list[str] = []
    reading = YamlDirectory._read

    def told(self: YamlDirectory, name: str) -> backlogs._Member:
        read.append(name)
        return reading(self, name)

    monkeypatch.setattr(YamlDirectory, "_read", told)
    (tmp_path / "A-3.yaml").write_text("id: A-3\ntitle: new\n", "utf-8")
    (tmp_path / "A-1.yaml").unlink()
    loaded = await source.load()

    assert read == ["A-3.yaml"]
    assert [(gap.id, gap.title, gap.order) for gap in loaded.gaps] == [
        ("A-0", "", 0),
        ("A-2", "", 1),
        ("A-3", "new", 2),
        ("A-4", "", 3),
    ]


async def test_b5_a_backlog_is_read_from_a_ref_when_the_ref_moves() -> None:
    texts = {"1": b"gaps:\n  - id: A-1\n", "2": b"gaps:\n  - id: A-2\n"}
    now = "1"
    reads: list[str] = []

    async def read() -> bytes:
        reads.append(now)
        return texts[now]

    async def identify() -> str:
        return now

    source = YamlRef(name="origin/main:docs/gaps.yaml", read=read, identify=identify)
    first = await source.load()
    same = await source.load()
    now = "2"
    moved = await source.load()

    assert same is first
    assert str(first.gaps[0].place) == "origin/main:docs/gaps.yaml:2:5"
    assert [gap.id for gap in moved.gaps] == ["A-2"]
    assert reads == ["1", "2"]
    assert await source.stamp() == "2"


async def test_a_large_backlog_stays_out_of_the_collector_s_way(tmp_path: Path) -> None:
    """The collector stops the loop for as long as it walks, and would walk through every gap."""
    path = tmp_path / "gaps.yaml"
    note = "x" * 2000
    path.write_text(
        "gaps:\n"
        + "".join(f"- id: A-{n}\n  status: open\n  description: {note}\n" for n in range(3000))
    )
    whole: list[int] = []

    def on_collection(phase: str, info: dict[str, int]) -> None:
        if phase == "start" and info["generation"] == 2:
            whole.append(gc.get_count()[0])

    gc.collect()
    gc.callbacks.append(on_collection)
    try:
        loaded = await YamlFile(path=path).load()
    finally:
        gc.callbacks.remove(on_collection)

    assert len(loaded.gaps) == 3000
    assert whole == []
    assert gc.isenabled()
    assert gc.get_freeze_count() > 3000
