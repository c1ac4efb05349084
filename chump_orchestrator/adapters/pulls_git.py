"""Pull requests without a forge: a pushed branch is the request, the base branch the answer.

One `git ls-remote` a look; everything else is told from commits (behaviour P7).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from chump_orchestrator.adapters.git import Git
from chump_orchestrator.adapters.pulls_ours import SEEN, Commits, as_of_launch, in_short, is_oid
from chump_orchestrator.core.errors import ConfigError, Unavailable
from chump_orchestrator.core.outcome import PullRequest, PullState
from chump_orchestrator.core.ports import Clock
from chump_orchestrator.core.records import Watch

log = structlog.get_logger()

BASE = "refs/chump/base"
"""Keeps the base branch's tip when nobody else has fetched it yet."""

QUICKEST = timedelta(seconds=10)
SLOWEST = timedelta(seconds=60)
"""Between these, the remote may take one interval to answer: after that comes the next look."""

KEPT_IN_MEMORY = 500
"""Of so many dispatches that are not asked about any more, what was seen is kept."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where branches are looked for. Without a remote, among the local ones.

    `base` is a branch of the remote, or empty for its HEAD; without a remote, any revision.
    """

    remote: str
    base: str


@dataclass(frozen=True, slots=True)
class _Judged:
    """An answer, and all that it depends on; as long as that is the same, so is the answer."""

    question: tuple[str, ...]
    state: PullState
    head: str = ""


class GitPulls:
    """Says of each branch whether it is pushed, and whether the base branch has its work.

    Branches have no numbers and no checks. `base_ref` is like `origin/main`, or a local branch,
    whose repository is then looked at by itself; empty means the remote's HEAD branch, and in a
    repository without remotes its own. `interval` is the time between two looks, which the
    remote may take to answer. Ask one question at a time; cancelling leaves nothing behind.
    """

    def __init__(self, *, git: Git, base_ref: str, clock: Clock, interval: timedelta) -> None:
        self._git = git
        self._base_ref = base_ref
        self._clock = clock
        self._limit = min(max(interval, QUICKEST), SLOWEST)
        self._found: tuple[_Place, Commits] | None = None
        self._judged: dict[str, _Judged] = {}
        self._sightings: dict[str, PullRequest] = {}

    async def check(self) -> None:
        """See `core.ports.Pulls`: that the base is on a remote with a URL, or here."""
        place = await self._find_place()
        if not place.remote:
            return
        found = await self._git.run("remote", "get-url", "--", place.remote)
        # git takes the name of a remote without a URL for a path.
        if found.code != 0 or found.out.decode("utf-8", "replace").strip() == place.remote:
            raise ConfigError(
                f"remote {place.remote} has no URL; run `git remote set-url {place.remote} URL`,"
                " or set base_ref"
            )

    async def look(self, watches: Sequence[Watch]) -> Mapping[str, PullRequest]:
        if not watches:
            return {}
        if self._found is None:
            place = await self._find_place()
            self._found = place, Commits(self._git, place.remote)
        place, commits = self._found
        asked_at = self._clock.now()
        # Before the remote is asked: a branch that is pushed meanwhile must not look deleted.
        refs = await commits.refs({ref for watch in watches for ref in commits.watched_refs(watch)})
        if place.remote:
            tips, base_tip = await self._ask_remote(place, commits, watches)
        else:
            tips, base_tip = await self._ask_here(place, commits, refs)
        answer: dict[str, PullRequest] = {}
        # Where two dispatches used one branch, the later one's word is the branch's.
        for watch in sorted(watches, key=lambda watch: watch.since):
            try:
                seen = await self._see(watch, commits, tips, base_tip, refs, asked_at)
            except Unavailable as error:
                log.warning("pulls.branch_unread", branch=watch.branch, error=str(error))
                seen = self._sightings.get(watch.dispatch) or as_of_launch(watch)
            answer[watch.branch] = self._sightings[watch.dispatch] = seen
        await commits.let_go(watches, self._sightings, asked_at)
        self._forget(commits, watches)
        return answer

    async def _find_place(self) -> _Place:
        remotes = (await Commits(self._git, "").ask("remote")).split()
        name = self._base_ref.removeprefix("refs/remotes/")
        if name.startswith("-"):
            raise ConfigError(f"base_ref: {name!r} begins with a dash; write e.g. origin/main")
        if not name:
            if remotes:
                return _Place("origin" if "origin" in remotes else remotes[0], "")
            return _Place("", "HEAD")
        # Remotes may have slashes in their names: the longest that fits is meant.
        for remote in sorted(remotes, key=len, reverse=True):
            if name.startswith(remote + "/"):
                branch = name.removeprefix(remote + "/")
                return _Place(remote, "" if branch == "HEAD" else branch)
        return _Place("", self._base_ref)

    async def _ask_here(
        self, place: _Place, commits: Commits, refs: Mapping[str, str]
    ) -> tuple[Mapping[str, str], str]:
        base = f"{place.base}^{{commit}}"
        try:
            base_tip = await commits.ask("rev-parse", "--verify", base)
        except Unavailable as error:
            raise Unavailable(
                f"base_ref: there is no {place.base} in {self._git.root}, into which work is to be"
                f" merged ({error})"
            ) from error
        return refs, base_tip.strip()

    async def _ask_remote(
        self, place: _Place, commits: Commits, watches: Sequence[Watch]
    ) -> tuple[Mapping[str, str], str]:
        """Return what the remote's branches point at, and its base; known here afterwards."""
        base = f"refs/heads/{place.base}" if place.base else "HEAD"
        wanted = {base, *(f"refs/heads/{watch.branch}" for watch in watches)}
        # A pattern of ls-remote fits the ends of names, too: only whole names count.
        listing = await self._list(place.remote, commits, sorted(wanted))
        tips = {ref: oid for ref, oid in listing.items() if ref in wanted}
        if base not in tips:
            raise Unavailable(
                f"remote {place.remote} has no {base}, into which work is to be merged; push it,"
                " or name another with base_ref"
            )
        base_tip = tips[base]
        unknown = set(tips.values()) - await commits.known(tips.values())
        if unknown:
            refspecs = [ref for ref, oid in tips.items() if oid in unknown and ref != base]
            if base_tip in unknown:
                refspecs.append(f"+{base}:{BASE}")
            await commits.fetch(refspecs, self._limit)
            if unknown - await commits.known(unknown):
                raise Unavailable(f"{place.remote} changed while it was looked at; look again")
        return tips, base_tip

    async def _list(
        self, remote: str, commits: Commits, patterns: Iterable[str]
    ) -> Mapping[str, str]:
        command = ("ls-remote", "--quiet", "--", remote)
        try:
            text = await commits.ask(*command, *patterns, limit=self._limit)
        except Unavailable as error:
            raise Unavailable(
                f"{error}; see that `git ls-remote {remote}` works here without a prompt"
            ) from error
        pairs = (line.partition("\t") for line in text.splitlines())
        listing = {ref: oid for oid, _, ref in pairs}
        if strange := [oid for oid in listing.values() if not is_oid(oid)]:
            raise Unavailable(f"git ls-remote {remote} named no commit: {in_short(strange[0])}")
        return listing

    async def _see(
        self,
        watch: Watch,
        commits: Commits,
        tips: Mapping[str, str],
        base_tip: str,
        refs: Mapping[str, str],
        asked_at: datetime,
    ) -> PullRequest:
        tip = tips.get(f"refs/heads/{watch.branch}", "")
        last = tip or commits.pushed(watch, refs)
        own = (refs.get(ref, "") for ref in commits.watched_refs(watch) if not ref.startswith(SEEN))
        question = (tip, last, base_tip, *own)
        judged = self._judged.get(watch.dispatch)
        if judged is None or judged.question != question:
            head = last or refs.get(f"refs/heads/{watch.branch}", "")
            state = PullState.NONE
            if head and await commits.is_ours(watch, head, refs, base_tip):
                state = await self._judge(commits, head, base_tip, tip=tip, last=last)
                if last:
                    await commits.remember(watch, head, refs)
            judged = _Judged(question, state, "" if state is PullState.NONE else head)
            self._judged[watch.dispatch] = judged
        return PullRequest(watch.branch, judged.state, asked_at, head=judged.head)

    async def _judge(
        self, commits: Commits, head: str, base_tip: str, *, tip: str, last: str
    ) -> PullState:
        """Say what became of `head`, which is ours.

        `tip` is empty when the branch is gone, `last` when nobody saw it pushed. Then only its
        presence in the base branch proves that it was.
        """
        found = await commits.ask("merge-base", head, base_tip, empty_on=1)
        fork = found.strip()
        if fork == head:
            return PullState.MERGED
        if not last:
            return PullState.NONE
        if await self._has_all(commits, head, base_tip, fork):
            return PullState.MERGED
        return PullState.OPEN if tip else PullState.CLOSED

    async def _has_all(self, commits: Commits, head: str, base_tip: str, fork: str) -> bool:
        """Whether `base_tip` has the changes of `head` since `fork`, if not its commits."""
        if fork:
            names = (f"{commit}^{{tree}}" for commit in (head, fork, base_tip))
            tree, tree_before, base_tree = (await commits.ask("rev-parse", *names)).split()
            # A branch that takes back what it added changes nothing, and would fit anywhere.
            if tree != tree_before:
                if await self._adds_nothing(commits, head, fork, base_tip, base_tree):
                    return True
                squashed = await self._squashed(commits, tree, fork)
                if _all_there(await commits.ask("cherry", base_tip, squashed)):
                    return True
        return _all_there(await commits.ask("cherry", base_tip, head))

    async def _adds_nothing(
        self, commits: Commits, head: str, fork: str, base_tip: str, base_tree: str
    ) -> bool:
        """Whether merging `head` would leave the base branch's tree as it is."""
        merge = ("merge-tree", "--write-tree", "--no-messages", base_tip, head)
        merged = await self._git.run(*merge, timeout=self._limit)
        if merged.code in (0, 1):
            return merged.code == 0 and merged.out.decode("ascii", "replace").strip() == base_tree
        # git before 2.38 cannot merge without a work tree. There, what the branch has touched
        # must be the same in both.
        touched, differing = [
            set((await commits.ask("diff-tree", "-r", "-z", "--name-only", one, head)).split("\0"))
            for one in (fork, base_tip)
        ]
        return touched.isdisjoint(differing - {""})

    async def _squashed(self, commits: Commits, tree: str, fork: str) -> str:
        """Make the one commit that has the whole difference; for the same, it is the same."""
        date = "1970-01-01T00:00:00Z"
        whose = {
            f"GIT_{role}_{part}": text
            for role in ("AUTHOR", "COMMITTER")
            for part, text in (("NAME", "chump"), ("EMAIL", "chump@localhost"), ("DATE", date))
        }
        made = await commits.ask("commit-tree", "-p", fork, "-m", "squashed", tree, env=whose)
        return made.strip()

    def _forget(self, commits: Commits, watches: Sequence[Watch]) -> None:
        if len(self._judged) <= KEPT_IN_MEMORY + len(watches):
            return
        asked = {watch.dispatch for watch in watches}
        self._judged = {name: one for name, one in self._judged.items() if name in asked}
        self._sightings = {name: one for name, one in self._sightings.items() if name in asked}
        commits.forget(watches)


def _all_there(cherries: str) -> bool:
    """Whether `git cherry` found every commit it listed in the base branch, and listed any."""
    lines = cherries.splitlines()
    return bool(lines) and all(line.startswith("- ") for line in lines)
