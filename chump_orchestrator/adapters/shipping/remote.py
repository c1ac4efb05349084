"""Where work is pushed to: the remote, what it has by now, and whether its address is still ours.

An agent can write into the repository's configuration. Whatever there says where git goes, and
what it runs on its way, must be as it was when the daemon began: then only is it asked for with
the daemon's credentials.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from chump_orchestrator.adapters.git import Git
from chump_orchestrator.core.errors import ConfigError, Refused, Unavailable

ASK_LIMIT = timedelta(seconds=30)
"""For asking the remote for its branches, and for fetching what of them is unknown here."""

_TELLING = re.compile(
    r"url\..*|credential\..*|http\..*|ssh\..*|protocol\..*"
    r"|core\.(?:sshcommand|gitproxy|askpass)",
    re.IGNORECASE,
)
_OF_A_REMOTE = ("url", "pushurl", "push", "receivepack", "uploadpack", "vcs", "proxy", "mirror")
"""Settings that decide where a push goes, or that name a program for git to run on its way."""


@dataclass(frozen=True, slots=True)
class Survey:
    """What the remote has: its base branch, that branch's tip, and the tip of ours, or empty."""

    base_branch: str
    base_tip: str
    branch_tip: str


class Remote:
    """The remote that work is pushed to; `name` is empty in a repository that has none.

    `base_ref` is the operator's choice of a base, such as `origin/main`, empty for the remote's
    HEAD branch. `variables` are set for git when it asks the remote.
    """

    def __init__(self, git: Git, base_ref: str, variables: Mapping[str, str]) -> None:
        self._git = git
        self._variables = dict(variables)
        self._base_ref = base_ref.removeprefix("refs/remotes/")
        self._found: tuple[str, str] | None = None
        self._sealed: Mapping[str, str] | None = None

    async def place(self) -> tuple[str, str]:
        """Return the remote's name and the base branch there, either empty where it is not told."""
        if self._found is None:
            self._found = await self._find()
        return self._found

    async def seal(self) -> None:
        """Take note of the configuration that is to stay as it is; the first time counts."""
        if self._sealed is None:
            self._sealed = await self._telling()

    async def see_that_it_is_ours(self) -> None:
        """Raise `Unavailable` when the repository's configuration leads elsewhere by now."""
        await self.seal()
        now, before = await self._telling(), self._sealed or {}
        changed = sorted(key for key in {*now, *before} if now.get(key, "") != before.get(key, ""))
        if changed:
            raise Unavailable(
                f"the repository's configuration has changed since the daemon began"
                f" ({', '.join(changed[:3])}), and nothing is pushed by it; put it back, or look at"
                " it and restart the daemon"
            )

    async def survey(self, branch: str) -> Survey:
        """Ask the remote what it has; the base's tip is known here afterwards."""
        name, base = await self.place()
        if not name:
            return Survey("", "", "")
        await self.see_that_it_is_ours()
        wanted = (f"refs/heads/{base}" if base else "HEAD", f"refs/heads/{branch}")
        options = ("--quiet", "--symref")
        listed = await self._git.text(
            "ls-remote",
            *options,
            "--",
            name,
            *wanted,
            timeout=ASK_LIMIT,
            env=self._variables,
        )
        tips: dict[str, str] = {}
        for line in listed.splitlines():
            oid, _, ref = line.partition("\t")
            if oid.startswith("ref: refs/heads/") and ref == "HEAD":
                base = oid.removeprefix("ref: refs/heads/")
            elif ref in wanted:
                tips[ref] = oid
        base_tip = tips.get(wanted[0], "")
        if base_tip and not await self._git.commit(base_tip):
            await self._fetch(name, base or "HEAD")
        is_known = base_tip and await self._git.commit(base_tip)
        return Survey(base, base_tip if is_known else "", tips.get(wanted[1], ""))

    async def _fetch(self, name: str, base: str) -> None:
        """Fetch the objects of the base; no ref is moved."""
        options = ("--quiet", "--no-tags", "--no-write-fetch-head", "--refmap=")
        quietly = ("--no-recurse-submodules", "--no-auto-maintenance")
        async with self._git.lock():
            command = ("fetch", *options, *quietly, "--", name, base)
            await self._git.text(*command, timeout=ASK_LIMIT, env=self._variables)

    async def _find(self) -> tuple[str, str]:
        remotes = (await self._git.text("remote")).split()
        if self._base_ref.startswith("-"):
            raise ConfigError(f"base_ref: {self._base_ref!r} begins with a dash; e.g. origin/main")
        for remote in sorted(remotes, key=len, reverse=True):
            branch = self._base_ref.removeprefix(f"{remote}/")
            if branch not in (self._base_ref, ""):
                return remote, "" if branch == "HEAD" else branch
        if not remotes:
            return "", ""
        remote = "origin" if "origin" in remotes else remotes[0]
        # A local branch as base is, by its name, the remote's, too.
        return remote, self._base_ref if await self._is_branch(self._base_ref) else ""

    async def _is_branch(self, name: str) -> bool:
        if not name:
            return False
        ref = f"refs/heads/{name}"
        return (await self._git.run("show-ref", "--verify", "--quiet", ref)).code == 0

    async def _telling(self) -> Mapping[str, str]:
        told = await self._git.run("config", "-z", "--list", "--show-scope")
        if told.code != 0:
            raise Refused("git config cannot be read; see `git config --list`")
        name, _ = await self.place()
        ours = {f"remote.{name}.{variable}" for variable in _OF_A_REMOTE}
        words = told.out.decode("utf-8", "replace").split("\0")
        found: dict[str, str] = {}
        for scope, entry in zip(words[::2], words[1::2], strict=False):
            key, _, value = entry.partition("\n")
            if scope in ("local", "worktree") and (key in ours or _TELLING.fullmatch(key)):
                found[key] = f"{found.get(key, '')}\n{value}"
        return found
