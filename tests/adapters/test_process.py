"""Helper programs are bounded in time and output, and nothing of them is left."""

import asyncio
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import anyio
import psutil
import pytest

from chump_orchestrator.adapters.process import Finished, children_watched_by_loop, run
from chump_orchestrator.core.errors import Refused, Unavailable

PATIENCE = timedelta(seconds=30)


def env() -> Mapping[str, str]:
    return dict(os.environ)


async def python(
    code: str,
    folder: Path,
    *,
    within: timedelta = PATIENCE,
    feed: bytes | None = None,
    limit: int = 1 << 26,
) -> Finished:
    return await run(
        [sys.executable, "-I", "-S", "-c", code],
        cwd=folder,
        env=env(),
        timeout=within,
        feed=feed,
        limit=limit,
    )


def write_pid(file: Path) -> str:
    return f"import os;t={str(file)!r};open(t+'_','w').write(str(os.getpid()));os.rename(t+'_',t);"


async def pid_in(file: Path) -> int:
    with anyio.fail_after(20):
        while not file.exists():  # noqa: ASYNC110 - another process makes it
            await anyio.sleep(0.01)
    return int(file.read_text())


async def gone(pid: int) -> bool:
    for _ in range(500):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        await anyio.sleep(0.02)
    return False


def open_descriptors() -> int:
    return len(list(Path("/dev/fd").iterdir()))


async def test_both_streams_and_the_exit_code_are_returned(tmp_path: Path) -> None:
    finished = await python(
        "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)", tmp_path
    )

    assert finished == Finished(3, b"out\n", b"err\n")


async def test_a_helper_cannot_speak_to_our_service_manager(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "ITS_OWN"):
        monkeypatch.setenv(name, "1")

    finished = await python(
        "import os; print(*sorted(n for n in os.environ if n[:5] in ('NOTIF','WATCH','ITS_O')))",
        tmp_path,
    )

    assert finished.out == b"ITS_OWN\n"


async def test_a_program_that_dies_of_a_signal_says_which(tmp_path: Path) -> None:
    finished = await python("import os; os.kill(os.getpid(), 9)", tmp_path)

    assert finished.code == -signal.SIGKILL


async def test_standard_input_is_empty_unless_fed(tmp_path: Path) -> None:
    code = "import sys; print(len(sys.stdin.buffer.read()))"

    assert (await python(code, tmp_path)).out == b"0\n"
    assert (await python(code, tmp_path, feed=b"x" * 3_000_000)).out == b"3000000\n"


async def test_a_program_that_does_not_read_its_input_is_no_error(tmp_path: Path) -> None:
    assert (await python("print(1)", tmp_path, feed=b"x" * 3_000_000)).out == b"1\n"


async def test_it_runs_in_its_folder_and_session_with_its_environment(tmp_path: Path) -> None:
    finished = await run(
        [
            sys.executable,
            "-c",
            "import os; print(os.getcwd(), os.getsid(0) == os.getpid(), os.environ['A'])",
        ],
        cwd=tmp_path,
        env={"A": "b"},
        timeout=PATIENCE,
    )

    assert finished.out.decode().split() == [str(tmp_path), "True", "b"]


async def test_much_output_on_both_streams_does_not_block(tmp_path: Path) -> None:
    code = "import os\nfor _ in range(64): os.write(2, b'e'*65536); os.write(1, b'o'*65536)"

    finished = await python(code, tmp_path)

    assert finished == Finished(0, b"o" * (64 * 65536), b"e" * (64 * 65536))


async def test_a_program_that_writes_without_end_is_stopped(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="wrote more than 1000000 bytes"):
        await python("while True: print('x' * 9999)", tmp_path, limit=1_000_000)


async def test_one_that_does_not_finish_is_killed_with_its_group(tmp_path: Path) -> None:
    child, grandchild = tmp_path / "child", tmp_path / "grandchild"
    sleeper = write_pid(grandchild) + "import time;time.sleep(99)"
    code = (
        write_pid(child)
        + "import subprocess,sys,time;"
        + f"subprocess.Popen([sys.executable,'-c',{sleeper!r}]);"
        + "time.sleep(99)"
    )

    with pytest.raises(Unavailable, match=r"did not finish within 3 s") as caught:
        await python(code, tmp_path, within=timedelta(seconds=3))

    assert "sleep" not in str(caught.value)
    assert await gone(await pid_in(child))
    assert await gone(await pid_in(grandchild))


async def test_a_grandchild_that_holds_the_pipes_is_not_waited_for(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    sleeper = write_pid(pid_file) + "import time;time.sleep(60)"
    code = (
        f"import subprocess,sys;subprocess.Popen([sys.executable,'-c',{sleeper!r}]);print('done')"
    )
    began = time.monotonic()

    finished = await python(code, tmp_path, within=timedelta(seconds=50))

    assert finished.out == b"done\n"
    assert time.monotonic() - began < 40
    os.kill(await pid_in(pid_file), signal.SIGKILL)


async def test_cancelling_kills_it(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    async with anyio.create_task_group() as group:
        group.start_soon(python, write_pid(pid_file) + "import time;time.sleep(60)", tmp_path)
        pid = await pid_in(pid_file)
        group.cancel_scope.cancel()

    assert await gone(pid)


@pytest.mark.parametrize("turns", range(8))
async def test_cancelling_during_the_start_leaks_nothing(tmp_path: Path, turns: int) -> None:
    """Control: with a bare `await create_subprocess_exec`, `nothing_left_running` fails."""
    task = asyncio.ensure_future(python("import time;time.sleep(60)", tmp_path))
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("no-such-program-anywhere", "was not found; install it, or correct PATH"),
        ("./not-executable", "cannot be executed: Permission denied"),
        ("./no-format", "cannot be executed: Exec format error"),
        ("with\0nul", "holds a NUL"),
    ],
)
async def test_a_program_that_cannot_be_executed_is_refused(
    tmp_path: Path, program: str, said: str
) -> None:
    (tmp_path / "not-executable").write_text("#!/bin/sh\n")
    (tmp_path / "no-format").write_bytes(b"\x00\x01\x02")
    (tmp_path / "no-format").chmod(0o755)

    with pytest.raises(Refused, match=said) as caught:
        await run([program, "the-secret"], cwd=tmp_path, env=env(), timeout=PATIENCE)

    assert "the-secret" not in str(caught.value)


async def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no such folder"):
        await run(["git"], cwd=tmp_path / "nowhere", env=env(), timeout=PATIENCE)


async def test_a_lack_of_descriptors_passes(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + 1, hard))
    try:
        with pytest.raises(Unavailable, match="could not be started now: Too many open files"):
            await run(["git", "--version"], cwd=tmp_path, env=env(), timeout=PATIENCE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_descriptors_stay_flat(tmp_path: Path) -> None:
    await run(["true"], cwd=tmp_path, env=env(), timeout=PATIENCE)
    before = open_descriptors()

    for _ in range(20):
        await run(["true"], cwd=tmp_path, env=env(), timeout=PATIENCE, feed=b"x")
        with pytest.raises(Refused):
            await run(["no-such-program"], cwd=tmp_path, env=env(), timeout=PATIENCE)

    assert open_descriptors() == before


async def test_no_thread_waits_for_a_helper(tmp_path: Path) -> None:
    """Control: on Python 3.11 each helper has one, unless told otherwise."""
    seen: list[str] = []

    with children_watched_by_loop() as is_so:
        if not is_so:
            pytest.skip("this system has no file descriptors for processes")
        async with anyio.create_task_group() as group:
            group.start_soon(run_sleep, tmp_path)
            await anyio.sleep(0.2)
            seen += [thread.name for thread in threading.enumerate()]
    await run_sleep(tmp_path)  # as before

    assert seen
    assert [name for name in seen if name.startswith("waitpid")] == []


async def run_sleep(folder: Path) -> None:
    done = await run(("sleep", "0.5"), cwd=folder, env=env(), timeout=PATIENCE)
    assert done.code == 0
