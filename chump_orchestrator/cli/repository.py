"""What every command begins with: which repository, which settings, and how to wait for work."""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

from chump_orchestrator import config, premises, telling
from chump_orchestrator.cli.options import Invocation, here
from chump_orchestrator.cli.render import note
from chump_orchestrator.config import Loaded
from chump_orchestrator.core.deferred import dataclass
from chump_orchestrator.core.errors import ConfigError

Result = TypeVar("Result")


def opened(
    invocation: Invocation, given: Mapping[str, object] | None = None, *, aloud: bool = False
) -> tuple[Path, Loaded]:
    """Return the main work tree and the settings that hold in it.

    With `aloud`, what is odd about the settings is said on stderr. Raises `ConfigError` when there
    is no repository, or its settings cannot be used.
    """
    root = located(invocation)
    loaded = premises.load(root, given or {})
    telling.prepare(partial(_log_to_stderr, loaded))
    if aloud:
        for notice in loaded.notices:
            note(f"note: {notice}")
    return root, loaded


@dataclass(frozen=True, slots=True)
class Grounds:
    """A repository whose settings may be wrong: what can be used of them, and what is `wrong`.

    It does for asking a daemon that runs, as that has settings of its own (behaviour C7).
    """

    root: Path
    loaded: Loaded
    wrong: str

    @property
    def control(self) -> Path:
        """Return where a daemon listens."""
        return premises.control_path(self.root, self.loaded)

    def tell(self) -> None:
        """Say what is wrong with the settings, if anything is."""
        for line in self.wrong.splitlines():
            note(f"note: {line}")

    def require(self) -> None:
        """Raise `ConfigError` with what is wrong, if anything is."""
        if self.wrong:
            raise ConfigError(self.wrong)


def entered(invocation: Invocation) -> Grounds:
    """Return the main work tree with what can be used of its settings.

    Raises `ConfigError` when there is no repository.
    """
    root = located(invocation)
    loaded, wrong = config.salvage(root)
    telling.prepare(partial(_log_to_stderr, loaded))
    return Grounds(root, loaded, wrong)


def located(invocation: Invocation) -> Path:
    """Return the main work tree to work on, log lines from now on kept out of the data."""
    telling.prepare(_log_to_stderr)
    where = invocation.repo_root
    return premises.locate(where, here() if where is None else where)


def _log_to_stderr(loaded: Loaded | None = None) -> None:
    from chump_orchestrator import logs  # noqa: PLC0415 - slow to import, and seldom needed

    logs.configure(format="console", level="warning", secrets=config.hidden(loaded))


def wait_for(work: Callable[[], Awaitable[Result]]) -> Result:
    """Run `work` in a loop of its own and return what it does."""
    import anyio  # noqa: PLC0415 - slow to import, and not for those who only look

    # What has been imported stays; the collector need not look at it ever again.
    gc.freeze()
    gc.enable()
    return anyio.run(work)
