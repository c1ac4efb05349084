"""How a service fares, as its manager tells it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class State:
    """How a unit fares, in the words of systemd; empty where it does not know the unit.

    `ready` says that the daemon has told so. `since` is when the unit became what it is.
    """

    enabled: str = ""
    active: str = ""
    sub: str = ""
    pid: int = 0
    since: datetime | None = None
    says: str = ""
    restarts: int = 0
    result: str = ""
    drop_ins: tuple[str, ...] = ()
    needs_reload: bool = False

    @property
    def is_active(self) -> bool:
        """Whether there is a daemon, or one is being started or stopped."""
        return self.active not in ("", "inactive", "failed")

    @property
    def ready(self) -> bool:
        """Whether the daemon works."""
        return self.active in ("active", "reloading")
