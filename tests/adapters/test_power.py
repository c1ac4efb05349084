"""Keeping the machine awake, by small scripts in the place of the system's own programs."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path

import anyio
import anyio.lowlevel
import psutil
import pytest

from chump_orchestrator.adapters import power, process
from chump_orchestrator.adapters.power import Wakefulness
from chump_orchestrator.core.errors import Refused, Unavailable
from tests.adapters.launches import eventually
from tests.adapters.shims import PATIENCE_S

INHIBIT = """\
#!/bin/sh
echo "$@" >> "$(dirname "$0")/asked"
while case "$1" in -*) ;; *) false ;; esac; do shift; done
"$@"
"""
"""Runs its program and ends with it, as the real one does; and so does `caffeinate`."""

DENYING = """\
#!/bin/sh
echo "$@" >> "$(dirname "$0")/asked"
case "$*" in *sleep*) echo 'Failed to inhibit: Access denied' >&2; exit 1 ;; esac
while case "$1" in -*) ;; *) false ;; esac; do shift; done
"$@"
"""
"""What logind says to a user who is not at the machine."""


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    (tmp_path / "bin").mkdir()
    return tmp_path / "bin"


@pytest.fixture
async def made(programs: Path) -> AsyncIterator[Callable[..., Wakefulness]]:
    """Makes what is tried, `script` standing for the program `name`, and lets go of it."""
    given: list[Wakefulness] = []

    def make(script: str, name: str = "systemd-inhibit", platform: str = "linux") -> Wakefulness:
        if script:
            (programs / name).write_text(script)
            (programs / name).chmod(0o755)
        path = f"{programs}:{os.environ['PATH']}" if script else str(programs)
        given.append(Wakefulness({"PATH": path}, platform))
        return given[-1]

    yield make
    for one in given:
        await one.release()


def asked(programs: Path) -> list[str]:
    """The command lines of the programs that were started."""
    return (programs / "asked").read_text().splitlines()


def cats() -> list[psutil.Process]:
    """What holds the machine awake below this one."""
    found = []
    for one in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if one.name() == "cat" and one.status() != psutil.STATUS_ZOMBIE:
                found.append(one)
    return found


async def test_on_linux_logind_is_asked_not_to_suspend(
    made: Callable[..., Wakefulness], programs: Path
) -> None:
    wakefulness = made(INHIBIT)

    await wakefulness.hold("agents run")

    assert asked(programs) == [
        "--who=chump-orchestrator --why=agents run --mode=block --what=idle:sleep cat"
    ]
    assert len(cats()) == 1


async def test_on_macos_it_is_caffeinate(made: Callable[..., Wakefulness], programs: Path) -> None:
    wakefulness = made(INHIBIT, "caffeinate", "darwin")

    await wakefulness.hold("agents run")

    assert asked(programs) == ["-i cat"]
    assert len(cats()) == 1


async def test_to_hold_it_twice_starts_nothing_more(
    made: Callable[..., Wakefulness], programs: Path
) -> None:
    wakefulness = made(INHIBIT)

    await wakefulness.hold("agents run")
    await wakefulness.hold("agents run")

    assert len(asked(programs)) == 1


async def test_what_was_killed_is_started_anew(made: Callable[..., Wakefulness]) -> None:
    wakefulness = made(INHIBIT)
    await wakefulness.hold("agents run")
    (cat,) = cats()
    os.killpg(os.getpgid(cat.pid), signal.SIGKILL)
    await eventually(lambda: not cats())

    with anyio.fail_after(PATIENCE_S):
        while not cats():
            await wakefulness.hold("agents run")
            await anyio.lowlevel.checkpoint()


async def test_released_it_leaves_nothing_running(made: Callable[..., Wakefulness]) -> None:
    wakefulness = made(INHIBIT)
    await wakefulness.hold("agents run")

    await wakefulness.release()
    await wakefulness.release()

    assert cats() == []


async def test_who_may_not_forbid_to_suspend_forbids_to_act_on_being_idle(
    made: Callable[..., Wakefulness], programs: Path
) -> None:
    wakefulness = made(DENYING)

    await wakefulness.hold("agents run")

    assert [line.split()[-2] for line in asked(programs)] == ["--what=idle:sleep", "--what=idle"]
    assert len(cats()) == 1


async def test_a_refusal_is_told_in_the_words_of_the_system(
    made: Callable[..., Wakefulness],
) -> None:
    wakefulness = made("#!/bin/sh\necho 'Failed to connect to bus: no medium' >&2; exit 1\n")

    with pytest.raises(Refused, match="Failed to connect to bus: no medium"):
        await wakefulness.hold("agents run")


async def test_a_program_that_says_nothing_is_given_up(
    made: Callable[..., Wakefulness], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(power, "PATIENCE", timedelta(milliseconds=200))
    monkeypatch.setattr(process, "REAP_S", 1.0)
    wakefulness = made("#!/bin/sh\nsleep 600\n")

    with pytest.raises(Unavailable, match="systemd-inhibit"):
        await wakefulness.hold("agents run")


@pytest.mark.parametrize("platform", ["linux", "darwin", "freebsd13"])
async def test_where_there_is_no_such_program_it_is_refused(
    made: Callable[..., Wakefulness], platform: str
) -> None:
    wakefulness = made("", platform=platform)

    with pytest.raises(Refused):
        await wakefulness.hold("agents run")


async def test_it_ends_with_the_daemon_however_that_ends(programs: Path) -> None:
    (programs / "systemd-inhibit").write_text(INHIBIT)
    (programs / "systemd-inhibit").chmod(0o755)
    script = (
        "import anyio, os, signal, sys\n"
        "from chump_orchestrator.adapters.power import Wakefulness\n"
        "async def main():\n"
        " await Wakefulness({'PATH': sys.argv[1]}, 'linux').hold('agents run')\n"
        " print('held', flush=True)\n"
        " os.kill(os.getpid(), signal.SIGKILL)\n"
        "anyio.run(main)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, f"{programs}:{os.environ['PATH']}"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )

    # What it started carries the mark of this test; the fixture around it finds what is left.
    assert (done.stdout, done.returncode) == ("held\n", -signal.SIGKILL)
