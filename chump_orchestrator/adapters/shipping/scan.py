"""Every commit that would be pushed, looked through for secrets and forbidden paths.

Not the last state alone: a file that a later commit removes is pushed as well. Nothing that was
found is ever repeated; what is told is where, and by which rule.
"""

from __future__ import annotations

import os
import posixpath
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from fnmatch import fnmatchcase

import anyio
import anyio.to_thread

from chump_orchestrator.adapters.git import Git
from chump_orchestrator.adapters.shipping.changes import (
    BATCH_BYTES,
    LINK,
    PLAIN,
    SUBMODULE,
    Change,
    changes_of,
    commits_between,
    contents,
    sizes,
)
from chump_orchestrator.adapters.shipping.paths import ForbiddenPaths
from chump_orchestrator.adapters.shipping.secret_shapes import (
    OWN,
    KnownSecrets,
    Match,
    shapes_in,
)
from chump_orchestrator.core.gap import on_one_line
from chump_orchestrator.core.shipping import Sealed, Withheld

LIMIT = timedelta(minutes=5)
"""The longest that looking through one dispatch's work may take."""

MOST_COMMITS = 2000
MOST_PATHS = 100_000
MOST_BYTES = 512 * 1024 * 1024
"""More than that is no work of one dispatch, and is not shipped unseen."""

SHOWN_FINDINGS = 3
PATH_SHOWN = 120
"""How many findings a reason tells of, and how many characters of a path."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What keeps a commit from being pushed: the rule, and where; `path` may be a message's."""

    rule: str
    place: str
    commit: str


@dataclass(frozen=True, slots=True)
class _Hit:
    """A match, and the change or message that it stands in."""

    match: Match
    place: str
    path: str
    commit: str


class Scan:
    """Looks through what lies between what the remote has and a commit.

    `git` must have no credentials in its environment. `allow` are patterns with `*`: of paths that
    are not searched for shapes, and of texts that are no secrets though they look so.
    """

    def __init__(
        self, git: Git, paths: ForbiddenPaths, known: KnownSecrets, allow: Sequence[str]
    ) -> None:
        self._git = git
        self._paths = paths
        self._known = known
        self._allow = tuple(allow)

    async def look(self, head: str, base: str, there: Iterable[str]) -> Sealed | Withheld:
        """Look through the commits of `head` that are in neither `base` nor `there`.

        Those must be known here. Raises as git does; safe to cancel.
        """
        try:
            with anyio.fail_after(LIMIT.total_seconds()):
                return await self._look(head, base, (base, *there))
        except TimeoutError:
            return Withheld(f"its work could not be looked through within {LIMIT}")

    async def _look(self, head: str, base: str, known: Sequence[str]) -> Sealed | Withheld:
        commits = await commits_between(self._git, head, known, MOST_COMMITS)
        if len(commits) > MOST_COMMITS:
            return Withheld(f"it has more than {MOST_COMMITS} commits, too many to look through")
        changes = await changes_of(self._git, commits)
        if len(changes) > MOST_PATHS:
            return Withheld(f"it changes more than {MOST_PATHS} paths, too many to look through")
        findings = await anyio.to_thread.run_sync(self._forbidden, changes)
        findings += await self._nested(changes, head)
        origins = _origins(changes)
        pieces = await sizes(self._git, (*origins, *commits))
        large = [piece for piece in pieces if piece.size > BATCH_BYTES]
        for piece in large:
            for change in origins.get(piece.oid, ())[:1]:
                if not self._is_allowed(change.path):
                    rule = f"too large to look through ({piece.size // 2**20} MiB)"
                    findings.append(Finding(rule, _shown(change.path), change.commit))
        small = [piece for piece in pieces if piece.size <= BATCH_BYTES]
        if sum(piece.size for piece in small) > MOST_BYTES:
            return Withheld(f"it has more than {MOST_BYTES // 2**20} MiB, too much to look through")
        hits = await anyio.to_thread.run_sync(self._in_paths, changes)
        telling = {_shown(hit.path) for hit in hits}
        async for oid, data in contents(self._git, small):
            # It only computes: who is cancelled need not wait for the end of that.
            matches = await anyio.to_thread.run_sync(self._matches, data, abandon_on_cancel=True)
            hits += self._hits(oid, matches, origins)
            if oid in origins:
                findings += self._links(data, origins[oid])
        findings += await self._new_ones(hits, base)
        if findings:
            return Withheld(_told(findings, unnamed=telling))
        files = len({change.path for change in changes})
        return Sealed(head, f"{_counted(len(commits), 'commit')}, {_counted(files, 'path')}")

    def _matches(self, data: bytes) -> tuple[Match, ...]:
        return tuple(dict.fromkeys((*self._known.found_in(data), *shapes_in(data))))

    def _hits(
        self, oid: str, matches: Sequence[Match], origins: Mapping[str, Sequence[Change]]
    ) -> list[_Hit]:
        if oid not in origins:
            # A commit itself: its message, and who it is by.
            return [_Hit(match, "its message", "", oid) for match in matches]
        return [
            _Hit(match, _shown(change.path), change.path, change.commit)
            for match in matches
            for change in origins[oid]
        ]

    def _in_paths(self, changes: Sequence[Change]) -> list[_Hit]:
        """Return what stands in the names of files themselves, which is seldom anything."""
        if not self._matches(b"\n".join(os.fsencode(change.path) for change in changes)):
            return []
        return [
            _Hit(match, "the name of a file", change.path, change.commit)
            for change in changes
            for match in self._matches(os.fsencode(change.path))
        ]

    async def _new_ones(self, hits: Sequence[_Hit], base: str) -> list[Finding]:
        """Return what is neither allowed nor part of the base, where the remote has it already."""
        is_new: dict[bytes, bool] = {}
        findings = []
        for hit in hits:
            match = hit.match
            text = match.found.decode("utf-8", "replace")
            if match.rule != OWN and self._is_allowed(hit.path, text):
                continue
            if match.found not in is_new:
                is_new[match.found] = not await self._stands_in(base, match.found)
            if is_new[match.found]:
                findings.append(Finding(match.rule, hit.place, hit.commit))
        return findings

    async def _stands_in(self, base: str, found: bytes) -> bool:
        """Whether the tree of `base` has it; told on standard input, as arguments can be read."""
        if b"\n" in found or b"\0" in found:
            return False
        question = ("grep", "--quiet", "--text", "--fixed-strings", "--threads=1", "-f", "-")
        told = await self._git.run(*question, base, "--", feed=found + b"\n", env=PLAIN)
        return told.code == 0

    def _forbidden(self, changes: Sequence[Change]) -> list[Finding]:
        found = []
        for change in changes:
            is_link = change.mode in (LINK, SUBMODULE)
            if pattern := self._paths.forbidding(change.path, is_link=is_link):
                rule = f"forbidden path ({pattern})"
                found.append(Finding(rule, _shown(change.path), change.commit))
        return found

    def _links(self, data: bytes, changes: Sequence[Change]) -> list[Finding]:
        """Return the links that lead to forbidden paths, or out of the repository."""
        found = []
        for change in changes:
            if change.mode != LINK:
                continue
            target = os.fsdecode(data)
            end = posixpath.normpath(posixpath.join(posixpath.dirname(change.path), target))
            rule = ""
            if target.startswith("/") or end.split("/")[0] == "..":
                rule = "link out of the repository"
            elif pattern := self._paths.forbidding(end, is_link=True):
                rule = f"link to a forbidden path ({pattern})"
            if rule and not self._is_allowed(change.path):
                found.append(Finding(rule, _shown(change.path), change.commit))
        return found

    async def _nested(self, changes: Sequence[Change], head: str) -> list[Finding]:
        """Return repositories within the repository that `.gitmodules` does not know.

        Nobody else could have what is in them, and nothing of it would be shipped.
        """
        nested = [change for change in changes if change.mode == SUBMODULE]
        if not nested:
            return []
        question = ("config", "-z", "--blob", f"{head}:.gitmodules", "--get-regexp", r"\.path$")
        told = await self._git.run(*question, env=PLAIN)
        entries = told.out.split(b"\0") if told.code == 0 else []
        known = {os.fsdecode(entry.partition(b"\n")[2]) for entry in entries}
        return [
            Finding("repository within the repository", _shown(change.path), change.commit)
            for change in nested
            if change.path not in known and not self._is_allowed(change.path)
        ]

    def _is_allowed(self, *texts: str) -> bool:
        return any(fnmatchcase(text, pattern) for pattern in self._allow for text in texts if text)


def _origins(changes: Sequence[Change]) -> dict[str, list[Change]]:
    """Return which changes bring which object; what a submodule points at is not pushed."""
    found = defaultdict(list)
    for change in changes:
        if change.oid and change.mode != SUBMODULE:
            found[change.oid].append(change)
    return dict(found)


def _told(findings: Sequence[Finding], unnamed: Container[str]) -> str:
    """Say what was found where; paths that hold a secret themselves are not named."""
    told = (
        f"{one.rule} in {'a file' if one.place in unnamed else one.place}, commit {one.commit[:12]}"
        for one in findings
    )
    distinct = list(dict.fromkeys(told))
    shown = "; ".join(distinct[:SHOWN_FINDINGS])
    more = len(distinct) - SHOWN_FINDINGS
    return f"not pushed: {shown}" + (f"; and {more} more" if more > 0 else "")


def _shown(path: str) -> str:
    text = on_one_line(path.encode("utf-8", "replace").decode())
    return text if len(text) <= PATH_SHOWN else f"…{text[1 - PATH_SHOWN :]}"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
