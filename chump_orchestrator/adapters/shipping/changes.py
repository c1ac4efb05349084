"""What a push would make public: commits, the paths they change, and the objects they bring.

Asked of plumbing commands alone, in an environment without credentials: what agents have written
into the repository's configuration or attributes has no say in what is seen.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta

import anyio.to_thread

from chump_orchestrator.adapters.git import Git, failure
from chump_orchestrator.core.errors import Refused

LIMIT = timedelta(minutes=2)
"""The longest that one of these commands may take."""

BATCH_BYTES = 16 * 1024 * 1024
"""Read from git at once; what is larger by itself is not read at all."""

LINK, SUBMODULE, NOTHING = "120000", "160000", "000000"

PLAIN = {
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_GRAFT_FILE": os.devnull,
    "GIT_CONFIG_COUNT": "1",
    "GIT_CONFIG_KEY_0": "core.commitGraph",
    "GIT_CONFIG_VALUE_0": "false",
}
"""Objects as they are pushed: none replaced by another, and no parent by hearsay."""


@dataclass(frozen=True, slots=True)
class Change:
    """A path that a commit changes; `oid` is empty where the commit removes it."""

    commit: str
    path: str
    mode: str
    oid: str


@dataclass(frozen=True, slots=True)
class Piece:
    """An object to look through: which one, how large, and where it comes from, in words."""

    oid: str
    size: int


async def asked(git: Git, *args: str, feed: bytes | None = None) -> bytes:
    """Return what git writes; raises as `Git.text` does."""
    finished = await git.run("--no-pager", *args, timeout=LIMIT, feed=feed, env=PLAIN)
    if finished.code != 0:
        raise failure(args, finished)
    return finished.out


async def commits_between(git: Git, head: str, known: Iterable[str], most: int) -> tuple[str, ...]:
    """Return the commits of `head` that are in none of `known`, at most `most` + 1."""
    excluded = tuple(f"^{oid}" for oid in known)
    listed = await asked(git, "rev-list", f"--max-count={most + 1}", head, *excluded, "--")
    return tuple(listed.decode("ascii").split())


async def changes_of(git: Git, commits: Sequence[str]) -> tuple[Change, ...]:
    """Return all that the commits change, each against its parents.

    Of a merge, what differs from all its parents: the rest was brought by one of them. A renamed
    file is one that is removed and one that is added.
    """
    shape = ("-r", "-c", "-z", "--raw", "--no-renames", "--root", "--no-abbrev", "--no-textconv")
    feed = "".join(f"{oid}\n" for oid in commits).encode()
    told = await asked(git, "diff-tree", "--stdin", *shape, feed=feed)
    return await anyio.to_thread.run_sync(_changes_in, told)


def _changes_in(listing: bytes) -> tuple[Change, ...]:
    told = listing.split(b"\0")
    found = []
    commit, position = "", 0
    while position < len(told):
        token = told[position]
        position += 1
        if not token.startswith(b":"):
            commit = token.decode("ascii") or commit
            continue
        fields = token.decode("ascii").split()
        # Of n parents: n modes and the new one, n objects and the new one, a status.
        parents = len(fields[0]) - len(fields[0].lstrip(":"))
        mode, oid = fields[parents], fields[2 * parents + 1]
        gone = mode == NOTHING
        path = os.fsdecode(told[position])
        position += 1
        found.append(Change(commit, path, mode, "" if gone else oid))
    return tuple(found)


async def sizes(git: Git, oids: Iterable[str]) -> tuple[Piece, ...]:
    """Return the sizes of objects; `Refused` when one is not there."""
    wanted = tuple(dict.fromkeys(oids))
    feed = "".join(f"{oid}\n" for oid in wanted).encode()
    shape = "--batch-check=%(objectname) %(objectsize)"
    told = (await asked(git, "cat-file", shape, feed=feed)).decode("ascii", "replace")
    pieces = []
    for line in told.splitlines():
        oid, _, size = line.partition(" ")
        if not size.isdecimal():
            raise Refused(f"git has no object {oid[:12]}, which is to be shipped")
        pieces.append(Piece(oid, int(size)))
    return tuple(pieces)


async def contents(git: Git, pieces: Sequence[Piece]) -> AsyncIterator[tuple[str, bytes]]:
    """Yield objects and what they hold, read some at a time."""
    batch: list[Piece] = []
    total = 0
    for piece in pieces:
        if batch and total + piece.size > BATCH_BYTES:
            for held in await _read(git, batch):
                yield held
            batch, total = [], 0
        batch.append(piece)
        total += piece.size
    if batch:
        for held in await _read(git, batch):
            yield held


async def _read(git: Git, pieces: Sequence[Piece]) -> list[tuple[str, bytes]]:
    feed = "".join(f"{piece.oid}\n" for piece in pieces).encode()
    told = await asked(git, "cat-file", "--batch=%(objectname) %(objectsize)", feed=feed)
    found, position = [], 0
    for piece in pieces:
        line = told.find(b"\n", position)
        expected = f"{piece.oid} {piece.size}".encode()
        if line < 0 or told[position:line] != expected:
            raise Refused(f"git does not tell what object {piece.oid[:12]} holds")
        end = line + 1 + piece.size
        found.append((piece.oid, told[line + 1 : end]))
        position = end + 1
    return found
