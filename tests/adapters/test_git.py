"""git runs without hooks, prompts and foreign variables, one writer at a time."""

import fcntl
import os
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import anyio
import pytest

from chump_orchestrator.adapters.git import LOCK_NAME, Git
from chump_orchestrator.adapters.git_asked import find_repository
from chump_orchestrator.adapters.git_manners import environment
from chump_orchestrator.core.errors import Refused, Unavailable
from tests.adapters.repositories import a_repository, commit, git


def env(**more: str) -> Mapping[str, str]:
    return {**os.environ, **more}


async def test_text_is_stripped_and_run_is_raw(tmp_path: Path) -> None:
    repository = a_repository(tmp_path)
    ours = Git(repository.root, env())

    assert await ours.text("rev-parse", "--abbrev-ref", "HEAD") == "main"
    assert (await ours.run("cat-file", "-p", "HEAD:README")).out == b"read me\n"
    assert (await ours.run("cat-file", "-e", "HEAD:nothing")).code != 0


async def test_a_refusal_says_what_git_said(tmp_path: Path) -> None:
    repository = a_repository(tmp_path)

    with pytest.raises(Refused, match=r"git cat-file failed: fatal: .*nonsense"):
        await Git(repository.root, env()).text("cat-file", "-p", "nonsense")


async def test_a_lock_in_the_way_passes(tmp_path: Path) -> None:
    repository = a_repository(tmp_path)
    (repository.root / ".git" / "refs" / "heads" / "new.lock").touch()

    with pytest.raises(Unavailable, match=r"git update-ref failed: .*new.lock"):
        await Git(repository.root, env()).text("update-ref", "refs/heads/new", "HEAD")


async def test_credentials_in_an_address_are_not_told(tmp_path: Path) -> None:
    repository = a_repository(tmp_path)
    address = "http://me:hunter2@127.0.0.1:9/none.git"

    with pytest.raises(Unavailable) as caught:
        await Git(repository.root, env()).text("ls-remote", address)

    assert "hunter2" not in str(caught.value)


async def test_foreign_variables_do_not_lead_astray(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    ours, theirs = a_repository(tmp_path / "a"), a_repository(tmp_path / "b")
    commit(theirs.root, "other")
    foreign = env(
        GIT_DIR=str(theirs.root / ".git"),
        GIT_WORK_TREE=str(theirs.root),
        GIT_INDEX_FILE=str(theirs.root / ".git" / "index"),
        GIT_CONFIG_COUNT="1",
        GIT_CONFIG_KEY_0="user.name",
        GIT_CONFIG_VALUE_0="Somebody",
    )

    found = Git(ours.root, foreign)

    assert await found.text("rev-parse", "HEAD") == ours.head()
    assert (await found.run("config", "user.name")).code == 1


def test_what_reaches_git_asks_nobody() -> None:
    seen = environment({"PATH": "/bin", "GIT_SSH_COMMAND": "ssh -i key", "GIT_EDITOR": "vi"})

    assert seen == {
        "PATH": "/bin",
        "GIT_SSH_COMMAND": "ssh -i key",
        "GIT_ASKPASS": "",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_TERMINAL_PROMPT": "0",
        "LC_ALL": "C",
    }


@pytest.mark.parametrize("configured", [False, True])
async def test_ssh_is_told_to_ask_nothing_unless_the_operator_chose_one(
    tmp_path: Path, configured: bool
) -> None:
    repository = a_repository(tmp_path)
    told = tmp_path / "told"
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    for name in ("ssh", "my-ssh"):
        script = bin_dir / name
        script.write_text(f'#!/bin/sh\necho "$0 $*" > {told}\nexit 1\n')
        script.chmod(0o755)
    if configured:
        repository.git("config", "core.sshCommand", "my-ssh -i key")
    ours = Git(repository.root, env(PATH=f"{bin_dir}:{os.environ['PATH']}"))

    with pytest.raises(Unavailable):
        await ours.text("ls-remote", "ssh://nowhere.invalid/repo.git")

    assert ("my-ssh -i key" in told.read_text()) == configured
    assert ("BatchMode=yes" in told.read_text()) != configured


async def test_hooks_are_not_run(tmp_path: Path) -> None:
    repository = a_repository(tmp_path)
    hook = repository.root / ".git" / "hooks" / "reference-transaction"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)

    await Git(repository.root, env()).text("update-ref", "refs/heads/new", "HEAD")

    assert repository.head("refs/heads/new") == repository.head()


async def test_the_lock_admits_one_at_a_time_also_between_objects(tmp_path: Path) -> None:
    repository = a_repository(tmp_path)
    inside = most = 0

    async def enter(ours: Git) -> None:
        nonlocal inside, most
        async with ours.lock():
            inside += 1
            most = max(most, inside)
            await anyio.sleep(0.01)
            inside -= 1

    one, other = Git(repository.root, env()), Git(repository.root, env())
    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(enter, one)
            group.start_soon(enter, other)

    assert most == 1


async def test_a_lock_that_another_process_holds_is_waited_for_with_a_limit(tmp_path: Path) -> None:
    repository = a_repository(tmp_path)
    ours = Git(repository.root, env())
    with (repository.root / ".git" / LOCK_NAME).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(Unavailable, match="has been locked by somebody else"):
            async with ours.lock(timedelta(seconds=0.2)):
                pass

    async with ours.lock(timedelta(seconds=20)):
        pass


async def test_cancelling_lets_go_of_the_lock(tmp_path: Path) -> None:
    repository = a_repository(tmp_path)
    ours = Git(repository.root, env())

    async def hold() -> None:
        async with ours.lock():
            await anyio.sleep_forever()

    async with anyio.create_task_group() as group:
        group.start_soon(hold)
        group.start_soon(hold)
        await anyio.sleep(0.1)
        group.cancel_scope.cancel()

    async with ours.lock(timedelta(seconds=20)):
        pass


async def test_a_fetch_brings_what_is_asked_for_and_nothing_else(tmp_path: Path) -> None:
    repository = a_repository(tmp_path)
    oid = repository.push_elsewhere("main")
    git(repository.origin, "tag", "v1", oid)
    ours = Git(repository.root, env())

    await ours.fetch("origin", ["+refs/heads/main:refs/remotes/origin/main"])

    assert repository.head("origin/main") == oid
    assert repository.git("tag") == ""
    assert not (repository.root / ".git" / "FETCH_HEAD").exists()


async def test_callers_who_wait_share_one_fetch(tmp_path: Path) -> None:
    """Behaviour D3: single-flight."""
    repository = a_repository(tmp_path)
    counter = tmp_path / "count"
    packer = tmp_path / "upload-pack"
    packer.write_text(f'#!/bin/sh\necho x >> {counter}\nsleep 0.3\nexec git-upload-pack "$@"\n')
    packer.chmod(0o755)
    repository.git("config", "remote.origin.uploadpack", str(packer))
    ours = Git(repository.root, env())

    refspecs = ["+refs/heads/main:refs/remotes/origin/main"]

    async with anyio.create_task_group() as group:
        group.start_soon(ours.fetch, "origin", refspecs)
        with anyio.fail_after(20):
            while not counter.exists():  # noqa: ASYNC110 - another process makes it
                await anyio.sleep(0.01)
        for _ in range(10):
            group.start_soon(ours.fetch, "origin", refspecs)

    assert counter.read_text().count("x") == 2


async def test_a_fetch_from_nowhere_is_unavailable(tmp_path: Path) -> None:
    repository = a_repository(tmp_path)
    repository.git("remote", "set-url", "origin", str(tmp_path / "gone.git"))

    with pytest.raises(Unavailable):
        await Git(repository.root, env()).fetch("origin", ["+refs/heads/main:refs/heads/x"])


async def test_the_main_work_tree_is_found_from_anywhere(tmp_path: Path) -> None:
    repository = a_repository(tmp_path, name="Repo Ünder Test")
    linked = tmp_path / "linked"
    repository.git("worktree", "add", "-q", "--detach", str(linked))
    (repository.root / "sub" / "folder").mkdir(parents=True)

    for start in (repository.root, repository.root / "sub" / "folder", linked):
        assert find_repository(start, env()) == repository.root
    assert find_repository(repository.root / ".git", env()) == repository.root
    assert Git(repository.root, env()).common_dir == repository.root / ".git"


async def test_a_submodule_is_found_as_a_repository_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "outer").mkdir()
    inner, outer = a_repository(tmp_path / "inner"), a_repository(tmp_path / "outer")
    outer.git(
        "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(inner.origin), "sub"
    )
    linked = tmp_path / "linked"
    git(outer.root / "sub", "worktree", "add", "-q", "--detach", str(linked))

    found = find_repository(linked, env())

    assert found == outer.root / "sub"
    assert Git(found, env()).common_dir == outer.root / ".git" / "modules" / "sub"


async def test_where_there_is_no_work_tree_the_remedy_is_told(tmp_path: Path) -> None:
    repository = a_repository(tmp_path)
    linked = tmp_path / "linked"
    git(repository.origin, "worktree", "add", "-q", "--detach", str(linked))

    with pytest.raises(Refused, match="--repo-root"):
        find_repository(tmp_path, env())
    with pytest.raises(Refused, match="is no folder"):
        find_repository(tmp_path / "nothing", env())
    for start in (repository.origin, linked):
        with pytest.raises(Refused, match="without --bare"):
            find_repository(start, env())


async def test_a_ref_that_an_agent_moves_during_a_fetch_is_fetched_again(tmp_path: Path) -> None:
    """Agents push from worktrees of the same repository, which moves the very ref we fetch."""
    repository = a_repository(tmp_path)
    git = Git(repository.root, os.environ)
    held = repository.root / ".git" / "refs" / "remotes" / "origin" / "main.lock"
    held.touch()
    repository.git("config", "core.filesRefLockTimeout", "1")
    repository.push_elsewhere("main")

    async with anyio.create_task_group() as group:
        group.start_soon(git.fetch, "origin", ["+refs/heads/main:refs/remotes/origin/main"])
        await anyio.sleep(0.15)
        held.unlink()

    assert (
        repository.head("origin/main") == repository.git("ls-remote", "origin", "main").split()[0]
    )
