"""Runs the program with a fault built into it: see `crashing` and `crashing_shim`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.faults.trials import Trial

HERE = Path(__file__).parent

_PROGRAM = """\
#!{python} -IS
import sys
sys.path.append({here!r})
import crashing_shim
if __name__ == "__main__":
    sys.exit(crashing_shim.main({told!r}))
"""


def start(
    trial: Trial,
    *args: str,
    at: str = "",
    by: str = "kill",
    without: Sequence[str] = (),
    shim: Path | None = None,
    shim_folder: Path | None = None,
) -> subprocess.Popen[bytes]:
    """Start `run` with a fault at a step, without some protections, with other shims."""
    told = {
        "CHUMP_CRASH_AT": at,
        "CHUMP_CRASH_BY": by,
        "CHUMP_WITHOUT": ",".join(without),
        "CHUMP_GO": str(trial.folder / "go"),
        "CHUMP_SHIM": str(shim or ""),
        "CHUMP_SHIM_FOLDER": str(shim_folder or ""),
    }
    with (trial.folder / "daemon.log").open("ab") as log:
        trial.daemon = subprocess.Popen(
            [sys.executable, str(HERE / "crashing.py"), "run", *args],
            cwd=trial.root,
            env={**os.environ, **trial.env, **told},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    return trial.daemon


def crash(trial: Trial, at: str, *, shim: Path | None = None, without: Sequence[str] = ()) -> None:
    """Run the program until it crashes there; it has to."""
    code = start(trial, "--once", at=at, shim=shim, without=without).wait(60)
    assert code == -signal.SIGKILL, f"it never came to {at}: {code}\n{trial.log()[-4000:]}"


def run(
    trial: Trial,
    *args: str,
    shim: Path | None = None,
    without: Sequence[str] = (),
    at: str = "",
    by: str = "kill",
) -> int:
    """Run the program until nothing is left to do; returns its exit code."""
    daemon = start(trial, "--once", *args, at=at, by=by, shim=shim, without=without)
    try:
        return daemon.wait(120)
    except subprocess.TimeoutExpired:
        status = trial.program("status", "--json").stdout
        left = trial.processes()
        pytest.fail(f"it does not end\n{status}\n{left}\n{trial.log()[-8000:]}")


def shim_program(
    trial: Trial,
    at: Mapping[str, str],
    *,
    pause_s: float = 0.0,
    is_held: bool = False,
    late: str = "",
    seed: object = "",
    without: Sequence[str] = (),
) -> Path:
    """Write the program that starts shims: `at` says where the first one of each gap crashes.

    Gaps go by their slugs; `SLUG.done` is made in the trial's folder before the crash, which comes
    with `is_held` only after the file `crash` is there.
    """
    told = {
        "at": dict(at),
        "pause_s": pause_s,
        "is_held": is_held,
        "late": late,
        "seed": str(seed),
        "folder": str(trial.folder),
        "without": list(without),
    }
    program = trial.folder / "python"
    program.write_text(_PROGRAM.format(python=sys.executable, here=str(HERE), told=told))
    program.chmod(0o755)
    return program


def running(trial: Trial, slug: str) -> Path | None:
    """Return the record of the latest agent of a gap that was started; `None` before there is."""
    return max(trial.state.glob(f"d/{slug}-*/running.json"), default=None)
