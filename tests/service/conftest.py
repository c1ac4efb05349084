"""What the tests of the service begin with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service.installation import install
from tests.service.machine import Machine, memory_is_limited_by, objection


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, installed."""
    return install(tmp_path_factory.mktemp("installation"))


@pytest.fixture(scope="session")
def can_boot() -> str:
    return objection()


@pytest.fixture
def machine(can_boot: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Machine]:
    """A machine with systemd, and the program installed in it."""
    if can_boot:
        pytest.skip(f"no machine can be booted here: {can_boot}")
    with Machine.boot(tmp_path, request.getfixturevalue("program")) as booted:
        yield booted


@pytest.fixture
def machine_with_limits(
    can_boot: str, request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[Machine]:
    """Such a machine in which the service manager can limit memory, by either version."""
    kind = "" if can_boot else memory_is_limited_by()
    if not kind:
        pytest.skip(f"no machine with limits can be booted here: {can_boot or 'no controllers'}")
    with Machine.boot(tmp_path, request.getfixturevalue("program"), cgroups=kind) as booted:
        yield booted
