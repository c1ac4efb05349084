"""How git is run, whoever runs it: the options before every command, and what it sees of ours.

Every command runs without hooks, file system monitors, background maintenance, prompts and foreign
`GIT_*` variables, so that neither the repository nor the terminal of whoever started us has a say
in it. Light to import: those who ask git one question, without a loop, begin here, too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

NOTHING_OF_THE_REPOSITORY = ("-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false")
"""Options with which git runs no program that the repository names."""

OPTIONS = (*NOTHING_OF_THE_REPOSITORY, "-c", "gc.auto=0", "-c", "maintenance.auto=false")
"""Before every command, but for the one that asks for maintenance."""

TIMEOUT_S = 60.0
"""For a command that says nothing else."""

KEPT_VARIABLES = (
    r"GIT_(?:ASKPASS|CONFIG_(?:GLOBAL|NOSYSTEM|SYSTEM)|EXEC_PATH|HTTP_\w+|PROXY_\w+|SSH\w*|SSL_\w+)"
)
"""The variables of git that say how it reaches a remote, not which repository it works on."""

CREDENTIALS = r"(?<=://)[^/\s@]+@"
"""In a URL that git shows."""


def environment(env: Mapping[str, str]) -> dict[str, str]:
    """Return `env` as git may see it: no foreign `GIT_*`, no prompts, messages in English."""
    # An empty GIT_ASKPASS keeps git from falling back to SSH_ASKPASS and its window.
    return {
        "GIT_ASKPASS": "",
        **without_foreign_git(env),
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_TERMINAL_PROMPT": "0",
        "LC_ALL": "C",
    }


def without_foreign_git(env: Mapping[str, str]) -> dict[str, str]:
    """Return `env` without the variables that would lead git to another repository."""
    return {
        name: value
        for name, value in env.items()
        if not name.startswith("GIT_") or re.fullmatch(KEPT_VARIABLES, name)
    }


def last_lines(err: bytes) -> str:
    """Return what git said at the end of its standard error, without the secrets of a URL."""
    text = err.decode("utf-8", "replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # Advice comes after the errors, and says less.
    telling = [line for line in lines if line.startswith(("error:", "fatal:"))] or lines
    return re.sub(CREDENTIALS, "***@", "; ".join(telling[-3:]))[:1000]


def joined(folder: Path, place: str) -> Path:
    """Return a place that git names from a folder, or from the root; links left as they are."""
    return Path(os.path.normpath(folder / place))
