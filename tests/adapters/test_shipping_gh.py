"""Pull requests opened through a small `gh`: one for each branch, whatever fails (behaviour P9)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from chump_orchestrator.adapters.git import Git
from chump_orchestrator.adapters.shipping import GhShipper
from chump_orchestrator.adapters.shipping.gh import _credentials_of_gh
from chump_orchestrator.core.errors import ConfigError, RateLimited, Refused, Unavailable
from chump_orchestrator.core.shipping import Letter, Opened
from tests.adapters.a_shipment import BRANCH, AShipment
from tests.adapters.fake_gh import FakeGh

LETTER = Letter("GAP-1: a title", "what it is about, $(and) `more`\n")
URL = "https://github.com/acme/anvil/pull/{}"


class World:
    """A branch that is pushed, the forge that it is on, and the shipper."""

    def __init__(self, folder: Path) -> None:
        self.shipment = AShipment(folder)
        self.forge = FakeGh(folder / "bin", origin=self.shipment.origin)
        self.since = datetime.now(UTC)
        self.head = ""

    async def pushed(self) -> World:
        self.head = self.shipment.commit()
        await self.shipment.shipper.push(self.shipment.workspace, self.head)
        return self

    def a_shipper(self, *, env: Mapping[str, str] | None = None, **options: Any) -> GhShipper:
        repository = self.shipment.repository
        path = f"{self.forge.folder}:{repository.env['PATH']}"
        variables = {**repository.env, "PATH": path, "GH_REPO": "acme/anvil", **(env or {})}
        git = Git(repository.root, variables)
        return GhShipper(git=git, env=variables, base_ref="", **options)

    async def opened(self, shipper: GhShipper | None = None) -> Opened | None:
        return await (shipper or self.a_shipper()).open(
            self.shipment.workspace, self.head, LETTER, self.since
        )

    def kinds(self) -> list[str]:
        return [call["kind"] for call in self.forge.calls]


@pytest.fixture
async def world(tmp_path: Path) -> World:
    return await World(tmp_path).pushed()


async def test_a_request_is_opened_for_the_branch(world: World) -> None:
    opened = await world.opened()

    assert opened == Opened(1, URL.format(1))
    (request,) = world.forge.known()
    assert (request["title"], request["body"]) == (LETTER.title, LETTER.body)
    assert (request["headRefName"], request["headRefOid"]) == (BRANCH, world.head)
    assert (request["base"], request["isDraft"]) == ("main", False)


async def test_what_a_request_says_is_on_no_command_line(world: World) -> None:
    await world.opened()

    for call in world.forge.calls:
        assert not {"title", "body", LETTER.title, LETTER.body} & set(call["argv"])
        assert "a title" not in json.dumps(call["argv"])


async def test_opening_it_again_finds_the_one_there_is(world: World) -> None:
    """A daemon that died after it was opened does not know its number."""
    first = await world.opened()

    again = await world.opened(world.a_shipper())

    assert again == first
    assert world.kinds() == ["look", "create", "look"]


async def test_an_answer_that_was_lost_does_not_open_two(world: World) -> None:
    world.forge.denying(create="lost")
    with pytest.raises(Unavailable):
        await world.opened()
    world.forge.denying()

    opened = await world.opened()

    assert opened == Opened(1, URL.format(1))
    assert len(world.forge.known()) == 1


async def test_a_request_that_the_list_does_not_show_yet_is_waited_for(world: World) -> None:
    """GitHub refuses a second one; which one there is, the next look tells."""
    await world.opened()
    late = world.a_shipper()

    async def sees_nothing(*_: object) -> Opened | None:
        return None

    late._found = sees_nothing  # type: ignore[method-assign, assignment]

    with pytest.raises(Unavailable, match="does not show yet"):
        await world.opened(late)


@pytest.mark.parametrize("state", ["MERGED", "CLOSED"])
async def test_a_request_that_is_over_already_is_not_opened_anew(world: World, state: str) -> None:
    world.forge.request(7, BRANCH, world.head, world.since, state=state)

    assert await world.opened() == Opened(7, URL.format(7))
    assert world.kinds() == ["look"]


@pytest.mark.parametrize("whose", ["a fork's", "an older attempt's"])
async def test_a_request_of_another_is_not_taken_for_it(world: World, whose: str) -> None:
    """Behaviour P6."""
    is_fork = whose == "a fork's"
    when = world.since if is_fork else world.since - timedelta(days=1)
    state = "OPEN" if is_fork else "MERGED"
    world.forge.request(7, BRANCH, "3" * 40, when, state=state, fork=is_fork)
    if is_fork:
        # To the small forge, an open request with that head is one of the branch.
        world.forge.requests[0]["headRefName"] = BRANCH.upper()
        world.forge.save()

    assert await world.opened() == Opened(8, URL.format(8))


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        *(("look", answer) for answer in ("502", "empty", "null-data")),
        *(("create", answer) for answer in ("401", "403", "502", "html", "{}", "truncated")),
    ],
)
async def test_a_forge_that_does_not_answer_delays(world: World, call: str, answer: str) -> None:
    """Behaviour P3: also what an operator has to mend, as the work is not at fault."""
    world.forge.denying(**{call: answer})

    with pytest.raises(Unavailable):
        await world.opened()

    world.forge.denying()
    assert await world.opened() == Opened(1, URL.format(1))
    assert len(world.forge.known()) == 1


@pytest.mark.parametrize("answer", ["429", "rate-limited", "secondary"])
async def test_a_rate_limit_is_told_as_one(world: World, answer: str) -> None:
    world.forge.denying(create=answer)

    with pytest.raises(RateLimited):
        await world.opened()


async def test_a_forge_that_hangs_is_not_waited_for(world: World) -> None:
    world.forge.denying(create="hang")

    with pytest.raises(Unavailable, match="did not finish within 1 s"):
        await world.opened(world.a_shipper(timeout=timedelta(seconds=1)))


async def test_a_request_that_github_refuses_is_refused(world: World) -> None:
    world.shipment.git("push", "-q", "origin", f"{BRANCH}:main")

    with pytest.raises(Refused, match=f"No commits between main and {BRANCH}"):
        await world.opened()


async def test_a_token_is_never_quoted(world: World) -> None:
    world.forge.denying(create="echo-token")

    with pytest.raises(Unavailable) as caught:
        await world.opened(world.a_shipper(env={"GH_TOKEN": "my-secret-token"}))

    assert "my-secret-token" not in str(caught.value)
    assert "***" in str(caught.value)


@pytest.mark.parametrize("allows", [True, False])
async def test_a_draft_is_opened_where_there_are_drafts(world: World, allows: bool) -> None:
    world.forge.allows_drafts = allows
    world.forge.save()

    await world.opened(world.a_shipper(draft=True))

    (request,) = world.forge.known()
    assert request["isDraft"] is allows


async def test_labels_and_auto_merge_are_given_and_may_be_given_again(world: World) -> None:
    shipper = world.a_shipper(labels=("agent", "night"), auto_merge="squash")
    opened = await world.opened(shipper)
    assert opened is not None

    assert await shipper.finish(opened) == ()
    assert await shipper.finish(opened) == ()

    (request,) = world.forge.known()
    assert (request["labels"], request["armed"]) == (["agent", "night"], "SQUASH")
    assert world.kinds().count("arm") == 1


async def test_where_auto_merge_is_not_allowed_the_request_stays_open(world: World) -> None:
    world.forge.allows_auto_merge = False
    world.forge.save()
    shipper = world.a_shipper(auto_merge="merge")
    opened = await world.opened(shipper)
    assert opened is not None

    (lacking,) = await shipper.finish(opened)

    assert lacking.startswith("no auto-merge: ")
    assert "Auto merge is not allowed for this repository" in lacking
    assert await shipper.finish(opened) == ()
    assert world.forge.known()[0]["state"] == "OPEN"


@pytest.mark.parametrize("call", ["label", "find", "arm"])
async def test_a_forge_that_does_not_answer_at_the_end_delays(world: World, call: str) -> None:
    shipper = world.a_shipper(labels=("agent",), auto_merge="merge")
    opened = await world.opened(shipper)
    assert opened is not None
    world.forge.denying(**{call: "502"})

    with pytest.raises(Unavailable):
        await shipper.finish(opened)

    world.forge.denying()
    assert await shipper.finish(opened) == ()


async def test_what_is_already_merged_needs_no_arming(world: World) -> None:
    shipper = world.a_shipper(auto_merge="merge")
    opened = await world.opened(shipper)
    assert opened is not None
    world.forge.merge(opened.number)

    assert await shipper.finish(opened) == ()
    assert "arm" not in world.kinds()


async def test_a_repository_that_is_on_no_github_is_refused_at_the_start(world: World) -> None:
    with pytest.raises(ConfigError, match="names a repository on a GitHub"):
        await world.a_shipper(env={"GH_REPO": ""}).check()


async def test_without_gh_nothing_begins(world: World) -> None:
    path = world.shipment.repository.env["PATH"]
    empty = world.shipment.repository.folder / "empty"
    empty.mkdir()
    git = next(Path(one) for one in path.split(":") if (Path(one) / "git").exists())
    (empty / "git").symlink_to(git / "git")

    with pytest.raises(ConfigError, match="there is no gh on the PATH"):
        await world.a_shipper(env={"PATH": str(empty)}).check()


async def test_without_a_remote_there_is_nowhere_to_ship_to(world: World) -> None:
    world.shipment.git("remote", "remove", "origin")

    with pytest.raises(ConfigError, match="no remote to push to"):
        await world.a_shipper().check()


@pytest.mark.parametrize(
    ("env", "key"),
    [
        ({}, ""),
        ({"GH_TOKEN": "x"}, "credential.https://github.com.helper"),
        ({"GH_TOKEN": "x", "GH_HOST": "ghe.acme.com"}, "credential.https://ghe.acme.com.helper"),
        ({"GH_TOKEN": "x", "GH_HOST": "evil\n.com"}, ""),
    ],
)
def test_git_pushes_with_the_token_that_gh_has(env: Mapping[str, str], key: str) -> None:
    variables = _credentials_of_gh(env)

    assert variables.get("GIT_CONFIG_KEY_1", "") == key
    assert variables.get("GIT_CONFIG_VALUE_0", "") == ""
    assert "x" not in variables.values()
