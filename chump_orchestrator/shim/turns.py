"""One poll for all that the shim waits for, and the clock that deadlines are counted on."""

import select
import time
from collections.abc import Callable

READABLE = select.POLLIN
WRITABLE = select.POLLOUT
HUNG_UP = select.POLLHUP | select.POLLERR | select.POLLNVAL

LONGEST_TURN_S = 5.0
"""A turn never waits longer than this, so that the clock below stays honest."""

_SLACK_S = 5.0


class Turns:
    """Waits for descriptors, turn by turn, and counts the seconds in which it could have acted.

    `active_s` follows the monotonic clock, which stands still while the machine is suspended. It
    also leaves out what a turn took beyond its own waiting time and a little slack: a shim that
    was stopped for ten minutes does not wake up to a deadline that nobody could have met.
    """

    def __init__(self) -> None:
        self.active_s = 0.0
        self._last = time.monotonic()
        self._poll = select.poll()
        self._handlers: dict[int, Callable[[int], None]] = {}

    def watch(self, fd: int, events: int, handler: Callable[[int], None]) -> None:
        """Call `handler` with what happened, whenever any of `events` (or a hang-up) does."""
        self._handlers[fd] = handler
        self._poll.register(fd, events)

    def forget(self, fd: int) -> None:
        """Watch a descriptor no longer; harmless when it is not watched."""
        if self._handlers.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def take(self, wait_s: float) -> None:
        """Wait at most so long for something to happen, and have it handled."""
        wait_s = min(max(wait_s, 0.0), LONGEST_TURN_S)
        ready = self._poll.poll(int(wait_s * 1000) + 1 if wait_s else 0)
        now = time.monotonic()
        self.active_s += min(now - self._last, wait_s + _SLACK_S)
        self._last = now
        for fd, events in ready:
            handler = self._handlers.get(fd)
            if handler is not None:
                handler(events)
