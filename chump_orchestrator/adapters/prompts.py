"""The brief an agent is handed, made of what the repository says and of the gap (behaviour D7)."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio.to_thread

from chump_orchestrator.core.brief import (
    LESSON_LIMIT,
    LESSONS,
    TEXT_LIMIT,
    BriefParts,
    brief,
    committing,
)
from chump_orchestrator.core.dispatch import Workspace
from chump_orchestrator.core.errors import Unavailable
from chump_orchestrator.core.gap import Gap, on_one_line

RULES = ("docs/process/CHUMP_DISPATCH_RULES.md", "docs/CHUMP_DISPATCH_RULES.md")
SHIP_SCRIPTS = ("scripts/coord/bot-merge.sh", "scripts/bot-merge.sh")
EPILOGUE = ("scripts/dispatch/subagent-shipping-epilogue.md",)
"""Where a repository may keep its parts of the brief; the first that is there counts."""

PART_BYTES = 1024 * 1024
"""Most that is taken of one file; clients have been seen to take briefs of 10 MB."""

_PLACEHOLDER = re.compile(
    r"\{(gap|title|description|acceptance|branch|worktree|lessons|ship_command)\}"
)


@dataclass(frozen=True, slots=True)
class RepositoryPrompts:
    """Makes briefs of the files in the worktree, or of the user's own template.

    `template` is a path, absolute or relative to the worktree; empty for the usual brief. In it
    `{gap}`, `{title}`, `{description}`, `{acceptance}`, `{branch}`, `{worktree}`, `{lessons}` and
    `{ship_command}` are replaced; other braces stay as they are. With `is_shipped` the daemon ships
    what agents commit, and they are told so.
    """

    template: str = ""
    is_shipped: bool = False

    async def prompt(self, gap: Gap, workspace: Workspace, lessons: tuple[str, ...]) -> str:
        return await anyio.to_thread.run_sync(self._made, gap, workspace, lessons)

    def _made(self, gap: Gap, workspace: Workspace, lessons: tuple[str, ...]) -> str:
        worktree = Path(workspace.path)
        script = _first(worktree, SHIP_SCRIPTS)
        if self.template:
            ship = committing(workspace.branch) if self.is_shipped else ""
            text = _filled(self._template(worktree), gap, workspace, lessons, script, ship)
        else:
            rules = _first(worktree, RULES)
            epilogue = _first(worktree, EPILOGUE)
            parts = BriefParts(
                rules=_text(worktree / rules) if rules else "",
                epilogue=_text(worktree / epilogue) if epilogue else "",
                ship_script=script,
                is_shipped=self.is_shipped,
            )
            text = brief(gap, workspace.branch, parts, lessons)
        # Clients take a brief that begins with a slash for a command of theirs.
        return f"Your brief:\n\n{text}" if text.lstrip().startswith("/") else text

    def _template(self, worktree: Path) -> str:
        path = Path(self.template)
        if path.is_absolute():
            return _text(path)
        found = _first(worktree, (self.template,))
        if not found:
            raise Unavailable(f"prompt.template: there is no {self.template} in {worktree}")
        return _text(worktree / found)


def _first(worktree: Path, names: Sequence[str]) -> str:
    """Return the first name that is there as a file, or empty.

    `Unavailable` when a name leads out of the worktree: whoever can write to the repository could
    otherwise have any file of this machine read to an agent.
    """
    try:
        home = worktree.resolve(strict=True)
        for name in names:
            path = worktree / name
            if not os.path.lexists(path):
                continue
            if not path.resolve().is_relative_to(home):
                raise Unavailable(f"{path}: it leads out of the worktree; make it a file there")
            # Unlike `is_file`, this tells of a loop of links.
            if stat.S_ISREG(path.stat().st_mode):
                return name
    except (OSError, RuntimeError) as error:  # before Python 3.13, RuntimeError for a loop of links
        raise Unavailable(f"{worktree}: cannot be looked through: {error}") from error
    return ""


def _text(path: Path) -> str:
    """Return what the file holds, cut at the limit, bytes that are not UTF-8 replaced."""
    try:
        with open(path, "rb", opener=_open) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise Unavailable(f"{path}: a part of the brief, and not a regular file")
            data = file.read(PART_BYTES + 1)
    except OSError as error:
        reason = error.strerror or str(error)
        raise Unavailable(f"{path}: a part of the brief cannot be read: {reason}") from error
    text = data[:PART_BYTES].decode("utf-8-sig", "replace")
    return f"{text}\n[cut after {PART_BYTES} bytes]" if len(data) > PART_BYTES else text


def _open(path: str, flags: int) -> int:
    # Without O_NONBLOCK, opening a pipe would wait for somebody to write to it.
    return os.open(path, flags | os.O_NONBLOCK)


def _filled(
    template: str,
    gap: Gap,
    workspace: Workspace,
    lessons: tuple[str, ...],
    script: str,
    shipped: str,
) -> str:
    """Replace the placeholders, all at once: what a gap says is never taken for one.

    `shipped` is what an agent is told that does not ship, empty for one that does.
    """
    ship = f"git push origin HEAD:refs/heads/{workspace.branch}, and open a pull request"
    values = {
        "gap": gap.id,
        "title": gap.title,
        "description": gap.description,
        "acceptance": "\n".join(f"- {one}" for one in gap.acceptance),
        "branch": workspace.branch,
        "worktree": workspace.path,
        "lessons": "\n".join(f"- {on_one_line(one)[:LESSON_LIMIT]}" for one in lessons[:LESSONS]),
        "ship_command": shipped or (f"{script} --gap {gap.id} --auto-merge" if script else ship),
    }
    return _PLACEHOLDER.sub(lambda found: values[found[1]][:TEXT_LIMIT], template)
