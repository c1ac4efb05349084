"""Tells systemd how this process fares, by datagrams to the socket that it names (sd_notify).

The protocol is a line `NAME=value` for each thing told. It works with every manager that sets
`NOTIFY_SOCKET`; launchd has nothing of the kind.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Mapping
from datetime import timedelta

import structlog

from chump_orchestrator.core.gap import on_one_line

log = structlog.get_logger()

MICROSECOND = timedelta(microseconds=1)


class NotifySocket:
    """A service manager that is told over its socket; made by `from_environment`.

    `address` is a path, or the name of an abstract socket that begins with `@`. A datagram that
    does not go out at once is not sent.
    """

    def __init__(self, address: str, watchdog: timedelta | None = None) -> None:
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._watchdog = watchdog
        self._is_deaf = False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)  # noqa: FBT003 - socket's own signature

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> NotifySocket | None:
        """Return the manager that started this very process; `None` when none wants to be told.

        Whether it expects signs of life is told by `WATCHDOG_USEC`, unless `WATCHDOG_PID` says
        that they are to come from another process.
        """
        address = environ.get("NOTIFY_SOCKET", "")
        if not address.startswith(("/", "@")) or len(address) < len("/x"):
            if address:
                log.warning("service.unreachable", address=address, error="no such kind of socket")
            return None
        usec = environ.get("WATCHDOG_USEC", "")
        is_ours = environ.get("WATCHDOG_PID", "") in ("", str(os.getpid()))
        is_number = re.fullmatch(r"[0-9]{1,18}", usec) is not None
        watched = is_ours and is_number and int(usec) > 0
        return cls(address, int(usec) * MICROSECOND if watched else None)

    @property
    def watchdog(self) -> timedelta | None:
        return self._watchdog

    def ready(self) -> bool:
        return self._sent("READY=1")

    def alive(self) -> bool:
        return self._sent("WATCHDOG=1")

    def status(self, line: str) -> bool:
        return self._sent(f"STATUS={on_one_line(line)}")

    def reloading(self) -> bool:
        # The clock is the one that systemd itself goes by, and tells a new reload from an old one.
        return self._sent(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> bool:
        return self._sent("STOPPING=1")

    def extend(self, span: timedelta) -> bool:
        return self._sent(f"EXTEND_TIMEOUT_USEC={span // MICROSECOND}")

    def close(self) -> None:
        """Give the socket back; nothing is sent after that."""
        self._socket.close()

    def _sent(self, news: str) -> bool:
        try:
            self._socket.sendto(news.encode("utf-8", "replace"), self._address)
        except OSError as error:
            # A full queue is emptied in a moment; a socket that has gone is told of once.
            if not isinstance(error, BlockingIOError) and not self._is_deaf:
                self._is_deaf = True
                log.warning("service.unreachable", error=str(error))
            return False
        self._is_deaf = False
        return True
