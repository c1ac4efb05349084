"""One question to git and its answer, for a command that does nothing else meanwhile.

No loop, no lock, and nothing that changes a repository or goes over the network: for that there is
`git`. Options and environment are the same, those of `git_manners`.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from chump_orchestrator.adapters.git_manners import (
    OPTIONS,
    TIMEOUT_S,
    environment,
    joined,
    last_lines,
)
from chump_orchestrator.adapters.starting import explained, without_manager
from chump_orchestrator.core.errors import Refused, Unavailable

LIMIT_BYTES = 64 * 1024 * 1024
"""Most that an answer may have."""

CHUNK_BYTES = 256 * 1024
TICK_S = 0.05
DRAIN_S = 0.5
"""How long what git left running may keep its pipes once it has ended itself."""

REAP_S = 5.0
"""How long a git that was killed is waited for; one in the kernel's hands may take longer."""

Answer = subprocess.CompletedProcess[bytes]


def ask(where: Path, env: Mapping[str, str], *args: str, timeout_s: float = TIMEOUT_S) -> Answer:
    """Run one command in the folder `where` and return its exit code and all that it wrote.

    What it says too much of is not collected, and whoever still holds its pipes is not waited for.
    Raises `Unavailable` when it does not end within `timeout_s` or cannot be started now, and
    `Refused` when it never can, or says too much. Nothing of it is left then, nor after Ctrl-C.
    """
    try:
        process = subprocess.Popen(
            ("git", *OPTIONS, *args),
            cwd=where,
            env=without_manager(environment(env)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        raise explained("git", where, error) from error
    try:
        out, err = _said(process, time.monotonic() + timeout_s)
    except subprocess.TimeoutExpired:
        _kill(process)
        raise Unavailable(
            f"git did not finish within {timeout_s:g} s and was killed; see whether it waits"
            " for a network, a lock or an answer"
        ) from None
    except BaseException:
        _kill(process)
        raise
    finally:
        for pipe in filter(None, (process.stdout, process.stderr)):
            pipe.close()
    return Answer(process.args, process.returncode, out, err)


def _said(process: subprocess.Popen[bytes], deadline_s: float) -> tuple[bytes, bytes]:
    """Return all that came out of both pipes, once the process has ended."""
    out, err = bytearray(), bytearray()
    with selectors.DefaultSelector() as waiting:
        for pipe, said in ((process.stdout, out), (process.stderr, err)):
            if pipe is not None:
                waiting.register(pipe, selectors.EVENT_READ, said)
        while waiting.get_map():
            if process.poll() is not None:
                deadline_s = min(deadline_s, time.monotonic() + DRAIN_S)
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                break
            for key, _ in waiting.select(min(left_s, TICK_S)):
                chunk = os.read(key.fd, CHUNK_BYTES)
                key.data.extend(chunk)
                if not chunk:
                    waiting.unregister(key.fileobj)
                if len(key.data) > LIMIT_BYTES:
                    raise Refused(
                        f"git wrote more than {LIMIT_BYTES} bytes and was stopped; ask for less"
                    )
    _await_end(process, max(deadline_s - time.monotonic(), 0))
    return bytes(out), bytes(err)


def _await_end(process: subprocess.Popen[bytes], within_s: float) -> None:
    """Wait for its end, where possible without looking for it again and again, as `Popen` does.

    Raises `TimeoutExpired` when it does not come in time.
    """
    if process.poll() is not None:
        return
    try:
        descriptor = os.pidfd_open(process.pid)
    except (AttributeError, OSError):
        process.wait(within_s)
        return
    try:
        with selectors.DefaultSelector() as waiting:
            waiting.register(descriptor, selectors.EVENT_READ)
            if not waiting.select(within_s):
                raise subprocess.TimeoutExpired(process.args, within_s)
    finally:
        os.close(descriptor)
    process.wait()


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        _await_end(process, REAP_S)


def find_repository(start: Path, env: Mapping[str, str]) -> Path:
    """Return the main work tree of the repository around `start`, also from a linked worktree.

    Raises `Refused` when there is none, or when it is bare, with what to do about it.
    """
    remedy = "name one with --repo-root, or run `git init` there first"
    if not start.is_dir():
        raise Refused(f"{start} is no folder; {remedy}")
    # The last question fails where there is no work tree, when the others have been answered.
    asked = ask(
        start,
        env,
        *("rev-parse", "--path-format=absolute", "--git-dir", "--git-common-dir"),
        "--show-toplevel",
    )
    own, common, top = (*asked.stdout.decode("utf-8", "surrogateescape").split("\n", 2), "", "")[:3]
    if not own or not common:
        why = last_lines(asked.stderr)
        raise Refused(f"{start} is not in a usable git repository ({why}); {remedy}")
    if own == common and asked.returncode == 0 and top.strip():
        return Path(top.removesuffix("\n"))
    folder = Path(common)
    settings = ("config", "--file", str(folder / "config"))
    bare = ask(start, env, *settings, "--type=bool", "--get", "core.bare")
    if bare.stdout.strip() != b"true":
        moved = ask(start, env, *settings, "--type=path", "--get", "core.worktree")
        if moved.returncode == 0:
            place = moved.stdout.decode("utf-8", "surrogateescape").removesuffix("\n")
            return joined(folder, place)
        if folder.name == ".git":
            return folder.parent
    raise Refused(
        f"the repository {folder} has no work tree of its own; clone it without --bare and name"
        " the clone with --repo-root"
    )
