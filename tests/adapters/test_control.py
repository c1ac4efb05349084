"""The daemon's control socket answers its operator, and nothing that arrives there harms it."""

import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from chump_orchestrator.cli import client
from chump_orchestrator.cli.exits import NoDaemon, NotAuthorised
from chump_orchestrator.core.errors import ConfigError, Refused, Unavailable
from chump_orchestrator.daemon import control
from chump_orchestrator.daemon.address import LONGEST_ADDRESS, address
from chump_orchestrator.daemon.control import MAX_CLIENTS, MAX_REQUEST, serve

STATUS = {"daemon": {"pid": 7}, "dispatches": []}


class Daemon:
    """Keeps what it was asked; raises `error` when there is one."""

    def __init__(self, error: Exception | None = None) -> None:
        self.asked: list[tuple[object, ...]] = []
        self.error = error
        self.held: anyio.Event | None = None

    async def _done(self, *asked: object) -> str:
        self.asked.append(asked)
        if self.held is not None:
            await self.held.wait()
        if self.error is not None:
            raise self.error
        return f"done: {asked[0]}"

    async def status(self) -> Mapping[str, Any]:
        await self._done("status")
        return STATUS

    async def stop(self, gap: str, *, now: bool) -> str:
        return await self._done("stop", gap, now)

    async def drain(self) -> str:
        return await self._done("drain")

    async def reload(self) -> str:
        return await self._done("reload")

    async def pause(self, reason: str) -> str:
        return await self._done("pause", reason)

    async def resume(self) -> str:
        return await self._done("resume")

    async def retry(self, gap: str, *, resume: bool = False) -> str:
        return await self._done("retry", gap, *(["resume"] if resume else []))

    async def release(self, gap: str) -> str:
        return await self._done("release", gap)

    async def why(self, gap: str) -> str:
        return await self._done("why", gap)


@asynccontextmanager
async def served(path: Path, daemon: Daemon) -> AsyncIterator[None]:
    async with anyio.create_task_group() as group:
        await group.start(serve, path, daemon)
        try:
            yield
        finally:
            group.cancel_scope.cancel()


async def eventually(claim: Callable[[], bool]) -> None:
    with anyio.fail_after(20):
        while not claim():  # noqa: ASYNC110 - a twin has no event for everything
            await anyio.sleep(0.01)


async def ask(path: Path, op: str, **fields: object) -> dict[str, Any]:
    return await anyio.to_thread.run_sync(lambda: client.ask(path, op, **fields))


def _said(path: Path, data: bytes, *, hang_up: bool = False) -> list[Any]:
    with socket.socket(socket.AF_UNIX) as connection, address(path) as name:
        connection.settimeout(20)
        connection.connect(name)
        with_answers = connection.makefile("rb")
        connection.sendall(data)
        if hang_up:
            return []
        connection.shutdown(socket.SHUT_WR)
        with with_answers:
            return [json.loads(line) for line in with_answers]


async def say(path: Path, data: bytes, *, hang_up: bool = False) -> list[Any]:
    return await anyio.to_thread.run_sync(lambda: _said(path, data, hang_up=hang_up))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "control.sock"


async def test_every_operation_reaches_the_daemon_with_what_was_asked(path: Path) -> None:
    daemon = Daemon()
    async with served(path, daemon):
        status = await ask(path, "status")
        answers = [
            await ask(path, "stop", gap="COG-1", now=True),
            await ask(path, "stop", gap="COG-1"),
            await ask(path, "drain"),
            await ask(path, "reload"),
            await ask(path, "pause", reason="lunch"),
            await ask(path, "pause"),
            await ask(path, "resume"),
            await ask(path, "retry", gap="COG-1"),
            await ask(path, "release", gap="COG-1"),
            await ask(path, "why", gap="COG-1"),
        ]

    assert status == {"ok": True, "v": 1, "status": STATUS}
    assert answers[0] == {"ok": True, "v": 1, "message": "done: stop"}
    assert daemon.asked == [
        ("status",),
        ("stop", "COG-1", True),
        ("stop", "COG-1", False),
        ("drain",),
        ("reload",),
        ("pause", "lunch"),
        ("pause", ""),
        ("resume",),
        ("retry", "COG-1"),
        ("release", "COG-1"),
        ("why", "COG-1"),
    ]
    assert {str(asked[0]) for asked in daemon.asked} == set(control.OPERATIONS)


@pytest.mark.parametrize(
    ("error", "kind", "raised"),
    [
        (Refused("no such agent"), "refused", Refused),
        (Unavailable("the disk is full"), "unavailable", Unavailable),
        (ConfigError("a.toml:3: wrong"), "configuration", ConfigError),
        (KeyError("oops"), "bug", NoDaemon),
    ],
)
async def test_what_the_daemon_says_to_be_wrong_arrives_as_such(
    path: Path, error: Exception, kind: str, raised: type[Exception]
) -> None:
    async with served(path, Daemon(error)):
        (answer,) = await say(path, b'{"op":"drain"}\n')
        with pytest.raises(raised, match=str(error)):
            await ask(path, "drain")
        (still,) = await say(path, b'{"op":"explode"}\n')

    assert (answer["ok"], answer["kind"]) == (False, kind)
    assert str(error) in answer["error"]
    assert still["kind"] == "unknown"


@pytest.mark.parametrize(
    ("request_", "kind"),
    [
        (b"", "malformed"),
        (b"garbage", "malformed"),
        (b"[]", "malformed"),
        (b"{}", "malformed"),
        (b"\xff\xfe\0", "malformed"),
        (b"[" * 50_000, "malformed"),
        (b'{"op":7}', "malformed"),
        (b'{"op":["status"]}', "malformed"),
        (b'{"op":"explode"}', "unknown"),
        (b'{"op":""}', "unknown"),
        (b'{"op":"stop"}', "malformed"),
        (b'{"op":"stop","gap":"../etc"}', "malformed"),
        (b'{"op":"stop","gap":"COG-1","now":"yes"}', "malformed"),
        (b'{"op":"retry","gap":7}', "malformed"),
        (b'{"op":"pause","reason":{}}', "malformed"),
        (b"x" * (MAX_REQUEST + 1), "malformed"),
    ],
    ids=lambda value: value[:24].decode("ascii", "replace") if isinstance(value, bytes) else None,
)
async def test_garbage_is_answered_and_forgotten(path: Path, request_: bytes, kind: str) -> None:
    daemon = Daemon()
    async with served(path, daemon):
        answers = await say(path, request_ + b"\n")
        await ask(path, "status")

    assert [(answer["ok"], answer["kind"]) for answer in answers] == [(False, kind)]
    assert daemon.asked == [("status",)]


async def test_control_characters_of_a_reason_do_not_reach_the_ledger(path: Path) -> None:
    daemon = Daemon()
    async with served(path, daemon):
        await ask(path, "pause", reason="lunch\x1b[31m\nsoon")

    assert daemon.asked == [("pause", "lunch[31m soon")]


async def test_one_connection_may_ask_much(path: Path) -> None:
    async with served(path, Daemon()):
        answers = await say(path, b'{"op":"status"}\nnonsense\n{"op":"drain"}\n')

    assert [answer["ok"] for answer in answers] == [True, False, True]


async def test_who_hangs_up_in_the_middle_of_a_request_is_forgotten(path: Path) -> None:
    daemon = Daemon()
    async with served(path, daemon):
        assert await say(path, b'{"op":"dra') == []
        await say(path, b'{"op":"drain"}\n', hang_up=True)
        await ask(path, "status")

        await eventually(lambda: ("drain",) in daemon.asked)


async def test_who_says_nothing_is_told_so_and_let_go(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "PATIENCE_S", 0.05)
    async with served(path, Daemon()):
        stream = await anyio.connect_unix(path)
        async with stream:
            told = json.loads(await stream.receive())
            with pytest.raises(anyio.EndOfStream):
                await stream.receive()

    assert told["kind"] == "malformed"


async def test_a_slow_operation_does_not_hold_up_the_others(path: Path) -> None:
    daemon = Daemon()
    daemon.held = anyio.Event()
    async with served(path, daemon), anyio.create_task_group() as group:
        group.start_soon(ask, path, "drain")
        await eventually(lambda: bool(daemon.asked))
        held, daemon.held = daemon.held, None
        answer = await ask(path, "status")
        held.set()

    assert answer["ok"]


async def is_answered(path: Path) -> bool:
    try:
        return bool((await ask(path, "status"))["ok"])
    except NoDaemon:
        return False


async def test_whoever_has_been_silent_for_longest_makes_room(path: Path) -> None:
    """Connections that say nothing, or half a line, shut nobody out."""
    async with served(path, Daemon()):
        streams = [await anyio.connect_unix(path) for _ in range(MAX_CLIENTS)]
        for stream in streams:
            await stream.send(b'{"op":"sta')

        assert (await ask(path, "status"))["ok"]
        with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)), anyio.fail_after(5):
            await streams[0].receive()
        await streams[-1].send(b'tus"}\n')
        assert json.loads(await streams[-1].receive())["ok"]
        for stream in streams:
            await stream.aclose()


async def test_more_clients_than_are_served_are_closed_unheard(path: Path) -> None:
    """While all that are served wait for an answer."""
    daemon = Daemon()
    answering = anyio.Event()

    async def slowly(reason: str) -> str:
        await answering.wait()
        return reason

    daemon.pause = slowly  # type: ignore[method-assign]
    async with served(path, daemon):
        streams = [await anyio.connect_unix(path) for _ in range(MAX_CLIENTS)]
        for stream in streams:
            await stream.send(b'{"op":"pause"}\n')
        with anyio.fail_after(20):
            while await is_answered(path):  # noqa: ASYNC110 - until all are being served
                await anyio.sleep(0.01)

        answering.set()
        with anyio.fail_after(20):
            while not await is_answered(path):  # noqa: ASYNC110 - until that was seen
                await anyio.sleep(0.01)
        for stream in streams:
            await stream.aclose()


async def test_nobody_else_can_reach_the_socket(path: Path) -> None:
    async with served(path, Daemon()):
        folder, file = path.parent.stat(), path.stat()

    assert stat.S_IMODE(folder.st_mode) == 0o700
    assert stat.S_IMODE(file.st_mode) == 0o600


ASK_AS_NOBODY = """
import os, socket, sys
os.setgid(65534); os.setuid(65534)
with socket.socket(socket.AF_UNIX) as s:
    s.connect(sys.argv[1])
    s.sendall(b'{"op":"drain"}\\n')
    print(s.recv(4096).decode())
"""


@pytest.mark.root
@pytest.mark.skipif(sys.platform != "linux", reason="user 65534 is Linux's nobody")
async def test_another_user_who_gets_through_all_the_same_is_refused() -> None:
    daemon = Daemon()
    # A folder of pytest's own would keep nobody out of the way there already.
    folder = Path("/tmp") / f"control-{os.getpid()}"
    path = folder / "control.sock"
    try:
        async with served(path, daemon):
            folder.chmod(0o755)
            path.chmod(0o666)
            done = await anyio.run_process([sys.executable, "-c", ASK_AS_NOBODY, str(path)])
    finally:
        folder.rmdir()

    assert json.loads(done.stdout)["kind"] == "unauthorised"
    assert daemon.asked == []


def test_the_word_unauthorised_becomes_the_clients_error() -> None:
    with pytest.raises(NotAuthorised):
        raise client._raised("unauthorised", "another user")


async def test_a_socket_that_an_earlier_daemon_left_is_replaced(path: Path) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))

    async with served(path, Daemon()):
        answer = await ask(path, "status")

    assert answer["ok"]


async def test_a_file_that_is_no_socket_is_not_deleted(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("precious")

    with pytest.raises(ConfigError, match="in the way"):
        await serve(path, Daemon())

    assert path.read_text() == "precious"


async def test_the_socket_is_gone_when_the_daemon_is(path: Path) -> None:
    async with served(path, Daemon()):
        assert path.exists()

    assert not path.exists()
    with pytest.raises(client.NotRunning):
        await ask(path, "status")


async def test_the_socket_of_a_successor_stays(path: Path) -> None:
    async with served(path, Daemon()):
        path.unlink()
        with socket.socket(socket.AF_UNIX) as successor:
            successor.bind(str(path))

    assert path.exists()


async def test_a_path_longer_than_a_socket_may_have_works(tmp_path: Path) -> None:
    path = tmp_path / ("long" * 20) / ("longer" * 20) / "control.sock"
    path.parent.mkdir(parents=True)

    async with served(path, Daemon()):
        answer = await ask(path, "status")
        is_there = path.is_socket()

    assert answer["ok"]
    assert is_there
    assert not path.exists()


def test_the_short_name_of_a_long_path_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    path = tmp_path / ("long" * 50) / "control.sock"
    path.parent.mkdir()
    before = set(tmp_path.iterdir()) | set(Path("/tmp").glob("chump-*"))

    with address(path) as name:
        length = len(os.fsencode(name))

    assert length <= LONGEST_ADDRESS
    assert set(tmp_path.iterdir()) | set(Path("/tmp").glob("chump-*")) <= before


async def test_a_socket_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(Unavailable, match="cannot be made"):
        await serve(tmp_path / "file" / "control.sock", Daemon())


async def test_a_daemon_that_hangs_is_no_answer(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "PATIENCE_S", 0.2)
    daemon = Daemon()
    daemon.held = anyio.Event()
    async with served(path, daemon):
        with pytest.raises(NoDaemon, match="does not answer"):
            await ask(path, "status")


async def test_a_daemon_that_dies_over_a_request_is_no_answer(path: Path) -> None:
    path.parent.mkdir()
    script = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen();"
        "print('up', flush=True); c, _ = s.accept(); c.recv(4096); c.close()"
    )
    dying = subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True
    )
    with dying:
        assert dying.stdout is not None
        dying.stdout.readline()
        with pytest.raises(NoDaemon, match="nobody understands"):
            await ask(path, "status")
