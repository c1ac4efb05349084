"""What is odd about settings of shipping: what has no effect, and what undoes its purpose."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from chump_orchestrator.settings.passed import names_forge_access
from chump_orchestrator.settings.schema import Settings
from chump_orchestrator.settings.tables import Ship

OF_REQUESTS = ("draft", "labels", "auto_merge")
"""What needs a forge with requests."""


def oddities(settings: Settings) -> Iterator[str]:
    """Yield a line for each setting that does not do what it was written for (behaviour P9)."""
    ship, default = settings.ship, Ship()
    names = [f.name for f in fields(ship) if getattr(ship, f.name) != getattr(default, f.name)]
    if str(ship.by) != "daemon":
        for name in names:
            yield f'ship.{name} has no effect while agents ship; write ship.by = "daemon"'
        return
    if settings.pulls.use == "git":
        for name in filter(OF_REQUESTS.__contains__, names):
            yield f"ship.{name} has no effect with pulls.use = git, which has no requests"
    if ship.draft and str(ship.auto_merge):
        yield "ship.auto_merge: a draft is not merged before a person calls it ready"
    passed = {"pass_env": settings.pass_env}
    for backend, given in settings.backend.options.items():
        passed[f"backend.{backend}.pass_env"] = given.pass_env
    for key, patterns in passed.items():
        for pattern in filter(names_forge_access, patterns):
            yield f"{key}: {pattern} gives agents access to the forge, for which the daemon ships"
