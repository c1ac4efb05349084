"""What an installation or a removal does, one step after the other; to be shown, or carried out."""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import anyio
import anyio.to_thread

from chump_orchestrator.adapters import process
from chump_orchestrator.core.errors import ConfigError, Refused, Unavailable
from chump_orchestrator.core.gap import plain

SOON = timedelta(seconds=60)
"""For what a service manager does at once."""

_AGAIN_S = 0.05


@dataclass(frozen=True, slots=True)
class Write:
    """Write a file, whole or not at all; `before` is what is there now, empty for nothing."""

    path: Path
    text: str
    before: str = ""

    def __str__(self) -> str:
        return f"{'rewrite' if self.before else 'write'} {self.path}"


@dataclass(frozen=True, slots=True)
class Remove:
    """Remove a file."""

    path: Path

    def __str__(self) -> str:
        return f"remove {self.path}"


@dataclass(frozen=True, slots=True)
class Run:
    """Run a program with `env`; where it `may_fail`, that is only told, or not when `quiet`.

    `meanwhile` says what is waited for, where that may take a while.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    limit: timedelta = SOON
    may_fail: bool = False
    quiet: bool = False
    meanwhile: str = ""

    def __str__(self) -> str:
        return shlex.join(self.argv)


@dataclass(frozen=True, slots=True)
class Await:
    """Wait until a claim holds; `what` names it."""

    what: str
    claim: Callable[[], bool]
    limit: timedelta = timedelta(seconds=20)

    def __str__(self) -> str:
        return f"wait for {self.what}"


Step = Write | Remove | Run | Await


async def carry_out(step: Step) -> str:
    """Do it, and return what it has to say, empty when nothing.

    Raises `Refused` when a program fails, with what it said, `Unavailable` when it takes too
    long, `ConfigError` when a file cannot be written.
    """
    match step:
        case Write():
            await anyio.to_thread.run_sync(_write, step.path, step.text)
        case Remove():
            await anyio.to_thread.run_sync(_remove, step.path)
        case Await():
            await _await(step)
        case Run():
            return await _run(step)
    return ""


async def _await(step: Await) -> None:
    with anyio.move_on_after(step.limit.total_seconds()):
        while not await anyio.to_thread.run_sync(step.claim):  # noqa: ASYNC110 - nobody would say
            await anyio.sleep(_AGAIN_S)
        return
    raise Unavailable(f"{step.what} did not come within {step.limit.total_seconds():g} s")


async def _run(step: Run) -> str:
    done = await process.run(step.argv, cwd="/", env=step.env, timeout=step.limit)
    said = plain(b"\n".join((done.out, done.err)).decode("utf-8", "replace")).strip()
    if done.code == 0:
        return ""
    text = f"`{step}` failed (exit {done.code})" + (f": {said}" if said else "")
    if step.may_fail:
        return "" if step.quiet else text
    raise Refused(text)


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}")
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(descriptor)
            temporary.chmod(0o644)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise _complaint(path, error) from error


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise _complaint(path, error) from error


def _complaint(path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"{path} cannot be changed: {error.strerror}; give yourself access to it")
