"""What every command begins with: which repository, which settings, and how to wait for work."""

from __future__ import annotations

import logging
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TypeVar

import anyio
import structlog

from chump_orchestrator import wiring
from chump_orchestrator.cli.options import Invocation
from chump_orchestrator.cli.render import note
from chump_orchestrator.config import Loaded

Result = TypeVar("Result")


def opened(
    invocation: Invocation, given: Mapping[str, object] | None = None, *, aloud: bool = False
) -> tuple[Path, Loaded]:
    """Return the main work tree and the settings that hold in it.

    With `aloud`, what is odd about the settings is said on stderr. Raises `ConfigError` when there
    is no repository, or its settings cannot be used.
    """
    _log_to_stderr()
    root = wiring.locate(invocation.repo_root, Path.cwd())
    loaded = wiring.load(root, given or {})
    if aloud:
        for notice in loaded.notices:
            note(f"note: {notice}")
    return root, loaded


def _log_to_stderr() -> None:
    """Keep log lines out of the data; `run` sets up its own log afterwards."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def wait_for(work: Callable[[], Awaitable[Result]]) -> Result:
    """Run `work` in a loop of its own and return what it does."""
    return anyio.run(work)
