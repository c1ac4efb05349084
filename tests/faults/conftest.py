"""What every case of the fault catalogue begins with, and which are tried in the short form."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.trials import Trial

Begin = Callable[..., Trial]

_CASE = re.compile(r"tests/faults/.*::test_case_(\d+)_(control_)?")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With `FAULTS=short`, try each case once, without its control arms: for every `make test`."""
    if os.environ.get("FAULTS") != "short":
        return
    tried, left_out = set[str](), []
    for item in items:
        found = _CASE.search(item.nodeid)
        if found is None:
            continue
        if found[2] or found[1] in tried:
            left_out.append(item)
        else:
            tried.add(found[1])
    items[:] = [item for item in items if item not in set(left_out)]
    config.hook.pytest_deselected(items=left_out)


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
