"""What the order of a dispatch tells about it, for a ledger that has lost its row. Blocks.

The file is the daemon's own, but it lies where an agent could write: all of it is looked at, and
what does not fit makes it say nothing at all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from chump_orchestrator.adapters.local.files import read_object
from chump_orchestrator.adapters.local.numbers import seconds, whole
from chump_orchestrator.adapters.local.remains import instant
from chump_orchestrator.core.dispatch import (
    DISPATCH_ID_PATTERN,
    Deadlines,
    Dispatch,
    Names,
    Resumed,
    Workspace,
)
from chump_orchestrator.core.errors import Unavailable
from chump_orchestrator.core.gap import Effort, Gap, Kind, Place, Priority, is_gap_id
from chump_orchestrator.core.records import Recalled
from chump_orchestrator.core.routing import Route
from chump_orchestrator.shim.files import RUNNING, SPEC

_OID = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?", re.ASCII)
_REF = re.compile(r"(?![-/.])[^\x00-\x20\x7f~^:?*\[\\]+", re.ASCII)
_MOST_ATTEMPTS = 1_000_000


def recall(directory: Path) -> Recalled | None:
    """Return what the order of a dispatch tells; `None` when that cannot be understood.

    Raises `Unavailable` when the disk refuses.
    """
    try:
        spec = read_object(directory, SPEC) or {}
        running = read_object(directory, RUNNING) or {}
    except OSError as error:
        raise Unavailable(
            f"dispatch {directory.name}: {error.filename or directory} cannot be read:"
            f" {error.strerror}; see to the disk and its permissions"
        ) from error
    try:
        dispatch = _dispatch(_mapping(spec["record"]))
        base, branch = str(spec["base"]), str(spec["branch"])
        workspace = Workspace(_absolute(spec["cwd"]), branch, base)
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    is_sound = dispatch.id == directory.name and _OID.fullmatch(base) and _REF.fullmatch(branch)
    if not is_sound:
        return None
    return Recalled(dispatch, workspace, instant(running.get("started_at")))


def _dispatch(raw: Mapping[str, Any]) -> Dispatch:
    names = _mapping(raw["names"])
    attempt = whole(raw["attempt"], _MOST_ATTEMPTS, least=1)
    if attempt is None:
        raise ValueError("attempt")
    return Dispatch(
        id=_text(raw["id"]),
        gap=_gap(_mapping(raw["gap"])),
        attempt=attempt,
        route=Route(**_known(_mapping(raw["route"]), dict.fromkeys(_ROUTE, _text))),
        deadlines=Deadlines(**_known(_mapping(raw["deadlines"]), dict.fromkeys(_DEADLINES, _span))),
        names=Names(_text(names["branch"]), _text(names["folder"])),
        created_at=datetime.fromisoformat(raw["created_at"]).astimezone(UTC),
        resumed=_resumed(_mapping(raw["resumed"])) if raw.get("resumed") is not None else None,
    )


def _resumed(raw: Mapping[str, Any]) -> Resumed:
    former, number = _text(raw["dispatch"]), raw.get("number")
    if not DISPATCH_ID_PATTERN.fullmatch(former):
        raise ValueError("resumed")
    return Resumed(
        dispatch=former,
        session=_text(raw["session"]),
        since=datetime.fromisoformat(raw["since"]).astimezone(UTC),
        number=None if number is None else _number(number),
        head=_text(raw["head"]),
        times=_number(raw["times"]),
    )


def _gap(raw: Mapping[str, Any]) -> Gap:
    gap = Gap(**_known(raw, _GAP))
    if not is_gap_id(gap.id):
        raise ValueError("gap")
    return gap


def _known(raw: Mapping[str, Any], forms: Mapping[str, Callable[[Any], Any]]) -> dict[str, Any]:
    """Return the fields that this version knows; what is missing takes its default."""
    return {name: form(raw[name]) for name, form in forms.items() if name in raw}


def _mapping(value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise TypeError
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError
    return tuple(map(_text, value))


def _span(value: object) -> timedelta:
    span_s = seconds(value)
    if span_s is None:
        raise ValueError("duration")
    return timedelta(seconds=span_s)


def _number(value: object) -> int:
    number = whole(value)
    if number is None:
        raise ValueError("number")
    return number


def _absolute(value: object) -> str:
    path = _text(value)
    if not path.startswith("/") or "\0" in path:
        raise ValueError("path")
    return path


_ROUTE = ("backend", "model", "provider_pfx", "why")
_DEADLINES = ("soft", "grace", "silent", "pull", "ci_grace", "look_interval")
_PLACE: Mapping[str, Callable[[Any], Any]] = {"file": _text, "line": _number, "column": _number}
_GAP: Mapping[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("id", "title", "status", "description", "declared_domain"), _text),
    **dict.fromkeys(("depends_on", "paths", "acceptance"), _texts),
    "priority": Priority,
    "effort": Effort,
    "kind": Kind,
    "closed_date": lambda raw: None if raw is None else date.fromisoformat(raw),
    "auto_dispatch_ok": lambda raw: raw is True,
    "deadline": lambda raw: None if raw is None else _span(raw),
    "order": _number,
    "place": lambda raw: Place(**_known(_mapping(raw), _PLACE)),
}
