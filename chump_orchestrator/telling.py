"""A logger that costs nothing until something is told.

To import structlog takes as long as all that a command does which only looks at something, and
such a command seldom has anything to tell.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

_set_up: list[Callable[[], None]] = []


def prepare(set_up: Callable[[], None]) -> None:
    """Have `set_up` say where events go, before the first of them is told."""
    _set_up[:] = [set_up]
    if "structlog" in sys.modules:
        _ready()


def _ready() -> Any:  # noqa: ANN401 - structlog's own loggers have no narrower type
    import structlog  # noqa: PLC0415 - what this module is for

    while _set_up:
        _set_up.pop()()
    return structlog.get_logger()


class Logger:
    """Tells events as one of structlog's does."""

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - as above
        return getattr(_ready(), name)
