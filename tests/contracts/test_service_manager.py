"""What every service manager promises: systemd's socket and its twin (`daemon.world`)."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from chump_orchestrator.adapters.service_manager import NotifySocket
from chump_orchestrator.core.machine import ServiceManager
from chump_orchestrator.testing import MemoryManager


@dataclass
class Manager:
    """What is told to `told_to` comes out of `heard`, once; `deafen` has it take nothing more."""

    told_to: ServiceManager
    heard: Callable[[], list[str]]
    deafen: Callable[[], None]


@pytest.fixture(params=["socket", "memory"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    """A manager that waits 20 s for a sign of life, of the kind that the test is run against."""
    patience = timedelta(seconds=20)
    if request.param == "memory":
        twin = MemoryManager(patience)

        def taken() -> list[str]:
            told, twin.told = twin.told, []
            return told

        yield Manager(twin, taken, lambda: setattr(twin, "is_deaf", True))
        return
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(path))
        listening.setblocking(False)
        ours = NotifySocket(str(path), patience)

        def received() -> list[str]:
            found: list[str] = []
            while True:
                try:
                    found.append(listening.recv(65536).decode())
                except BlockingIOError:
                    return [re.sub(r"\nMONOTONIC_USEC=\d+$", "", text) for text in found]

        yield Manager(ours, received, path.unlink)
        ours.close()


def test_it_is_told_in_the_words_of_sd_notify(manager: Manager) -> None:
    told_to = manager.told_to

    taken = [
        told_to.ready(),
        told_to.alive(),
        told_to.status("2/4 running"),
        told_to.reloading(),
        told_to.stopping(),
        told_to.extend(timedelta(seconds=30)),
    ]

    assert taken == [True] * 6
    assert manager.heard() == [
        "READY=1",
        "WATCHDOG=1",
        "STATUS=2/4 running",
        "RELOADING=1",
        "STOPPING=1",
        "EXTEND_TIMEOUT_USEC=30000000",
    ]


def test_it_says_how_long_it_waits_for_a_sign_of_life(manager: Manager) -> None:
    assert manager.told_to.watchdog == timedelta(seconds=20)


def test_a_status_cannot_tell_anything_else(manager: Manager) -> None:
    """What an agent or a forge said may be part of it."""
    manager.told_to.status("quiet\nREADY=1\r\x1b[2Jnow")

    assert manager.heard() == ["STATUS=quiet READY=1 [2Jnow"]


def test_one_that_takes_nothing_is_no_error(manager: Manager) -> None:
    manager.told_to.ready()
    manager.deafen()

    assert manager.told_to.alive() is False
    assert manager.told_to.status("x") is False
    assert manager.heard() == ["READY=1"]
