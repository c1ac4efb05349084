"""SQLite off the loop: a thread for each connection, writes committed in groups, schemas moved on.

Standard library only. What goes wrong comes out as `Unavailable` naming the file.
"""

from __future__ import annotations

import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from chump_orchestrator.adapters.sqlite_requests import (
    Done,
    Request,
    Result,
    Share,
    Work,
    answer_all,
    carry_out,
)
from chump_orchestrator.core.errors import ConfigError, Unavailable

if TYPE_CHECKING:
    import asyncio

BUSY_S = 5.0
"""How long a statement waits for another's lock before it is given up."""

_SWITCH_AGAIN_S = 0.01

CACHE_KIB = 256
"""Of pages that each connection keeps in memory; the rest is in the system's own cache, as near.

Of SQLite's 2 MiB every connection of a daemon fills all, as its files grow. Measured with a history
of 2,000 dispatches: one is found as fast (0.25 ms), all are read in 138 ms, not 120.
"""

GROUP = 256
"""At most so many writes share a commit, so that the first of them does not wait for long."""

__all__ = [
    "BUSY_S",
    "Corrupt",
    "Request",
    "Result",
    "Share",
    "SqliteThread",
    "Work",
    "connect",
    "for_its_owner_alone",
    "migrate",
    "put_aside",
    "schema_version",
    "storable",
    "translate",
    "use_wal",
]


class Corrupt(Unavailable):
    """The file is no SQLite database, or a damaged one. Only putting it aside helps."""


_HINTS = {
    sqlite3.SQLITE_BUSY: "another program holds it locked",
    sqlite3.SQLITE_LOCKED: "another program holds it locked",
    sqlite3.SQLITE_READONLY: "it cannot be written; see to its permissions and those of its folder",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened; see to its permissions and those of its folder",
    sqlite3.SQLITE_FULL: "the disk is full; make room",
    sqlite3.SQLITE_IOERR: "the disk failed or is full",
}


def translate(error: Exception, path: Path) -> Exception:
    """Return what to raise for `error`, which remains its cause; our own errors stay as they are.

    Damage becomes `Corrupt`; every other trouble with database or disk `Unavailable`.
    """
    if not isinstance(error, sqlite3.Error | OSError):
        return error
    # The low byte is the primary code, the rest tells it more exactly.
    code = getattr(error, "sqlite_errorcode", None) or 0
    told: Unavailable
    if code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        told = Corrupt(f"{path} is damaged or no SQLite database ({error})")
    else:
        hint = _HINTS.get(code & 0xFF)
        told = Unavailable(f"{path}: {hint} ({error})" if hint else f"{path}: {error}")
    told.__cause__ = error
    return told


def for_its_owner_alone(path: Path) -> None:
    """Make a file that is missing, and let nobody but its owner read it, whatever the umask.

    What SQLite puts beside a database has the same mode. Raises `OSError`.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(descriptor).st_mode & 0o077:
            os.fchmod(descriptor, 0o600)
    finally:
        os.close(descriptor)


def storable(text: str) -> str:
    """Return `text` with lone surrogates, which SQLite cannot hold, replaced by `?`."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def connect(path: Path, *, readonly: bool = False, busy_s: float = BUSY_S) -> sqlite3.Connection:
    """Open a connection for the calling thread that leaves all transactions to us.

    The time-out comes first, so that everything after it waits for locks. With `readonly` the
    file must be there.
    """
    where = f"{path.absolute().as_uri()}?mode={'ro' if readonly else 'rwc'}"
    connection = sqlite3.connect(where, timeout=busy_s, isolation_level=None, uri=True)
    try:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    except BaseException:
        connection.close()
        raise
    return connection


def use_wal(connection: sqlite3.Connection, *, busy_s: float = BUSY_S) -> None:
    """Have the database keep a write-ahead log; wait at most `busy_s` while others change it.

    SQLite does not wait for locks here: where two switch at once, one of them is told that the
    database is locked, whatever its time-out.
    """
    until = time.monotonic() + busy_s
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL").fetchone()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= until:
                raise
            time.sleep(_SWITCH_AGAIN_S)
        else:
            return


def schema_version(connection: sqlite3.Connection) -> int:
    """Return the `user_version` of a database, 0 for an empty one."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def migrate(
    connection: sqlite3.Connection,
    path: Path,
    migrations: Sequence[Sequence[str]],
    *,
    backs_up: bool = True,
) -> None:
    """Bring the schema to version `len(migrations)`, in one transaction.

    With `backs_up` an older one is copied to `<name>.v<old version>.bak` first. A newer one is a
    `ConfigError`: what this version would make of it, nobody knows.
    """
    found = schema_version(connection)
    if found > len(migrations):
        msg = (
            f"{path} has schema {found}, written by a newer version; this one knows"
            f" {len(migrations)}: upgrade chump-orchestrator, or move the file away"
        )
        raise ConfigError(msg)
    if found == len(migrations):
        return
    if found and backs_up:
        _back_up(connection, path.with_name(f"{path.name}.v{found}.bak"))
    connection.execute("BEGIN IMMEDIATE")
    try:
        for statements in migrations[schema_version(connection) :]:
            for statement in statements:
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(migrations)}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _back_up(connection: sqlite3.Connection, copy: Path) -> None:
    half = copy.with_name(f"{copy.name}.tmp")
    half.unlink(missing_ok=True)
    for_its_owner_alone(half)
    target = sqlite3.connect(half)
    try:
        connection.backup(target)
    finally:
        target.close()
    half.replace(copy)


def put_aside(path: Path, stamp: str) -> Path:
    """Rename a damaged database and what belongs to it; return its new name. Blocks."""
    aside = path.with_name(f"{path.name}.corrupt-{stamp}")
    for suffix in ("-wal", "-shm", ""):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.replace(aside.with_name(aside.name + suffix))
    return aside


class SqliteThread:
    """One thread that owns one connection and carries out what it is asked to, in order.

    As a writer it commits everything that came in while it was busy at once, and answers
    afterwards: whoever is answered is safe on disk, and thirty-two writers cost one fsync, not
    thirty-two. A request that fails is undone alone. As a reader it gives each request a
    snapshot of its own.

    The connection is made by `make`, in the thread, when it is first needed, and anew after any
    trouble or once another file lies at `path`.
    """

    def __init__(
        self, path: Path, make: Callable[[], sqlite3.Connection], *, writes: bool = True
    ) -> None:
        self._path = path
        self._make = make
        self._writes = writes
        self._queue: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None

    async def run(self, work: Work[Result], *, shield: bool = False) -> Result:
        """Do `work` in the thread and return its result, or raise what it raised.

        Work that was cancelled may have been done, or not; with `shield` a cancelled scope waits
        for the answer, which comes within the busy time-out and the time the disk needs.
        """
        if self._is_closed:
            raise self._closed()
        self.start()
        import asyncio  # noqa: PLC0415 - whoever only looks, in its own thread, has no loop

        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Result] = loop.create_future()
        self._queue.put(Request(work, loop, answer))
        if shield:
            import anyio  # noqa: PLC0415 - as above

            with anyio.CancelScope(shield=True):
                await answer
            return answer.result()
        return await answer

    def start(self) -> None:
        """Start the thread, if that has not been done."""
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._serve, name=f"sqlite {self._path.name}", daemon=True
            )
            self._thread.start()

    def take_over(self, request: Request) -> None:
        """Answer a request of another thread's in its stead; for threads that were started."""
        if self._is_closed:
            answer_all([Done(request, error=self._closed())])
        else:
            self._queue.put(request)

    def _closed(self) -> Unavailable:
        return Unavailable(f"{self._path} has been closed")

    async def close(self) -> None:
        """Finish what was asked for, close the connection and end the thread; twice is fine."""
        self._is_closed = True
        self._queue.put(None)
        if self._thread is not None:
            import anyio.to_thread  # noqa: PLC0415 - as above

            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self._thread.join)

    def _serve(self) -> None:
        while self._answer():
            pass
        self._drop()

    def _answer(self) -> bool:
        """Answer what is asked next; say whether more may come.

        A call for each time, so that nothing of an answer is held while the next is waited for.
        """
        batch, is_last = self._next()
        if batch:
            answer_all(self._transact(batch) if self._writes else self._read(batch))
        return not is_last

    def _next(self) -> tuple[list[Request], bool]:
        """Wait for a request, return it and those behind it, and whether they are the last."""
        batch: list[Request] = []
        try:
            while len(batch) < GROUP:
                request = self._queue.get(block=not batch)
                if request is None:
                    return batch, True
                batch.append(request)
        except queue.Empty:
            pass
        return batch, False

    def _transact(self, batch: list[Request]) -> list[Done]:
        try:
            connection = self._ready()
            connection.execute("BEGIN IMMEDIATE")
            try:
                done = carry_out(connection, batch)
            except Exception:  # noqa: BLE001 - whose it was comes out below
                # A savepoint for each would cost as much as the rows; failures are rare.
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                connection.execute("BEGIN IMMEDIATE")
                done = [self._in_savepoint(connection, request) for request in batch]
            connection.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - the thread must outlive it; callers are told
            self._drop()
            return self._all_failed(batch, error)
        if any(isinstance(each.error, Unavailable) for each in done):
            self._drop()
        return done

    def _in_savepoint(self, connection: sqlite3.Connection, request: Request) -> Done:
        connection.execute("SAVEPOINT request")
        try:
            value = request.work(connection)
        except Exception as error:
            # A full disk, for one, makes SQLite undo the whole group by itself.
            if not connection.in_transaction:
                raise
            connection.execute("ROLLBACK TO request")
            connection.execute("RELEASE request")
            return Done(request, error=translate(error, self._path))
        connection.execute("RELEASE request")
        return Done(request, value)

    def _read(self, batch: list[Request]) -> list[Done]:
        done: list[Done] = []
        for request in batch:
            try:
                done.append(Done(request, self._looked(request.work)))
            except Exception as error:  # noqa: BLE001 - as above
                done.append(Done(request, error=error))
        return done

    def _looked(self, work: Work[Result]) -> Result:
        """Do `work` on a snapshot of its own, in the thread that owns the connection."""
        try:
            connection = self._ready()
            connection.execute("BEGIN")
            found = work(connection)
            connection.execute("COMMIT")
        except Exception as error:
            self._drop()
            told = translate(error, self._path)
            if told is error:
                raise
            raise told from error
        return found

    def _all_failed(self, batch: Iterable[Request], error: Exception) -> list[Done]:
        return [Done(request, error=translate(error, self._path)) for request in batch]

    def _ready(self) -> sqlite3.Connection:
        if self._connection is not None and self._file != _identity(self._path):
            # Written on, the old connection would fill a file that nobody can see any more.
            self._drop()
        if self._connection is None:
            self._connection = self._make()
            self._file = _identity(self._path)
        return self._connection

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - twice as fast, and it runs for every commit
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
