"""The repository: git, the state of the work tree, the list of worktrees, base, remote, salvage."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from chump_orchestrator import premises
from chump_orchestrator.adapters.process import run
from chump_orchestrator.adapters.worktrees.dispatches import GitWorktrees
from chump_orchestrator.adapters.worktrees.registrations import Registration, registrations
from chump_orchestrator.adapters.worktrees.salvaged import SalvagedWork
from chump_orchestrator.core.errors import ConfigError, Refused, Unavailable
from chump_orchestrator.core.gap import plain
from chump_orchestrator.doctor.far_side import PATIENCE
from chump_orchestrator.doctor.findings import Check, Finding, fail, ok, skip, told, warn
from chump_orchestrator.doctor.subject import Subject, in_thread

OLDEST_GIT = (2, 33)
"""The first that takes a reason with `git worktree add --lock`."""

OLDEST_GIT_WITHOUT_FORGE = (2, 38)
"""The first that merges without a work tree, by which `pulls.use = git` knows a squash merge."""

UNDER_WAY = {
    "MERGE_HEAD": "a merge",
    "rebase-merge": "a rebase",
    "rebase-apply": "a rebase",
    "CHERRY_PICK_HEAD": "a cherry-pick",
    "REVERT_HEAD": "a revert",
    "BISECT_START": "a bisection",
}
"""Files in git's folder that tell what an operator has begun and not finished."""

OLD_LOCK_S = 600.0
"""A lock file of git's that is older was left behind: no command holds one for so long."""

LOCKS = ("index.lock", "config.lock", "packed-refs.lock", "shallow.lock")

PROBE = "doctor-was-here"
"""Ends the branch that is pushed for a try, and never made."""


async def look_at_git(subject: Subject) -> Sequence[Finding]:
    """Look for git where the daemon looks for it, and at its version."""
    around = await subject.surroundings()
    path = around.variables.get("PATH", os.defpath)
    program = await in_thread(partial(shutil.which, "git", path=path))
    if program is None:
        return [fail(f"there is no git on the PATH of {around.whose}", "install git")]
    answer = await run((program, "--version"), cwd="/", env=around.variables, timeout=PATIENCE)
    text = answer.out.decode("utf-8", "replace").strip()
    return judged_git(text, program, without_forge=subject.settings.pulls.use == "git")


def judged_git(text: str, program: str, *, without_forge: bool) -> list[Finding]:
    """Judge what `git --version` prints."""
    version = re.search(r"(\d+)\.(\d+)[.\d]*", text)
    if version is None:
        return [fail(f"{program} does not tell its version: {text[:80]!r}", "install git anew")]
    wanted = OLDEST_GIT_WITHOUT_FORGE if without_forge else OLDEST_GIT
    if (int(version[1]), int(version[2])) < wanted:
        least = ".".join(map(str, wanted))
        return [fail(f"{program} is git {version[0]}", f"install git {least} or later")]
    return [ok(f"git {version[0]}, {program}")]


async def look_at_repository(subject: Subject) -> Sequence[Finding]:
    """Look at the main work tree and at what git has been left in the middle of."""
    if not subject.has_root:
        if "dubious ownership" in subject.no_root:
            remedy = "become its owner, or run `git config --global --add safe.directory PATH`"
            return [fail(subject.no_root, remedy)]
        return [told(ConfigError(subject.no_root), "name one with --repo-root")]
    common = subject.git().common_dir
    found = await in_thread(_left_in, common, subject.clock.now().timestamp())
    if await in_thread((common / "shallow").exists):
        text = "the clone is shallow, so what was merged cannot always be told"
        found.append(warn(text, "run `git fetch --unshallow`"))
    if not await subject.git().commit("HEAD"):
        text = "the work tree is on a branch without a commit"
        found.append(warn(text, "make a first commit, and push it"))
    return found or [ok(str(subject.root))]


def _left_in(common: Path, now_s: float) -> list[Finding]:
    found = []
    begun = dict.fromkeys(what for name, what in UNDER_WAY.items() if (common / name).exists())
    for what in begun:
        text = f"the work tree is in the middle of {what}"
        remedy = "finish it: a backlog with marks of a conflict cannot be read"
        found.append(warn(text, remedy))
    for name in LOCKS:
        try:
            age_s = now_s - (common / name).stat().st_mtime
        except OSError:
            continue
        if age_s > OLD_LOCK_S:
            text = f"{common / name} is {age_s / 60:.0f} minutes old and stops git"
            found.append(fail(text, f"see that no git runs, then remove it: rm {common / name}"))
    return found


async def look_at_worktrees(subject: Subject) -> Sequence[Finding]:
    """Look through git's list of worktrees, without git, which a broken entry can stop."""
    entries = await in_thread(registrations, subject.git().common_dir)
    base = await in_thread(os.path.realpath, subject.place(subject.settings.worktrees.base))
    broken = [entry for entry in entries if entry.broken and entry.path is not None]
    found = [_judged(entry, Path(base)) for entry in broken]
    ours = sum(1 for entry in entries if entry.is_ours(Path(base)) and not entry.broken)
    return found or [ok(f"{len(entries)} beside the main one, {ours} of them for dispatches")]


def _judged(entry: Registration, base: Path) -> Finding:
    consequence = ", which stops git in the whole repository" if entry.stops_git else ""
    text = f"{entry.admin} is broken ({entry.broken}){consequence}"
    if entry.is_ours(base):
        remedy = "`doctor --fix` puts it aside, and so does `run`"
        return fail(text, remedy) if entry.stops_git else warn(text, remedy)
    remedy = f"it is not ours: see whose it is, and move it away (mv {entry.admin} ELSEWHERE)"
    return fail(text, remedy) if entry.stops_git else warn(text, remedy)


async def mend_worktrees(subject: Subject) -> Sequence[str]:
    """Put broken entries of ours aside, as a daemon does at its start."""
    with premises.daemon_lock(subject.root, subject.loaded):
        healed = await _worktrees(subject).heal()
    return [text for text in healed if "moved to" in text]


def _worktrees(subject: Subject) -> GitWorktrees:
    given = subject.settings.worktrees
    return GitWorktrees(
        git=subject.git(),
        base_dir=subject.place(given.base),
        prefix=given.prefix,
        base_ref=subject.settings.base_ref,
        clock=subject.clock,
    )


async def look_at_base(subject: Subject) -> Sequence[Finding]:
    """Look whether there is a commit that new branches can begin from."""
    base, commit = await subject.base()
    if commit:
        return [ok(f"{_short(base.ref)} is at {commit[:12]}")]
    if not base.remote:
        text = f"{base.ref} names no commit"
        return [fail(text, "make a first commit on it, or set base_ref to a branch that exists")]
    remote = await subject.remote()
    if base.branch in remote.branches:
        return [ok(f"{_short(base.ref)} is not fetched yet; {base.remote} has it")]
    text = f"{base.remote} has no branch {base.branch}"
    remedy = f"push one (git push {base.remote} HEAD:{base.branch}), or set base_ref"
    return [fail(text, remedy)]


async def look_at_remote(subject: Subject) -> Sequence[Finding]:
    """Look whether the remote answers, in the daemon's environment."""
    if reason := await subject.another():
        return [skip(reason)]
    around = await subject.surroundings()
    try:
        remote = await subject.remote()
    except ConfigError as error:
        return [told(error, "")]
    except (Refused, Unavailable) as error:
        remedy = f"see to network and credentials as {around.whose} has them"
        return [fail(str(error), remedy)]
    number = len(remote.branches)
    branches = f"{number} branch{'' if number == 1 else 'es'}"
    return [ok(f"{remote.name} ({remote.url}) has {branches}, told in {remote.took_s:.1f} s")]


async def look_at_push(subject: Subject) -> Sequence[Finding]:
    """Try to push a new branch, up to the point where something would change."""
    if reason := await subject.another():
        return [skip(reason)]
    around = await subject.surroundings()
    git = subject.git(around.variables)
    try:
        remote = await subject.remote()
    except (ConfigError, Refused, Unavailable):
        return [skip("the remote does not answer")]
    try:
        _, commit = await subject.base()
    except (ConfigError, Refused, Unavailable):
        commit = ""
    commit = commit or await git.commit("HEAD")
    if not commit:
        return [skip("there is no commit to push")]
    branch = f"refs/heads/{subject.settings.worktrees.prefix}{PROBE}"
    options = ("push", "--dry-run", "--no-verify", "--no-follow-tags", "--porcelain")
    try:
        await git.text(
            *options, "--", remote.name, f"+{commit}:{branch}", timeout=PATIENCE, env=_silent()
        )
    except (Refused, Unavailable) as error:
        text = f"a branch could not be pushed: {error}"
        remedy = f"give the daemon the right to push, as {around.whose} has it"
        return [fail(text, remedy)]
    return [ok(f"branches can be pushed to {remote.name}")]


def _silent() -> Mapping[str, str]:
    return {"GIT_ASKPASS": "", "SSH_ASKPASS": ""}


async def look_at_salvage(subject: Subject) -> Sequence[Finding]:
    """Look for work that was kept as it was neither pushed nor merged."""
    kept = await SalvagedWork(subject.git()).all()
    if not kept:
        return [ok("nothing had to be kept")]
    latest = kept[0]
    number = f"{len(kept)} snapshot{'' if len(kept) == 1 else 's'}"
    text = f"{number} of work that was not shipped, the latest of {latest.at:%Y-%m-%d}"
    why = f" ({plain(latest.reason)[:120]})" if latest.reason else ""
    remedy = (
        "`salvage list` tells what there is; what is no longer wanted goes with"
        f" git update-ref -d {latest.ref}"
    )
    return [warn(text + why, remedy)]


def _short(ref: str) -> str:
    return ref.removeprefix("refs/heads/").removeprefix("refs/remotes/")


REPOSITORY = "repository"
CHECKS = (
    Check(
        "git",
        REPOSITORY,
        "git is there, and new enough for the way worktrees are made",
        look_at_git,
        needs_repository=False,
    ),
    Check(
        "repository",
        REPOSITORY,
        "there is a work tree, with all its history and nothing begun in it",
        look_at_repository,
        needs_repository=False,
    ),
    Check(
        "worktrees",
        REPOSITORY,
        "git's list of worktrees is whole",
        look_at_worktrees,
        mend_worktrees,
    ),
    Check("base", REPOSITORY, "new branches have a commit to begin from", look_at_base, limit_s=45),
    Check("remote", REPOSITORY, "the remote answers", look_at_remote, limit_s=45),
    Check("push", REPOSITORY, "branches can be pushed", look_at_push, limit_s=60),
    Check("salvage", REPOSITORY, "no work waits to be looked at", look_at_salvage),
)
