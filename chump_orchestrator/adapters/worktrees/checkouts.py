"""Files that git writes into a new worktree: by how many workers, through what, if all came."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import anyio
import anyio.to_thread

from chump_orchestrator.adapters.git import Git, failure
from chump_orchestrator.adapters.worktrees.losses import QUIET
from chump_orchestrator.adapters.worktrees.registrations import Registration
from chump_orchestrator.core.dispatch import Workspace
from chump_orchestrator.core.errors import Refused, Unavailable

TIMEOUT = timedelta(minutes=10)
"""For writing every file of a large repository on a busy machine, or reading it."""

CORES_FOR_WORKERS = 4
"""With fewer, git's workers take half as much CPU again, and as long."""

AHEAD_S = 3600.0
"""How far an index is put ahead of the files that it lists, so that git trusts what it wrote."""

_ATTRIBUTES = ("--", ".gitattributes", ":(glob)**/.gitattributes")

_FILTERED = r"(^|[[:space:]])filter="
"""In an attributes file, what sends files through a program when they are written."""

_CONVERTED = r"(^|[[:space:]])(filter|text|eol|crlf|ident|working-tree-encoding)(=|[[:space:]]|$)"
"""The same, and whatever else makes files differ from what is stored."""


def written_with() -> tuple[str, ...]:
    """Return the options for commands of git that write many files."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        cores = os.cpu_count() or 1
    return (*QUIET, "-c", f"checkout.workers={4 if cores >= CORES_FOR_WORKERS else 1}")


class Conversions:
    """What the files of one repository go through when git writes them."""

    def __init__(self, git: Git) -> None:
        self._git = git
        self._without: dict[str, str] = {}

    async def is_filtered(self, base: str) -> bool:
        """Whether files at the commit `base` go through programs."""
        return await self._has(_FILTERED, base)

    async def is_any(self, base: str) -> bool:
        """Whether files at the commit `base` may differ from what is stored of them."""
        if await self._has(_CONVERTED, base):
            return True
        asked = await self._git.run("config", "--get-regexp", r"^core\.(autocrlf|attributesfile)$")
        lines = asked.out.decode("utf-8", "replace").lower().splitlines()
        return any(line != "core.autocrlf false" for line in lines)

    async def _has(self, pattern: str, base: str) -> bool:
        if self._without.get(pattern) != base:
            look = ("grep", "--quiet", "-E", "-e", pattern, base, *_ATTRIBUTES)
            found = await self._git.run(*look)
            if found.code == 0:
                return True
            if found.code != 1:
                raise failure(look, found)
            self._without[pattern] = base
        return await anyio.to_thread.run_sync(self._is_in_others, pattern)

    def _is_in_others(self, pattern: str) -> bool:
        """Whether the files of attributes say so that are in no commit."""
        home = self._git.env.get("HOME", "/nowhere")
        settings = self._git.env.get("XDG_CONFIG_HOME") or f"{home}/.config"
        told = re.compile(pattern.replace("[[:space:]]", r"\s"), re.MULTILINE)
        for file in (
            self._git.common_dir / "info" / "attributes",
            Path(settings) / "git" / "attributes",
            Path("/etc/gitattributes"),
        ):
            with contextlib.suppress(OSError):
                if told.search(file.read_text("utf-8", "replace")):
                    return True
        return False


async def verify(
    git: Git, workspace: Workspace, entry: Registration | None, *, reads: bool
) -> None:
    """See that a worktree which git has just made is whole, clean, and where it should begin.

    With `reads` the files are read, and looked for what is more than them. Without, what the file
    system tells of each must be what git noted when it had written it, which is enough where
    nothing but git has a hand in it. Raises `Unavailable` or `Refused` when it is not so. Nobody
    else may know of the worktree yet.
    """
    async with contextlib.AsyncExitStack() as stack:
        env, untracked = {}, "normal"
        if entry is not None and not reads:
            env, untracked = await stack.enter_async_context(_trusted(entry.admin)), "no"
        shown = await git.text(
            *(*QUIET, "status", "--porcelain=v2", "--branch", f"--untracked-files={untracked}"),
            cwd=workspace.path,
            timeout=TIMEOUT,
            env=env,
        )
    lines = shown.split("\n")
    wanted = {f"# branch.oid {workspace.base}", f"# branch.head {workspace.branch}"}
    if not wanted <= set(lines):
        raise Unavailable(f"{workspace.path} did not begin at {workspace.base}; try again")
    changed = [line for line in lines if not line.startswith("# ")]
    if changed:
        raise Refused(
            f"{workspace.path} was not clean when it was new, first {changed[0][:200]!r};"
            " see .gitattributes, line endings and names that differ in case only"
        )


@contextlib.asynccontextmanager
async def _trusted(admin: Path) -> AsyncIterator[dict[str, str]]:
    """Yield what makes git use a copy of the index that is younger than every file.

    git reads files anew that are as young as their index, as they may have changed since it looked
    at them. The index itself stays as it is, since an agent may change them next.
    """
    copy = admin / "chump-index-new"

    def make() -> None:
        shutil.copyfile(admin / "index", copy)
        young = (admin / "index").stat().st_mtime + AHEAD_S
        os.utime(copy, (young, young))

    try:
        try:
            await anyio.to_thread.run_sync(make)
        except OSError as error:
            raise Unavailable(f"{copy} cannot be written: {error.strerror}") from error
        yield {"GIT_INDEX_FILE": str(copy)}
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(functools.partial(copy.unlink, missing_ok=True))
