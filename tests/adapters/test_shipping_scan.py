"""What may not be pushed: secrets and forbidden paths, in any commit that would be (P9)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from chump_orchestrator.adapters.shipping import changes, scan
from chump_orchestrator.core.causes import Cause
from chump_orchestrator.core.shipping import Sealed, Withheld
from tests.adapters.a_shipment import KEY_BODY, AShipment, token

OWN = "the-daemon's/own+secret"


@pytest.fixture
def shipment(tmp_path: Path) -> AShipment:
    return AShipment(tmp_path, secrets=(OWN,))


async def test_ordinary_work_may_be_pushed(shipment: AShipment) -> None:
    shipment.commit("a.py")
    shipment.commit("b/c.py")
    head = shipment.commit("a.py", "changed\n")

    assert await shipment.inspect() == Sealed(head, "3 commits, 2 paths")


async def test_what_was_found_is_told_by_place_and_rule(shipment: AShipment) -> None:
    head = shipment.commit("src/config.py", f"x = 1\ny = '{token('stripe')}'\n")

    reason = await shipment.refusal()

    assert reason == f"not pushed: Stripe key in src/config.py, commit {head[:12]}"


async def test_our_own_secrets_are_never_shipped(tmp_path: Path) -> None:
    """No allow-list lets them pass."""
    shipment = AShipment(tmp_path, secrets=(OWN,), allow=("*",))
    shipment.commit("log.txt", f"before {OWN} after\n")

    reason = await shipment.refusal()

    assert "a secret of the orchestrator's own in log.txt" in reason
    assert OWN not in reason


async def test_a_forbidden_path_is_told_with_its_pattern(shipment: AShipment) -> None:
    head = shipment.commit(".GitHub/WorkFlows/ci.yml")

    reason = await shipment.refusal()

    pattern = "forbidden path (.github/workflows/*)"
    assert reason == f"not pushed: {pattern} in .GitHub/WorkFlows/ci.yml, commit {head[:12]}"


async def test_a_secret_that_a_later_commit_removes_is_found(shipment: AShipment) -> None:
    bad = shipment.commit("notes.md", token("github"))
    shipment.git("rm", "-q", "notes.md")
    shipment.git("commit", "-q", "-m", "tidy up")
    shipment.commit()

    assert await shipment.refusal() == f"not pushed: GitHub token in notes.md, commit {bad[:12]}"


async def test_a_secret_in_a_message_is_found(shipment: AShipment) -> None:
    head = shipment.commit(message=f"log in\n\nby {token('anthropic')}")

    assert (
        await shipment.refusal() == f"not pushed: Anthropic key in its message, commit {head[:12]}"
    )


async def test_a_secret_in_the_name_of_a_file_is_found_and_not_repeated(
    shipment: AShipment,
) -> None:
    head = shipment.commit(f"{token('github')}.pem")

    reason = await shipment.refusal()

    assert f"GitHub token in the name of a file, commit {head[:12]}" in reason
    assert "forbidden path (*.pem) in a file" in reason
    assert token("github") not in reason


@pytest.mark.parametrize(
    "data",
    [
        b"\0\xff\x80" * 400 + token("github").encode() + b"\0\xfe" * 400,
        b"x = " + b"a," * 2_000_000 + token("github").encode() + b" " + b"b," * 2_000_000,
        ("\ufeffkey: " + token("github") + "\r\n").encode("utf-16-le"),
        b'{"log": "first\\n' + token("github").encode() + b'\\nlast"}',
    ],
    ids=["binary", "one long line", "UTF-16", "behind an escape"],
)
async def test_a_secret_is_found_in_any_kind_of_file(shipment: AShipment, data: bytes) -> None:
    shipment.commit("data.bin", data)

    assert "GitHub token in data.bin" in await shipment.refusal()


async def test_a_secret_in_a_merge_that_neither_parent_has_is_found(shipment: AShipment) -> None:
    shipment.commit("one.txt")
    shipment.repository.main_moves()
    shipment.git("fetch", "-q", "origin")
    shipment.git("merge", "-q", "--no-commit", "--no-ff", "origin/main")
    (shipment.worktree / "evil.txt").write_text(token("github"))
    shipment.git("add", "evil.txt")
    shipment.git("commit", "-q", "-m", "merge")

    assert "GitHub token in evil.txt" in await shipment.refusal()


async def test_what_others_have_merged_meanwhile_is_not_looked_through(
    shipment: AShipment,
) -> None:
    """A workflow that came to main by a person is none of the agent's doing."""
    shipment.repository.on_main()
    forge = shipment.repository.folder / "forge"
    (forge / ".github" / "workflows").mkdir(parents=True)
    shipment.repository.commit(forge, ".github/workflows/ci.yml", token("github"))
    shipment.repository.git("push", "-q", "origin", "main", at=forge)
    shipment.commit("one.txt")
    shipment.git("fetch", "-q", "origin")
    shipment.git("merge", "-q", "origin/main")

    assert isinstance(await shipment.inspect(), Sealed)


async def test_what_the_base_has_already_is_no_news(shipment: AShipment) -> None:
    """A file with an old key in it may be edited, moved and copied."""
    repository = shipment.repository
    base = repository.commit(repository.root, "old.txt", f"{token('google')}\n{KEY_BODY}\n")
    repository.git("push", "-q", "origin", "main")
    shipment.git("reset", "-q", "--hard", base)
    shipment.workspace = type(shipment.workspace)(str(shipment.worktree), "claude/gap-1", base)
    shipment.git("mv", "old.txt", "new.txt")
    text = (shipment.worktree / "new.txt").read_text()
    shipment.commit("new.txt", f"a line more\n-----BEGIN {'PRIVATE'} KEY-----\n{text}")

    assert isinstance(await shipment.inspect(), Sealed)


@pytest.mark.parametrize("pattern", ["tests/*", "q8Zt*", "*BnRw5*", "gh?_q8*"])
async def test_the_allow_list_knows_paths_and_texts(tmp_path: Path, pattern: str) -> None:
    shipment = AShipment(tmp_path, allow=(pattern,))
    shipment.commit("tests/fixture.txt", token("github"))

    found = await shipment.inspect()

    assert isinstance(found, Withheld if pattern == "q8Zt*" else Sealed)


async def test_the_first_line_of_a_key_of_ours_is_no_secret(tmp_path: Path) -> None:
    begin = f"-----BEGIN OPENSSH {'PRIVATE'} KEY-----"
    shipment = AShipment(tmp_path, secrets=(begin, KEY_BODY))
    shipment.commit("guide.md", f"a key begins with {begin}\n")
    assert isinstance(await shipment.inspect(), Sealed)

    shipment.commit("guide.md", f"such as {KEY_BODY}\n")

    assert "a secret of the orchestrator's own" in await shipment.refusal()


async def test_renaming_something_to_a_forbidden_path_is_found(shipment: AShipment) -> None:
    shipment.commit("harmless.yml", "a: b\n" * 50)
    (shipment.worktree / ".github" / "workflows").mkdir(parents=True)
    shipment.git("mv", "harmless.yml", ".github/workflows/ci.yml")
    shipment.git("commit", "-q", "-m", "move")

    assert ".github/workflows/ci.yml" in await shipment.refusal()


async def test_removing_what_is_forbidden_is_found(tmp_path: Path) -> None:
    shipment = AShipment(tmp_path, forbidden=("README",))
    shipment.git("rm", "-q", "README")
    shipment.git("commit", "-q", "-m", "remove")

    assert "forbidden path (README) in README" in await shipment.refusal()


@pytest.mark.parametrize(
    ("name", "target", "rule"),
    [
        (".github", "ci", "forbidden path (.github/actions/*)"),
        (".github/workflows", "../ci", "forbidden path (.github/workflows/*)"),
        ("innocent", ".github/workflows", "link to a forbidden path (.github/workflows/*)"),
        ("a/innocent", "../.env", "link to a forbidden path (.env*)"),
        ("innocent", "/etc/passwd", "link out of the repository"),
        ("a/b/innocent", "../../../x", "link out of the repository"),
    ],
)
async def test_links_do_not_lead_around_what_is_forbidden(
    shipment: AShipment, name: str, target: str, rule: str
) -> None:
    shipment.link(name, target)

    assert f"{rule} in {name}" in await shipment.refusal()


async def test_a_link_within_the_repository_is_shipped(shipment: AShipment) -> None:
    shipment.commit("docs/guide.md")
    shipment.link("docs/latest", "../docs/guide.md")

    assert isinstance(await shipment.inspect(), Sealed)


@pytest.mark.parametrize("is_declared", [True, False])
async def test_a_repository_within_is_shipped_only_as_a_submodule(
    shipment: AShipment, is_declared: bool
) -> None:
    inner = shipment.worktree / "vendor"
    shipment.repository.git("init", "-q", str(inner))
    shipment.repository.commit(inner, "x", "x\n")
    if is_declared:
        shipment.commit(".gitmodules", '[submodule "v"]\n\tpath = vendor\n\turl = ../v.git\n')
    shipment.committed("vendor")

    found = await shipment.inspect()

    if is_declared:
        assert isinstance(found, Sealed)
    else:
        assert isinstance(found, Withheld)
        assert "repository within the repository in vendor" in found.reason


async def test_our_own_folders_are_forbidden_whatever_settings_say(tmp_path: Path) -> None:
    shipment = AShipment(tmp_path, forbidden=("!*",), always=("/.chump/orchestrator", "/.locks"))
    shipment.commit(".chump/Orchestrator/x")
    shipment.commit("deep/.locks/y")

    reason = await shipment.refusal()

    assert "forbidden path (/.chump/orchestrator) in .chump/Orchestrator/x" in reason
    assert "deep" not in reason


async def test_an_object_that_was_replaced_is_looked_through_as_it_is_pushed(
    shipment: AShipment,
) -> None:
    shipment.commit("a.txt", token("github"))
    blob = shipment.git("rev-parse", "HEAD:a.txt")
    (shipment.worktree / ".git-harmless").write_text("harmless\n")
    other = shipment.git("hash-object", "-w", ".git-harmless")
    (shipment.worktree / ".git-harmless").unlink()
    shipment.git("replace", blob, other)

    assert "GitHub token in a.txt" in await shipment.refusal()


async def test_a_commit_is_looked_through_whatever_is_said_of_its_parents(
    shipment: AShipment,
) -> None:
    shipment.commit("a.txt", token("github"))
    head = shipment.commit("a.txt", "clean\n")
    grafts = shipment.repository.root / ".git" / "info" / "grafts"
    grafts.write_text(f"{head} {shipment.repository.base}\n")

    assert "GitHub token in a.txt" in await shipment.refusal()


async def test_attributes_do_not_hide_a_file(shipment: AShipment) -> None:
    shipment.commit(".gitattributes", "*.txt binary -diff -text filter=no\n")
    shipment.commit("a.txt", token("github"))

    assert "GitHub token in a.txt" in await shipment.refusal()


async def test_what_is_too_much_to_look_through_is_not_pushed_unseen(
    shipment: AShipment, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipment.commit("large.bin", os.urandom(3000))
    shipment.commit("small.txt")
    with monkeypatch.context() as change:
        change.setattr(scan, "BATCH_BYTES", 2000)
        large = await shipment.refusal()
    with monkeypatch.context() as change:
        change.setattr(scan, "MOST_BYTES", 2000)
        much = await shipment.refusal()
    with monkeypatch.context() as change:
        change.setattr(scan, "MOST_COMMITS", 1)
        many = await shipment.refusal()

    assert "too large to look through (0 MiB) in large.bin" in large
    assert "too much to look through" in much
    assert many == "it has more than 1 commits, too many to look through"


async def test_many_objects_are_read_a_few_at_a_time(
    shipment: AShipment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "BATCH_BYTES", 5000)
    for number in range(12):
        (shipment.worktree / f"{number}.bin").write_bytes(os.urandom(1900))
    (shipment.worktree / "last.txt").write_text(f"\n{token('aws')}\n")
    shipment.git("add", "--all")
    shipment.git("commit", "-q", "-m", "many")

    assert "AWS access key in last.txt" in await shipment.refusal()


async def test_names_of_files_cannot_forge_what_is_told(shipment: AShipment) -> None:
    shipment.commit("evil\n\x1b[31m.pem")

    reason = await shipment.refusal()

    assert reason.isprintable()
    assert "evil" in reason


async def test_a_refusal_is_a_cause_that_no_words_of_the_agent_change(
    shipment: AShipment,
) -> None:
    shipment.commit("x.pem")

    found = await shipment.inspect()

    assert isinstance(found, Withheld)
    assert found.cause is Cause.SHIP_REFUSED


async def test_many_findings_are_counted(shipment: AShipment) -> None:
    for number in range(5):
        shipment.commit(f"{number}.pem")

    assert (await shipment.refusal()).endswith("; and 2 more")
