"""What the tests of the command line begin with."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cli_repository import Repository, a_quiet_log


@pytest.fixture
def repository(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Repository]:
    monkeypatch.chdir(tmp_path)
    with a_quiet_log():
        yield Repository(tmp_path, capsys)
