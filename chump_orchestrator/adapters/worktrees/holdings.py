"""What commits hold at paths, and whether files are that, byte for byte."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import anyio.to_thread

from chump_orchestrator.adapters.git import Git, failure

MOST_FILES = 5_000
MOST_BYTES = 64 << 20
"""Read at most: with more, git itself is as quick."""

SHA1_DIGITS = 40
"""Of an object's name; those of SHA-256 have more."""


@dataclass(frozen=True, slots=True)
class Held:
    """What a commit or an index has at a path: a mode, and the object's name; empty for nothing."""

    mode: str
    oid: str


NOTHING = Held("", "")


async def differences(git: Git, base: str, tip: str) -> dict[str, Held]:
    """Return what the commit `tip` has at the paths in which it differs from `base`."""
    if base == tip:
        return {}
    look = ("diff-tree", "-r", "-z", "--raw", "--no-renames", "--no-abbrev", base, tip, "--")
    shown = await git.run(*look)
    if shown.code != 0:
        raise failure(look, shown)
    return await anyio.to_thread.run_sync(_held_there, shown.out)


async def listed(git: Git, path: Path, env: Mapping[str, str]) -> dict[str, Held]:
    """Return what the index of a worktree holds; `env` says which."""
    look = ("ls-files", "--stage", "-z")
    shown = await git.run(*look, cwd=path, env=env)
    if shown.code != 0:
        raise failure(look, shown)
    return await anyio.to_thread.run_sync(_staged, shown.out)


def _held_there(shown: bytes) -> dict[str, Held]:
    return {
        path: NOTHING if status == "D" else Held(fields[1], fields[3])
        for path, status, fields in raw(shown)
    }


def _staged(shown: bytes) -> dict[str, Held]:
    found = {}
    for line in os.fsdecode(shown).split("\0")[:-1]:
        told, _, name = line.partition("\t")
        mode, oid, _ = told.split(" ")
        found[name] = Held(mode, oid)
    return found


def raw(shown: bytes) -> Iterator[tuple[str, str, list[str]]]:
    """Read what `--raw -z` shows: paths, the letters that say what became of them, all fields."""
    parts = shown.split(b"\0")
    for told, name in zip(parts[::2], parts[1::2], strict=False):
        fields = told.decode("ascii").removeprefix(":").split(" ")
        yield os.fsdecode(name), fields[4], fields


def are_there(path: Path, expected: Mapping[str, Held]) -> bool:
    """Whether the files below `path` are as expected; not if that is too much to read. Blocks.

    Where nothing is expected a folder may be. Raises `OSError`.
    """
    if len(expected) > MOST_FILES:
        return False
    left = MOST_BYTES
    for name, what in expected.items():
        place = path / name
        try:
            seen = place.lstat()
        except (FileNotFoundError, NotADirectoryError):
            if what.oid:
                return False
            continue
        left -= seen.st_size
        if not what.oid:
            if not stat.S_ISDIR(seen.st_mode):
                return False
        elif left < 0 or not _is(place, seen, what):
            return False
    return True


def _is(place: Path, seen: os.stat_result, what: Held) -> bool:
    if stat.S_ISLNK(seen.st_mode) and what.mode == "120000":
        data = os.fsencode(place.readlink())
    elif stat.S_ISREG(seen.st_mode) and what.mode == (
        "100755" if seen.st_mode & stat.S_IXUSR else "100644"
    ):
        data = place.read_bytes()
    else:
        return False
    kind = hashlib.sha1 if len(what.oid) == SHA1_DIGITS else hashlib.sha256
    return kind(b"blob %d\0" % len(data) + data).hexdigest() == what.oid
