"""The shims that this process has started and that want reaping when they end."""

from __future__ import annotations

import os
import threading


class Children:
    """Process ids of our children, each reaped once. For use from any thread.

    A number is forgotten with its reaping, for it may be another child's the next moment.
    """

    def __init__(self) -> None:
        self._pids: set[int] = set()
        self._guard = threading.Lock()

    def add(self, pid: int) -> None:
        """Look after a child."""
        with self._guard:
            self._pids.add(pid)

    def reap(self) -> None:
        """Reap those that have ended; never waits."""
        with self._guard:
            self._pids -= {pid for pid in self._pids if _has_gone(pid)}

    def has(self, pid: int) -> bool:
        """Whether a child is still to be reaped."""
        with self._guard:
            return pid in self._pids


def _has_gone(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] != 0
    except ChildProcessError:  # reaped by somebody else
        return True
