"""Which branch and folder names are taken, read from git's own files without running git.

For showing a plan only: the daemon asks git, and the remote, before it uses a name.
"""

from __future__ import annotations

import os
from pathlib import Path


def taken_names(root: Path, worktrees: Path, prefix: str) -> set[str]:
    """Return branches that begin with `prefix`, whole, and the names of folders and worktrees.

    What cannot be read counts as free. Branches of remotes count as far as they were fetched.
    """
    git = _common_folder(root)
    taken = set(_entries(worktrees))
    for name in _entries(git / "worktrees"):
        pointer = _text(git / "worktrees" / name / "gitdir").strip()
        if pointer:
            taken.add(Path(pointer).parent.name)
    for ref in (*_packed(git / "packed-refs"), *_loose(git, "refs/heads", "refs/remotes")):
        branch = _branch_of(ref)
        if branch.startswith(prefix):
            # A branch `x/y` is in the way of a branch `x`, too.
            parts = branch.removeprefix(prefix).split("/")
            taken |= {prefix + "/".join(parts[:count]) for count in range(1, len(parts) + 1)}
    return taken


def _common_folder(root: Path) -> Path:
    git = root / ".git"
    if git.is_file():
        pointer = _text(git).partition("gitdir:")[2].strip()
        git = root / pointer
    common = _text(git / "commondir").strip()
    return git / common if common else git


def _branch_of(ref: str) -> str:
    if ref.startswith("refs/heads/"):
        return ref.removeprefix("refs/heads/")
    return ref.removeprefix("refs/remotes/").partition("/")[2]


def _packed(file: Path) -> list[str]:
    lines = (line.split(" ", 1) for line in _text(file).splitlines() if line[:1] not in ("#", "^"))
    refs = (parts[1].strip() for parts in lines if len(parts) > 1)
    return [ref for ref in refs if ref.startswith(("refs/heads/", "refs/remotes/"))]


def _loose(git: Path, *folders: str) -> list[str]:
    return [
        (Path(place) / file).relative_to(git).as_posix()
        for folder in folders
        for place, _, files in os.walk(git / folder)
        for file in files
    ]


def _entries(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in folder.iterdir()]
    except OSError:
        return []


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8", "surrogateescape")
    except OSError:
        return ""
