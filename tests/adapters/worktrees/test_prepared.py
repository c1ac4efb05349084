"""Worktrees made ahead of time: given to dispatches whole, taken back only when like new."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest
from anyio import from_thread

from chump_orchestrator.adapters.worktrees import handover, prepared, rooms
from chump_orchestrator.adapters.worktrees.dispatches import GitWorktrees
from chump_orchestrator.core.dispatch import Names, Workspace
from chump_orchestrator.core.errors import Refused
from tests.adapters.repositories import Repository, a_repository, commit, git
from tests.adapters.worktrees.test_worktrees import FIRST, ID, SECOND, worktrees

OTHER_ID = "infra-2-260427120000-bbbbbb"


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return a_repository(tmp_path)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for git to trust files: here nobody measures."""
    monkeypatch.setattr(prepared, "SETTLED_S", 0.0)


def folder(repository: Repository) -> Path:
    return repository.root / ".chump" / "orchestrator" / "prepared"


def stock(repository: Repository) -> list[Path]:
    place = folder(repository)
    return sorted(place.iterdir()) if place.exists() else []


def seals_of(repository: Repository) -> list[Path]:
    return list(folder(repository).with_name("prepared-seals").iterdir())


async def stocked(repository: Repository, count: int = 1) -> tuple[GitWorktrees, str]:
    ours = worktrees(repository.root, prepared_dir=folder(repository))
    await ours.exclude()
    base = await ours.refresh()
    await ours.prepare(count)
    return ours, base


def is_whole(workspace: Workspace, dispatch_id: str = ID) -> bool:
    path = Path(workspace.path)
    listed = git(path, "worktree", "list", "--porcelain")
    entry = next(part for part in listed.split("\n\n") if part.startswith(f"worktree {path}\n"))
    return (
        git(path, "symbolic-ref", "HEAD") == f"refs/heads/{workspace.branch}"
        and git(path, "rev-parse", "HEAD") == workspace.base
        and git(path, "status", "--porcelain", "--ignored") == ""
        and f"locked chump:{dispatch_id}" in entry
    )


async def test_a_prepared_worktree_becomes_a_dispatch_s(repository: Repository) -> None:
    ours, base = await stocked(repository)
    (place,) = stock(repository)
    inode = place.stat().st_ino

    workspace = await ours.add(FIRST, base, ID)

    assert workspace == Workspace(str(repository.base_dir / "infra-1"), FIRST.branch, base)
    assert Path(workspace.path).stat().st_ino == inode
    assert is_whole(workspace)
    assert stock(repository) == []
    assert repository.git("config", "--get-regexp", r"^branch\.claude", check=False) == ""


async def test_without_a_prepared_one_a_worktree_is_made_as_ever(repository: Repository) -> None:
    ours, base = await stocked(repository, 1)

    first = await ours.add(FIRST, base, ID)
    second = await ours.add(SECOND, base, OTHER_ID)

    assert is_whole(first)
    assert is_whole(second, OTHER_ID)


async def test_one_that_was_prepared_for_an_older_base_begins_at_the_new_one(
    repository: Repository,
) -> None:
    ours, old = await stocked(repository)
    new = repository.push_elsewhere("main")
    repository.git("fetch", "-q")
    inode = stock(repository)[0].stat().st_ino

    workspace = await ours.add(FIRST, new, ID)

    assert old != new
    assert Path(workspace.path).stat().st_ino == inode
    assert (Path(workspace.path) / "elsewhere").exists()
    assert is_whole(workspace)


async def test_the_stock_follows_the_base_and_the_number(repository: Repository) -> None:
    ours, _ = await stocked(repository, 3)
    new = repository.push_elsewhere("main")
    repository.git("fetch", "-q")

    await ours.prepare(2)

    places = stock(repository)
    assert [git(place, "rev-parse", "HEAD") for place in places] == [new, new]
    await ours.prepare(0)
    assert stock(repository) == []
    assert len(repository.git("worktree", "list").splitlines()) == 1
    assert list((repository.root / ".git").glob("worktrees/*")) == []


@pytest.mark.parametrize("kept", ["loose", "packed", "symbolic"])
async def test_a_base_that_moved_is_followed_wherever_git_keeps_it(
    repository: Repository, kept: str
) -> None:
    """It is asked for whenever something happened, and git itself only where it may have moved."""
    settings = {"base_ref": "origin/HEAD"} if kept == "symbolic" else {}
    ours = worktrees(repository.root, prepared_dir=folder(repository), **settings)
    await ours.refresh()
    await ours.prepare(1)
    for name in ("one", "two"):
        new = repository.push_elsewhere("main", name)
        repository.git("fetch", "-q")
        if kept == "packed":
            repository.git("pack-refs", "--all")

        await ours.prepare(1)
        await ours.prepare(1)

        assert [git(place, "rev-parse", "HEAD") for place in stock(repository)] == [new]


async def test_what_was_shipped_goes_back_into_the_stock(repository: Repository) -> None:
    ours, base = await stocked(repository, 1)
    workspace = await ours.add(FIRST, base, ID)
    path = Path(workspace.path)
    inode = path.stat().st_ino
    commit(path, "work")
    (path / "target").mkdir()
    (path / "target" / "built").write_text("much\n")
    git(path, "push", "-q", "origin", f"{FIRST.branch}:main")
    repository.git("fetch", "-q")

    removal = await ours.remove(workspace, ID)

    assert removal.removed
    assert not path.exists()
    assert repository.git("branch", "--list", FIRST.branch) == ""
    await ours.prepare(1)
    (place,) = stock(repository)
    assert place.stat().st_ino == inode
    assert git(place, "status", "--porcelain", "--ignored") == ""
    assert git(place, "rev-parse", "HEAD") == repository.head("origin/main")
    again = await ours.add(SECOND, repository.head("origin/main"), OTHER_ID)
    assert Path(again.path).stat().st_ino == inode
    assert is_whole(again, OTHER_ID)


def hide_a_change(path: Path) -> None:
    git(path, "update-index", "--assume-unchanged", "README")
    (path / "README").write_text("what nobody sees\n")


def narrow_it(path: Path) -> None:
    git(path, "sparse-checkout", "set", "--no-cone", "/README")


def begin_a_bisection(path: Path) -> None:
    git(path, "update-ref", "refs/worktree/mark", "HEAD")


@pytest.mark.parametrize("spoil", [hide_a_change, narrow_it, begin_a_bisection])
async def test_what_an_agent_has_set_up_its_own_way_is_not_used_again(
    repository: Repository, spoil: Callable[[Path], None]
) -> None:
    """Control: without the look for it, the next agent would begin in what the last one left."""
    ours, base = await stocked(repository, 1)
    workspace = await ours.add(FIRST, base, ID)
    spoil(Path(workspace.path))

    removal = await ours.remove(workspace, ID)
    before = stock(repository)
    await ours.prepare(1)

    assert removal.removed or removal.reason
    assert before == []
    assert not (stock(repository)[0] / "what").exists()
    assert git(stock(repository)[0], "show", ":README") == "read me"
    assert (stock(repository)[0] / "README").read_text() == "read me\n"


async def test_of_who_worked_in_it_the_next_finds_no_trace(repository: Repository) -> None:
    ours, base = await stocked(repository, 1)
    workspace = await ours.add(FIRST, base, ID)
    path = Path(workspace.path)
    commit(path, "work")
    git(path, "fetch", "-q", "origin", "main")
    git(path, "reset", "-q", "--hard", base)

    await ours.remove(workspace, ID)
    await ours.prepare(1)
    again = await ours.add(SECOND, base, OTHER_ID)

    admin = Path(git(Path(again.path), "rev-parse", "--absolute-git-dir"))
    assert {one.name for one in admin.iterdir()} <= {
        *("HEAD", "ORIG_HEAD", "commondir", "gitdir", "index", "locked", "logs", "refs")
    }
    assert "work" not in git(Path(again.path), "reflog", "show", "HEAD", check=False)


async def test_one_that_was_kept_before_is_not_used_again(repository: Repository) -> None:
    """Its note would have the next dispatch's work swept as if it were what was kept."""
    ours, base = await stocked(repository, 1)
    workspace = await ours.add(FIRST, base, ID)
    (Path(workspace.path) / "unsaved").write_text("work\n")
    assert not (await ours.remove(workspace, ID)).removed
    (Path(workspace.path) / "unsaved").unlink()

    assert (await ours.remove(workspace, ID)).removed

    assert stock(repository) == []


async def test_a_branch_that_somebody_made_meanwhile_stays(repository: Repository) -> None:
    ours, base = await stocked(repository, 1)
    repository.git("branch", "--no-track", FIRST.branch, base)

    with pytest.raises(Refused, match="exists already"):
        await ours.add(FIRST, base, ID)

    assert repository.head(FIRST.branch) == base


async def test_work_is_kept_where_it_is_and_never_taken_into_the_stock(
    repository: Repository,
) -> None:
    ours, base = await stocked(repository, 1)
    workspace = await ours.add(FIRST, base, ID)
    (Path(workspace.path) / "unsaved").write_text("work\n")

    removal = await ours.remove(workspace, ID)

    assert not removal.removed
    assert (Path(workspace.path) / "unsaved").exists()
    assert stock(repository) == []
    assert seals_of(repository) == [], "as it is not to be made like new again"


async def test_of_one_that_has_vanished_nothing_is_kept(repository: Repository) -> None:
    ours, base = await stocked(repository, 1)
    workspace = await ours.add(FIRST, base, ID)
    repository.git("worktree", "remove", "--force", "--force", workspace.path)
    assert len(seals_of(repository)) == 1

    assert (await ours.remove(workspace, ID)).removed
    await ours.prepare(0)

    assert seals_of(repository) == []


@pytest.mark.parametrize("name", [".gitmodules", ".gitattributes"])
async def test_a_repository_that_needs_more_than_files_has_none_prepared(
    repository: Repository, name: str
) -> None:
    text = "*.bin filter=lfs\n" if name == ".gitattributes" else ""
    commit(repository.root, name, text)
    repository.git("push", "-q")

    ours, base = await stocked(repository, 2)

    assert stock(repository) == []
    assert is_whole(await ours.add(FIRST, base, ID))


async def test_with_relative_paths_git_itself_moves_them(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, base = await stocked(repository)
    monkeypatch.setattr(handover, "hand_over", lambda *_: False)

    assert is_whole(await ours.add(FIRST, base, ID))


async def test_nothing_is_prepared_on_another_file_system(
    repository: Repository, tmp_path: Path
) -> None:
    elsewhere = Path("/dev/shm")
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system here")
    with tempfile.TemporaryDirectory(dir=elsewhere) as place:
        ours = worktrees(repository.root, prepared_dir=Path(place) / "prepared")
        await ours.refresh()
        await ours.prepare(1)
        assert list((Path(place) / "prepared").iterdir()) == []


async def test_nothing_is_prepared_where_there_is_no_room(repository: Repository) -> None:
    ours = worktrees(repository.root, prepared_dir=folder(repository), min_free=1 << 60)
    await ours.refresh()

    await ours.prepare(2)

    assert stock(repository) == []


async def test_for_room_the_stock_goes_first(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, _ = await stocked(repository, 2)
    monkeypatch.setattr(rooms, "shortage", lambda *_: "no room" if stock(repository) else "")

    assert await ours.shortage() == ""
    assert stock(repository) == []


async def test_what_an_earlier_process_has_left_is_cleaned_up(repository: Repository) -> None:
    await stocked(repository, 2)
    (folder(repository) / "half-made").mkdir()
    assert len(stock(repository)) == 3

    later = worktrees(repository.root, prepared_dir=folder(repository))
    told = await later.heal()

    assert told == ()
    assert stock(repository) == []
    assert len(repository.git("worktree", "list").splitlines()) == 1


async def test_registrations_go_though_somebody_has_deleted_the_folder(
    repository: Repository,
) -> None:
    await stocked(repository, 2)
    rooms.delete([folder(repository)])

    await worktrees(repository.root, prepared_dir=folder(repository)).heal()

    assert list((repository.root / ".git").glob("worktrees/*")) == []


async def test_a_claim_that_fails_leaves_nothing_and_a_new_one_is_made(
    repository: Repository,
) -> None:
    ours, base = await stocked(repository, 1)
    (place,) = stock(repository)
    (place / "README").unlink()
    (place / "README").mkdir()
    (place / "README" / "in the way").touch()
    new = repository.push_elsewhere("main", "README")
    repository.git("fetch", "-q")

    workspace = await ours.add(FIRST, new, ID)

    assert new != base
    assert is_whole(workspace)
    assert stock(repository) == []
    assert len(repository.git("worktree", "list").splitlines()) == 2


async def test_dispatches_and_stock_do_not_trip_over_one_another(repository: Repository) -> None:
    ours, base = await stocked(repository, 3)
    made: list[Workspace] = []

    async def add(number: int) -> None:
        names = Names(f"claude/infra-{number}", f"infra-{number}")
        made.append(await ours.add(names, base, f"infra-{number}-260427120000-aaaaaa"))

    async with anyio.create_task_group() as group:
        for number in range(10):
            group.start_soon(add, number)
            group.start_soon(ours.prepare, 3)

    assert len({one.path for one in made}) == 10
    await ours.prepare(0)
    assert len(repository.git("worktree", "list").splitlines()) == 11


async def test_a_cancelled_claim_leaves_neither_branch_nor_worktree(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, base = await stocked(repository, 1)
    with anyio.CancelScope() as scope:
        # Its branch is made by then, and its name is not.
        monkeypatch.setattr(handover, "hand_over", lambda *_: from_thread.run_sync(scope.cancel))
        await ours.add(FIRST, base, ID)

    assert scope.cancelled_caught
    assert stock(repository) == []
    assert not repository.base_dir.exists() or list(repository.base_dir.iterdir()) == []
    assert repository.git("branch", "--list", "claude/*") == ""
    assert len(repository.git("worktree", "list").splitlines()) == 1


async def test_one_that_was_given_back_is_ready_again_without_a_wait(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files are old already; to wait for each in turn would let a pool run dry."""
    ours, base = await stocked(repository, 1)
    workspace = await ours.add(FIRST, base, ID)
    inode = Path(workspace.path).stat().st_ino
    monkeypatch.setattr(prepared, "SETTLED_S", 3600.0)

    await ours.remove(workspace, ID)
    with anyio.fail_after(60):
        await ours.prepare(1)

    (place,) = stock(repository)
    assert place.stat().st_ino == inode
