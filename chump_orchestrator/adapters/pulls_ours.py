"""Whose a pushed commit is: told from this repository's own commits and reflogs (behaviour P6).

A branch's name proves nothing: an older attempt, another clone or a person may have used it. A
commit proves something when it was made here, on this dispatch's branch or by a push of it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from chump_orchestrator.adapters.git import Git, failure
from chump_orchestrator.core.errors import Unavailable
from chump_orchestrator.core.gap import plain
from chump_orchestrator.core.outcome import PullRequest, PullState
from chump_orchestrator.core.records import Watch

SLACK = timedelta(minutes=5)
"""How far clocks may differ, and what whole seconds cut off (behaviour P6)."""

SEEN = "refs/chump/seen/"
"""Followed by a dispatch's id: the last commit known to be pushed for it, and to be its own. It
outlives the branch, here and on the remote, and a restart of the daemon."""

KEPT = timedelta(days=90)
"""Age of a commit under `SEEN` that is not asked about, from which on it is let go."""

LOCAL_LIMIT = timedelta(seconds=30)
"""The longest that a git command may take that asks nobody else."""

MOST_COMMITS = 20_000
"""Of a branch, beyond its base, this many commits are looked at, newest first."""

_OID = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_MOVED = re.compile(r"(?:branch|reset|checkout|fetch|clone)\b|.*\bfast-forward", re.IGNORECASE)
_ONTO = re.compile(r"\bonto ([0-9a-f]{40,64})$")


def is_oid(text: object) -> bool:
    """Whether `text` is the whole name of an object."""
    return isinstance(text, str) and _OID.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class _Reflog:
    """Commits a branch has pointed at: those `made` on it, and those it was `moved` to.

    `is_kept` is false when nothing wrote it, so that an empty one says nothing.
    """

    made: frozenset[str]
    moved: frozenset[str]
    is_kept: bool


class Commits:
    """Questions about commits that cost one short git process each.

    All of them raise `Unavailable` when git fails at something that ought to work.
    """

    def __init__(self, git: Git, remote: str) -> None:
        """`remote` may be empty, for a repository whose branches are pushed nowhere."""
        self._git = git
        self._remote = remote
        self._ours: dict[str, str] = {}
        self._kept: dict[str, str] = {}
        self._is_tidy = False

    async def ask(
        self,
        *args: str,
        limit: timedelta = LOCAL_LIMIT,
        env: Mapping[str, str] | None = None,
        empty_on: int | None = None,
    ) -> str:
        """Return what git writes; `Unavailable`, with its own words, when it fails.

        An exit code of `empty_on` is no failure: the answer is empty then.
        """
        done = await self._git.run(*args, timeout=limit, env=env)
        if empty_on is not None and done.code == empty_on:
            return ""
        if done.code != 0:
            raise Unavailable(str(failure(args, done)))
        return done.out.decode("utf-8", "replace")

    async def fetch(self, refspecs: Iterable[str], limit: timedelta) -> None:
        """Fetch `refspecs`; the remote-tracking branches and `FETCH_HEAD` stay as they are.

        Without a destination only the objects come, which git keeps for two weeks.
        """
        options = ("--quiet", "--no-tags", "--no-write-fetch-head", "--refmap=")
        quietly = ("--no-recurse-submodules", "--no-auto-maintenance")
        async with self._git.lock():
            await self.ask("fetch", *options, *quietly, "--", self._remote, *refspecs, limit=limit)

    async def refs(self, patterns: Iterable[str]) -> dict[str, str]:
        """Return the refs that `patterns` name or lead to, and the commits they point at."""
        listing = await self.ask("for-each-ref", "--format=%(objectname) %(refname)", *patterns)
        pairs = (line.split(" ", 1) for line in listing.splitlines())
        return {ref: oid for oid, ref in pairs}

    async def known(self, oids: Iterable[str]) -> frozenset[str]:
        """Return those of `oids` that this repository has."""
        asked = sorted({oid for oid in oids if is_oid(oid)})
        if not asked:
            return frozenset()
        listing = await self.ask("rev-list", "--no-walk", "--ignore-missing", *asked, "--")
        return frozenset(listing.split())

    async def beyond(self, tip: str, *bases: str, first_parent: bool = False) -> dict[str, int]:
        """Return the commits of `tip` that are not in `bases`, and when, in epoch seconds."""
        options = ["--timestamp", f"--max-count={MOST_COMMITS}"]
        if first_parent:
            options.append("--first-parent")
        excluded = (f"^{base}" for base in bases)
        listing = await self.ask("rev-list", *options, tip, *excluded, "--")
        pairs = (line.split() for line in listing.splitlines())
        return {oid: int(seconds) for seconds, oid in pairs}

    async def is_ours(
        self, watch: Watch, tip: str, refs: Mapping[str, str], base_tip: str = ""
    ) -> bool:
        """Whether `tip`, a commit that is known here, carries a commit of this dispatch.

        `refs` are the present ones, of `watched_refs` at least. A branch that was only moved
        along the base branch carries nothing; to see that, its tip `base_tip` is needed, if
        there is one. Where no reflog and no earlier sighting tells who made a commit, one that
        was made since the launch counts.
        """
        if self._ours.get(watch.dispatch) == tip:
            return True
        # A base that is gone, after the base branch was rewritten, must not silence every look.
        base = await self.known((watch.base,))
        commits = await self.beyond(tip, *base)
        if not commits or not await self._tells(watch, commits, refs, base_tip):
            return False
        self._ours[watch.dispatch] = tip
        return True

    async def _tells(
        self, watch: Watch, commits: Mapping[str, int], refs: Mapping[str, str], base_tip: str
    ) -> bool:
        seen = refs.get(SEEN + watch.dispatch, "")
        if seen in commits:
            return True
        log = await self._reflog(watch, refs)
        if log.made & commits.keys():
            return True
        if moved := log.moved & commits.keys():
            upstream = await self.beyond(base_tip, first_parent=True) if base_tip else {}
            return not moved <= upstream.keys()
        if log.is_kept or seen:
            return False
        earliest = (watch.since - SLACK).timestamp()
        return any(made >= earliest for made in commits.values())

    async def _reflog(self, watch: Watch, refs: Mapping[str, str]) -> _Reflog:
        made, moved, is_kept = set(), set(), False
        earliest = (watch.since - SLACK).timestamp()
        for ref in (f"refs/heads/{watch.branch}", self._tracking(watch)):
            if ref not in refs:
                continue
            pushed = ref.startswith("refs/remotes/")
            options = ("--walk-reflogs", "--no-show-signature", "--date=unix")
            listing = await self.ask("log", *options, "--format=%H %gd %gs", ref, "--")
            for line in listing.splitlines():
                oid, _, rest = line.partition(" ")
                when, _, what = rest.partition(" ")
                onto = _ONTO.search(what)
                if pushed:
                    # A fetch tells of the others, too; only a push tells that it was from here.
                    if what.startswith("update by push") and _epoch(when) >= earliest:
                        moved.add(oid)
                    continue
                is_kept = True
                if _MOVED.match(what) or (onto is not None and onto[1] == oid):
                    moved.add(oid)
                else:
                    made.add(oid)
        return _Reflog(frozenset(made), frozenset(moved - made), is_kept)

    def watched_refs(self, watch: Watch) -> tuple[str, ...]:
        """Return the names of the refs that tell of `watch`, there or not."""
        own = (f"refs/heads/{watch.branch}", SEEN + watch.dispatch)
        return (*own, self._tracking(watch)) if self._remote else own

    def pushed(self, watch: Watch, refs: Mapping[str, str]) -> str:
        """Return the last commit that is known to have been pushed, or empty."""
        return refs.get(SEEN + watch.dispatch) or refs.get(self._tracking(watch), "")

    def _tracking(self, watch: Watch) -> str:
        return f"refs/remotes/{self._remote}/{watch.branch}"

    async def remember(self, watch: Watch, tip: str, refs: Mapping[str, str]) -> None:
        """Keep `tip`, which is ours, under `SEEN`."""
        if refs.get(SEEN + watch.dispatch) != tip:
            await self.ask("update-ref", SEEN + watch.dispatch, tip)
        self._kept[watch.dispatch] = tip

    async def let_go(
        self, watches: Iterable[Watch], sightings: Mapping[str, PullRequest], now: datetime
    ) -> None:
        """Drop the refs under `SEEN` that nothing more can come of.

        Those of requests that were merged and are not asked about any more; once in a process, of
        all others that are old. `sightings` are the last ones, by dispatch.
        """
        asked = {watch.dispatch for watch in watches}
        for dispatch in self._kept.keys() - asked:
            seen = sightings.get(dispatch)
            if seen is not None and seen.state is PullState.MERGED:
                with contextlib.suppress(Unavailable):  # it goes with age in any case
                    await self.ask("update-ref", "-d", SEEN + dispatch, self._kept.pop(dispatch))
        if not self._is_tidy:
            self._is_tidy = True
            await self._drop_old(asked, now)

    async def _drop_old(self, asked: Collection[str], now: datetime) -> None:
        shape = "--format=%(committerdate:unix) %(objectname) %(refname)"
        listing = await self.ask("for-each-ref", shape, SEEN)
        for line in listing.splitlines():
            seconds, oid, ref = line.split(" ", 2)
            is_old = int(seconds) < (now - KEPT).timestamp()
            if is_old and ref.removeprefix(SEEN) not in asked:
                await self.ask("update-ref", "-d", ref, oid)

    def forget(self, watches: Iterable[Watch]) -> None:
        """Drop from memory what is not of `watches`."""
        kept = {watch.dispatch for watch in watches}
        self._ours = {name: tip for name, tip in self._ours.items() if name in kept}
        self._kept = {name: tip for name, tip in self._kept.items() if name in kept}


def _epoch(selector: str) -> int:
    digits = selector.rpartition("{")[2].rstrip("}")
    return int(digits) if digits.isdecimal() else 0


def as_of_launch(watch: Watch) -> PullRequest:
    """Return what is certain of a branch of which nothing was ever read.

    There was no request at its launch; being told so is no news of any moment since.
    """
    return PullRequest(watch.branch, PullState.NONE, watch.since)


def in_short(text: str) -> str:
    """Return foreign `text` on one line, at most 200 characters, with nothing that can hide."""
    line = " ".join(plain(text).split())
    return line[:199] + "…" if len(line) > 200 else line or "it said nothing"  # noqa: PLR2004
