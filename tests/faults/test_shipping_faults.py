"""Case 1 of the fault catalogue for a daemon that ships: every step may be its last one (P9).

However often it dies, a dispatch has one request, one push of one commit, and one outcome.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.adapters.a_shipment import token
from tests.adapters.fake_gh import FakeGh
from tests.faults import rigs
from tests.faults.test_crashes import around
from tests.faults.trials import BYSTANDER, Trial

pytestmark = [pytest.mark.faults, pytest.mark.timeout(240)]

WORKING = 'commit(gap + "-made.txt", gap)'

LEAKING = f"""\
commit(gap + "-made.txt", gap)
if gap == "ANY-1":
    commit("notes.txt", {token("github")!r})
"""

SHIP = '[ship]\nby = "daemon"\nauto_merge = "merge"\n'


class OnForge(Trial):
    """A trial whose repository is on a GitHub that merges what it is asked to merge."""

    gh: FakeGh

    @property
    def env(self) -> dict[str, str]:
        path = f"{self.gh.folder}:{os.environ['PATH']}"
        return {**super().env, "PATH": path, "GH_REPO": self.gh.repository}

    def check_requests(self) -> None:
        """There is one request for each gap, no more and no fewer."""
        titles = sorted(one["title"] for one in self.gh.known())
        assert titles == ["ANY-1: ANY-1", f"{BYSTANDER}: {BYSTANDER}"]


BeginShipping = Callable[[str], OnForge]


@pytest.fixture
def shipping(tmp_path: Path) -> Iterator[BeginShipping]:
    """Begin a trial whose daemon ships."""
    begun: list[OnForge] = []

    def trial(agent: str) -> OnForge:
        made = OnForge.begin(tmp_path / "t", "ANY-1", agent=agent, more=SHIP)
        assert isinstance(made, OnForge)
        begun.append(made)
        made.gh = FakeGh(tmp_path / "bin", origin=made.origin)
        made.gh.merges_when_armed = True
        made.gh.save()
        settings = made.root / ".chump" / "orchestrator.toml"
        settings.write_text(settings.read_text().replace('use = "git"', 'use = "gh"'))
        return made

    yield trial
    for one in begun:
        one.clean()


CHAINS = {
    "looking": ("d7-after", *around("ship-look", "ship-sealed")),
    "pushing": around("ship-push", "ship-pushed"),
    "opening": around("ship-open", "ship-opened"),
    "finishing": (*around("ship-finish"), "d7-outcome-before", "d7-outcome-after"),
}


@pytest.mark.parametrize("chain", CHAINS)
def test_case_01_daemons_are_killed_at_one_step_of_shipping_after_another(
    shipping: BeginShipping, chain: str
) -> None:
    trial = shipping(WORKING)

    for at in CHAINS[chain]:
        rigs.crash(trial, at)
    trial.settle()

    trial.check()
    trial.check_requests()
    assert trial.outcomes() == {"ANY-1": "shipped", BYSTANDER: "shipped"}
    assert [len(trial.starts(gap)) for gap in ("ANY-1", BYSTANDER)] == [1, 1]


def test_case_01_a_daemon_that_dies_before_a_refusal_is_on_record_refuses_again(
    shipping: BeginShipping,
) -> None:
    trial = shipping(LEAKING)

    rigs.crash(trial, "ship-look-after")
    rigs.crash(trial, "ship-look-after:2")
    trial.settle()

    trial.check()
    assert trial.outcomes() == {"ANY-1": "stalled", BYSTANDER: "shipped"}
    assert trial.git("branch", "--list", "*any-1", at=trial.origin) == ""
    assert token("github") not in trial.log()
