"""What a shim knows of D-Bus; a real manager is asked in the tests of limits in units.

Here are managers that do not behave, as small servers on sockets of their own.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as some

from chump_orchestrator.shim.dbus import ERROR, Connection, Failed
from chump_orchestrator.shim.dbus_wire import put_all, take_all
from chump_orchestrator.shim.scope import Wanted, enter
from tests.adapters.shims import PATIENCE_S

TEXT = some.text(some.characters(exclude_characters="\0", codec="utf-8"))
NUMBER = some.integers(0, 2**32 - 1)
VALUE = some.one_of(
    TEXT.map(lambda text: ("s", text)),
    some.booleans().map(lambda flag: ("b", int(flag))),
    some.integers(0, 2**64 - 1).map(lambda number: ("t", number)),
    some.lists(NUMBER).map(lambda numbers: ("au", numbers)),
)


@given(TEXT, some.lists(some.tuples(TEXT, VALUE)), NUMBER)
def test_what_is_written_is_read_back(
    name: str, properties: list[tuple[str, tuple[str, object]]], number: int
) -> None:
    out = bytearray()
    put_all(out, "sa(sv)u", [name, properties, number])

    values, end = take_all(bytes(out), 0, "sa(sv)u", little=True)

    assert end == len(out)
    # A variant is read as what it holds.
    assert values == [name, [(key, value) for key, (_, value) in properties], number]


@pytest.mark.parametrize(
    ("signature", "values", "written"),
    [
        ("u", [7], b"\7\0\0\0"),
        ("yu", [1, 7], b"\1\0\0\0\7\0\0\0"),
        ("yt", [1, 7], b"\1" + bytes(7) + b"\7" + bytes(7)),
        ("s", ["ab"], b"\2\0\0\0ab\0"),
        ("su", ["ab", 1], b"\2\0\0\0ab\0\0\1\0\0\0"),
        ("g", ["a(sv)"], b"\5a(sv)\0"),
        ("v", [("u", 7)], b"\1u\0\0\7\0\0\0"),
        ("au", [[]], b"\0\0\0\0"),
        ("a(sv)", [[]], b"\0\0\0\0\0\0\0\0"),
        ("at", [[7]], b"\x08\0\0\0\0\0\0\0\7" + bytes(7)),
    ],
)
def test_values_are_written_as_the_specification_has_them(
    signature: str, values: list[object], written: bytes
) -> None:
    out = bytearray()
    put_all(out, signature, values)

    assert bytes(out) == written


def test_the_other_order_of_bytes_is_read_too() -> None:
    written = b"\0\0\0\7" + b"\0\0\0\2ab\0" + b"\0" + b"\0\0\0\x08" + b"\0\0\0\1\0\0\0\2"

    assert take_all(written, 0, "usau", little=False) == ([7, "ab", [1, 2]], len(written))


@pytest.mark.parametrize(
    ("signature", "written"),
    [
        ("u", b"\0\0\0"),
        ("s", b"\xff\0\0\0ab\0"),
        ("s", b"\1\0\0\0ab"),
        ("x", bytes(8)),
        ("a", bytes(8)),
        ("(u", bytes(8)),
        ("v", b"\1x\0" + bytes(16)),
        ("au", b"\x09\0\0\0" + bytes(8)),
    ],
)
def test_nonsense_is_no_value(signature: str, written: bytes) -> None:
    with pytest.raises((ValueError, IndexError, KeyError)):
        take_all(written, 0, signature, little=True)


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Callable[[bytes, bytes], str]]:
    """Makes a server that greets and answers as told, whatever it is asked; its address."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "socket"))
    listening.listen()
    threads: list[threading.Thread] = []

    def serve(greeting: bytes, answer: bytes) -> None:
        connection, _ = listening.accept()
        with connection:
            connection.settimeout(PATIENCE_S)
            assert connection.recv(4096) == (
                b"\0AUTH EXTERNAL " + str(os.getuid()).encode().hex().encode() + b"\r\n"
            )
            connection.sendall(greeting)
            with suppress(ConnectionError):
                asked = connection.recv(4096)
                while answer and b"StartTransientUnit" not in asked:
                    asked += connection.recv(4096)
                connection.sendall(answer)
                if answer and len(answer) < LONG:
                    return
                while connection.recv(4096):
                    pass

    def begin(greeting: bytes, answer: bytes) -> str:
        threads.append(threading.Thread(target=serve, args=(greeting, answer)))
        threads[-1].start()
        return str(tmp_path / "socket")

    yield begin
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    listening.close()


def message(kind: int, fields: bytes, body: bytes, *, little: bool = True) -> bytes:
    """A message as it is sent: a header of these fields, and a body."""
    order: Literal["little", "big"] = "little" if little else "big"
    head = (b"l" if little else b"B") + bytes((kind, 0, 1))
    head += len(body).to_bytes(4, order) + (9).to_bytes(4, order) + len(fields).to_bytes(4, order)
    return head + fields + bytes(-len(fields) % 8) + body


LONG = 100
"""Who has so much to say stays, and the others hang up."""

OK = b"OK 0123456789abcdef0123456789abcdef\r\n"
NOT_ALLOWED = [
    message(
        ERROR,
        b"\5\1u\0" + number.to_bytes(4, "big") + b"\x08\1g\0" + b"\1s\0",
        b"\0\0\0\2no\0",
        little=False,
    )
    for number in (1, 2, 3)
]
"""An answer for each way in which a unit can be asked for."""

WANTED = Wanted("chump-x.scope", "a test", runtime_s=9.0, stop_s=9.0)


@pytest.mark.parametrize(
    ("greeting", "answer", "why"),
    [
        (b"REJECTED\r\n", b"", "it does not let us in"),
        (b"", b"", "in time"),
        (b"x" * 5000, b"", "it does not let us in"),
        (OK, b"", "in time"),
        (OK, b"l" + bytes(7), "it hung up"),
        (OK, message(2, b"\xff" * 40, b""), "its answer makes no sense"),
        (OK, message(2, b"", b"")[:4] + b"\xff\xff\xff\x7f" + bytes(8), "its answer is too long"),
        (OK, b"".join(NOT_ALLOWED), "no"),
    ],
)
def test_a_manager_that_does_not_behave_costs_nothing_but_its_help(
    serving: Callable[[bytes, bytes], str],
    monkeypatch: pytest.MonkeyPatch,
    greeting: bytes,
    answer: bytes,
    why: str,
) -> None:
    if why == "in time":
        monkeypatch.setattr("chump_orchestrator.shim.scope.PATIENCE_S", 0.2)

    with pytest.raises(Failed, match=why):
        enter(serving(greeting, answer), WANTED)


def test_a_manager_that_is_not_there_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(Failed, match="No such file or directory"):
        Connection(str(tmp_path / "nowhere"), time.monotonic() + PATIENCE_S)


def test_an_address_that_is_too_long_is_no_crash(tmp_path: Path) -> None:
    with pytest.raises(Failed):
        Connection(str(tmp_path / ("x" * 200)), time.monotonic() + PATIENCE_S)
