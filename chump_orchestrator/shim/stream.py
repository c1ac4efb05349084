"""One stream of an agent's output: drained whatever happens, redacted, logged, passed on."""

import math
import os
from collections.abc import Callable

from chump_orchestrator.shim.logs import StreamLog
from chump_orchestrator.shim.redaction import Redactor
from chump_orchestrator.shim.turns import READABLE, Turns

_CHUNK = 64 * 1024
_QUIET_S = 0.2
"""Unfinished lines are shown after this long without another byte."""

Listener = Callable[[str, int, bytes], None]
"""Told the stream's name, an offset, and the bytes that were logged there."""


class Stream:
    """Reads one pipe of the agent to its end. `last_at` is the active second of the last byte."""

    def __init__(
        self, name: str, pipe: int, log: StreamLog, redactor: Redactor, turns: Turns
    ) -> None:
        self.name = name
        self.log = log
        self.is_open = True
        self.last_at = turns.active_s
        self.listener: Listener | None = None
        self._pipe = pipe
        self._redactor = redactor
        self._turns = turns
        os.set_blocking(pipe, False)
        turns.watch(pipe, READABLE, self._drain)

    def settle(self) -> None:
        """Show what was held back for the rest of its line, if the stream has gone quiet."""
        if self._turns.active_s >= self.settles_at():
            self._keep(self._redactor.flush())

    def settles_at(self) -> float:
        """The active second at which `settle` has something to do; infinite when it has not."""
        return self.last_at + _QUIET_S if self._redactor.holds else math.inf

    def close(self) -> None:
        """Stop reading, and keep what was read."""
        if self.is_open:
            self.is_open = False
            self._turns.forget(self._pipe)
            os.close(self._pipe)
            self._keep(self._redactor.flush())

    def _drain(self, _events: int) -> None:
        try:
            data = os.read(self._pipe, _CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        self.last_at = self._turns.active_s
        self._keep(self._redactor.feed(data))

    def _keep(self, data: bytes) -> None:
        if data:
            offset = self.log.end
            self.log.append(data)
            if self.listener is not None:
                self.listener(self.name, offset, data)
