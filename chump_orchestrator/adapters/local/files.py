"""The files of one dispatch as the daemon sees them: written durably, locked, read. Blocks."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from chump_orchestrator.shim.files import LOCK, PASSING, PROTOCOL, make_way

PROMPT, TEMPORARY = "prompt.txt", "tmp"

_PIECE = 256 * 1024


def write_durably(directory: Path, name: str, data: bytes) -> None:
    """Write a file that only its owner may read so that it is there, whole, once this returns."""
    temporary = directory / f"{name}.tmp"
    temporary.unlink(missing_ok=True)
    with open(temporary, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(directory / name)
    sync_folder(directory)


def write_object(directory: Path, name: str, content: Mapping[str, object]) -> None:
    """Write a JSON object durably, with the version of the protocol.

    What an agent may have put in the way of it is moved aside.
    """
    data = json.dumps({"v": PROTOCOL, **content}).encode() + b"\n"
    try:
        write_durably(directory, name, data)
    except OSError as error:
        if error.errno in PASSING or not directory.is_dir():
            raise
        make_way(str(directory / name))
        write_durably(directory, name, data)


def sync_folder(directory: Path) -> None:
    """Have the disk keep the names in a folder."""
    fd = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read_object(directory: Path, name: str) -> dict[str, object] | None:
    """Return a JSON object; `None` when there is no such file, empty when it holds none.

    Raises `OSError` when the file is there and cannot be read.
    """
    try:
        content = json.loads((directory / name).read_bytes())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError, IsADirectoryError):
        return {}
    return content if isinstance(content, dict) else {}


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[bool]:
    """Hold the lock of a dispatch, unless somebody else has it; gives whether it is held.

    While a shim lives, it has the lock; that is how one can tell. `OSError` when there is no
    such folder, or no lock can be made in it.
    """
    lock = _opened(directory / LOCK)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(lock)


def _opened(lock: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    try:
        return os.open(lock, flags, 0o600)
    except OSError as error:
        if error.errno in PASSING or not lock.parent.is_dir():
            raise
        make_way(str(lock))
        return os.open(lock, flags, 0o600)


def read_log(directory: Path, stream: str, offset: int) -> tuple[int, bytes]:
    """Return the next kept bytes of an ended stream from `offset` on, and where they begin.

    They begin later than asked for where bytes were dropped. No bytes: there are no more.
    """
    for start, path in _segments(directory, stream):
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            begin = max(offset, start)
            file.seek(begin - start)
            if data := file.read(_PIECE):
                return begin, data
    return offset, b""


def _segments(directory: Path, stream: str) -> list[tuple[int, Path]]:
    """The head, then the segments of the ring, which are named by the offset they begin at."""
    found = [(0, directory / f"{stream}.log")]
    for path in directory.glob(f"{stream}.*.log"):
        number = path.name[len(stream) + 1 : -len(".log")]
        if number.isdecimal():
            found.append((int(number), path))
    return sorted(found)


def delete(directory: Path) -> None:
    """Delete a folder with all that is in it; `OSError` when some of it resists."""
    shutil.rmtree(directory, ignore_errors=True)
    if directory.exists():
        # Tool chains make folders that not even their owner may write into.
        for folder, folders, _ in os.walk(directory):
            for child in (Path(folder, name) for name in folders):
                if not child.is_symlink():
                    with contextlib.suppress(OSError):
                        child.chmod(0o700)
        shutil.rmtree(directory)
