"""Cases 42 to 45: a forge that is silent, sparing with its answers, or tells of other people."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from chump_orchestrator.cli.client import ask
from tests.adapters.fake_gh import FakeGh
from tests.faults.rewired import settle_rewired, start_rewired
from tests.faults.trials import BYSTANDER, Trial, wait_until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(240)]

AGENT = """\
commit(gap + ".txt", gap)
git("push", "-q", "origin", "HEAD:refs/heads/" + branch)
while not any(os.path.exists(os.path.join(here, name)) for name in ("go", "go-" + gap)):
    time.sleep(0.02)
"""
"""An agent that has its request opened by the test, and ends when the test lets it."""

IN_A_HURRY = """
from datetime import timedelta
from chump_orchestrator.adapters import pulls_gh, pulls_wire
from chump_orchestrator.daemon import lookout
pulls_gh.GhPulls.__init__.__kwdefaults__["timeout"] = timedelta(seconds=1)
pulls_wire.FIRST_QUIET = timedelta(seconds=3)
lookout.FIRST_BACKOFF = timedelta(milliseconds=200)
begin = lookout.Lookout.__init__
def quickly(self, pulls, clock, interval, *rest):
    begin(self, pulls, clock, timedelta(milliseconds=300), *rest)
lookout.Lookout.__init__ = quickly
"""
"""The same program with less patience, so that its tests need less."""


class OnForge(Trial):
    """A trial whose repository is on a GitHub."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.gh = FakeGh(folder / "bin")

    @property
    def env(self) -> dict[str, str]:
        path = f"{self.gh.folder}:{os.environ['PATH']}"
        return {**super().env, "PATH": path, "GH_REPO": self.gh.repository}

    def pushed(self) -> dict[str, str]:
        """Return the branches of agents on the forge, and their heads."""
        listing = self.git("ls-remote", str(self.origin), "refs/heads/claude/*")
        pairs = (line.split("\t") for line in listing.splitlines())
        return {ref.removeprefix("refs/heads/"): head for head, ref in pairs}

    def status(self) -> dict[str, Any]:
        """Return what the daemon says; it has to say it soon (promise I5)."""
        took, answer = [], dict[str, Any]()
        for _ in range(3):
            began = time.monotonic()
            answer = ask(self.state / "control.sock", "status")["status"]
            took.append(time.monotonic() - began)
        assert min(took) < 1, took
        return answer

    def pulls(self) -> dict[str, dict[str, Any]]:
        """Return what the daemon has seen of each gap's request."""
        told = self.status()["dispatches"]
        return {one["gap"]: one["pull"] or {} for one in told}

    def let_go(self, *gaps: str) -> None:
        """Let the agents of these gaps end, by default of all."""
        for name in [f"go-{gap}" for gap in gaps] or ["go"]:
            (self.evidence / name).touch()

    def ended(self) -> int:
        return len(list(self.state.glob("d/*/exit.json")))

    def set_settings(self, old: str, new: str) -> None:
        path = self.root / ".chump" / "orchestrator.toml"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))


BeginOnForge = Callable[..., OnForge]


@pytest.fixture
def on_forge(tmp_path: Path) -> Iterator[BeginOnForge]:
    """Begin a trial on a forge; whatever still runs of it at the end is ended."""
    begun: list[OnForge] = []

    def trial(*ids: str, agent: str = AGENT, slots: int = 8) -> OnForge:
        made = OnForge.begin(tmp_path / f"t{len(begun)}", *ids, agent=agent, slots=slots)
        assert isinstance(made, OnForge)
        begun.append(made)
        made.set_settings('use = "git"', 'use = "gh"')
        return made

    yield trial
    for one in begun:
        one.clean()


def merge_all(trial: OnForge, *but: str) -> None:
    """Let the forge have merged a request of every branch that was pushed."""
    for number, (branch, head) in enumerate(sorted(trial.pushed().items()), 70):
        if branch not in but:
            trial.gh.request(number, branch, head, datetime.now(UTC), state="MERGED")


# 42: no answer, in all its forms

SILENCES = (
    *("502", "hang", "401", "403", "refused", "errors"),
    *("html", "empty", "{}", "null-data", "null-repository", "number", "errors-exit-0"),
    *("missing-alias", "other-shape", "truncated"),
)


def test_case_42_a_forge_without_answers_stops_nobody_and_settles_nothing(
    on_forge: BeginOnForge,
) -> None:
    """Every form of silence, one after the other, in the middle of a run; then all ship."""
    trial = on_forge("ANY-1", "ANY-2")
    daemon = start_rewired(trial, IN_A_HURRY, "--once")
    wait_until(lambda: len(trial.pushed()) == 3)
    wait_until(lambda: len(trial.gh.calls) >= 1)

    for number, kind in enumerate(SILENCES):
        trial.gh.answers(kind)
        before = len(trial.gh.calls)
        if number == 2:
            trial.let_go("ANY-1")
            wait_until(lambda: trial.ended() == 1)
        wait_until(lambda before=before: len(trial.gh.calls) > before)  # type: ignore[misc]
    told = trial.status()
    trial.let_go()
    wait_until(lambda: trial.ended() == 3)
    merge_all(trial)
    before = len(trial.gh.calls)
    wait_until(lambda: len(trial.gh.calls) > before)
    settled = trial.status()["settled"]
    trial.gh.answers("ok")

    assert daemon.wait(60) == 0, trial.log()
    assert (len(told["dispatches"]), told["settled"], settled) == (3, {}, {})
    assert told["daemon"]["forge_silent_s"] > 0
    trial.check()
    assert set(trial.outcomes().values()) == {"shipped"}
    exits = [path.read_text() for path in trial.state.glob("d/*/exit.json")]
    assert all('"killed_by": null' in text or '"killed_by":null' in text for text in exits), exits


# 43: limits


def asked_again(trial: OnForge) -> None:
    """Wait until the forge has been asked, and has answered as it does now."""
    before = len(trial.gh.calls)
    wait_until(lambda: len(trial.gh.calls) > before + 1)


def test_case_43_each_rate_limit_is_waited_out(on_forge: BeginOnForge) -> None:
    """While one holds nobody is asked, stopped or settled."""
    trial = on_forge("ANY-1")
    daemon = start_rewired(trial, IN_A_HURRY, "--once")
    wait_until(lambda: len(trial.pushed()) == 2)
    early = []

    for number, kind in enumerate(("rate-limited", "secondary", "429", "rate-limited-200")):
        asked_again(trial)  # the limit before this one is over
        until = datetime.now(UTC) + timedelta(seconds=6)
        trial.gh.rate = {"cost": 1, "remaining": 4000, "resetAt": f"{until:%Y-%m-%dT%H:%M:%SZ}"}
        trial.gh.answers("ok")
        asked_again(trial)
        trial.gh.answers(kind)
        wait_until(lambda number=number: len(limits(trial)) > number)  # type: ignore[misc]
        before = len(trial.gh.calls)
        trial.gh.answers("ok")
        assert trial.status()["settled"] == {}
        wait_until(lambda before=before: len(trial.gh.calls) > before)  # type: ignore[misc]
        began, wait_s = limits(trial)[number]
        early.append(max(0.0, began + wait_s - 0.1 - time.time()))
        assert wait_s > 0
    trial.let_go()
    wait_until(lambda: trial.ended() == 2)
    merge_all(trial)

    assert daemon.wait(60) == 0, trial.log()
    assert early == [0, 0, 0, 0]
    trial.check()
    assert set(trial.outcomes().values()) == {"shipped"}


def limits(trial: OnForge) -> list[tuple[float, float]]:
    """Return when limits were met, in seconds since the epoch, and how long they are to hold."""
    events = [json.loads(line) for line in trial.log().splitlines() if "pulls.rate_limited" in line]
    return [
        (datetime.fromisoformat(event["timestamp"]).timestamp(), event["wait_s"])
        for event in events
    ]


# 44: requests of others

STRANGE = ("OLD-1", "EARLY-1", "FORK-1", "OTHER-S-1")


def with_requests_of_others(on_forge: BeginOnForge) -> OnForge:
    """Return a trial on whose forge merged requests of others bear the names of its branches."""
    trial = on_forge(*STRANGE)
    who = ("-c", "user.name=Somebody", "-c", "user.email=s@example.org")
    head = trial.git(*who, "commit-tree", "HEAD^{tree}", "-p", "HEAD", "-m", "Not ours").strip()
    now = datetime.now(UTC)
    created = {"OLD-1": now - timedelta(days=2), "EARLY-1": now - timedelta(minutes=10)}
    for number, gap in enumerate(STRANGE, 3):
        trial.git("push", "-q", "origin", f"{head}:refs/pull/{number}/head")
        trial.gh.request(
            *(number, f"claude/{gap.lower()}", head, created.get(gap, now)),
            state="MERGED",
            fork=gap == "FORK-1",
        )
    trial.let_go()
    return trial


def only_its_own_request_counts(trial: OnForge) -> None:
    told = {one["gap"]: one for one in trial.json("history")["dispatches"]}
    assert {gap: (one["outcome"], one["pull"]) for gap, one in told.items()} == {
        **dict.fromkeys(STRANGE, ("stalled", None)),
        BYSTANDER: ("shipped", 99),
    }


def run_with_one_of_ours(trial: OnForge, change: str = "") -> None:
    daemon = start_rewired(trial, change, "--once")
    branch = f"claude/{BYSTANDER.lower()}"
    wait_until(lambda: branch in trial.pushed())
    trial.gh.request(99, branch, trial.pushed()[branch], datetime.now(UTC), state="MERGED")
    daemon.wait(90)


def test_case_44_requests_of_others_settle_nothing_of_ours(on_forge: BeginOnForge) -> None:
    """An older attempt's, one made before the launch, a fork's, and another person's."""
    trial = with_requests_of_others(on_forge)

    run_with_one_of_ours(trial)

    trial.check()
    only_its_own_request_counts(trial)


def test_case_44_control_without_the_question_whose_it_is(on_forge: BeginOnForge) -> None:
    trial = with_requests_of_others(on_forge)

    run_with_one_of_ours(
        trial,
        """
from datetime import timedelta
from chump_orchestrator.adapters import pulls_gh
async def is_ours(self, watch, request, refs, base_tip):
    return True
pulls_gh.GhPulls._is_ours = is_ours
pulls_gh.SLACK = timedelta(days=3650)
""",
    )

    with pytest.raises(AssertionError):
        only_its_own_request_counts(trial)


# 45: what becomes of a request on its way


def test_case_45_a_request_on_its_way_is_waited_for(on_forge: BeginOnForge) -> None:
    """Closed and opened again, a draft, red then green, in the merge queue; and one red for good.

    The last ends for the books after its grace; the others, however they went, by their merge.
    """
    trial = on_forge("REOPENED-1", "DRAFT-1", "GREEN-1", "QUEUED-1", "RED-1")
    trial.set_settings("[retry]", 'ci_grace = "8s"\n[retry]')
    numbers = {
        gap: number
        for number, gap in enumerate(
            ("REOPENED-1", "DRAFT-1", "GREEN-1", "QUEUED-1", "RED-1", BYSTANDER), 11
        )
    }

    def put(gap: str, state: str = "OPEN", checks: str | None = None) -> None:
        branch = f"claude/{gap.lower()}"
        trial.gh.request(*(numbers[gap], branch, heads[branch], opened), state=state, checks=checks)
        trial.gh.requests[-1]["isDraft"] = gap == "DRAFT-1" and state == "OPEN"
        trial.gh.save()

    def seen(gap: str, key: str, value: str) -> None:
        wait_until(lambda: trial.pulls()[gap].get(key) == value)

    daemon = start_rewired(trial, IN_A_HURRY, "--once")
    wait_until(lambda: len(trial.pushed()) == 6)
    heads, opened = trial.pushed(), datetime.now(UTC)
    put("REOPENED-1")
    put("DRAFT-1")
    put("QUEUED-1", checks="PENDING")
    put(BYSTANDER, checks="SUCCESS")
    put("GREEN-1", checks="FAILURE")
    seen("REOPENED-1", "state", "open")
    seen("GREEN-1", "checks", "failing")
    put("REOPENED-1", "CLOSED")
    put("GREEN-1", checks="SUCCESS")
    seen("REOPENED-1", "state", "closed")
    put("REOPENED-1")
    put("RED-1", checks="FAILURE")
    seen("REOPENED-1", "state", "open")
    seen("GREEN-1", "checks", "passing")
    trial.let_go()
    wait_until(lambda: trial.ended() == 6)
    wait_until(lambda: trial.status()["settled"] == {"ci_failed": 1})
    wait_until(lambda: set(trial.pulls()) == numbers.keys() - {"RED-1"})
    trial.git("push", "-q", "origin", "--delete", "claude/queued-1")
    for gap in numbers:
        if gap != "RED-1":
            put(gap, "MERGED")

    assert daemon.wait(60) == 1, trial.log()
    trial.check()
    assert trial.outcomes() == {**dict.fromkeys(numbers, "shipped"), "RED-1": "ci_failed"}


def test_case_45_control_a_pipeline_of_silence_alone_would_ship_nothing(
    on_forge: BeginOnForge,
) -> None:
    """The check of these cases fails when the forge never says that anything was merged."""
    trial = on_forge("ANY-1")
    trial.let_go()

    settle_rewired(trial, IN_A_HURRY)

    with pytest.raises(AssertionError, match="I6"):
        trial.check()
