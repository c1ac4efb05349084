"""Keeps the machine from going to sleep by itself, by a program that the system has for that.

The program runs `cat` beside the daemon, and holds the machine awake for as long as that runs. As
its input ends with the daemon, however that may end, nothing is left behind.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import timedelta

from chump_orchestrator.adapters.process import Companion, beside
from chump_orchestrator.core.errors import Refused, Unavailable

PATIENCE = timedelta(seconds=10)
"""How long the system may take to say whether it lets us; it needs some 10 ms."""

_WHO = "--who=chump-orchestrator"
_NOBODY = "nothing is known here that keeps this kind of system awake"


class Wakefulness:
    """See `core.machine.Wakefulness`; `env` is what the program gets, `platform` that of Python.

    On Linux this takes logind. It lets users who are logged in at the machine forbid both to
    suspend and to act on being idle, and others the latter alone, which is then what is asked.
    """

    def __init__(self, env: Mapping[str, str], platform: str = sys.platform) -> None:
        self._env = env
        self._platform = platform
        self._companion: Companion | None = None

    async def hold(self, why: str) -> None:
        if self._companion is not None:
            if self._companion.is_alive:
                return
            await self.release()
        refusal: Refused | Unavailable = Refused(_NOBODY)
        for argv in self._programs(why):
            try:
                self._companion = await beside((*argv, "cat"), env=self._env, within=PATIENCE)
            except (Refused, Unavailable) as error:
                refusal = error
            else:
                return
        raise refusal

    async def release(self) -> None:
        companion, self._companion = self._companion, None
        if companion is not None:
            await companion.end()

    def _programs(self, why: str) -> tuple[tuple[str, ...], ...]:
        match self._platform:
            case "linux":
                inhibit = ("systemd-inhibit", _WHO, f"--why={why}", "--mode=block")
                return ((*inhibit, "--what=idle:sleep"), (*inhibit, "--what=idle"))
            case "darwin":
                return (("caffeinate", "-i"),)
            case _:
                return ()
