"""git commands on one repository, and the lock around those that trip over one another.

All of them keep the manners of `git_manners`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import field
from datetime import timedelta
from pathlib import Path

import anyio
import anyio.to_thread

from chump_orchestrator.adapters.git_manners import (
    OPTIONS,
    TIMEOUT_S,
    environment,
    joined,
    last_lines,
)
from chump_orchestrator.adapters.process import Finished
from chump_orchestrator.adapters.process import run as run_program
from chump_orchestrator.core.deferred import dataclass
from chump_orchestrator.core.errors import Refused, Unavailable

TIMEOUT = timedelta(seconds=TIMEOUT_S)
"""For a command that says nothing else."""

FETCH_TIMEOUT = timedelta(seconds=30)
"""Longest a fetch may take (behaviour D3)."""

LOCK_TIMEOUT = timedelta(minutes=2)
"""Longest wait for the lock; whoever holds it has limits, too, the longest being a fetch's."""

LOCK_NAME = "chump-worktree.lock"
"""In git's common directory, shared by all who make or remove worktrees there."""

ATTEMPT_S = 0.02
"""Between two attempts at a lock that somebody else holds."""

OVER_THE_NETWORK = frozenset({"fetch", "ls-remote", "push"})

MOVED_WAITS_S = (0.02, 0.1, 0.3)
"""Pauses before a fetch is tried again whose ref an agent's own push or fetch has just moved."""

PASSING = re.compile(
    r"\.lock'?: File exists|unable to create '[^']*\.lock|cannot lock ref|could not lock"
    r"|could not resolve|could not read from remote|unable to access|unable to look up"
    r"|connection|timed? ?out|early EOF|hung up|unexpected disconnect|no space left"
    r"|temporarily unavailable|cannot allocate memory|out of memory|too many open files"
    r"|terminal prompts disabled|authentication failed|permission denied \(publickey",
    re.IGNORECASE,
)
"""What git says of locks, networks and shortages: asking again may help."""


class Git:
    """git on one repository; `root` is its main work tree, `env` what git may see of ours."""

    OPTIONS = OPTIONS
    """Before every command."""

    def __init__(
        self, root: Path, env: Mapping[str, str], *, common_dir: Path | None = None
    ) -> None:
        self.root = root
        self.env = environment(env)
        self.common_dir = common_dir or _common_dir(root)
        self._turn = anyio.Lock()
        self._fetches: dict[tuple[str, ...], _Fetches] = {}
        self._own_ssh: bool | None = None

    async def run(
        self,
        *args: str,
        cwd: str | os.PathLike[str] | None = None,
        timeout: timedelta = TIMEOUT,  # noqa: ASYNC109 - see process.run
        feed: bytes | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Finished:
        """Run one command in `cwd`, by default the main work tree; its exit code is the caller's.

        `env` is added to the environment. Raises `Unavailable` and `Refused` as `process.run`
        does; cancelling kills git and what it has started.
        """
        variables = {**self.env, **(env or {})}
        if not OVER_THE_NETWORK.isdisjoint(args[:3]):
            variables = {**await self._ssh(), **variables}
        return await run_program(
            ("git", *self.OPTIONS, *args),
            cwd=self.root if cwd is None else cwd,
            env=variables,
            timeout=timeout,
            feed=feed,
        )

    async def text(
        self,
        *args: str,
        cwd: str | os.PathLike[str] | None = None,
        timeout: timedelta = TIMEOUT,  # noqa: ASYNC109 - see process.run
        feed: bytes | None = None,
        env: Mapping[str, str] | None = None,
    ) -> str:
        """Run one command and return its output without surrounding blanks.

        A non-zero exit raises `Unavailable` where a lock, a network or a shortage was in the way
        or git was killed, and `Refused` otherwise, with the last lines of what git said.
        """
        finished = await self.run(*args, cwd=cwd, timeout=timeout, feed=feed, env=env)
        if finished.code != 0:
            raise failure(args, finished)
        return finished.out.decode("utf-8", "replace").strip()

    async def commit(self, name: str) -> str:
        """Return the commit that `name` stands for, or empty when there is none."""
        return await self._resolved(f"{name}^{{commit}}") if name else ""

    async def tree(self, name: str) -> str:
        """Return the tree of the commit `name`, or empty when there is none."""
        return await self._resolved(f"{name}^{{tree}}") if name else ""

    async def _resolved(self, name: str) -> str:
        found = await self.run("rev-parse", "--verify", "--quiet", "--end-of-options", name)
        return found.out.decode("ascii").strip() if found.code == 0 else ""

    def lock(
        self,
        timeout: timedelta = LOCK_TIMEOUT,
    ) -> contextlib.AbstractAsyncContextManager[None]:
        """Hold the lock around adding, removing and fetching, for the whole repository.

        Waits in line with the other tasks of this process, then for other processes, in all at
        most `timeout`: then `Unavailable`. Not reentrant. Let go of on cancellation.
        """
        return self._lock(timeout)

    @contextlib.asynccontextmanager
    async def _lock(self, limit: timedelta) -> AsyncIterator[None]:
        path = self.common_dir / LOCK_NAME
        ends = anyio.current_time() + limit.total_seconds()
        with contextlib.ExitStack() as held:
            try:
                with anyio.fail_at(ends):
                    await self._turn.acquire()
            except TimeoutError as error:
                raise _locked(path, limit) from error
            held.callback(self._turn.release)
            left = timedelta(seconds=ends - anyio.current_time())
            async with file_lock(path, left):
                yield

    async def fetch(
        self,
        remote: str,
        refspecs: Sequence[str],
        timeout: timedelta = FETCH_TIMEOUT,  # noqa: ASYNC109 - see process.run
    ) -> None:
        """Fetch `refspecs` from `remote` under the lock; tags, hooks and `FETCH_HEAD` stay out.

        Callers who wait while such a fetch runs share the next one, and its failure. Raises as
        `text` does; not being allowed or able to reach the remote is `Unavailable`.
        """
        fetches = self._fetches.setdefault((remote, *refspecs), _Fetches())
        wanted = fetches.begun + 1
        async with fetches.turn:
            if fetches.ended >= wanted:
                fetches.tell()
                return
            fetches.begun += 1
            number = fetches.begun
            try:
                await self._fetch(remote, refspecs, timeout)
            except (Refused, Unavailable) as error:
                fetches.ended, fetches.failure = number, error
                raise
            fetches.ended, fetches.failure = number, None

    async def _fetch(self, remote: str, refspecs: Sequence[str], limit: timedelta) -> None:
        for wait_s in (*MOVED_WAITS_S, None):
            try:
                await self._fetch_once(remote, refspecs, limit)
            except Unavailable as error:
                if wait_s is None or "cannot lock ref" not in str(error):
                    raise
                await anyio.sleep(wait_s)
            else:
                return

    async def _fetch_once(self, remote: str, refspecs: Sequence[str], limit: timedelta) -> None:
        async with self.lock():
            await self.text(
                "fetch",
                "--quiet",
                "--no-tags",
                "--no-write-fetch-head",
                "--no-recurse-submodules",
                "--no-auto-maintenance",
                "--",
                remote,
                *refspecs,
                timeout=limit,
            )

    async def _ssh(self) -> Mapping[str, str]:
        # The variable outranks core.sshCommand, with which operators choose keys: then it is
        # theirs to see to it that ssh asks nothing; without a terminal it cannot ask anyway.
        if self._own_ssh is None:
            configured = await run_program(
                ("git", *self.OPTIONS, "config", "--get", "core.sshCommand"),
                cwd=self.root,
                env=self.env,
                timeout=TIMEOUT,
            )
            self._own_ssh = configured.code == 0 or "GIT_SSH" in self.env
        return {} if self._own_ssh else {"GIT_SSH_COMMAND": "ssh -o BatchMode=yes"}


@dataclass(slots=True)
class _Fetches:
    turn: anyio.Lock = field(default_factory=anyio.Lock)
    begun: int = 0
    ended: int = 0
    failure: Refused | Unavailable | None = None

    def tell(self) -> None:
        if self.failure is not None:
            raise type(self.failure)(*self.failure.args) from self.failure


def failure(args: Sequence[str], finished: Finished) -> Refused | Unavailable:
    """Return what a command's non-zero exit means, to be raised; nothing secret is in it."""
    settings = {place + 1 for place, arg in enumerate(args) if arg in ("-c", "-C")}
    words = (arg for place, arg in enumerate(args) if place not in settings)
    command = next((word for word in words if not word.startswith("-")), "")
    if finished.code < 0:
        return Unavailable(f"git {command} was killed by signal {-finished.code}; try again")
    said = last_lines(finished.err) or f"exit code {finished.code}"
    kind = Unavailable if PASSING.search(finished.err.decode("utf-8", "replace")) else Refused
    return kind(f"git {command} failed: {said}")


@contextlib.asynccontextmanager
async def file_lock(path: Path, timeout: timedelta) -> AsyncIterator[None]:  # noqa: ASYNC109
    """Hold an exclusive flock on the file `path`, made where it is missing.

    Raises `Unavailable` when it is not to be had within `timeout`. Let go of on cancellation,
    and by the kernel when this process dies.
    """
    ends = anyio.current_time() + timeout.total_seconds()
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise Unavailable(f"{path} cannot be opened for locking: {error.strerror}") from error
    try:
        while not await anyio.to_thread.run_sync(_try_lock, descriptor, path):
            if anyio.current_time() >= ends:
                raise _locked(path, timeout)
            await anyio.sleep(ATTEMPT_S)
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int, path: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise Unavailable(f"{path} cannot be locked: {error.strerror}") from error
    return True


def _locked(path: Path, waited: timedelta) -> Unavailable:
    return Unavailable(
        f"{path} has been locked by somebody else for {waited.total_seconds():g} s; see which"
        " process holds it, for instance with fuser"
    )


def _common_dir(root: Path) -> Path:
    # Read, not asked of git: a broken worktree can make git fail before it has been healed.
    dot_git = root / ".git"
    try:
        text = dot_git.read_text("utf-8", "surrogateescape")
    except OSError:
        return dot_git
    return joined(root, text.removeprefix("gitdir:").strip())
