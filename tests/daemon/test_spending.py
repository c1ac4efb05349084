"""Budgets and the brake on money, in virtual time (behaviour X2, X3)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import anyio
import pytest

from chump_orchestrator.core.brakes import RetryPolicy
from chump_orchestrator.core.budget import BudgetPolicy
from chump_orchestrator.core.dispatch import Command, Dispatch
from chump_orchestrator.core.errors import Refused, Unavailable
from chump_orchestrator.core.gap import Effort, Gap
from chump_orchestrator.core.outcome import Checks, PullRequest, PullState
from chump_orchestrator.core.routing import Route
from chump_orchestrator.core.testimony import Progress, Usage
from chump_orchestrator.daemon.account import account
from chump_orchestrator.daemon.operations import Operator
from chump_orchestrator.daemon.orchestrator import Manner, Orchestrator
from chump_orchestrator.daemon.roster import Assignment
from chump_orchestrator.daemon.status_line import status_line
from tests.builders import NOW, a_backlog, a_gap
from tests.daemon.twins import Scene, ScriptedAgent, a_scene

pytestmark = pytest.mark.looptime

HOUR = 3600


class Priced:
    """A backend whose agents say what they have cost: `$0.25`, `300 tokens`."""

    label = "claude"

    def command(self, gap: Gap, route: Route, prompt: str) -> Command:
        return Command(("true",))

    def read(self, line: str) -> Usage | Progress | None:
        if line.startswith("$"):
            return Usage(cost_usd=float(line[1:]))
        if line.endswith(" tokens"):
            return Usage(tokens=int(line.split(maxsplit=1)[0]))
        return None


def a_priced_scene(*gaps: Gap, **policies: object) -> Scene:
    """Return a world in which every agent that ends by itself fails for good, in Berlin."""
    once = RetryPolicy(max_attempts=1)
    scene = a_scene(a_backlog(*gaps), **({"retry": once} | policies))
    scene.world.backend = lambda _name: Priced()
    scene.world.zone = lambda name: ZoneInfo(name or "Europe/Berlin")
    return scene


def some_gaps(count: int, **fields: Any) -> tuple[Gap, ...]:
    return tuple(a_gap(f"A-{number}", **fields) for number in range(1, count + 1))


@asynccontextmanager
async def daemon(scene: Scene, assignment: Assignment | None = None) -> AsyncIterator[Orchestrator]:
    orchestrator = Orchestrator(scene.world, scene.source, assignment or Assignment())
    async with anyio.create_task_group() as group:
        group.start_soon(orchestrator.run)
        await anyio.sleep(1)
        yield orchestrator
        orchestrator.end(Manner.DETACH)


def told(scene: Scene, name: str) -> list[Mapping[str, object]]:
    return [fields for event, fields in scene.events if event == name]


async def costs(scene: Scene, gap: str, usd: float, *, settles: bool = True) -> None:
    """Let the agent of a gap say what it has cost, and fail."""
    scene.executor.agents[gap].writes(f"${usd}")
    scene.executor.agents[gap].ends(1)
    if settles:
        await anyio.sleep(60)


async def spent(running: Orchestrator) -> dict[str, Any]:
    status: dict[str, Any] = await Operator(running).status()
    return dict(status["budget"])


async def test_a_day_whose_budget_is_reached_starts_nothing_until_midnight() -> None:
    """It is two in the afternoon in Berlin: ten hours to go."""
    scene = a_priced_scene(*some_gaps(4), max_parallel=1, budget=BudgetPolicy(usd_per_day=2.0))

    async with daemon(scene) as running:
        await costs(scene, "A-1", 1.0)
        await costs(scene, "A-2", 1.0)
        await anyio.sleep(10 * HOUR - 200)
        why = await Operator(running).why("A-3")
        line = str(status_line(running))
        before = list(scene.executor.launched)
        await anyio.sleep(200)
        after = list(scene.executor.launched)

    assert before == ["A-1", "A-2"]
    assert after == ["A-1", "A-2", "A-3"]
    assert why == (
        "no slot, place 1; budget reached until 00:00: $2.00 of $2.00 a day (budget.usd_per_day);"
        " raise it and reload to go on sooner"
    )
    assert line.startswith("budget reached until 00:00: 0/1 running, 2 ready")
    assert told(scene, "budget.reached") == [
        {"budget": "usd_per_day", "spent": 2.0, "limit": 2.0, "until": "00:00"}
    ]
    assert told(scene, "budget.renewed") == [
        {"budget": "usd_per_day", "why": "a new day has begun"}
    ]


async def test_agents_at_work_end_in_peace_when_a_budget_is_reached() -> None:
    scene = a_priced_scene(*some_gaps(3), budget=BudgetPolicy(usd_per_day=2.0))

    async with daemon(scene):
        await costs(scene, "A-1", 5.0)
        agent = scene.executor.agents["A-2"]
        await anyio.sleep(15 * 60)

        assert (agent.exit, agent.stops) == (None, [])
        assert scene.executor.launched == ["A-1", "A-2"]


async def test_what_an_agent_at_work_has_told_counts_before_it_ends() -> None:
    scene = a_priced_scene(*some_gaps(3), budget=BudgetPolicy(usd_per_day=2.0))

    async with daemon(scene) as running:
        scene.executor.agents["A-1"].writes("$2.50")
        await costs(scene, "A-2", 0.0)
        budget = await spent(running)

    assert scene.executor.launched == ["A-1", "A-2"]
    assert (budget["usd_today"], budget["reached"]) == (2.5, ["usd_per_day"])


async def test_tokens_have_a_budget_of_their_own() -> None:
    scene = a_priced_scene(*some_gaps(2), max_parallel=1, budget=BudgetPolicy(tokens_per_day=1000))

    async with daemon(scene) as running:
        scene.executor.agents["A-1"].writes("1000 tokens")
        scene.executor.agents["A-1"].ends(1)
        await anyio.sleep(60)
        why = await Operator(running).why("A-2")

    assert scene.executor.launched == ["A-1"]
    assert "1,000 tokens of 1,000 tokens a day (budget.tokens_per_day)" in why


async def test_slots_are_not_all_filled_when_a_budget_is_nearly_reached() -> None:
    """Two dollars each, as far as is known, and five left: two at a time, not four."""
    scene = a_priced_scene(*some_gaps(6), max_parallel=1, budget=BudgetPolicy(usd_per_day=7.0))

    async with daemon(scene) as running:
        await costs(scene, "A-1", 2.0, settles=False)
        scene.world.policies = replace(scene.world.policies, max_parallel=4)
        await anyio.sleep(60)
        at_once = list(scene.executor.launched)
        why = await Operator(running).why("A-4")
        await costs(scene, "A-2", 0.5)
        cheaper = list(scene.executor.launched)

    assert at_once == ["A-1", "A-2", "A-3"]
    assert why == (
        "no slot, place 1; budget nearly reached: $2.00 of $7.00 a day (budget.usd_per_day);"
        " 2 at work are expected to use $4.00 more, this one $2.00"
    )
    assert cheaper == ["A-1", "A-2", "A-3", "A-4", "A-5"]


async def test_of_a_backend_that_nothing_is_known_of_its_own_limit_is_expected() -> None:
    """`max_budget_usd`, which claude holds its agent to."""
    policy = BudgetPolicy(usd_per_day=5.0, caps={"claude": 2.0})
    scene = a_priced_scene(*some_gaps(6), max_parallel=6, budget=policy)

    async with daemon(scene):
        assert scene.executor.launched == ["A-1", "A-2"]


async def test_what_is_left_of_a_budget_is_used_by_one_at_a_time() -> None:
    scene = a_priced_scene(*some_gaps(4), max_parallel=4, budget=BudgetPolicy(usd_per_day=3.0))
    scene.world.policies = replace(scene.world.policies, max_parallel=1)

    async with daemon(scene):
        await costs(scene, "A-1", 2.0, settles=False)
        scene.world.policies = replace(scene.world.policies, max_parallel=4)
        await anyio.sleep(60)

        assert scene.executor.launched == ["A-1", "A-2"]


async def test_a_gap_that_waits_for_a_slot_says_what_it_is_expected_to_cost() -> None:
    scene = a_priced_scene(*some_gaps(3), max_parallel=1, budget=BudgetPolicy(usd_per_day=100.0))

    async with daemon(scene) as running:
        await costs(scene, "A-1", 2.0)
        why = await Operator(running).why("A-3")

    assert why == (
        "no slot, place 1; expected to cost $2.00 (mean of 1); today $2.00 of $100.00,"
        " $2.00 more expected of 1 at work"
    )


async def test_sums_are_kept_over_a_restart_and_a_budget_is_told_once() -> None:
    scene = a_priced_scene(*some_gaps(3), max_parallel=1, budget=BudgetPolicy(usd_per_day=2.0))

    async with daemon(scene):
        await costs(scene, "A-1", 2.5)
    async with daemon(scene) as running:
        await anyio.sleep(60)
        budget = await spent(running)

    assert scene.executor.launched == ["A-1"]
    assert (budget["usd_today"], budget["reached"]) == (2.5, ["usd_per_day"])
    assert len(told(scene, "budget.reached")) == 1
    assert told(scene, "budget.renewed") == []


async def test_a_reload_with_a_higher_budget_lifts_it_at_once() -> None:
    scene = a_priced_scene(*some_gaps(3), max_parallel=1, budget=BudgetPolicy(usd_per_day=2.0))

    async with daemon(scene) as running:
        await costs(scene, "A-1", 2.5)
        higher = BudgetPolicy(usd_per_day=20.0)
        scene.world.policies = replace(scene.world.policies, budget=higher)
        await Operator(running).reload()
        await anyio.sleep(1)

    assert scene.executor.launched == ["A-1", "A-2"]
    assert told(scene, "budget.renewed") == [{"budget": "usd_per_day", "why": "it was raised"}]


async def test_resume_does_not_lift_a_budget_and_says_what_does() -> None:
    scene = a_priced_scene(*some_gaps(3), max_parallel=1, budget=BudgetPolicy(usd_per_day=2.0))

    async with daemon(scene) as running:
        await costs(scene, "A-1", 2.5)
        answer = await Operator(running).resume()
        await anyio.sleep(60)

    assert scene.executor.launched == ["A-1"]
    assert answer.startswith("resumed; but budget reached until 00:00: $2.50 of $2.00 a day")
    assert answer.endswith("raise it and reload to go on sooner")


async def test_who_did_not_tell_is_counted() -> None:
    scene = a_priced_scene(*some_gaps(3))

    async with daemon(scene) as running:
        await costs(scene, "A-1", 1.0)
        scene.executor.agents["A-2"].ends(1)
        await anyio.sleep(60)
        budget = await spent(running)

    assert (budget["usd_today"], budget["agents_today"], budget["untold_cost"]) == (1.0, 2, 1)
    assert budget["usd_per_day"] is None


async def test_one_that_waits_for_its_request_counts_for_the_day_its_agent_ended() -> None:
    scene = a_priced_scene(a_gap("A-1"), budget=BudgetPolicy(usd_per_day=50.0))
    scene.pulls.states["claude/a-1"] = (PullState.OPEN, 7)

    async with daemon(scene) as running:
        await costs(scene, "A-1", 2.0)
        today = await spent(running)
        await anyio.sleep(11 * HOUR)
        tomorrow = await spent(running)
        scene.merge("A-1")
        await anyio.sleep(300)
        settled = await spent(running)

    assert (today["usd_today"], today["agents_today"], today["at_work"]) == (2.0, 1, 0)
    assert (tomorrow["usd_today"], settled["usd_today"]) == (0.0, 0.0)


async def test_a_gap_that_cost_too_much_is_held_and_the_others_go_on() -> None:
    scene = a_priced_scene(
        *some_gaps(2),
        max_parallel=1,
        retry=RetryPolicy(max_attempts=9, sessions=99),
        budget=BudgetPolicy(usd_per_gap=3.0),
    )

    async with daemon(scene) as running:
        await costs(scene, "A-1", 2.0)
        scene.executor.agents["A-2"].ends(1)
        await anyio.sleep(30)
        await costs(scene, "A-1", 1.5)
        why = await Operator(running).why("A-1")
        await anyio.sleep(HOUR)

    assert why == (
        "budget: $3.50 of $3.00 spent on it (budget.usd_per_gap);"
        " retry it, or raise the budget and reload"
    )
    assert scene.executor.launched.count("A-1") == 2
    assert scene.executor.launched.count("A-2") > 1
    assert told(scene, "budget.reached") == [
        {"budget": "usd_per_gap", "gap": "A-1", "spent": 3.5, "limit": 3.0}
    ]


async def test_a_gap_is_held_over_a_restart_until_its_budget_is_raised() -> None:
    patient = RetryPolicy(max_attempts=9)
    scene = a_priced_scene(a_gap("A-1"), retry=patient, budget=BudgetPolicy(usd_per_gap=3.0))

    async with daemon(scene):
        await costs(scene, "A-1", 3.0)
    async with daemon(scene) as running:
        await anyio.sleep(HOUR)
        before = list(scene.executor.launched)
        higher = BudgetPolicy(usd_per_gap=30.0)
        scene.world.policies = replace(scene.world.policies, budget=higher)
        await Operator(running).reload()
        await anyio.sleep(1)

    assert (before, scene.executor.launched) == (["A-1"], ["A-1", "A-1"])
    assert [one["why"] for one in told(scene, "budget.renewed")] == ["it was raised"]


async def test_an_operators_word_outranks_the_budget_of_a_gap() -> None:
    """And what was spent on it is counted anew from then on."""
    patient = RetryPolicy(max_attempts=9, sessions=99)
    scene = a_priced_scene(a_gap("A-1"), retry=patient, budget=BudgetPolicy(usd_per_gap=3.0))

    async with daemon(scene) as running:
        await costs(scene, "A-1", 3.0)
        before = list(scene.executor.launched)
        await Operator(running).retry("A-1")
        await anyio.sleep(1)
        after = list(scene.executor.launched)
        await costs(scene, "A-1", 1.0)

    assert (before, after) == (["A-1"], ["A-1", "A-1"])
    assert scene.executor.launched == ["A-1", "A-1", "A-1"]


async def test_an_operators_word_does_not_outrank_the_budget_of_a_day() -> None:
    scene = a_priced_scene(*some_gaps(2), max_parallel=1, budget=BudgetPolicy(usd_per_day=3.0))

    async with daemon(scene) as running:
        await costs(scene, "A-1", 3.0)
        with pytest.raises(Refused, match=r"A-1 is not dispatched: budget reached until 00:00"):
            await Operator(running).retry("A-1")

    assert await scene.ledger.requested() == ()


async def test_a_wish_from_before_waits_for_the_new_day() -> None:
    scene = a_priced_scene(a_gap("A-1"), max_parallel=1, budget=BudgetPolicy(usd_per_day=3.0))

    async with daemon(scene):
        await costs(scene, "A-1", 3.0)
        await scene.ledger.request_dispatch("A-1")
        await anyio.sleep(9 * HOUR)
        before = list(scene.executor.launched)
        await anyio.sleep(HOUR)

    assert (before, scene.executor.launched) == (["A-1"], ["A-1", "A-1"])


async def test_a_single_run_does_not_wait_for_a_new_day() -> None:
    """Behaviour C8: it ends and lists what it left."""
    scene = a_priced_scene(
        *some_gaps(3),
        max_parallel=1,
        retry=RetryPolicy(max_attempts=2, base=timedelta(hours=2), cap=timedelta(hours=2)),
        budget=BudgetPolicy(usd_per_day=2.0),
    )

    def ends(_: Dispatch, agent: ScriptedAgent) -> None:
        agent.printed.append("$2.0")
        agent.ends(1)

    scene.executor.on_launch = ends
    orchestrator = Orchestrator(scene.world, scene.source, Assignment(once=True))
    with anyio.fail_after(HOUR):
        await orchestrator.run()
    came_to = await account(orchestrator.scheduler, interrupted=False)

    assert scene.executor.launched == ["A-1"]
    left = {one.id: one.reason for one in came_to.left}
    assert left["A-2"].startswith("budget reached until 00:00: $2.00 of $2.00 a day")
    assert set(left) == {"A-1", "A-2", "A-3"}


async def test_without_a_zone_a_day_is_that_of_utc() -> None:
    scene = a_priced_scene(a_gap("A-1"))
    scene.world.zone = lambda _name: None

    async with daemon(scene) as running:
        budget = await spent(running)

    assert budget["day_ends"] == "2026-04-28T00:00:00Z"
    assert NOW.tzinfo is UTC


async def test_a_budget_is_in_the_vitals() -> None:
    scene = a_priced_scene(*some_gaps(2), max_parallel=1, budget=BudgetPolicy(usd_per_day=2.0))

    async with daemon(scene) as running:
        await costs(scene, "A-1", 2.0)
        vitals = await Operator(running).vitals()

    assert vitals.budget is not None
    assert (vitals.budget["usd_today"], vitals.budget["reached"]) == (2.0, ["usd_per_day"])


async def test_money_without_accepted_progress_parks_a_gap() -> None:
    """Behaviour X2: beside the sessions, of which there are plenty here."""
    scene = a_priced_scene(a_gap("A-1"), retry=RetryPolicy(max_attempts=9, sessions=99, usd=5.0))

    async with daemon(scene):
        await costs(scene, "A-1", 3.0)
        first = await scene.ledger.parked()
        await costs(scene, "A-1", 2.5)
        await anyio.sleep(HOUR)

    (parked,) = await scene.ledger.parked()
    assert first == () or first[0].until is not None
    assert scene.executor.launched == ["A-1", "A-1"]
    assert parked.until is None
    assert parked.reason.endswith("$5.50 of $5.00 spent without accepted progress (brake.usd)")


async def test_a_request_that_was_opened_lets_the_count_begin_anew() -> None:
    scene = a_priced_scene(a_gap("A-1"), retry=RetryPolicy(max_attempts=9, sessions=99, usd=5.0))

    async with daemon(scene) as running:
        await costs(scene, "A-1", 4.0)
        scene.pulls.states["claude/a-1"] = (PullState.CLOSED, 7)
        await costs(scene, "A-1", 4.0)
        history = await scene.ledger.history("A-1")
        scene.pulls.states.clear()
        await Operator(running).release("A-1")
        await anyio.sleep(60)

    assert history.usd == 0.0


async def test_what_is_spent_after_a_request_was_opened_counts() -> None:
    """Three dollars for the request, six more that came to nothing."""
    scene = a_priced_scene(a_gap("A-1"), retry=RetryPolicy(usd=5.0))

    async with daemon(scene):
        agent = scene.executor.agents["A-1"]
        agent.writes("$3.0")
        scene.pulls.states["claude/a-1"] = (PullState.OPEN, 7)
        await anyio.sleep(300)
        agent.writes("$9.0")
        scene.pulls.states["claude/a-1"] = (PullState.CLOSED, 7)
        agent.ends(1)
        await anyio.sleep(60)
        history = await scene.ledger.history("A-1")

    assert history.usd == 6.0


async def test_checks_that_turn_green_are_progress() -> None:
    scene = a_priced_scene(a_gap("A-1"))
    checks = {"A-1": Checks.FAILING}

    class Checked:
        async def check(self) -> None:
            """It can always be asked."""

        async def look(self, watches: Any) -> Mapping[str, PullRequest]:
            now = scene.world.clock.now()
            return {
                one.branch: PullRequest(one.branch, PullState.OPEN, now, 7, checks["A-1"])
                for one in watches
            }

    scene.world.pulls = Checked()

    async with daemon(scene) as running:
        agent = scene.executor.agents["A-1"]
        supervisor = running.scheduler.roster["A-1"].supervisor
        assert supervisor is not None
        await anyio.sleep(200)
        agent.writes("$4.0")
        await anyio.sleep(200)
        failing = supervisor.accepted_usd
        checks["A-1"] = Checks.PASSING
        await anyio.sleep(200)
        passing = supervisor.accepted_usd

    assert (failing, passing) == (None, 4.0)


async def test_a_commit_that_was_pushed_is_progress_without_a_request() -> None:
    scene = a_priced_scene(a_gap("A-1"), retry=RetryPolicy(max_attempts=9, sessions=2, usd=5.0))
    asked: list[str] = []

    async def has_pushed(workspace: Any, dispatch: str) -> bool:
        asked.append(f"{workspace.branch} {dispatch}")
        return True

    scene.world.has_pushed = has_pushed

    async with daemon(scene):
        for _ in range(3):
            await costs(scene, "A-1", 4.0)
            await anyio.sleep(300)
        history = await scene.ledger.history("A-1")

    assert len(scene.executor.launched) == 4
    assert len(asked) == 3
    assert asked[0].startswith("claude/a-1 a-1-")
    assert (history.sessions, history.usd) == (1, 0.0)


@pytest.mark.parametrize("trouble", ["", "git was killed"])
async def test_what_cannot_be_told_of_a_push_is_no_progress_and_delays_nothing(
    trouble: str,
) -> None:
    scene = a_priced_scene(a_gap("A-1"))

    async def has_pushed(workspace: Any, dispatch: str) -> bool:
        if trouble:
            raise Unavailable(trouble)
        await anyio.sleep_forever()
        return True

    scene.world.has_pushed = has_pushed

    async with daemon(scene):
        await costs(scene, "A-1", 4.0)
        history = await scene.ledger.history("A-1")

    assert (history.sessions, history.usd) == (1, 4.0)


async def test_what_an_effort_costs_is_told_by_its_like() -> None:
    """A large gap does not make small ones wait."""
    gaps = (a_gap("A-1", effort=Effort.XS), a_gap("A-2", effort=Effort.L), *some_gaps(0))
    scene = a_priced_scene(*gaps, a_gap("A-3", effort=Effort.XS), max_parallel=1)

    async with daemon(scene) as running:
        await costs(scene, "A-1", 0.5)
        await costs(scene, "A-3", 0.7)
        await costs(scene, "A-2", 9.0)
        spending = running.scheduler.admission.spending
        small = spending.expected("claude", Effort.XS)
        large = spending.expected("claude", Effort.L)
        unknown = spending.expected("codex", Effort.L)

    assert (small.usd, large.usd, unknown.usd) == (0.6, 9.0, None)
    assert timedelta(hours=24) == spending.day(NOW)[1] - spending.day(NOW)[0]
