"""Reading that takes long: off the loop, one at a time, given up once nobody waits for it.

A process that does nothing else reads in its main thread, where all of this is nothing, and is
spared the loop and what it takes to import one.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import anyio

Result = TypeVar("Result")


class InTurn:
    """Loads one after the other."""

    @functools.cached_property
    def _busy(self) -> anyio.Lock:
        import anyio  # noqa: PLC0415 - see above

        return anyio.Lock()


async def in_thread(work: Callable[..., Result], *args: object) -> Result:
    """Do `work` in a worker thread, in which `pause` raises once this is cancelled."""
    import anyio.to_thread  # noqa: PLC0415 - see above

    return await anyio.to_thread.run_sync(work, *args)


def pause() -> None:
    """End the reading if whoever asked for it has been cancelled; in the main thread nobody is."""
    if threading.current_thread() is not threading.main_thread():
        _check_cancelled()()


@functools.cache
def _check_cancelled() -> Callable[[], None]:
    from anyio.from_thread import check_cancelled  # noqa: PLC0415 - see above

    return check_cancelled
