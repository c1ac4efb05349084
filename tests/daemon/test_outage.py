"""An hour without a forge, twenty agents, and the whole daemon in virtual time (behaviour P3).

Whatever the forge says instead of an answer, nobody is stopped, lost or settled on it; and when it
is back, every dispatch ends as it should have.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import anyio
import pytest

from chump_orchestrator.core.errors import Unavailable
from chump_orchestrator.core.outcome import PullRequest, PullState
from chump_orchestrator.core.records import Watch
from chump_orchestrator.daemon.operations import Operator
from chump_orchestrator.daemon.orchestrator import Manner, Orchestrator
from chump_orchestrator.daemon.roster import Assignment
from tests.builders import a_backlog, a_gap
from tests.daemon.forge_in_process import Forge
from tests.daemon.twins import MINUTE, LoopClock, Scene, a_scene

pytestmark = [pytest.mark.looptime, pytest.mark.timeout(120)]

SOFT = 40 * MINUTE
BEGINS, ENDS = 35 * MINUTE, 95 * MINUTE
"""The outage: the agents' hard deadline, at 80 minutes, is in it, the last one, at 120, is not."""

KINDS = ("502", "rate-limited", "malformed", "silent")

MERGED_MEANWHILE = [f"A-{n}" for n in range(6)]
MERGED_THEN_DIED = [f"B-{n}" for n in range(4)]
WITHOUT_REQUEST = [f"C-{n}" for n in range(4)]
STILL_AT_WORK = [f"D-{n}" for n in range(4)]
OVER_TIME = [f"E-{n}" for n in range(2)]
ALL = [
    *(*MERGED_MEANWHILE, *MERGED_THEN_DIED, *WITHOUT_REQUEST),
    *(*STILL_AT_WORK, *OVER_TIME),
]


class Trusting(Forge):
    """The control: takes silence for the answer that there is no request."""

    async def look(self, watches: Sequence[Watch]) -> Mapping[str, PullRequest]:
        asked_at = self.clock.now()
        try:
            return await super().look(watches)
        except Unavailable:
            return {w.branch: PullRequest(w.branch, PullState.NONE, asked_at) for w in watches}


def branch(gap: str) -> str:
    return f"claude/{gap.lower()}"


async def until(at: timedelta) -> None:
    await anyio.sleep(at.total_seconds() - LoopClock().monotonic())


async def an_hours_outage(scene: Scene, forge: Forge, kinds: Sequence[str]) -> None:
    """Play it through, and check on the way that nothing rests on what is no news."""
    for number, kind in enumerate((*kinds, "")):
        forge.outages.append((BEGINS + number * 15 * MINUTE, kind))
    limited = BEGINS + kinds.index("rate-limited") * 15 * MINUTE
    forge.resets_at = forge.clock.now() + limited + 15 * MINUTE
    agents = scene.executor.agents
    daemon = Orchestrator(scene.world, scene.source, Assignment())
    async with anyio.create_task_group() as group:
        group.start_soon(daemon.run)
        await until(20 * MINUTE)
        assert sorted(scene.executor.launched) == sorted(ALL)
        for gap in MERGED_MEANWHILE:
            forge.put(branch(gap))
        await until(34 * MINUTE)
        for gap in MERGED_MEANWHILE:
            agents[gap].ends(0)
        for number, gap in enumerate((*MERGED_MEANWHILE, *MERGED_THEN_DIED)):
            await until(BEGINS + MINUTE + number * 3 * MINUTE)
            forge.put(branch(gap), "MERGED")
            if gap in MERGED_THEN_DIED:
                agents[gap].ends(1)
        for number, (gap, other) in enumerate(zip(WITHOUT_REQUEST, STILL_AT_WORK, strict=True)):
            await until(BEGINS + 32 * MINUTE + number * 5 * MINUTE)
            agents[gap].ends(0)
            forge.put(branch(other))
        await until(ENDS - timedelta(seconds=1))

        told = await Operator(daemon).status()
        assert told["settled"] == Counter()
        assert len(daemon.scheduler.roster) == len(scene.leases.ours) == len(ALL)
        assert [gap for gap in ALL if agents[gap].stops] == []
        assert await scene.ledger.outbox() == ()
        assert scene.journal.reflections == ()

        await until(ENDS + 16 * MINUTE)
        for gap in STILL_AT_WORK:
            forge.put(branch(gap), "MERGED")
            agents[gap].ends(0)
        await until(ENDS + 24 * MINUTE)
        daemon.end(Manner.DETACH)


async def all_is_as_it_should_be(scene: Scene) -> None:
    records = await scene.ledger.records()
    ended = {one.dispatch.gap.id: one.outcome for one in records}
    assert {gap: o and (str(o.kind), o.cause and str(o.cause)) for gap, o in ended.items()} == {
        **dict.fromkeys(MERGED_MEANWHILE, ("shipped", None)),
        **dict.fromkeys(MERGED_THEN_DIED, ("shipped", None)),
        **dict.fromkeys(WITHOUT_REQUEST, ("stalled", "no-pr")),
        **dict.fromkeys(STILL_AT_WORK, ("shipped", None)),
        **dict.fromkeys(OVER_TIME, ("killed", "deadline")),
    }
    assert len(records) == len(ALL), "nothing was tried a second time"
    assert [gap for gap in ALL if scene.executor.agents[gap].stops] == OVER_TIME
    assert len(scene.journal.reflections) == len(ALL)
    assert scene.leases.ours == {}
    assert scene.worktrees.there == set()


def a_night_shift(forge: type[Forge], folder: Path, patch: pytest.MonkeyPatch) -> Scene:
    gaps = [a_gap(gap, deadline=SOFT) for gap in ALL]
    scene = a_scene(a_backlog(*gaps), max_parallel=len(ALL), max_open_pulls=100)
    scene.world.pulls = forge(folder, LoopClock(), patch)
    return scene


@pytest.mark.parametrize("first", [0, 2])
async def test_an_hour_without_a_forge_harms_nobody(
    first: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In any order: each kind of silence meets other moments in the agents' lives."""
    scene = a_night_shift(Forge, tmp_path, monkeypatch)
    forge = scene.world.pulls
    assert isinstance(forge, Forge)

    await an_hours_outage(scene, forge, KINDS[first:] + KINDS[:first])

    await all_is_as_it_should_be(scene)
    events = [event for event, _ in scene.events if event.startswith("pulls.")]
    assert events == ["pulls.unavailable", "pulls.recovered"]
    assert forge.calls < 200


async def test_control_a_daemon_that_takes_silence_for_an_answer_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = a_night_shift(Trusting, tmp_path, monkeypatch)
    forge = scene.world.pulls
    assert isinstance(forge, Forge)

    with pytest.RaisesGroup(AssertionError):
        await an_hours_outage(scene, forge, KINDS)
