"""The program as a user would have it: its wheel, in a virtual environment of its own."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

from tests.service.machine import PROGRAMS

ROOT = Path(__file__).parents[2]


def build_wheel(folder: Path) -> Path:
    """Build the wheel of this checkout."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = folder.glob("chump_orchestrator-*.whl")
    return wheel


def install(folder: Path) -> Path:
    """Make a virtual environment with the wheel, and what it needs; to be seen at `PROGRAMS`.

    What it needs is copied from here, so that no index is asked.
    """
    wheel = build_wheel(folder)
    made = folder / "program"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(made)], check=True)
    python = made / "bin" / "python"
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"),
            *("--disable-pip-version-check", "--no-index", "--no-deps", str(wheel)),
        ],
        check=True,
    )
    (site,) = made.glob("lib/python*/site-packages")
    for needed in _needed("chump-orchestrator", set()):
        _copy(needed, site)
    script = made / "bin" / "chump-orchestrator"
    script.write_text(script.read_text().replace(str(made), PROGRAMS))
    return made


def _needed(name: str, known: set[str]) -> Iterator[Distribution]:
    for requirement in distribution(name).requires or ():
        if "extra ==" in requirement:
            continue
        found = re.match(r"[\w.-]+", requirement)
        assert found is not None
        other = re.sub(r"[-_.]+", "-", found[0]).lower()
        if other in known:
            continue
        known.add(other)
        try:
            needed = distribution(other)
        except ImportError:  # for another system or another Python
            continue
        yield needed
        yield from _needed(other, known)


def _copy(needed: Distribution, site: Path) -> None:
    """Copy a distribution with what was compiled of it, as nothing can be written there later."""
    for file in needed.files or ():
        source, copy = Path(str(file.locate())), site / file
        if ".." not in file.parts and source.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            # With its time, by which Python knows that what is compiled is of this source.
            shutil.copy2(source, copy)
