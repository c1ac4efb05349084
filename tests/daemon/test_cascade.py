"""From one candidate of a gap to the next, in virtual time (behaviour G5, X4)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import anyio
import pytest

from chump_orchestrator.core.brakes import RetryPolicy
from chump_orchestrator.core.causes import Cause
from chump_orchestrator.core.dispatch import Dispatch
from chump_orchestrator.core.errors import Refused
from chump_orchestrator.core.gap import Gap
from chump_orchestrator.core.outcome import OutcomeKind, PullState
from chump_orchestrator.core.routing import Route, RoutePolicy, RoutingTable
from chump_orchestrator.daemon.operations import Operator
from chump_orchestrator.daemon.orchestrator import Manner, Orchestrator
from chump_orchestrator.daemon.roster import Assignment
from tests.builders import a_backlog, a_gap, a_reflection
from tests.daemon.twins import Scene, ScriptedAgent, a_scene

pytestmark = pytest.mark.looptime

LIMITED = "You've hit your usage limit"
ASKED_TOO_OFTEN = "API Error: Request rejected (429)"
LOGGED_OUT = "Not logged in · Please run /login"

ONE, TWO, THREE = Route("claude"), Route("codex"), Route("chump-local")


def routed(*candidates: Route) -> RoutePolicy:
    return RoutePolicy(candidates[0], table=RoutingTable((), candidates))


def a_routed_scene(*candidates: Route, gaps: tuple[Gap, ...] = (), **policies: Any) -> Scene:
    backlog = a_backlog(*(gaps or (a_gap("A-1"),)))
    return a_scene(backlog, routes=routed(*(candidates or (ONE, TWO))), **policies)


@asynccontextmanager
async def daemon(scene: Scene, assignment: Assignment | None = None) -> AsyncIterator[Orchestrator]:
    orchestrator = Orchestrator(scene.world, scene.source, assignment or Assignment())
    async with anyio.create_task_group() as group:
        group.start_soon(orchestrator.run)
        await anyio.sleep(1)
        yield orchestrator
        orchestrator.end(Manner.DETACH)


async def fails(scene: Scene, gap: str, with_words: str, *, after_s: float = 40) -> None:
    agent = scene.executor.agents[gap]
    agent.writes(with_words)
    agent.ends(1)
    await anyio.sleep(after_s)


async def tried(scene: Scene, gap: str = "A-1") -> list[str]:
    records = reversed(await scene.ledger.latest(100, gap))
    routes = (record.dispatch.route for record in records)
    return [" ".join(filter(None, (one.backend, one.model, one.provider_pfx))) for one in routes]


def told(scene: Scene, name: str) -> list[Mapping[str, object]]:
    return [fields for event, fields in scene.events if event == name]


@pytest.mark.parametrize("words", [LIMITED, ASKED_TOO_OFTEN, LOGGED_OUT])
async def test_a_candidate_that_cannot_work_hands_the_gap_over(words: str) -> None:
    scene = a_routed_scene()

    async with daemon(scene):
        await fails(scene, "A-1", words)
        history = await scene.ledger.history("A-1")
        fuse = await scene.ledger.fuse()

    assert await tried(scene) == ["claude", "codex"]
    assert history.failures == 0
    assert fuse.failures == ()
    (handed,) = told(scene, "gap.handed_over")
    assert (handed["gap"], handed["candidate"], handed["next"]) == ("A-1", "claude", "codex")


async def test_a_program_that_is_missing_hands_the_gap_over() -> None:
    """Behaviour A4: it parks the backend as well."""
    scene = a_routed_scene()

    def launch(dispatch: Dispatch, _: ScriptedAgent) -> None:
        if dispatch.route.backend == "claude":
            raise Refused("there is no claude on PATH")

    scene.executor.on_launch = launch

    async with daemon(scene):
        await anyio.sleep(60)
        history = await scene.ledger.history("A-1")

    assert await tried(scene) == ["claude", "codex"]
    assert history.failures == 0
    assert told(scene, "gap.handed_over")[0]["cause"] == "spawn"


async def test_the_walk_goes_on_after_a_restart() -> None:
    """From the ledger: a new daemon does not ask again who has just been asked."""
    scene = a_routed_scene(ONE, TWO, THREE)

    async with daemon(scene) as running:
        await fails(scene, "A-1", ASKED_TOO_OFTEN)
        await fails(scene, "A-1", ASKED_TOO_OFTEN)
        await Operator(running).pause("")
        scene.executor.agents["A-1"].ends(None, signal=15, stopped_by="teardown")
        await anyio.sleep(60)
    await anyio.sleep(3600)
    await scene.ledger.set_pause(None)
    async with daemon(scene):
        await anyio.sleep(60)

    assert await tried(scene) == ["claude", "codex", "chump-local", "chump-local"]


async def test_the_last_candidates_failure_is_the_gaps() -> None:
    """Behaviour X1: an account that nobody is logged in to is not tried again by itself."""
    scene = a_routed_scene()

    async with daemon(scene) as running:
        await fails(scene, "A-1", LOGGED_OUT)
        await fails(scene, "A-1", LOGGED_OUT)
        await anyio.sleep(4 * 3600)
        history = await scene.ledger.history("A-1")
        why = await Operator(running).why("A-1")

    (parked,) = await scene.ledger.parked()
    assert await tried(scene) == ["claude", "codex"]
    assert (parked.until, history.failures) == (None, 1)
    assert "cause auth is not tried again by itself" in parked.reason
    assert "first, once the gap may go on" in why
    assert "its turn" not in why


async def test_when_all_were_asked_too_often_the_gap_is_tried_again_from_the_first_on() -> None:
    scene = a_routed_scene()

    async with daemon(scene):
        await fails(scene, "A-1", ASKED_TOO_OFTEN)
        await fails(scene, "A-1", ASKED_TOO_OFTEN)
        await anyio.sleep(120)
        history = await scene.ledger.history("A-1")

    assert await tried(scene) == ["claude", "codex", "claude"]
    assert history.failures == 1


async def test_whoever_opened_a_request_does_not_hand_over() -> None:
    scene = a_routed_scene()
    scene.pulls.states["claude/a-1"] = (PullState.OPEN, 7)

    async with daemon(scene):
        await anyio.sleep(60)
        await fails(scene, "A-1", ASKED_TOO_OFTEN)
        await anyio.sleep(25 * 3600)
        (record,) = await scene.ledger.latest(10)

    assert record.outcome is not None
    assert record.outcome.cause is Cause.UNKNOWN
    assert told(scene, "gap.handed_over") == []


async def test_while_the_rest_have_to_be_waited_for_the_first_is_asked_again() -> None:
    """Another gap has met codex's limit, for 15 minutes; claude was only asked too often."""
    scene = a_routed_scene(ONE, TWO, gaps=(a_gap("A-1"), a_gap("A-2")), max_parallel=2)

    async with daemon(scene):
        await fails(scene, "A-2", ASKED_TOO_OFTEN)
        await fails(scene, "A-2", LIMITED, after_s=1)
        await fails(scene, "A-1", ASKED_TOO_OFTEN, after_s=5)
        before = await tried(scene)
        await anyio.sleep(5 * 60)

    assert (await tried(scene, "A-2"))[:2] == ["claude", "codex"]
    assert (before, await tried(scene)) == (["claude"], ["claude", "claude"])


async def test_a_backend_nobody_is_logged_in_to_is_parked_for_every_gap() -> None:
    scene = a_routed_scene(ONE, gaps=(a_gap("A-1"), a_gap("A-2")), max_parallel=1)

    async with daemon(scene) as running:
        await fails(scene, "A-1", LOGGED_OUT)
        why = await Operator(running).why("A-2")
        await anyio.sleep(13 * 60)
        before = list(scene.executor.launched)
        await anyio.sleep(3 * 60)
        await fails(scene, "A-2", LOGGED_OUT)

    assert (before, scene.executor.launched) == (["A-1"], ["A-1", "A-2"])
    assert [one["for_s"] for one in told(scene, "backend.parked")] == [15 * 60, 30 * 60]
    assert "backend claude is parked until 12:15:01Z: it is not logged in" in why
    assert "see doctor, then resume" in why


async def test_one_that_is_asked_too_often_rests_shortly() -> None:
    scene = a_routed_scene(ONE, gaps=(a_gap("A-1"), a_gap("A-2")), max_parallel=1)

    async with daemon(scene):
        await fails(scene, "A-1", ASKED_TOO_OFTEN)
        before = list(scene.executor.launched)
        await anyio.sleep(30)

    assert (before, scene.executor.launched) == (["A-1"], ["A-1", "A-1"])


async def test_a_single_run_waits_for_one_that_was_asked_too_often() -> None:
    scene = a_routed_scene(ONE, retry=RetryPolicy(max_attempts=2))

    def launch(dispatch: Dispatch, agent: ScriptedAgent) -> None:
        agent.printed.append(ASKED_TOO_OFTEN)
        agent.ends(1)

    scene.executor.on_launch = launch
    with anyio.fail_after(3600):
        await Orchestrator(scene.world, scene.source, Assignment(once=True)).run()

    assert scene.executor.launched == ["A-1", "A-1"]


async def test_another_provider_is_another_account() -> None:
    groq, together = Route("local", "", "GROQ"), Route("local", "", "TOGETHER")
    scene = a_routed_scene(groq, together, gaps=(a_gap("A-1"), a_gap("A-2")), max_parallel=1)

    async with daemon(scene) as running:
        await fails(scene, "A-1", LIMITED)
        why = await Operator(running).why("A-1")

    assert await tried(scene) == ["local GROQ"]
    assert await tried(scene, "A-2") == ["local TOGETHER"]
    assert told(scene, "backend.parked")[0]["provider_pfx"] == "GROQ"
    handed = "candidates: local GROQ: handed it over at 2026-04-27T12:00:01Z: usage-limit; parked"
    assert handed in why


async def test_models_share_the_account_they_are_paid_from() -> None:
    """What the account cannot do with one model it cannot do with another."""
    scene = a_routed_scene(Route("claude", "opus"), Route("claude", "sonnet"), TWO)

    async with daemon(scene):
        await fails(scene, "A-1", LIMITED)

    assert await tried(scene) == ["claude opus", "codex"]


async def test_a_slot_is_not_filled_from_an_account_that_has_just_met_its_limit() -> None:
    """The forge has not said yet what became of the first one, and will not for long."""
    scene = a_routed_scene(ONE, gaps=tuple(a_gap(f"A-{n}") for n in range(1, 5)), max_parallel=2)

    async with daemon(scene):
        scene.pulls.is_silent = True
        await fails(scene, "A-1", LIMITED, after_s=600)

        assert scene.executor.launched == ["A-1", "A-2"]


async def test_what_an_agent_that_opened_a_request_says_keeps_nobody_waiting() -> None:
    gaps = (a_gap("A-1"), a_gap("A-2"))
    scene = a_routed_scene(ONE, gaps=gaps, max_parallel=1)
    scene.pulls.states["claude/a-1"] = (PullState.OPEN, 7)

    async with daemon(scene):
        await anyio.sleep(60)
        await fails(scene, "A-1", LIMITED)

    assert scene.executor.launched == ["A-1", "A-2"]
    assert told(scene, "backend.parked") == []


async def test_what_an_agent_says_that_ended_well_keeps_nobody_waiting() -> None:
    """It may have worked on the very words."""
    scene = a_routed_scene(ONE, gaps=(a_gap("A-1"), a_gap("A-2")), max_parallel=1)

    async with daemon(scene):
        scene.pulls.is_silent = True
        scene.executor.agents["A-1"].writes(LIMITED)
        scene.executor.agents["A-1"].ends(0)
        await anyio.sleep(60)

    assert scene.executor.launched == ["A-1", "A-2"]


async def test_after_a_resume_a_restart_does_not_rest_a_backend_again() -> None:
    scene = a_routed_scene(ONE, gaps=(a_gap("A-1"), a_gap("A-2")), max_parallel=1)
    limit = "Claude usage limit reached; resets at 2026-04-27T20:00:00Z"

    async with daemon(scene) as running:
        await fails(scene, "A-1", limit)
        before = list(scene.executor.launched)
        await Operator(running).pause("to look")
        await Operator(running).resume()
        await Operator(running).pause("again")
    async with daemon(scene) as running:
        await Operator(running).resume()
        await anyio.sleep(5)
        after = list(scene.executor.launched)

    assert before == ["A-1"]
    assert len(after) == 2
    assert len(told(scene, "backend.parked")) == 1


async def test_why_shows_the_candidates_with_what_became_of_each() -> None:
    scene = a_routed_scene(ONE, TWO, THREE)

    async with daemon(scene) as running:
        await fails(scene, "A-1", LOGGED_OUT)
        await Operator(running).pause("")
        await fails(scene, "A-1", ASKED_TOO_OFTEN, after_s=30)
        why = await Operator(running).why("A-1")

    assert why.startswith("no slot, place 1; paused by operator: no reason given; candidates: ")
    first, second, third = why.partition("candidates: ")[2].split(", c")
    assert first.startswith("claude: handed it over at 2026-04-27T12:00:01Z: auth; parked until")
    assert second.startswith("odex: handed it over at 2026-04-27T12:00:41Z: rate-limited; parked")
    assert third == "hump-local: its turn"


@pytest.mark.parametrize("by", ["retry", "release", "a change of its text"])
async def test_a_gap_that_is_freed_begins_with_its_first_candidate(by: str) -> None:
    scene = a_routed_scene()

    async with daemon(scene) as running:
        operator = Operator(running)
        await fails(scene, "A-1", ASKED_TOO_OFTEN)
        await operator.stop("A-1", now=False)
        await anyio.sleep(120)
        before = await tried(scene)
        if by == "retry":
            await operator.retry("A-1")
        elif by == "release":
            await operator.release("A-1")
        else:
            scene.source.replace(a_backlog(a_gap("A-1", title="another title")))
            await operator.reload()
        await anyio.sleep(30)

    assert before == ["claude", "codex"]
    assert await tried(scene) == ["claude", "codex", "claude"]


async def test_sessions_that_are_handed_over_are_sessions_all_the_same() -> None:
    """Behaviour X2: nobody walks a cascade for ever."""
    scene = a_routed_scene(ONE, TWO, THREE, Route("aider"), retry=RetryPolicy(sessions=3))

    async with daemon(scene):
        for _ in range(3):
            await fails(scene, "A-1", ASKED_TOO_OFTEN)
        await anyio.sleep(3600)

    (parked,) = await scene.ledger.parked()
    assert len(await tried(scene)) == 3
    assert parked.reason.endswith("aider would follow; 3 sessions without accepted progress")


async def test_a_limit_that_was_met_before_a_restart_is_known_before_a_slot_is_filled() -> None:
    """The forge has been silent since, so the dispatch is not settled yet."""
    scene = a_routed_scene(ONE, gaps=(a_gap("A-1"), a_gap("A-2")), max_parallel=1)

    async with daemon(scene) as running:
        scene.pulls.is_silent = True
        await Operator(running).pause("")
        await fails(scene, "A-1", LIMITED)
        await scene.ledger.set_pause(None)
    async with daemon(scene):
        await anyio.sleep(600)

    assert scene.executor.launched == ["A-1"]


async def test_a_limit_that_was_met_while_no_daemon_ran_is_known_before_a_slot_is_filled() -> None:
    scene = a_routed_scene(ONE, gaps=(a_gap("A-1"), a_gap("A-2")), max_parallel=1)

    async with daemon(scene):
        await anyio.sleep(10)
    scene.executor.agents["A-1"].writes(LIMITED)
    scene.executor.agents["A-1"].ends(1)
    scene.pulls.is_silent = True
    async with daemon(scene):
        await anyio.sleep(600)

    assert scene.executor.launched == ["A-1"]


async def test_an_account_does_not_rest_again_when_its_dispatch_is_settled_at_last() -> None:
    """Hours later: what was met then was told then."""
    scene = a_routed_scene(ONE, gaps=(a_gap("A-1"), a_gap("A-2")), max_parallel=1)

    async with daemon(scene):
        scene.pulls.is_silent = True
        await fails(scene, "A-1", LOGGED_OUT, after_s=3600)
        scene.pulls.is_silent = False
        await anyio.sleep(600)

    assert len(told(scene, "backend.parked")) == 1
    assert scene.executor.launched == ["A-1", "A-2"]


def learnt(scene: Scene, backend: str, outcome: OutcomeKind, count: int = 40) -> None:
    """Have the journal hold so many dispatches of small gaps by one backend that ended so."""
    for number in range(count):
        told = a_reflection(f"{backend}-{number}", backend=backend, outcome=outcome)
        scene.journal.kept[told.dispatch] = told


async def test_who_ships_more_often_is_asked_first_and_the_odds_are_on_record() -> None:
    """Behaviour G4."""
    scene = a_scene(a_backlog(a_gap("A-1")), routes=replace(routed(ONE, TWO), learns=True))
    learnt(scene, "claude", OutcomeKind.KILLED)
    learnt(scene, "codex", OutcomeKind.SHIPPED)

    async with daemon(scene) as running:
        standings = running.scheduler.admission.cascade.standings(
            a_gap("A-1"), scene.world.clock.now()
        )
        (record,) = await scene.ledger.records(active=True)
        scene.merge("A-1")
        scene.executor.agents["A-1"].ends(0)
        await anyio.sleep(60)

    assert record.dispatch.route.backend == "codex"
    assert record.dispatch.route.odds == pytest.approx(1.0, abs=0.001)
    assert [str(one) for one in standings] == ["codex: its turn", "claude: later"]
    assert scene.journal.reflections[-1].odds == record.dispatch.route.odds


async def test_what_has_just_ended_is_learnt_from_for_the_next_gap() -> None:
    gaps = [a_gap(f"A-{number}") for number in range(1, 30)]
    scene = a_scene(a_backlog(*gaps), routes=replace(routed(ONE, TWO), learns=True), max_parallel=1)

    async with daemon(scene):
        for turn in range(30):
            gap = scene.executor.launched[turn]
            (record,) = await scene.ledger.latest(1)
            if record.dispatch.route.backend == "codex":
                scene.merge(gap)
            scene.executor.agents[gap].ends(int(record.dispatch.route.backend == "claude"))
            await anyio.sleep(60)

    asked = [one.backend for one in scene.journal.reflections]
    assert asked[-10:].count("codex") > asked[:10].count("codex")
    assert scene.world.experience is not None
    assert scene.world.experience.of(("", "s"), ("codex", "", "")).shipped > 15


async def test_without_learning_the_table_decides() -> None:
    scene = a_routed_scene()
    learnt(scene, "claude", OutcomeKind.KILLED)
    learnt(scene, "codex", OutcomeKind.SHIPPED)

    async with daemon(scene):
        pass

    assert await tried(scene) == ["claude"]
    assert scene.world.experience is None


async def test_a_journal_that_does_not_answer_leaves_what_was_learnt() -> None:
    scene = a_scene(a_backlog(a_gap("A-1")), routes=replace(routed(ONE, TWO), learns=True))
    learnt(scene, "codex", OutcomeKind.SHIPPED)

    async with daemon(scene):
        known = scene.world.experience
        scene.journal.trouble = "the disk is full"
        scene.executor.agents["A-1"].ends(1)
        await anyio.sleep(60)

    assert known is not None
    assert scene.world.experience == known


async def test_a_reload_that_turns_learning_on_knows_all_at_once() -> None:
    scene = a_routed_scene(gaps=(a_gap("A-1"), a_gap("A-2")), max_parallel=1)
    learnt(scene, "claude", OutcomeKind.KILLED)
    learnt(scene, "codex", OutcomeKind.SHIPPED)

    async with daemon(scene) as running:
        learning = replace(scene.world.policies.routes, learns=True)
        scene.world.policies = replace(scene.world.policies, routes=learning)
        await Operator(running).reload()
        scene.merge("A-1")
        scene.executor.agents["A-1"].ends(0)
        await anyio.sleep(60)

    assert (await tried(scene), await tried(scene, "A-2")) == (["claude"], ["codex"])
