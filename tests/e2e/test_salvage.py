"""Work that was kept comes back whole, and never over anything (promise I4)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.projects import Make, Project, gaps

pytestmark = pytest.mark.timeout(120)

AGENT = """\
def put(name, text):
    with open(name, "w") as file:
        file.write(text)
with open(".gitignore", "w") as file:
    file.write("*.local\\ntarget/\\n")
put("gone.txt", "1")
put("changed.txt", "1")
git("add", "--all")
git("commit", "-q", "-m", "first")
put("changed.txt", "2")
git("add", "changed.txt")
put("changed.txt", "3")
put("new file ü.txt", "new")
put("keep.local", "kept")
os.mkdir("target")
put("target/thing", "made again")
os.remove("gone.txt")
os.symlink("nowhere", "link")
put("run.sh", "#!")
os.chmod("run.sh", 0o755)
sys.exit(7)
"""

COMMITS_ONLY = """\
with open("a.txt", "w") as file:
    file.write("a")
git("add", "--all")
git("commit", "-q", "-m", "a")
sys.exit(7)
"""


def salvaged(make: Callable[[str, str], Project], agent: str = AGENT) -> tuple[Project, str]:
    """Return a project with one snapshot, and the dispatch that it is of."""
    project = make(gaps("ONE-1"), agent)
    assert project.program("run", "--once").returncode == 1
    (one,) = project.json("salvage", "list")["salvage"]
    return project, str(one["dispatch"])


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Project, str, Path]]:
    """A project with one snapshot, its dispatch, and a copy of its folder."""
    place = tmp_path_factory.mktemp("salvaged")
    made: list[Project] = []

    def make(entries: str, agent: str) -> Project:
        made.append(Project.make(place / "p", entries, agent))
        return made[-1]

    try:
        project, dispatch = salvaged(make)
        shutil.copytree(project.folder, place / "copy", symlinks=True)
        yield project, dispatch, place / "copy"
    finally:
        for one in made:
            one.clean()


@pytest.fixture
def snapshot(first: tuple[Project, str, Path]) -> tuple[Project, str]:
    """The same project, whatever has been done to it since: its folder is put back."""
    project, dispatch, copy = first
    shutil.rmtree(project.folder)
    shutil.copytree(copy, project.folder, symlinks=True)
    return project, dispatch


def state_of(path: Path, project: Project) -> list[str]:
    """Return what git says of a worktree, line by line."""
    shown = project.git("status", "--porcelain", "-uall", "--ignored", "-z", at=path)
    return sorted(line for line in shown.split("\0") if line)


def test_a_snapshot_is_listed_with_what_is_known_of_it(snapshot: tuple[Project, str]) -> None:
    project, dispatch = snapshot

    (one,) = project.json("salvage", "list")["salvage"]

    assert one["gap"] == "ONE-1"
    assert one["ref"] == f"refs/chump/salvage/{dispatch}"
    assert one["branch"] == "claude/one-1"
    assert one["commits"] == 1
    assert one["uncommitted"] is True
    assert one["files"] == 6  # .gitignore, changed, new, keep.local, link, run.sh
    assert "uncommitted or untracked" in one["reason"]
    said = project.program("salvage", "list").stdout
    assert dispatch in said
    assert "ONE-1" in said


def test_without_a_ledger_snapshots_are_found_all_the_same(snapshot: tuple[Project, str]) -> None:
    project, dispatch = snapshot
    for file in project.state.glob("ledger.db*"):
        file.unlink()

    (one,) = project.json("salvage", "list")["salvage"]

    assert (one["dispatch"], one["gap"], one["files"], one["commits"]) == (dispatch, None, 6, 1)


def test_what_a_snapshot_holds_is_shown_apart(snapshot: tuple[Project, str]) -> None:
    project, dispatch = snapshot

    said = project.program("salvage", "show", "ONE-1").stdout
    told = project.json("salvage", "show", dispatch)

    assert "1 commits, since" in said
    assert "not committed:" in said
    assert f"salvage restore {dispatch}" in said
    assert told["staged"]
    assert "new file ü.txt" in told["names"]


def test_what_was_not_committed_is_so_again_and_what_was_staged_is_staged(
    snapshot: tuple[Project, str],
) -> None:
    project, dispatch = snapshot
    worktree = project.root / ".claude" / "worktrees" / "one-1"
    before, mine = state_of(worktree, project), state_of(project.root, project)

    done = project.program("salvage", "restore", dispatch)

    assert done.returncode == 0, done.stderr
    path = project.root / ".claude" / "worktrees" / f"salvage-{dispatch}"
    assert state_of(path, project) == [line for line in before if "target" not in line]
    assert project.git("show", ":changed.txt", at=path) == "2"
    assert (path / "changed.txt").read_text() == "3"
    assert (path / "link").readlink() == Path("nowhere")
    assert os.access(path / "run.sh", os.X_OK)
    head = project.git("rev-parse", "HEAD", at=path)
    assert head == project.git("rev-parse", "claude/one-1")
    assert project.git("symbolic-ref", "--short", "HEAD", at=path).strip() == f"salvage/{dispatch}"
    now = [line for line in state_of(project.root, project) if path.name not in line]
    assert now == mine


def test_a_snapshot_comes_back_to_a_place_of_ones_own(snapshot: tuple[Project, str]) -> None:
    project, dispatch = snapshot

    done = project.program("salvage", "restore", dispatch, "--into", "../mine")

    assert done.returncode == 0, done.stderr
    assert (project.folder / "mine" / "new file ü.txt").read_text() == "new"


def test_on_a_branch_alone_the_last_commit_holds_what_was_not_committed(
    snapshot: tuple[Project, str],
) -> None:
    project, dispatch = snapshot

    done = project.program("salvage", "restore", dispatch, "--into", "rescue")

    assert done.returncode == 0, done.stderr
    assert "last commit" in done.stderr
    assert project.git("show", "rescue:keep.local") == "kept"
    assert project.git("merge-base", "rescue", "claude/one-1") == project.git(
        "rev-parse", "claude/one-1"
    )


@pytest.mark.parametrize("into", ["main", "../mine", "-d", "a..b"])
def test_nothing_is_ever_written_over(snapshot: tuple[Project, str], into: str) -> None:
    project, dispatch = snapshot
    mine = project.folder / "mine"
    mine.mkdir()
    (mine / "precious").write_text("mine")
    before = project.git("for-each-ref")

    done = project.program("salvage", "restore", dispatch, f"--into={into}")

    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert [file.name for file in mine.iterdir()] == ["precious"]
    assert project.git("for-each-ref") == before


def test_a_second_restoration_does_not_touch_the_first(snapshot: tuple[Project, str]) -> None:
    project, dispatch = snapshot
    assert project.program("salvage", "restore", dispatch).returncode == 0
    path = project.root / ".claude" / "worktrees" / f"salvage-{dispatch}"
    (path / "changed.txt").write_text("mine")

    done = project.program("salvage", "restore", dispatch)

    assert done.returncode == 1
    assert "is there already" in done.stderr
    assert (path / "changed.txt").read_text() == "mine"


def test_commits_alone_come_back_as_they_were(make: Make) -> None:
    project, dispatch = salvaged(make, COMMITS_ONLY)
    (one,) = project.json("salvage", "list")["salvage"]
    assert (one["uncommitted"], one["files"], one["commits"]) == (False, 1, 1)

    done = project.program("salvage", "restore", dispatch)

    assert done.returncode == 0, done.stderr
    path = project.root / ".claude" / "worktrees" / f"salvage-{dispatch}"
    assert state_of(path, project) == []
    assert (path / "a.txt").read_text() == "a"


DETACHED = """\
def commit(name):
    with open(name, "w") as file:
        file.write(name)
    git("add", "--", name)
    git("commit", "-q", "-m", name)
commit("on-the-branch")
git("checkout", "-q", "--detach", "HEAD~1")
commit("beside-it")
with open("loose", "w") as file:
    file.write("loose")
sys.exit(7)
"""


def test_commits_beside_the_branch_come_back_on_branches_of_their_own(make: Make) -> None:
    project, dispatch = salvaged(make, DETACHED)

    done = project.program("salvage", "restore", dispatch)

    assert done.returncode == 0, done.stderr
    path = project.root / ".claude" / "worktrees" / f"salvage-{dispatch}"
    assert {"beside-it", "loose"} <= {file.name for file in path.iterdir()}
    assert not (path / "on-the-branch").exists()
    assert state_of(path, project) == ["?? loose"]
    assert project.git("show", f"salvage/{dispatch}-part2:on-the-branch") == "on-the-branch"


def test_what_is_not_there_is_refused(make: Make) -> None:
    project = make(gaps("ONE-1"))

    for command in ("show", "restore"):
        done = project.program("salvage", command, "../../x")
        assert done.returncode == 1
        assert "there is no snapshot" in done.stderr
    assert project.json("salvage", "list")["salvage"] == []
    assert "nothing had to be salvaged" in project.program("salvage", "list").stderr
