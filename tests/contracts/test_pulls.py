"""What every provider of pull requests promises, whichever forge it asks (behaviour P3, P6, P7)."""

from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path
from typing import Protocol

import pytest

from chump_orchestrator.adapters.git import Git
from chump_orchestrator.adapters.pulls_gh import GhPulls
from chump_orchestrator.adapters.pulls_git import GitPulls
from chump_orchestrator.core.errors import Unavailable
from chump_orchestrator.core.outcome import PullRequest, PullState
from chump_orchestrator.core.ports import Pulls
from tests.adapters.a_repository import ARepository
from tests.adapters.fake_gh import FakeGh

HOUR = timedelta(hours=1)


class Driver(Protocol):
    """Does to a forge what agents and people do."""

    repository: ARepository
    pulls: Pulls

    def open(self, branch: str) -> None: ...
    def merge(self, branch: str) -> None: ...
    def close(self, branch: str) -> None: ...
    def strangers(self, branch: str) -> None: ...
    def older(self, branch: str) -> None: ...
    def fail(self) -> None: ...
    def recover(self) -> None: ...
    def questions(self) -> int: ...
    def restart(self) -> None: ...


class ByGit:
    """Branches of a bare repository; every command of git is counted."""

    def __init__(self, folder: Path) -> None:
        self.repository = ARepository(folder)
        self.counted = folder / "questions"
        program = folder / "bin" / "git"
        program.parent.mkdir()
        program.write_text(
            f"#!/bin/sh\ncase \"$*\" in *ls-remote*|*fetch*) echo >>'{self.counted}';; esac\n"
            f"exec '{shutil.which('git')}' \"$@\"\n",
            "utf-8",
        )
        program.chmod(0o755)
        self.restart()

    def restart(self) -> None:
        env = self.repository.env
        path = f"{self.counted.parent / 'bin'}:{env['PATH']}"
        self.pulls: Pulls = GitPulls(
            git=Git(self.repository.root, env | {"PATH": path}),
            base_ref="origin/main",
            clock=self.repository.clock,
            interval=timedelta(seconds=30),
        )

    def open(self, branch: str) -> None:
        self.repository.pushed(branch)

    def merge(self, branch: str) -> None:
        self.repository.on_main(("merge", "-q", "--no-ff", "-m", "merged", f"origin/{branch}"))

    def close(self, branch: str) -> None:
        self.repository.push(branch, "--delete")

    def strangers(self, branch: str) -> None:
        self.repository.worktree(branch)
        elsewhere = self.repository.clone()
        self.repository.git("checkout", "-q", "-b", branch, at=elsewhere)
        self.repository.commit(elsewhere, "strange", "not ours\n")
        self.repository.git("push", "-q", "origin", branch, at=elsewhere)

    def older(self, branch: str) -> None:
        elsewhere = self.repository.clone()
        self.repository.git("checkout", "-q", "-b", branch, at=elsewhere)
        long_ago = self.repository.since - HOUR
        self.repository.commit(elsewhere, "old", "an older attempt\n", when=long_ago)
        self.repository.git("push", "-q", "origin", branch, at=elsewhere)
        self.repository.worktree(branch)

    def fail(self) -> None:
        self.repository.origin.rename(self.repository.origin.with_suffix(".away"))

    def recover(self) -> None:
        self.repository.origin.with_suffix(".away").rename(self.repository.origin)

    def questions(self) -> int:
        return len(self.counted.read_text().splitlines()) if self.counted.exists() else 0


class ByGh:
    """Requests in the small gh's forge, their commits in a real repository."""

    def __init__(self, folder: Path) -> None:
        self.repository = ARepository(folder)
        self.forge = FakeGh(folder / "bin")
        self.restart()

    def restart(self) -> None:
        env = self.repository.env
        path = f"{self.forge.folder}:{env['PATH']}"
        self.pulls: Pulls = GhPulls(
            git=Git(self.repository.root, env),
            env=env | {"PATH": path, "GH_REPO": self.forge.repository},
            clock=self.repository.clock,
        )

    def _set(self, branch: str, head: str, state: str) -> None:
        created = self.repository.since + timedelta(minutes=1)
        known = [one["headRefName"] for one in self.forge.requests]
        number = 7 + (known.index(branch) if branch in known else len(known))
        self.forge.request(number, branch, head, created, state=state)

    def open(self, branch: str) -> None:
        self.repository.pushed(branch)
        self._set(branch, self.repository.tip(branch), "OPEN")

    def merge(self, branch: str) -> None:
        self._set(branch, self.repository.tip(branch), "MERGED")

    def close(self, branch: str) -> None:
        self._set(branch, self.repository.tip(branch), "CLOSED")

    def strangers(self, branch: str) -> None:
        self.repository.worktree(branch)
        elsewhere = self.repository.clone()
        self.repository.git("checkout", "-q", "-b", branch, at=elsewhere)
        head = self.repository.commit(elsewhere, "strange", "not ours\n")
        self.repository.git("push", "-q", "origin", f"{branch}:refs/pull/7/head", at=elsewhere)
        self._set(branch, head, "MERGED")

    def older(self, branch: str) -> None:
        self.repository.pushed(branch)
        head = self.repository.tip(branch)
        self.forge.request(3, branch, head, self.repository.since - HOUR, state="MERGED")

    def fail(self) -> None:
        self.forge.answers("502")

    def recover(self) -> None:
        self.forge.answers("ok")

    def questions(self) -> int:
        return len(self.forge.calls)


@pytest.fixture(params=[ByGit, ByGh], ids=["git", "gh"])
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> Driver:
    made: Driver = request.param(tmp_path)
    return made


async def one_look(driver: Driver, branch: str = "claude/gap-1") -> PullRequest:
    answer = await driver.pulls.look([driver.repository.watch(branch)])
    return answer[branch]


async def test_it_can_be_seen_beforehand_that_it_can_be_asked(driver: Driver) -> None:
    await driver.pulls.check()

    assert driver.questions() == 0


async def test_a_branch_that_was_not_pushed_has_none(driver: Driver) -> None:
    driver.repository.worktree("claude/gap-1")

    seen = await one_look(driver)

    assert seen == PullRequest("claude/gap-1", PullState.NONE, driver.repository.clock.now())


async def test_a_request_is_seen_open_then_merged(driver: Driver) -> None:
    driver.open("claude/gap-1")
    opened = await one_look(driver)
    driver.merge("claude/gap-1")
    merged = await one_look(driver)

    tip = driver.repository.tip("claude/gap-1")
    assert (opened.state, opened.head) == (PullState.OPEN, tip)
    assert (merged.state, merged.head) == (PullState.MERGED, tip)


async def test_a_request_that_was_merged_between_two_looks_is_merged(driver: Driver) -> None:
    driver.open("claude/gap-1")
    driver.merge("claude/gap-1")

    assert (await one_look(driver)).state is PullState.MERGED


async def test_a_request_that_was_given_up_is_closed(driver: Driver) -> None:
    driver.open("claude/gap-1")
    await one_look(driver)
    driver.close("claude/gap-1")

    assert (await one_look(driver)).state is PullState.CLOSED


async def test_a_strangers_work_under_our_branchs_name_is_not_ours(driver: Driver) -> None:
    """Behaviour P6: also after a second look."""
    driver.strangers("claude/gap-1")

    states = [(await one_look(driver)).state for _ in range(3)]

    assert states == [PullState.NONE] * 3


async def test_an_older_attempts_request_is_not_ours(driver: Driver) -> None:
    """Behaviour P6."""
    driver.older("claude/gap-1")

    assert (await one_look(driver)).state is PullState.NONE


async def test_a_failure_is_no_news_and_passes(driver: Driver) -> None:
    """Behaviour P3: nothing rests on an answer that never came."""
    driver.open("claude/gap-1")
    driver.fail()
    with pytest.raises(Unavailable):
        await one_look(driver)
    with pytest.raises(Unavailable):
        await one_look(driver)
    driver.recover()

    assert (await one_look(driver)).state is PullState.OPEN


async def test_the_moment_of_asking_is_before_the_answer(driver: Driver) -> None:
    clock = driver.repository.clock
    driver.open("claude/gap-1")
    first = await one_look(driver)
    before = clock.now()
    clock.advance(timedelta(seconds=30))
    second = await one_look(driver)

    assert (first.asked_at, second.asked_at) == (before, clock.now())


async def test_every_branch_that_was_asked_for_is_in_the_answer(driver: Driver) -> None:
    driver.open("claude/gap-1")
    driver.open("claude/gap-2")
    driver.repository.worktree("claude/gap-3")
    branches = ["claude/gap-1", "claude/gap-2", "claude/gap-3", "claude/never-made"]

    answer = await driver.pulls.look([driver.repository.watch(branch) for branch in branches])

    assert {branch: answer[branch].state for branch in branches} == {
        "claude/gap-1": PullState.OPEN,
        "claude/gap-2": PullState.OPEN,
        "claude/gap-3": PullState.NONE,
        "claude/never-made": PullState.NONE,
    }
    assert [answer[branch].branch for branch in branches] == branches


async def test_fifty_branches_are_one_question(driver: Driver) -> None:
    """Behaviour P7."""
    driver.open("claude/gap-0")
    watches = [driver.repository.watch(f"claude/gap-{n}") for n in range(50)]

    answer = await driver.pulls.look(watches)

    assert driver.questions() == 1
    assert len(answer) == 50
    assert answer["claude/gap-0"].state is PullState.OPEN


async def test_nothing_is_asked_about_nothing(driver: Driver) -> None:
    assert await driver.pulls.look([]) == {}
    assert driver.questions() == 0


async def test_a_merged_request_is_known_after_a_restart_and_the_clean_up(
    driver: Driver, tmp_path: Path
) -> None:
    repository = driver.repository
    driver.open("claude/gap-1")
    await one_look(driver)
    driver.merge("claude/gap-1")
    repository.git("worktree", "remove", "--force", str(tmp_path / "worktrees" / "claude-gap-1"))
    repository.git("branch", "-q", "-D", "claude/gap-1")
    repository.push("claude/gap-1", "--delete")
    driver.restart()

    assert (await one_look(driver)).state is PullState.MERGED
