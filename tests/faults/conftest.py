"""What every case of the fault catalogue begins with."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.trials import Trial

Begin = Callable[..., Trial]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """Begin a trial; whatever still runs of it at the end is ended."""
    begun: list[Trial] = []

    def trial(*ids: str, **options: Any) -> Trial:
        begun.append(Trial.begin(tmp_path / f"t{len(begun)}", *ids, **options))
        return begun[-1]

    yield trial
    for one in begun:
        one.clean()
