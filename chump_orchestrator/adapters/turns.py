"""Measures the turns of the running event loop, without ever waking it.

A turn is all that the loop does between two waits. What comes meanwhile waits until it is over, so
the longest turns tell how late anything can be by the daemon's own doing. How late the kernel lets
the loop go on is not in them.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def turns_counted(count: Callable[[float, float], None]) -> Iterator[bool]:
    """Have `count` told of every turn of the running loop meanwhile; yields whether it is.

    It gets how long the turn took and when it was over, in seconds of `time.monotonic`, and must
    be quick. False where the loop waits in a way that is not known here.
    """
    selector = getattr(asyncio.get_running_loop(), "_selector", None)
    wait = getattr(selector, "select", None)
    if wait is None or not hasattr(selector, "__dict__"):
        yield False
        return
    own = vars(selector)
    former = own.get("select")
    clock = time.monotonic
    began_s = clock()

    def select(timeout: float | None = None) -> Any:  # noqa: ANN401 - as the loop's own
        nonlocal began_s
        now_s = clock()
        count(now_s - began_s, now_s)
        try:
            return wait(timeout)
        finally:
            began_s = clock()

    own["select"] = select
    try:
        yield True
    finally:
        if former is None:
            del own["select"]
        else:
            own["select"] = former
