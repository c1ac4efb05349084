"""What every source of work promises: a file, a folder, a ref (`core.ports.BacklogSource`)."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import pytest

from chump_orchestrator.adapters.backlogs import YamlDirectory, YamlFile, YamlRef
from chump_orchestrator.core.backlog import Backlog
from chump_orchestrator.core.errors import Refused, Unavailable
from chump_orchestrator.core.ports import BacklogSource

ENTRY = "id: {}\ntitle: a title\nstatus: {}\n"


class Driver(Protocol):
    """Writes a backlog and says where it is read."""

    source: BacklogSource

    def write(self, **statuses: str) -> None: ...
    def spoil(self) -> None: ...
    def take_away(self) -> None: ...


def as_list(statuses: dict[str, str]) -> str:
    entries = (ENTRY.format(name.replace("_", "-"), word) for name, word in statuses.items())
    texts = ("  - " + text.rstrip().replace("\n", "\n    ") for text in entries)
    return "gaps:\n" + "\n".join(texts) + "\n"


class ByFile:
    def __init__(self, folder: Path) -> None:
        self.path = folder / "gaps.yaml"
        self.source: BacklogSource = YamlFile(path=self.path)

    def write(self, **statuses: str) -> None:
        self.path.write_text(as_list(statuses), "utf-8")

    def spoil(self) -> None:
        self.path.write_text("gaps:\n  - id: 'A-1\n", "utf-8")

    def take_away(self) -> None:
        self.path.unlink()


class ByRef:
    """Stands for a file of a git ref; what git says is told by the test."""

    def __init__(self, folder: Path) -> None:
        self._text: str | None = None
        self._version = 0
        self.source: BacklogSource = YamlRef(name="a-ref", read=self._read, identify=self._identify)

    async def _read(self) -> bytes:
        if self._text is None:
            raise Unavailable("a-ref: there is no such file")
        return self._text.encode()

    async def _identify(self) -> str:
        return "" if self._text is None else str(self._version)

    def _set(self, text: str | None) -> None:
        self._text = text
        self._version += 1

    def write(self, **statuses: str) -> None:
        self._set(as_list(statuses))

    def spoil(self) -> None:
        self._set("gaps:\n  - id: 'A-1\n")

    def take_away(self) -> None:
        self._set(None)


class ByFolder:
    def __init__(self, folder: Path) -> None:
        self.path = folder / "gaps"
        self.source: BacklogSource = YamlDirectory(path=self.path)

    def write(self, **statuses: str) -> None:
        self.path.mkdir(exist_ok=True)
        for file in self.path.iterdir():
            file.unlink()
        for name, word in statuses.items():
            gap_id = name.replace("_", "-")
            (self.path / f"{gap_id}.yaml").write_text(ENTRY.format(gap_id, word), "utf-8")

    def spoil(self) -> None:
        self.take_away()
        # What was a folder is none any more; a file in it that is spoiled is only left out.
        self.path.write_text("", "utf-8")

    def take_away(self) -> None:
        for file in self.path.iterdir():
            file.unlink()
        self.path.rmdir()


@pytest.fixture(params=[ByFile, ByFolder, ByRef])
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> Driver:
    made: Driver = request.param(tmp_path)
    return made


def told(backlog: Backlog) -> list[tuple[str, str, int]]:
    return [(gap.id, gap.status, gap.order) for gap in backlog.gaps]


async def test_the_entries_come_in_order(driver: Driver) -> None:
    driver.write(A_1="open", A_2="done", B_1="deferred")
    loaded = await driver.source.load()

    assert told(loaded) == [("A-1", "open", 0), ("A-2", "done", 1), ("B-1", "deferred", 2)]
    assert (loaded.total, loaded.open) == (3, 1)
    assert loaded.done == {"A-2"}


async def test_an_unusable_entry_is_left_out_with_its_reason_and_place(driver: Driver) -> None:
    driver.write(A_1="open", A="open", B_1="open")
    loaded = await driver.source.load()

    (left_out,) = loaded.rejected
    assert {gap.id for gap in loaded.gaps} == {"A-1", "B-1"}
    assert left_out.reason.startswith("bad id 'A'")
    assert left_out.place.line >= 1
    assert left_out.place.file


async def test_an_unchanged_backlog_is_the_same_object(driver: Driver) -> None:
    driver.write(A_1="open")
    first = await driver.source.load()

    assert await driver.source.load() is first


async def test_a_change_changes_the_stamp_and_is_loaded(driver: Driver) -> None:
    driver.write(A_1="open", A_2="open")
    before = await driver.source.stamp()
    await driver.source.load()
    driver.write(A_1="open", A_2="done")

    assert await driver.source.stamp() != before
    assert told(await driver.source.load()) == [("A-1", "open", 0), ("A-2", "done", 1)]


async def test_the_stamp_stays_while_nothing_changes(driver: Driver) -> None:
    driver.write(A_1="open")
    before = await driver.source.stamp()
    await driver.source.load()

    assert before
    assert await driver.source.stamp() == before


async def test_a_backlog_that_is_gone_has_no_stamp_and_is_unavailable(driver: Driver) -> None:
    driver.write(A_1="open")
    await driver.source.load()
    driver.take_away()

    assert await driver.source.stamp() == ""
    with pytest.raises(Unavailable):
        await driver.source.load()


async def test_a_backlog_that_is_none_is_an_error_and_can_be_mended(driver: Driver) -> None:
    driver.write(A_1="open")
    await driver.source.load()
    driver.spoil()
    with pytest.raises((Refused, Unavailable)):
        await driver.source.load()
    if isinstance(driver, ByFolder):
        driver.path.unlink()
    driver.write(A_1="done")

    assert told(await driver.source.load()) == [("A-1", "done", 0)]
