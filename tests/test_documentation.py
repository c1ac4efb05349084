"""What the documentation tells people to do works, and what it lists is all there is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.catalogue import CASES

ROOT = Path(__file__).parent.parent
ARCHITECTURE = ROOT / "docs" / "explanation" / "architecture.md"
README = ROOT / "README.md"


@pytest.mark.parametrize("folder", ["core", "daemon"])
def test_the_tree_of_the_architecture_has_every_module(folder: str) -> None:
    tree = ARCHITECTURE.read_text("utf-8").partition("## The tree")[2].partition("```\n")[0]
    part = tree.partition(f"├── {folder}/")[2]
    listed = set(re.findall(r"^│   [├└]── (\w+\.py)", part.partition("\n├──")[0], re.MULTILINE))

    there = {path.name for path in (ROOT / "chump_orchestrator" / folder).glob("*.py")}

    assert listed == there - {"__init__.py"}


def test_the_tree_of_the_architecture_has_every_part_of_the_package() -> None:
    tree = ARCHITECTURE.read_text("utf-8")
    package = ROOT / "chump_orchestrator"
    there = {path.name for path in package.glob("*.py")} - {"__init__.py"}
    there |= {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}

    assert [
        name for name in sorted(there) if not re.search(f"^[├└]── {name} ", tree, re.MULTILINE)
    ] == []


def test_the_first_steps_of_the_readme_work_as_they_are_written(tmp_path: Path) -> None:
    """All but the installation, which is made up, and what would start agents."""
    steps = README.read_text("utf-8").partition("## First steps")[2].partition("```sh\n")[2]
    lines = steps.partition("```")[0].splitlines()
    programs = tmp_path / ".venvs" / "chump" / "bin"
    programs.mkdir(parents=True)
    script = f'#!/bin/sh\nexec "{sys.executable}" -m chump_orchestrator "$@"\n'
    (programs / "chump-orchestrator").write_text(script)
    (programs / "chump-orchestrator").chmod(0o755)
    repository = tmp_path / "your-repository"
    (repository / "docs").mkdir(parents=True)
    (repository / "docs" / "gaps.yaml").write_text("gaps: [{id: A-1, status: open, priority: P1}]")
    subprocess.run(["git", "init", "-q", str(repository)], check=True)
    carried_out = [line for line in lines if not re.search(r"pip install|orchestrator run", line)]

    done = subprocess.run(
        ["sh", "-ec", "\n".join(carried_out)],
        cwd=tmp_path,
        env={**os.environ, "HOME": str(tmp_path), "PATH": "/usr/local/bin:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert len(lines) - len(carried_out) == 3
    assert "claude/a-1" in done.stdout


def test_the_catalogue_of_faults_has_every_case() -> None:
    page = (ROOT / "docs" / "reference" / "faults.md").read_text("utf-8")
    rows = re.findall(
        r"^\| (\d+) \| ([^|]+?) \|", page.partition("## What stands")[0], re.MULTILINE
    )

    assert {int(number): title for number, title in rows} == CASES


def test_every_case_of_the_catalogue_is_tried() -> None:
    tests = "".join(path.read_text("utf-8") for path in (ROOT / "tests/faults").glob("test_*.py"))
    numbers = re.findall(r"^(?:async )?def test_case_(\d+)_", tests, re.MULTILINE)
    tried = {int(number) for number in numbers}

    assert tried == set(CASES)
