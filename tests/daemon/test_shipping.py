"""The daemon ships in the place of agents: each stage once, on record, and never lost (P9)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime

import anyio
import pytest

from chump_orchestrator.core.brakes import RetryPolicy
from chump_orchestrator.core.causes import Cause
from chump_orchestrator.core.dispatch import Dispatch, Workspace
from chump_orchestrator.core.errors import Refused, Unavailable
from chump_orchestrator.core.outcome import Outcome, OutcomeKind, PullState
from chump_orchestrator.core.records import Record
from chump_orchestrator.core.shipping import Letter, Opened, Sealed, Shipment, Stage, Withheld
from chump_orchestrator.daemon.operations import Operator
from tests.builders import a_backlog, a_gap
from tests.daemon.test_orchestrator import daemon, outcomes, run
from tests.daemon.twins import Scene, ScriptedAgent, ScriptedPulls, a_scene

pytestmark = pytest.mark.looptime

HEAD = "c" * 40
SEALED = Sealed(HEAD, "1 commit, 1 path")


@dataclass
class ScriptedShipper:
    """Ships in memory. `trouble` holds errors by method, which come one after the other."""

    pulls: ScriptedPulls
    found: Sealed | Withheld = SEALED
    trouble: dict[str, list[Exception]] = field(default_factory=dict)
    lacking: tuple[str, ...] = ()
    opens: PullState | None = PullState.MERGED
    calls: list[str] = field(default_factory=list)
    letters: list[Letter] = field(default_factory=list)
    hangs_at: str = ""

    async def _called(self, name: str) -> None:
        self.calls.append(name)
        await anyio.sleep(1)
        if self.hangs_at == name:
            await anyio.sleep_forever()
        if errors := self.trouble.get(name):
            raise errors.pop(0)

    async def check(self) -> None:
        self.calls.append("check")

    async def inspect(self, workspace: Workspace, message: str) -> Sealed | Withheld:
        await self._called("inspect")
        return self.found

    async def push(self, workspace: Workspace, head: str) -> None:
        assert head == HEAD
        await self._called("push")

    async def open(
        self, workspace: Workspace, head: str, letter: Letter, since: datetime
    ) -> Opened | None:
        self.letters.append(letter)
        await self._called("open")
        if self.opens is None:
            self.pulls.states[workspace.branch] = (PullState.MERGED, None)
            return None
        self.pulls.states[workspace.branch] = (self.opens, 7)
        return Opened(7, "https://github.com/acme/anvil/pull/7")

    async def finish(self, opened: Opened) -> tuple[str, ...]:
        assert opened.number == 7
        await self._called("finish")
        return self.lacking


ALL = ["check", "inspect", "push", "open", "finish"]


def a_shipping_scene(*gaps: str, ends: int | None = 0) -> tuple[Scene, ScriptedShipper]:
    """Return a world whose agents end at once, and who ships for them."""
    scene = a_scene(a_backlog(*(a_gap(name) for name in gaps or ("A-1",))))
    shipper = ScriptedShipper(scene.pulls)
    scene.world.shipper, scene.world.ships = shipper, True

    def end(_: Dispatch, agent: ScriptedAgent) -> None:
        if ends is not None:
            agent.ends(ends)

    scene.executor.on_launch = end
    return scene, shipper


async def outcome_of(scene: Scene, gap: str = "A-1") -> Outcome:
    (record, *_) = await scene.ledger.latest(1, gap)
    assert record.outcome is not None
    return record.outcome


async def shipment_of(scene: Scene) -> Shipment:
    (record, *_) = await scene.ledger.latest(1)
    assert record.shipment is not None
    return record.shipment


def told(scene: Scene) -> list[str]:
    return [name for name, _ in scene.events if name.startswith("ship.")]


async def test_what_an_agent_has_committed_is_shipped_and_then_judged() -> None:
    scene, shipper = a_shipping_scene()

    await run(scene)

    assert shipper.calls == ALL
    assert (await outcome_of(scene)).kind is OutcomeKind.SHIPPED
    assert await shipment_of(scene) == Shipment(
        Stage.DONE, HEAD, "1 commit, 1 path", 7, "https://github.com/acme/anvil/pull/7"
    )
    assert told(scene) == ["ship.pushed", "ship.opened"]


async def test_agents_that_ship_for_themselves_are_left_alone() -> None:
    scene, shipper = a_shipping_scene()
    scene.world.ships = False

    await run(scene)

    assert shipper.calls == []
    assert (await outcome_of(scene)).cause is Cause.NO_PULL


async def test_who_ships_is_settled_when_an_agent_is_started() -> None:
    """A daemon with other settings ships what an earlier one has promised to ship."""
    scene, shipper = a_shipping_scene(ends=None)
    async with daemon(scene):
        pass
    scene.world.ships = False
    scene.executor.agents["A-1"].ends(0)

    await run(scene)

    assert shipper.calls == ["check", "inspect", "push", "open", "finish"]
    assert (await outcome_of(scene)).kind is OutcomeKind.SHIPPED


async def test_where_there_are_no_requests_the_push_is_all() -> None:
    """Behaviour P7."""
    scene, shipper = a_shipping_scene()
    shipper.opens = None

    await run(scene)

    assert shipper.calls == ALL[:-1]
    assert (await outcome_of(scene)).kind is OutcomeKind.SHIPPED


@pytest.mark.parametrize("how", ["an exit code", "a signal", "the operator", "the deadline"])
async def test_what_was_not_ended_well_is_not_shipped(how: str) -> None:
    scene, shipper = a_shipping_scene(ends=None)

    async with daemon(scene) as running:
        agent = scene.executor.agents["A-1"]
        match how:
            case "an exit code":
                agent.ends(3)
            case "a signal":
                agent.ends(None, signal=9)
            case "the operator":
                await Operator(running).stop("A-1", now=False)
            case _:
                agent.ends(0, stopped_by="deadline")
        await anyio.sleep(120)

        assert shipper.calls == ["check"]
        assert (await outcomes(scene))["A-1"] in (OutcomeKind.KILLED, OutcomeKind.CANCELLED)


@pytest.mark.parametrize(
    ("found", "cause"),
    [
        (Withheld("the agent left work uncommitted: a.py", Cause.NO_PULL), Cause.NO_PULL),
        (Withheld("not pushed: GitHub token in a.py"), Cause.SHIP_REFUSED),
    ],
)
async def test_what_is_withheld_ends_it_and_parks_the_gap(found: Withheld, cause: Cause) -> None:
    """Behaviour P4, X1: nothing was pushed, and nobody tries again by himself."""
    scene, shipper = a_shipping_scene()
    shipper.found = found

    await run(scene)

    assert shipper.calls == ["check", "inspect"]
    outcome = await outcome_of(scene)
    assert (outcome.kind, outcome.cause) == (OutcomeKind.STALLED, cause)
    assert outcome.reason == found.reason
    (parked,) = await scene.ledger.parked()
    assert (parked.gap, parked.until) == ("A-1", None)
    assert told(scene) == ["ship.refused"]


async def test_a_refusal_is_not_explained_away_by_what_the_agent_said() -> None:
    """Behaviour O2: a cause that may pass would have the gap tried again."""
    scene, shipper = a_shipping_scene(ends=None)
    shipper.found = Withheld("not pushed: GitHub token in a.py")

    async with daemon(scene):
        agent = scene.executor.agents["A-1"]
        agent.writes("ERROR: connection refused")
        agent.ends(0)
        await anyio.sleep(60)

    assert (await outcome_of(scene)).cause is Cause.SHIP_REFUSED


async def test_a_push_that_is_not_taken_ends_it() -> None:
    scene, shipper = a_shipping_scene()
    shipper.trouble["push"] = [Refused("origin did not take the push: no branches on Sundays")]

    await run(scene)

    outcome = await outcome_of(scene)
    assert (outcome.kind, outcome.cause) == (OutcomeKind.STALLED, Cause.SHIP_REFUSED)
    assert "no branches on Sundays" in outcome.reason


@pytest.mark.parametrize("method", ["inspect", "push", "open", "finish"])
async def test_a_world_that_does_not_answer_delays_and_loses_nothing(method: str) -> None:
    """Behaviour P3; slots are free meanwhile, and it is told once."""
    scene, shipper = a_shipping_scene()
    shipper.trouble[method] = [Unavailable("no network")] * 4

    await run(scene)

    assert (await outcome_of(scene)).kind is OutcomeKind.SHIPPED
    assert shipper.calls.count(method) == 5
    assert told(scene).count("ship.delayed") == 1
    assert len(scene.executor.launched) == 1


async def test_while_one_is_shipped_another_agent_has_the_slot() -> None:
    """Behaviour K4."""
    scene, shipper = a_shipping_scene("A-1", "A-2", ends=None)
    scene.world.policies = a_scene(a_backlog(), max_parallel=1).world.policies
    shipper.hangs_at = "push"

    async with daemon(scene):
        scene.executor.agents["A-1"].ends(0)
        await anyio.sleep(30)

        assert scene.executor.launched == ["A-1", "A-2"]


async def test_what_cannot_be_shipped_for_as_long_as_a_request_may_be_open_is_given_up() -> None:
    scene, shipper = a_shipping_scene()
    scene.world.policies = replace(scene.world.policies, retry=RetryPolicy(max_attempts=1))
    shipper.trouble["push"] = [Unavailable("no network")] * 10_000

    await run(scene)

    outcome = await outcome_of(scene)
    assert (outcome.kind, outcome.cause) == (OutcomeKind.STALLED, Cause.NETWORK)
    assert outcome.reason == "not shipped within 1 day, 0:00:00: no network"
    assert len(shipper.calls) < 600


async def test_labels_that_cannot_be_had_do_not_keep_a_request_from_its_verdict() -> None:
    scene, shipper = a_shipping_scene()
    shipper.trouble["finish"] = [Unavailable("HTTP 502")] * 10_000

    await run(scene)

    assert shipper.calls.count("finish") == 6
    assert (await outcome_of(scene)).kind is OutcomeKind.SHIPPED
    assert told(scene)[-1] == "ship.denied"


async def test_what_a_forge_does_not_grant_is_said_once_and_the_request_stays() -> None:
    scene, shipper = a_shipping_scene()
    shipper.lacking = ("no auto-merge: not allowed",)

    await run(scene)

    assert (await outcome_of(scene)).kind is OutcomeKind.SHIPPED
    (fields,) = [fields for name, fields in scene.events if name == "ship.denied"]
    assert (fields["number"], fields["why"]) == (7, "no auto-merge: not allowed")


@pytest.mark.parametrize("method", ["inspect", "push", "open", "finish"])
async def test_the_next_daemon_goes_on_from_the_stage_on_record(method: str) -> None:
    """No effect is repeated whose end is on record."""
    scene, shipper = a_shipping_scene()
    shipper.hangs_at = method
    async with daemon(scene):
        await anyio.sleep(20)
    before = list(shipper.calls)
    shipper.hangs_at = ""
    shipper.calls.clear()

    await run(scene)

    assert before[-1] == method
    assert shipper.calls == ["check", *ALL[ALL.index(method) :]]
    assert (await outcome_of(scene)).kind is OutcomeKind.SHIPPED


async def test_looks_from_before_it_was_opened_do_not_count_against_it() -> None:
    """Behaviour P4: a forge that is slow to list a new request is asked again."""
    scene, shipper = a_shipping_scene()
    shipper.trouble["push"] = [Unavailable("no network")] * 8
    shipper.opens = PullState.NONE

    async with daemon(scene):
        with anyio.fail_after(3600):
            while shipper.calls[-1] != "finish":  # noqa: ASYNC110 - in virtual time
                await anyio.sleep(1)
        await anyio.sleep(20)
        after = await outcomes(scene)
        scene.merge("A-1")
        await anyio.sleep(60)

    assert after == {}
    assert (await outcome_of(scene)).kind is OutcomeKind.SHIPPED


async def test_an_operator_may_give_up_what_is_being_shipped() -> None:
    scene, shipper = a_shipping_scene()
    shipper.hangs_at = "push"

    async with daemon(scene) as running:
        await anyio.sleep(10)
        await Operator(running).stop("A-1", now=False)
        await anyio.sleep(60)

        assert (await outcomes(scene))["A-1"] is OutcomeKind.CANCELLED
        assert shipper.calls == ["check", "inspect", "push"]


async def test_an_operator_who_was_too_slow_to_stop_the_agent_stops_its_work() -> None:
    scene, shipper = a_shipping_scene(ends=None)

    async with daemon(scene) as running:
        agent = scene.executor.agents["A-1"]
        agent.obeys = False
        await Operator(running).stop("A-1", now=False)
        agent.ends(0)
        await anyio.sleep(120)

        assert shipper.calls == ["check"]
        assert (await outcomes(scene))["A-1"] is OutcomeKind.CANCELLED


async def test_what_was_merged_meanwhile_needs_no_shipping() -> None:
    scene, shipper = a_shipping_scene(ends=None)

    async with daemon(scene):
        scene.merge("A-1")
        await anyio.sleep(3 * 60)
        scene.executor.agents["A-1"].ends(0)
        await anyio.sleep(60)

    assert shipper.calls == ["check"]
    assert (await outcome_of(scene)).kind is OutcomeKind.SHIPPED


async def test_nothing_is_shipped_before_the_end_of_the_agent_is_on_record() -> None:
    scene, shipper = a_shipping_scene(ends=None)
    real, holds = scene.ledger.update, [True]

    async def update(dispatch_id: str, record: Record) -> None:
        if holds[0] and record.exit is not None:
            raise Unavailable("the disk is full")
        await real(dispatch_id, record)

    scene.ledger.update = update  # type: ignore[method-assign]
    async with daemon(scene):
        scene.executor.agents["A-1"].ends(0)
        await anyio.sleep(10 * 60)
        before, ended = list(shipper.calls), await outcomes(scene)
        holds[0] = False
        await anyio.sleep(2 * 60)

    assert (before, ended) == (["check"], {})
    assert (await outcome_of(scene)).kind is OutcomeKind.SHIPPED


async def test_a_request_says_what_is_known_of_its_dispatch_and_no_secret() -> None:
    scene, shipper = a_shipping_scene()
    scene.world.hide = lambda text: text.replace("a title", "[redacted]")

    await run(scene)

    (letter,) = shipper.letters
    assert letter.title == "A-1: [redacted]"
    assert "a title" not in letter.body
    assert HEAD in letter.body


async def test_a_dispatch_that_the_ledger_lost_is_shipped_as_settings_say_now() -> None:
    scene, shipper = a_shipping_scene(ends=None)
    async with daemon(scene):
        pass
    fresh = type(scene.ledger)()
    scene.world.ledger = scene.ledger = fresh
    scene.executor.agents["A-1"].ends(0)

    await run(scene)

    assert shipper.calls[-1] == "finish"
    assert (await outcome_of(scene)).kind is OutcomeKind.SHIPPED
