"""Work that is looked at where an agent left it, and pushed: one commit to one branch, no force."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from pathlib import Path

import anyio.to_thread

from chump_orchestrator.adapters.git import Git, failure
from chump_orchestrator.adapters.shipping.changes import commits_between
from chump_orchestrator.adapters.shipping.paths import ForbiddenPaths
from chump_orchestrator.adapters.shipping.remote import Remote, Survey
from chump_orchestrator.adapters.shipping.scan import Scan
from chump_orchestrator.adapters.shipping.secret_shapes import KnownSecrets
from chump_orchestrator.core.causes import Cause
from chump_orchestrator.core.dispatch import Workspace
from chump_orchestrator.core.errors import Refused, Unavailable
from chump_orchestrator.core.gap import on_one_line
from chump_orchestrator.core.shipping import Letter, Opened, Sealed, Withheld

PUSH_LIMIT = timedelta(minutes=5)
"""The longest that a push may take; large ones over slow lines need a while."""

SAID_LIMIT = 300
"""Characters kept of what a remote says to a push that it does not take."""

_LOCAL = ("PATH", "HOME", "USER", "LOGNAME", "TMPDIR", "XDG_CONFIG_HOME", "LANG")
_CONFIGURING = re.compile(r"GIT_(?:CONFIG_(?:GLOBAL|NOSYSTEM|SYSTEM)|EXEC_PATH)")
_OPTIONS = (
    "--porcelain",
    "--no-verify",
    "--no-follow-tags",
    "--no-signed",
    "--recurse-submodules=no",
)
_PASSING = re.compile(
    r"cannot lock ref|failed to lock|internal|try again|timed? ?out|temporar|unpacker error",
    re.IGNORECASE,
)
"""What a remote says of a push that it may take the next time."""


class GitShipper:
    """Ships by plain git: the branch that is pushed is the request; see `core.shipping.Shipper`.

    `forbidden` are the operator's patterns of paths, `always` those of our own folders; `secrets`
    the values that must not be shipped, `allow` what only looks like a secret. With `commits`, work
    that is not committed is committed rather than withheld, by `identity`.
    """

    def __init__(
        self,
        *,
        git: Git,
        base_ref: str,
        forbidden: Iterable[str] = (),
        always: Iterable[str] = (),
        secrets: Iterable[str] = (),
        allow: Iterable[str] = (),
        commits: bool = False,
        identity: Mapping[str, str] | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """`variables` are set for git while it pushes, to find its credentials by."""
        self._variables = dict(variables or {})
        self.remote = Remote(git, base_ref, self._variables)
        self._git = git
        self._identity = dict(identity or {})
        self._commits = commits
        # Nothing that only looks needs a credential, whatever an agent has made git run.
        self._local = Git(git.root, _without_credentials(git.env), common_dir=git.common_dir)
        paths = ForbiddenPaths(forbidden, always)
        self._scan = Scan(self._local, paths, KnownSecrets(secrets), tuple(allow))

    async def check(self) -> None:
        await self.remote.place()
        await self.remote.seal()

    async def inspect(self, workspace: Workspace, message: str) -> Sealed | Withheld:
        if not await anyio.to_thread.run_sync(Path(workspace.path, ".git").exists):
            return Withheld(f"its worktree {workspace.path} is gone", Cause.NO_PULL)
        if self._commits:
            await self._commit(workspace, message)
        if objection := await self._uncommitted(workspace):
            return Withheld(objection, Cause.NO_PULL)
        head = await self._local.commit(f"refs/heads/{workspace.branch}")
        if not head:
            return Withheld(f"its branch {workspace.branch} is gone", Cause.NO_PULL)
        if not await self._local.commit(workspace.base):
            return Withheld("the commit that it began from is gone")
        if not await commits_between(self._local, head, (workspace.base,), 1):
            text = "the agent ended with exit code 0 and has committed nothing"
            return Withheld(text, Cause.NO_PULL)
        survey = await self.remote.survey(workspace.branch)
        there = (survey.base_tip,) if survey.base_tip else ()
        return await self._scan.look(head, workspace.base, there)

    async def push(self, workspace: Workspace, head: str) -> None:
        name, _ = await self.remote.place()
        if not name:
            return
        survey = await self.remote.survey(workspace.branch)
        if survey.branch_tip == head:
            return
        await self._see_that_it_may_grow(workspace, head, survey)
        ref = f"refs/heads/{workspace.branch}"
        args = ("push", *_OPTIONS, "--", name, f"{head}:{ref}")
        finished = await self._git.run(*args, timeout=PUSH_LIMIT, env=self._variables)
        if finished.code == 0:
            return
        told = finished.out.decode("utf-8", "replace")
        rejected = next((line for line in told.splitlines() if line.startswith("!\t")), "")
        if not rejected:
            raise failure(args, finished)
        said = f"{rejected.rpartition(chr(9))[2]} {_words_of_the_remote(finished.err)}".strip()
        kind = Unavailable if _PASSING.search(rejected) else Refused
        raise kind(f"{name} did not take the push: {on_one_line(said)[:SAID_LIMIT]}")

    async def open(
        self, workspace: Workspace, head: str, letter: Letter, since: datetime
    ) -> Opened | None:
        """There are no requests: the branch waits for whoever merges."""
        del workspace, head, letter, since
        return None

    async def finish(self, opened: Opened) -> tuple[str, ...]:
        del opened
        return ()

    async def _see_that_it_may_grow(self, workspace: Workspace, head: str, survey: Survey) -> None:
        """Raise `Refused` when the remote's branch has what `head` does not have."""
        tip = survey.branch_tip
        if not tip:
            return
        told = None
        if await self._local.commit(tip):
            told = await self._local.run("merge-base", "--is-ancestor", tip, head)
        if told is None or told.code != 0:
            raise Refused(
                f"the remote's branch {workspace.branch} has commits of somebody else"
                f" ({tip[:12]}), and nothing is ever pushed by force"
            )

    async def _commit(self, workspace: Workspace, message: str) -> None:
        """Commit all that is not ignored, where the worktree is on its branch."""
        if await self._objection_to_head(workspace) or not await self._changed(workspace):
            return
        await self._local.text("add", "--all", "--", ".", cwd=workspace.path)
        options = ("--quiet", "--no-verify", "--no-gpg-sign", "--file=-")
        await self._local.text(
            "commit", *options, cwd=workspace.path, feed=message.encode(), env=self._identity
        )

    async def _uncommitted(self, workspace: Workspace) -> str:
        """Say what of the work in a worktree its branch does not have, or empty."""
        if changed := await self._changed(workspace):
            first = on_one_line(changed[0])[:SAID_LIMIT]
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            return f"the agent left work uncommitted: {first}{more}"
        return await self._objection_to_head(workspace)

    async def _changed(self, workspace: Workspace) -> list[str]:
        """Return the paths that differ from the last commit, or that it does not have."""
        shape = ("--porcelain=v1", "-z", "--untracked-files=all", "--no-renames")
        told = await self._local.run(
            "-c", "core.fsmonitor=false", "status", *shape, cwd=workspace.path
        )
        if told.code != 0:
            raise failure(("status",), told)
        entries = told.out.decode("utf-8", "replace").split("\0")
        return [entry[3:] for entry in entries if entry]

    async def _objection_to_head(self, workspace: Workspace) -> str:
        """Say that what is checked out is not what the branch has, or empty."""
        named = await self._local.run("symbolic-ref", "--quiet", "HEAD", cwd=workspace.path)
        ref = f"refs/heads/{workspace.branch}"
        if named.out.decode("utf-8", "replace").strip() == ref:
            return ""
        contained = await self._local.run(
            "merge-base", "--is-ancestor", "HEAD", ref, cwd=workspace.path
        )
        if contained.code == 0:
            return ""
        return f"the agent left commits that are not on its branch {workspace.branch}"


def _without_credentials(env: Mapping[str, str]) -> dict[str, str]:
    return {
        name: text for name, text in env.items() if name in _LOCAL or _CONFIGURING.fullmatch(name)
    }


def _words_of_the_remote(said: bytes) -> str:
    """Return what hooks and rules on the remote's side have said."""
    lines = said.decode("utf-8", "replace").splitlines()
    told = (line.removeprefix("remote:").strip() for line in lines if line.startswith("remote:"))
    return " ".join(filter(None, told))
