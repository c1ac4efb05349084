"""The order in which an agent is asked, told and made to end (behaviour P2)."""

import math
import signal

_FIRST_STEPS = 3


class Ladder:
    """Rungs of signals. The first goes to the agent alone, the others to its whole tree.

    With INT and TERM: INT at once, TERM after a third of the grace, KILL at its end. `kill_at` is
    the active second from which everything is killed, infinite while nobody has begun.
    """

    def __init__(self, signals: tuple[signal.Signals, ...], grace_s: float) -> None:
        self.reason: str | None = None
        self.kill_at = math.inf
        self._signals = signals
        self._grace_s = grace_s
        self._due: list[tuple[float, signal.Signals, bool]] = []

    def begin(self, reason: str, now: float) -> None:
        """Begin at active second `now`; once begun, the first reason stays."""
        if self.reason is not None:
            return
        self.reason = reason
        self.kill_at = min(self.kill_at, now + self._grace_s)
        step = self._grace_s / max(_FIRST_STEPS, len(self._signals))
        self._due = [
            (now + index * step, number, index > 0) for index, number in enumerate(self._signals)
        ]

    def skip_to_the_end(self, now: float) -> None:
        """Kill now, whatever rungs are left."""
        self.kill_at = min(self.kill_at, now)
        self._due.clear()

    def leave_grace(self, now: float) -> None:
        """The agent has ended: what it left gets the rest of the grace, or all if none has run."""
        self.kill_at = min(self.kill_at, now + self._grace_s)
        self._due.clear()

    def due(self, now: float) -> list[tuple[signal.Signals, bool]]:
        """The signals to send by now, each with whether it is for the whole tree; told once."""
        due = [(number, tree) for at, number, tree in self._due if at <= now]
        self._due = [rung for rung in self._due if rung[0] > now]
        return due

    def next_at(self) -> float:
        """The active second of the next rung or of the end; infinite while nothing is begun."""
        return min([self.kill_at, *(at for at, _, _ in self._due)])
