"""What is examined: a repository, its settings, its service, and what several checks ask about."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar, TypeVarTuple

import anyio
import anyio.to_thread

from chump_orchestrator import config, premises
from chump_orchestrator.adapters.git import Git
from chump_orchestrator.adapters.host import HostClock
from chump_orchestrator.adapters.worktrees.upstream import Base, Upstream
from chump_orchestrator.config import Loaded, Settings
from chump_orchestrator.core.errors import ConfigError, Refused, Unavailable
from chump_orchestrator.core.ports import Clock
from chump_orchestrator.core.records import Record
from chump_orchestrator.core.routing import RoutePolicy
from chump_orchestrator.doctor.far_side import Forge, Remote, ask_forge, ask_remote
from chump_orchestrator.doctor.installed import Service, Surroundings, installed, surroundings

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

Ask = Callable[[Path], Mapping[str, Any] | None]
"""Asks the daemon that listens at a path for its status; `None` where none listens.

Raises the errors of the boundary where one does not answer."""


async def in_thread(work: Callable[[*Ts], T], *args: *Ts) -> T:
    """Do blocking work; whoever stops waiting for it lets it end by itself."""
    return await anyio.to_thread.run_sync(work, *args, abandon_on_cancel=True)


class Once(Generic[T]):
    """A question that several checks ask, and that is put to the world once."""

    def __init__(self, ask: Callable[[], Awaitable[T]]) -> None:
        self._ask = ask
        self._turn = anyio.Lock()
        self._answers: list[T] = []
        self._trouble: ConfigError | Refused | Unavailable | None = None

    async def __call__(self) -> T:
        """Return the answer, or raise the error that there was instead.

        Who is cancelled while asking leaves the question to the next.
        """
        async with self._turn:
            if self._trouble is None and not self._answers:
                try:
                    self._answers.append(await self._ask())
                except (ConfigError, Refused, Unavailable) as error:
                    self._trouble = error
            if self._trouble is not None:
                raise type(self._trouble)(*self._trouble.args) from self._trouble
            return self._answers[0]


class Subject:
    """One repository as it is now; whatever was asked once stays as it was answered.

    `root` is `None` where there is none, and `no_root` says why. `wrong` is what is wrong with
    the settings, a line each; `loaded` is what can be used of them.
    """

    def __init__(
        self,
        root: Path | None,
        loaded: Loaded,
        *,
        no_root: str = "",
        wrong: str = "",
        ask: Ask,
    ) -> None:
        self._root = root
        self.loaded = loaded
        self.no_root = no_root
        self.wrong = wrong
        self.ask = ask
        self.environ = config.environment(loaded)
        self.hidden = config.hidden(loaded)
        self.clock: Clock = HostClock()
        self.services = Once(self._services)
        self.surroundings = Once(self._surroundings)
        self.routes = Once(self._routes)
        self.records = Once(self._records)
        self.base = Once(self._base)
        self.remote = Once(self._remote)
        self.forge = Once(self._forge)

    @property
    def settings(self) -> Settings:
        """What can be used of the settings."""
        return self.loaded.settings

    @property
    def has_root(self) -> bool:
        """Whether there is a repository."""
        return self._root is not None

    @property
    def root(self) -> Path:
        """The main work tree; not to be asked for where there is none."""
        if self._root is None:
            raise Refused(self.no_root)
        return self._root

    @property
    def state(self) -> Path:
        """The orchestrator's own folder; it may be missing."""
        return premises.state_dir(self.root, self.loaded)

    def place(self, written: str) -> Path:
        """Return the whole path of a place that a setting names."""
        return self.root / written

    def git(self, variables: Mapping[str, str] | None = None) -> Git:
        """Return git on the repository, with `variables` or those of this process."""
        return Git(self.root, self.environ if variables is None else variables)

    async def service(self) -> Service | None:
        """Return the service of this repository, `None` where none can be understood."""
        return next((one for one in await self.services() if not one.unreadable), None)

    async def another(self) -> str:
        """Say that the service runs as another user, whose logins cannot be told; empty if not."""
        service = await self.service() if self.has_root else None
        if service is None or service.is_ours:
            return ""
        return f"{service.name} runs as {service.user}; run doctor as that user, too"

    async def _services(self) -> tuple[Service, ...]:
        return await in_thread(installed, self.root, self.environ)

    async def _surroundings(self) -> Surroundings:
        service = await self.service() if self.has_root else None
        if service is None:
            return Surroundings(self.environ, "this shell")
        secrets = {name: secret.value for name, secret in self.loaded.secrets.items()}
        return await surroundings(service, secrets, self.environ)

    async def _routes(self) -> RoutePolicy:
        return await premises.routes(self.root, self.loaded)

    async def _records(self) -> tuple[Record, ...]:
        async with premises.open_ledger(self.root, self.loaded, readonly=True) as ledger:
            return tuple(await ledger.records())

    async def _base(self) -> tuple[Base, str]:
        upstream = Upstream(
            git=self.git((await self.surroundings()).variables),
            base_ref=self.settings.base_ref,
            interval=self.settings.pulls.interval,
            clock=self.clock,
        )
        return await upstream.known()

    async def _remote(self) -> Remote:
        """Ask the remote that the base is on, or else the one that gh goes by, for its branches."""
        git = self.git((await self.surroundings()).variables)
        names = (await git.text("remote")).split()
        try:
            name = (await self.base())[0].remote
        except (ConfigError, Refused, Unavailable):
            name = ""
        name = name or ("origin" if "origin" in names else next(iter(names), ""))
        return await ask_remote(git, name, self.clock)

    async def _forge(self) -> Forge:
        around = await self.surroundings()
        return await ask_forge(self.git(around.variables), around.variables, self.clock)


def subject_at(root: Path | None, *, no_root: str = "", where: Path, ask: Ask) -> Subject:
    """Look at the settings anew and return the subject; `where` is asked for where `root` is not.

    Raises nothing for settings that are wrong.
    """
    loaded, wrong = config.salvage(where if root is None else root)
    return Subject(root, loaded, no_root=no_root, wrong=wrong, ask=ask)
