"""What the tests of the whole program begin with."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.cli_repository import Repository, a_quiet_log
from tests.e2e.clinic import Clinic
from tests.e2e.projects import Make, Project


@pytest.fixture
def repository(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Repository]:
    monkeypatch.chdir(tmp_path)
    with a_quiet_log():
        yield Repository(tmp_path, capsys)


@pytest.fixture
def clinic(repository: Repository, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Clinic:
    beside = tmp_path.with_name(f"{tmp_path.name}-beside")
    beside.mkdir()
    return Clinic(repository, beside, monkeypatch)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Make a project; cleaned up at the end."""
    made: list[Project] = []

    def project(*args: Any, **options: Any) -> Project:
        made.append(Project.make(tmp_path / f"p{len(made)}", *args, **options))
        return made[-1]

    yield project
    for one in made:
        one.clean()
