"""What operators write: settings with the routing table, backlog, secrets."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from chump_orchestrator import premises
from chump_orchestrator.adapters.worktrees.dispatches import GitWorktrees
from chump_orchestrator.core.dispatch import depth_objection
from chump_orchestrator.core.errors import ConfigError
from chump_orchestrator.doctor.findings import Check, Finding, fail, ok, skip, told, warn
from chump_orchestrator.doctor.subject import Subject, in_thread

SETTINGS_REMEDY = "mend it; `config check` reads it again"
SHOWN = 3
"""At most so many entries of a backlog in one line."""


async def look_at_settings(subject: Subject) -> Sequence[Finding]:
    """Read settings and routing table as `run` does, and tell what it would refuse."""
    sources = _sources_of_secrets(subject)
    found = [
        fail(line, SETTINGS_REMEDY)
        for line in subject.wrong.splitlines()
        if not line.startswith(sources)
    ]
    if subject.has_root:
        try:
            await subject.routes()
        except ConfigError as error:
            found += [fail(line, SETTINGS_REMEDY) for line in str(error).splitlines()]
    if objection := depth_objection(subject.settings.depth):
        found.append(fail(objection, "run it outside of an agent"))
    found += [
        warn(notice, "see whether it is meant")
        for notice in subject.loaded.notices
        if not notice.startswith(sources)
    ]
    written = {origin.name for origin in subject.loaded.origins.values() if origin.name}
    number = f"{len(written)} source{'' if len(written) == 1 else 's'} beside the defaults"
    return found or [ok(f"settings and routing table are fine; {number}")]


async def look_at_backlog(subject: Subject) -> Sequence[Finding]:
    """Read the backlog."""
    try:
        backlog = await premises.read_backlog(subject.root, subject.loaded)
    except ConfigError as error:
        return [told(error, "write it, or name it in the settings (backlog.path)")]
    found = []
    if rejected := backlog.rejected:
        ids = ", ".join(f"{one.id or 'an entry'} ({one.place})" for one in rejected[:SHOWN])
        more = f" and {len(rejected) - SHOWN} more" if len(rejected) > SHOWN else ""
        text = f"{len(rejected)} of {backlog.total} entries cannot be used: {ids}{more}"
        found.append(warn(text, "`backlog check` says why"))
    if warnings := backlog.warnings:
        text = f"{len(warnings)} things are odd, first {warnings[0].place}: {warnings[0].message}"
        found.append(warn(text, "`backlog check` lists them"))
    done = len(backlog.done)
    entries = f"{backlog.total} entr{'y' if backlog.total == 1 else 'ies'}"
    return found or [ok(f"{entries}, {backlog.open} open, {done} done")]


async def look_at_secrets(subject: Subject) -> Sequence[Finding]:
    """Look at the sources of secrets: what is wrong with them, and whether git could take one."""
    sources = _sources_of_secrets(subject)
    lines = [line for line in subject.wrong.splitlines() if line.startswith(sources)]
    found = [fail(line, "mend it; until then nothing runs") for line in lines]
    found += [
        warn(notice, "write a value into it, or remove it")
        for notice in subject.loaded.notices
        if notice.startswith(sources)
    ]
    path = secrets_file(subject)
    if path is not None and await in_thread(path.exists):
        found += await _judged_by_git(subject, path)
    if found:
        return found
    names = [
        f"{name} ({Path(secret.origin.name).name})"
        for name, secret in sorted(subject.loaded.secrets.items())
    ]
    if not names:
        return [skip("there are none but those of the environment")]
    return [ok(", ".join(names))]


def secrets_file(subject: Subject) -> Path | None:
    """Return the file that settings name, whether it is there or not; `None` for none."""
    written = subject.settings.secrets.file
    return subject.place(written) if written and subject.has_root else None


def _sources_of_secrets(subject: Subject) -> tuple[str, ...]:
    """Return how lines begin that tell of secrets."""
    file = secrets_file(subject)
    directory = subject.environ.get("CREDENTIALS_DIRECTORY", "")
    named = [str(file)] if file is not None else []
    return (*named, directory) if directory else tuple(named)


async def _judged_by_git(subject: Subject, path: Path) -> list[Finding]:
    real = Path(await in_thread(os.path.realpath, path))
    root = Path(await in_thread(os.path.realpath, subject.root))
    if not real.is_relative_to(root):
        return []
    name, git = str(real.relative_to(root)), subject.git()
    tracked = await git.run("ls-files", "--error-unmatch", "--", name)
    if tracked.code == 0:
        text = f"{name} is tracked by git, and so with everybody who has the repository"
        remedy = f"git rm --cached {name}, and have these secrets replaced by new ones"
        return [fail(text, remedy)]
    ignored = await git.run("check-ignore", "--quiet", "--", name)
    if ignored.code == 1:
        text = f"{name} is not ignored by git, and `git add --all` would take it"
        return [warn(text, "`doctor --fix` adds it to .git/info/exclude")]
    return []


async def mend_secrets(subject: Subject) -> Sequence[str]:
    """Take the file from others who may read it, and have git overlook it."""
    path = secrets_file(subject)
    if path is None or not await in_thread(path.is_file):
        return []
    done = await in_thread(_close_to_others, path)
    root = Path(await in_thread(os.path.realpath, subject.root))
    real = Path(await in_thread(os.path.realpath, path))
    if real.is_relative_to(root):
        name = real.relative_to(root)
        ignored = await subject.git().run("check-ignore", "--quiet", "--", str(name))
        if ignored.code == 1:
            await _worktrees(subject).exclude([f"/{name}"])
            done.append(f"added /{name} to .git/info/exclude")
    return done


def _close_to_others(path: Path) -> list[str]:
    status = path.stat()
    if status.st_uid != os.geteuid() or not status.st_mode & 0o077:
        return []
    path.chmod(stat.S_IMODE(status.st_mode) & 0o600)
    return [f"chmod 600 {path}"]


def _worktrees(subject: Subject) -> GitWorktrees:
    base = subject.place(subject.settings.worktrees.base)
    return GitWorktrees(git=subject.git(), base_dir=base, clock=subject.clock)


WRITTEN = "written"
CHECKS = (
    Check(
        "settings",
        WRITTEN,
        "settings and routing table can be used",
        look_at_settings,
        needs_repository=False,
    ),
    Check("backlog", WRITTEN, "the backlog can be read", look_at_backlog, limit_s=60.0),
    Check("secrets", WRITTEN, "secrets can be read, by nobody else", look_at_secrets, mend_secrets),
)
