"""The service that is installed for a repository, and the environment it runs in."""

from __future__ import annotations

import os
import pwd
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import anyio.to_thread

from chump_orchestrator.adapters.process import run
from chump_orchestrator.core.errors import Refused, Unavailable
from chump_orchestrator.doctor.unit_files import (
    UnitFile,
    home_of,
    read_environment_file,
    read_property_list,
    read_unit,
)
from chump_orchestrator.settings.secret_sources import variable_of

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""What systemd gives a service whose unit has no PATH of its own, as a rule."""

LAUNCHD_PATH = "/usr/bin:/bin:/usr/sbin:/sbin"
"""The same for launchd."""

MANAGER_PATIENCE = timedelta(seconds=5)
"""For asking the user's service manager for its environment."""

_OF_A_LOGIN = ("HOME", "LANG", "LC_ALL", "LOGNAME", "SHELL", "TZ", "USER", "XDG_RUNTIME_DIR")


@dataclass(frozen=True, slots=True)
class Service:
    """An installed service; `scope` is `user` or `system`, and which manager it is the unit tells.

    `unreadable` says why its file cannot be understood, and is empty where it can.
    """

    unit: UnitFile
    scope: str
    unreadable: str = ""

    @property
    def name(self) -> str:
        """What the service manager calls it."""
        path = self.unit.path
        return path.name if path.suffix == ".service" else path.stem

    @property
    def is_launchd(self) -> bool:
        """Whether it is launchd's, and not systemd's."""
        return self.unit.path.suffix == ".plist"

    @property
    def user(self) -> str:
        """Who it runs as, by name or number."""
        return self.unit.user or ("root" if self.scope == "system" else _me())

    @property
    def is_ours(self) -> bool:
        """Whether it runs as the user who asks."""
        return self.user in (_me(), str(os.geteuid()))


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The variables that a daemon has, and whose they are, for people.

    `sealed` are variables that are set, too, but whose values only the service manager can tell.
    """

    variables: Mapping[str, str]
    whose: str
    sealed: tuple[str, ...] = ()


def installed(root: Path, environ: Mapping[str, str]) -> tuple[Service, ...]:
    """Return the services whose daemon works in the repository `root`, the user's first. Blocks."""
    home = environ.get("HOME", "")
    here = os.path.realpath(root)
    found = []
    for scope, file in _files(home, environ):
        try:
            is_launchd = file.suffix == ".plist"
            unit = read_property_list(file) if is_launchd else read_unit(file, home)
        except Refused as error:
            # Whose it is cannot be told, so it is told of, in case it is this one's.
            found.append(Service(UnitFile(file), scope, str(error)))
            continue
        if unit.folder and os.path.realpath(unit.folder) == here:
            found.append(Service(unit, scope))
    return tuple(found)


def _files(home: str, environ: Mapping[str, str]) -> Iterator[tuple[str, Path]]:
    settings = environ.get("XDG_CONFIG_HOME") or f"{home}/.config"
    places = [("user", Path(settings, "systemd/user")), ("system", Path("/etc/systemd/system"))]
    pattern = "chump-orchestrator*.service"
    if sys.platform == "darwin":
        agents = Path(home, "Library/LaunchAgents")
        places = [("user", agents), ("system", Path("/Library/LaunchDaemons"))]
        pattern = "*chump*orchestrator*.plist"
    for scope, folder in places:
        # A template, which has no name between @ and dot, runs nothing by itself.
        for file in sorted(folder.glob(pattern)):
            if not file.name.endswith("@.service"):
                yield scope, file


async def surroundings(
    service: Service, secrets: Mapping[str, str], environ: Mapping[str, str]
) -> Surroundings:
    """Return what the daemon finds in its environment when the service manager starts it.

    `secrets` are those of settings, `environ` is the environment of whoever asks.
    """
    unit = service.unit
    own = await _of_manager(service, environ)
    files: dict[str, str] = {}
    for name, _ in unit.environment_files:
        try:
            files |= await anyio.to_thread.run_sync(read_environment_file, Path(name))
        except OSError:
            continue
    credentials = {variable_of(name): value for name, value in unit.credentials.items()}
    variables = {**own, **unit.environment, **files, **secrets, **credentials}
    return Surroundings(variables, service.name, tuple(map(variable_of, unit.sealed)))


async def _of_manager(service: Service, environ: Mapping[str, str]) -> dict[str, str]:
    """Return what every service of that manager begins with."""
    login = {name: environ[name] for name in _OF_A_LOGIN if name in environ}
    if service.is_launchd:
        return {**login, "PATH": LAUNCHD_PATH}
    if service.scope == "system":
        home = home_of(service.user)
        return {
            "HOME": home,
            "USER": service.user,
            "LOGNAME": service.user,
            "LANG": environ.get("LANG", "C.UTF-8"),
            "PATH": SYSTEM_PATH,
        }
    try:
        told = await run(
            ("systemctl", "--user", "show-environment"),
            cwd="/",
            env=environ,
            timeout=MANAGER_PATIENCE,
        )
    except (Refused, Unavailable):
        told = None
    if told is None or told.code != 0:
        return {**login, "PATH": SYSTEM_PATH}
    lines = told.out.decode("utf-8", "replace").splitlines()
    return {**login, **dict(_unquoted(line) for line in lines if "=" in line)}


def _unquoted(line: str) -> tuple[str, str]:
    name, _, value = line.partition("=")
    if value.startswith("$'") and value.endswith("'"):
        value = value[2:-1].replace("\\'", "'").replace("\\\\", "\\")
    return name, value


def _me() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
