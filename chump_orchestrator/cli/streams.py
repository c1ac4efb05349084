"""The three standard streams as a process may find them: closed, full, or read by nobody."""

from __future__ import annotations

import contextlib
import os
import select
import sys
from collections.abc import Iterator

STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


def complete() -> None:
    """Put `/dev/null` in the place of streams that were closed before this process began.

    Otherwise the next file that is opened, a database perhaps, would be taken for one of them.
    """
    for name, mode in STREAMS:
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(descriptor, descriptor < len(STREAMS))
            setattr(sys, name, open(descriptor, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 - for the life of the process


def is_reader_gone() -> bool:
    """Say whether standard output is a pipe, socket or terminal whose other end was closed."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(state & (select.POLLERR | select.POLLHUP) for _, state in poll.poll(0))
    except (OSError, ValueError):
        return False


def drop_output() -> None:
    """Have standard output go nowhere from now on, and what it still holds, too."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


@contextlib.contextmanager
def for_whom_it_may_concern() -> Iterator[None]:
    """Print inside, for a reader who may leave early without changing how the command ends."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        if not is_reader_gone():
            raise
        drop_output()
