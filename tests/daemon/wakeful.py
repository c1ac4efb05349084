"""The twin of what keeps the machine awake."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class ScriptedWakefulness:
    """Twin of what keeps the machine awake, and the log of what it was asked."""

    trouble: Exception | None = None
    is_held: bool = False
    asked: list[str] = field(default_factory=list)

    async def hold(self, why: str) -> None:
        assert why
        self.asked.append("hold")
        if self.trouble is not None:
            raise self.trouble
        self.is_held = True

    async def release(self) -> None:
        self.asked.append("release")
        self.is_held = False
