"""What is found of a dispatch, and the burial of an agent whose shim died. Blocks.

The lock tells whether a shim lives. What is decided about a dead one is decided while holding it,
so that a shim that comes late sees what was decided and leaves.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum, auto
from pathlib import Path

import psutil

from chump_orchestrator.adapters.local import cgroups
from chump_orchestrator.adapters.local.files import locked, read_object, write_object
from chump_orchestrator.adapters.local.numbers import LARGEST_PID, LONGEST_S, seconds, whole
from chump_orchestrator.adapters.local.shims import agent_of, kill_shim, shims_of
from chump_orchestrator.core.errors import Unavailable
from chump_orchestrator.shim.cgroup import Cgroup
from chump_orchestrator.shim.files import EXIT, RUNNING, SPEC, TOMBSTONE

if sys.platform == "linux":
    from chump_orchestrator.shim import linux as host
else:
    from chump_orchestrator.shim import macos as host

MARKER = "CHUMP_DISPATCH_ID"

_SWEEP_S = 5.0
"""How long KILL is repeated before what still lives is left to a person."""

_REAP_S = 1.0
"""How long one that was killed, or let go of its lock, is waited for."""

_AGAIN_S = 0.02
_FIRST_YEAR, _LAST_YEAR = 2000, 3000
_REBOOTED = "the machine was started anew while the agent ran"
_SHIM_DIED = "the agent's shim was killed, or died"
UNREADABLE = "the record of the agent's end cannot be read"


class Stage(Enum):
    """How far a dispatch has come, as its files and its lock tell.

    `ADRIFT` is one whose files have gone, for instance by `git clean`, and whose shim lives.
    """

    NEVER = auto()
    ADRIFT = auto()
    STARTING = auto()
    RUNNING = auto()
    ENDING = auto()
    ENDED = auto()


@dataclass(frozen=True, slots=True)
class Found:
    """What was found of a dispatch.

    `running` is the record of the start and `record` that of the end; empty if there is none.
    Of one whose files have gone these are what its processes tell.
    """

    stage: Stage
    running: dict[str, object] = field(default_factory=dict)
    record: dict[str, object] = field(default_factory=dict)


def look(directory: Path, dispatch: str, now: datetime) -> Found:
    """Look at a dispatch, and settle what a dead shim has left open.

    An agent that lost its shim is swept and gets a record that says so, ended at `now`; one that
    was never started never will be. Raises `Unavailable` when the disk refuses. Takes seconds
    when processes have to be killed.
    """
    try:
        with locked(directory) as is_ours:
            running = read_object(directory, RUNNING)
            record = read_object(directory, EXIT)
            if not is_ours:
                if record:
                    return Found(Stage.ENDING, running or {})
                stage = Stage.STARTING if running is None else Stage.RUNNING
                return Found(stage, running or {})
            if record:
                _reap(running or {})
                return Found(Stage.ENDED, running or {}, record)
            if running and _lives(running):  # its lock was deleted
                return Found(Stage.RUNNING, running)
            if running is not None or record is not None:
                why = "" if record is None else UNREADABLE
                record = _bury(directory, dispatch, running or {}, now, why)
                _reap(running or {})
                return Found(Stage.ENDED, running or {}, record)
            _forbid(directory, dispatch)
            return Found(Stage.NEVER)
    except (FileNotFoundError, NotADirectoryError):
        return _without_files(directory, dispatch, now)
    except OSError as error:
        raise Unavailable(
            f"dispatch {dispatch}: {error.filename or directory} cannot be used:"
            f" {error.strerror}; see to the disk and its permissions"
        ) from error


def _without_files(directory: Path, dispatch: str, now: datetime) -> Found:
    shims = _with_agents(directory)
    if not shims:
        swept, survivors = sweep(dispatch, {})
        return Found(Stage.NEVER, {}, {"swept": swept, "survivors": survivors})
    age = 0.0
    with contextlib.suppress(psutil.Error):
        age = max(0.0, now.timestamp() - shims[0].create_time())
    return Found(Stage.ADRIFT, {"pid": agent_of(shims[0]), "active_s": age})


def _with_agents(directory: Path) -> list[psutil.Process]:
    """Return the shims of a dispatch without files that have an agent.

    One that has none gets none any more: it is about to leave, or waits for a word that its
    daemon cannot give it any more. Where it stays, it is killed.
    """
    until = time.monotonic() + _REAP_S
    while (shims := shims_of(directory)) and not agent_of(shims[0]):
        if time.monotonic() > until:
            kill_shim(directory)
            return shims_of(directory)
        time.sleep(_AGAIN_S)
    return shims


def is_held(directory: Path) -> bool:
    """Whether a shim lives; changes nothing. Not when the folder has gone."""
    try:
        with locked(directory) as is_ours:
            return not is_ours or is_alive(directory)
    except OSError:
        return False


def is_alive(directory: Path) -> bool:
    """Whether the shim on record lives, though its lock may have been deleted."""
    try:
        return _lives(read_object(directory, RUNNING) or {})
    except OSError:
        return False


def give_up(directory: Path, dispatch: str) -> None:
    """After a failed launch, whose shim is dead: kill what it left, and forbid another start."""
    until = time.monotonic() + _SWEEP_S
    with contextlib.suppress(OSError):
        while time.monotonic() < until:
            with locked(directory) as is_ours:
                if is_ours:
                    sweep(dispatch, read_object(directory, RUNNING) or {})
                    _forbid(directory, dispatch)
                    return
            time.sleep(_AGAIN_S)


def sweep(dispatch: str, running: dict[str, object]) -> tuple[int, int]:
    """Kill what an agent left; how many processes that was, and how many live on regardless.

    They are known by the marker in their environment, and by their process group as long as its
    leader is the very process that was recorded.
    """
    swept: set[int] = set()
    until = time.monotonic() + _SWEEP_S
    _kill_group(running)
    while True:
        alive = list(_marked(dispatch))
        swept |= {process.pid for process in alive}
        if not alive or time.monotonic() >= until:
            return len(swept), len(alive)
        for process in alive:
            with contextlib.suppress(psutil.Error):
                process.kill()
        time.sleep(_AGAIN_S)


def _reap(running: dict[str, object]) -> None:
    """Reap a dead shim, and an agent that it left, if they have become our children.

    As a rule `init` has them. But orphans come to this process where it is the first of a
    container, or a subreaper.
    """
    for who, begin in (("shim_pid", "shim_start"), ("pid", "start")):
        pid, start = _pid(running, who), whole(running.get(begin))
        until = time.monotonic() + _REAP_S
        # The start time, a number on Linux alone, keeps children of the same number out of this.
        while pid is not None and start is not None and host.start_of(pid) == start:
            try:
                reaped, _ = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                break
            if reaped or time.monotonic() >= until:
                break
            time.sleep(_AGAIN_S)


def _kill_group(running: dict[str, object]) -> None:
    group = _pid(running, "pgid")
    if group is not None and _is_that(running, "pid", "start"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)


def _lives(running: dict[str, object]) -> bool:
    """Whether the very shim that is on record lives, whatever became of its lock."""
    pid = _pid(running, "shim_pid")
    is_this_boot = running.get("boot_id") == host.boot_id()
    is_it = is_this_boot and _is_that(running, "shim_pid", "shim_start")
    return is_it and pid is not None and host.is_alive(pid)


def _is_that(running: dict[str, object], who: str, begin: str) -> bool:
    pid, start = _pid(running, who), running.get(begin)
    return pid is not None and start is not None and host.start_of(pid) == start


def _pid(running: dict[str, object], who: str) -> int | None:
    """A recorded process or group; `None` for none, and for the one that must not be signalled."""
    return whole(running.get(who), LARGEST_PID, least=2)


def _marked(dispatch: str) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        if process.pid != os.getpid():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get(MARKER) == dispatch and process.status() not in (
                    psutil.STATUS_ZOMBIE,
                    psutil.STATUS_DEAD,
                ):
                    yield process


def _forbid(directory: Path, dispatch: str) -> None:
    """Have no shim ever start this dispatch."""
    if not (directory / TOMBSTONE).exists():
        write_object(directory, TOMBSTONE, {"dispatch": dispatch})
    sweep(dispatch, {})
    parent = (read_object(directory, SPEC) or {}).get("cgroup")
    if isinstance(parent, str):
        cgroups.empty(f"{parent}/chump-{dispatch}")


def _bury(
    directory: Path, dispatch: str, running: dict[str, object], now: datetime, why: str
) -> dict[str, object]:
    """Write the record that the shim could not write."""
    recorded, this = running.get("boot_id"), host.boot_id()
    is_rebooted = isinstance(recorded, str) and bool(recorded and this) and recorded != this
    swept, survivors = (0, 0) if is_rebooted else sweep(dispatch, running)
    out_of_memory = None if is_rebooted else _out_of_memory(dispatch, running)
    is_contained = not is_rebooted and _is_emptied(dispatch, running)
    started = instant(running.get("started_at"))
    record: dict[str, object] = {
        "dispatch": dispatch,
        "lost": why or (_REBOOTED if is_rebooted else _SHIM_DIED),
        "clean": is_rebooted or (is_contained and not survivors),
        "code": None,
        "signal": None,
        "killed_by": None,
        "spawn_error": None,
        "swept": swept,
        "survivors": survivors,
        "out_of_memory": out_of_memory,
        "active_s": round(_active_s(directory, running), 3),
        "started_at": started.isoformat() if started else None,
        "ended_at": now.astimezone(UTC).isoformat(timespec="milliseconds"),
    }
    write_object(directory, EXIT, record)
    return record


def _out_of_memory(dispatch: str, running: dict[str, object]) -> dict[str, object] | None:
    path = running.get("cgroup")
    if not cgroups.is_ours(path, dispatch):
        return None
    return Cgroup(str(path)).out_of_memory()


def _is_emptied(dispatch: str, running: dict[str, object]) -> bool:
    """End what lives in the dispatch's control group, if it had one; whether that proves the end.

    It does, as nothing leaves its group by forking, however it may hide otherwise.
    """
    path = running.get("cgroup")
    return cgroups.is_ours(path, dispatch) and cgroups.empty(str(path))


def _active_s(directory: Path, running: dict[str, object]) -> float:
    """How long an agent ran at least: until its last output, and never beyond its deadline."""
    started = instant(running.get("started_at"))
    if started is None:
        return 0.0
    written = [started.timestamp()]
    for path in directory.glob("std*.log"):
        with contextlib.suppress(OSError):
            written.append(path.stat().st_mtime)
    hard = seconds((read_object(directory, SPEC) or {}).get("hard_s"))
    return min(max(written) - started.timestamp(), LONGEST_S if hard is None else hard)


def instant(text: object) -> datetime | None:
    """Return an instant as the shim writes it, in UTC; `None` when it is none, or a strange one."""
    with contextlib.suppress(ValueError, OverflowError):
        if isinstance(text, str):
            moment = datetime.fromisoformat(text)
            is_possible = moment.tzinfo is not None and _FIRST_YEAR <= moment.year < _LAST_YEAR
            return moment.astimezone(UTC) if is_possible else None
    return None
