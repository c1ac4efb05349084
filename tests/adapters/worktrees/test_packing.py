"""git's own upkeep: begun by us where much has gathered, and by no command of an agent."""

from __future__ import annotations

import os
import subprocess
from datetime import UTC, datetime
from hashlib import sha1
from itertools import count
from pathlib import Path
from shutil import which

import anyio
import pytest

from chump_orchestrator.adapters.git import Git
from chump_orchestrator.adapters.worktrees import packing
from chump_orchestrator.core.errors import Unavailable
from chump_orchestrator.equipment import NO_UPKEEP
from tests.adapters.launches import eventually
from tests.adapters.repositories import Repository, a_repository

COUNTED = "17"
"""The folder of objects by which git tells how many there are."""


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Return a repository of which git thinks that much has gathered."""
    made = a_repository(tmp_path)
    made.git("config", "gc.auto", "100")
    for name, text in enumerate(texts(3)):
        (made.root / f"{name}.txt").write_bytes(text)
    made.git("add", "--all")
    made.git("-c", "maintenance.auto=false", "commit", "-q", "-m", "much")
    return made


def texts(wanted: int) -> list[bytes]:
    """Return texts whose objects lie in that folder."""
    found: list[bytes] = []
    for number in count():
        text = b"%d\n" % number
        if sha1(b"blob %d\0" % len(text) + text).hexdigest().startswith(COUNTED):
            found.append(text)
        if len(found) == wanted:
            return found
    raise AssertionError


def loose(repository: Repository) -> int:
    """Return how many of those objects are files of their own."""
    return len(list((repository.root / ".git" / "objects" / COUNTED).glob("*")))


def log_of(repository: Repository) -> Path:
    return repository.root / ".git" / "gc.log"


async def pack(git: Git) -> None:
    await packing.pack(git, datetime.now(UTC))


def the_git(repository: Repository) -> Git:
    return Git(repository.root, dict(os.environ))


async def test_what_has_gathered_is_packed(repository: Repository) -> None:
    before = repository.git("rev-parse", "HEAD")
    assert loose(repository) >= 3

    await pack(the_git(repository))

    await eventually(lambda: loose(repository) == 0, "a pack")
    assert repository.git("rev-parse", "HEAD") == before
    repository.git("fsck", "--strict")


async def test_where_little_has_gathered_nothing_happens(tmp_path: Path) -> None:
    repository = a_repository(tmp_path)
    objects = repository.git("count-objects")

    await pack(the_git(repository))
    await anyio.sleep(0.3)

    assert repository.git("count-objects") == objects


@pytest.mark.parametrize("entry", [("gc.auto", "0"), ("maintenance.auto", "off")])
async def test_who_wants_none_gets_none(repository: Repository, entry: tuple[str, str]) -> None:
    repository.git("config", *entry)
    objects = loose(repository)

    await pack(the_git(repository))
    await anyio.sleep(0.3)

    assert loose(repository) == objects >= 3


async def test_nothing_that_the_repository_names_is_run(repository: Repository) -> None:
    hook = repository.root / ".git" / "hooks" / "pre-auto-gc"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch {repository.root}/was-run\n")
    hook.chmod(0o755)

    await pack(the_git(repository))

    await eventually(lambda: loose(repository) == 0, "a pack")
    assert not (repository.root / "was-run").exists()


async def test_one_that_went_wrong_is_told_of_and_tried_again_before_long(
    repository: Repository,
) -> None:
    log_of(repository).write_text("error: pack-objects died of signal 15\n")

    with pytest.raises(Unavailable, match="pack-objects died of signal 15"):
        await pack(the_git(repository))
    assert loose(repository) >= 3

    two_hours_ago = log_of(repository).stat().st_mtime - 7200
    os.utime(log_of(repository), (two_hours_ago, two_hours_ago))
    await pack(the_git(repository))

    await eventually(lambda: loose(repository) == 0, "a pack")


async def test_what_git_only_remarks_is_no_failure(repository: Repository, tmp_path: Path) -> None:
    """An agent has moved a ref while refs were packed, for one."""
    remarking = tmp_path / "bin" / "git"
    remarking.parent.mkdir()
    remarking.write_text(f'#!/bin/sh\necho "cannot lock ref" >&2\nexec {which("git")} "$@"\n')
    remarking.chmod(0o755)
    path = f"{remarking.parent}{os.pathsep}{os.environ['PATH']}"

    await pack(Git(repository.root, {**os.environ, "PATH": path}))

    await eventually(lambda: loose(repository) == 0, "a pack")


@pytest.mark.parametrize("is_agents", [True, False])
async def test_a_commit_of_an_agent_begins_none(repository: Repository, is_agents: bool) -> None:
    """Control: any other commit does."""
    entries = {"GIT_CONFIG_COUNT": str(len(NO_UPKEEP))}
    for number, (key, value) in enumerate(NO_UPKEEP):
        entries |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    command = ["git", "commit", "-q", "--allow-empty", "-m", "more"]
    someone = {f"GIT_{role}_EMAIL": "one@here.test" for role in ("AUTHOR", "COMMITTER")}
    env = {**os.environ, **someone, **(entries if is_agents else {})}

    subprocess.run(command, cwd=repository.root, env=env, check=True)

    if is_agents:
        await anyio.sleep(0.3)
        assert loose(repository) >= 3
    else:
        await eventually(lambda: loose(repository) == 0, "a pack")
