"""What the orchestrator keeps: its folder, databases, leases, socket; and whether a daemon runs."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import sqlite3
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from chump_orchestrator import premises
from chump_orchestrator.adapters.ledger_schema import MIGRATIONS
from chump_orchestrator.adapters.sqlite import connect, schema_version
from chump_orchestrator.core.errors import ConfigError, Refused, Unavailable
from chump_orchestrator.daemon.address import LONGEST_ADDRESS, address
from chump_orchestrator.doctor.findings import Check, Finding, fail, ok, warn
from chump_orchestrator.doctor.subject import Subject, in_thread

BUSY_S = 2.0
"""How long a database may be locked before that is said of it."""

TOO_LONG_S = 1.0
"""A turn of the daemon's loop for which an operator waits noticeably."""

TOO_LONG_REMEDY = "if the machine is too busy, give it fewer agents (`max_parallel`)"

_SOCKET = ".doctor.sock"
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


async def look_at_folder(subject: Subject) -> Sequence[Finding]:
    """Look at owner and permissions of the state folder and of what lies in it."""
    return await in_thread(_judged_folder, subject.state)


def _judged_folder(state: Path) -> list[Finding]:
    if not os.path.lexists(state):
        parent = next(one for one in state.parents if one.is_dir())
        if not os.access(parent, os.W_OK | os.X_OK):
            text = f"{state} is not there, and {parent} cannot be written"
            return [fail(text, "give yourself access to it")]
        return [ok(f"{state} is not there yet; the first run makes it")]
    if not state.is_dir():
        return [fail(f"{state} is no folder", "move it away")]
    foreign = [path for path, status in _own_files(state) if status.st_uid != os.geteuid()]
    if foreign:
        text = f"{foreign[0]} belongs to another user"
        remedy = f"run as that user, or give it to yours: chown -R {os.geteuid()} {state}"
        return [fail(text, remedy)]
    if not os.access(state, os.W_OK | os.X_OK):
        return [fail(f"{state} cannot be written", f"chmod 700 {state}")]
    if open_ones := _too_open(state):
        text = f"others may read {open_ones[0]}"
        more = f" and {len(open_ones) - 1} more" if len(open_ones) > 1 else ""
        return [fail(text + more, "`doctor --fix` takes the permission away")]
    return [ok(f"{state} is its owner's alone")]


def _too_open(state: Path) -> list[Path]:
    """Return what others may read or write although it should be its owner's alone."""
    return [
        path
        for path, status in _own_files(state)
        if status.st_mode & 0o077 and not stat.S_ISLNK(status.st_mode)
    ]


def _own_files(state: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield what must be private: the folder, databases and sockets in it, dispatches' folders.

    What lies deeper is behind these folders.
    """
    with contextlib.suppress(OSError):
        yield state, state.stat()
    for pattern in ("*.db*", "*.lock", "*.sock", "d", "d/*"):
        for path in sorted(state.glob(pattern)):
            with contextlib.suppress(OSError):
                yield path, path.lstat()


async def mend_folder(subject: Subject) -> Sequence[str]:
    """Take from others what they may read of the folder."""
    return await in_thread(_close_to_others, subject.state)


def _close_to_others(state: Path) -> list[str]:
    done = []
    for path in _too_open(state):
        status = path.lstat()
        if status.st_uid == os.geteuid():
            path.chmod(stat.S_IMODE(status.st_mode) & ~0o077)
            done.append(f"chmod go= {path}")
    return done


async def look_at_databases(subject: Subject) -> Sequence[Finding]:
    """Have SQLite look through ledger and journal, without writing to them."""
    journal = subject.settings.journal
    ledger = subject.state / "ledger.db"
    shared = [subject.place(journal.reflections), subject.place(journal.routing)]
    found = await in_thread(_judged_database, ledger, len(MIGRATIONS))
    for path in shared if journal.enabled else []:
        found += await in_thread(_judged_database, path, None)
    return found or [ok("none is there yet")]


def _judged_database(path: Path, newest: int | None) -> list[Finding]:
    """Judge one database; `newest` is the latest schema that is known here, where it is ours."""
    if not path.exists():
        return []
    remedy = (
        "start `run`, which moves it aside and makes a new one"
        if newest is not None
        else f"move it away with its -wal and -shm, or restore a copy: {path}"
    )
    try:
        with contextlib.closing(connect(path, readonly=True, busy_s=BUSY_S)) as connection:
            connection.execute("PRAGMA query_only = ON")
            said = [str(row[0]) for row in connection.execute("PRAGMA quick_check(5)")]
            version = schema_version(connection)
    except sqlite3.Error as error:
        code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
        if code in _DAMAGE:
            return [fail(f"{path} is damaged or no database ({error})", remedy)]
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            text = f"{path} is locked by another program"
            return [warn(text, f"see which one holds it (fuser {path}), and for how long")]
        text = f"{path} cannot be opened ({error})"
        return [fail(text, "give yourself access to it and to its folder")]
    if said != ["ok"]:
        return [fail(f"{path} is damaged ({'; '.join(said)[:200]})", remedy)]
    if newest is not None and version > newest:
        text = f"{path} has schema {version}, and this version knows {newest}"
        return [fail(text, "upgrade chump-orchestrator, or move the file away")]
    return [ok(f"{path.name} is whole")]


async def look_at_socket(subject: Subject) -> Sequence[Finding]:
    """Look whether a socket can be made where the daemon makes its own."""
    path = premises.control_path(subject.root, subject.loaded)
    return await in_thread(_judged_socket, path)


def _judged_socket(path: Path) -> list[Finding]:
    length = len(os.fsencode(path))
    folder = path.parent
    if folder.is_dir():
        # Another name than the daemon's own, which may be in use.
        trial = folder / _SOCKET
        try:
            with socket.socket(socket.AF_UNIX) as listener, address(trial) as name:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name)  # noqa: PTH108 - what an interrupted check has left
                listener.bind(name)
                os.unlink(name)  # noqa: PTH108 - by the short name, as the long one may fail
        except OSError as error:
            text = f"no socket can be made in {folder}: {error.strerror or error}"
            remedy = "set state.dir to a folder on a disk, with a shorter path"
            return [fail(text, remedy)]
    if length > LONGEST_ADDRESS:
        text = f"the control socket's path has {length} bytes, more than the {LONGEST_ADDRESS}"
        return [ok(f"{text} that sockets take; it is reached through a link")]
    return [ok(f"the control socket's path has {length} bytes, of {LONGEST_ADDRESS} at most")]


async def look_at_daemon(subject: Subject) -> Sequence[Finding]:
    """Ask the daemon how it is; that none runs is no fault."""
    path = premises.control_path(subject.root, subject.loaded)
    try:
        status = await in_thread(subject.ask, path)
    except (ConfigError, Refused, Unavailable) as error:
        text = f"a daemon listens and does not answer: {error}"
        return [fail(text, "see its log, and restart it: agents live on")]
    if status is None:
        if await in_thread(_is_locked, path.parent / "daemon.lock"):
            text = "a daemon has this repository and does not listen"
            return [fail(text, "if it does not begin just now, restart it: agents live on")]
        return [*await _paused_without(subject), ok("none runs on this repository")]
    daemon = status.get("daemon") or {}
    found = []
    if reason := daemon.get("paused_by"):
        found.append(warn(f"dispatching is held up: {reason}", "`resume`, once that is mended"))
    if problem := daemon.get("backlog_problem"):
        found.append(warn(f"the backlog is used as it was: {problem}", "mend it, then `reload`"))
    silent_s = daemon.get("forge_silent_s")
    patience_s = 10 * subject.settings.pulls.interval.total_seconds()
    if isinstance(silent_s, int | float) and silent_s > patience_s:
        text = f"the forge has not answered the daemon for {silent_s / 60:.0f} min"
        found.append(warn(text, "see the checks remote and gh, and the daemon's log"))
    longest_s, told = _longest_turn(daemon)
    if longest_s >= TOO_LONG_S:
        found.append(warn(f"the daemon could not answer for a while: {told}", TOO_LONG_REMEDY))
    runs = f"it runs (pid {daemon.get('pid')}) and is {daemon.get('state')}"
    return found or [ok("; ".join(filter(None, (runs, told))))]


def _longest_turn(daemon: Mapping[str, Any]) -> tuple[float, str]:
    """Return the longest turn of a daemon's loop of late, in seconds, and in words."""
    loop = daemon.get("loop")
    longest_ms = loop.get("longest_turn_ms") if isinstance(loop, dict) else None
    if not isinstance(longest_ms, int | float):
        return 0.0, ""
    return longest_ms / 1e3, f"the longest turn of its loop of late took {longest_ms:.0f} ms"


async def _paused_without(subject: Subject) -> list[Finding]:
    try:
        async with premises.open_ledger(subject.root, subject.loaded, readonly=True) as ledger:
            pause = await ledger.pause()
    except (ConfigError, Refused, Unavailable):
        return []  # a check of its own looks at the ledger
    if pause is None:
        return []
    text = f"the next one begins paused, by {pause.by}: {pause.reason or 'without a reason'}"
    return [warn(text, "`resume`, when you want agents started")]


def _is_locked(lock: Path) -> bool:
    """Say whether a daemon has its lock; that is shared for a moment, and not taken."""
    with contextlib.suppress(OSError), lock.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


STATE = "state"
CHECKS = (
    Check("daemon", STATE, "a daemon that runs answers and dispatches", look_at_daemon),
    Check("state", STATE, "the state folder is its owner's alone", look_at_folder, mend_folder),
    Check("database", STATE, "ledger and journal are whole", look_at_databases, limit_s=60.0),
    Check("socket", STATE, "the daemon's socket can be made", look_at_socket),
)
