"""The sockets that are listened at: this machine's own addresses, or a file of its owner's."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

UNIX = "unix:"
"""Begins what stands for a socket in the file system."""

WAITING = 16
"""Connections that the kernel keeps waiting until they are accepted."""

ANSWERS_WITHIN_S = 1.0
"""How long somebody who listens at a socket may take to accept a connection."""


@dataclass(frozen=True, slots=True)
class Door:
    """A socket that is listened at, and its own file if it has one, known by device and inode."""

    socket: socket.socket
    path: Path | None = None
    identity: tuple[int, int] = (0, 0)

    @property
    def name(self) -> str:
        """Where it is, for people."""
        if self.path is not None:
            return str(self.path)
        host, port, *_ = self.socket.getsockname()
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def close(self) -> None:
        """Close the socket and remove its file, unless another's lies there. Does not raise.

        Blocks for the moment that this takes: after a cancellation nothing can be awaited.
        """
        self.socket.close()
        with contextlib.suppress(OSError):
            if self.path is not None and _identity(self.path) == self.identity:
                self.path.unlink()


def opened(listen: str, root: Path) -> Door:
    """Return what listens at `HOST:PORT`, `[HOST]:PORT` or `unix:PATH`. Blocks for a moment.

    A path that is not absolute begins at `root`. A socket that nobody listens at any more is
    replaced, nothing else is. Raises `OSError`.
    """
    if listen.startswith(UNIX):
        return _at_path(root / listen.removeprefix(UNIX))
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with _made(family) as listening:
        # A port that was just given up is free, one that is in use is not.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, int(port)))
        listening.listen(WAITING)
        return Door(listening)


def _at_path(path: Path) -> Door:
    _clear(path)
    with _made(socket.AF_UNIX) as listening:
        with contextlib.suppress(OSError):
            # On Linux the file then has this mode from its first moment on.
            os.fchmod(listening.fileno(), 0o600)
        listening.bind(str(path))
        path.chmod(0o600)
        listening.listen(WAITING)
        return Door(listening, path, _identity(path))


@contextlib.contextmanager
def _made(family: socket.AddressFamily) -> Iterator[socket.socket]:
    """Make a socket; one that does not come to listen is closed."""
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setblocking(False)  # noqa: FBT003 - socket's own signature
        yield made
    except BaseException:
        made.close()
        raise


def _clear(path: Path) -> None:
    """Take away a socket at which nobody listens any more; leave everything else."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FileExistsError(f"{path} is there and no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as visitor:
        visitor.settimeout(ANSWERS_WITHIN_S)
        try:
            visitor.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except TimeoutError:
            pass
    raise FileExistsError(f"another program listens at {path}")


def _identity(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino
