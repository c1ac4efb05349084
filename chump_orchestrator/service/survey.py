"""What a service of a repository will need: seen with the rights and the home it will run with.

Changes nothing. For a system unit it is taken in a process of the service's user, and its answer
passed on as JSON.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from chump_orchestrator import config, premises
from chump_orchestrator.adapters import process
from chump_orchestrator.adapters.faults import FAULTS
from chump_orchestrator.adapters.git import Git
from chump_orchestrator.core.errors import ConfigError, Refused, Unavailable
from chump_orchestrator.core.gap import Gap
from chump_orchestrator.core.routing import Route
from chump_orchestrator.decisions import check, reachable
from chump_orchestrator.service.programs import Wanted, search

if TYPE_CHECKING:
    from chump_orchestrator.config import Loaded
    from chump_orchestrator.core.routing import RoutePolicy

SAMPLE = Gap("SAMPLE-1")
"""A gap for asking a backend which programs it would start."""

GIT = Wanted(("git",), "everything stands on it", "install it, or correct PATH")
GH = Wanted(
    ("gh",),
    'pulls.use is "gh"',
    'install it and log in (gh auth login), or set pulls.use = "git"',
)

ELSEWHERE_SET = frozenset(
    {
        "DBUS_SESSION_BUS_ADDRESS",
        "HOME",
        "LANG",
        "LOGNAME",
        "PATH",
        "SHELL",
        "TERM",
        "TMPDIR",
        "TZ",
        "USER",
    }
)
"""Variables for agents that every service has, or that mean nothing to one."""

VERSION_LIMIT = timedelta(seconds=10)

_VERSION = re.compile(rb"systemd (\d{1,6})\b")

NOT_NEEDED = ("LC_", "XDG_")
"""Beginnings of the same kind."""


@dataclass(frozen=True, slots=True)
class Survey:
    """What was seen.

    `wrong` is what an operator must change before a daemon could run, `missing` the programs that
    are not there. `places` are the folders that daemon and agents write to, home and repository
    first. `lacking` are variables which agents would be given now, and not by a service. `paused`
    says whether dispatching is paused on record, `holder` is the process that works on the
    repository, 0 for none, `running` how many agents are on record. `log` is the file that the
    settings have the log in, empty for none, and `control` where a daemon listens. `systemd` is
    the version of the one that is installed, 0 for none.
    """

    root: str
    home: str
    path: tuple[str, ...]
    found: tuple[tuple[str, str], ...]
    places: tuple[str, ...]
    missing: tuple[str, ...]
    wrong: str
    lacking: tuple[str, ...]
    paused: bool
    holder: int
    running: int
    log: str
    control: str
    systemd: int

    def to_json(self) -> str:
        """Return it for another process to read."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Survey:
        """Read what another process has written; `ValueError` when that is something else."""
        document = json.loads(text)
        if not isinstance(document, dict) or document.keys() != {one.name for one in fields(cls)}:
            msg = "this is no survey"
            raise ValueError(msg)
        found = tuple((str(name), str(place)) for name, place in document.pop("found"))
        given: dict[str, Any] = {
            name: tuple(map(str, value)) if isinstance(value, list) else value
            for name, value in document.items()
        }
        return cls(found=found, **given)


async def survey(
    root: Path,
    loaded: Loaded,
    wrong: str,
    environ: Mapping[str, str],
    *,
    more: Iterable[str] = (),
    unseen: Iterable[str] = (),
) -> Survey:
    """Look at the repository, its settings, backlog, and the programs on the path of `environ`.

    `wrong` is what is wrong with the settings already. `more` are folders to be on the service's
    path, ahead of all others, and of `unseen` ones the service will see nothing but what it may
    write to.
    """
    problems = [wrong] if wrong else []
    wanted = [GIT]
    if loaded.settings.pulls.use == "gh":
        wanted.append(GH)
    lacking: tuple[str, ...] = ()
    try:
        routed = await premises.routes(root, loaded)
        check(root, loaded, routed, faults_allowed=False)
        wanted += _agents(loaded, routed)
        lacking = _lacking(loaded, routed, environ)
        await premises.read_backlog(root, loaded)
    except ConfigError as error:
        problems.append(str(error))
    places, more = await _places(root, loaded, environ), tuple(more)
    shell = [
        folder
        for folder in (*more, *environ.get("PATH", "").split(":"))
        if not any(map(Path(folder).is_relative_to, unseen))
        or any(map(Path(folder).is_relative_to, places))
    ]
    seen = await anyio.to_thread.run_sync(search, shell, wanted, root)
    problems += [
        f"--path: {folder} does not last, is not there, is everybody's, or lies in the repository"
        for folder in more
        if folder not in seen.path
    ]
    paused, running = await _on_record(root, loaded)
    return Survey(
        root=str(root),
        home=environ.get("HOME", "/"),
        path=seen.path,
        found=seen.found,
        places=places,
        missing=seen.problems,
        wrong="\n".join(problems),
        lacking=lacking,
        paused=paused,
        holder=await anyio.to_thread.run_sync(_holder, root, loaded),
        running=running,
        log=str(root / loaded.settings.log.file) if loaded.settings.log.file else "",
        control=str(premises.control_path(root, loaded)),
        systemd=await _version(environ),
    )


async def _version(environ: Mapping[str, str]) -> int:
    """Return the version of systemd, 0 where there is none."""
    try:
        done = await process.run(
            ("systemctl", "--version"), cwd="/", env=environ, timeout=VERSION_LIMIT
        )
    except (Refused, Unavailable):
        return 0
    found = _VERSION.match(done.out)
    return 0 if found is None else int(found[1])


def _commands(loaded: Loaded, routed: RoutePolicy) -> dict[str, Any]:
    commands = {}
    for name in sorted(reachable(routed) - set(FAULTS)):
        backend = premises.backend(loaded.settings, name)
        commands[name] = backend.command(SAMPLE, Route(name), "")
    return commands


def _agents(loaded: Loaded, routed: RoutePolicy) -> list[Wanted]:
    """Return the program of every backend that some gap may go to."""
    remedy = "install it and log in once by hand, or name it in [backend.{}]"
    return [
        Wanted(command.programs, f"the agent of backend {name}", remedy.format(name))
        for name, command in _commands(loaded, routed).items()
    ]


def _lacking(loaded: Loaded, routed: RoutePolicy, environ: Mapping[str, str]) -> tuple[str, ...]:
    """Name the variables that agents get from this shell, and that no service manager knows."""
    patterns = [*config.FORGE_VARIABLES, *loaded.settings.pass_env]
    for command in _commands(loaded, routed).values():
        patterns += command.pass_env
    given = config.agent_environment(environ, tuple(patterns))
    return tuple(
        name
        for name in sorted(given)
        if name not in ELSEWHERE_SET | loaded.secrets.keys() and not name.startswith(NOT_NEEDED)
    )


async def _places(root: Path, loaded: Loaded, environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return the folders that are written to; of one within another, the outer one alone."""
    settings = loaded.settings
    listens = settings.http.listen
    places = [environ.get("HOME", "/"), str(root)]
    git = Git(root, environ)
    asked = await git.run("rev-parse", "--path-format=absolute", "--git-common-dir")
    places += asked.out.decode("utf-8", "surrogateescape").splitlines()[:1]
    remotes = await git.run("config", "--get-regexp", r"^remote\..*\.(push)?url$")
    for line in remotes.out.decode("utf-8", "surrogateescape").splitlines():
        place = line.partition(" ")[2].removeprefix("file://")
        places += [place] if place.startswith("/") else []
    places += [
        str(root / folder)
        for folder in (
            settings.state.dir,
            settings.worktrees.base,
            settings.leases.dir,
            Path(settings.journal.reflections).parent,
            Path(settings.journal.routing).parent,
            Path(settings.log.file).parent if settings.log.file else "",
            Path(listens.removeprefix("unix:")).parent if listens.startswith("unix:") else "",
        )
    ]
    outer: list[str] = []
    for place in map(os.path.normpath, places):
        if not any(Path(place).is_relative_to(one) for one in outer):
            outer = [one for one in outer if not Path(one).is_relative_to(place)]
            outer.append(place)
    return tuple(outer)


async def _on_record(root: Path, loaded: Loaded) -> tuple[bool, int]:
    """Return whether dispatching is paused, and how many agents are on record."""
    try:
        async with premises.open_ledger(root, loaded, readonly=True) as ledger:
            records = await ledger.records(active=True)
            return await ledger.pause() is not None, sum(one.holds_slot for one in records)
    except (ConfigError, Refused, Unavailable):
        # What is wrong with it, the daemon tells; a new one is begun paused.
        return False, 0


def _holder(root: Path, loaded: Loaded) -> int:
    """Return the process that holds the daemon's lock, 0 for none."""
    try:
        lock = os.open(premises.state_dir(root, loaded) / "daemon.lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        text = os.pread(lock, 32, 0).decode("ascii", "replace").strip()
        return int(text) if text.isascii() and text.isdigit() else -1
    finally:
        os.close(lock)
    return 0
