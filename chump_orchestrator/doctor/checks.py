"""All checks, in the order in which they are told: from what others stand on to what is left."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from chump_orchestrator.doctor import (
    agents,
    drift,
    forge,
    left_behind,
    machine,
    repository,
    service,
    state,
    written,
)
from chump_orchestrator.doctor.findings import Check

ALL: tuple[Check, ...] = (
    *machine.CHECKS,
    *written.CHECKS,
    *repository.CHECKS,
    *forge.CHECKS,
    *agents.CHECKS,
    *service.CHECKS,
    *drift.CHECKS,
    *state.CHECKS,
    *left_behind.CHECKS,
)


def named(names: Iterable[str]) -> Sequence[Check]:
    """Return the checks of these names, or all where there are none; `KeyError` for no check."""
    known = {check.name: check for check in ALL}
    wanted = list(dict.fromkeys(names))
    return [known[name] for name in wanted] if wanted else ALL
