"""Ships what an agent has committed, between its end and the verdict (behaviour P9).

Each stage is written down before the next one begins. A world that does not answer delays; what
is withheld or refused ends the dispatch, its work being kept.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import anyio
import structlog

from chump_orchestrator.core.causes import Cause
from chump_orchestrator.core.errors import ConfigError, Refused, Unavailable
from chump_orchestrator.core.outcome import Exit, Outcome, OutcomeKind, PullState
from chump_orchestrator.core.shipping import (
    Letter,
    Opened,
    Shipment,
    Shipper,
    Stage,
    Withheld,
    committing,
    letter,
    may_be_shipped,
)

if TYPE_CHECKING:
    from chump_orchestrator.core.dispatch import Workspace
    from chump_orchestrator.core.records import Record
    from chump_orchestrator.daemon.world import World

log = structlog.get_logger()

FIRST_WAIT = timedelta(seconds=2)
LONGEST_WAIT = timedelta(minutes=5)
"""Between two attempts at what was not available; doubles."""

TRIES_TO_FINISH = 6
"""So often labels and auto-merge are asked for; the request itself is open by then."""

Store = Callable[["Record"], Awaitable[None]]
"""Writes a record down; returns when it is durable."""


def is_due(record: Record, ended: Exit | None) -> bool:
    """Whether the daemon has to ship this dispatch now that its agent has `ended`.

    `None` stands for one that runs.
    """
    shipment = record.shipment
    if shipment is None or shipment.stage is Stage.DONE or ended is None:
        return False
    is_merged = record.pull is not None and record.pull.state is PullState.MERGED
    return may_be_shipped(ended) and not is_merged


async def ship(world: World, record: Record, store: Store) -> Outcome | None:
    """Ship a dispatch that `is_due`; returns its outcome if it ends here, else `None`.

    Then the forge's word decides, as for any other. Tries for as long as a request may be open.
    Cancelling leaves the stage on record that was reached, from which the next call goes on.
    """
    workspace, shipper = record.workspace, world.shipper
    if workspace is None or shipper is None:
        what = "it has no worktree" if workspace is None else "ship.by names nobody who would ship"
        return Outcome(OutcomeKind.STALLED, f"not shipped: {what}", Cause.NO_PULL)
    began_s, wait, tries = world.clock.monotonic(), FIRST_WAIT, 0
    while record.shipment is not None and record.shipment.stage is not Stage.DONE:
        shipment = record.shipment
        try:
            result = await _next(world, shipper, record, workspace, shipment)
        except Unavailable as error:
            tries += 1
            if shipment.stage is Stage.OPENED and tries >= TRIES_TO_FINISH:
                _lacks(world, record, (str(error),))
                result = replace(shipment, stage=Stage.DONE)
            elif outcome := _too_late(world, record, error, began_s):
                return outcome
            else:
                _delayed(world, record, error, wait, is_first=tries == 1)
                await anyio.sleep(wait.total_seconds())
                wait = min(wait * 2, LONGEST_WAIT)
                continue
        except (Refused, ConfigError) as error:
            result = Withheld(str(error))
        if isinstance(result, Withheld):
            return _refused(world, record, result)
        wait, tries = FIRST_WAIT, 0
        record = replace(record, shipment=result)
        await store(record)
        _tell(world, record, workspace, result)
    return None


async def _next(
    world: World, shipper: Shipper, record: Record, workspace: Workspace, shipment: Shipment
) -> Shipment | Withheld:
    """Carry out the next stage, and return what is to be written down of it."""
    gap = record.dispatch.gap
    match shipment.stage:
        case Stage.DUE:
            found = await shipper.inspect(workspace, world.hide(committing(gap)))
            if isinstance(found, Withheld):
                return found
            return replace(shipment, stage=Stage.SEALED, head=found.head, checked=found.checked)
        case Stage.SEALED:
            await shipper.push(workspace, shipment.head)
            return replace(shipment, stage=Stage.PUSHED)
        case Stage.PUSHED:
            since = record.launched_at or record.dispatch.created_at
            text = _letter(world, record, shipment)
            opened = await shipper.open(workspace, shipment.head, text, since)
            if opened is None:
                return replace(shipment, stage=Stage.DONE)
            return replace(shipment, stage=Stage.OPENED, number=opened.number, url=opened.url)
        case Stage.OPENED | Stage.DONE:
            if shipment.number is not None:
                lacking = await shipper.finish(Opened(shipment.number, shipment.url))
                if lacking:
                    _lacks(world, record, lacking)
            return replace(shipment, stage=Stage.DONE)


def _letter(world: World, record: Record, shipment: Shipment) -> Letter:
    active = record.exit.active if record.exit is not None else timedelta(0)
    text = letter(record.dispatch, shipment, record.report, active)
    return Letter(world.hide(text.title), world.hide(text.body))


def _too_late(world: World, record: Record, error: Exception, began_s: float) -> Outcome | None:
    """Give up when the forge has been silent for too long (behaviour P3)."""
    limit = record.dispatch.deadlines.pull
    if world.clock.monotonic() - began_s < limit.total_seconds():
        return None
    return Outcome(OutcomeKind.STALLED, f"not shipped within {limit}: {error}", Cause.NETWORK)


def _delayed(
    world: World, record: Record, error: Exception, wait: timedelta, *, is_first: bool
) -> None:
    why = world.hide(str(error))
    if is_first:
        log.warning("ship.delayed", why=why, for_s=wait.total_seconds())
        world.tell("ship.delayed", why=why, **_who(record))
    else:
        log.debug("ship.delayed", why=why, for_s=wait.total_seconds())


def _refused(world: World, record: Record, withheld: Withheld) -> Outcome:
    why = world.hide(withheld.reason)
    log.error("ship.refused", why=why, cause=withheld.cause)
    world.tell("ship.refused", why=why, cause=str(withheld.cause), **_who(record))
    return Outcome(OutcomeKind.STALLED, why, withheld.cause)


def _lacks(world: World, record: Record, lacking: tuple[str, ...]) -> None:
    why = world.hide("; ".join(lacking))
    number = record.shipment.number if record.shipment is not None else None
    log.warning("ship.denied", number=number, why=why)
    world.tell("ship.denied", number=number, why=why, **_who(record))


def _tell(world: World, record: Record, workspace: Workspace, shipment: Shipment) -> None:
    match shipment.stage:
        case Stage.SEALED:
            log.info("ship.sealed", head=shipment.head, checked=shipment.checked)
        case Stage.OPENED:
            log.info("ship.opened", number=shipment.number, url=shipment.url)
            world.tell("ship.opened", number=shipment.number, url=shipment.url, **_who(record))
        case Stage.PUSHED:
            log.info("ship.pushed", head=shipment.head, branch=workspace.branch)
            told = {"head": shipment.head, "branch": workspace.branch, **_who(record)}
            world.tell("ship.pushed", **told)
        case Stage.DUE | Stage.DONE:
            pass


def _who(record: Record) -> dict[str, str]:
    return {"gap": record.dispatch.gap.id, "dispatch": record.dispatch.id}
