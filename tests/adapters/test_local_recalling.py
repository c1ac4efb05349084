"""The order of a dispatch tells all of it again, to a ledger that has lost its row."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

from chump_orchestrator.core.dispatch import Deadlines, Resumed, Workspace
from chump_orchestrator.core.gap import Effort, Gap, Kind, Place, Priority
from chump_orchestrator.core.records import Recalled
from chump_orchestrator.core.routing import Route
from tests.adapters.launches import BASE, SEEN, Bench, python
from tests.builders import NOW, a_dispatch

DISPATCH = a_dispatch(
    "comp-005a-fe-260427120000-abcdef",
    gap=Gap(
        id="COMP-005a-fe",
        title="Ein „Titel“ \udc80",
        priority=Priority.P0,
        effort=Effort.XL,
        status="perpetual",
        kind=Kind.SYSTEM,
        depends_on=("COMP-4", "COMP-3"),
        closed_date=date(2026, 4, 1),
        auto_dispatch_ok=True,
        deadline=timedelta(seconds=90.5),
        paths=("a/b",),
        description="line\nline",
        acceptance=("one", "two"),
        declared_domain="comp",
        order=17,
        place=Place("docs/gaps.yaml", 3, 4),
    ),
    attempt=3,
    route=Route("claude", "a-model", "PFX", "why"),
    deadlines=Deadlines(soft=timedelta(seconds=90.5), grace=timedelta(seconds=7)),
    created_at=NOW.replace(microsecond=123456),
    resumed=Resumed("comp-005a-fe-before", "s-1", NOW - timedelta(hours=1), 412, "c" * 40, 2),
)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    yield made
    await made.clean()


async def launched(bench: Bench) -> Path:
    """Launch an agent that ends at once; return the file of its order."""
    executor = bench.executor(SEEN)
    bench.launched.append(DISPATCH.id)
    agent = await executor.launch(DISPATCH, bench.workspace, python("pass"), "brief")
    await agent.follow(lambda _: None)
    return bench.folder(DISPATCH.id) / "spec.json"


async def recalled(bench: Bench) -> Recalled | None:
    return await bench.executor(SEEN).recall(DISPATCH.id)


async def test_a_dispatch_is_recalled_as_it_was(bench: Bench) -> None:
    await launched(bench)

    told = await recalled(bench)

    assert told is not None
    assert told.dispatch == DISPATCH
    assert told.workspace == Workspace(str(bench.worktree), "claude/infra-1", BASE)
    assert told.launched_at is not None


async def test_keys_of_other_versions_are_no_matter(bench: Bench) -> None:
    spec = await launched(bench)
    order = json.loads(spec.read_text())
    order["record"]["gap"] |= {"of_another_version": 1}
    del order["record"]["gap"]["order"]
    spec.write_text(json.dumps(order))

    told = await recalled(bench)

    assert told is not None
    assert told.dispatch == replace(DISPATCH, gap=replace(DISPATCH.gap, order=0))


async def test_an_order_of_an_earlier_version_goes_on_with_nothing(bench: Bench) -> None:
    spec = await launched(bench)
    order = json.loads(spec.read_text())
    del order["record"]["resumed"]
    spec.write_text(json.dumps(order))

    told = await recalled(bench)

    assert told is not None
    assert told.dispatch == replace(DISPATCH, resumed=None)


@pytest.mark.parametrize(
    ("place", "to"),
    [
        ("record", None),
        ("record.id", "another-1"),
        ("record.attempt", 0),
        ("record.attempt", True),
        ("record.gap.id", "../../etc"),
        ("record.gap.priority", "P9"),
        ("record.gap.depends_on", "COMP-4"),
        ("record.gap.deadline", float("nan")),
        ("record.gap.place", []),
        ("record.deadlines", {}),
        ("record.created_at", "yesterday"),
        ("record.resumed", "comp-005a-fe-before"),
        ("record.resumed.dispatch", "../before"),
        ("record.resumed.session", None),
        ("record.resumed.since", 7),
        ("base", "--upload-pack=x"),
        ("branch", "-d"),
        ("cwd", "relative"),
    ],
)
async def test_an_order_that_was_tampered_with_tells_nothing(
    bench: Bench, place: str, to: object
) -> None:
    spec = await launched(bench)
    order: dict[str, Any] = json.loads(spec.read_text())
    *way, last = place.split(".")
    inner = order
    for key in way:
        inner = inner[key]
    inner[last] = to
    spec.write_text(json.dumps(order))

    assert await recalled(bench) is None


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"[" * 100_000, b"\xff"],
    ids=["empty", "torn", "a list", "too deep", "no text"],
)
async def test_an_order_that_is_no_object_tells_nothing(bench: Bench, content: bytes) -> None:
    (await launched(bench)).write_bytes(content)

    assert await recalled(bench) is None


async def test_without_an_order_there_is_nothing_to_tell(bench: Bench) -> None:
    assert await recalled(bench) is None
