"""What the daemon asks of the machine it runs on, beside the ports that its work needs."""

from __future__ import annotations

from datetime import timedelta
from typing import Protocol


class ServiceManager(Protocol):
    """Who started the daemon and wants to hear how it fares, systemd for instance.

    No method waits or raises. Each returns whether the news was taken; what was not may be told
    again.
    """

    @property
    def watchdog(self) -> timedelta | None:
        """How long it waits for a sign of life before it acts; `None` when it expects none."""
        ...

    def ready(self) -> bool:
        """Tell that the daemon is ready, after its start or again after a reload."""
        ...

    def alive(self) -> bool:
        """Give a sign of life."""
        ...

    def status(self, line: str) -> bool:
        """Tell people who ask the manager how the daemon is, in one line."""
        ...

    def reloading(self) -> bool:
        """Tell that settings are read anew from now on, until `ready`."""
        ...

    def stopping(self) -> bool:
        """Tell that the daemon is about to end. It is not asked to end again after that."""
        ...

    def extend(self, span: timedelta) -> bool:
        """Ask for at least so long from now for what is being done: starting or ending."""
        ...


class Wakefulness(Protocol):
    """Whether the machine may go to sleep by itself."""

    async def hold(self, why: str) -> None:
        """Keep it awake from now on, until `release` or the end of this process.

        `why` is for people who ask the system. Safe to call again, which sees that it still is so.
        `Refused` or `Unavailable` when that cannot be had. Cancelling leaves things as they were.
        """
        ...

    async def release(self) -> None:
        """Let it go to sleep again; quiet when it was not held. Takes a few seconds at most."""
        ...
