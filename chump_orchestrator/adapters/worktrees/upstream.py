"""Where dispatches begin: the base branch, fetched when that is due (behaviour D3)."""

from __future__ import annotations

import contextlib
import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import anyio.to_thread

from chump_orchestrator.adapters.git import Git
from chump_orchestrator.core.deferred import dataclass
from chump_orchestrator.core.errors import ConfigError, Refused, Unavailable
from chump_orchestrator.core.ports import Clock
from chump_orchestrator.telling import Logger

log = Logger()

GRACE = timedelta(hours=1)
"""How long the last known commit serves while the remote cannot be fetched (behaviour D3)."""

HEADS_TIMEOUT = timedelta(seconds=10)
"""For asking the remote for its branches, which is only a courtesy."""

_NO_SUCH_BRANCH = "couldn't find remote ref"
"""What git says when the remote has answered, and has no branch of that name."""

_OID = rb"[0-9a-f]{40}(?:[0-9a-f]{24})?"

STAMP = "chump-fetched"
"""In git's common directory; its time is that of the last fetch that succeeded."""


@dataclass(frozen=True, slots=True)
class Base:
    """A ref to begin from; `remote` is empty for a local one, which is never fetched."""

    ref: str
    remote: str = ""
    branch: str = ""


class Upstream:
    """The base branch of a repository, and how fresh it is.

    `base_ref` is the operator's choice, empty for the HEAD branch of the remote, or of the main
    work tree where there is no remote. `interval` is how old a fetch may be.
    """

    def __init__(self, git: Git, base_ref: str, interval: timedelta, clock: Clock) -> None:
        self._git = git
        self._base_ref = base_ref
        self._interval = interval
        self._clock = clock
        self._turn = anyio.Lock()
        self._base: Base | None = None
        self._tried: tuple[datetime, float] | None = None
        self._fetched: float | None = None
        self._failure = ""
        self._is_absent = False
        self._heads: frozenset[str] | None = None
        self._told: object = None
        self._at_hand = ""

    async def refresh(self, at_least: datetime | None = None) -> str:
        """Return the commit of the base, fetched where that is due or older than `at_least`.

        A failed fetch is a warning for an hour after the last good one, then `Unavailable`. A
        base that waiting brings no nearer, since nobody has made it yet, is `Refused`. Callers
        wait for one another.
        """
        async with self._turn:
            if self._is_due(at_least):
                self._base = None
            if self._base is None or self._tried is None:
                self._base = await self._resolve()
                if self._base.remote:
                    await self._fetch(self._base)
                else:
                    self._tried = (self._clock.now(), self._clock.monotonic())
            return await self._commit(self._base)

    async def ref(self) -> str:
        """Return the full name of the base, as far as it is known; empty when it is not."""
        async with self._turn:
            if self._base is None:
                with contextlib.suppress(ConfigError, Refused, Unavailable):
                    self._base = await self._resolve()
            return "" if self._base is None else self._base.ref

    async def known(self) -> tuple[Base, str]:
        """Return the base and the commit it has here, empty where it has none; fetches nothing.

        Asks the remote for its HEAD branch where that is not on record. Raises as `refresh` does
        for a base that cannot be told.
        """
        async with self._turn:
            base = self._base or await self._resolve()
        return base, await self._git.commit(base.ref)

    async def at_hand(self) -> str:
        """Return the commit that the base has here, empty where none is known; asks nobody else."""
        ref = await self.ref()
        if not ref:
            return ""
        told = await anyio.to_thread.run_sync(_told, self._git.common_dir, ref)
        if told is None or told != self._told:
            self._told, self._at_hand = told, await self._git.commit(ref)
        return self._at_hand

    async def heads(self, prefix: str) -> frozenset[str]:
        """Return the remote's branches that begin with `prefix`, asked for once per fetch.

        Empty when there is no remote or it does not answer: then what was fetched must do.
        """
        async with self._turn:
            if self._heads is None:
                self._heads = await self._ask_heads(prefix)
            return self._heads

    async def _ask_heads(self, prefix: str) -> frozenset[str]:
        if self._base is None or not self._base.remote or self._failure:
            return frozenset()
        pattern = f"refs/heads/{prefix}*"
        try:
            listed = await self._git.text(
                "ls-remote", "--heads", "--", self._base.remote, pattern, timeout=HEADS_TIMEOUT
            )
        except (Refused, Unavailable) as error:
            log.debug("base.heads_failed", remote=self._base.remote, error=str(error))
            return frozenset()
        refs = (line.partition("\t")[2] for line in listed.splitlines())
        return frozenset(ref.removeprefix("refs/heads/") for ref in refs)

    def _is_due(self, at_least: datetime | None) -> bool:
        if self._tried is None:
            return True
        moment, monotonic = self._tried
        if at_least is not None and moment < at_least:
            return True
        return self._clock.monotonic() - monotonic > self._interval.total_seconds()

    async def _fetch(self, base: Base) -> None:
        began = self._clock.monotonic()
        self._tried = (self._clock.now(), began)
        refspec = f"+refs/heads/{base.branch}:{base.ref}"
        try:
            await self._git.fetch(base.remote, [refspec])
        except (Refused, Unavailable) as error:
            self._failure = str(error)
            self._is_absent = isinstance(error, Refused) and _NO_SUCH_BRANCH in self._failure
            age = await self._age(base)
            log.warning("base.fetch_failed", ref=base.ref, error=str(error), age_s=_seconds(age))
            return
        self._failure, self._is_absent = "", False
        self._heads = None
        self._fetched = began
        await anyio.to_thread.run_sync(self._stamp)
        log.debug("base.fetched", ref=base.ref)

    async def _commit(self, base: Base) -> str:
        if self._failure:
            age = await self._age(base)
            if age is None or age > GRACE:
                if self._is_absent:
                    raise _absent(base)
                raise Unavailable(
                    f"{base.remote} has not been fetched for {_said(age)}: {self._failure};"
                    " see to the network and the credentials, or set base_ref"
                )
        told = await anyio.to_thread.run_sync(_told, self._git.common_dir, base.ref)
        if self._at_hand and told is not None and told == self._told:
            return self._at_hand
        found = await self._git.run(
            "rev-parse", "--verify", "--quiet", "--end-of-options", f"{base.ref}^{{commit}}"
        )
        if found.code != 0:
            if self._failure and not self._is_absent:
                raise Unavailable(
                    f"base_ref: {base.ref} names no commit here, and {base.remote} could not be"
                    f" fetched: {self._failure}; see to the network and the credentials"
                )
            raise _absent(base)
        self._told, self._at_hand = told, found.out.decode("ascii").strip()
        return self._at_hand

    async def _resolve(self) -> Base:
        if self._base_ref.startswith("-"):
            raise ConfigError(f"base_ref: {self._base_ref!r} is no ref; for instance origin/main")
        remotes = (await self._git.text("remote")).split()
        if self._base_ref:
            name = self._base_ref.removeprefix("refs/remotes/")
            for remote in sorted(remotes, key=len, reverse=True):
                branch = name.removeprefix(f"{remote}/")
                if branch not in (name, ""):
                    return Base(f"refs/remotes/{name}", remote, branch)
            return Base(self._base_ref)
        if not remotes:
            head = await self._git.run("symbolic-ref", "--quiet", "HEAD")
            return Base(head.out.decode("utf-8", "replace").strip() or "HEAD")
        if "origin" not in remotes and len(remotes) > 1:
            raise ConfigError(
                f"base_ref: there are several remotes ({', '.join(remotes)}); say which branch of"
                f" which one, for instance {remotes[0]}/main"
            )
        remote = "origin" if "origin" in remotes else remotes[0]
        branch = await self._head_branch(remote)
        return Base(f"refs/remotes/{remote}/{branch}", remote, branch)

    async def _head_branch(self, remote: str) -> str:
        ours = f"refs/remotes/{remote}/"
        known = await self._git.run("symbolic-ref", "--quiet", f"{ours}HEAD")
        if known.code == 0:
            return known.out.decode("utf-8", "replace").strip().removeprefix(ours)
        try:
            asked = await self._git.text(
                "ls-remote", "--symref", "--", remote, "HEAD", timeout=HEADS_TIMEOUT
            )
        except (Refused, Unavailable) as error:
            asked, reason = "", f": {error}"
        else:
            reason = ""
        for line in asked.splitlines():
            if line.startswith("ref: refs/heads/"):
                return line.partition("\t")[0].removeprefix("ref: refs/heads/")
        for branch in ("main", "master"):
            found = await self._git.run("rev-parse", "--verify", "--quiet", ours + branch)
            if found.code == 0:
                return branch
        kind = Unavailable if reason else Refused
        raise kind(
            f"base_ref: {remote} does not tell its HEAD branch{reason}; push a first commit, run"
            f" `git remote set-head {remote} --auto`, or set base_ref"
        )

    async def _age(self, base: Base) -> timedelta | None:
        if self._fetched is not None:
            return timedelta(seconds=self._clock.monotonic() - self._fetched)
        moment = await anyio.to_thread.run_sync(self._last_contact, base)
        return None if moment is None else self._clock.now() - moment

    def _stamp(self) -> None:
        stamp = self._git.common_dir / STAMP
        moment = self._clock.now().timestamp()
        with contextlib.suppress(OSError):
            stamp.touch()
            os.utime(stamp, (moment, moment))

    def _last_contact(self, base: Base) -> datetime | None:
        # Before the first fetch of this process: our own of earlier ones, the operator's, a
        # clone, and a loose ref, which only a fetch or a push has written.
        common = self._git.common_dir
        remote = f"refs/remotes/{base.remote}"
        times = [
            _modified(place)
            for place in (
                common / STAMP,
                common / "FETCH_HEAD",
                common / remote / "HEAD",
                common / base.ref,
            )
        ]
        known = [time for time in times if time is not None]
        return max(known, default=None)


def _absent(base: Base) -> Refused:
    if base.remote:
        return Refused(
            f"base_ref: {base.remote} has no branch {base.branch}; push a first commit to it"
            f" (`git push {base.remote} HEAD:{base.branch}`), or set base_ref to a branch that"
            " exists"
        )
    return Refused(
        f"base_ref: {base.ref} names no commit here; make a first commit on it, or set base_ref"
        " to a branch that exists"
    )


def _told(common: Path, ref: str) -> object:
    """Return what git has of a ref in files, `None` where that does not settle what it names."""
    try:
        text = (common / ref).read_bytes().strip()
    except FileNotFoundError:
        text = b""
    except OSError:
        return None
    if text or not ref.startswith("refs/"):
        return (ref, text) if re.fullmatch(_OID, text) else None
    try:
        seen = (common / "packed-refs").stat()
    except OSError:  # or refs are kept in other ways
        return None
    return (ref, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns)


def _modified(place: Path) -> datetime | None:
    try:
        return datetime.fromtimestamp(place.stat().st_mtime, UTC)
    except OSError:
        return None


def _seconds(age: timedelta | None) -> float | None:
    return None if age is None else round(age.total_seconds())


def _said(age: timedelta | None) -> str:
    return "ever" if age is None else str(timedelta(seconds=round(age.total_seconds())))
