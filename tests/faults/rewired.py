"""The program with one mechanism switched off, or a patience shortened, for the cases on git,
the forge and the backlog.

A small script makes the change in its own process and then is the command line. Agents, shims and
git are the real ones all the same; what the change is for lies in the daemon alone.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.faults.trials import Trial

COMMAND_LINE = """
import sys
from chump_orchestrator.__main__ import main
sys.exit(main())
"""


PATIENCE_S = 120.0


def settle_rewired(trial: Trial, change: str, *args: str, **env: str) -> int:
    """Run `run --once` to its end with `change`, a piece of Python, made before; its exit code."""
    with _log(trial).open("ab") as log:
        done = subprocess.run(
            [sys.executable, str(_script(trial, change)), "run", "--once", *args],
            cwd=trial.root,
            env={**os.environ, **trial.env, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            timeout=PATIENCE_S,
            check=False,
        )
    return done.returncode


def start_rewired(trial: Trial, change: str, *args: str, **env: str) -> subprocess.Popen[bytes]:
    """Start `run` in the background with `change` made before."""
    with _log(trial).open("ab") as log:
        trial.daemon = subprocess.Popen(
            [sys.executable, str(_script(trial, change)), "run", *args],
            cwd=trial.root,
            env={**os.environ, **trial.env, **env},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    return trial.daemon


def _script(trial: Trial, change: str) -> Path:
    script = trial.folder / "rewired.py"
    script.write_text(change + COMMAND_LINE)
    return script


def _log(trial: Trial) -> Path:
    return trial.folder / "daemon.log"
