"""The brief, made of the files of a worktree or of the user's template (behaviour D7)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from chump_orchestrator.adapters import prompts
from chump_orchestrator.adapters.prompts import RepositoryPrompts
from chump_orchestrator.core.brief import BriefParts, brief
from chump_orchestrator.core.dispatch import Workspace
from chump_orchestrator.core.errors import Unavailable
from tests.builders import a_gap

GAP = a_gap(
    "COMP-005a-fe",
    title="Say {branch} aloud",
    description="Two\nlines of {worktree}",
    acceptance=("one", "two"),
)
BRANCH = "claude/comp-005a-fe"
LESSONS = ("COMP-1 ended stalled\nafter 3 s",)


def put(worktree: Path, name: str, text: str | bytes) -> Path:
    path = worktree / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.fixture
def worktree(tmp_path: Path) -> Path:
    made = tmp_path / "worktree"
    made.mkdir()
    return made


async def briefed(worktree: Path, template: str = "", lessons: tuple[str, ...] = ()) -> str:
    workspace = Workspace(str(worktree), BRANCH, "0" * 40)
    return await RepositoryPrompts(template=template).prompt(GAP, workspace, lessons)


async def test_d7_a_bare_repository_adds_nothing_to_the_brief(worktree: Path) -> None:
    assert await briefed(worktree, lessons=LESSONS) == brief(GAP, BRANCH, BriefParts(), LESSONS)


@pytest.mark.parametrize("rules", prompts.RULES)
@pytest.mark.parametrize("script", prompts.SHIP_SCRIPTS)
async def test_d7_rules_script_and_epilogue_are_found(
    worktree: Path, rules: str, script: str
) -> None:
    put(worktree, rules, "Obey.\n")
    put(worktree, script, "#!/bin/sh\n")
    put(worktree, prompts.EPILOGUE[0], "Ship it.\n")

    text = await briefed(worktree)

    assert text == brief(GAP, BRANCH, BriefParts("Obey.\n", "Ship it.\n", script))
    assert text.startswith("Obey.\n\n---\n")
    assert "working on gap COMP-005a-fe" in text
    assert f"{script} --gap COMP-005a-fe --auto-merge" in text
    assert text.endswith("Ship it.\n")


async def test_d7_of_two_places_the_first_counts(worktree: Path) -> None:
    for name in (*prompts.RULES, *prompts.SHIP_SCRIPTS):
        put(worktree, name, f"text of {name}\n")

    text = await briefed(worktree)

    assert text.startswith(f"text of {prompts.RULES[0]}\n")
    assert f"\n{prompts.SHIP_SCRIPTS[0]} --gap" in text


async def test_a_long_file_is_cut_and_says_so(
    worktree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompts, "PART_BYTES", 10)
    put(worktree, prompts.RULES[0], "0123456789abc")

    assert (await briefed(worktree)).startswith("0123456789\n[cut after 10 bytes]\n")


async def test_bytes_that_are_not_utf_8_are_replaced(worktree: Path) -> None:
    put(worktree, prompts.RULES[0], b"\xef\xbb\xbfa\xffb\n")

    assert (await briefed(worktree)).startswith("a\ufffdb\n")


@pytest.mark.parametrize("name", [prompts.RULES[0], prompts.SHIP_SCRIPTS[1], prompts.EPILOGUE[0]])
@pytest.mark.parametrize("link", ["file", "folder", "dangling"])
async def test_a_link_out_of_the_worktree_is_refused(worktree: Path, name: str, link: str) -> None:
    secret = put(worktree.parent / "home", Path(name).name, "secret")
    path = worktree / name
    path.parent.mkdir(parents=True)
    match link:
        case "file":
            path.symlink_to(secret)
        case "folder":
            path.parent.rmdir()
            path.parent.symlink_to(secret.parent)
        case _:
            path.symlink_to(worktree.parent / "nowhere")

    with pytest.raises(Unavailable, match="leads out of the worktree"):
        await briefed(worktree)


async def test_a_link_inside_the_worktree_is_followed(worktree: Path) -> None:
    put(worktree, "rules.md", "Obey.\n")
    (worktree / "docs").mkdir()
    (worktree / prompts.RULES[1]).symlink_to("../rules.md")

    assert (await briefed(worktree)).startswith("Obey.\n")


async def test_a_worktree_behind_a_link_is_a_worktree(worktree: Path) -> None:
    put(worktree, prompts.RULES[0], "Obey.\n")
    other = worktree.parent / "link"
    other.symlink_to(worktree)

    assert (await briefed(other)).startswith("Obey.\n")


async def test_a_loop_of_links_is_unavailable(worktree: Path) -> None:
    path = worktree / "docs" / "CHUMP_DISPATCH_RULES.md"
    path.parent.mkdir()
    path.symlink_to(path)

    with pytest.raises(Unavailable):
        await briefed(worktree)


async def test_a_folder_in_the_place_of_a_file_counts_as_none(worktree: Path) -> None:
    (worktree / prompts.RULES[0]).mkdir(parents=True)
    put(worktree, prompts.RULES[1], "Obey.\n")

    assert (await briefed(worktree)).startswith("Obey.\n")


async def test_a_worktree_that_is_gone_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable):
        await briefed(tmp_path / "nowhere")


@pytest.mark.parametrize("absolute", [True, False])
async def test_a_template_replaces_the_whole_brief(worktree: Path, absolute: bool) -> None:
    put(worktree, prompts.RULES[0], "Obey.\n")
    text = (
        "{gap}|{title}|{description}|{acceptance}|{branch}|{worktree}|{lessons}|{ship_command}"
        "|{unknown}|{}|{{gap}}|{ gap }\n"
    )
    path = put(worktree, "briefs/mine.md", text)

    made = await briefed(worktree, str(path) if absolute else "briefs/mine.md", LESSONS)

    assert made == (
        "COMP-005a-fe|Say {branch} aloud|Two\nlines of {worktree}|- one\n- two"
        f"|{BRANCH}|{worktree}|- COMP-1 ended stalled after 3 s"
        f"|git push origin HEAD:refs/heads/{BRANCH}, and open a pull request"
        "|{unknown}|{}|{COMP-005a-fe}|{ gap }\n"
    )


async def test_a_template_names_the_repositorys_own_ship_command(worktree: Path) -> None:
    put(worktree, prompts.SHIP_SCRIPTS[1], "#!/bin/sh\n")
    put(worktree, "brief.md", "run {ship_command}")

    made = await briefed(worktree, "brief.md")

    assert made == f"run {prompts.SHIP_SCRIPTS[1]} --gap COMP-005a-fe --auto-merge"


@pytest.mark.parametrize("template", ["nowhere.md", "/nowhere/at/all.md", "../out.md"])
async def test_a_template_that_cannot_be_read_is_unavailable(worktree: Path, template: str) -> None:
    put(worktree.parent, "out.md", "secret")

    with pytest.raises(Unavailable):
        await briefed(worktree, template)


async def test_a_template_that_is_a_pipe_is_unavailable(worktree: Path) -> None:
    os.mkfifo(worktree / "pipe")

    with pytest.raises(Unavailable, match="not a regular file"):
        await briefed(worktree, str(worktree / "pipe"))


async def test_a_brief_never_begins_like_a_command(worktree: Path) -> None:
    put(worktree, "brief.md", "\n/clear all of {gap}")

    assert (await briefed(worktree, "brief.md")) == "Your brief:\n\n\n/clear all of COMP-005a-fe"


async def test_p9_who_does_not_ship_gets_neither_script_nor_epilogue(worktree: Path) -> None:
    put(worktree, prompts.SHIP_SCRIPTS[0], "#!/bin/sh\n")
    put(worktree, prompts.EPILOGUE[0], "Ship it.\n")
    workspace = Workspace(str(worktree), BRANCH, "0" * 40)

    text = await RepositoryPrompts(is_shipped=True).prompt(GAP, workspace, ())

    assert text == brief(GAP, BRANCH, BriefParts(is_shipped=True))


async def test_p9_the_ship_command_of_a_template_is_to_commit(worktree: Path) -> None:
    put(worktree, "brief.md", "Then: {ship_command}")
    put(worktree, prompts.SHIP_SCRIPTS[0], "#!/bin/sh\n")
    workspace = Workspace(str(worktree), BRANCH, "0" * 40)
    maker = RepositoryPrompts(template="brief.md", is_shipped=True)

    text = await maker.prompt(GAP, workspace, ())

    assert text.startswith("Then: When the work is done: commit all of it")
    assert "bot-merge" not in text
