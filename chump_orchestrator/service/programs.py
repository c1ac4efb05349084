"""Where programs are really found, and a PATH with which a service finds the same. Blocks."""

from __future__ import annotations

import os
import re
import stat
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

STANDARD = ("/usr/local/bin", "/usr/bin", "/bin")
"""Folders that are on every path, behind those of a shell."""

FLEETING = ("/tmp", "/var/tmp", "/dev/shm", "/run", "/var/run", "/proc", "/private/tmp")  # noqa: S108
"""Folders whose content does not outlive a login or a boot; some shells keep links there."""

CACHE_MARK = "CACHEDIR.TAG"
"""The file that says that whatever is below may be deleted at any time."""

_SHEBANG_BYTES = 512
_ENV = re.compile(r"^#!\s*\S*/env(?:\s+-\S+)*(?:\s+\w+=\S*)*\s+([^\s/=-][^\s/=]*)")


@dataclass(frozen=True, slots=True)
class Wanted:
    """A program that the service needs: the first of `candidates` that is there.

    A candidate with a slash in it is a path, relative to the repository; any other is looked for
    on the path. `why` and `remedy` are for telling that none is there.
    """

    candidates: tuple[str, ...]
    why: str
    remedy: str

    @property
    def name(self) -> str:
        """What it is called when it is missing: the last candidate, which is on the path."""
        return self.candidates[-1]


@dataclass(frozen=True, slots=True)
class Search:
    """What came of looking for programs: the path to set, what was found, and what was not.

    `problems` are sentences that say what to do; `found` are names with where they were found.
    """

    path: tuple[str, ...]
    found: tuple[tuple[str, str], ...]
    problems: tuple[str, ...]


def search(shell: Iterable[str], wanted: Sequence[Wanted], root: Path) -> Search:
    """Look for programs in the folders of a shell's path, and make a lasting path of these.

    The order of the folders stays, so that the service finds the very programs that the shell
    finds. Left out is what does not last, what anybody can write to, and what lies in the
    repository, where an agent's work could put a program in the place of git.
    """
    shell = tuple(dict.fromkeys(shell))
    path = [folder for folder in shell if is_lasting(folder) and not _is_inside(folder, root)]
    path += [folder for folder in STANDARD if folder not in path and Path(folder).is_dir()]
    found: list[tuple[str, str]] = []
    problems: list[str] = []
    left = list(wanted)
    while left:
        one = left.pop(0)
        place = next(filter(None, (_located(name, path, root) for name in one.candidates)), None)
        if place is None:
            seen = next(
                filter(None, (_located(name, shell, root) for name in one.candidates)), None
            )
            place = seen and _lasting_place(seen, root)
            if place is None:
                problems.append(_missing(one, seen))
                continue
            path.insert(0, str(place.parent))
        found.append((one.name, str(place)))
        if interpreter := interpreter_of(place):
            why = f"{place} is a script for it"
            left.append(Wanted((interpreter,), why, f"install {interpreter}, or correct PATH"))
    return Search(tuple(path), tuple(dict.fromkeys(found)), tuple(dict.fromkeys(problems)))


def _missing(one: Wanted, seen: Path | None) -> str:
    if seen is None:
        return f"{one.name} was not found on PATH ({one.why}); {one.remedy}"
    return (
        f"{one.name} was found as {seen} only ({one.why}), in a folder that does not last, that"
        " anybody can write to, or in the repository itself; install it for good, in ~/.local/bin"
        " for one"
    )


def _located(name: str, path: Sequence[str], root: Path) -> Path | None:
    if "/" in name:
        place = root / name
        return place if _is_program(place) else None
    return next((Path(f) / name for f in path if _is_program(Path(f) / name)), None)


def _lasting_place(seen: Path, root: Path) -> Path | None:
    """Return the place behind a fleeting link, under the same name; `None` when that is none."""
    real = Path(os.path.realpath(seen.parent)) / seen.name
    for place in (real, Path(os.path.realpath(seen)).with_name(seen.name)):
        folder = str(place.parent)
        if _is_program(place) and is_lasting(folder) and not _is_inside(folder, root):
            return place
    return None


def _is_program(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


def _is_inside(folder: str, root: Path) -> bool:
    return Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(root))


def is_lasting(folder: str) -> bool:
    """Say whether a folder is there for good and not for everybody to write to."""
    path = Path(folder)
    if not path.is_absolute() or ":" in folder or any(map(path.is_relative_to, FLEETING)):
        return False
    try:
        status = path.stat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and not status.st_mode & stat.S_IWOTH


def interpreter_of(program: Path) -> str:
    """Return what a script asks `env` for, `node` for one; empty for anything else."""
    try:
        with program.open("rb") as file:
            first = file.read(_SHEBANG_BYTES).partition(b"\n")[0]
    except OSError:
        return ""
    found = _ENV.match(first.decode("utf-8", "replace"))
    return found[1] if found else ""


def own_program() -> tuple[str, ...]:
    """Return the command of this very installation, absolute, links to it left as they are."""
    script = Path(sysconfig.get_path("scripts")) / "chump-orchestrator"
    return (str(script),) if _is_program(script) else (sys.executable, "-m", "chump_orchestrator")


def is_cached(program: Path) -> bool:
    """Say whether a program lies in a cache or a temporary folder, which are cleared some day."""
    if any(map(program.is_relative_to, FLEETING)):
        return True
    return any((folder / CACHE_MARK).is_file() for folder in program.parents)
