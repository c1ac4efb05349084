"""The arithmetic and the words of the benchmarks; what they measure is nobody's test."""

from __future__ import annotations

import importlib
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from tests.benchmarks import telling
from tests.benchmarks.__main__ import FAMILIES
from tests.benchmarks.measuring import Row, Target, interleaved, percentile

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "reference" / "performance.md"
ROW = Row("a.row", "what it is", "ms", (3.0, 1.0, 2.0), Target(2))
MACHINE = {
    "cores": 2,
    "processor": "a processor",
    "memory_gb": 8.0,
    "kernel": "Linux 6",
    "python": "3.11.7",
    "git": "2.39.5",
    "file_system": "tmpfs",
    "disk": "ext4",
    "load_before": 0.1,
}


def told(*rows: Row, quick: bool = False) -> str:
    made = telling.document(rows, MACHINE, quick=quick, notes={"x": "y"}, took_s={"a": 1.0})
    return json.dumps(made)


def test_every_family_is_a_module_and_every_module_a_family() -> None:
    found = {path.stem for path in (ROOT / "tests" / "benchmarks").glob("bench_*.py")}

    assert found == {f"bench_{family}" for family in FAMILIES}
    for name in found:
        assert callable(importlib.import_module(f"tests.benchmarks.{name}").rows)


@pytest.mark.parametrize(
    ("row", "met", "missed_by"),
    [
        (ROW, True, None),
        (replace(ROW, target=Target(1)), False, 2.0),
        (replace(ROW, target=Target(2, at_least=True)), True, None),
        (replace(ROW, target=Target(3, at_least=True)), False, 1.5),
        (replace(ROW, target=None), None, None),
        (replace(ROW, target=Target(4, "ratio"), others=(1.0, 1.0, 1.0)), True, None),
        (replace(ROW, target=Target(1, "ratio"), others=(1.0, 1.0, 1.0)), False, 2.0),
        (replace(ROW, target=Target(1, "ratio")), None, None),
    ],
)
def test_whether_a_target_is_met(row: Row, met: bool | None, missed_by: float | None) -> None:
    assert row.is_met is met
    assert row.missed_by == missed_by


def test_a_ratio_is_that_of_pairs_where_there_are_pairs() -> None:
    paired = replace(ROW, values=(10.0, 200.0, 30.0), others=(1.0, 100.0, 1.0))
    unpaired = replace(paired, others=(1.0, 3.0))

    assert paired.ratio == 10.0
    assert unpaired.ratio == 15.0


def test_the_spread_is_everything_of_few_and_leaves_out_the_ends_of_many() -> None:
    assert ROW.spread == (1.0, 3.0)
    assert replace(ROW, values=tuple(map(float, range(1, 101)))).spread == (10.0, 90.0)
    assert percentile([5.0], 0.99) == 5.0


def test_ways_are_taken_in_turn_and_backwards_every_other_round() -> None:
    order: list[str] = []

    def way(name: str) -> float:
        order.append(name)
        return float(len(order))

    found = interleaved(2, {"a": lambda: way("a"), "b": lambda: way("b")})

    assert order == ["a", "b", "a", "b", "b", "a"]
    assert found == {"a": (3.0, 6.0), "b": (4.0, 5.0)}


def test_rows_come_back_from_their_json() -> None:
    rows = [ROW, replace(ROW, name="b", target=None, others=(1.0,), note="said")]

    assert telling.rows_in(json.loads(told(*rows))) == rows


def test_the_table_shows_each_row_and_what_is_missed() -> None:
    console = Console(record=True, width=200)

    telling.show([ROW, replace(ROW, name="b.row", target=Target(1))], console)

    shown = console.export_text()
    assert re.search(r"a\.row .* 2 ms +1 to 3 .* ≤ 2 ms +yes", shown)
    assert re.search(r"b\.row .* ≤ 1 ms +no, 2 x", shown)


def test_figures_are_written_between_the_marks_and_nothing_else_is_touched(tmp_path: Path) -> None:
    page, figures = tmp_path / "page.md", tmp_path / "bench.json"
    page.write_text(f"before\n\n{telling.BEGIN}\nold\n{telling.END}\n\nafter\n")
    figures.write_text(told(ROW, replace(ROW, name="beside", target=None)))

    telling.write_into(page, figures)
    telling.write_into(page, figures)

    text = page.read_text()
    assert text.startswith(f"before\n\n{telling.BEGIN}\n")
    assert text.endswith(f"{telling.END}\n\nafter\n")
    assert "old" not in text
    assert text.count("| `a.row` | what it is | 2 ms | 1 to 3 | - | ≤ 2 ms | yes |") == 1
    assert text.count("| `beside` |") == 1


@pytest.mark.parametrize(
    ("page", "figures", "why"),
    [
        ("no marks", told(ROW), "has no lines"),
        (f"{telling.BEGIN}{telling.END}", told(ROW, quick=True), "quick measurement"),
        (f"{telling.BEGIN}{telling.END}", "", "measure first"),
    ],
)
def test_what_says_little_is_not_written(tmp_path: Path, page: str, figures: str, why: str) -> None:
    (tmp_path / "page.md").write_text(page)
    if figures:
        (tmp_path / "bench.json").write_text(figures)

    with pytest.raises(telling.NoFigures, match=why):
        telling.write_into(tmp_path / "page.md", tmp_path / "bench.json")

    assert (tmp_path / "page.md").read_text() == page


def test_the_page_of_the_documentation_can_be_written_into() -> None:
    text = PAGE.read_text("utf-8")

    assert text.count(telling.BEGIN) == text.count(telling.END) == 1
