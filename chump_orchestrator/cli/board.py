"""A status for people: plain text anywhere, and a table that stays in place on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from chump_orchestrator.cli.render import dollars, duration, table
from chump_orchestrator.core.budget import in_words
from chump_orchestrator.core.gap import on_one_line
from chump_orchestrator.core.tail import harmless

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

Status = Mapping[str, Any]
"""A document of `status --json`; a daemon of another version may leave something out."""

REFRESH_S = 1.0
"""How often a table that stays in place is drawn anew: what moves in it counts seconds."""

WIDE = 110
"""Columns from which on there is room for what an agent said last."""

SAID = 60
"""Characters of what an agent is at that are shown."""

BAR = 14
"""Columns of the bar that shows how much of its time an agent has used."""


def show(status: Status) -> None:
    """Print a status once."""
    for line in _headlines(status):
        click.echo(line)
    dispatches = status.get("dispatches") or []
    if dispatches:
        click.echo()
        known = ("GAP", "TRY", "STATE", "BACKEND", "TIME", "DEADLINE", "SILENT", "PULL", "PID")
        told = ("TURNS", "COST", "DOING")
        table((*known, *told), [_row(one) for one in dispatches])
    parked = status.get("parked") or []
    if parked:
        click.echo()
        rows = [(one["gap"], one["until"] or "-", one["reason"]) for one in parked]
        table(("PARKED", "UNTIL", "REASON"), rows)


def _headlines(status: Status) -> Iterator[str]:
    daemon = status.get("daemon")
    if daemon:
        yield f"{daemon['state']}, pid {daemon['pid']}, since {daemon['since']}"
    else:
        yield "no daemon runs on this repository"
    yield _counts(status)
    if spent := _spent(status.get("budget") or {}):
        yield spent
    if daemon and daemon.get("paused_by"):
        yield f"paused: {on_one_line(str(daemon['paused_by']))}"
    if daemon and daemon.get("backlog_problem"):
        problem = on_one_line(str(daemon["backlog_problem"]))
        yield f"the backlog as last read is in use: {problem}"
    if daemon and daemon.get("forge_silent_s"):
        yield f"the forge has not answered for {duration(daemon['forge_silent_s'])}"
    forge = (daemon or {}).get("forge") or {}
    if forge.get("points_left") is not None:
        limit = f" of {forge['points_limit']}" if forge.get("points_limit") else ""
        spent = f"{forge['points']} points in {forge['requests']} requests"
        left = f"{forge['points_left']}{limit} left until {forge['resets_at']}"
        yield f"the forge was asked for {spent}; {left}"
    pause = status.get("pause")
    if pause:
        reason = on_one_line(str(pause["reason"] or "-"))
        yield f"paused by {pause['by']} since {pause['since']}: {reason}"


def _spent(budget: Status) -> str:
    """Return what today has cost; empty where there is nothing to tell and no budget to keep."""
    limited = budget.get("usd_per_day") or budget.get("tokens_per_day")
    if not limited and not budget.get("agents_today") and not budget.get("usd_today"):
        return ""
    held = f"; {on_one_line(str(budget['held']))}" if budget.get("held") else ""
    return f"spent today: {in_words(budget)}{held}"


def _counts(status: Status) -> str:
    slots, ready = status.get("slots") or {}, status.get("ready")
    parts = [
        f"{slots.get('used', '?')} of {slots.get('total', '?')} slots used",
        f"{'?' if ready is None else ready} gaps ready",
    ]
    overdue = sum(1 for one in status.get("dispatches") or [] if one.get("overdue"))
    if overdue:
        parts.append(f"{overdue} overdue")
    parts += [f"{count} {kind}" for kind, count in (status.get("settled") or {}).items()]
    return ", ".join(parts)


def _row(one: Status) -> tuple[object, ...]:
    late = " late" if one.get("overdue") else ""
    return (
        one["gap"],
        one.get("attempt", "-"),
        one["state"],
        _backend(one),
        duration(one.get("elapsed_s")) + late,
        duration(one.get("soft_deadline_s")),
        duration(one.get("silent_s")),
        _pull(one),
        one.get("pid") or "-",
        "-" if one.get("turns") is None else one["turns"],
        dollars(one.get("cost_usd")),
        _doing(one) or "-",
    )


def _doing(one: Status) -> str:
    """Return what an agent is at in its own words, or what troubles it."""
    said = one.get("trouble") or one.get("activity") or ""
    return on_one_line(harmless(str(said)))[:SAID]


def _backend(one: Status) -> str:
    return " ".join(filter(None, (one.get("backend"), one.get("model"))))


def _pull(one: Status) -> str:
    pull = one.get("pull")
    if not pull:
        return "-"
    number = f"#{pull['number']} " if pull.get("number") else ""
    failing = f" ({on_one_line(', '.join(pull['failing']))})" if pull.get("failing") else ""
    marks = [mark for mark in ("draft", "queued") if pull.get(mark)]
    return ", ".join((f"{number}{pull['state']}", f"checks {pull['checks']}{failing}", *marks))


def can_stay(stream: object = None) -> bool:
    """Say whether standard error is a terminal on which a table can stay in place."""
    out: Any = stream or sys.stderr
    if not out.isatty():
        return False
    from rich.console import Console  # noqa: PLC0415 - slow to import, and seldom needed

    return not Console(file=out).is_dumb_terminal


class Board:
    """A status that stays in place at the foot of the terminal, as long as `shown` lasts.

    Whatever else is written to standard error meanwhile, log lines above all, scrolls above it.
    """

    def __init__(self) -> None:
        from rich.console import Console  # noqa: PLC0415 - slow to import, and seldom needed
        from rich.live import Live  # noqa: PLC0415 - as above

        self._console: Console = Console(stderr=True)
        self._live: Live = Live(
            console=self._console, auto_refresh=False, redirect_stdout=False, transient=True
        )

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Take over the foot of the terminal, and give it back."""
        with self._live:
            yield

    def say(self, line: str) -> None:
        """Let a line scroll by above the table."""
        from rich.text import Text  # noqa: PLC0415 - slow to import, and seldom needed

        self._console.print(Text(line))

    async def follow(self, ask: Callable[[], Awaitable[Status]]) -> None:
        """Show what `ask` answers, again and again, until cancelled."""
        import anyio  # noqa: PLC0415 - slow to import, and for this alone

        while True:
            self._live.update(_drawn(await ask(), self._console.width), refresh=True)
            await anyio.sleep(REFRESH_S)


def _drawn(status: Status, width: int) -> RenderableType:
    from rich.console import Group  # noqa: PLC0415 - slow to import, and seldom needed
    from rich.rule import Rule  # noqa: PLC0415 - as above
    from rich.text import Text  # noqa: PLC0415 - as above

    lines = [Text(line, no_wrap=True, overflow="ellipsis") for line in _headlines(status)]
    return Group(Rule(style="dim"), _agents(status, is_wide=width >= WIDE), *lines)


def _agents(status: Status, *, is_wide: bool) -> RenderableType:
    from rich.progress_bar import ProgressBar  # noqa: PLC0415 - slow to import, seldom needed
    from rich.table import Table  # noqa: PLC0415 - as above
    from rich.text import Text  # noqa: PLC0415 - as above

    shown = Table(box=None, pad_edge=False, header_style="bold", expand=True)
    for header in ("GAP", "STATE", "", "TIME", "SILENT", "PULL"):
        shown.add_column(header, no_wrap=True, overflow="ellipsis")
    if is_wide:
        shown.add_column("BACKEND", no_wrap=True, overflow="ellipsis")
        shown.add_column("LAST WORDS", no_wrap=True, overflow="ellipsis", ratio=1)
    for one in status.get("dispatches") or []:
        elapsed, soft = one.get("elapsed_s") or 0.0, one.get("soft_deadline_s") or 0.0
        style = "red" if one.get("overdue") else "green"
        cells: list[RenderableType] = [
            Text(on_one_line(str(one["gap"])), style="bold"),
            Text(str(one["state"])),
            ProgressBar(soft or 1.0, min(elapsed, soft), BAR, complete_style=style),
            Text(f"{duration(elapsed)} of {duration(soft)}", style=style),
            Text(duration(one.get("silent_s"))),
            Text(_pull(one)),
        ]
        if is_wide:
            last = on_one_line(harmless(str(one.get("last_line") or "")))
            spent = "" if one.get("cost_usd") is None else dollars(one["cost_usd"])
            said = "  ".join(filter(None, (spent, _doing(one), last)))
            cells += [Text(_backend(one)), Text(said, style="dim")]
        shown.add_row(*cells)
    return shown
