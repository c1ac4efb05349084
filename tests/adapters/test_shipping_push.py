"""Work looked at where an agent left it, and pushed as one commit to one branch (behaviour P9)."""

from __future__ import annotations

from pathlib import Path

import pytest

from chump_orchestrator.core.causes import Cause
from chump_orchestrator.core.errors import ConfigError, Refused, Unavailable
from chump_orchestrator.core.shipping import Sealed, Withheld
from tests.adapters.a_shipment import BRANCH, MESSAGE, AShipment, token


@pytest.fixture
def shipment(tmp_path: Path) -> AShipment:
    return AShipment(tmp_path)


async def test_exactly_the_commit_that_was_looked_through_is_pushed(shipment: AShipment) -> None:
    head = shipment.commit()
    assert isinstance(await shipment.inspect(), Sealed)
    shipment.commit("later.txt", token("github"))

    await shipment.shipper.push(shipment.workspace, head)

    assert shipment.pushed() == head
    refs = shipment.repository.git("for-each-ref", "--format=%(refname)", at=shipment.origin)
    assert refs.split() == [f"refs/heads/{BRANCH}", "refs/heads/main"]


async def test_a_push_may_be_repeated(shipment: AShipment) -> None:
    """Behaviour P9: a daemon that died after it does not know that it was done."""
    head = shipment.commit()
    await shipment.shipper.push(shipment.workspace, head)

    await shipment.a_shipper().push(shipment.workspace, head)

    assert shipment.pushed() == head


async def test_nothing_is_forced_over_what_somebody_else_has_pushed(shipment: AShipment) -> None:
    head = shipment.commit()
    theirs = shipment.repository.clone()
    shipment.repository.git("checkout", "-q", "-b", BRANCH, at=theirs)
    other = shipment.repository.commit(theirs, "other.txt", "theirs\n")
    shipment.repository.git("push", "-q", "origin", BRANCH, at=theirs)

    with pytest.raises(Refused, match="commits of somebody else"):
        await shipment.shipper.push(shipment.workspace, head)

    assert shipment.pushed() == other


async def test_a_branch_of_our_own_grows(shipment: AShipment) -> None:
    await shipment.shipper.push(shipment.workspace, shipment.commit("one.txt"))
    head = shipment.commit("two.txt")

    await shipment.shipper.push(shipment.workspace, head)

    assert shipment.pushed() == head


async def test_what_a_rule_of_the_remote_says_is_told(shipment: AShipment) -> None:
    hook = shipment.origin / "hooks" / "pre-receive"
    hook.write_text("#!/bin/sh\necho 'no branches on Sundays' >&2\nexit 1\n")
    hook.chmod(0o755)
    head = shipment.commit()

    with pytest.raises(Refused, match=r"origin did not take the push: .*no branches on Sundays"):
        await shipment.shipper.push(shipment.workspace, head)


async def test_a_remote_that_is_not_there_delays(shipment: AShipment) -> None:
    head = shipment.commit()
    shipment.origin.rename(shipment.origin.with_suffix(".away"))

    with pytest.raises(Unavailable):
        await shipment.shipper.push(shipment.workspace, head)

    shipment.origin.with_suffix(".away").rename(shipment.origin)
    await shipment.shipper.push(shipment.workspace, head)
    assert shipment.pushed() == head


@pytest.mark.parametrize("hook", ["pre-push", "pre-commit", "commit-msg", "post-commit"])
async def test_no_hook_of_the_repository_runs(tmp_path: Path, hook: str) -> None:
    shipment = AShipment(tmp_path, commits=True)
    script = shipment.repository.root / ".git" / "hooks" / hook
    script.parent.mkdir(exist_ok=True)
    script.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\nexit 1\n")
    script.chmod(0o755)
    (shipment.worktree / "left.txt").write_text("left\n")

    found = await shipment.inspect()
    assert isinstance(found, Sealed)
    await shipment.shipper.push(shipment.workspace, found.head)

    assert shipment.pushed() == found.head
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("remote.origin.pushurl", "/elsewhere"),
        ("url./elsewhere/.pushInsteadOf", "/"),
        ("credential.helper", "!touch {ran}; false"),
        ("core.sshCommand", "touch {ran}; ssh"),
        ("remote.origin.receivepack", "touch {ran}; git-receive-pack"),
    ],
)
async def test_a_configuration_that_was_changed_since_is_not_pushed_by(
    shipment: AShipment, tmp_path: Path, key: str, value: str
) -> None:
    """An agent may write into it, and whatever is run there would have our credentials."""
    await shipment.shipper.check()
    head = shipment.commit()
    shipment.git("config", key, value.format(ran=tmp_path / "ran"))

    with pytest.raises(Unavailable, match=f"configuration has changed .*{key.partition('.')[0]}"):
        await shipment.shipper.push(shipment.workspace, head)

    assert shipment.pushed() == ""
    assert not (tmp_path / "ran").exists()
    shipment.git("config", "--unset", key)
    await shipment.shipper.push(shipment.workspace, head)
    assert shipment.pushed() == head


async def test_what_agents_usually_write_into_the_configuration_does_no_harm(
    shipment: AShipment,
) -> None:
    await shipment.shipper.check()
    head = shipment.commit()
    shipment.git("config", "remote.origin.gh-resolved", "base")
    shipment.git("config", f"branch.{BRANCH}.remote", "origin")
    shipment.git("config", "extensions.worktreeConfig", "true")
    shipment.git("remote", "add", "upstream", "/elsewhere")

    await shipment.shipper.push(shipment.workspace, head)

    assert shipment.pushed() == head


async def test_what_only_looks_has_no_credentials(tmp_path: Path) -> None:
    """A filter that an agent has set runs when work is looked at; it learns nothing by that."""
    shipment = AShipment(tmp_path, env={"GH_TOKEN": "not-for-filters"}, commits=True)
    shipment.commit(".gitattributes", "*.dat filter=spy\n")
    shipment.git("config", "filter.spy.clean", f"env > {tmp_path}/seen; cat")
    (shipment.worktree / "x.dat").write_text("x\n")

    assert isinstance(await shipment.inspect(), Sealed)

    seen = (tmp_path / "seen").read_text()
    assert "PATH=" in seen
    assert "not-for-filters" not in seen


@pytest.mark.parametrize("kind", ["changed", "new", "staged", "removed"])
async def test_uncommitted_work_is_not_shipped_silently(shipment: AShipment, kind: str) -> None:
    shipment.commit("a.txt")
    match kind:
        case "changed" | "staged":
            (shipment.worktree / "a.txt").write_text("other\n")
        case "new":
            (shipment.worktree / "new.txt").write_text("new\n")
        case _:
            (shipment.worktree / "a.txt").unlink()
    if kind == "staged":
        shipment.git("add", "a.txt")

    found = await shipment.inspect()

    name = "new.txt" if kind == "new" else "a.txt"
    assert found == Withheld(f"the agent left work uncommitted: {name}", Cause.NO_PULL)


async def test_uncommitted_work_is_committed_where_that_is_wanted(tmp_path: Path) -> None:
    shipment = AShipment(tmp_path, commits=True)
    shipment.commit("a.txt")
    (shipment.worktree / "new.txt").write_text("new\n")
    (shipment.worktree / ".gitignore").write_text("*.log\n")
    (shipment.worktree / "build.log").write_text("not work\n")

    found = await shipment.inspect()

    head = shipment.git("rev-parse", "HEAD")
    assert found == Sealed(head, "2 commits, 3 paths")
    assert shipment.git("log", "-1", "--format=%B") == MESSAGE.strip()
    assert await shipment.inspect() == found


async def test_a_secret_that_was_left_uncommitted_is_found_all_the_same(tmp_path: Path) -> None:
    shipment = AShipment(tmp_path, commits=True)
    (shipment.worktree / "new.txt").write_text(token("github"))

    assert "GitHub token in new.txt" in await shipment.refusal()


async def test_who_has_committed_nothing_ships_nothing(shipment: AShipment) -> None:
    found = await shipment.inspect()

    text = "the agent ended with exit code 0 and has committed nothing"
    assert found == Withheld(text, Cause.NO_PULL)


async def test_commits_on_no_branch_are_not_left_behind_silently(shipment: AShipment) -> None:
    shipment.commit("a.txt")
    shipment.git("checkout", "-q", "--detach")
    shipment.commit("b.txt")

    found = await shipment.inspect()

    text = f"the agent left commits that are not on its branch {BRANCH}"
    assert found == Withheld(text, Cause.NO_PULL)


async def test_a_worktree_that_stands_on_an_earlier_commit_is_fine(shipment: AShipment) -> None:
    shipment.commit("a.txt")
    head = shipment.commit("b.txt")
    shipment.git("checkout", "-q", "--detach", "HEAD^")

    found = await shipment.inspect()

    assert isinstance(found, Sealed)
    assert found.head == head


async def test_a_worktree_that_is_gone_is_told(shipment: AShipment) -> None:
    shipment.commit("a.txt")
    shipment.worktree.rename(shipment.worktree.with_name("away"))

    found = await shipment.inspect()

    assert isinstance(found, Withheld)
    assert found.reason.endswith("is gone")


async def test_work_that_the_base_has_by_now_need_not_be_looked_through(
    shipment: AShipment,
) -> None:
    """An agent with the right to push has merged it by itself."""
    head = shipment.commit("a.txt")
    shipment.git("push", "-q", "origin", "HEAD:main")

    assert await shipment.inspect() == Sealed(head, "0 commits, 0 paths")


async def test_a_repository_without_a_remote_keeps_its_branches(tmp_path: Path) -> None:
    shipment = AShipment(tmp_path)
    shipment.git("remote", "remove", "origin")
    shipper = shipment.a_shipper()
    head = shipment.commit()
    await shipper.check()

    found = await shipper.inspect(shipment.workspace, MESSAGE)
    await shipper.push(shipment.workspace, head)

    assert found == Sealed(head, "1 commit, 1 path")
    assert shipment.pushed() == ""


@pytest.mark.parametrize(
    ("base_ref", "branch"),
    [("", "main"), ("origin/main", "main"), ("origin/next", "next"), ("main", "main")],
)
async def test_the_base_branch_is_that_of_the_setting_or_the_remotes_head(
    tmp_path: Path, base_ref: str, branch: str
) -> None:
    shipment = AShipment(tmp_path, base_ref=base_ref)
    shipment.git("push", "-q", "origin", "main:next")

    survey = await shipment.shipper.remote.survey(BRANCH)

    assert survey.base_branch == branch
    assert survey.base_tip == shipment.repository.base


async def test_a_base_that_is_an_option_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="begins with a dash"):
        await AShipment(tmp_path, base_ref="--upload-pack=x").shipper.check()
