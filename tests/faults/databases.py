"""Databases locked by another process, spoiled, or on a disk that is full."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HOLDER = """\
import sqlite3, sys
held = []
for name in sys.argv[2:]:
    one = sqlite3.connect(name, isolation_level=None, timeout=20)
    if sys.argv[1] == "whole":
        one.execute("PRAGMA locking_mode = EXCLUSIVE")
    one.execute("CREATE TABLE IF NOT EXISTS theirs (x)")
    one.execute("BEGIN EXCLUSIVE")
    held.append(one)
print("held", flush=True)
sys.stdin.read()
for one in held:
    one.execute("COMMIT")
"""


@contextlib.contextmanager
def locked(*databases: Path, whole: bool = False) -> Iterator[None]:
    """Have another process hold these databases; with `whole` they cannot be read either."""
    for database in databases:
        database.parent.mkdir(parents=True, exist_ok=True)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, "whole" if whole else "writing", *map(str, databases)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "held\n"
        yield
    finally:
        holder.stdin.close()
        holder.stdout.close()
        if holder.wait(20) != 0:
            holder.kill()


@contextlib.contextmanager
def small_disk(place: Path, size: str = "4m") -> Iterator[None]:
    """Put a disk of this size at `place`; skips where that is not allowed."""
    place.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a small disk needs root, and the right to mount")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path, name: str = "filler") -> None:
    """Write until the disk has not a byte left."""
    with (place / name).open("ab", buffering=0) as filler:
        for size in (65536, 4096, 1):
            with contextlib.suppress(OSError):
                while filler.write(b"x" * size):
                    pass


@contextlib.contextmanager
def read_only(file: Path) -> Iterator[None]:
    """Have a file that nobody can write, root neither; skips where that is not allowed."""
    steps = (
        ["mount", "--bind", str(file), str(file)],
        ["mount", "-o", "remount,bind,ro", str(file)],
    )
    if os.geteuid() != 0 or subprocess.run(steps[0], check=False, capture_output=True).returncode:
        pytest.skip("a file that root cannot write needs root, and the right to mount")
    try:
        subprocess.run(steps[1], check=True)
        yield
    finally:
        subprocess.run(["umount", "-l", str(file)], check=True)


def garbage(database: Path) -> None:
    """Put bytes in the place of a database that are none."""
    _drop_log(database)
    database.write_bytes(b"garbage!" * 4096)


def torn(database: Path) -> None:
    """Cut a database in half."""
    _drop_log(database)
    os.truncate(database, database.stat().st_size // 2)


def holed(database: Path) -> None:
    """Lose what was written to the pages behind the first."""
    _fold(database)
    data = database.read_bytes()
    database.write_bytes(data[:4096] + bytes(len(data) - 4096))


def unreadable(database: Path) -> None:
    """Have rows that no version can have written, in a database that is sound."""
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE dispatches SET names = '[', route = x'ff00'")


def without_log(database: Path) -> None:
    """Lose what was committed to the write-ahead log alone."""
    _drop_log(database)


def newer(database: Path) -> None:
    """Have a schema of a version to come."""
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("PRAGMA user_version = 99")


def _drop_log(database: Path) -> None:
    for suffix in ("-wal", "-shm"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)


def _fold(database: Path) -> None:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    _drop_log(database)
