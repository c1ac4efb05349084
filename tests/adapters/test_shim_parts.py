"""The parts of a shim that can be tried without one."""

import os
import signal
import subprocess
import sys

import pytest

from chump_orchestrator.shim import macos
from chump_orchestrator.shim.ladder import Ladder

INT, TERM, HUP = signal.SIGINT, signal.SIGTERM, signal.SIGHUP


def rungs(ladder: Ladder, until: int) -> list[tuple[int, signal.Signals, bool]]:
    return [(now, *rung) for now in range(until) for rung in ladder.due(now)]


@pytest.mark.parametrize(
    ("signals", "expected"),
    [
        ((INT, TERM), [(5, INT, False), (15, TERM, True)]),
        ((TERM,), [(5, TERM, False)]),
        ((HUP, INT, TERM), [(5, HUP, False), (15, INT, True), (25, TERM, True)]),
        ((), []),
    ],
)
def test_rungs_come_in_thirds_of_the_grace_and_only_once(
    signals: tuple[signal.Signals, ...], expected: list[tuple[int, signal.Signals, bool]]
) -> None:
    """Behaviour P2."""
    ladder = Ladder(signals, 30.0)
    ladder.begin("deadline", 5.0)

    assert rungs(ladder, 100) == expected
    assert ladder.kill_at == 35.0


def test_a_ladder_is_begun_once() -> None:
    ladder = Ladder((INT, TERM), 30.0)
    ladder.begin("operator", 5.0)
    ladder.begin("deadline", 20.0)

    assert (ladder.reason, ladder.kill_at) == ("operator", 35.0)


def test_what_an_agent_leaves_gets_what_is_left_of_the_grace() -> None:
    ladder = Ladder((INT, TERM), 30.0)
    ladder.begin("operator", 5.0)
    ladder.leave_grace(15.0)

    assert ladder.kill_at == 35.0
    assert rungs(ladder, 100) == []


def test_what_an_agent_leaves_by_itself_gets_all_of_the_grace() -> None:
    ladder = Ladder((INT, TERM), 30.0)
    ladder.leave_grace(15.0)

    assert (ladder.reason, ladder.kill_at) == (None, 45.0)


def test_processes_are_told_apart_in_the_listing_of_macos() -> None:
    listing = (
        "  100   100 S    /usr/bin/agent -x PATH=/bin CHUMP_DISPATCH_ID=d-1 HOME=/\n"
        "  101   100 S    (in the group, environment hidden)\n"
        "  102   102 S+   /bin/sleep 600 CHUMP_DISPATCH_ID=d-1\n"
        "  103   103 S    /bin/sleep 600 CHUMP_DISPATCH_ID=d-10\n"
        "  104   100 Z    (agent)\n"
        "  105   105 S    python -I -S shim CHUMP_DISPATCH_ID=d-1\n"
        "garbage\n"
        "\n"
    )

    ours = macos.parse_ps(listing, group=100, marker="CHUMP_DISPATCH_ID=d-1", own=105)
    assert ours == [100, 101, 102]


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_children_are_found_with_and_without_the_kernels_list() -> None:
    from chump_orchestrator.shim import linux  # noqa: PLC0415 - not elsewhere

    with subprocess.Popen(["/bin/sleep", "600"]) as child:
        try:
            listed, searched = linux._children(os.getpid()), linux._children_by_search(os.getpid())
            alive = linux.is_alive(child.pid)
        finally:
            child.kill()
        child_ended = linux.has_ended(child.pid)

    assert child.pid in listed
    assert set(searched) == set(listed)
    assert alive
    assert child_ended in (True, False)
