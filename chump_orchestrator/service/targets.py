"""Which service manager a service is installed with, and whether that has drifted since."""

from __future__ import annotations

import os
import plistlib
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from xml.parsers.expat import ExpatError

from chump_orchestrator.core.errors import MissingProgram
from chump_orchestrator.service.difference import Kind, compared
from chump_orchestrator.service.identity import Identity
from chump_orchestrator.service.launchd import Launchd
from chump_orchestrator.service.state import State
from chump_orchestrator.service.survey import Survey
from chump_orchestrator.service.systemd import Systemd, is_booted

Target = Systemd | Launchd

NO_SYSTEMD = (
    "systemd does not run this machine; have what starts its services start `chump-orchestrator"
    " run` in the repository, with the PATH that `chump-orchestrator service print` shows (on WSL:"
    " write systemd=true under [boot] into /etc/wsl.conf and restart it)"
)
NO_LAUNCH_DAEMON = (
    "macOS has the keys of agents and git for users who are logged in, so that there is a service"
    " of the user only; leave out --system"
)

_PATH = re.compile(r'^Environment="?PATH=(.*?)"?$', re.MULTILINE)


def target(
    identity: Identity, environ: Mapping[str, str], *, is_user: bool, must_run: bool = True
) -> Target:
    """Return the manager to install with: of this user, or of the machine, to run as `identity`.

    `MissingProgram` when there is none here, unless it need not run, as for showing a unit.
    """
    if sys.platform == "darwin":
        if not is_user:
            raise MissingProgram(NO_LAUNCH_DAEMON)
        return Launchd(identity.name, identity.uid, environ)
    if must_run and not is_booted():
        raise MissingProgram(NO_SYSTEMD)
    return Systemd(is_user=is_user, user=identity.name, uid=identity.uid, environ=environ)


def scopes() -> tuple[bool, ...]:
    """Return of which kinds a service can be here, `is_user` of each, the user's own first."""
    return (True,) if sys.platform == "darwin" else (True, False)


def path_in(text: str) -> tuple[str, ...]:
    """Return the folders of the path that an installed unit or property list sets."""
    if text.startswith("<?xml"):
        try:
            document = plistlib.loads(text.encode())
            path = document["EnvironmentVariables"]["PATH"]
        except (plistlib.InvalidFileException, ExpatError, ValueError, LookupError, TypeError):
            return ()
        return tuple(str(path).split(":"))
    found = _PATH.findall(text)
    if not found:
        return ()
    return tuple(re.sub(r"\\(.)", r"\1", found[-1]).replace("%%", "%").split(":"))


def _comparable(text: str) -> list[str]:
    """Return the lines that can be compared: not of credentials that only root can list."""
    sees = os.geteuid() == 0
    hidden = ("# Written by", "<!-- Written by", *(() if sees else ("LoadCredential=",)))
    return [line for line in text.splitlines() if not line.startswith(hidden)]


def drift(
    target: Target, root: Path, seen: Survey, program: Iterable[str], state: State
) -> tuple[str, ...]:
    """Return in what an installed service is not what would be installed now, a sentence each.

    `seen` was surveyed with the path of the installed unit, so that it is not held against it
    that another shell has another path, only what cannot be found on it.
    """
    there = target.file(root)
    kind, text = compared(there, "")
    if kind is Kind.ABSENT:
        return ()
    told = []
    if kind is Kind.FOREIGN:
        told.append(f"{there} was not written by `service install`")
    if kind is Kind.EDITED:
        told.append(f"{there} was changed by hand; a drop-in would outlive the next installation")
    wanted = target.units(replace(seen, path=path_in(text)), program)[0].text
    if kind is Kind.OURS and _comparable(text) != _comparable(wanted):
        told.append("the unit is not what this version writes; see `service install --dry-run`")
    if state.needs_reload:
        told.append("the unit was changed since the service manager read it; see daemon-reload")
    return (*told, *seen.missing, *seen.wrong.splitlines())
