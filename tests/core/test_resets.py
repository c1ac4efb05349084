"""When a limit is renewed, by what agents say (behaviour X4)."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chump_orchestrator.core.resets import JUST_NOW, LONGEST, from_epoch, resets_at, sound

NOW = datetime(2026, 4, 27, 12, 0, tzinfo=UTC)
"""A Monday; in Berlin it is 2 in the afternoon, in New York 8 in the morning."""

ZONES = {"Europe/Berlin", "America/New_York", "UTC", "America/Port-au-Prince"}


def zone(name: str) -> tzinfo | None:
    """Return a zone; agents run where it is two hours later than in UTC."""
    if not name:
        return timezone(timedelta(hours=2))
    return ZoneInfo(name) if name in ZONES else None


def at(day: int, hour: int, minute: int = 0, *, month: int = 4) -> datetime:
    return datetime(2026, month, day, hour, minute, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        # What claude prints, of old and now.
        ("Claude AI usage limit reached|1777302000", at(27, 15)),
        ("You've hit your session limit · resets 8:53pm (Europe/Berlin)", at(27, 18, 53)),
        ("You've hit your session limit · resets 3am (Europe/Berlin)", at(28, 1)),
        ("You've hit your weekly limit · resets May 1, 5:53pm (UTC)", at(1, 17, 53, month=5)),
        ("5-hour limit reached ∙ resets 3pm", at(27, 13)),
        ("usage limit reached, resets 12am (UTC)", at(28, 0)),
        ("usage limit reached, resets 12:30pm (UTC)", at(27, 12, 30)),
        # What codex prints.
        ("You've hit your usage limit. Try again at 3:05 PM.", at(27, 13, 5)),
        ("hit your usage limit, try again at Apr 29th, 2026 3:05 PM.", at(29, 13, 5)),
        ("hit your usage limit. Try again in 2 days 3 hours 5 minutes.", at(29, 15, 5)),
        # What gemini and providers print.
        ("Your quota will reset after 5h12m.", at(27, 17, 12)),
        ("Please retry in 90 s", at(27, 12, 1) + timedelta(seconds=30)),
        ("try again in 1 hour and 30 min", at(27, 13, 30)),
        ("retry after 3600 seconds", at(27, 13)),
        ("resets in 0.5h", at(27, 12, 30)),
        # Instants.
        ("resets at 2026-04-27T15:00:00Z", at(27, 15)),
        ("limit resets on 2026-04-27 17:00:00+02:00", at(27, 15)),
        ("available again: 2026-04-27T17:00", at(27, 15)),
        ("resets at 1777302000000", at(27, 15)),
        # Days, zones, and a time that has just gone by.
        ("resets Mon 9am (America/New_York)", at(27, 13)),
        ("resets Monday, 6am (America/New_York)", at(4, 10, month=5)),
        ("RESETS TUESDAY AT 9AM (America/New_York)", at(28, 13)),
        ("resets 15:00 UTC", at(27, 15)),
        ("resets 9am (America/Port-au-Prince)", at(27, 13)),
        ("resets 1:30pm (Nowhere/Else)", at(27, 11, 30)),
        ("resets 11:59am (UTC)", at(27, 11, 59)),
        ("resets 10:59am (UTC)", at(28, 10, 59)),
        ("first a word; usage limit; resets 3pm (UTC)\nlast a word", at(27, 15)),
    ],
)
def test_what_agents_say_is_understood(text: str, instant: datetime) -> None:
    found = resets_at(text, NOW, zone)

    assert found == instant
    assert found.tzinfo is UTC


@pytest.mark.parametrize(
    "text",
    [
        "",
        "usage limit reached",
        "try again in a moment",
        "try again 3 times",
        "resets 3",
        "presets 3am",
        "resets 13pm",
        "resets 25:00",
        "resets 3:99pm",
        "resets Feb 31, 3pm",
        "resets Jan 2, 2027, 3pm",
        "resets Dec 1, 5pm (UTC)",
        "resets at 2026-13-45T15:00:00Z",
        "resets at 2031-04-27T15:00:00Z",
        "resets at 0000-00-00T00:00:00Z",
        "resets at 1577302000",
        "resets at 9999999999",
        "resets at 9999999999999",
        "resets at 99999999999999999999",
        "try again in 3 months",
        "try again in 999999999 days",
        "try again in 40 days",
        "resets in 999999999.999999999 d 999999999 d",
    ],
)
def test_what_makes_no_sense_says_nothing(text: str) -> None:
    assert resets_at(text, NOW, zone) is None


def test_a_year_that_is_not_said_is_the_next_one_that_fits() -> None:
    december = datetime(2026, 12, 30, 12, 0, tzinfo=UTC)

    assert resets_at("resets Jan 2, 3pm (UTC)", december, zone) == datetime(
        2027, 1, 2, 15, tzinfo=UTC
    )


def test_a_time_of_day_is_that_of_the_zone_s_own_summer() -> None:
    """On the 29th of March the clocks of Berlin go from 2 to 3 in the morning."""
    before = datetime(2026, 3, 28, 12, 0, tzinfo=UTC)

    found = resets_at("resets 9am (Europe/Berlin)", before, zone)

    assert found == datetime(2026, 3, 29, 7, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    "seconds", [0, -1, 1e300, float("inf"), float("nan"), 10**12, 253402300800]
)
def test_seconds_that_make_no_sense_are_none(seconds: float) -> None:
    assert from_epoch(seconds, NOW) is None


@given(st.datetimes(timezones=st.just(UTC)))
def test_what_is_sound_is_near(moment: datetime) -> None:
    found = sound(moment, NOW)

    assert (found is not None) == (-JUST_NOW <= moment - NOW <= LONGEST)
    assert found is None or found == moment


PIECES = st.sampled_from(
    [
        "resets",
        "try again",
        "in",
        "at",
        "after",
        "3",
        "12",
        "99",
        "2026",
        "am",
        "pm",
        ":",
        "30",
        "-",
        "Mon",
        "Jan",
        ",",
        "(UTC)",
        "(Europe/Berlin)",
        "h",
        "m",
        "s",
        "days",
        "limit reached",
        "1777302000",
        "T15:00",
        "Z",
        "\n",
        " ",
        "é",
        "999999999",
    ]
)


@given(st.lists(PIECES, max_size=20).map(" ".join))
def test_any_text_has_an_instant_nearby_or_none(text: str) -> None:
    found = resets_at(text, NOW, zone)

    assert found is None or sound(found, NOW) == found


@pytest.mark.parametrize(
    "piece", ["resets ", "reset", "try again in 1 ", "1d", "Mon ", "9", "(", "a"]
)
def test_hostile_text_is_searched_in_time_that_grows_no_faster_than_it(piece: str) -> None:
    text = piece * (200_000 // len(piece))
    began = time.process_time()

    resets_at(text, NOW, zone)

    assert time.process_time() - began < 2
