"""The machine: Python, room on the disk, file systems, limits, clocks."""

from __future__ import annotations

import os
import resource
import sqlite3
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil

from chump_orchestrator.adapters.worktrees import rooms
from chump_orchestrator.core.errors import ConfigError, Refused, Unavailable
from chump_orchestrator.doctor.findings import Check, Finding, fail, ok, skip, warn
from chump_orchestrator.doctor.subject import Subject, in_thread

OLDEST_PYTHON, NEWEST_PYTHON = (3, 11), (3, 14)
OLDEST_SQLITE = (3, 35)
"""Has all that the ledger's queries are made of."""

ON_NETWORKS = (  # noqa: SIM905 - a line for each would hide the whole
    "9p afpfs afs ceph cifs fuse.glusterfs fuse.sshfs glusterfs lustre ncpfs nfs nfs4 prl_fs"
    " smb3 smbfs vboxsf virtiofs webdav"
).split()
"""File systems on which a write-ahead log is not safe: its readers must share memory."""

IN_MEMORY = ("ramfs", "tmpfs")

DESCRIPTORS = 128
DESCRIPTORS_PER_AGENT = 16
"""What the daemon itself needs at most, and what each agent adds: pipes, sockets, databases."""

WATCHERS_PER_AGENT = 8
"""Instances of inotify that one agent's tools may open: a server, a compiler, a test runner."""

MEMORY_PER_AGENT = 250 * 2**20
"""Bytes that an agent takes by itself, without what it builds and tests."""

SLIGHT_SKEW, GREAT_SKEW = timedelta(minutes=1), timedelta(minutes=5)
"""Beyond the second, pull requests are no longer known as ours by when they were made."""

SLIGHT_SKEW_OF_FILES = timedelta(seconds=5)


async def look_at_python(_: Subject) -> Sequence[Finding]:
    """Look at the versions of Python and SQLite."""
    return judged_python(sys.version_info[:3], sqlite3.sqlite_version_info)


def judged_python(python: tuple[int, ...], database: tuple[int, ...]) -> list[Finding]:
    """Judge versions of Python and SQLite."""
    shown, library = ".".join(map(str, python)), ".".join(map(str, database))
    supported = f"Python {OLDEST_PYTHON[0]}.{OLDEST_PYTHON[1]} to 3.{NEWEST_PYTHON[1]}"
    found = []
    if python[:2] < OLDEST_PYTHON:
        found.append(fail(f"Python {shown} is too old", f"install it anew with {supported}"))
    elif python[:2] > NEWEST_PYTHON:
        text = f"Python {shown} is newer than this version was tried with"
        found.append(warn(text, f"upgrade chump-orchestrator, or use {supported}"))
    if database < OLDEST_SQLITE:
        wanted = ".".join(map(str, OLDEST_SQLITE))
        text = f"SQLite {library} is older than {wanted}"
        found.append(fail(text, "use a Python that was built with a newer one"))
    return found or [ok(f"Python {shown} with SQLite {library}")]


async def look_at_disk(subject: Subject) -> Sequence[Finding]:
    """Look for room where worktrees and state lie."""
    settings = subject.settings
    places = dict.fromkeys((subject.place(settings.worktrees.base), subject.state))
    found = []
    for place in places:
        if shortage := await in_thread(rooms.shortage, place, settings.worktrees.min_free):
            remedy = "make room, or lower worktrees.min_free; until then nothing is dispatched"
            found.append(fail(shortage, remedy))
        elif await in_thread(rooms.shortage, place, 2 * settings.worktrees.min_free):
            text = f"{place} has less than twice the room that is left free for it"
            found.append(warn(text, "make room before agents and their builds fill it"))
    if found:
        return found
    room = await in_thread(os.statvfs, await in_thread(_existing, next(iter(places))))
    free, least = room.f_bavail * room.f_frsize / 2**30, settings.worktrees.min_free / 2**30
    return [ok(f"{free:.1f} GiB are free, {least:.3g} GiB are to be left free")]


async def look_at_file_systems(subject: Subject) -> Sequence[Finding]:
    """Look at what kinds of file systems hold databases and leases."""
    settings = subject.settings
    places = [
        subject.state,
        subject.place(settings.leases.dir),
        subject.place(settings.journal.reflections),
        subject.place(settings.journal.routing),
    ]
    resolved = await in_thread(lambda: [Path(os.path.realpath(place)) for place in places])
    return judged_file_systems(resolved, await in_thread(_mounts))


def judged_file_systems(places: Sequence[Path], table: Sequence[tuple[str, str]]) -> list[Finding]:
    """Judge the file systems on which `places` lie; `table` has mount points and their kinds."""
    kinds: dict[str, Path] = {}
    for place in places:
        inside = [one for one in table if place.is_relative_to(one[0])]
        if inside:
            # Of two mounts in one place, the later covers the earlier.
            _, kind = max(enumerate(inside), key=lambda one: (len(one[1][0]), one[0]))[1]
            kinds.setdefault(kind, place)
    found = []
    for kind, place in kinds.items():
        if kind in ON_NETWORKS:
            text = f"{place} is on {kind}, where SQLite's write-ahead log is not safe"
            remedy = "clone the repository to a disk of this machine"
            found.append(fail(text, remedy))
        elif kind in IN_MEMORY:
            text = f"{place} is on {kind} and does not outlast a restart of the machine"
            found.append(warn(text, "clone the repository to a disk"))
    if not kinds:
        return [skip("this system does not tell what file systems it has")]
    return found or [ok(f"state and databases are on {', '.join(sorted(kinds))}")]


def _mounts() -> list[tuple[str, str]]:
    return [(one.mountpoint, one.fstype) for one in psutil.disk_partitions(all=True)]


async def look_at_limits(subject: Subject) -> Sequence[Finding]:
    """Look at what the system allows a daemon and its agents."""
    agents = subject.settings.max_parallel
    service = await subject.service() if subject.has_root else None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    whose = "this shell"
    if service is not None and service.unit.descriptors is not None:
        soft, whose = service.unit.descriptors, service.name
    found = judged_descriptors(soft, agents, whose)
    found += await in_thread(_judged_watchers, agents)
    memory = await in_thread(psutil.virtual_memory)
    found += judged_memory(memory.total, agents)
    enough = f"enough for {agents} agent{'' if agents == 1 else 's'}"
    return found or [ok(f"{_shown_limit(soft)} open files, and memory, are {enough}")]


def judged_descriptors(soft: int, agents: int, whose: str) -> list[Finding]:
    """Judge how many open files are allowed for so many agents at once."""
    wanted = DESCRIPTORS + DESCRIPTORS_PER_AGENT * agents
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return []
    text = f"{whose} allows {soft} open files, and {agents} agents at once may need {wanted}"
    return [fail(text, f"allow more (ulimit -n {wanted}, or LimitNOFILE= of the unit)")]


def judged_memory(total: int, agents: int) -> list[Finding]:
    """Judge whether so many agents fit into so many bytes of memory."""
    wanted = MEMORY_PER_AGENT * agents
    if wanted <= total:
        return []
    text = (
        f"max_parallel is {agents}, which takes {wanted / 2**30:.0f} GiB of memory for agents"
        f" alone; there are {total / 2**30:.0f} GiB"
    )
    return [warn(text, f"lower max_parallel to {max(total // MEMORY_PER_AGENT, 1)} or less")]


def judged_watchers(allowed: int, used: int, agents: int) -> list[Finding]:
    """Judge whether agents' tools can watch files: instances of inotify, allowed and in use."""
    wanted = used + WATCHERS_PER_AGENT * agents
    if allowed >= wanted:
        return []
    text = f"{used} of {allowed} instances of inotify are in use; agents' tools may need more"
    return [warn(text, f"sysctl fs.inotify.max_user_instances={max(2 * allowed, 2 * wanted)}")]


def _judged_watchers(agents: int) -> list[Finding]:
    try:
        allowed = int(Path("/proc/sys/fs/inotify/max_user_instances").read_text("ascii"))
    except (OSError, ValueError):  # not Linux
        return []
    return judged_watchers(allowed, _instances(), agents)


def _instances() -> int:
    """Count the instances of inotify that this user's processes have open."""
    used = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if process.stat().st_uid != os.geteuid():
                continue
            for entry in (process / "fd").iterdir():
                used += os.readlink(entry) == "anon_inode:inotify"  # noqa: PTH115 - far faster
        except OSError:
            continue
    return used


def _shown_limit(soft: int) -> str:
    return "any number of" if soft == resource.RLIM_INFINITY else str(soft)


async def look_at_clock(subject: Subject) -> Sequence[Finding]:
    """Compare this machine's clock with those of its file system, the remote and the forge."""
    now = subject.clock.now()
    stamp = await in_thread(_stamp, await in_thread(_existing, subject.state))
    found = judged_clock("the file system", stamp - now, SLIGHT_SKEW_OF_FILES)
    others = []
    for whose, ask in (("the remote", subject.remote), ("the forge", subject.forge)):
        if whose == "the forge" and subject.settings.pulls.use != "gh":
            continue
        try:
            answer = await ask()
        except (ConfigError, Refused, Unavailable):
            continue  # a check of its own says so
        if answer.date is not None:
            others.append(whose)
            found += judged_clock(whose, answer.date - answer.seen_at, SLIGHT_SKEW)
    agree = ", ".join(["the file system", *others])
    return found or [ok(f"the clock agrees with {agree}")]


def judged_clock(whose: str, ahead: timedelta, slight: timedelta) -> list[Finding]:
    """Judge a clock that is `ahead` of this machine's, or behind it if that is negative."""
    if abs(ahead) <= slight:
        return []
    seconds = round(ahead.total_seconds())
    text = f"the clock of {whose} is {abs(seconds)} s {'ahead' if seconds > 0 else 'behind'}"
    remedy = "set this machine's clock, and keep it right (timedatectl set-ntp true)"
    return [fail(text, remedy) if abs(ahead) > GREAT_SKEW else warn(text, remedy)]


def _stamp(folder: Path) -> datetime:
    """Return what the file system takes for now: the time of a new file without a name."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return datetime.fromtimestamp(os.fstat(file.fileno()).st_mtime, UTC)
    except OSError as error:
        reason = f"{folder} cannot be written: {error.strerror}"
        raise Refused(f"{reason}; mend its permissions, or work on a clone of your own") from error


def _existing(place: Path) -> Path:
    return next(one for one in (place, *place.parents) if one.is_dir())


MACHINE = "machine"
CHECKS = (
    Check(
        "python",
        MACHINE,
        "Python and its SQLite are versions that this version runs on",
        look_at_python,
        needs_repository=False,
    ),
    Check("disk", MACHINE, "there is room for worktrees and state", look_at_disk),
    Check(
        "filesystem",
        MACHINE,
        "state and databases are on a disk of this machine",
        look_at_file_systems,
    ),
    Check(
        "limits",
        MACHINE,
        "open files, watchers and memory do for max_parallel agents",
        look_at_limits,
        needs_repository=False,
    ),
    Check(
        "clock",
        MACHINE,
        "clock, file system, remote and forge agree on the time",
        look_at_clock,
        limit_s=45.0,
    ),
)
