"""A command that only looks finds what a daemon would find, without a loop."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest

from chump_orchestrator import config, looking, premises
from chump_orchestrator.adapters.host import HostClock
from chump_orchestrator.adapters.ledger import SqliteLedger
from chump_orchestrator.adapters.ledger_at_once import look_into
from chump_orchestrator.core.errors import ConfigError, Refused
from chump_orchestrator.core.outcome import Exit, Outcome, OutcomeKind
from chump_orchestrator.core.records import DispatchState, Parked, Pause, Record, Settlement
from tests.adapters.repositories import a_repository, commit
from tests.builders import NOW, a_dispatch, a_gap

BACKLOG = """\
gaps:
  - {id: DEMO-1, title: Add a greeting, priority: P1, effort: xs, status: open}
  - {id: DEMO-2, title: Translate it, priority: P0, effort: xs, status: open, depends_on: [DEMO-1]}
  - {id: DEMO-2b, title: 3, priority: [P0], status: open}
"""


def in_a_loop(work: Any, *arguments: Any) -> Any:
    return anyio.run(work, *arguments)


async def a_full_ledger(path: Path) -> None:
    async with await SqliteLedger.open(path, clock=HostClock()) as ledger:
        done = a_dispatch("demo-1-260427120000-aaaaaa", gap=a_gap("DEMO-1"))
        runs = a_dispatch("demo-2-260427120000-bbbbbb", gap=a_gap("DEMO-2"))
        await ledger.add(done)
        left = Exit(code=1, active=timedelta(minutes=3))
        record = Record(done, DispatchState.RUNNING, pid=7, launched_at=NOW)
        await ledger.update(done.id, record)
        outcome = Outcome(OutcomeKind.SHIPPED, "merged")
        end = Settlement(outcome, NOW, None, None, progress=False, siblings=0)
        await ledger.settle(done.id, end)
        await ledger.add(runs)
        await ledger.update(runs.id, replace(record, dispatch=runs, exit=left))
        await ledger.park(Parked("DEMO-3", "it failed", "f" * 64, NOW, None))
        await ledger.set_pause(Pause("me", "a rest", NOW))


async def all_of(ledger: Any) -> list[Any]:
    return [
        await ledger.records(),
        await ledger.records(active=True),
        await ledger.latest(1, "DEMO-1"),
        await ledger.latest(5),
        await ledger.chronicle(),
        await ledger.chronicle(),
        await ledger.parked(),
        await ledger.shipped(),
        await ledger.pause(),
        await ledger.history("DEMO-1"),
    ]


def seen_at_once(path: Path) -> list[Any]:
    async def look() -> list[Any]:
        async with await look_into(path, clock=HostClock()) as ledger:
            return await all_of(ledger)

    return looking.at_once(look)


def test_a_ledger_tells_the_same_at_once(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    in_a_loop(a_full_ledger, path)

    async def as_ever() -> list[Any]:
        async with await SqliteLedger.open(path, clock=HostClock(), readonly=True) as ledger:
            return await all_of(ledger)

    told = seen_at_once(path)

    assert told == in_a_loop(as_ever)
    assert [len(part) for part in told[:5]] == [2, 1, 1, 2, 2]


def test_a_ledger_that_is_not_there_is_empty_and_stays_away(tmp_path: Path) -> None:
    told = seen_at_once(tmp_path / "state" / "ledger.db")

    assert told[:5] == [(), (), (), (), ()]
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_into_a_ledger_that_is_looked_into(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    in_a_loop(a_full_ledger, path)

    async def pause() -> None:
        async with await look_into(path, clock=HostClock()) as ledger:
            await ledger.set_pause(None)

    with pytest.raises(Refused, match="open for reading only"):
        looking.at_once(pause)


def test_a_damaged_ledger_is_the_operators_business(tmp_path: Path) -> None:
    root = a_repository(tmp_path).root
    loaded = config.load(root)
    path = premises.state_dir(root, loaded) / "ledger.db"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no database at all" * 100)

    async def look() -> None:
        async with looking.open_ledger(root, loaded) as ledger:
            await ledger.records()

    with pytest.raises(ConfigError, match=r"is damaged or no SQLite.*`run` moves it aside"):
        looking.at_once(look)


def test_a_ledger_damaged_further_in_is_told_when_that_is_read(tmp_path: Path) -> None:
    root = a_repository(tmp_path).root
    loaded = config.load(root)
    path = premises.state_dir(root, loaded) / "ledger.db"
    in_a_loop(a_full_ledger, path)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE dispatches SET route = 'nonsense'")

    async def look() -> None:
        async with looking.open_ledger(root, loaded) as ledger:
            await ledger.chronicle()

    with pytest.raises(ConfigError, match=r"cannot be read.*`run` moves it aside"):
        looking.at_once(look)


@pytest.mark.parametrize("where", ["a file", "a folder", "a ref"])
def test_a_backlog_holds_the_same_at_once(tmp_path: Path, where: str) -> None:
    repository = a_repository(tmp_path)
    flags = {}
    if where == "a folder":
        flags = {"backlog.path": "docs/gaps"}
        (repository.root / "docs" / "gaps").mkdir(parents=True)
        (repository.root / "docs" / "gaps" / "DEMO.yaml").write_text(BACKLOG)
    else:
        commit(repository.root, "docs/gaps.yaml", BACKLOG)
    if where == "a ref":
        flags = {"backlog.ref": "main"}
        (repository.root / "docs" / "gaps.yaml").write_text("gaps: []")
    loaded = config.load(repository.root, flags=flags)

    found = looking.read_backlog(repository.root, loaded)

    as_ever = in_a_loop(premises.read_backlog, repository.root, loaded)
    assert (found.gaps, found.rejected) == (as_ever.gaps, as_ever.rejected)
    assert (len(found.gaps), len(found.rejected)) == (2, 1)


@pytest.mark.parametrize("flags", [{"backlog.ref": "nowhere"}, {"backlog.path": "not/there.yaml"}])
def test_a_backlog_that_cannot_be_had_is_the_operators_business(
    tmp_path: Path, flags: dict[str, object]
) -> None:
    root = a_repository(tmp_path).root
    loaded = config.load(root, flags=flags)

    with pytest.raises(ConfigError) as at_once:
        looking.read_backlog(root, loaded)
    with pytest.raises(ConfigError) as as_ever:
        in_a_loop(premises.read_backlog, root, loaded)

    assert str(at_once.value) == str(as_ever.value)


def test_what_holds_a_gap_holds_it_at_once_too(tmp_path: Path) -> None:
    root = a_repository(tmp_path).root
    commit(root, "docs/gaps.yaml", BACKLOG)
    loaded = config.load(root)
    in_a_loop(a_full_ledger, premises.state_dir(root, loaded) / "ledger.db")
    leases = root / loaded.settings.leases.dir
    leases.mkdir(parents=True)
    ends = datetime.now(UTC) + timedelta(hours=1)
    for holder, gap in (("somebody", "DEMO-1"), ("somebody-else", "DEMO-2")):
        (leases / f"{holder}.json").write_text(
            f'{{"session_id": "{holder}", "gap_id": "{gap}",'
            f' "taken_at": "2026-01-01T00:00:00Z", "expires_at": "{ends.isoformat()}"}}'
        )
    backlog = looking.read_backlog(root, loaded)

    async def at_once() -> Any:
        async with looking.open_ledger(root, loaded) as ledger:
            return await looking.standing(root, loaded, backlog, ledger)

    async def as_ever() -> Any:
        async with premises.open_ledger(root, loaded, readonly=True) as ledger:
            return await premises.standing(root, loaded, backlog, ledger)

    found = looking.at_once(at_once)

    assert found.holds == in_a_loop(as_ever).holds
    assert set(found.holds) >= {"DEMO-1", "DEMO-2"}


def test_work_that_waits_for_something_is_no_work_for_at_once() -> None:
    ended = []

    async def waits() -> None:
        class Later:
            def __await__(self) -> Any:
                yield

        try:
            await Later()
        finally:
            ended.append(True)

    with pytest.raises(RuntimeError, match="takes a loop"):
        looking.at_once(waits)
    assert ended == [True]


def test_what_work_raises_is_passed_on() -> None:
    async def fails() -> None:
        raise Refused("no")

    with pytest.raises(Refused, match="no"):
        looking.at_once(fails)


PLUG_IN = """\
from chump_orchestrator.adapters.backlogs import YamlFile


class Theirs(YamlFile):
    async def load(self):
        return await YamlFile(path=self._path.with_name("theirs.yaml")).load()
"""


def test_a_backlog_that_a_plug_in_reads_is_what_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the daemon asks it, too."""
    root, site = tmp_path / "root", tmp_path / "site"
    for name, text in (
        ("root/docs/gaps.yaml", BACKLOG),
        ("root/docs/theirs.yaml", "gaps:\n  - {id: THEIRS-1, status: open}\n"),
        ("site/their_backlog.py", PLUG_IN),
        ("site/theirs-1.dist-info/METADATA", "Name: theirs\nVersion: 1\n"),
        (
            "site/theirs-1.dist-info/entry_points.txt",
            "[chump_orchestrator.backlogs]\nyaml-file = their_backlog:Theirs\n",
        ),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    loaded = config.load(root, environ={}, user_file=tmp_path / "none.toml")
    before = looking.read_backlog(root, loaded)

    monkeypatch.syspath_prepend(site)
    found = looking.read_backlog(root, loaded)

    assert [gap.id for gap in before.gaps] == ["DEMO-1", "DEMO-2"]
    assert [gap.id for gap in found.gaps] == ["THEIRS-1"]
