"""What a daemon's socket is called, by those who serve it and those who ask.

Apart from `control`, as whoever asks need not import what it takes to answer.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

LONGEST_ADDRESS = 100
"""Bytes of a socket's path that every platform takes: 108 on Linux, 104 on macOS, less a rest."""


@contextlib.contextmanager
def address(path: Path) -> Iterator[str]:
    """Yield a name of the socket at `path` that is short enough to bind or connect to.

    A long one goes through a link to its folder, in a private temporary folder that is gone
    afterwards. Raises `OSError` when that folder cannot be made.
    """
    if len(os.fsencode(path)) <= LONGEST_ADDRESS:
        yield str(path)
        return
    import tempfile  # noqa: PLC0415 - slow to import, and most addresses are short

    private = tempfile.gettempdir()
    if len(os.fsencode(private)) + len(os.fsencode(path.name)) > LONGEST_ADDRESS // 2:
        private = "/tmp"  # noqa: S108 - mkdtemp makes a folder of our own in it
    with tempfile.TemporaryDirectory(prefix="chump-", dir=private) as folder:
        link = Path(folder) / "d"
        link.symlink_to(path.parent.absolute(), target_is_directory=True)
        yield str(link / path.name)
