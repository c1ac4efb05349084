"""`doctor` on the repository, its remote and its forge: each check is seen to object."""

import os
import shutil
import time
from pathlib import Path

import pytest

from chump_orchestrator.adapters.worktrees.salvage import IDENTITY
from chump_orchestrator.doctor.findings import Status
from chump_orchestrator.doctor.repository import judged_git
from tests.e2e.cli_repository import Repository
from tests.e2e.clinic import Clinic, run_apart

# --- git


@pytest.mark.parametrize(
    ("text", "without_forge", "status"),
    [
        ("git version 2.33.0", False, Status.OK),
        ("git version 2.39.5 (Apple Git-154)", True, Status.OK),
        ("git version 2.32.1", False, Status.FAIL),
        ("git version 2.37.9", True, Status.FAIL),
        ("git version 2.55.0.windows.1", False, Status.OK),
        ("jj 0.9", False, Status.FAIL),
    ],
)
def test_the_version_of_git_is_judged_by_what_it_is_needed_for(
    text: str, without_forge: bool, status: Status
) -> None:
    (found,) = judged_git(text, "/usr/bin/git", without_forge=without_forge)

    assert found.status is status


def test_a_git_that_is_too_old_is_broken(clinic: Clinic) -> None:
    git = shutil.which("git", path=os.environ["PATH"].partition(":")[2])
    clinic.script(
        "git",
        f'[ "$1" = --version ] && echo git version 2.20.1 && exit\nexec {git} "$@"\n',
        shebang="/bin/sh",
    )

    found = clinic.check("git")

    assert found.status == "fail"
    assert found.found == f"{clinic.bin}/git is git 2.20.1"
    assert found.remedy == "install git 2.33 or later"


def test_without_git_nothing_crashes(clinic: Clinic) -> None:
    clinic.patch.setenv("PATH", str(clinic.folder / "nowhere"))

    found = clinic.found()

    assert found["git"]["status"] == "fail"
    assert found["git"]["remedy"] == "install git"
    assert found["repository"]["status"] == "fail"
    assert found["python"]["status"] == "ok"
    assert found["worktrees"]["status"] == "skip"


# --- the work tree


def test_a_bare_repository_is_broken(clinic: Clinic) -> None:
    clinic.patch.chdir(clinic.origin)

    found = clinic.check("repository")

    assert found.status == "fail"
    assert "no work tree" in found.found


@pytest.mark.root
def test_a_repository_of_another_user_is_broken_with_the_remedy(clinic: Clinic) -> None:
    for path in (clinic.root, clinic.root / ".git"):
        os.chown(path, 65534, 65534)
    try:
        found = clinic.check("repository")
    finally:
        for path in (clinic.root, clinic.root / ".git"):
            os.chown(path, os.geteuid(), os.getegid())

    assert found.status == "fail"
    assert "safe.directory" in found.remedy


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("MERGE_HEAD", "a merge"),
        ("rebase-merge", "a rebase"),
        ("CHERRY_PICK_HEAD", "a cherry-pick"),
        ("BISECT_START", "a bisection"),
    ],
)
def test_what_was_begun_and_not_finished_is_odd(clinic: Clinic, name: str, what: str) -> None:
    (clinic.root / ".git" / name).touch()

    found = clinic.check("repository")

    assert found.status == "warn"
    assert found.found == f"the work tree is in the middle of {what}"


def test_a_real_conflict_is_noticed(clinic: Clinic) -> None:
    git = clinic.repository.git
    for branch, text in (("ours", "1"), ("theirs", "2")):
        git("checkout", "-q", "-b", branch, "main")
        clinic.repository.write("same.txt", text)
        git("add", "same.txt")
        git("commit", "-q", "-m", branch)
    merged = run_apart(clinic, "git", "-c", "user.name=a", "-c", "user.email=b", "merge", "ours")

    assert merged.returncode != 0
    assert clinic.check("repository").found == "the work tree is in the middle of a merge"


def test_a_shallow_clone_is_odd(clinic: Clinic) -> None:
    clone = clinic.folder / "shallow"
    clinic.repository.git("clone", "-q", "--depth=1", f"file://{clinic.origin}", str(clone))
    clinic.patch.chdir(clone)

    found = clinic.check("repository")

    assert found.status == "warn"
    assert found.remedy == "run `git fetch --unshallow`"


def test_a_lock_that_git_left_behind_is_broken_and_a_new_one_is_not(clinic: Clinic) -> None:
    lock = clinic.root / ".git" / "index.lock"
    lock.touch()

    new = clinic.check("repository")
    os.utime(lock, (time.time() - 3600,) * 2)
    old = clinic.check("repository")

    assert new.status == "ok"
    assert old.status == "fail"
    assert f"rm {lock}" in old.remedy


def test_a_branch_without_a_commit_is_odd(repository: Repository) -> None:
    said = repository.say("doctor", "repository")

    assert said.out.startswith("warn  repository")
    assert "without a commit" in said.out


# --- worktrees


def a_worktree(clinic: Clinic, name: str, where: Path, reason: str = "") -> Path:
    """Make a worktree and return git's own folder of it."""
    lock = ("--lock", "--reason", reason) if reason else ()
    clinic.repository.git("worktree", "add", "-q", *lock, "-b", name, str(where / name), "main")
    return clinic.root / ".git" / "worktrees" / name


def test_a_broken_worktree_of_ours_is_put_aside_once(clinic: Clinic) -> None:
    base = clinic.root / ".claude" / "worktrees"
    admin = a_worktree(clinic, "demo-1", base, "chump:demo-1-x")
    (admin / "commondir").write_text("")

    before = clinic.check("worktrees")
    mended = clinic.check("worktrees", fix=True)
    again = clinic.check("worktrees", fix=True)

    assert before.status == "fail"
    assert "stops git in the whole repository" in before.found
    assert "doctor --fix" in before.remedy
    assert (mended.status, again.status) == ("ok", "ok")
    assert len(mended.fixed) == 1
    assert "chump-quarantine" in mended.fixed[0]
    assert again.fixed == []
    assert (base / "demo-1" / "docs" / "gaps.yaml").exists()  # no work is lost


def test_a_broken_worktree_of_another_is_told_and_left_alone(clinic: Clinic) -> None:
    admin = a_worktree(clinic, "mine", clinic.folder)
    (admin / "HEAD").write_text("")

    found = clinic.check("worktrees", fix=True)

    assert found.status == "warn"
    assert "it is not ours" in found.remedy
    assert found.fixed == []
    assert admin.is_dir()


# --- base, remote, push


def test_a_base_that_does_not_exist_is_broken(clinic: Clinic) -> None:
    text = (clinic.root / ".chump/orchestrator.toml").read_text()
    clinic.repository.write(".chump/orchestrator.toml", f'base_ref = "origin/nowhere"\n{text}')

    found = clinic.check("base")

    assert found.status == "fail"
    assert found.found == "origin has no branch nowhere"
    assert "git push origin HEAD:nowhere" in found.remedy


def test_a_base_that_is_not_fetched_yet_is_fine(clinic: Clinic) -> None:
    clinic.repository.git("push", "-q", "origin", "main:next")
    clinic.repository.git("update-ref", "-d", "refs/remotes/origin/next")
    text = (clinic.root / ".chump/orchestrator.toml").read_text()
    clinic.repository.write(".chump/orchestrator.toml", f'base_ref = "origin/next"\n{text}')

    found = clinic.check("base")

    assert found.status == "ok"
    assert "not fetched yet" in found.found


def test_several_remotes_without_a_choice_are_broken(clinic: Clinic) -> None:
    clinic.repository.git("remote", "rename", "origin", "one")
    clinic.repository.git("remote", "add", "two", str(clinic.origin))

    found = clinic.check("base")

    assert found.status == "fail"
    assert "several remotes (one, two)" in found.found


def test_without_a_remote_nothing_can_be_pushed(clinic: Clinic) -> None:
    clinic.repository.git("remote", "remove", "origin")

    found = clinic.found("remote", "push", "base")

    assert found["remote"]["status"] == "fail"
    assert found["remote"]["remedy"] == "add one with `git remote add origin URL`"
    assert found["push"]["status"] == "skip"
    assert found["base"]["status"] == "ok"  # the main work tree's own branch


def test_a_remote_that_is_not_reached_is_broken(clinic: Clinic) -> None:
    clinic.origin.rename(clinic.folder / "moved.git")

    found = clinic.found("remote", "push")

    assert found["remote"]["status"] == "fail"
    assert str(clinic.origin) in found["remote"]["found"]
    assert found["push"]["status"] == "skip"


def test_a_password_in_the_url_of_a_remote_is_not_told(clinic: Clinic) -> None:
    """Promise I7."""
    clinic.repository.git("remote", "set-url", "origin", "http://me:hush-hush@127.0.0.1:9/x.git")

    said = clinic.doctor("--json", "remote")

    assert said.code == 1
    assert "hush" not in said.out + said.err


def test_a_remote_that_takes_no_branches_is_broken(clinic: Clinic) -> None:
    clinic.repository.git("remote", "set-url", "--push", "origin", str(clinic.folder / "closed"))

    found = clinic.found("remote", "push")

    assert found["remote"]["status"] == "ok"
    assert found["push"]["status"] == "fail"
    assert "a branch could not be pushed" in found["push"]["found"]


def test_what_is_pushed_for_a_try_is_on_no_remote(clinic: Clinic) -> None:
    found = clinic.check("push")

    assert found.status == "ok"
    assert clinic.repository.git("ls-remote", "origin").count("refs/heads/") == 1


# --- salvage


def test_work_that_was_kept_is_told_with_its_reason(clinic: Clinic) -> None:
    name, mail = IDENTITY["GIT_COMMITTER_NAME"], IDENTITY["GIT_COMMITTER_EMAIL"]
    message = "Salvage claude/demo-1 of demo-1-x\n\nWhy: 2 uncommitted, first 'a.py'\n"
    git = ("-c", f"user.name={name}", "-c", f"user.email={mail}")
    commit = clinic.repository.git(*git, "commit-tree", "-m", message, "main^{tree}").strip()
    clinic.repository.git("update-ref", "refs/chump/salvage/demo-1-x", commit)

    found = clinic.check("salvage")

    assert found.status == "warn"
    assert found.found.startswith("1 snapshot of work that was not shipped")
    assert "salvage list" in found.remedy


# --- the forge


def test_without_gh_the_remedy_is_to_install_it(clinic: Clinic) -> None:
    (clinic.bin / "gh").unlink()
    (clinic.bin / "git").symlink_to(shutil.which("git") or "")
    clinic.patch.setenv("PATH", str(clinic.bin))  # where there is a gh, it lies beside git

    found = clinic.found("gh", "gh-scopes")

    assert found["gh"]["status"] == "fail"
    assert "no gh on the PATH of this shell" in found["gh"]["found"]
    assert found["gh-scopes"]["status"] == "skip"


def test_a_forge_that_is_not_used_is_not_asked(clinic: Clinic) -> None:
    clinic.settings(pulls="git")

    found = clinic.found("gh", "gh-scopes")

    assert {one["status"] for one in found.values()} == {"skip"}
    assert not (clinic.bin / "asked").exists()


def test_the_forge_is_asked_once_for_all_checks(clinic: Clinic) -> None:
    clinic.found()

    assert (clinic.bin / "asked").read_text() == "repos/acme/anvil -\n"


@pytest.mark.parametrize(
    ("status", "said", "found", "remedy"),
    [
        (401, "gh: Bad credentials (HTTP 401)\n", "not logged in", "gh auth login"),
        (0, "To get started with GitHub CLI, please run: gh auth login\n", "not logged", "login"),
        (0, "error connecting to api.github.com\n", "reaches no GitHub", "network"),
        (404, "gh: Not Found (HTTP 404)\n", "acme/anvil is not there", "GH_REPO"),
        (403, "gh: Resource not accessible (HTTP 403)\n", "HTTP 403", "gh auth login"),
        (502, "gh: HTTP 502\n", "HTTP 502", "later"),
    ],
)
def test_a_forge_that_says_no_is_broken_with_what_helps(
    clinic: Clinic, status: int, said: str, found: str, remedy: str
) -> None:
    clinic.gh(status=status, said=said)

    told = clinic.found("gh", "gh-scopes")

    assert told["gh"]["status"] == "fail"
    assert found in told["gh"]["found"]
    assert remedy in told["gh"]["remedy"]
    assert told["gh-scopes"]["status"] == "skip"


def test_an_old_gh_is_odd(clinic: Clinic) -> None:
    clinic.gh(version="2.4.0")

    found = clinic.check("gh")

    assert found.status == "warn"
    assert "2.4.0" in found.found


def test_a_remote_that_is_on_no_github_is_broken(clinic: Clinic) -> None:
    clinic.patch.delenv("GH_REPO")

    found = clinic.check("gh")

    assert found.status == "fail"
    assert "names no repository on a GitHub" in found.found


@pytest.mark.parametrize(
    ("scopes", "private", "status"),
    [
        ("repo, workflow", True, "ok"),
        ("public_repo, workflow", False, "ok"),
        ("public_repo, workflow", True, "fail"),
        ("gist, read:org", False, "fail"),
        ("repo", True, "warn"),
        ("", True, "ok"),
    ],
)
def test_the_scopes_of_a_token_are_judged(
    clinic: Clinic, scopes: str, private: bool, status: str
) -> None:
    clinic.gh(headers={"X-Oauth-Scopes": scopes}, private=private)

    assert clinic.check("gh-scopes").status == status


def test_a_repository_that_takes_no_pushes_is_broken(clinic: Clinic) -> None:
    clinic.gh(permissions={"push": False}, archived=True)

    found = clinic.check("gh-scopes")

    assert found.status == "fail"
    assert "may not push to github.com/acme/anvil" in found.found
    assert "is archived" in found.found
