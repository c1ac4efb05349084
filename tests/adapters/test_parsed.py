"""What was parsed is kept in a file, and believed only when it is whole, ours and of this file."""

import os
from collections.abc import Callable
from dataclasses import fields, replace
from datetime import date, timedelta
from pathlib import Path

import pytest

from chump_orchestrator.adapters import parsed, yaml_entries
from chump_orchestrator.adapters.backlogs import YamlFile
from chump_orchestrator.core.gap import Effort, Gap, Kind, Place, Priority, Rejection, read_gap
from tests.backlog_fixture import backlog

TEXT = """\
gaps:
  - id: A-1
    title: One
    priority: P1
    effort: s
    status: open
    deadline: 90m
    closed_date: 2026-04-01
    paths: [src, docs]
    description: |
      More
  - id: not an id
    status: open
  - id: A-1
    status: open
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "gaps.yaml"
    made.write_text(TEXT)
    age(made)
    return made


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    folder.mkdir()
    return folder / "backlog.cache"


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that was written just now counts as settled, unless a test says otherwise."""
    monkeypatch.setattr(parsed, "SETTLED_S", 0.0)


def age(file: Path) -> None:
    os.utime(file, (1_700_000_000, 1_700_000_000))


def unreadable(_file: object) -> None:
    raise AssertionError("it was parsed")


async def test_a_second_process_parses_nothing(
    path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await YamlFile(path=path, cache=cache).load()
    monkeypatch.setattr(YamlFile, "_parse", unreadable)

    second = await YamlFile(path=path, cache=cache).load()

    assert second == first
    assert second.index == first.index
    assert cache.stat().st_mode & 0o077 == 0
    assert [one.id for one in second.rejected] == ["not an id"]
    assert len(second.warnings) == 1


async def test_a_draft_that_somebody_was_killed_at_keeps_nobody_from_writing(
    path: Path, cache: Path
) -> None:
    """In a container each life of a daemon has the same pid."""
    cache.with_name(f".{cache.name}-{os.getpid()}").write_text("half of a ca")

    await YamlFile(path=path, cache=cache).load()

    assert cache.exists()


async def test_who_is_interrupted_while_writing_leaves_nothing(
    path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(parsed, "_slices", interrupted)
    before = set(cache.parent.iterdir())

    with pytest.raises(KeyboardInterrupt):
        YamlFile(path=path, cache=cache).load_at_once()

    assert set(cache.parent.iterdir()) == before


async def test_after_an_edit_only_what_changed_is_parsed(
    path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_text(backlog())
    before = await YamlFile(path=path, cache=cache).load()
    read: list[object] = []

    def told(entry: object, *, order: int, place: Place) -> Gap | Rejection:
        read.append(entry)
        return read_gap(entry, order=order, place=place)

    monkeypatch.setattr(yaml_entries, "read_gap", told)
    text = path.read_text()
    gap = before.gaps[7]
    path.write_text(text.replace(f"  - id: {gap.id}\n", f"  - id: {gap.id}\n    note: new\n", 1))

    after = await YamlFile(path=path, cache=cache).load()

    assert len(read) == 1
    assert after.gaps[7].id == gap.id
    assert after.gaps[8].place.line == before.gaps[8].place.line + 1


def cut_short(cache: Path) -> None:
    cache.write_bytes(cache.read_bytes()[:-5])


def a_slice_short(cache: Path) -> None:
    head, _, body = cache.read_bytes().partition(b"\n")
    length, _ = parsed._SLICE.unpack_from(body)
    cache.write_bytes(head + b"\n" + body[: parsed._SLICE.size + length])


def one_bit(cache: Path) -> None:
    data = bytearray(cache.read_bytes())
    data[-20] ^= 4
    cache.write_bytes(data)


def another_version(cache: Path) -> None:
    head, _, body = cache.read_bytes().partition(b"\n")
    cache.write_bytes(head.replace(b'"format": "', b'"format": "9') + b"\n" + body)


def of_another_file(cache: Path) -> None:
    head, _, body = cache.read_bytes().partition(b"\n")
    cache.write_bytes(head.replace(b"gaps.yaml", b"caps.yaml") + b"\n" + body)


def no_cache(cache: Path) -> None:
    cache.write_bytes(b"\x80" * 3000)


def nothing(cache: Path) -> None:
    cache.write_bytes(b"")


def a_pipe(cache: Path) -> None:
    cache.unlink()
    os.mkfifo(cache)


def a_link(cache: Path) -> None:
    cache.rename(cache.with_name("elsewhere"))
    cache.symlink_to("elsewhere")


def for_all_to_write(cache: Path) -> None:
    cache.chmod(0o666)


@pytest.mark.parametrize(
    "spoil",
    [
        cut_short,
        a_slice_short,
        one_bit,
        another_version,
        of_another_file,
        no_cache,
        nothing,
        a_pipe,
        a_link,
        for_all_to_write,
    ],
)
async def test_a_cache_that_is_not_plainly_ours_and_whole_is_as_good_as_none(
    path: Path, cache: Path, spoil: Callable[[Path], None]
) -> None:
    first = await YamlFile(path=path, cache=cache).load()
    assert parsed.recall(cache, str(path)) is not None
    spoil(cache)

    assert parsed.recall(cache, str(path)) is None
    assert await YamlFile(path=path, cache=cache).load() == first


async def test_of_a_file_that_was_changed_just_now_nothing_is_kept(
    path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two writes within one tick of the file system's clock look like one."""
    monkeypatch.setattr(parsed, "SETTLED_S", 2.0)

    await YamlFile(path=path, cache=cache).load()

    assert list(cache.parent.iterdir()) == []


async def test_without_a_folder_for_it_nothing_is_kept(path: Path, tmp_path: Path) -> None:
    source = YamlFile(path=path, cache=tmp_path / "none" / "backlog.cache")

    assert len((await source.load()).gaps) == 1
    assert not (tmp_path / "none").exists()


def test_a_gap_that_moves_is_the_same_but_for_its_place() -> None:
    """Every field is another than by default, so that none can be forgotten."""
    gap = Gap(
        id="A-1",
        title="One",
        priority=Priority.P1,
        effort=Effort.S,
        status="done",
        kind=Kind.SYSTEM,
        depends_on=("A-2",),
        closed_date=date(2026, 4, 27),
        auto_dispatch_ok=True,
        deadline=timedelta(minutes=90),
        paths=("src",),
        description="More",
        acceptance=("It works",),
        declared_domain="infra",
    )
    place = Place("gaps.yaml", 7, 5)

    assert parsed.moved(gap, 3, place) == replace(gap, order=3, place=place)
    plain = Gap("A-1", order=gap.order)
    assert [f.name for f in fields(Gap) if getattr(gap, f.name) == getattr(plain, f.name)] == [
        *("id", "order", "place")
    ]
