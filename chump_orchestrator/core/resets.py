"""When an account that has met its limit may be used again, read from what it says (X4).

What is said is hostile until it is read: whatever leads to an instant that makes no sense, long
past or more than a month ahead, says nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, tzinfo

Zone = Callable[[str], tzinfo | None]
"""Gives the time zone of a name such as `Europe/Berlin`, `None` for one that there is not; of an
empty name that of the machine where the agent ran."""

SEARCHED = 16_384
"""Characters of a text that are searched, from the end."""

JUST_NOW = timedelta(hours=1)
"""A time of day that went by so recently is today's: it was said before it went by."""

LONGEST = timedelta(days=32)
"""Allowances are renewed by the hour, the week or the month; what is later is a mistake."""

_AGAIN = r"(?:\breset(?:s|ting)?|\btry again|\bretry|\bavailable(?: again)?|\brenew(?:s|ed)?)"
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")

_FLAGS = re.ASCII | re.IGNORECASE

_EPOCH = re.compile(
    rf"(?:limit reached|{_AGAIN}(?: at)?)\s?[|:=]?\s?(\d{{10}}(?:\d{{3}})?)\b", _FLAGS
)
_ISO = re.compile(
    rf"{_AGAIN}[^\n\d]{{0,20}}(\d{{4}}-\d\d-\d\d)[t ](\d\d:\d\d(?::\d\d)?)(?:\.\d{{1,9}})?"
    r"\s?(z\b|utc\b|[+-]\d\d:?\d\d\b)?",
    _FLAGS,
)
_SPAN = re.compile(
    rf"{_AGAIN} (?:in|after) ((?:\d{{1,9}}(?:\.\d{{1,9}})?\s?"
    r"(?:d(?:ays?)?|h(?:ours?|rs?)?|m(?:in(?:ute)?s?)?|s(?:ec(?:ond)?s?)?)(?![a-z])"
    r"(?:,? (?:and )?)?){1,4})",
    _FLAGS,
)
_PART = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s?([dhms])", _FLAGS)
_UNIT_S = {"d": 86_400, "h": 3600, "m": 60, "s": 1}
_CLOCK = re.compile(
    rf"{_AGAIN}(?: (?:at|on|in))? "
    rf"(?:(?P<month>{'|'.join(_MONTHS)})[a-z]{{0,6}} (?P<day>\d{{1,2}})(?:st|nd|rd|th)?,? "
    r"(?:(?P<year>\d{4}),? )?(?:at )?"
    rf"|(?P<weekday>{'|'.join(_DAYS)})[a-z]{{0,6}},? (?:at )?)?"
    r"(?P<hour>\d{1,2})(?::(?P<minute>\d\d))?\s?(?P<half>[ap]\.?m)?"
    r"[^\n\w(]{0,3}(?:\((?P<zone>[\w+/-]{1,64})\)|(?P<utc>utc|gmt)\b)?",
    _FLAGS,
)


def resets_at(text: str, now: datetime, zone: Zone) -> datetime | None:
    """Return when what `text` tells of is renewed, in UTC; `None` when it does not say.

    Understood are seconds since 1970, ISO 8601, spans (`in 2 days 3 hours`), and times of day
    with or without a date and a zone (`resets Dec 1, 3am (Europe/Berlin)`).
    """
    said = text[-SEARCHED:]
    for read in (_epoch, _iso, _span, _clock):
        try:
            found = read(said, now, zone)
        except (ValueError, OverflowError):
            continue
        if found is not None and (sane := sound(found, now)) is not None:
            return sane
    return None


def sound(at: datetime, now: datetime) -> datetime | None:
    """Return an aware instant in UTC if an allowance may be renewed then, else `None`."""
    try:
        return at.astimezone(UTC) if -JUST_NOW <= at - now <= LONGEST else None
    except (ValueError, OverflowError):
        return None


def from_epoch(seconds: float, now: datetime) -> datetime | None:
    """Return the instant of so many seconds, or milliseconds, since 1970, if it makes sense."""
    try:
        at = datetime.fromtimestamp(seconds / 1000 if seconds > 10**11 else seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return None
    return sound(at, now)


def _epoch(said: str, now: datetime, zone: Zone) -> datetime | None:  # noqa: ARG001
    found = _EPOCH.search(said)
    return from_epoch(int(found[1]), now) if found else None


def _iso(said: str, now: datetime, zone: Zone) -> datetime | None:  # noqa: ARG001
    found = _ISO.search(said)
    if found is None:
        return None
    offset = (found[3] or "").upper().replace("UTC", "Z")
    at = datetime.fromisoformat(f"{found[1]}T{found[2]}{offset}")
    return at if at.tzinfo else at.replace(tzinfo=zone("") or UTC)


def _span(said: str, now: datetime, zone: Zone) -> datetime | None:  # noqa: ARG001
    found = _SPAN.search(said)
    if found is None:
        return None
    spans_s = (float(count) * _UNIT_S[unit.lower()] for count, unit in _PART.findall(found[1]))
    return now + timedelta(seconds=sum(spans_s))


def _clock(said: str, now: datetime, zone: Zone) -> datetime | None:
    for found in _CLOCK.finditer(said):
        if found["half"] or found["minute"]:  # a bare number is no time of day
            where = UTC if found["utc"] else zone(found["zone"] or "")
            return _next(found, now, where or zone("") or UTC)
    return None


def _next(found: re.Match[str], now: datetime, where: tzinfo) -> datetime | None:
    hour, half = int(found["hour"]), (found["half"] or "")[:1].lower()
    if half and not 1 <= hour <= 12:  # noqa: PLR2004 - on the face of a clock
        return None
    hour = hour % 12 + (12 if half == "p" else 0) if half else hour
    here = now.astimezone(where)
    at = here.replace(hour=hour, minute=int(found["minute"] or 0), second=0, microsecond=0, fold=0)
    if found["month"]:
        year = int(found["year"] or here.year)
        at = at.replace(year, _MONTHS.index(found["month"].lower()) + 1, int(found["day"]))
        if not found["year"] and at < here - LONGEST:
            at = at.replace(year + 1)
    elif found["weekday"]:
        at += timedelta(days=(_DAYS.index(found["weekday"].lower()) - at.weekday()) % 7)
        at += timedelta(days=7) if at < here - JUST_NOW else timedelta(0)
    elif at < here - JUST_NOW:
        at += timedelta(days=1)
    return at
