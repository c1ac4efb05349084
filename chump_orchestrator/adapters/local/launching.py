"""From a command to a running shim: its program, its order, the hand-over. Blocks."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from enum import Enum
from pathlib import Path

from chump_orchestrator import shim
from chump_orchestrator.adapters.local.children import Children
from chump_orchestrator.adapters.local.files import (
    PROMPT,
    SHIM_LOG,
    TEMPORARY,
    delete,
    sync_folder,
    write_durably,
    write_object,
)
from chump_orchestrator.adapters.local.remains import give_up
from chump_orchestrator.adapters.process import SHORTAGES
from chump_orchestrator.core.dispatch import Command, Dispatch, Workspace
from chump_orchestrator.core.errors import Refused, Unavailable
from chump_orchestrator.shim.files import SPEC

HEAD_BYTES = 262_144
RING_BYTES = 8_388_608
ANSWER_S = 15.0
"""How long a shim may take to say whether its agent runs; it needs some 50 ms."""

_SHIM = str(Path(shim.__file__).parent)
_SHIM_ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C.UTF-8"}
_REAP_S = 5.0
_REAP_AGAIN_S = 0.005
_LINE_LIMIT = 64 * 1024
_PLACEHOLDER = re.compile(r"\{(worktree|branch|prompt_file)\}")


@dataclass(frozen=True, slots=True)
class Launch:
    """All that a shim is started with."""

    directory: Path
    dispatch: Dispatch
    workspace: Workspace
    command: Command
    prompt: str
    environment: Mapping[str, str]
    secrets: tuple[str, ...]
    python: str


def launch(order: Launch, children: Children) -> int:
    """Start an agent under a shim and return the agent's process id.

    The shim is added to `children`.
    Raises `Refused` when the agent cannot be executed, `Unavailable` when it cannot be started
    now; after either, nothing of it is left running. Takes up to half a minute when a shim hangs.
    """
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
        shim_pid, ask, answer = _start(order)
    except OSError as error:
        with contextlib.suppress(OSError):
            delete(order.directory)
        raise _unprepared(order, error) from error
    children.add(shim_pid)
    return _hand_over(order, shim_pid, children, ask, answer)


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
    write_durably(directory, PROMPT, order.prompt.encode("utf-8", "replace"))
    values = {
        "worktree": order.workspace.path,
        "branch": order.workspace.branch,
        "prompt_file": str(directory / PROMPT),
    }
    args = command.args
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
        "branch": order.workspace.branch,
        "base": order.workspace.base,
        "created_at": dispatch.created_at.isoformat(),
        "record": dataclasses.asdict(dispatch),
    }
    plain = json.loads(json.dumps(spec, default=_plain))
    write_object(directory, SPEC, plain)
    sync_folder(directory.parent)


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


def _start(order: Launch) -> tuple[int, int, int]:
    """Start the shim; its process id, and our ends of its standard input and output.

    Not through asyncio: from Python 3.12 on its transport kills a child that is still running
    when the loop goes, and agents outlive the daemon.
    """
    with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
        their_in, ask = os.pipe()
        theirs.callback(os.close, their_in)
        ours.callback(os.close, ask)
        answer, their_out = os.pipe()
        theirs.callback(os.close, their_out)
        ours.callback(os.close, answer)
        log = os.open(
            order.directory / SHIM_LOG,
            os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC,
            0o600,
        )
        theirs.callback(os.close, log)
        process = subprocess.Popen(  # noqa: TID251 - see above
            [order.python, "-I", "-S", _SHIM, str(order.directory)],
            stdin=their_in,
            stdout=their_out,
            stderr=log,
            cwd="/",
            env=_SHIM_ENVIRONMENT,
            start_new_session=True,
        )
        # It is reaped by its number; the object would complain of being dropped before.
        process.returncode = 0
        ours.pop_all()
    return process.pid, ask, answer


def _hand_over(order: Launch, shim_pid: int, children: Children, ask: int, answer: int) -> int:
    """Tell the shim the environment, and hear from it the agent's process id."""
    told = json.dumps({"env": dict(order.environment), "redact": list(order.secrets)}).encode()
    until = time.monotonic() + ANSWER_S
    try:
        try:
            _say(ask, told, until)
        finally:
            os.close(ask)
        line = _hear(answer, until)
    except TimeoutError:
        line = {"why": f"its shim did not answer within {ANSWER_S:g} s"}
    except OSError as error:
        line = {"why": f"its shim cannot be talked to: {error.strerror}"}
    finally:
        os.close(answer)
    match line:
        case {"state": "running", "pid": int() as pid}:
            return pid
        case {"state": "spawn_failed", "error": str() as why, "errno": int() as number}:
            _await_end(shim_pid, children)
            if number in SHORTAGES:
                raise Unavailable(f"the agent could not be started now: {why}")
            raise Refused(f"the agent could not be started: {why}")
        case _:
            because = line.get("why") or f"its shim died; see {order.directory / SHIM_LOG}"
            if line.get("state") != "left":
                with contextlib.suppress(ProcessLookupError):
                    os.kill(shim_pid, signal.SIGKILL)
            _await_end(shim_pid, children)
            give_up(order.directory, order.dispatch.id)
            raise Unavailable(f"the agent of {order.dispatch.id} could not be started: {because}")


def _await_end(child: int, children: Children) -> None:
    until = time.monotonic() + _REAP_S
    while children.has(child) and time.monotonic() < until:
        time.sleep(_REAP_AGAIN_S)
        children.reap()


def _say(fd: int, data: bytes, until: float) -> None:
    os.set_blocking(fd, False)
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    left = memoryview(data)
    with contextlib.suppress(BrokenPipeError):  # its answer tells why it has left
        while left:
            _await_ready(poll, until)
            with contextlib.suppress(BlockingIOError):
                left = left[os.write(fd, left) :]


def _hear(fd: int, until: float) -> dict[str, object]:
    """Return the one line that a shim says; empty when it died without a word."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    heard = b""
    while b"\n" not in heard and len(heard) < _LINE_LIMIT:
        _await_ready(poll, until)
        chunk = os.read(fd, _LINE_LIMIT)
        if not chunk:
            break
        heard += chunk
    with contextlib.suppress(ValueError):
        line = json.loads(heard.partition(b"\n")[0])
        if isinstance(line, dict):
            return line
    return {}


def _await_ready(poll: select.poll, until: float) -> None:
    if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
        raise TimeoutError


def _unprepared(order: Launch, error: OSError) -> Unavailable:
    reason = error.strerror or type(error).__name__
    return Unavailable(
        f"the agent of {order.dispatch.id} could not be started in {order.directory}: {reason};"
        " see to the disk, its permissions and the limits of this process"
    )
