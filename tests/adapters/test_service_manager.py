"""What is told to systemd, over a real socket, and what of it the environment decides."""

from __future__ import annotations

import os
import re
import select
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from structlog.testing import capture_logs

from chump_orchestrator.adapters.service_manager import NotifySocket
from chump_orchestrator.daemon.orchestrator import Manner, Orchestrator
from chump_orchestrator.daemon.roster import Assignment
from tests.builders import a_backlog
from tests.daemon.twins import a_scene


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.settimeout(10)
        yield made


def heard(listening: socket.socket) -> str:
    return listening.recv(65536).decode()


def test_the_socket_is_the_one_that_the_environment_names(
    listening: socket.socket, tmp_path: Path
) -> None:
    listening.bind(str(tmp_path / "notify"))
    manager = NotifySocket.from_environment({"NOTIFY_SOCKET": str(tmp_path / "notify")})

    assert manager is not None
    with closing(manager):
        manager.ready()
        assert heard(listening) == "READY=1"


@pytest.mark.skipif(not hasattr(socket, "SO_PASSCRED"), reason="abstract sockets are Linux's")
def test_an_at_sign_names_an_abstract_socket(listening: socket.socket) -> None:
    name = f"chump-test-{uuid.uuid4().hex}"
    listening.bind(f"\0{name}")
    manager = NotifySocket.from_environment({"NOTIFY_SOCKET": f"@{name}"})

    assert manager is not None
    with closing(manager):
        manager.alive()
        assert heard(listening) == "WATCHDOG=1"


@pytest.mark.skipif(not hasattr(socket, "SO_PASSCRED"), reason="credentials are Linux's")
def test_it_is_this_process_that_speaks(listening: socket.socket, tmp_path: Path) -> None:
    """A manager that listens to the main process alone goes by what the kernel says of it."""
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    listening.bind(str(tmp_path / "notify"))

    with closing(NotifySocket(str(tmp_path / "notify"))) as manager:
        manager.ready()
        _, [(level, kind, credentials)], _, _ = listening.recvmsg(4096, socket.CMSG_SPACE(12))

    assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS)
    assert int.from_bytes(credentials[:4], "little") == os.getpid()


@pytest.mark.parametrize("address", ["", "/", "@", "notify", "vsock:2:1234", "host:1"])
def test_there_may_be_nobody_to_tell(address: str) -> None:
    with capture_logs() as said:
        assert NotifySocket.from_environment({"NOTIFY_SOCKET": address}) is None

    assert [one["event"] for one in said] == (["service.unreachable"] if address else [])


def test_without_a_variable_there_is_nobody_to_tell() -> None:
    assert NotifySocket.from_environment({}) is None


@pytest.mark.parametrize(
    ("variables", "watchdog"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "60000000"}, timedelta(seconds=60)),
        ({"WATCHDOG_USEC": "250000"}, timedelta(milliseconds=250)),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())}, timedelta(seconds=60)),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "9" * 30}, None),
    ],
)
def test_signs_of_life_are_for_whoever_is_asked_for_them(
    variables: dict[str, str], watchdog: timedelta | None
) -> None:
    manager = NotifySocket.from_environment({"NOTIFY_SOCKET": "/run/x", **variables})

    assert manager is not None
    with closing(manager):
        assert manager.watchdog == watchdog


def test_a_reload_is_told_with_the_time_at_which_it_began(
    listening: socket.socket, tmp_path: Path
) -> None:
    """By the monotonic clock, in microseconds, as systemd asks for it."""
    listening.bind(str(tmp_path / "notify"))

    with closing(NotifySocket(str(tmp_path / "notify"))) as manager:
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        manager.reloading()
        after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000

    told = re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=(\d+)", heard(listening))
    assert told is not None
    assert before <= int(told[1]) <= after


def test_a_manager_that_does_not_read_holds_nobody_up(
    listening: socket.socket, tmp_path: Path
) -> None:
    listening.bind(str(tmp_path / "notify"))

    with closing(NotifySocket(str(tmp_path / "notify"))) as manager:
        told = 0
        while manager.alive():
            told += 1
            assert told < 1_000_000
        for _ in range(told):
            heard(listening)

        assert manager.ready() is True
        assert heard(listening) == "READY=1"


def test_a_manager_that_has_gone_is_told_of_once(listening: socket.socket, tmp_path: Path) -> None:
    with closing(NotifySocket(str(tmp_path / "notify"))) as manager, capture_logs() as said:
        manager.alive()
        manager.alive()
        listening.bind(str(tmp_path / "notify"))
        manager.alive()
        (tmp_path / "notify").unlink()
        manager.alive()

    assert [one["event"] for one in said] == ["service.unreachable"] * 2


async def test_a_loop_that_is_blocked_gives_no_sign_of_life(
    listening: socket.socket, tmp_path: Path
) -> None:
    """And gives one again as soon as it turns."""
    listening.bind(str(tmp_path / "notify"))
    scene = a_scene(a_backlog())
    patience = timedelta(milliseconds=100)
    with closing(NotifySocket(str(tmp_path / "notify"), patience)) as manager:
        scene.world.manager = manager
        daemon = Orchestrator(scene.world, scene.source, Assignment())
        async with anyio.create_task_group() as group:
            group.start_soon(daemon.run)
            while await anyio.to_thread.run_sync(heard, listening) != "READY=1":
                pass

            while is_waiting(listening):
                heard(listening)
            time.sleep(10 * patience.total_seconds())  # blocks the loop
            during = is_waiting(listening)
            while await anyio.to_thread.run_sync(heard, listening) != "WATCHDOG=1":
                pass
            daemon.end(Manner.DETACH)

    assert not during


def is_waiting(listening: socket.socket) -> bool:
    """Whether something was told that nobody has read yet."""
    return bool(select.select([listening], [], [], 0)[0])
