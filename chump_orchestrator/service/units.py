"""Units of systemd for one repository, filled in from what was surveyed."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from chump_orchestrator.service import quoting, templates
from chump_orchestrator.service.difference import seal
from chump_orchestrator.service.naming import SLICE, unit_of
from chump_orchestrator.service.survey import Survey

COMMENT = "# {}"

HOMES = ("/home", "/root", "/run/user")
"""What a system unit sees nothing of, its own user's home and the repository excepted."""

SUBGROUP, SUBGROUP_SINCE = "DelegateSubgroup=daemon", 254
"""Keeps the daemon out of the way of groups with limits; an older systemd complains of it."""

CREDENTIALS = Path("/etc/chump-orchestrator/credentials")
"""Files that root alone can read; each is handed to the system unit as a credential of its name."""


@dataclass(frozen=True, slots=True)
class Unit:
    """A file to be installed: its name, without a folder, and all of its text."""

    name: str
    text: str


def user_units(seen: Survey, program: Iterable[str]) -> tuple[Unit, ...]:
    """Return the unit of a repository for a user's own manager, and the slice of its agents."""
    return _made(templates.USER_UNIT, seen, _common(seen, program))


def system_units(
    seen: Survey, program: Iterable[str], user: str, credentials: Iterable[Path] = ()
) -> tuple[Unit, ...]:
    """Return the unit of a repository for the machine's manager, to run as `user`."""
    # What is not there yet must not keep the service from starting.
    writable = [f"-{quoting.checked(place)}" for place in seen.places]
    hidden = [
        prefix
        for prefix in dict.fromkeys((sys.prefix, sys.base_prefix))
        if any(Path(prefix).is_relative_to(home) for home in HOMES)
        and not any(Path(prefix).is_relative_to(place) for place in seen.places)
    ]
    values = {
        **_common(seen, program),
        "USER": quoting.whole(user),
        "MOUNTS": quoting.word(seen.root),
        "WRITABLE": quoting.words(writable),
        "SUBGROUP": SUBGROUP if seen.systemd >= SUBGROUP_SINCE else "",
        "READABLE": f"BindReadOnlyPaths={quoting.words(hidden)}" if hidden else "",
        "CREDENTIALS": "\n".join(
            f"LoadCredential={quoting.whole(f'{path.name}:{path}')}" for path in credentials
        ),
    }
    return _made(templates.SYSTEM_UNIT, seen, values)


def _common(seen: Survey, program: Iterable[str]) -> dict[str, str]:
    return {
        "REPOSITORY": quoting.whole(seen.root),
        "PROGRAM": quoting.command(program),
        "PATH": quoting.assignment("PATH", ":".join(seen.path)),
    }


def _made(template: str, seen: Survey, values: Mapping[str, str]) -> tuple[Unit, ...]:
    text = templates.filled(templates.read(template), values)
    return (
        Unit(unit_of(Path(seen.root)), seal(text, COMMENT)),
        Unit(SLICE, seal(templates.read(templates.SLICE), COMMENT)),
    )
