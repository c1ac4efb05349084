"""Asks a running daemon over its control socket."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from chump_orchestrator.cli.exits import NoDaemon, NotAuthorised
from chump_orchestrator.core.errors import ConfigError, Refused, Unavailable
from chump_orchestrator.daemon.address import address

PATIENCE_S = 10.0
"""Seconds within which a healthy daemon answers anything, with a wide margin (I5: 1 s)."""

MAX_ANSWER = 16 * 2**20
"""Bytes; a status of thousands of dispatches is far smaller."""


class NotRunning(NoDaemon):
    """Nobody listens at the control socket."""


def ask(path: Path, op: str, **fields: object) -> dict[str, Any]:
    """Return the daemon's answer to one request.

    Raises `NotRunning` when no daemon listens there, `NoDaemon` when it does not answer in time,
    `NotAuthorised` when it is another user's, and what the daemon itself says to be wrong as
    `Refused`, `Unavailable` or `ConfigError`.
    """
    answer = _exchange(path, json.dumps({"op": op, **fields}).encode() + b"\n")
    try:
        document = json.loads(answer)
        if document["ok"] is True:
            return dict(document)
        kind, text = str(document["kind"]), str(document["error"])
    except (ValueError, KeyError, TypeError) as error:
        raise NoDaemon(f"the daemon at {path} answers what nobody understands: {error}") from error
    raise _raised(kind, text)


def _raised(kind: str, text: str) -> Exception:
    match kind:
        case "refused":
            return Refused(text)
        case "unavailable":
            return Unavailable(text)
        case "configuration":
            return ConfigError(text)
        case "unauthorised":
            return NotAuthorised(text)
        case _:
            return NoDaemon(f"the daemon could not do that ({kind}): {text}")


def _exchange(path: Path, request: bytes) -> bytes:
    received = bytearray()
    try:
        path.lstat()
        import socket  # noqa: PLC0415 - slow to import, and only where something listens

        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(PATIENCE_S)
            with address(path) as name:
                connection.connect(name)
            connection.sendall(request)
            while not received.endswith(b"\n") and len(received) < MAX_ANSWER:
                chunk = connection.recv(64 * 1024)
                if not chunk:
                    break
                received += chunk
    except (FileNotFoundError, ConnectionRefusedError):
        raise NotRunning(
            "no daemon runs on this repository; start one with `chump-orchestrator run`"
        ) from None
    except PermissionError as error:
        raise NotAuthorised(f"{path} belongs to somebody else: {error.strerror}") from error
    except OSError as error:
        reason = error.strerror or f"no answer within {PATIENCE_S:g} s"
        raise NoDaemon(f"the daemon at {path} does not answer: {reason}") from error
    return bytes(received)
