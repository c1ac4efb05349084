"""A new worktree is whole before anybody begins in it, and to see that costs no second reading."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from chump_orchestrator.adapters.git import Git
from chump_orchestrator.adapters.worktrees import checkouts
from chump_orchestrator.adapters.worktrees.registrations import Registration, registered
from chump_orchestrator.core.dispatch import Workspace
from chump_orchestrator.core.errors import Refused, Unavailable
from tests.adapters.repositories import Repository, a_repository, commit, git


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    repository = a_repository(tmp_path)
    for name in ("src/one.txt", "src/two.txt"):
        commit(repository.root, name, f"{name}\n")
    return repository


def ours(repository: Repository, **env: str) -> Git:
    return Git(repository.root, {**os.environ, **env})


def made(repository: Repository) -> tuple[Workspace, Registration]:
    path = repository.base_dir / "new"
    repository.git("worktree", "add", "-q", "-b", "new", str(path))
    entry = registered(repository.root / ".git", path)
    assert entry is not None
    return Workspace(str(path), "new", repository.head()), entry


def lacks_a_file(path: Path) -> None:
    (path / "src" / "one.txt").unlink()


def has_a_short_file(path: Path) -> None:
    os.truncate(path / "src" / "one.txt", 3)


def has_an_empty_file(path: Path) -> None:
    os.truncate(path / "src" / "one.txt", 0)


def has_a_wrong_mode(path: Path) -> None:
    (path / "src" / "one.txt").chmod(0o755)


def has_a_link_for_a_file(path: Path) -> None:
    (path / "src" / "one.txt").unlink()
    (path / "src" / "one.txt").symlink_to("two.txt")


def has_one_file_for_two(path: Path) -> None:
    """As a file system does that takes names for one another."""
    (path / "src" / "one.txt").unlink()
    (path / "src" / "one.txt").hardlink_to(path / "src" / "two.txt")


def lacks_a_folder(path: Path) -> None:
    (path / "src").rename(path.parent / "elsewhere")


DEFECTS = (
    *(lacks_a_file, has_a_short_file, has_an_empty_file, has_a_wrong_mode),
    *(has_a_link_for_a_file, has_one_file_for_two, lacks_a_folder),
)


@pytest.mark.parametrize("reads", [False, True])
@pytest.mark.parametrize("spoil", DEFECTS)
async def test_a_checkout_that_is_not_whole_is_caught(
    repository: Repository, spoil: Callable[[Path], None], *, reads: bool
) -> None:
    workspace, entry = made(repository)
    spoil(Path(workspace.path))

    with pytest.raises(Refused, match="was not clean when it was new, first '1 "):
        await checkouts.verify(ours(repository), workspace, entry, reads=reads)


@pytest.mark.parametrize("reads", [False, True])
async def test_one_that_is_whole_is_not_touched(repository: Repository, *, reads: bool) -> None:
    """Its index, too, stays as it is: by its time git tells later changes."""
    workspace, entry = made(repository)
    index = entry.admin / "index"
    before, times = index.read_bytes(), index.stat().st_mtime_ns
    files = {one.name for one in entry.admin.iterdir()}

    await checkouts.verify(ours(repository), workspace, entry, reads=reads)

    assert (index.read_bytes(), index.stat().st_mtime_ns) == (before, times)
    assert {one.name for one in entry.admin.iterdir()} == files
    (Path(workspace.path) / "src" / "one.txt").write_text("src/two.txt\n")
    assert git(Path(workspace.path), "status", "--porcelain") == "M src/one.txt"


@pytest.mark.parametrize("reads", [False, True])
async def test_one_that_begins_elsewhere_is_caught(repository: Repository, *, reads: bool) -> None:
    workspace, entry = made(repository)
    git(Path(workspace.path), "commit", "-q", "--allow-empty", "-m", "Further on")

    with pytest.raises(Unavailable, match="did not begin at"):
        await checkouts.verify(ours(repository), workspace, entry, reads=reads)


async def test_what_differs_from_what_is_stored_is_caught_by_reading(
    repository: Repository,
) -> None:
    """Line endings that git would store otherwise: to see them the files have to be read."""
    commit(repository.root, "crlf.txt", "a\r\n")
    commit(repository.root, ".gitattributes", "*.txt text\n")
    git_ = ours(repository)
    workspace, entry = made(repository)
    young = (entry.admin / "index").stat().st_mtime - 10
    os.utime(entry.admin / "index", (young, young))

    assert await checkouts.Conversions(git_).is_any(workspace.base)
    with pytest.raises(Refused, match=r"first '1 .*crlf\.txt'"):
        await checkouts.verify(git_, workspace, entry, reads=True)


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        (".gitattributes", "*.txt text=auto\n", True),
        ("src/.gitattributes", "*.bin filter=lfs\n", True),
        (".gitattributes", "*.txt eol=crlf\n", True),
        (".gitattributes", "[attr]mine ident\n", True),
        (".gitattributes", "*.txt working-tree-encoding=UTF-16\n", True),
        (".gitattributes", "*.png -text diff=images\n", False),
        (".gitattributes", "*.md linguist-documentation\n", False),
        ("docs/text.md", "* text=auto\n", False),
    ],
)
async def test_whether_files_are_what_is_stored_is_told_by_attributes(
    repository: Repository, file: str, text: str, *, expected: bool
) -> None:
    base = commit(repository.root, file, text)
    home = str(repository.root.parent / "nowhere")

    found = checkouts.Conversions(ours(repository, HOME=home, XDG_CONFIG_HOME=""))

    assert await found.is_any(base) == expected
    assert await found.is_filtered(base) == ("filter=" in text)


async def test_it_is_told_by_settings_and_by_attributes_of_ones_own_as_well(
    repository: Repository, tmp_path: Path
) -> None:
    base = repository.head()
    git_ = ours(repository, HOME=str(tmp_path / "home"), XDG_CONFIG_HOME="")
    own = repository.root / ".git" / "info" / "attributes"
    users = tmp_path / "home" / ".config" / "git" / "attributes"
    assert not await checkouts.Conversions(git_).is_any(base)

    for file in (own, users):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("*.c filter=indent\n")
        assert await checkouts.Conversions(git_).is_any(base)
        assert await checkouts.Conversions(git_).is_filtered(base)
        file.unlink()
    for value, expected in (("true", True), ("input", True), ("false", False)):
        repository.git("config", "core.autocrlf", value)
        assert await checkouts.Conversions(git_).is_any(base) == expected


async def test_what_a_commit_cannot_tell_is_asked_again_at_the_next(
    repository: Repository,
) -> None:
    found = checkouts.Conversions(ours(repository))
    assert not await found.is_filtered(repository.head())

    later = commit(repository.root, ".gitattributes", "*.bin filter=lfs\n")

    assert await found.is_filtered(later)


def test_git_has_workers_where_there_are_cores_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, workers in ((1, 1), (2, 1), (4, 4), (64, 4)):
        affinity = lambda _, n=cores: set(range(n))  # noqa: E731
        monkeypatch.setattr(os, "sched_getaffinity", affinity, raising=False)
        assert f"checkout.workers={workers}" in checkouts.written_with()
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert "checkout.workers=4" in checkouts.written_with()
