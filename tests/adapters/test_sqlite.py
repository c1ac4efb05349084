"""The thread that owns a connection, group commit, migrations, and errors in our words."""

from __future__ import annotations

import sqlite3
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import NoReturn

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from anyio.abc import TaskGroup

from chump_orchestrator.adapters.sqlite import (
    CACHE_KIB,
    Corrupt,
    Request,
    Share,
    SqliteThread,
    connect,
    migrate,
    put_aside,
    schema_version,
    storable,
    use_wal,
)
from chump_orchestrator.core.errors import ConfigError, Refused, Unavailable
from tests.adapters.troubles import Locker

PATIENCE_S = 20.0


def a_table(path: Path) -> Callable[[], sqlite3.Connection]:
    def make() -> sqlite3.Connection:
        connection = connect(path, busy_s=0.2)
        connection.execute("PRAGMA journal_mode = WAL").fetchone()
        connection.execute("CREATE TABLE IF NOT EXISTS n (x INTEGER UNIQUE)")
        return connection

    return make


def insert(number: int) -> Callable[[sqlite3.Connection], None]:
    def work(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO n VALUES (?)", (number,))

    return work


def numbers_in(path: Path) -> list[int]:
    with closing(sqlite3.connect(path)) as connection:
        return [row[0] for row in connection.execute("SELECT x FROM n ORDER BY x")]


async def test_what_was_answered_is_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    writer = SqliteThread(path, a_table(path))

    await writer.run(insert(1))

    assert numbers_in(path) == [1]
    await writer.close()


async def test_writes_that_come_together_share_a_commit(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    begun: list[str] = []

    def make() -> sqlite3.Connection:
        connection = a_table(path)()
        connection.set_trace_callback(lambda text: begun.append(text.split()[0]))
        return connection

    writer = SqliteThread(path, make)
    async with anyio.create_task_group() as group:
        for number in range(200):
            group.start_soon(writer.run, insert(number))
    await writer.close()

    assert numbers_in(path) == list(range(200))
    commits = begun.count("COMMIT")
    print(f"200 writes, {commits} commits")
    assert commits < 200


async def test_a_write_that_fails_is_undone_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    writer = SqliteThread(path, a_table(path))
    told: list[Exception] = []

    def refuse(connection: sqlite3.Connection) -> NoReturn:
        connection.execute("INSERT INTO n VALUES (100)")
        msg = "no"
        raise Refused(msg)

    async def expect_refusal() -> None:
        try:
            await writer.run(refuse)
        except Refused as error:
            told.append(error)

    async with anyio.create_task_group() as group:
        for number in range(5):
            group.start_soon(writer.run, insert(number))
            group.start_soon(expect_refusal)
    await writer.close()

    assert len(told) == 5
    assert numbers_in(path) == [0, 1, 2, 3, 4]


class Together:
    """Inserts all numbers that come in at once by one statement, and remembers how many."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []

    def many(self, connection: sqlite3.Connection, numbers: Sequence[int]) -> None:
        self.groups.append(list(numbers))
        connection.executemany("INSERT INTO n VALUES (?)", [(one,) for one in numbers])


async def held_up(writer: SqliteThread, group: TaskGroup) -> threading.Event:
    """Keep the thread busy until the event is set, so that what comes meanwhile comes together."""
    begun, let_go = threading.Event(), threading.Event()

    def wait(_: sqlite3.Connection) -> None:
        begun.set()
        assert let_go.wait(PATIENCE_S)

    group.start_soon(writer.run, wait)
    assert await anyio.to_thread.run_sync(begun.wait, PATIENCE_S)
    return let_go


async def test_those_who_share_work_have_it_done_together_and_in_order(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    writer, shared = SqliteThread(path, a_table(path)), Together()
    async with anyio.create_task_group() as group:
        let_go = await held_up(writer, group)
        for number in (1, 2):
            group.start_soon(writer.run, Share(shared.many, number))
        group.start_soon(writer.run, insert(3))
        group.start_soon(writer.run, Share(shared.many, 4))
        await anyio.lowlevel.checkpoint()
        let_go.set()
    await writer.close()

    assert shared.groups == [[1, 2], [4]]
    assert numbers_in(path) == [1, 2, 3, 4]


async def test_of_those_who_share_work_only_the_one_that_fails_is_undone(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    writer, shared = SqliteThread(path, a_table(path)), Together()
    await writer.run(insert(2))
    failed: list[int] = []

    async def write(number: int) -> None:
        try:
            await writer.run(Share(shared.many, number))
        except Unavailable:
            failed.append(number)

    async with anyio.create_task_group() as group:
        let_go = await held_up(writer, group)
        for number in (1, 2, 3):
            group.start_soon(write, number)
        await anyio.lowlevel.checkpoint()
        let_go.set()
    await writer.close()

    assert shared.groups[0] == [1, 2, 3]
    assert failed == [2]
    assert numbers_in(path) == [1, 2, 3]


async def test_what_goes_on_to_another_thread_is_safe_in_the_first_and_answered_once(
    tmp_path: Path,
) -> None:
    one, two = tmp_path / "one.db", tmp_path / "two.db"
    first, second = SqliteThread(one, a_table(one)), SqliteThread(two, a_table(two))
    seen: list[list[int]] = []

    def on(request: Request, number: int) -> None:
        seen.append(numbers_in(one))
        second.take_over(request._replace(work=insert(number + 1)))

    second.start()
    await first.run(Share(Together().many, 1, on))
    assert (seen, numbers_in(two)) == ([[1]], [2])

    with pytest.raises(Unavailable, match=r"one\.db"):
        await first.run(Share(Together().many, 1, on))
    await second.close()
    with pytest.raises(Unavailable, match=r"two\.db has been closed"):
        await first.run(Share(Together().many, 5, on))
    await first.close()

    assert numbers_in(one) == [1, 5]
    assert numbers_in(two) == [2]


async def test_a_write_holds_the_lock_from_its_first_word_on(tmp_path: Path) -> None:
    """One that began by reading could not write any more once another had written."""
    path = tmp_path / "a.db"
    writer = SqliteThread(path, a_table(path))

    def read_and_write(connection: sqlite3.Connection) -> str:
        connection.execute("SELECT * FROM n").fetchall()
        with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as other:
            try:
                other.execute("INSERT INTO n VALUES (2)")
            except sqlite3.OperationalError as error:
                refusal = str(error)
            else:
                refusal = "none"
        connection.execute("INSERT INTO n VALUES (1)")
        return refusal

    assert await writer.run(read_and_write) == "database is locked"
    assert numbers_in(path) == [1]
    await writer.close()


async def test_a_broken_statement_is_unavailable_and_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    writer = SqliteThread(path, a_table(path))

    with pytest.raises(Unavailable, match=r"a\.db: no such table: m") as caught:
        await writer.run(lambda connection: connection.execute("INSERT INTO m VALUES (1)"))
    await writer.run(insert(1))

    assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
    assert numbers_in(path) == [1]
    await writer.close()


async def test_a_bug_in_the_work_reaches_the_caller_and_spares_the_thread(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    writer = SqliteThread(path, a_table(path))

    with pytest.raises(ZeroDivisionError):
        await writer.run(lambda connection: 1 / 0)
    await writer.run(insert(1))

    assert numbers_in(path) == [1]
    await writer.close()


async def test_a_reader_sees_one_instant_and_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    writer = SqliteThread(path, a_table(path))
    await writer.run(insert(1))
    reader = SqliteThread(path, lambda: connect(path, readonly=True), writes=False)

    def count_twice(connection: sqlite3.Connection) -> tuple[int, int]:
        query = "SELECT count(*) FROM n"
        first = connection.execute(query).fetchone()[0]
        with closing(sqlite3.connect(path, isolation_level=None)) as stranger:
            stranger.execute("INSERT INTO n VALUES (2)")
        return first, connection.execute(query).fetchone()[0]

    assert await reader.run(count_twice) == (1, 1)
    with pytest.raises(Unavailable, match="cannot be written"):
        await reader.run(insert(3))
    await reader.close()
    await writer.close()


async def test_a_locked_database_is_unavailable_until_it_is_free(tmp_path: Path) -> None:
    """Fault 46."""
    path = tmp_path / "a.db"
    writer = SqliteThread(path, a_table(path))
    await writer.run(insert(1))
    locker = Locker(path)

    with pytest.raises(Unavailable, match=r"a\.db: another program holds it locked"):
        await writer.run(insert(2))
    locker.let_go()
    await writer.run(insert(3))

    assert numbers_in(path) == [1, 3]
    await writer.close()


async def test_a_full_disk_is_unavailable_and_loses_nothing_that_was_answered(
    tmp_path: Path,
) -> None:
    """Fault 47; the limit of pages stands for the disk."""
    path = tmp_path / "a.db"
    limits = [4, 1000]

    def make() -> sqlite3.Connection:
        connection = a_table(path)()
        connection.execute("CREATE TABLE IF NOT EXISTS big (x)")
        connection.execute(f"PRAGMA max_page_count = {limits.pop(0)}")
        return connection

    def fill(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO big VALUES (zeroblob(100000))")

    writer = SqliteThread(path, make)
    await writer.run(insert(1))

    with pytest.raises(Unavailable, match="the disk is full"):
        await writer.run(fill)
    await writer.run(fill)

    assert numbers_in(path) == [1]
    await writer.close()


async def test_a_file_that_was_replaced_is_opened_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    writer = SqliteThread(path, a_table(path))
    await writer.run(insert(1))
    for part in tmp_path.iterdir():
        part.unlink()

    await writer.run(insert(2))

    assert numbers_in(path) == [2]
    await writer.close()


async def test_a_write_in_a_cancelled_scope_is_carried_out_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    writer = SqliteThread(path, a_table(path))

    with anyio.CancelScope() as scope:
        scope.cancel()
        await writer.run(insert(1), shield=True)

    assert numbers_in(path) == [1]
    await writer.close()


async def test_waiting_for_a_lock_can_be_cancelled_and_the_thread_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    writer = SqliteThread(path, a_table(path))
    await writer.run(insert(1))
    locker = Locker(path)

    with anyio.move_on_after(0.05) as scope:
        await writer.run(insert(2))
    locker.let_go()
    await writer.run(insert(3))

    assert scope.cancelled_caught
    assert 3 in numbers_in(path)
    await writer.close()


async def test_closing_finishes_what_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    writer = SqliteThread(path, a_table(path))

    async with anyio.create_task_group() as group:
        for number in range(20):
            group.start_soon(writer.run, insert(number))
        await anyio.lowlevel.checkpoint()
        await writer.close()
    await writer.close()

    assert numbers_in(path) == list(range(20))
    with pytest.raises(Unavailable, match="has been closed"):
        await writer.run(insert(99))


@pytest.mark.parametrize("writes", [True, False])
async def test_a_thread_that_waits_holds_nothing_of_its_last_answer(
    tmp_path: Path, *, writes: bool
) -> None:
    class Answer:
        """What somebody was told, and has forgotten."""

    path = tmp_path / "a.db"
    thread = SqliteThread(path, a_table(path), writes=writes)
    gone = threading.Event()
    weakref.finalize(await thread.run(lambda _: Answer()), gone.set)

    assert await anyio.to_thread.run_sync(gone.wait, PATIENCE_S)
    await thread.close()


def test_a_connection_keeps_few_pages_in_memory(tmp_path: Path) -> None:
    with closing(connect(tmp_path / "a.db")) as connection:
        (kept,) = connection.execute("PRAGMA cache_size").fetchone()

    assert kept == -CACHE_KIB, "negative where it is meant in KiB"
    assert CACHE_KIB <= 256


async def test_a_thread_that_was_never_used_can_be_closed(tmp_path: Path) -> None:
    await SqliteThread(tmp_path / "a.db", a_table(tmp_path / "a.db")).close()

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"garbage " * 1000, b"SQLite format 3\0" + b"\xff" * 5000])
async def test_what_is_no_database_is_corrupt(tmp_path: Path, content: bytes) -> None:
    """Fault 48."""
    path = tmp_path / "a.db"
    path.write_bytes(content)
    writer = SqliteThread(path, a_table(path))

    # What to do about it depends on whose it is: that is said by whoever opens it.
    with pytest.raises(Corrupt, match=r"a\.db is damaged or no SQLite database \([^;]*\)$"):
        await writer.run(insert(1))

    await writer.close()
    assert path.read_bytes() == content


async def test_a_folder_in_the_way_is_unavailable(tmp_path: Path) -> None:
    writer = SqliteThread(tmp_path, a_table(tmp_path))

    with pytest.raises(Unavailable, match="it cannot be opened"):
        await writer.run(insert(1))

    await writer.close()


FIRST = ("CREATE TABLE a (x)",)
SECOND = ("ALTER TABLE a ADD COLUMN y", "INSERT INTO a VALUES (1, 2)")


def test_a_new_database_gets_every_migration_and_no_backup(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with closing(connect(path)) as connection:
        migrate(connection, path, (FIRST, SECOND))

        assert connection.execute("SELECT x, y FROM a").fetchall() == [(1, 2)]
        assert schema_version(connection) == 2
    assert [part.name for part in tmp_path.iterdir()] == ["a.db"]


def test_an_older_database_is_copied_and_then_moved_on(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with closing(connect(path)) as connection:
        migrate(connection, path, (FIRST,))
        connection.execute("INSERT INTO a VALUES (7)")
        migrate(connection, path, (FIRST, SECOND))
        migrate(connection, path, (FIRST, SECOND))

        assert connection.execute("SELECT x, y FROM a").fetchall() == [(7, None), (1, 2)]
    with closing(connect(tmp_path / "a.db.v1.bak", readonly=True)) as backup:
        assert backup.execute("SELECT * FROM a").fetchall() == [(7,)]
        assert schema_version(backup) == 1


def test_a_migration_that_fails_leaves_everything_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with closing(connect(path)) as connection:
        migrate(connection, path, (FIRST,))
        with pytest.raises(sqlite3.OperationalError):
            migrate(connection, path, (FIRST, (*SECOND, "nonsense")))

        assert schema_version(connection) == 1
        assert connection.execute("SELECT * FROM a").fetchall() == []


def test_a_newer_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with closing(connect(path)) as connection:
        migrate(connection, path, (FIRST, SECOND))

        with pytest.raises(ConfigError, match=r"schema 2, .* knows 1: upgrade"):
            migrate(connection, path, (FIRST,))


def test_a_damaged_database_is_put_aside_with_all_that_belongs_to_it(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    for suffix in ("", "-wal", "-shm"):
        (tmp_path / f"a.db{suffix}").write_text(suffix)

    aside = put_aside(path, "now")

    assert aside == tmp_path / "a.db.corrupt-now"
    assert {part.name: part.read_text() for part in tmp_path.iterdir()} == {
        "a.db.corrupt-now": "",
        "a.db.corrupt-now-wal": "-wal",
        "a.db.corrupt-now-shm": "-shm",
    }


def test_any_text_can_be_stored(tmp_path: Path) -> None:
    with closing(connect(tmp_path / "a.db")) as connection:
        kept = connection.execute("SELECT ?", (storable("ä\udce4\x00"),)).fetchone()[0]

    assert kept == "ä?\x00"


def test_the_switch_to_a_write_ahead_log_waits_for_others(tmp_path: Path) -> None:
    """SQLite's own time-out does not cover it when two switch at once."""
    path = tmp_path / "a.db"
    with (
        closing(connect(path, busy_s=0.0)) as ours,
        closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as another,
    ):
        another.execute("CREATE TABLE t (a)")
        another.execute("BEGIN IMMEDIATE")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            use_wal(ours, busy_s=0.0)
        later = threading.Timer(0.3, another.execute, ("COMMIT",))
        later.start()
        use_wal(ours, busy_s=30.0)
        later.join()

        assert ours.execute("PRAGMA journal_mode").fetchone() == ("wal",)
