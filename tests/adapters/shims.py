"""Launches real shims over small agents, and looks at what becomes of them."""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

SHIM = Path(__file__).parents[2] / "chump_orchestrator" / "shim"
PATIENCE_S = 30.0
"""How long anything is waited for before a test fails: far longer than it takes."""

_PYTHON = (sys.executable, "-I", "-S")
_MARKED = "CHUMP_DISPATCH_ID"


def python(script: str, *arguments: str) -> list[str]:
    """The command line of an agent that is a few lines of Python."""
    return [*_PYTHON, "-c", script, *arguments]


def eventually(claim: Callable[[], Any], what: str = "the claim") -> Any:
    """Wait until a claim holds, and give its value."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        if value := claim():
            return value
        time.sleep(0.01)
    raise AssertionError(f"{what} did not come true within {PATIENCE_S:.0f} s")


def marked(dispatch: str) -> list[int]:
    """The living processes that carry the marker of a dispatch in their environment."""
    wanted = f"{_MARKED}={dispatch}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def at_work_on(directory: Path) -> list[int]:
    """The processes that have the folder of a dispatch on their command line."""
    wanted = os.fsencode(directory)
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if wanted in (entry / "cmdline").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


class Shim:
    """One dispatch: a directory with an order, and the shim that was started on it."""

    def __init__(self, directory: Path, dispatch: str) -> None:
        self.directory = directory
        self.dispatch = dispatch
        self.process: subprocess.Popen[bytes] | None = None
        """What was started; it leaves as soon as it has forked the shim."""

    def order(self, argv: list[str], *, prompt: bytes | None = None, **changes: object) -> None:
        """Write the order; keywords replace its fields."""
        self.directory.mkdir(mode=0o700, exist_ok=True)
        if prompt is not None:
            (self.directory / "prompt.txt").write_bytes(prompt)
        spec: dict[str, object] = {
            "v": 1,
            "dispatch": self.dispatch,
            "gap": "COG-001",
            "argv": argv,
            "cwd": str(self.directory),
            "stdin": "null" if prompt is None else "prompt",
            "prompt": "prompt.txt",
            "hard_s": 60.0,
            "grace_s": 5.0,
            "stop_signals": ["INT", "TERM"],
            "head_bytes": 262_144,
            "ring_bytes": 8_388_608,
            **changes,
        }
        (self.directory / "spec.json").write_text(json.dumps(spec))

    def begin(
        self,
        *,
        env: Mapping[str, str] | None = None,
        redact: list[str] | None = None,
        told: bytes | None = None,
    ) -> None:
        """Start the shim and tell it the environment, or the very bytes of `told`."""
        environment = {**os.environ, _MARKED: self.dispatch, **(env or {})}
        if told is None:
            told = json.dumps({"env": environment, "redact": redact or []}).encode()
        with (self.directory / "shim.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*_PYTHON, str(SHIM / "__main__.py"), str(self.directory)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(told)
            self.process.stdin.close()
        except BrokenPipeError:
            pass  # it has left already

    def start(self, argv: list[str], **changes: Any) -> dict[str, Any]:
        """Order, begin, and give what the shim says first."""
        known = {key: changes.pop(key) for key in ("env", "redact", "told") if key in changes}
        self.order(argv, **changes)
        self.begin(**known)
        return self.said()

    def said(self) -> dict[str, Any]:
        """The one line that the shim says to whoever launched it."""
        assert self.process is not None
        assert self.process.stdout is not None
        line: dict[str, Any] = json.loads(self.process.stdout.readline())
        return line

    @property
    def pid(self) -> int:
        """The process id of a shim whose agent is on record."""
        pid: int = self.read("running.json")["shim_pid"]
        return pid

    def ends(self) -> None:
        """Wait until the shim, which has taken the lock or left by now, has gone."""
        assert self.process is not None
        assert self.process.wait(PATIENCE_S) == 0
        eventually(self._is_free, "the shim's end")
        eventually(lambda: not at_work_on(self.directory), "the shim's end")

    def _is_free(self) -> bool:
        with (self.directory / "lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

    def read(self, name: str) -> dict[str, Any]:
        """One of its JSON files."""
        content: dict[str, Any] = json.loads((self.directory / name).read_bytes())
        return content

    def exit(self) -> dict[str, Any]:
        """Wait until the shim has left, and give its record."""
        record = self.directory / "exit.json"
        eventually(record.exists, f"a record; {(self.directory / 'shim.log').read_text()!r}")
        self.ends()
        return self.read("exit.json")

    def log(self, stream: str) -> bytes:
        """All that is kept of a stream, in order."""
        names = sorted(self.directory.glob(f"{stream}.*.log"))
        return b"".join(path.read_bytes() for path in [self.directory / f"{stream}.log", *names])

    def connect(self) -> "Line":
        """Connect to the control socket."""
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(PATIENCE_S)
        # Through a descriptor, since a path may be longer than an address has room for.
        directory = os.open(self.directory, os.O_PATH)
        try:
            connection.connect(f"/proc/self/fd/{directory}/ctl.sock")
        finally:
            os.close(directory)
        return Line(connection)

    def ask(self, **request: object) -> dict[str, Any]:
        """Ask one thing on a connection of its own."""
        with self.connect() as line:
            return line.ask(**request)

    def clean(self) -> None:
        """End whatever is left of it."""
        if self.process is not None:
            if self.process.poll() is None:
                self.process.kill()
            self.process.wait(PATIENCE_S)
            if self.process.stdout is not None:
                self.process.stdout.close()
        until = time.monotonic() + PATIENCE_S
        while pids := [*at_work_on(self.directory), *marked(self.dispatch)]:
            assert time.monotonic() < until, f"cannot be killed: {pids}"
            for number in (signal.SIGSTOP, signal.SIGKILL):
                for pid in pids:
                    with suppress(ProcessLookupError):
                        os.kill(pid, number)


class Line:
    """A connection to a control socket."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._reader = connection.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()
        self.connection.close()

    def ask(self, **request: object) -> dict[str, Any]:
        """Ask, and give the answer."""
        self.say(json.dumps(request).encode() + b"\n")
        return self.hear()

    def say(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.connection.sendall(data)

    def hear(self) -> dict[str, Any]:
        """The next line; empty when the shim has closed the connection."""
        line = self._reader.readline()
        heard: dict[str, Any] = json.loads(line) if line else {}
        return heard

    def frames(self) -> Iterator[tuple[int, bytes]]:
        """What is followed, with offsets, until it is said to end."""
        while (header := self.hear()) and "end" not in header:
            yield header["offset"], self._reader.read(header["length"])
