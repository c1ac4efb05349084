"""What can befall a database from outside: a lock, a full disk, a read-only file."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HOLD_A_LOCK = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.read()
"""


class Locker:
    """Another program that holds a database locked until it is told to let go."""

    def __init__(self, path: Path) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-c", HOLD_A_LOCK, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._child.stdout is not None
        assert self._child.stdout.readline() == b"locked\n"

    def let_go(self) -> None:
        self._child.communicate()


@contextmanager
def a_full_disk(limit_bytes: int) -> Iterator[None]:
    """Let no file grow beyond the limit meanwhile; to SQLite that is a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def read_only(path: Path) -> Iterator[None]:
    """Mark a database as written by a format that SQLite only reads; holds for root, too."""
    content = path.read_bytes()
    path.write_bytes(content[:18] + b"\x03" + content[19:])
    yield
    path.write_bytes(content)
