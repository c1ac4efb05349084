"""From a command to a running shim: its program, its order, the hand-over."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from enum import Enum
from io import FileIO
from pathlib import Path

import anyio
import anyio.to_thread

from chump_orchestrator.adapters.local import cgroups
from chump_orchestrator.adapters.local.files import (
    PROMPT,
    TEMPORARY,
    delete,
    sync_folder,
    write_durably,
    write_object,
)
from chump_orchestrator.adapters.local.numbers import LARGEST_PID, LONGEST_S
from chump_orchestrator.adapters.local.remains import give_up, is_held
from chump_orchestrator.adapters.local.shims import kill_shim
from chump_orchestrator.adapters.local.standby import Standby, see_off, start
from chump_orchestrator.adapters.starting import SHORTAGES
from chump_orchestrator.core.dispatch import (
    SESSION,
    Command,
    Deadlines,
    Dispatch,
    Limits,
    Workspace,
)
from chump_orchestrator.core.errors import Refused, Unavailable
from chump_orchestrator.shim.files import LOG, SPEC

HEAD_BYTES = 262_144
RING_BYTES = 8_388_608
ANSWER_S = 15.0
"""How long a shim may take to say whether its agent runs; it needs some 50 ms."""

_LAST_RESORT = timedelta(minutes=5)
"""How long after its shim should have ended it an agent is ended by the service manager."""

_REAP_S = 5.0
_LOOK_AGAIN_S = 0.005
_LINE_LIMIT = 64 * 1024
_PLACEHOLDER = re.compile(r"\{(worktree|branch|prompt_file)\}")


@dataclass(frozen=True, slots=True)
class Launch:
    """All that a shim is started with.

    `cgroup` is where it may make a control group, `managers` are the sockets of service managers
    that it may ask for a unit, the best one first.
    """

    directory: Path
    dispatch: Dispatch
    workspace: Workspace
    command: Command
    prompt: str
    environment: Mapping[str, str]
    secrets: tuple[str, ...]
    python: str
    cgroup: str | None = None
    managers: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)


async def launch(order: Launch, standby: Standby | None = None) -> int:
    """Start an agent under a shim, `standby` if it still waits; return the agent's process id.

    Raises `Refused` when the agent cannot be executed, or not with limits that are required,
    `Unavailable` when it cannot be started now; after either, nothing of it is left running.
    Takes up to half a minute when a shim hangs. On cancellation a shim that was not told its
    environment yet starts nothing.
    """
    told = await anyio.to_thread.run_sync(_prepare, order)
    waits = standby is not None and standby.waits()
    found = standby if standby is not None and waits else await _start(order)
    with found.pipes:
        answer = await _hand_over(found, told)
        complaint = found.complaint()
    process = found.process
    match answer:
        case {"state": "running", "pid": int() as pid} if 1 < pid <= LARGEST_PID:
            await see_off(process)
            return pid
        case {"state": "spawn_failed", "error": str() as why, "errno": int() as number}:
            await see_off(process)
            await anyio.to_thread.run_sync(_await_end, order.directory)
            # Without its worktree no program could have been started: that is not its fault.
            has_place = await anyio.to_thread.run_sync(Path(order.workspace.path).is_dir)
            if number in SHORTAGES or not has_place:
                raise Unavailable(f"the agent could not be started now: {why}")
            raise Refused(f"the agent could not be started: {why}")
        case _:
            died = f"its shim died; see {order.directory / LOG}"
            because = answer.get("why") or (f"its shim died: {complaint}" if complaint else died)
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
            await see_off(process)
            await anyio.to_thread.run_sync(_clear_away, order, answer)
            if answer.get("is_final") is True:
                raise Refused(f"limits.required keeps the agent from starting: {because}")
            raise Unavailable(f"the agent of {order.dispatch.id} could not be started: {because}")


def find_program(candidates: tuple[str, ...], worktree: str, environment: Mapping[str, str]) -> str:
    """Return the first candidate that can be executed, as an absolute path.

    Raises `Refused`, naming all of them, when there is none.
    """
    for candidate in candidates:
        if "/" in candidate:
            places = [os.path.join(worktree, candidate)]  # noqa: PTH118 - keeps `./` and `..`
        else:
            # An entry that is not absolute would have the worktree say what is run.
            folders = environment.get("PATH", os.defpath).split(":")
            places = [f"{folder}/{candidate}" for folder in folders if folder.startswith("/")]
        for place in places:
            if os.access(place, os.X_OK) and Path(place).is_file():
                return os.path.abspath(place)  # noqa: PTH100 - a symlink must keep its name
    tried = ", ".join(candidates) or "none was named"
    raise Refused(
        f"no program to run the agent with, tried: {tried}; install one where the agent's PATH"
        " leads, or name it with its whole path"
    )


def _write_order(order: Launch, program: str) -> None:
    directory, dispatch, command = order.directory, order.dispatch, order.command
    (directory / TEMPORARY).mkdir(mode=0o700)
    brief = command.brief_prefix + order.prompt
    write_durably(directory, PROMPT, brief.encode("utf-8", "replace"))
    values = {
        "worktree": order.workspace.path,
        "branch": order.workspace.branch,
        "prompt_file": str(directory / PROMPT),
    }
    args = tuple(dispatch.session if arg == SESSION else arg for arg in command.args)
    if command.expand:
        args = tuple(_PLACEHOLDER.sub(lambda hit: values[hit[1]], arg) for arg in args)
    spec = {
        "dispatch": dispatch.id,
        "gap": dispatch.gap.id,
        "attempt": dispatch.attempt,
        "argv": [program, *args],
        "cwd": order.workspace.path,
        "environment": sorted(order.environment),
        "stdin": "prompt" if command.brief_on_stdin else "null",
        "prompt": PROMPT,
        "hard_s": dispatch.deadlines.hard.total_seconds(),
        "grace_s": dispatch.deadlines.grace.total_seconds(),
        "stop_signals": list(command.stop_signals),
        "head_bytes": HEAD_BYTES,
        "ring_bytes": RING_BYTES,
        "cgroup": order.cgroup,
        "managers": list(order.managers),
        "unit": cgroups.own_unit(),
        "runtime_s": _longest_s(dispatch.deadlines),
        "limits": dataclasses.asdict(order.limits),
        "branch": order.workspace.branch,
        "base": order.workspace.base,
        "created_at": dispatch.created_at.isoformat(),
        "record": dataclasses.asdict(dispatch),
    }
    plain = json.loads(json.dumps(spec, default=_plain))
    write_object(directory, SPEC, plain)
    sync_folder(directory.parent)


def _longest_s(deadlines: Deadlines) -> float:
    """Return after how long a service manager ends what its shim should have ended before.

    No deadline is later than one soft deadline after the last moment at which a pull request may
    be seen first.
    """
    longest = deadlines.last + deadlines.soft + deadlines.grace + _LAST_RESORT
    return min(longest.total_seconds(), LONGEST_S)


def _plain(value: object) -> object:
    """Durations in seconds, instants and days in ISO 8601."""
    match value:
        case timedelta():
            return value.total_seconds()
        case datetime() | date():
            return value.isoformat()
        case Enum():
            return value.value
        case frozenset() | set():
            return sorted(value)
        case _:
            return str(value)


async def _start(order: Launch) -> Standby:
    """Start a shim now."""
    try:
        return await start(order.python, order.directory)
    except (OSError, RuntimeError) as error:  # the latter for want of a thread to reap it in
        await anyio.to_thread.run_sync(_take_back, order)
        raise _unprepared(order, error) from error


def _prepare(order: Launch) -> bytes:
    """Write the order; return what the shim is told."""
    program = find_program(order.command.programs, order.workspace.path, order.environment)
    try:
        order.directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise _unprepared(order, error) from error
    try:
        order.directory.mkdir(mode=0o700)
    except FileExistsError as error:
        raise Refused(
            f"dispatch {order.dispatch.id} cannot be launched: {order.directory} is there"
            " already; launch a new dispatch"
        ) from error
    except OSError as error:
        raise _unprepared(order, error) from error
    try:
        _write_order(order, program)
    except OSError as error:
        _take_back(order)
        raise _unprepared(order, error) from error
    return json.dumps({"env": dict(order.environment), "redact": list(order.secrets)}).encode()


def _take_back(order: Launch) -> None:
    with contextlib.suppress(OSError):
        delete(order.directory)


async def _hand_over(standby: Standby, told: bytes) -> dict[str, object]:
    """Tell the shim the environment and return what it says; empty when it died without a word."""
    standby.is_told = True
    try:
        with anyio.fail_after(ANSWER_S):
            with standby.ask, contextlib.suppress(BrokenPipeError):  # it will say why it has left
                await _say(standby.ask, told)
            return await _hear(standby.answer)
    except TimeoutError:
        return {"why": f"its shim did not answer within {ANSWER_S:g} s"}
    except OSError as error:
        return {"why": f"its shim cannot be talked to: {error.strerror}"}


async def _say(ask: FileIO, told: bytes) -> None:
    left = memoryview(told)
    while left:
        written = ask.write(left)
        if written is None:
            await anyio.wait_writable(ask)
        else:
            left = left[written:]


async def _hear(answer: FileIO) -> dict[str, object]:
    heard = b""
    while b"\n" not in heard and len(heard) < _LINE_LIMIT:
        chunk = answer.read(_LINE_LIMIT)
        if chunk is None:
            await anyio.wait_readable(answer)
        elif chunk:
            heard += chunk
        else:
            break
    with contextlib.suppress(ValueError):
        said = json.loads(heard.partition(b"\n")[0])
        if isinstance(said, dict):
            return said
    return {}


def _await_end(directory: Path) -> None:
    until = time.monotonic() + _REAP_S
    while is_held(directory) and time.monotonic() < until:
        time.sleep(_LOOK_AGAIN_S)


def _clear_away(order: Launch, answer: dict[str, object]) -> None:
    if answer.get("state") != "left":
        kill_shim(order.directory)
    give_up(order.directory, order.dispatch.id)


def _unprepared(order: Launch, error: OSError | RuntimeError) -> Unavailable:
    reason = (error.strerror if isinstance(error, OSError) else str(error)) or type(error).__name__
    return Unavailable(
        f"the agent of {order.dispatch.id} could not be started in {order.directory}: {reason};"
        " see to the disk, its permissions and the limits of this process"
    )
