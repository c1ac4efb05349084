"""What GitHub tells of a request beside its state; and of its checks, those that count (P5)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from chump_orchestrator.adapters.pulls_checks import (
    LONGEST_NAME,
    MOST_PAGES,
    Asked,
    Check,
    Judged,
    judged,
    read_pages,
)
from chump_orchestrator.adapters.pulls_graphql import unknown_fields
from chump_orchestrator.core.errors import Unavailable
from chump_orchestrator.core.pull import MOST_NAMED, Checks, MergeState, Review
from tests.adapters.forge_graphql import a_run, a_status
from tests.adapters.on_github import BRANCH, MINUTE, World

REQUIRED: dict[str, Any] = {"isRequired": True}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def questions(world: World) -> list[str]:
    """Say of every question so far what it was about."""
    texts = [call["body"]["query"] for call in world.forge.calls]
    return ["checks" if "contexts" in text else "requests" for text in texts]


async def test_who_is_to_review_and_merge_is_told(world: World) -> None:
    world.opened(
        isDraft=True,
        reviewDecision="CHANGES_REQUESTED",
        mergeStateStatus="BLOCKED",
        mergeQueueEntry={"state": "QUEUED"},
        autoMergeRequest={"enabledAt": "2026-04-27T12:00:00Z"},
    )

    seen = await world.look()

    assert (seen.review, seen.merge_state) == (Review.CHANGES_REQUESTED, MergeState.BLOCKED)
    assert (seen.is_draft, seen.is_queued, seen.is_armed) == (True, True, True)
    assert seen.in_words == (
        "pull request 7 is open, changes requested, a draft, in the merge queue,"
        " to be merged by itself"
    )


@pytest.mark.parametrize("word", ["", None, "OF_NEXT_YEAR", 7])
async def test_words_of_another_year_are_no_news(world: World, word: object) -> None:
    world.opened(reviewDecision=word, mergeStateStatus=word)

    seen = await world.look()

    assert (seen.review, seen.merge_state) == (Review.NONE, MergeState.UNKNOWN)


@pytest.mark.parametrize(
    "lacking",
    [["mergeQueueEntry", "autoMergeRequest"], ["mergeStateStatus", "isDraft", "reviewDecision"]],
)
async def test_an_older_server_is_asked_for_what_it_has_and_that_is_said_once(
    world: World, lacking: list[str]
) -> None:
    world.forge.lacking = lacking
    world.opened(checks="SUCCESS")

    with capture_logs() as logs:
        states = [(await world.look()).checks for _ in range(3)]

    assert states == [Checks.PASSING] * 3
    assert len(world.forge.calls) == 4, "one question in vain, in all"
    (told,) = [one for one in logs if one["event"] == "pulls.field_missing"]
    assert told["fields"] == sorted(lacking)


async def test_what_a_token_may_not_see_is_not_asked_for(world: World) -> None:
    """Otherwise a look would be no news for ever, for want of what nothing rests on."""
    world.opened(checks="SUCCESS")
    world.forge.answers("forbidden")

    states = [(await world.look()).checks for _ in range(2)]

    assert states == [Checks.PASSING] * 2
    assert len(world.forge.calls) == 3


async def test_a_server_that_lacks_what_must_be_known_is_no_news(world: World) -> None:
    world.forge.lacking = ["headRefOid", "isDraft"]
    world.opened()

    with pytest.raises(Unavailable, match=r"exist on type .* set pulls\.use = git"):
        await world.look()
    assert len(world.forge.calls) == 1


async def test_a_server_that_says_so_again_and_again_is_not_asked_for_ever(world: World) -> None:
    world.opened()
    world.forge.answers("says-so-for-ever")

    with pytest.raises(Unavailable, match="too old"):
        await world.look()
    assert len(world.forge.calls) == 2


async def test_a_check_that_nobody_requires_does_not_count(world: World) -> None:
    """Behaviour P5."""
    world.opened(contexts=[a_run("build", **REQUIRED), a_run("spelling", "FAILURE")])

    seen = await world.look()

    assert (seen.checks, seen.failing) == (Checks.PASSING, ())
    assert questions(world) == ["requests", "checks"]


async def test_the_failing_checks_are_named(world: World) -> None:
    world.opened(
        contexts=[
            a_run("build", **REQUIRED),
            a_run("test (3.11)", "TIMED_OUT", **REQUIRED),
            a_status("ci/legacy", "ERROR", **REQUIRED),
            a_run("spelling", "FAILURE"),
        ]
    )

    seen = await world.look()

    assert (seen.checks, seen.failing) == (Checks.FAILING, ("test (3.11)", "ci/legacy"))
    assert seen.failing_url == "https://github.com/acme/anvil/actions/runs/7/11?pr=7"
    assert "checks failing (test (3.11), ci/legacy)" in seen.in_words


async def test_where_no_check_is_required_every_one_counts(world: World) -> None:
    world.opened(contexts=[a_run("build"), a_run("spelling", "FAILURE")])

    assert (await world.look()).failing == ("spelling",)


async def test_a_required_check_that_is_still_at_work_has_not_failed(world: World) -> None:
    world.opened(contexts=[a_run("build", None, **REQUIRED), a_run("spelling", "FAILURE")])

    assert (await world.look()).checks is Checks.PENDING


async def test_green_requests_are_asked_about_once_a_look(world: World) -> None:
    world.opened(contexts=[a_run("build", **REQUIRED)])

    for _ in range(3):
        await world.look()

    assert questions(world) == ["requests"] * 3


async def test_single_checks_are_asked_for_when_the_head_changes_or_after_a_while(
    world: World,
) -> None:
    red = [a_run("build", "FAILURE", **REQUIRED)]
    worktree = world.repository.pushed(BRANCH)
    world.request(7, world.repository.tip(BRANCH), contexts=red)
    for _ in range(3):
        await world.look()
        world.repository.clock.advance(MINUTE)
    world.repository.commit(worktree, "more", "more\n")
    world.repository.push(BRANCH)
    world.request(7, world.repository.tip(BRANCH), contexts=red)
    await world.look()
    world.repository.clock.advance(MINUTE)
    await world.look()
    world.repository.clock.advance(5 * MINUTE)
    await world.look()

    assert questions(world) == [
        *("requests", "checks", "requests", "requests"),
        *("requests", "checks", "requests", "requests", "checks"),
    ]


async def test_what_turns_green_below_a_red_word_is_seen_after_a_while(world: World) -> None:
    head = world.opened(contexts=[a_run("build", "FAILURE", **REQUIRED), a_run("x", "FAILURE")])
    states = [(await world.look()).checks]
    world.request(7, head, contexts=[a_run("build", **REQUIRED), a_run("x", "FAILURE")])
    states.append((await world.look()).checks)
    world.repository.clock.advance(5 * MINUTE)
    states.append((await world.look()).checks)

    assert states == [Checks.FAILING, Checks.FAILING, Checks.PASSING]


async def test_a_hundred_checks_are_a_page_and_those_beyond_are_read(world: World) -> None:
    many = [a_run(f"shard {n}", **REQUIRED) for n in range(230)]
    world.opened(contexts=[*many, a_run("last", "FAILURE", **REQUIRED)])

    assert (await world.look()).failing == ("last",)
    assert questions(world) == ["requests", "checks", "checks", "checks"]


async def test_beyond_what_is_read_the_servers_word_stands(world: World) -> None:
    many = [a_run(f"shard {n}", **REQUIRED) for n in range(100 * MOST_PAGES)]
    world.opened(contexts=[*many, a_run("last", "FAILURE", **REQUIRED)])

    seen = await world.look()

    assert (seen.checks, seen.failing) == (
        Checks.FAILING,
        ("one of more checks than were read",),
    )
    assert len(world.forge.calls) == 1 + MOST_PAGES


async def test_a_server_that_does_not_know_what_is_required_counts_all(world: World) -> None:
    world.forge.lacking = ["isRequired"]
    world.opened(contexts=[a_run("build", **REQUIRED), a_run("spelling", "FAILURE")])

    assert (await world.look()).failing == ("spelling",)


async def test_while_single_checks_cannot_be_read_nothing_is_said_to_have_failed(
    world: World,
) -> None:
    """Behaviour P3: no news is no bad news, and costs no request every time."""
    world.opened(contexts=[a_run("build", "FAILURE", **REQUIRED)])
    world.forge.answers("no-checks")
    with capture_logs() as logs:
        unread = [(await world.look()).checks for _ in range(3)]
    world.forge.answers("ok")
    world.repository.clock.advance(MINUTE)
    read = (await world.look()).checks
    world.forge.answers("no-checks")
    world.repository.clock.advance(6 * MINUTE)
    known = (await world.look()).checks

    assert (unread, read, known) == ([Checks.PENDING] * 3, Checks.FAILING, Checks.FAILING)
    assert [one["event"] for one in logs].count("pulls.checks_unread") == 1
    assert questions(world).count("checks") == 3


async def test_names_of_checks_hide_nothing_and_fill_no_row(world: World) -> None:
    names = ["\x1b[2Jbuild\n\u202egreen", "x" * 500, "\ud800", ""]
    world.opened(
        contexts=[a_run(name, "FAILURE", detailsUrl="javascript:alert(1)") for name in names]
        + [a_run(f"shard {n}", "FAILURE", detailsUrl="https://a/\u202eb") for n in range(50)]
    )

    seen = await world.look()

    assert seen.failing[0] == "[2Jbuild green"
    assert len(seen.failing[1]) == LONGEST_NAME
    assert seen.failing[2:4] == ("?", "without a name")
    assert len(seen.failing) == MOST_NAMED
    assert seen.failing_url == ""


def test_only_a_servers_errors_tell_what_it_lacks() -> None:
    """A check's name is anybody's."""
    name = "Field 'isRequired' doesn't exist on type 'CheckRun'"
    data = {"data": {"name": name}, "errors": [{"message": "Something went wrong"}, 7]}
    real = {"errors": [{"message": name}, {"type": "FORBIDDEN", "path": ["a", 0, "isDraft"]}]}

    assert unknown_fields(json.dumps(data), "gh: Something went wrong") == frozenset()
    assert unknown_fields(json.dumps(real), "") == {"isRequired", "isDraft"}
    assert unknown_fields("<html>", f"gh: {name}") == {"isRequired"}
    assert unknown_fields('{"errors":{"message":7}}', "") == frozenset()


@pytest.mark.parametrize(
    "spoilt",
    [
        {"nodes": [7]},
        {"nodes": None},
        {"pageInfo": {"hasNextPage": True, "endCursor": None}},
        {"nodes": [{"__typename": "CheckRun", "name": 7}]},
    ],
)
def test_an_answer_about_checks_that_is_none_is_told(spoilt: dict[str, Any]) -> None:
    contexts = {"nodes": [], "pageInfo": {"hasNextPage": False, "endCursor": None}} | spoilt
    target = {"oid": "1" * 40, "statusCheckRollup": {"contexts": contexts}}
    data = {"repository": {"r0": {"headRef": {"target": target}}}}

    with pytest.raises(ValueError, match="the answer has no"):
        read_pages(data, [Asked(7)])


CHECKS = st.lists(
    st.builds(
        Check,
        name=st.sampled_from("abcdefghijklmn"),
        state=st.sampled_from([Checks.PASSING, Checks.PENDING, Checks.FAILING]),
        is_required=st.none() | st.booleans(),
        url=st.sampled_from(["", "https://ci"]),
    )
)


@given(CHECKS, st.booleans())
def test_only_what_counts_is_said_to_fail(checks: list[Check], is_whole: bool) -> None:
    """Behaviour P5."""
    verdict = judged(checks, is_whole=is_whole)
    required = [one for one in checks if one.is_required]
    counting = required or checks
    failed = {one.name for one in counting if one.state is Checks.FAILING}

    assert len(verdict.failing) <= MOST_NAMED
    if failed:
        assert verdict.state is Checks.FAILING
        assert set(verdict.failing) <= failed
    elif is_whole:
        assert verdict == Judged(verdict.state)
        assert verdict.state is not Checks.FAILING
    assert json.dumps(verdict.failing)


async def test_a_question_about_checks_costs_a_point_for_fifty_requests(tmp_path: Path) -> None:
    world = World(tmp_path)
    head = world.opened(checks="FAILURE")
    for number in range(50):
        world.request(100 + number, head, branch=f"claude/red-{number}", checks="FAILURE")
    watches = [world.repository.watch(f"claude/red-{n}") for n in range(50)]

    answer = await world.pulls.look(watches)

    assert {pull.checks for pull in answer.values()} == {Checks.FAILING}
    assert (len(world.forge.calls), world.forge.points) == (2, 2)
    assert world.pulls.budget.points == 2
