"""The pages over HTTP, asked for through real sockets by friends and by strangers."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
import structlog
from prometheus_client.parser import text_string_to_metric_families

from chump_orchestrator.adapters.host import HostClock
from chump_orchestrator.adapters.http import Metrics, serve, server
from chump_orchestrator.adapters.http.metrics import MOST_BACKENDS
from chump_orchestrator.adapters.http.server import MOST_CONNECTIONS, MOST_HEADER_BYTES
from chump_orchestrator.core.causes import Cause
from chump_orchestrator.core.errors import Unavailable
from chump_orchestrator.core.outcome import OutcomeKind
from chump_orchestrator.core.records import ForgeBudget, Vitals
from chump_orchestrator.core.turns import TurnsTaken

REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "metrics.md"

PATIENCE_S = 20.0

RESETS_AT = datetime(2026, 4, 27, 13, tzinfo=UTC)

VITALS = Vitals(
    is_ready=True,
    is_paused=False,
    running=2,
    overdue=1,
    silent=0,
    slots=4,
    ready=11,
    open_pulls=3,
    is_backlog_stale=False,
    looks=17,
    failed_looks={"unavailable": 2, "rate_limited": 1},
    forge_silent_s=0.0,
    unstored=0,
    parked=5,
    outbox=1,
    budget={
        "usd_today": 3.5,
        "usd_per_day": 3.0,
        "tokens_today": 1200,
        "tokens_per_day": None,
        "expected_usd": 0.25,
        "untold_cost": 2,
        "reached": ["usd_per_day"],
    },
    forge_budget=ForgeBudget(31, 33, 4321, 5000, RESETS_AT),
    turns=TurnsTaken((70, 20, 5, 3, 1, 0, 0, 0, 0, 1), 41.5, 35.25),
)

SETTLED = {
    "gap": "A-1",
    "backend": "claude",
    "outcome": "shipped",
    "cause": None,
    "duration_s": 1834,
    "cost_usd": 0.5,
    "tokens": 1000,
}


class Daemon:
    """Says what the test wants to hear; raises `error` when there is one."""

    def __init__(self) -> None:
        self.why = ""
        self.document: Mapping[str, object] = {"schema_version": 1, "dispatches": []}
        self.error: Exception | None = None
        self.now = VITALS

    def why_not_ready(self) -> str:
        return self.why

    async def state(self) -> Mapping[str, object]:
        if self.error is not None:
            raise self.error
        return self.document

    async def vitals(self) -> Vitals:
        return self.now


@dataclass
class Site:
    """A server that runs, with what it tells of, and all that it logged."""

    address: str
    daemon: Daemon
    metrics: Metrics
    logged: list[Any]

    async def connect(self) -> anyio.abc.ByteStream:
        if self.address.startswith("/"):
            return await anyio.connect_unix(self.address)
        host, _, port = self.address.rpartition(":")
        return await anyio.connect_tcp(host.strip("[]"), int(port))

    async def say(self, request: bytes) -> bytes:
        """Send bytes and return all that comes back until the other end closes."""
        with anyio.fail_after(PATIENCE_S):
            async with await self.connect() as stream:
                # The answer may come before the end of the question.
                with contextlib.suppress(anyio.BrokenResourceError):
                    await stream.send(request)
                return await rest_of(stream)

    async def get(self, path: str, method: str = "GET", **headers: str) -> Answer:
        lines = [f"{method} {path} HTTP/1.1"]
        lines += [f"{k}: {v}" for k, v in ({"host": self.address} | headers).items()]
        return Answer.read(await self.say("\r\n".join([*lines, "", ""]).encode()))

    def events(self) -> list[str]:
        return [one["event"] for one in self.logged]


async def rest_of(stream: anyio.abc.ByteStream) -> bytes:
    found = b""
    try:
        while True:
            found += await stream.receive()
    except (anyio.EndOfStream, anyio.BrokenResourceError):
        return found


@dataclass(frozen=True)
class Answer:
    code: int
    headers: Mapping[str, str]
    body: bytes

    @classmethod
    def read(cls, answer: bytes) -> Answer:
        head, _, body = answer.partition(b"\r\n\r\n")
        first, *lines = head.decode("ascii").split("\r\n")
        assert first.startswith("HTTP/1.1 "), answer[:200]
        headers = dict(line.lower().split(": ", 1) for line in lines)
        return cls(int(first.split()[1]), headers, body)


@asynccontextmanager
async def a_site(listen: str = "", root: Path = Path("/")) -> AsyncIterator[Site]:
    """Serve at a free port of this machine, or at `listen`."""
    listen = listen or f"127.0.0.1:{a_free_port()}"
    daemon, metrics = Daemon(), Metrics("1.2.3")
    with structlog.testing.capture_logs() as logged:
        async with anyio.create_task_group() as group:
            group.start_soon(serve, listen, root, daemon, metrics, HostClock())
            site = Site("", daemon, metrics, logged)
            await eventually(lambda: bool({"http.listening"} & set(site.events())))
            site.address = next(o["address"] for o in logged if o["event"] == "http.listening")
            yield site
            group.cancel_scope.cancel()


def a_free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


async def eventually(claim: Callable[[], bool]) -> None:
    with anyio.fail_after(PATIENCE_S):
        while not claim():  # noqa: ASYNC110 - a server has no event for everything
            await anyio.sleep(0.01)


async def still_serves(site: Site) -> bool:
    return (await site.get("/healthz")).body == b"ok\n"


async def test_the_loop_that_answers_turns() -> None:
    async with a_site() as site:
        answer = await site.get("/healthz")

        assert (answer.code, answer.body) == (200, b"ok\n")


async def test_readiness_says_why_it_is_not_there() -> None:
    async with a_site() as site:
        ready = await site.get("/readyz")
        site.daemon.why = "draining: nothing is started any more"
        unready = await site.get("/readyz")

        assert (ready.code, ready.body) == (200, b"ready\n")
        assert (unready.code, unready.body) == (503, b"draining: nothing is started any more\n")


async def test_the_state_is_the_document_of_status() -> None:
    async with a_site() as site:
        site.daemon.document = {"schema_version": 1, "slots": {"used": 1, "total": 2}}
        answer = await site.get("/api/v1/state")

        assert answer.headers["content-type"] == "application/json"
        assert json.loads(answer.body) == {"schema_version": 1, "slots": {"used": 1, "total": 2}}


async def test_the_state_is_not_told_before_it_is_known() -> None:
    async with a_site() as site:
        site.daemon.error = Unavailable("starting: what an earlier daemon left is being taken up")
        answer = await site.get("/api/v1/state")

        assert answer.code == 503
        assert json.loads(answer.body) == {"error": str(site.daemon.error)}


async def test_a_head_is_the_answer_without_its_body() -> None:
    async with a_site() as site:
        whole, head = await site.get("/readyz"), await site.get("/readyz", "HEAD")

        assert head.body == b""
        assert head.code == 200
        assert head.headers["content-length"] == whole.headers["content-length"] == "6"


async def test_what_is_not_there_is_told_with_what_is() -> None:
    async with a_site() as site:
        for path in ("/", "/healthz/", "//healthz", "/../etc/passwd", "/%2e%2e/x", "/api/v1"):
            answer = await site.get(path)

            assert answer.code == 404, path
            assert b"/healthz, /readyz, /metrics, /api/v1/state" in answer.body


async def test_no_page_may_be_kept_guessed_at_or_read_by_other_sites() -> None:
    async with a_site() as site:
        for path in ("/healthz", "/metrics", "/nowhere"):
            headers = (await site.get(path, origin="http://evil.example")).headers

            assert headers["cache-control"] == "no-store"
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["cross-origin-resource-policy"] == "same-origin"
            assert headers["connection"] == "close"
            assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} [\d:]{8} gmt", headers["date"])
            assert "access-control-allow-origin" not in headers
            assert "server" not in headers


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:80", "127.0.0.1", "127.0.0.1:9464", "127.1.2.3", "[::1]:9464"]
)
async def test_this_machine_is_asked_by_its_own_names(host: str) -> None:
    async with a_site() as site:
        assert (await site.get("/healthz", host=host)).code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:9464",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "evil.example#127.0.0.1",
        "127.0.0.1@evil.example",
        "10.0.0.1",
        "[::2]",
        "",
        "localhost, evil.example",
    ],
)
async def test_a_name_that_only_leads_here_is_none_to_ask_by(host: str) -> None:
    """DNS rebinding: a site's own name that suddenly stands for this machine."""
    async with a_site() as site:
        answer = await site.get("/api/v1/state", host=host)

        assert answer.code == 421
        assert b"schema_version" not in answer.body


async def test_a_request_names_one_host() -> None:
    async with a_site() as site:
        none = await site.say(b"GET /healthz HTTP/1.1\r\n\r\n")
        two = await site.say(b"GET /healthz HTTP/1.1\r\nhost: a\r\nhost: localhost\r\n\r\n")
        old = await site.say(b"GET /healthz HTTP/1.0\r\n\r\n")

        assert [Answer.read(one).code for one in (none, two, old)] == [400, 400, 421]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "XYZZY"])
async def test_nothing_can_be_done_here_but_look(method: str) -> None:
    async with a_site() as site:
        answer = await site.get("/api/v1/state", method)

        assert answer.code == 405
        assert answer.headers["allow"] == "get, head"


@pytest.mark.parametrize(
    "more",
    [
        "content-length: 1000000000000",
        "content-length: 1",
        "transfer-encoding: chunked",
        "content-length: 5\r\nexpect: 100-continue",
    ],
)
async def test_an_answer_waits_for_no_body(more: str) -> None:
    async with a_site() as site:
        request = f"GET /healthz HTTP/1.1\r\nhost: localhost\r\n{more}\r\n\r\n"
        answer = Answer.read(await site.say(request.encode()))

        assert answer.code == 413
        assert answer.body == b"no body is read here\n"


async def test_an_empty_body_is_none() -> None:
    async with a_site() as site:
        assert (await site.get("/healthz", **{"content-length": "0"})).code == 200


@pytest.mark.parametrize(
    "request_",
    [
        b"\0" * 100 + b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)) + b"\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/9.9\r\nhost: localhost\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nx: \x00\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1, 2\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: gzip\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"GET /" + b"a" * 2 * MOST_HEADER_BYTES,
        b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * MOST_HEADER_BYTES,
        b"\r\n" * 5000 + b"x",
    ],
)
async def test_what_is_no_request_harms_nobody(request_: bytes) -> None:
    async with a_site() as site:
        answer = await site.say(request_)

        assert 400 <= Answer.read(answer).code < 600
        assert await still_serves(site)
        assert site.events() == ["http.listening"]


async def test_a_socket_of_the_web_is_not_opened() -> None:
    async with a_site() as site:
        wanted = {"connection": "upgrade", "upgrade": "websocket", "sec-websocket-key": "x"}
        answer = await site.get("/healthz", **wanted)

        assert (answer.code, answer.body) == (200, b"ok\n")


async def test_a_connection_is_for_one_request() -> None:
    async with a_site() as site:
        one = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n"
        answers = await site.say(one * 50)

        assert answers.count(b"HTTP/1.1 200 OK") == 1


async def test_whoever_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "LIFE_S", 0.1)
    async with a_site() as site:
        for beginning in (b"", b"GET /healthz HTTP/1.1\r\nhost: loc"):
            assert await site.say(beginning) == b""


async def test_whoever_does_not_listen_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "LIFE_S", 0.2)
    async with a_site() as site:
        site.daemon.document = {"much": "x" * 50_000_000}
        with anyio.fail_after(PATIENCE_S):
            async with await site.connect() as stream:
                await stream.send(b"GET /api/v1/state HTTP/1.1\r\nhost: localhost\r\n\r\n")
                await eventually(lambda: descriptors_of(site) == 0)
                answer = await rest_of(stream)

        assert 0 < len(answer) < 50_000_000


def descriptors_of(site: Site) -> int:
    """Count the ends of connections that the server, in this process, has open."""
    port = int(site.address.rpartition(":")[2])
    lines = Path("/proc/self/net/tcp").read_text().splitlines()[1:]
    mine = f"0100007F:{port:04X}"
    established = "01"
    return sum(1 for line in lines if line.split()[1] == mine and line.split()[3] == established)


async def test_a_crowd_of_the_silent_keeps_nobody_out() -> None:
    async with a_site() as site:
        crowd = [await site.connect() for _ in range(5 * MOST_CONNECTIONS)]
        try:
            assert await still_serves(site)
            await eventually(lambda: descriptors_of(site) <= MOST_CONNECTIONS)
        finally:
            for one in crowd:
                await one.aclose()


async def test_a_bug_in_one_page_is_told_and_the_others_are_served() -> None:
    async with a_site() as site:
        site.daemon.error = ZeroDivisionError("who would have thought")
        answer = await site.get("/api/v1/state")

        assert answer.code == 500
        assert b"thought" not in answer.body
        assert await still_serves(site)
        (told,) = [one for one in site.logged if one["event"] == "http.failed"]
        assert told["page"] == "/api/v1/state"
        assert told["exc_info"] is site.daemon.error


async def test_a_port_that_is_taken_is_told_once_and_had_when_it_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "FIRST_RETRY_S", 0.01)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        listen = "{}:{}".format(*other.getsockname())
        with structlog.testing.capture_logs() as logged:
            async with anyio.create_task_group() as group:
                group.start_soon(serve, listen, Path("/"), Daemon(), Metrics("1"), HostClock())
                await eventually(lambda: bool(logged))
                await anyio.sleep(0.2)
                other.close()
                await eventually(lambda: len(logged) > 1)
                group.cancel_scope.cancel()

    first, second = logged
    assert (first["event"], first["log_level"]) == ("http.unavailable", "warning")
    assert first["error"] == "Address already in use"
    assert "http.listen" in first["remedy"]
    assert (second["event"], second["address"]) == ("http.listening", listen)


async def test_it_listens_on_the_newer_protocol_too() -> None:
    if not socket.has_ipv6 or not Path("/proc/net/if_inet6").exists():
        pytest.skip("this machine has no IPv6")
    async with a_site(f"[::1]:{a_free_port()}") as site:
        assert site.address.startswith("[::1]:")
        assert await still_serves(site)


async def test_a_socket_in_the_file_system_is_its_owner_s_alone_and_goes_with_the_server(
    tmp_path: Path,
) -> None:
    async with a_site("unix:h.sock", tmp_path) as site:
        mode = (tmp_path / "h.sock").lstat().st_mode

        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600
        assert site.address == str(tmp_path / "h.sock")
        assert (await site.get("/healthz", host="metrics.example")).code == 200
    assert not (tmp_path / "h.sock").exists()


async def test_a_socket_that_was_left_behind_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "h.sock"))

    async with a_site("unix:h.sock", tmp_path) as site:
        assert await still_serves(site)


@pytest.mark.parametrize("there", ["file", "live", "no folder"])
async def test_nothing_else_is_pushed_aside_for_a_socket(tmp_path: Path, there: str) -> None:
    path = tmp_path / "h.sock" if there != "no folder" else tmp_path / "none" / "h.sock"
    with socket.socket(socket.AF_UNIX) as other:
        if there == "file":
            path.write_text("precious")
        elif there == "live":
            other.bind(str(path))
            other.listen()
        with structlog.testing.capture_logs() as logged:
            async with anyio.create_task_group() as group:
                group.start_soon(
                    serve, f"unix:{path}", tmp_path, Daemon(), Metrics("1"), HostClock()
                )
                await eventually(lambda: bool(logged))
                group.cancel_scope.cancel()

        assert logged[0]["event"] == "http.unavailable"
        if there == "file":
            assert path.read_text() == "precious"
        elif there == "live":
            with socket.socket(socket.AF_UNIX) as visitor:
                visitor.connect(str(path))


async def test_a_socket_of_a_later_server_is_left_to_it(tmp_path: Path) -> None:
    async with a_site("unix:h.sock", tmp_path):
        (tmp_path / "h.sock").unlink()
        (tmp_path / "h.sock").write_text("another's")

    assert (tmp_path / "h.sock").read_text() == "another's"


async def test_signals_stay_with_the_daemon() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    async with a_site() as site:
        assert await still_serves(site)
        assert {number: signal.getsignal(number) for number in before} == before


async def test_the_end_waits_for_nobody_and_leaves_nothing(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    async with a_site("unix:h.sock", tmp_path) as site:
        site.daemon.document = {"much": "x" * 50_000_000}
        idle = [await site.connect() for _ in range(4)]
        await idle[0].send(b"GET /api/v1/state HTTP/1.1\r\nhost: localhost\r\n\r\n")
        await idle[0].receive()
        await idle[1].send(b"GET /hea")

    for one in idle:
        await one.aclose()
    await eventually(lambda: len(list(Path("/proc/self/fd").iterdir())) <= before)


async def metrics_of(site: Site, accept: str = "") -> dict[str, Any]:
    text = (await site.get("/metrics", accept=accept)).body.decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


def values(family: Any) -> dict[tuple[str, ...], float]:
    """Return the values of a family by the values of their labels, in the order of their names."""
    return {
        tuple(value for _, value in sorted(sample.labels.items())): sample.value
        for sample in family.samples
    }


async def test_what_is_measured_is_what_happened() -> None:
    async with a_site() as site:
        hear = site.metrics.hear
        hear("dispatch.launched", {"backend": "claude"})
        hear("dispatch.settled", SETTLED)
        hear("dispatch.settled", SETTLED | {"outcome": "killed", "cause": "deadline"})
        hear("dispatch.settled", SETTLED | {"backend": "codex", "cost_usd": None, "tokens": None})
        hear("pull.changed", {"state": "merged"})
        found = await metrics_of(site)

    assert values(found["chump_dispatches_launched"]) == {("claude",): 1}
    assert values(found["chump_dispatches"]) == {
        ("claude", "none", "shipped"): 1,
        ("claude", "deadline", "killed"): 1,
        ("codex", "none", "shipped"): 1,
    }
    assert values(found["chump_cost_usd"]) == {("claude",): 1.0}
    assert values(found["chump_tokens"]) == {("claude",): 2000}
    assert values(found["chump_pull_changes"]) == {("merged",): 1}
    durations = {
        (s.name, s.labels.get("le"), s.labels["outcome"]): s.value
        for s in found["chump_dispatch_duration_seconds"].samples
    }
    assert durations["chump_dispatch_duration_seconds_bucket", "1800.0", "shipped"] == 0
    assert durations["chump_dispatch_duration_seconds_bucket", "3600.0", "shipped"] == 2
    assert durations["chump_dispatch_duration_seconds_sum", None, "killed"] == 1834


async def test_what_is_measured_is_what_is_now() -> None:
    async with a_site() as site:
        found = await metrics_of(site)
        site.daemon.now = replace(VITALS, is_paused=True, parked=None, outbox=None)
        later = await metrics_of(site)

    now = {name: family.samples[0].value for name, family in found.items() if family.samples}
    assert {
        "chump_agents_running": 2,
        "chump_agents_overdue": 1,
        "chump_agents_silent": 0,
        "chump_slots": 4,
        "chump_gaps_ready": 11,
        "chump_gaps_parked": 5,
        "chump_day_spent_usd": 3.5,
        "chump_day_spent_tokens": 1200,
        "chump_day_budget_usd": 3.0,
        "chump_day_budget_tokens": 0,
        "chump_day_expected_usd": 0.25,
        "chump_day_untold_dispatches": 2,
        "chump_budget_reached": 1,
        "chump_pulls_open": 3,
        "chump_daemon_ready": 1,
        "chump_dispatching_paused": 0,
        "chump_backlog_stale": 0,
        "chump_looks": 17,
        "chump_forge_requests": 31,
        "chump_forge_points": 33,
        "chump_forge_requests_remaining": 4321,
        "chump_forge_reset_timestamp_seconds": RESETS_AT.timestamp(),
        "chump_forge_silent_seconds": 0,
        "chump_outbox_reflections": 1,
        "chump_ledger_waiting_records": 0,
        "chump_loop_longest_turn_seconds": 35.25,
    }.items() <= now.items()
    assert values(found["chump_look_failures"]) == {("unavailable",): 2, ("rate_limited",): 1}
    assert now["chump_process_open_fds"] > 3
    assert now["chump_process_resident_memory_bytes"] > 2**20
    assert later["chump_dispatching_paused"].samples[0].value == 1
    assert later.keys() == found.keys() - {"chump_gaps_parked", "chump_outbox_reflections"}


async def test_the_delay_of_the_loop_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "METER_S", 0.01)
    async with a_site() as site:
        found: dict[str, Any] = {}
        with anyio.fail_after(PATIENCE_S):
            while not found or found["chump_loop_lag_seconds"].samples[-2].value < 5:
                found = await metrics_of(site)

    count = {s.name: s.value for s in found["chump_loop_lag_seconds"].samples}
    assert count["chump_loop_lag_seconds_count"] >= 5
    assert count["chump_loop_lag_seconds_sum"] >= 0


async def test_the_turns_of_the_loop_are_told_as_they_were_counted() -> None:
    async with a_site() as site:
        found = (await metrics_of(site))["chump_loop_turn_seconds"]

    by_end = {s.labels.get("le"): s.value for s in found.samples if s.name.endswith("_bucket")}
    assert found.type == "histogram"
    assert [by_end[end] for end in ("0.001", "0.005", "0.01", "0.1", "30.0", "+Inf")] == [
        *(70, 90, 95, 99, 99, 100)
    ]
    assert {s.name: s.value for s in found.samples[-2:]} == {
        "chump_loop_turn_seconds_count": 100,
        "chump_loop_turn_seconds_sum": 41.5,
    }


async def test_no_label_grows_without_end() -> None:
    async with a_site() as site:
        for number in range(10 * MOST_BACKENDS):
            site.metrics.hear("dispatch.launched", {"backend": f"plug-in-{number}"})
            site.metrics.hear(
                "dispatch.settled",
                SETTLED | {"outcome": f"new {number}", "cause": f"new {number}", "backend": "x\n"},
            )
            site.metrics.hear("pull.changed", {"state": f"new {number}"})
        site.metrics.hear("dispatch.settled", {"outcome": "shipped", "duration_s": float("nan")})
        found = await metrics_of(site)

    assert len(values(found["chump_dispatches_launched"])) == MOST_BACKENDS + 1
    assert values(found["chump_dispatches"]) == {
        ("other", "other", "other"): 10 * MOST_BACKENDS,
        ("other", "none", "shipped"): 1,
    }
    assert values(found["chump_pull_changes"]) == {("other",): 10 * MOST_BACKENDS}


@pytest.mark.parametrize("kind", OutcomeKind)
@pytest.mark.parametrize("cause", [None, *Cause])
def test_every_outcome_and_cause_is_counted_under_its_name(
    kind: OutcomeKind, cause: Cause | None
) -> None:
    metrics = Metrics("1")
    told: dict[str, object] = {"outcome": str(kind), "cause": cause and str(cause)}
    metrics.hear("dispatch.settled", SETTLED | told)

    text, _ = metrics.page(VITALS, "")

    labels = f'backend="claude",cause="{cause or "none"}",outcome="{kind}"'
    assert f"chump_dispatches_total{{{labels}}} 1.0" in text.decode()


async def test_the_format_is_the_one_that_was_asked_for() -> None:
    async with a_site() as site:
        plain = await site.get("/metrics")
        wanted = "application/openmetrics-text; version=1.0.0"
        asked = await site.get("/metrics", accept=wanted)

    assert plain.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert asked.headers["content-type"].startswith("application/openmetrics-text")
    assert asked.body.endswith(b"# EOF\n")


async def test_the_reference_has_every_metric_and_no_other() -> None:
    async with a_site() as site:
        text = (await site.get("/metrics")).body.decode()
    told = set(re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE))

    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|", REFERENCE.read_text("utf-8"), re.MULTILINE)

    assert {name for name, _ in rows} == told
    assert {name for name in told if not name.startswith("chump_")} == set()
    kinds = dict(re.findall(r"^# TYPE (\w+) (\w+)", text, re.MULTILINE))
    assert dict(rows) == kinds
    counters = {name for name, kind in kinds.items() if kind == "counter"}
    assert counters == {name for name in kinds if name.endswith("_total")}


def test_a_daemon_that_does_not_serve_imports_nothing_for_it() -> None:
    code = (
        "import sys, chump_orchestrator.wiring, chump_orchestrator.cli.run\n"
        "heavy = ('uvicorn', 'starlette', 'prometheus_client', 'h11')\n"
        "print([name for name in heavy if name in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"
