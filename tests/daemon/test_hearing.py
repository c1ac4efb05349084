"""What agents tell while they work, and what the daemon makes of it, in virtual time (A3, X4)."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import anyio
import pytest

from chump_orchestrator.adapters.backends import Claude
from chump_orchestrator.core.brakes import RetryPolicy
from chump_orchestrator.core.causes import Cause
from chump_orchestrator.core.dispatch import Command
from chump_orchestrator.core.errors import ConfigError
from chump_orchestrator.core.gap import Gap
from chump_orchestrator.core.outcome import OutcomeKind, PullState
from chump_orchestrator.core.ports import Backend
from chump_orchestrator.core.records import Record
from chump_orchestrator.core.routing import Route, RoutePolicy, RoutingTable
from chump_orchestrator.core.testimony import Progress, Reader, Report, Usage
from chump_orchestrator.daemon.operations import Operator
from chump_orchestrator.daemon.orchestrator import Manner, Orchestrator
from chump_orchestrator.daemon.roster import Assignment
from tests.builders import NOW, a_backlog, a_gap
from tests.daemon.twins import PlainBackend, Scene, a_scene

pytestmark = pytest.mark.looptime

LIMIT = "You've hit your session limit · resets 5pm (Europe/Berlin)"
"""It is noon in UTC when a test begins: three hours to go."""


def a_streaming_scene(*gaps: Gap, **policies: object) -> Scene:
    scene = a_scene(a_backlog(*(gaps or (a_gap("A-1"),))), **policies)
    scene.world.backend = lambda _name: Claude()
    scene.world.zone = lambda name: ZoneInfo(name) if name else UTC
    return scene


@asynccontextmanager
async def daemon(scene: Scene) -> AsyncIterator[Orchestrator]:
    orchestrator = Orchestrator(scene.world, scene.source, Assignment())
    async with anyio.create_task_group() as group:
        group.start_soon(orchestrator.run)
        await anyio.sleep(1)
        yield orchestrator
        orchestrator.end(Manner.DETACH)


def event(kind: str, **fields: object) -> str:
    return json.dumps({"type": kind, "session_id": "its-own", **fields})


def init() -> str:
    return event("system", subtype="init", model="large")


def says(text: str, number: int = 1) -> str:
    message = {
        "id": f"m-{number}",
        "model": "large",
        "content": [{"type": "text", "text": text}],
        "usage": {"input_tokens": 100, "output_tokens": 1},
    }
    return event("assistant", message=message, parent_tool_use_id=None)


def calls(tool: str, number: int = 1) -> str:
    message = {
        "id": f"m-{number}",
        "model": "large",
        "content": [{"type": "tool_use", "name": tool, "input": {}}],
        "usage": {"input_tokens": 100, "output_tokens": 1},
    }
    return event("assistant", message=message, parent_tool_use_id=None)


def gets(output: str) -> str:
    part = {"type": "tool_result", "content": output}
    return event("user", message={"role": "user", "content": [part]})


def retries(attempt: int) -> str:
    told = {"attempt": attempt, "max_retries": 8, "error_status": 529, "error": "overloaded"}
    return event("system", subtype="api_retry", **told)


def result(text: str, *, is_error: bool = False) -> str:
    usage = {"input_tokens": 900, "output_tokens": 100}
    fields = {"is_error": is_error, "result": text, "num_turns": 4, "total_cost_usd": 0.25}
    return event("result", subtype="success", usage=usage, **fields)


async def the_record(scene: Scene) -> Record:
    """Return that of the first dispatch."""
    return (await scene.ledger.latest(100))[-1]


async def outcome_of(scene: Scene) -> OutcomeKind | None:
    outcome = (await the_record(scene)).outcome
    return outcome.kind if outcome else None


async def shown(running: Orchestrator) -> dict[str, Any]:
    """Return the one dispatch of a status."""
    status: dict[str, Any] = await Operator(running).status()
    (dispatch,) = status["dispatches"]
    return dict(dispatch)


async def test_a_session_is_on_record_from_the_launch_on_and_always_the_same() -> None:
    scene = a_streaming_scene()

    async with daemon(scene):
        at_launch = await the_record(scene)
        scene.executor.agents["A-1"].writes(init())
        await anyio.sleep(1)
        once_known = await the_record(scene)

    assert at_launch.report == Report(session=at_launch.dispatch.session)
    assert at_launch.dispatch.session == at_launch.dispatch.session
    assert once_known.report.session == "its-own"
    assert at_launch.workspace is not None


async def test_status_tells_what_an_agent_is_at() -> None:
    scene = a_streaming_scene()

    async with daemon(scene) as running:
        agent = scene.executor.agents["A-1"]
        agent.writes(init())
        agent.writes(calls("Bash"))
        await anyio.sleep(30)
        told = await shown(running)

    assert {key: told[key] for key in ("session", "turns", "tokens", "tool_calls", "activity")} == {
        "session": "its-own",
        "turns": 1,
        "tokens": 100,
        "tool_calls": 1,
        "activity": "Bash",
    }
    assert told["cost_usd"] is None
    assert told["silent_s"] == 30.0
    assert told["activity_at"] == "2026-04-27T12:00:01Z"


async def test_what_an_agent_used_is_on_record_and_in_its_reflection() -> None:
    """Behaviour R5."""
    scene = a_streaming_scene()

    async with daemon(scene):
        agent = scene.executor.agents["A-1"]
        for line in (init(), says("412"), result("412")):
            agent.writes(line)
        scene.merge("A-1", 412)
        agent.ends(0)
        await anyio.sleep(60)
        record = await the_record(scene)

    (reflection,) = scene.journal.reflections
    assert record.outcome is not None
    assert record.outcome.kind is OutcomeKind.SHIPPED
    assert (record.cost_usd, record.tokens, record.report.usage.turns) == (0.25, 1000, 4)
    assert record.report.answer == "412"
    assert reflection.cost_usd == 0.25
    settled = next(fields for name, fields in scene.events if name == "dispatch.settled")
    assert (settled["cost_usd"], settled["tokens"], settled["turns"]) == (0.25, 1000, 4)


async def test_what_was_told_before_a_restart_is_settled_with_after_it() -> None:
    """A daemon that comes when the agent has ended does not hear it again."""
    scene = a_streaming_scene()
    scene.pulls.states["claude/a-1"] = (PullState.OPEN, 412)

    async with daemon(scene):
        scene.executor.agents["A-1"].writes(init())
        await anyio.sleep(1)
        scene.executor.agents["A-1"].writes(result("412"))
        scene.executor.agents["A-1"].ends(0)
        await anyio.sleep(60)
    scene.executor.agents["A-1"].printed.clear()
    scene.merge("A-1", 412)
    async with daemon(scene):
        await anyio.sleep(60)
        record = await the_record(scene)

    (reflection,) = scene.journal.reflections
    assert (record.cost_usd, record.report.session) == (0.25, "its-own")
    assert record.report.answer == "412"
    assert reflection.cost_usd == 0.25


async def test_a_number_that_an_agent_names_has_the_forge_asked_at_once() -> None:
    """Behaviour P8."""
    scene = a_streaming_scene()

    async with daemon(scene):
        agent = scene.executor.agents["A-1"]
        agent.writes(init())
        await anyio.sleep(200)
        before = scene.pulls.looks
        agent.writes(says("412"))
        await anyio.sleep(1)
        named = scene.pulls.looks
        agent.writes(says("412", 2))
        await anyio.sleep(1)

        assert named == before + 1
        assert scene.pulls.looks == named


async def test_one_that_only_tries_again_is_silent() -> None:
    """Behaviour P2: its lines come every half minute, and it gets nowhere."""
    scene = a_streaming_scene()

    def silent() -> int:
        return [name for name, _ in scene.events].count("dispatch.silent")

    async with daemon(scene) as running:
        agent = scene.executor.agents["A-1"]
        agent.writes(init())
        for attempt in range(9):
            await anyio.sleep(30)
            agent.writes(retries(attempt))
        before = silent()
        await anyio.sleep(31)
        during = silent()
        told = await shown(running)
        agent.writes(says("at last"))
        await anyio.sleep(301)

    assert (before, during, silent()) == (0, 1, 2)
    assert told["trouble"] == "API Error: 529 overloaded"
    assert told["activity"] == "retry 8 of 8: 529 overloaded"
    assert told["silent_s"] > 300


async def test_one_that_gets_on_is_not_silent() -> None:
    scene = a_streaming_scene()

    async with daemon(scene):
        agent = scene.executor.agents["A-1"]
        agent.writes(init())
        for _ in range(5):
            await anyio.sleep(250)
            agent.writes(gets("ok"))

    assert "dispatch.silent" not in [name for name, _ in scene.events]


async def test_a_cause_is_what_an_agent_says_and_not_what_it_quotes() -> None:
    """Behaviour O2: its output is full of other people's errors."""
    scene = a_streaming_scene()

    async with daemon(scene):
        agent = scene.executor.agents["A-1"]
        for line in (
            init(),
            gets("HTTP 402\nusage limit reached\n[bot-merge] timed out"),
            result("API Error: Request rejected (429)", is_error=True),
        ):
            agent.writes(line)
        agent.ends(1)
        await anyio.sleep(60)
        record = await the_record(scene)

    assert record.outcome is not None
    assert (record.outcome.kind, record.outcome.cause) == (OutcomeKind.KILLED, Cause.RATE_LIMITED)


async def test_one_that_says_nothing_of_its_end_has_the_cause_of_its_exit() -> None:
    scene = a_streaming_scene()

    async with daemon(scene):
        agent = scene.executor.agents["A-1"]
        agent.writes(init())
        agent.writes(gets("HTTP 402"))
        agent.ends(1)
        await anyio.sleep(60)
        record = await the_record(scene)

    assert record.outcome is not None
    assert record.outcome.cause is Cause.EXIT_CODE


async def limited(scene: Scene, gap: str = "A-1", text: str = LIMIT) -> None:
    agent = scene.executor.agents[gap]
    agent.writes(init())
    agent.writes(result(text, is_error=True))
    agent.ends(1)
    await anyio.sleep(60)


async def test_x4_a_limit_parks_the_backend_until_its_reset_for_every_gap() -> None:
    scene = a_streaming_scene()

    async with daemon(scene) as running:
        await limited(scene)
        record = await the_record(scene)
        scene.source.replace(a_backlog(a_gap("A-1"), a_gap("A-2")))
        await Operator(running).reload()
        await anyio.sleep(10)
        why = [await Operator(running).why(gap) for gap in ("A-1", "A-2")]
        await anyio.sleep(3 * 3600 - 300)
        before = list(scene.executor.launched)
        await anyio.sleep(300)
        after = list(scene.executor.launched)

    assert record.outcome is not None
    assert record.outcome.cause is Cause.USAGE_LIMIT
    assert record.report.resets_at == NOW + timedelta(hours=3)
    until = "backend claude is parked until 2026-04-27T15:00:00Z"
    because = "its account has met its limit (exit code 1)"
    assert why == [f"no slot, place {place}; {until}: {because}" for place in (1, 2)]
    assert await scene.ledger.parked() == ()
    assert (await scene.ledger.history("A-1")).failures == 0
    assert (before, after) == (["A-1"], ["A-1", "A-1", "A-2"])


async def test_x4_a_limit_holds_over_a_restart() -> None:
    scene = a_streaming_scene()

    async with daemon(scene):
        await limited(scene)
    async with daemon(scene):
        await anyio.sleep(2 * 3600)
        before = list(scene.executor.launched)
        await anyio.sleep(3600)

    assert (before, scene.executor.launched) == (["A-1"], ["A-1", "A-1"])


async def test_x4_a_limit_that_was_met_after_the_request_was_opened_frees_no_gap() -> None:
    """The request is open for a day; another agent would do the same work again."""
    scene = a_streaming_scene()
    scene.pulls.states["claude/a-1"] = (PullState.OPEN, 412)

    async with daemon(scene):
        await limited(scene)
        await anyio.sleep(25 * 3600)
        record = await the_record(scene)

    (parked,) = await scene.ledger.parked()
    assert record.outcome is not None
    assert (record.outcome.kind, record.outcome.cause) == (OutcomeKind.STALLED, Cause.UNKNOWN)
    assert (scene.executor.launched, parked.gap) == (["A-1"], "A-1")


async def test_x4_a_limit_whose_reset_is_not_told_rests_for_a_quarter_of_an_hour() -> None:
    scene = a_streaming_scene()

    async with daemon(scene):
        await limited(scene, text="usage limit reached")
        await anyio.sleep(13 * 60)
        before = list(scene.executor.launched)
        await anyio.sleep(3 * 60)

    (told,) = [fields for event, fields in scene.events if event == "backend.parked"]
    assert (told["backend"], told["for_s"]) == ("claude", 15 * 60)
    assert (before, scene.executor.launched) == (["A-1"], ["A-1", "A-1"])


async def test_x4_the_next_candidate_gets_the_gap_meanwhile() -> None:
    """Behaviour G5."""
    both = RoutingTable((), (Route("claude"), Route("other")))
    policy = RoutePolicy(Route("claude"), table=both)
    scene = a_streaming_scene(routes=policy)

    async with daemon(scene):
        await limited(scene)
        second, first = await scene.ledger.latest(2)

    assert [one.dispatch.route.backend for one in (first, second)] == ["claude", "other"]


async def test_x4_an_operator_does_not_wait_for_the_reset() -> None:
    scene = a_streaming_scene()

    async with daemon(scene) as running:
        await limited(scene)
        await Operator(running).resume()
        await anyio.sleep(1)

    assert scene.executor.launched == ["A-1", "A-1"]


async def test_x4_limits_are_no_failures_in_a_row_but_sessions_they_are() -> None:
    """Behaviour X2 and X5: a gap that always ends so is parked in the end."""
    scene = a_streaming_scene()

    async with daemon(scene) as running:
        for _ in range(3):
            await limited(scene, text="usage limit reached")
            await Operator(running).resume()
            await anyio.sleep(1)
        fuse = await scene.ledger.fuse()

    (parked,) = await scene.ledger.parked()
    assert fuse.failures == ()
    assert scene.executor.launched == ["A-1"] * 3
    assert "; 3 sessions without accepted progress; " in parked.reason


@pytest.mark.parametrize(
    ("told", "resets_at"),
    [
        (1777302000, datetime(2026, 4, 27, 15, tzinfo=UTC)),
        (4_102_444_799, None),
        (1_700_000_000, None),
        (99999999999999999, None),
        (-5, None),
        ("soon", None),
    ],
)
async def test_a_reset_in_an_event_counts_if_it_makes_sense(
    told: object, resets_at: datetime | None
) -> None:
    scene = a_streaming_scene()
    info = {"status": "rejected", "resetsAt": told}

    async with daemon(scene):
        scene.executor.agents["A-1"].writes(event("rate_limit_event", rate_limit_info=info))
        await limited(scene, text="no more for today")
        record = await the_record(scene)

    assert record.outcome is not None
    assert record.outcome.cause is Cause.USAGE_LIMIT
    assert record.report.resets_at == resets_at


class Older(PlainBackend):
    """A plug-in of before there were readers."""

    def read(self, line: str) -> Usage | Progress | None:
        if line.startswith("tokens="):
            return Usage(tokens=int(line.removeprefix("tokens=")))
        return Progress(int(line)) if line.isdigit() else None


async def test_a_plug_in_that_reads_single_lines_goes_on_as_it_did() -> None:
    scene = a_streaming_scene()
    scene.world.backend = lambda _name: Older()

    async with daemon(scene) as running:
        agent = scene.executor.agents["A-1"]
        for line in ("prose", "tokens=7", "412", "HTTP 429"):
            agent.writes(line)
        await anyio.sleep(1)
        told = await shown(running)
        agent.ends(1)
        await anyio.sleep(60)
        record = await the_record(scene)

    assert (told["tokens"], told["tool_calls"]) == (7, None)
    assert (record.tokens, record.report.pull_number) == (7, 412)
    assert record.outcome is not None
    assert record.outcome.cause is Cause.RATE_LIMITED


class Broken(Older):
    """A plug-in with a bug."""

    def read(self, line: str) -> Usage | Progress | None:
        if line == "bad":
            raise KeyError(line)
        return super().read(line)


class Silly(Broken):
    """A plug-in that says what it should not."""

    def read(self, line: str) -> Usage | Progress | None:
        odd: Any = {"tokens": 9}
        return odd if line == "bad" else Older.read(self, line)


class Unready(Older):
    """A plug-in that makes no readers, though it could."""

    def reader(self) -> Reader:
        raise KeyError("reader")


@pytest.mark.parametrize("backend", [Broken, Silly])
async def test_a_backend_that_fails_at_a_line_costs_understanding_and_no_agent(
    backend: type[Older],
) -> None:
    scene = a_streaming_scene()
    scene.world.backend = lambda _name: backend()

    async with daemon(scene) as running:
        agent = scene.executor.agents["A-1"]
        for line in ("tokens=7", "bad", "tokens=9"):
            agent.writes(line)
        await anyio.sleep(1)
        told = await shown(running)
        scene.merge("A-1")
        agent.ends(0)
        await anyio.sleep(60)
        record = await the_record(scene)

    assert (told["state"], told["tokens"]) == ("running", 7)
    assert record.outcome is not None
    assert record.outcome.kind is OutcomeKind.SHIPPED


def no_backend(_name: str) -> Backend:
    raise ConfigError("backend.custom.argv: empty")


async def test_a_backend_that_makes_no_reader_costs_understanding_and_no_agent() -> None:
    scene = a_streaming_scene()
    scene.world.backend = lambda _name: Unready()

    async with daemon(scene) as running:
        scene.executor.agents["A-1"].writes("tokens=7")
        told = await shown(running)
        scene.merge("A-1")
        scene.executor.agents["A-1"].ends(0)
        await anyio.sleep(60)

    assert (told["state"], told["tokens"]) == ("running", None)
    assert (await outcome_of(scene)) is OutcomeKind.SHIPPED


async def test_a_backend_that_is_gone_after_a_restart_costs_understanding_and_no_agent() -> None:
    scene = a_streaming_scene()

    async with daemon(scene):
        agent = scene.executor.agents["A-1"]
        agent.writes(init())
        await anyio.sleep(1)
    scene.world.backend = no_backend
    async with daemon(scene) as running:
        agent.writes(calls("Bash"))
        await anyio.sleep(1)
        told = await shown(running)
        scene.merge("A-1")
        agent.ends(0)
        await anyio.sleep(60)
        record = await the_record(scene)

    assert (told["state"], told["session"], told["turns"]) == ("running", "its-own", None)
    assert record.outcome is not None
    assert record.outcome.kind is OutcomeKind.SHIPPED


async def test_what_an_agent_says_is_kept_without_secrets() -> None:
    """Promise I7."""
    scene = a_streaming_scene()
    scene.world.hide = lambda text: text.replace("hunter2hunter2", "***")

    async with daemon(scene) as running:
        agent = scene.executor.agents["A-1"]
        agent.writes(init())
        agent.writes(says("the key is hunter2hunter2"))
        agent.writes(retries(1).replace("overloaded", "hunter2hunter2"))
        await anyio.sleep(1)
        told = await shown(running)
        agent.writes(result("bad key hunter2hunter2", is_error=True))
        agent.ends(1)
        await anyio.sleep(60)
        record = await the_record(scene)

    assert told["trouble"] == "API Error: 529 ***"
    assert told["activity"] == "retry 1 of 8: 529 ***"
    assert record.report.failure == "bad key ***"


class Named(PlainBackend):
    """An agent that is not told which session it has."""

    def command(self, gap: Gap, route: Route, prompt: str) -> Command:
        return Command(("true",), ("--session", "{session}x"))


async def test_an_agent_that_is_not_told_its_session_has_none_of_ours() -> None:
    scene = a_streaming_scene()
    scene.world.backend = lambda _name: Named()

    async with daemon(scene):
        record = await the_record(scene)

    assert record.report == Report()


async def test_x4_an_agent_that_was_on_its_way_does_not_end_the_rest() -> None:
    """That its program could be executed says nothing about the account."""
    scene = a_streaming_scene(a_gap("A-1"), a_gap("A-2"))

    async with daemon(scene) as running:
        scene.executor.agents["A-2"].writes(init())
        await limited(scene)
        scene.merge("A-2")
        scene.executor.agents["A-2"].ends(0)
        await anyio.sleep(60)
        running.scheduler.brakes.backends.free("claude")
        await anyio.sleep(3600)

    assert scene.executor.launched == ["A-1", "A-2"]


async def test_x4_limits_whose_reset_is_not_told_rest_for_longer_each_time() -> None:
    scene = a_streaming_scene(retry=RetryPolicy(sessions=99))

    async with daemon(scene):
        for minutes in (15, 30, 60, 120, 240, 240):
            await limited(scene, text="usage limit reached")
            launched = len(scene.executor.launched)
            await anyio.sleep(60 * minutes - 70)
            assert len(scene.executor.launched) == launched
            await anyio.sleep(20)
            assert len(scene.executor.launched) == launched + 1
        scene.merge("A-1")
        scene.executor.agents["A-1"].ends(0)
        await anyio.sleep(60)
        scene.source.replace(a_backlog(a_gap("A-3"), a_gap("A-4", depends_on=("A-3",))))
        await anyio.sleep(60)
        await limited(scene, "A-3", text="usage limit reached")
        await anyio.sleep(16 * 60)

    assert scene.executor.launched[-2:] == ["A-3", "A-3"]
