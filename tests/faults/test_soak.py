"""The short form of the soak: nothing grows with the number of dispatches (case 54)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.faults.soak import Figures, Sample, soak

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

DISPATCHES = 60


@pytest.mark.parametrize("seed", range(1, 1 + int(os.environ.get("FAULT_SEEDS", "1"))))
def test_case_54_nothing_grows_with_the_number_of_dispatches(tmp_path: Path, seed: int) -> None:
    trial, figures = soak(tmp_path / "soak", DISPATCHES, seed=seed, restarts=1)
    try:
        print(figures.table())
        trial.check()
    finally:
        trial.clean()

    assert figures.dispatches >= DISPATCHES
    assert figures.faults > 0
    assert figures.outcomes["shipped"] + figures.faults == figures.dispatches
    assert figures.grown() == []


@pytest.mark.parametrize(
    "name",
    ["descriptors", "threads", "memory_mib", "zombies", "worktrees", "branches", "refs", "files"],
)
def test_case_54_control_what_grows_is_told(name: str) -> None:
    still = dict.fromkeys(Sample.__dataclass_fields__, 10)
    growing = [Sample(**{**still, name: 10 + number}) for number in range(100)]

    assert Figures(1, samples=[Sample(**still)] * 100).grown() == []
    (told,) = Figures(1, samples=growing).grown()
    assert told.startswith(f"{name} grew")
