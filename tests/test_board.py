"""A status for people: what it says of the forge and of a request."""

from __future__ import annotations

from typing import Any

import pytest

from chump_orchestrator.cli import board

STATUS: dict[str, Any] = {
    "daemon": {
        "pid": 7,
        "state": "running",
        "since": "2026-04-27T12:00:00Z",
        "forge": {
            "requests": 31,
            "points": 33,
            "points_left": 4321,
            "points_limit": 5000,
            "resets_at": "2026-04-27T13:00:00Z",
        },
    },
    "slots": {"used": 1, "total": 2},
    "ready": 0,
    "dispatches": [
        {
            "gap": "A-1",
            "state": "exited",
            "pull": {
                "number": 7,
                "state": "open",
                "checks": "failing",
                "failing": ["build", "\x1b[31mred"],
                "draft": True,
                "queued": False,
            },
        }
    ],
}


def test_what_the_forge_grants_and_what_has_failed_is_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    board.show(STATUS)

    shown = capsys.readouterr().out
    assert (
        "the forge was asked for 33 points in 31 requests;"
        " 4321 of 5000 left until 2026-04-27T13:00:00Z\n"
    ) in shown
    assert "#7 open, checks failing (build, [31mred), draft" in shown


@pytest.mark.parametrize("forge", [None, {"points_left": None, "requests": 1, "points": 0}])
def test_a_forge_that_tells_of_no_budget_has_no_line(
    forge: dict[str, Any] | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also of a daemon of an older version."""
    board.show({**STATUS, "daemon": {**STATUS["daemon"], "forge": forge}})

    assert "forge" not in capsys.readouterr().out
