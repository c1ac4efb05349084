"""An agent's stream of events in words, for whoever reads along (`logs --words`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from chump_orchestrator import premises
from chump_orchestrator.core.errors import ConfigError
from chump_orchestrator.core.testimony import MakesReaders, Report, Usage

if TYPE_CHECKING:
    from chump_orchestrator.config import Settings
    from chump_orchestrator.core.testimony import Reader


def reader_of(backend: str, settings: Settings) -> Reader | None:
    """Return who understands the output of a backend's agents; `None` where lines are words."""
    try:
        made = premises.backend(settings, backend)
    except ConfigError:
        return None
    return made.reader() if isinstance(made, MakesReaders) else None


class Retelling:
    """Turns chunks of a stream into lines for people: what was said, tools called, trouble.

    What is no event, such as a wrapper's own words or a crash, is told as it is.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._known = Report()
        self._pending = b""
        self._is_cut = False

    def feed(self, chunk: bytes) -> str:
        """Return the lines that a chunk, torn anywhere, has completed."""
        *whole, rest = chunk.split(b"\n")
        told: list[str] = []
        for line in whole:
            self._add(line)
            told += self._tell(self._pending)
            self._pending, self._is_cut = b"", False
        self._add(rest)
        return "".join(f"{line}\n" for line in told)

    def end(self) -> str:
        """Return what is left when nothing more will come, with what was used."""
        told = self._tell(self._pending) if self._pending else []
        self._pending = b""
        told += self._changes(self._reader.read(""))
        if used := _used(self._known.usage):
            told.append(f"= {used}")
        return "".join(f"{line}\n" for line in told)

    def skip(self) -> None:
        """Take note that bytes are missing here: a line that was begun has no end."""
        self._pending, self._is_cut = b"", False

    def _add(self, piece: bytes) -> None:
        room = self._reader.longest_line - len(self._pending)
        self._is_cut = self._is_cut or len(piece) > room
        self._pending += piece[:room]

    def _tell(self, raw: bytes) -> list[str]:
        line = raw.decode("utf-8", "replace").rstrip("\r")
        said = self._reader.read(line)
        told = list(self._changes(said))
        if told or line.lstrip().startswith("{"):
            return told
        return [f"{line} [cut]" if self._is_cut else line]

    def _changes(self, said: object) -> Iterator[str]:
        if not isinstance(said, Report):
            return
        before, self._known = self._known, said
        if said.session and said.session != before.session:
            yield " ".join(filter(None, ("* session", said.session, said.model)))
        if said.tool_calls > before.tool_calls:
            yield f"> {said.activity}"
        elif said.activity.startswith("retry") and said.activity != before.activity:
            yield f"! {said.activity}"
        if said.answer and said.answer != before.answer:
            yield said.answer
        if said.failure and said.failure != before.failure:
            yield f"! {said.failure}"


def _used(usage: Usage) -> str:
    """Return what an agent has used, in words; empty where it did not say."""
    told = []
    if usage.turns is not None:
        told.append(f"{usage.turns} turns")
    if usage.tokens is not None:
        told.append(f"{usage.tokens} tokens")
    if usage.cost_usd is not None:
        told.append(f"${usage.cost_usd:.2f}")
    return ", ".join(told)
