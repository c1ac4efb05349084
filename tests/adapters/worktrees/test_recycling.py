"""A worktree that goes from one agent to the next: nothing is lost, and nothing is left in it."""

import gc
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import anyio
import pytest

from chump_orchestrator.adapters.worktrees import handover, prepared, restoring, seals
from chump_orchestrator.adapters.worktrees.dispatches import GitWorktrees
from chump_orchestrator.core.dispatch import Workspace
from chump_orchestrator.core.errors import Unavailable
from tests.adapters.repositories import Repository, a_repository, commit, git
from tests.adapters.worktrees.test_prepared import OTHER_ID, folder, is_whole, stock, stocked
from tests.adapters.worktrees.test_worktrees import FIRST, ID, SECOND, nothing_is_left, worktrees

HAS_MARKS = hasattr(os, "listxattr")
"""Not on macOS."""

Habit = Callable[[Path], object]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More folders than one, and a file of every kind."""
    folder = tmp_path_factory.mktemp("template")
    repository = a_repository(folder)
    for name in ("src/core/one.txt", "src/core/two.txt", "docs/page.md"):
        commit(repository.root, name, f"{name}\n")
    (repository.root / "tool.sh").write_text("#!/bin/sh\n")
    (repository.root / "tool.sh").chmod(0o755)
    (repository.root / "src" / "link").symlink_to("core/one.txt")
    git(repository.root, "add", "-A")
    git(repository.root, "commit", "-q", "-m", "More")
    repository.git("push", "-q")
    return folder


@pytest.fixture
def repository(template: Path, tmp_path: Path) -> Repository:
    """A copy of it."""
    shutil.copytree(template, tmp_path, symlinks=True, dirs_exist_ok=True)
    copy = Repository(tmp_path / "repo", tmp_path / "origin.git")
    copy.git("remote", "set-url", "origin", str(copy.origin))
    return copy


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for git to trust files, but where that is what matters."""
    monkeypatch.setattr(prepared, "SETTLED_S", 0.0)


def portrait(path: Path) -> dict[str, tuple[object, ...]]:
    """All that one who begins to work there can see, folders of nothing included."""
    seen: dict[str, tuple[object, ...]] = {}
    for place in (path, *path.rglob("*")):
        found = place.lstat()
        name, mode = str(place.relative_to(path)), stat.S_IMODE(found.st_mode)
        if name == ".git":
            continue
        if stat.S_ISDIR(found.st_mode):
            seen[name] = ("folder", mode)
        elif stat.S_ISLNK(found.st_mode):
            seen[name] = ("link", str(place.readlink()))
        else:
            marks = os.listxattr(place) if HAS_MARKS else []
            seen[name] = ("file", mode, found.st_nlink, place.read_bytes(), marks)
    return seen


def is_like_new(repository: Repository, path: Path) -> bool:
    """Whether it is what git makes at the same commit, and git has nothing to say of it."""
    new = repository.root.parent / "new"
    repository.git("worktree", "add", "-q", "--detach", str(new), git(path, "rev-parse", "HEAD"))
    admin = Path(git(path, "rev-parse", "--absolute-git-dir"))
    try:
        assert portrait(path) == portrait(new)
        assert git(path, "ls-files", "-v", "--stage") == git(new, "ls-files", "-v", "--stage")
        assert git(path, "status", "--porcelain", "--ignored") == ""
        assert {one.name for one in admin.iterdir()} <= {
            *("HEAD", "ORIG_HEAD", "commondir", "gitdir", "index", "locked", "logs", "refs")
        }
    finally:
        repository.git("worktree", "remove", "--force", str(new))
    return True


def ship(path: Path) -> None:
    """Have all that is there be on the remote's main branch."""
    git(path, "add", "-A", "-f")
    git(path, "commit", "-q", "--allow-empty", "-m", "Work")
    git(path, "push", "-q", "origin", f"{FIRST.branch}:main")


# What agents do, of which nothing can be lost


def nothing(_: Path) -> None:
    pass


def works(path: Path) -> None:
    (path / "src" / "core" / "one.txt").write_text("changed\n")
    (path / "src" / "new" / "deep").mkdir(parents=True)
    (path / "src" / "new" / "deep" / "file.txt").write_text("new\n")
    (path / "docs" / "page.md").unlink()
    (path / "src" / "core" / "two.txt").chmod(0o755)
    ship(path)


def uses_odd_names(path: Path) -> None:
    for name in (b"-rf", b" blank ", b"line\nfeed", b"\xff\xfe", "tür".encode(), b":(top)x", b"*"):
        (path / "src" / os.fsdecode(name)).write_text("odd\n")
    ship(path)


def turns_kinds(path: Path) -> None:
    (path / "src" / "core" / "one.txt").unlink()
    (path / "src" / "core" / "one.txt").symlink_to("two.txt")
    (path / "src" / "link").unlink()
    (path / "src" / "link").mkdir()
    (path / "src" / "link" / "inside").write_text("a folder now\n")
    (path / "tool.sh").unlink()
    (path / "tool.sh").mkdir()
    (path / "tool.sh" / "x").write_text("x\n")
    ship(path)


def ships_what_is_ignored(path: Path) -> None:
    (path / "target").mkdir()
    (path / "target" / "kept").write_text("in the commit\n")
    ship(path)
    (path / "target" / "built").write_text("not in it\n")


def builds(path: Path) -> None:
    (path / "target" / "debug").mkdir(parents=True)
    (path / "target" / "debug" / "built.o").write_text("much\n")
    (path / "src" / "trace.log").write_text("told\n")
    (path / "src" / "core" / "target").mkdir()


def makes_empty_folders(path: Path) -> None:
    (path / "src" / "empty" / "below").mkdir(parents=True)
    (path / "none").mkdir()


def changes_modes(path: Path) -> None:
    (path / "README").chmod(0o600)
    (path / "tool.sh").chmod(0o4755)
    (path / "src" / "core").chmod(0o700)


def shares_a_file(path: Path) -> None:
    os.link(path / "README", path.parents[3] / "linked")


def marks_a_file(path: Path) -> None:
    try:
        os.setxattr(path / "README", "user.mark", b"mine")
    except (AttributeError, OSError):
        pytest.skip("this file system takes no extended attributes of users")


def touches(path: Path) -> None:
    os.utime(path / "README", (1, 1))
    os.utime(path / "src", (1, 1))
    text = (path / "docs" / "page.md").read_text()
    (path / "docs" / "page.md").unlink()
    (path / "docs" / "page.md").write_text(text)


def tells_git_to_overlook(path: Path) -> None:
    git(path, "update-index", "--assume-unchanged", "README")
    git(path, "update-index", "--skip-worktree", "docs/page.md")


def changes_its_mind(path: Path) -> None:
    commit(path, "src/core/one.txt", "changed\n")
    git(path, "revert", "--no-edit", "HEAD")
    git(path, "reset", "-q", "--hard", "HEAD~2")


def removes_and_brings_back(path: Path) -> None:
    git(path, "rm", "-q", "-r", "src")
    git(path, "checkout", "-q", "HEAD", "--", ".")


TIDY = (
    *(nothing, works, uses_odd_names, turns_kinds, ships_what_is_ignored, builds),
    *(makes_empty_folders, changes_modes, shares_a_file, marks_a_file, touches),
    *(tells_git_to_overlook, changes_its_mind, removes_and_brings_back),
)


async def lent(repository: Repository) -> tuple[GitWorktrees, Workspace, int]:
    ours, base = await stocked(repository, 1)
    workspace = await ours.add(FIRST, base, ID)
    return ours, workspace, Path(workspace.path).stat().st_ino


async def goes_to_the_next(
    repository: Repository, ours: GitWorktrees, workspace: Workspace, inode: int
) -> None:
    removal = await ours.remove(workspace, ID)
    repository.git("fetch", "-q")
    await ours.prepare(1)
    again = await ours.add(SECOND, repository.head("origin/main"), OTHER_ID)

    assert removal.removed, removal
    assert Path(again.path).stat().st_ino == inode
    assert is_whole(again, OTHER_ID)
    assert is_like_new(repository, Path(again.path))


@pytest.mark.parametrize("habit", TIDY)
async def test_the_next_agent_begins_as_in_a_new_worktree(
    repository: Repository, habit: Habit
) -> None:
    """Control: without the look at folders, or with git's own look at times, traces stay."""
    ours, workspace, inode = await lent(repository)
    habit(Path(workspace.path))

    await goes_to_the_next(repository, ours, workspace, inode)


@pytest.mark.parametrize("habit", [works, changes_modes, shares_a_file, touches])
async def test_so_it_does_when_git_trusts_the_files(
    repository: Repository, habit: Habit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is after a while: it is git's comparison of times that tells what was touched."""
    monkeypatch.setattr(prepared, "SETTLED_S", 1.1)
    ours, workspace, inode = await lent(repository)
    habit(Path(workspace.path))

    await goes_to_the_next(repository, ours, workspace, inode)


async def test_a_worktree_that_goes_through_many_hands_stays_like_new(
    repository: Repository,
) -> None:
    ours, workspace, inode = await lent(repository)
    habits = (builds, touches, works, ships_what_is_ignored, makes_empty_folders, turns_kinds)

    for habit in habits:
        habit(Path(workspace.path))
        assert (await ours.remove(workspace, ID)).removed
        repository.git("fetch", "-q")
        await ours.prepare(1)
        workspace = await ours.add(FIRST, repository.head("origin/main"), ID)
        assert Path(workspace.path).stat().st_ino == inode
        assert is_like_new(repository, Path(workspace.path))


# What is not passed on


def sets_its_own_settings(path: Path) -> None:
    git(path, "config", "extensions.worktreeConfig", "true")
    git(path, "config", "--worktree", "core.pager", "less")


def leaves_a_lock(path: Path) -> None:
    Path(git(path, "rev-parse", "--absolute-git-dir"), "index.lock").touch()


def links_a_folder_elsewhere(path: Path) -> None:
    (path / "docs").rename(path.parents[3] / "docs-elsewhere")
    (path / "docs").symlink_to(path.parents[3] / "docs-elsewhere")


def forges_times(path: Path) -> None:
    before = (path / "README").stat()
    (path / "README").write_text("real me\n")
    os.utime(path / "README", ns=(before.st_atime_ns, before.st_mtime_ns))


def hides_a_change(path: Path) -> None:
    git(path, "update-index", "--assume-unchanged", "README")
    (path / "README").write_text("what nobody sees\n")


def hides_it_otherwise(path: Path) -> None:
    git(path, "update-index", "--skip-worktree", "README")
    (path / "README").write_text("what nobody sees\n")


def leaves_a_file_where_it_builds(path: Path) -> None:
    builds(path)
    (path / "src" / "unsaved").write_text("work\n")


def stages_and_forgets(path: Path) -> None:
    (path / "README").write_text("staged\n")
    git(path, "add", "README")
    (path / "README").write_text("read me\n")


def works_without_shipping(path: Path) -> None:
    commit(path, "src/core/one.txt", "unpushed\n")


def keeps_a_secret(path: Path) -> None:
    (path / ".env.local").write_text("secret\n")


def keeps_a_secret_deep_down(path: Path) -> None:
    (path / "src" / "new").mkdir()
    (path / "src" / "new" / "shipped").write_text("shipped\n")
    ship(path)
    (path / "src" / "new" / ".env").write_text("secret\n")


def leaves_a_file(path: Path) -> None:
    (path / "src" / "core" / "unsaved").write_text("work\n")


def deletes_a_file(path: Path) -> None:
    (path / "src" / "core" / "two.txt").unlink()


def brings_back_what_was_shipped_as_gone(path: Path) -> None:
    (path / "README").unlink()
    ship(path)
    (path / "README").write_text("read me\n")


def goes_back_in_history_only(path: Path) -> None:
    works(path)
    git(path, "reset", "-q", "--soft", "HEAD~1")
    git(path, "reset", "-q")


UNTIDY = (
    *(forges_times, stages_and_forgets, works_without_shipping, keeps_a_secret),
    *(keeps_a_secret_deep_down, leaves_a_file, deletes_a_file, links_a_folder_elsewhere),
    *(brings_back_what_was_shipped_as_gone, goes_back_in_history_only),
    *(hides_a_change, hides_it_otherwise, leaves_a_file_where_it_builds),
)


@pytest.mark.parametrize("habit", UNTIDY)
async def test_what_might_be_work_is_neither_passed_on_nor_lost(
    repository: Repository, habit: Habit
) -> None:
    """Promise I4. Control: each of these is what the quick look must not take for nothing."""
    ours, workspace, _ = await lent(repository)
    path = Path(workspace.path)
    habit(path)
    before = portrait(path)

    removal = await ours.remove(workspace, ID)

    assert not removal.removed
    assert portrait(path) == before
    assert removal.salvage_ref
    if habit in (hides_a_change, hides_it_otherwise):
        kept = repository.git("show", f"{removal.salvage_ref}:README")
        assert kept == "what nobody sees"
    assert stock(repository) == []


@pytest.mark.parametrize("habit", [sets_its_own_settings, leaves_a_lock])
async def test_what_is_set_up_in_its_own_way_is_not_passed_on(
    repository: Repository, habit: Habit
) -> None:
    ours, workspace, _ = await lent(repository)
    habit(Path(workspace.path))

    await ours.remove(workspace, ID)

    assert stock(repository) == []
    await ours.prepare(1)
    assert is_like_new(repository, *stock(repository))


# Whose hands it is in


async def test_those_given_back_serve_before_any_is_made(repository: Repository) -> None:
    """More may be there than are wanted, so that none is deleted here and made there."""
    ours, base = await stocked(repository, 1)
    first = await ours.add(FIRST, base, ID)
    inode = Path(first.path).stat().st_ino
    await ours.prepare(1)
    await ours.remove(first, ID)
    await ours.prepare(1)
    assert len(stock(repository)) == 2

    taken = [await ours.add(FIRST, base, ID), await ours.add(SECOND, base, OTHER_ID)]

    assert inode in [Path(one.path).stat().st_ino for one in taken]
    assert stock(repository) == []


async def test_no_more_than_twice_as_many_are_kept(repository: Repository) -> None:
    ours, base = await stocked(repository, 3)
    first = await ours.add(FIRST, base, ID)
    second = await ours.add(SECOND, base, OTHER_ID)
    await ours.prepare(1)
    await ours.remove(first, ID)
    await ours.remove(second, OTHER_ID)

    await ours.prepare(1)

    assert len(stock(repository)) == 2
    assert len(repository.git("worktree", "list").splitlines()) == 3
    await ours.prepare(0)
    assert stock(repository) == []
    assert list((repository.root / ".chump" / "orchestrator" / "prepared-seals").iterdir()) == []


async def test_one_that_was_given_back_does_not_wait_for_one_that_is_made(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, base = await stocked(repository, 1)
    workspace = await ours.add(FIRST, base, ID)
    await ours.remove(workspace, ID)
    monkeypatch.setattr(prepared, "SETTLED_S", 3600.0)

    with anyio.move_on_after(1.0):
        await ours.prepare(2)

    again = await ours.add(SECOND, base, OTHER_ID)
    assert is_whole(again, OTHER_ID)
    assert stock(repository) == []


async def test_a_process_in_it_keeps_it_from_being_passed_on(repository: Repository) -> None:
    ours, workspace, _ = await lent(repository)

    async with await anyio.open_process(["sleep", "60"], cwd=workspace.path) as process:
        removal = await ours.remove(workspace, ID)
        process.kill()

    assert not removal.removed
    assert stock(repository) == []


async def test_one_that_cannot_be_made_like_new_is_thrown_away(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, workspace, _ = await lent(repository)
    builds(Path(workspace.path))
    await ours.remove(workspace, ID)

    with monkeypatch.context() as patched:
        patched.setattr(restoring, "rooms", SimpleNamespace(delete=lambda _: None))
        with pytest.raises(Unavailable, match="cannot be deleted"):
            await ours.prepare(1)
    await ours.prepare(1)

    assert is_like_new(repository, *stock(repository))
    assert len(repository.git("worktree", "list").splitlines()) == 2


async def test_files_that_git_did_not_write_as_they_are_stored_are_all_looked_at(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: without the comparison of what was written, it would be passed on unseen."""
    ours, workspace, inode = await lent(repository)
    works(Path(workspace.path))
    monkeypatch.setattr(restoring, "_are_there", lambda *_: False)
    looks: list[str] = []
    whole = prepared.Prepared._look_through

    async def look(self: prepared.Prepared, *args: object) -> str:
        looks.append("all of it")
        return await whole(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(prepared.Prepared, "_look_through", look)

    await goes_to_the_next(repository, ours, workspace, inode)

    assert looks == ["all of it"]


# Seals


def sealed(repository: Repository, tmp_path: Path) -> tuple[Path, seals.Seal]:
    path = tmp_path / "sealed"
    repository.git("worktree", "add", "-q", "--detach", str(path))
    admin = Path(git(path, "rev-parse", "--absolute-git-dir"))
    return path, seals.take(path, admin, repository.head(), tmp_path / "seals" / "one")


def test_a_folder_that_is_as_young_as_its_seal_is_always_looked_at(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seals, "GRAIN_NS", 60_000_000_000)

    path, seal = sealed(repository, tmp_path)

    assert set(seals.changed_folders(seal, path) or ()) == {"", "docs", "src", "src/core"}
    assert "src/core/one.txt" in seals.changed_young(seal, path)


def test_an_older_one_is_trusted_until_something_comes_or_goes_in_it(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seals, "GRAIN_NS", -60_000_000_000)
    path, seal = sealed(repository, tmp_path)

    assert seals.changed_folders(seal, path) == ("",)

    (path / "src" / "core" / "new").touch()
    assert set(seals.changed_folders(seal, path) or ()) == {"", "src/core"}
    (path / "src" / "core" / "new").unlink()
    assert set(seals.changed_folders(seal, path) or ()) == {"", "src/core"}


def test_a_change_within_the_second_is_seen(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """git compares seconds; for what is so young, the seal compares nanoseconds itself."""
    monkeypatch.setattr(seals, "GRAIN_NS", -60_000_000_000)
    path, seal = sealed(repository, tmp_path)
    assert seals.changed_young(seal, path) == []

    (path / "README").chmod(0o600)
    (path / "docs" / "page.md").unlink()

    assert sorted(seals.changed_young(seal, path)) == ["README", "docs/page.md"]


def test_the_names_in_a_seal_are_one_object_however_many_they_are(
    repository: Repository, tmp_path: Path
) -> None:
    for number in range(300):
        (repository.root / f"{number}.txt").touch()
    repository.git("add", "--all")
    repository.git("commit", "-q", "-m", "many")

    path, seal = sealed(repository, tmp_path)

    assert {f"{number}.txt" for number in range(300)} <= set(seal.names.split("/"))
    assert set(seal.names.split("/")) == {one.name for one in path.iterdir()}
    assert gc.get_referents(seal.names) == []


# Cut short


class Crash(BaseException):
    """The process is killed here."""


@pytest.mark.parametrize("step", range(8))
async def test_a_hand_over_that_is_cut_short_leaves_nothing_after_the_next_start(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Either way between two files, or a file and the folder; what is shipped stays shipped."""
    ours, workspace, _ = await lent(repository)
    works(Path(workspace.path))
    left = step

    def counted(act: Callable[..., object]) -> Callable[..., object]:
        def acting(*args: object) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                raise Crash
            return act(*args)

        return acting

    with monkeypatch.context() as patched:
        patched.setattr(handover, "_replace", counted(handover._replace))
        patched.setattr(handover, "relock", counted(handover.relock))
        patched.setattr(Path, "rename", counted(Path.rename))
        try:
            removal = await ours.remove(workspace, ID)
        except Crash:
            pass
        else:
            assert removal.removed
    again = worktrees(repository.root, prepared_dir=folder(repository))
    told = await again.heal()
    repository.git("fetch", "-q")
    removal = await again.remove(workspace, ID)

    assert told == ()
    assert removal.removed
    assert nothing_is_left(repository)
    assert stock(repository) == []


# What looks like nothing to be lost


def deep(folder: Path, levels: int = 1500) -> None:
    """Make folders in one another, deeper than a path can say."""
    folder.mkdir()
    inside = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    for _ in range(levels):
        os.mkdir("a", dir_fd=inside)
        deeper = os.open("a", os.O_RDONLY | os.O_CLOEXEC, dir_fd=inside)
        os.close(inside)
        inside = deeper
    os.close(inside)


@pytest.mark.parametrize("name", [":target", ":(top)target", ":!target"])
async def test_a_name_that_git_could_take_for_a_pattern_is_a_name(
    repository: Repository, name: str
) -> None:
    """Promise I4: `target/` is ignored, and this is not."""
    ours, workspace, _ = await lent(repository)
    place = Path(workspace.path, name)
    place.mkdir(parents=True)
    (place / "plan.md").write_text("work\n")

    removal = await ours.remove(workspace, ID)
    await ours.prepare(1)

    assert not removal.removed or removal.salvage_ref
    assert (place / "plan.md").exists()


@pytest.mark.parametrize("count", [0, 1])
async def test_a_branch_that_is_a_link_to_another_leaves_that_one_alone(
    repository: Repository, count: int
) -> None:
    """Promise I4: the commit is on no remote, and nowhere else."""
    ours, base = await stocked(repository, count)
    workspace = await ours.add(FIRST, base, ID)
    path = Path(workspace.path)
    git(path, "branch", "precious")
    git(path, "symbolic-ref", f"refs/heads/{FIRST.branch}", "refs/heads/precious")
    commit(path, "work.txt", "not pushed\n")
    oid = git(path, "rev-parse", "HEAD")

    await ours.remove(workspace, ID)

    assert "refs/heads/precious" in repository.git("for-each-ref", "--contains", oid)


@pytest.mark.parametrize("count", [0, 1])
async def test_folders_in_one_another_deeper_than_paths_go_all_the_same(
    repository: Repository, count: int
) -> None:
    ours, base = await stocked(repository, count)
    workspace = await ours.add(FIRST, base, ID)
    deep(Path(workspace.path, "target"))

    await ours.remove(workspace, ID)
    await ours.prepare(count)
    await worktrees(repository.root, prepared_dir=folder(repository)).heal()

    assert not Path(workspace.path, "target").exists()
    assert not list(Path(workspace.path).parent.glob(".trash-*"))


async def test_a_git_file_that_an_agent_wrote_is_not_handed_on(repository: Repository) -> None:
    """It could be led elsewhere once the next agent has begun."""
    ours, workspace, _ = await lent(repository)
    path = Path(workspace.path)
    admin = Path(git(path, "rev-parse", "--absolute-git-dir"))
    (repository.root / "hop").symlink_to(admin.parent)
    (path / ".git").write_text(f"gitdir: {repository.root / 'hop'}/{admin.name}\n")

    await ours.remove(workspace, ID)
    await ours.prepare(1)
    again = await ours.add(SECOND, repository.head("origin/main"), OTHER_ID)

    assert "hop" not in Path(again.path, ".git").read_text()


@pytest.mark.skipif(not HAS_MARKS, reason="this system has no extended attributes")
@pytest.mark.parametrize("name", ["", "src", "src/core"])
async def test_a_folder_with_marks_on_it_is_not_handed_on(
    repository: Repository, name: str
) -> None:
    ours, workspace, _ = await lent(repository)
    os.setxattr(Path(workspace.path, name), "user.mark", b"mine")

    await ours.remove(workspace, ID)
    await ours.prepare(1)
    again = await ours.add(SECOND, repository.head("origin/main"), OTHER_ID)

    assert os.listxattr(Path(again.path, name)) == []


@pytest.mark.root
@pytest.mark.parametrize("count", [0, 1])
def test_a_folder_that_cannot_be_read_is_kept(
    repository: Repository, tmp_path: Path, count: int
) -> None:
    """Promise I4: it may hold anything."""
    script = tmp_path / "as_somebody.py"
    script.write_text(SOMEBODY)
    for place in (tmp_path, *tmp_path.rglob("*")):
        if not place.is_symlink():
            os.chown(place, NOBODY, NOBODY)
    for above in tmp_path.parents[:3]:
        above.chmod(above.stat().st_mode | 0o055)

    done = subprocess.run(
        [sys.executable, str(script), str(repository.root), str(count)],
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        cwd=Path(__file__).parents[3],
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.stdout.endswith("\nkept\n"), done.stderr


NOBODY = 65534
SOMEBODY = """
import sys
from pathlib import Path

import anyio

sys.path.insert(0, str(Path.cwd()))
from tests.adapters.repositories import Repository
from tests.adapters.worktrees.test_prepared import stocked
from tests.adapters.worktrees.test_worktrees import FIRST, ID


async def main(root, count):
    ours, base = await stocked(Repository(root, root.parent / "origin.git"), count)
    workspace = await ours.add(FIRST, base, ID)
    plans = Path(workspace.path, "plans")
    plans.mkdir()
    (plans / "work.md").write_text("work")
    plans.chmod(0)
    removal = None
    try:
        removal = await ours.remove(workspace, ID)
        await ours.prepare(count)
    finally:
        print("kept" if plans.is_dir() and not (removal and removal.removed) else "gone")
        plans.chmod(0o700)


anyio.run(main, Path(sys.argv[1]), int(sys.argv[2]))
"""
