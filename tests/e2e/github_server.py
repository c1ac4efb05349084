"""A GitHub Enterprise server on the loopback interface that the real `gh` takes for one.

It speaks TLS, with a certificate of the tests' own authority; `gh` reaches it through a proxy on
the same port, so that no name has to be resolved. What it answers is computed as for the small
`gh`.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from tests.adapters.forge_graphql import answered

HOST = "ghe.example.com"
TOKEN = "thisisasecret"

HTML = b"<!DOCTYPE html>\n<html><body>Unicorn! \xf0\x9f\xa6\x84</body></html>\n"


def make_authority(folder: Path) -> None:
    """Make `ca.pem`, and a certificate `server.pem` by it, with `openssl`."""
    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    for command in (
        (
            *("req", "-x509", *new_key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2"),
            *("-subj", "/CN=Authority of a test", "-addext", "basicConstraints=critical,CA:TRUE"),
        ),
        ("req", *new_key, "-keyout", "server.key", "-out", "server.csr", "-subj", f"/CN={HOST}"),
        (
            *("x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key"),
            *("-CAcreateserial", "-days", "2", "-out", "server.pem", "-extfile", "names"),
        ),
    ):
        (folder / "names").write_text(f"subjectAltName=DNS:{HOST},DNS:api.github.com\n")
        done = subprocess.run(
            [shutil.which("openssl") or "openssl", *command],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


class GitHub:
    """The server as a test sees it: what it knows, how it answers, what it was asked."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        make_authority(folder)
        self.folder = folder
        self.forge: dict[str, Any] = {
            "repository": "acme/anvil",
            "requests": [],
            "rate": {"limit": 5000, "remaining": 4900, "resetAt": "2026-04-27T12:30:00Z"},
            "lacking": [],
        }
        self.answer = "ok"
        self.asked: list[dict[str, Any]] = []
        self.points = 0
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(folder / "server.pem", folder / "server.key")
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._is_over = threading.Event()

    @property
    def env(self) -> dict[str, str]:
        """What `gh` has to be told to find it, and to be let in."""
        home = str(self.folder)
        port = self._listening.getsockname()[1]
        return {
            "HOME": home,
            "GH_CONFIG_DIR": home,
            "GH_REPO": f"{HOST}/acme/anvil",
            "GH_ENTERPRISE_TOKEN": TOKEN,
            "HTTPS_PROXY": f"http://127.0.0.1:{port}",
            "SSL_CERT_FILE": str(self.folder / "ca.pem"),
        }

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        """Serve in a thread; each connection has one of its own."""
        thread = threading.Thread(target=self._accept, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._is_over.set()
            with contextlib.suppress(OSError):
                self._listening.shutdown(socket.SHUT_RDWR)
            self._listening.close()
            thread.join(5)

    def _accept(self) -> None:
        while not self._is_over.is_set():
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._proxy, args=(connection,), daemon=True).start()

    def _proxy(self, connection: socket.socket) -> None:
        """Take a CONNECT, and be the server behind it, whichever was asked for."""
        with connection, contextlib.suppress(OSError, ValueError):
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += connection.recv(1)
            if not head.startswith(f"CONNECT {HOST}:443 ".encode()):
                connection.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")
                return
            connection.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
            with self._tls.wrap_socket(connection, server_side=True) as secure:
                _Handler(secure, self)


class _Handler(BaseHTTPRequestHandler):
    """Answers one question, and closes the connection."""

    protocol_version = "HTTP/1.1"

    def __init__(self, secure: ssl.SSLSocket, github: GitHub) -> None:
        self.github = github
        super().__init__(secure, ("127.0.0.1", 0), None)  # type: ignore[arg-type]

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        read = b""
        while size := int(self.rfile.readline(), 16):
            read += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return read

    def do_POST(self) -> None:
        github, body = self.github, json.loads(self.body())
        asked = {"path": self.path, "token": self.headers["Authorization"], "body": body}
        github.asked.append(asked)
        self.close_connection = True
        match github.answer:
            case "401":
                self.say(401, b'{"message":"Bad credentials"}')
            case "403":
                self.say(403, b'{"message":"Resource not accessible by personal access token"}')
            case "502":
                self.say(502, HTML, {"Content-Type": "text/html"})
            case "429":
                self.say(429, b'{"message":"Too many"}', {"Retry-After": "77"})
            case "secondary":
                text = b'{"message":"You have exceeded a secondary rate limit."}'
                self.say(403, text, {"Retry-After": "88"})
            case "rate-limited":
                text = b'{"errors":[{"type":"RATE_LIMITED","message":"API rate limit exceeded"}]}'
                reset = str(int(time.time()) + 1200)
                self.say(200, text, {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": reset})
            case "html":
                self.say(200, HTML, {"Content-Type": "text/html"})
            case "empty":
                self.say(200, b"")
            case "{}":
                self.say(200, b"{}")
            case "null":
                self.say(200, b'{"data":null}')
            case "cut":
                self.say(200, b'{"data":{"repo', {"Content-Length": "5000"})
            case "silent":
                github._is_over.wait(60)
            case _:
                answer, cost = answered(body, github.forge)
                github.points += cost
                self.say(200, json.dumps(answer).encode())

    def say(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        told = {"Content-Type": "application/json; charset=utf-8", "Content-Length": str(len(body))}
        self.send_response(status)
        for name, value in {**told, **(headers or {}), "Connection": "close"}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
