"""What a thread that owns a connection is asked, done for many at once, and answered.

Whoever asks is in an event loop and waits; all who ask together are answered by one call to it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    import asyncio

Item = TypeVar("Item")
Result = TypeVar("Result")
Work = Callable[[sqlite3.Connection], Result]
"""What a caller wants to have done with a connection, inside a transaction that is not its own."""


class Share(Generic[Item]):
    """Work on one item that is done for all those at once that come in together.

    `many` is called with a connection and the items, in order; it has done all of them, or fails.
    With `onward`, whoever asked is not answered once the item is safe on disk: that is called
    with request and item, in the thread, and sees to the answer.
    """

    __slots__ = ("item", "many", "onward")

    def __init__(
        self,
        many: Callable[[sqlite3.Connection, Sequence[Item]], None],
        item: Item,
        onward: Callable[[Request, Item], None] | None = None,
    ) -> None:
        self.many = many
        self.item = item
        self.onward = onward

    def __call__(self, connection: sqlite3.Connection) -> None:
        self.many(connection, (self.item,))


class Request(NamedTuple):
    """Work, and the loop in which somebody waits for the answer."""

    work: Work[Any]
    loop: asyncio.AbstractEventLoop
    answer: asyncio.Future[Any]


class Done(NamedTuple):
    """A request, and what came of it: a value, or an error to be raised."""

    request: Request
    value: Any = None
    error: Exception | None = None


def carry_out(connection: sqlite3.Connection, batch: Iterable[Request]) -> list[Done]:
    """Do the work of all requests, in order; raise what the first raises that fails."""
    done: list[Done] = []
    for many, requests in groupby(batch, _shared):
        together = list(requests)
        if many is None:
            done += [Done(request, request.work(connection)) for request in together]
        else:
            many(connection, [request.work.item for request in together])  # type: ignore[attr-defined]
            done += [Done(request) for request in together]
    return done


def _shared(request: Request) -> Callable[..., None] | None:
    return request.work.many if isinstance(request.work, Share) else None


def answer_all(done: Iterable[Done]) -> None:
    """Answer those who wait in each loop by one call to it, and send on what is to go on."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Done]] = {}
    for each in done:
        work = each.request.work
        if each.error is None and isinstance(work, Share) and work.onward is not None:
            work.onward(each.request, work.item)
        else:
            by_loop.setdefault(each.request.loop, []).append(each)
    for loop, answers in by_loop.items():
        try:
            loop.call_soon_threadsafe(_deliver, answers)
        except RuntimeError:
            # The loop is closed: nobody waits any more.
            continue


def _deliver(answers: Sequence[Done]) -> None:
    for done in answers:
        future = done.request.answer
        if future.done():
            continue
        if isinstance(done.error, StopIteration):
            # A future takes anything but that.
            future.set_exception(RuntimeError(repr(done.error)))
        elif done.error is not None:
            future.set_exception(done.error)
        else:
            future.set_result(done.value)
