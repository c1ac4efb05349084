"""What dispatches may have left: leases that hold gaps, processes that work on for nobody."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import psutil

from chump_orchestrator import premises
from chump_orchestrator.adapters.local.remains import MARKER, is_held
from chump_orchestrator.adapters.local.shims import shims_of
from chump_orchestrator.core.dispatch import DISPATCH_ID_PATTERN
from chump_orchestrator.core.records import Lease, Record
from chump_orchestrator.doctor.findings import Check, Finding, ok, warn
from chump_orchestrator.doctor.subject import Subject, in_thread

SHOWN = 5
"""At most so many names in one line."""


@dataclass(frozen=True, slots=True)
class Stray:
    """A process of a dispatch that has no shim any more."""

    pid: int
    name: str
    dispatch: str


async def look_at_leases(subject: Subject) -> Sequence[Finding]:
    """Look for leases that hold a gap for nobody, for somebody else, or that cannot be read."""
    leases = premises.leases(subject.root, subject.loaded)
    live = await leases.live()
    ours = await leases.held_by_us()
    records = await subject.records()
    found = []
    if stale := stale_leases(ours, live, records):
        text = f"{len(stale)} of ours for dispatches that have ended: {_few(stale)}"
        found.append(warn(text, "`doctor --fix` removes them, and so does `run`"))
    if notices := leases.notices:
        text = f"{len(notices)} cannot be read and do not count: {_few(notices)}"
        found.append(warn(text, "mend or remove these files; they are not touched"))
    known = {record.dispatch.id for record in records}
    foreign = [lease for lease in live if lease.holder not in known | {*ours}]
    found += _judged_foreign(foreign, subject.clock.now(), 2 * subject.settings.leases.ttl)
    held = f"{len(live)} gap{'' if len(live) == 1 else 's'} held"
    return found or [ok(f"{held}, {len(foreign)} of them by others")]


def stale_leases(
    ours: Sequence[str], live: Sequence[Lease], records: Sequence[Record]
) -> list[str]:
    """Return which of our leases hold nothing: their dispatch has ended, or they have.

    One that is live and of which the ledger knows nothing may be another clone's that has its
    leases in the same folder.
    """
    active = {record.dispatch.id for record in records if record.state.is_active}
    ended = {record.dispatch.id for record in records} - active
    alive = {lease.holder for lease in live}
    return [one for one in ours if one in ended or (one not in active and one not in alive)]


def _judged_foreign(foreign: Sequence[Lease], now: datetime, longest: timedelta) -> list[Finding]:
    long_ones = [lease for lease in foreign if lease.expires_at - now > longest]
    if not long_ones:
        return []
    told = [f"{one.gap} by {one.holder} until {one.expires_at:%Y-%m-%d}" for one in long_ones]
    shown = _few(told)
    text = f"others hold gaps for far longer than leases last here: {shown}"
    return [warn(text, "see that their holders still work; else remove the lease")]


async def mend_leases(subject: Subject) -> Sequence[str]:
    """Remove leases of ours whose dispatch has ended; no daemon may run meanwhile."""
    done = []
    with premises.daemon_lock(subject.root, subject.loaded):
        leases = premises.leases(subject.root, subject.loaded)
        live = await leases.live()
        ours = await leases.held_by_us()
        async with premises.open_ledger(subject.root, subject.loaded, readonly=True) as ledger:
            records = await ledger.records()
        for dispatch in stale_leases(ours, live, records):
            await leases.release(dispatch)
            done.append(f"removed the lease of {dispatch}")
    return done


async def look_at_processes(subject: Subject) -> Sequence[Finding]:
    """Look for processes of dispatches whose shim has gone."""
    known = {record.dispatch.id for record in await subject.records()}
    base = subject.place(subject.settings.worktrees.base)
    found = await in_thread(strays, subject.state, base, known)
    if not found:
        return [ok("no process works for a dispatch that has ended")]
    shown = _few([f"{one.name} ({one.pid}) of {one.dispatch}" for one in found])
    pids = " ".join(str(one.pid) for one in found[:SHOWN])
    text = f"{len(found)} without a shim: {shown}"
    return [warn(text, f"see what they do, and end them (kill {pids}); `run` ends what is lost")]


def strays(state: Path, base: Path, known: Collection[str]) -> list[Stray]:
    """Return the processes that carry the mark of a dispatch of ours which no shim looks after.

    Ours are dispatches that are `known`, and processes that work below `base` or have their
    temporary files below `state`. Blocks; other users' processes cannot be seen.
    """
    own = os.getpid()
    places = [f"{os.path.realpath(place)}{os.sep}" for place in (state, base)]
    is_cared_for: dict[str, bool] = {}
    found = []
    for process, dispatch in _marked():
        if process.pid == own or not (dispatch in known or _is_in(process, places)):
            continue
        if dispatch not in is_cared_for:
            folder = state / "d" / dispatch
            is_cared_for[dispatch] = is_held(folder) or bool(shims_of(folder))
        if not is_cared_for[dispatch]:
            with contextlib.suppress(psutil.Error):
                found.append(Stray(process.pid, process.name(), dispatch))
    return found


def _marked() -> Iterator[tuple[psutil.Process, str]]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            dispatch = process.environ().get(MARKER, "")
            is_dead = process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
            if DISPATCH_ID_PATTERN.fullmatch(dispatch) and not is_dead:
                yield process, dispatch


def _is_in(process: psutil.Process, places: Sequence[str]) -> bool:
    with contextlib.suppress(psutil.Error, OSError):
        own = (process.environ().get("TMPDIR", ""), process.cwd())
        return any(f"{one}{os.sep}".startswith(place) for one in own if one for place in places)
    return False


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


LEFT_BEHIND = "left behind"
CHECKS = (
    Check("leases", LEFT_BEHIND, "no lease holds a gap for nobody", look_at_leases, mend_leases),
    Check("processes", LEFT_BEHIND, "no process is without a shim", look_at_processes),
)
