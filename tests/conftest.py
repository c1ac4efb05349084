"""What holds for every test: a hermetic environment, and nothing left running afterwards."""

import asyncio
import contextlib
import os
import sys
import time
import uuid
from collections.abc import Iterator

import hypothesis
import psutil
import pytest

IDLE_TURNS = 2
"""Of a loop in virtual time, before it moves on to the next timer."""

MARK = "TEST_THAT_STARTED_ME"
"""In the environment of a test and so of every process below it, however it forked."""

FORGOTTEN_PREFIXES = (
    "ANTHROPIC_",
    "CHUMP_",
    "CLAUDE",
    "GH_",
    "GITHUB_",
    "GIT_",
    "LISTEN_",
    "OPENAI_",
    "TOGETHER_",
    "XDG_",
)
FORGOTTEN = (
    "COLUMNS",
    "CREDENTIALS_DIRECTORY",
    "EMAIL",
    "FORCE_COLOR",
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "LINES",
    "MAINPID",
    "NOTIFY_SOCKET",
    "NO_COLOR",
    "SSH_ASKPASS",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
)

hypothesis.settings.register_profile("dev", deadline=None)
hypothesis.settings.register_profile(
    "ci", deadline=None, derandomize=True, database=None, print_blob=True
)
hypothesis.settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev")
)


@pytest.fixture(scope="session", autouse=True)
def hermetic_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Hide the machine: no git identity, no configuration, no credentials, an empty home."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name in FORGOTTEN or name.startswith(FORGOTTEN_PREFIXES):
                patch.delenv(name)
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
        patch.setenv("GIT_CONFIG_NOSYSTEM", "1")
        patch.setenv("GIT_TERMINAL_PROMPT", "0")
        patch.setenv("LC_ALL", "C.UTF-8")
        yield


@pytest.fixture(autouse=True)
def nothing_left_running() -> Iterator[None]:
    """Fail the test that leaves a process behind, and end the process.

    Found are the descendants of this process, and whatever still carries the mark of the test
    in its environment, even when it has been adopted by another parent.
    """
    mark = uuid.uuid4().hex
    before = _everybody()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MARK, mark)
        yield

    left = _started_by(mark, before)
    patience_ends = time.monotonic() + 5
    while left and time.monotonic() < patience_ends:
        time.sleep(0.05)
        left = _started_by(mark, before)
    if left:
        told = [_describe(process) for process in left]
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        pytest.fail("left running: " + "; ".join(told))


Everybody = dict[int, tuple[object, int]]
"""All processes: when each was started, and its parent's id."""


def _everybody() -> Everybody:
    found: Everybody = {}
    if sys.platform != "linux":
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                found[process.pid] = (process.create_time(), process.ppid())
        return found
    # The same at a fifth of the cost, which every test pays twice.
    with os.scandir("/proc") as listing:
        ids = [entry.name for entry in listing if entry.name.isdecimal()]
    for one in ids:
        with contextlib.suppress(OSError), open(f"/proc/{one}/stat", "rb", 0) as file:  # noqa: PTH123
            fields = file.read().rpartition(b")")[2].split(None, 20)
            found[int(one)] = (fields[19], int(fields[1]))
    return found


def _started_by(mark: str, before: Everybody) -> set[psutil.Process]:
    now = _everybody()
    found: set[psutil.Process] = set()
    for pid, (began, parent) in now.items():
        if pid in before and before[pid][0] == began:
            continue
        with contextlib.suppress(psutil.Error, OSError):
            process = psutil.Process(pid)
            if _descends(parent, now) or process.environ().get(MARK) == mark:
                found.add(process)
    return {process for process in found if _is_alive(process)}


def _descends(parent: int, everybody: Everybody) -> bool:
    """Say whether this process is `parent`, or above it."""
    seen: set[int] = set()
    while parent in everybody and parent not in seen:
        if parent == os.getpid():
            return True
        seen.add(parent)
        parent = everybody[parent][1]
    return False


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _describe(process: psutil.Process) -> str:
    try:
        return f"{process.pid} {' '.join(process.cmdline())[:200]}"
    except psutil.Error:
        return str(process.pid)


def pytest_configure() -> None:
    # Plug-ins ask for the current loop before there is one. Python 3.11 to 3.13 then make one
    # that nobody closes, and its warning fails whichever test the collector strikes in. Once
    # "no loop" has been said aloud they get a RuntimeError, as on 3.14, and cope.
    asyncio.set_event_loop(None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("looptime") is not None:
            # Before each timer the loop goes round idly, 42 times unless told otherwise. What is
            # ready runs before that, so this only gives threads some time; that takes less.
            item.add_marker(pytest.mark.looptime(noop_cycles=IDLE_TURNS))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("root") is not None and os.geteuid() != 0:
        pytest.skip("needs to be root")
