"""Cases 35 to 41: git in the middle of everything, and everything in the way of git."""

from __future__ import annotations

import contextlib
import fcntl
import http.server
import os
import random
import re
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path

import anyio
import pytest

from chump_orchestrator.adapters.git import Git
from chump_orchestrator.adapters.worktrees.dispatches import GitWorktrees
from chump_orchestrator.cli.client import ask
from chump_orchestrator.core.errors import Refused, Unavailable
from tests.adapters.repositories import a_repository
from tests.builders import a_gap
from tests.faults.conftest import Begin
from tests.faults.rewired import settle_rewired
from tests.faults.trials import BYSTANDER, Trial, wait_until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(240)]

SEEDS = int(os.environ.get("FAULT_SEEDS", "1"))
"""How many times the usual number of chances is taken."""

REAL_GIT = shutil.which("git") or "git"

LOCK_TROUBLE = re.compile(r"\.lock['\"]?: File exists|cannot lock|could not lock|index\.lock")

PLAIN_GIT = """\
os.environ.update(GIT_CONFIG_COUNT="3", GIT_CONFIG_KEY_1="core.hooksPath",
                  GIT_CONFIG_VALUE_1="/dev/null", GIT_CONFIG_KEY_2="core.fsmonitor",
                  GIT_CONFIG_VALUE_2="false")
"""
"""Put before an agent's words: hooks of the repository are not its concern."""

WAIT = """\
while not os.path.exists(os.path.join(here, "go")):
    time.sleep(0.02)
"""
"""Put before an agent's words: it goes on when the test lets it."""


def set_settings(trial: Trial, old: str, new: str) -> None:
    path = trial.root / ".chump" / "orchestrator.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def commit_to_main(trial: Trial, name: str, text: str) -> None:
    (trial.root / name).write_text(text)
    trial.git("add", "--", name)
    trial.git("-c", "user.name=T", "-c", "user.email=t@example.org", "commit", "-qm", name)
    trial.git("push", "-q", "origin", "main")


def merge_on_the_forge(trial: Trial) -> None:
    """Merge every branch that agents have pushed, as people do elsewhere."""
    forge = trial.folder / "forge"
    trial.git("clone", "-q", str(trial.origin), str(forge), at=trial.folder)
    pushed = trial.git("for-each-ref", "--format=%(refname)", "refs/remotes/origin", at=forge)
    branches = [ref for ref in pushed.split() if "/claude/" in ref]
    who = ("-c", "user.name=T", "-c", "user.email=t@example.org")
    for branch in branches:
        trial.git(*who, "merge", "-q", "--no-edit", branch, at=forge)
    trial.git("push", "-q", "origin", "HEAD:refs/heads/main", at=forge)


def repository_works(trial: Trial) -> None:
    """Look at the repository as its people do."""
    trial.git("fsck", "--connectivity-only")
    trial.git("worktree", "list")
    trial.git("fetch", "-q", "origin")
    # What a git that was killed had half written looks like work; whatever else is left, is told.
    # So is a branch that git died on with its lock held: git's locks are for people to take away.
    events = ("worktree.kept", "worktree.undo_failed", "launch.left_behind")
    told = [line for line in trial.log().splitlines() if any(event in line for event in events)]
    left = {*trial.left()["worktrees"], *trial.git("branch", "--format=%(refname:short)").split()}
    for name in left - {"main"}:
        slug = re.escape(name.removeprefix("claude/"))
        assert any(re.search(rf"/{slug}(?![-\w])", line) for line in told), (left, told)


def status_is_prompt(trial: Trial) -> None:
    """Promise I5, with a margin for a machine that does other work, too."""
    took = []
    for _ in range(3):
        began = time.monotonic()
        assert ask(trial.state / "control.sock", "status")["ok"] is True
        took.append(time.monotonic() - began)
    assert min(took) < 1, took


def agents_said(trial: Trial) -> str:
    return "".join(log.read_text(errors="replace") for log in trial.state.glob("d/*/stderr.log"))


# 35: twenty dispatches at once


def test_case_35_twenty_at_once_meet_no_lock(begin: Begin) -> None:
    """All of them commit and push in the same moment; the forge merges what they pushed."""
    ids = [f"MANY-{number}" for number in range(19)]
    trial = begin(
        *ids,
        slots=20,
        agent=WAIT + 'commit(gap + ".txt", gap)\n'
        'git("push", "-q", "origin", "HEAD:refs/heads/" + branch)',
    )
    daemon = trial.start("--once", **trial.env)
    wait_until(lambda: len(trial.starts()) == 20)
    (trial.evidence / "go").touch()
    wait_until(lambda: len(list(trial.state.glob("d/*/exit.json"))) == 20)
    merge_on_the_forge(trial)

    assert daemon.wait(60) == 0, trial.log()
    trial.check()
    assert trial.outcomes() == dict.fromkeys([*ids, BYSTANDER], "shipped")
    assert not LOCK_TROUBLE.search(trial.log() + agents_said(trial))
    assert trial.left()["worktrees"] == []
    repository_works(trial)


def counting_adds(folder: Path) -> dict[str, str]:
    """Return a PATH whose git notes when an add begins and when it has ended."""
    script = folder / "counting" / "git"
    script.parent.mkdir()
    notes = folder / "adds"
    script.write_text(
        f"""#!/bin/sh
case " $* " in *" worktree add "*) ;; *) exec '{REAL_GIT}' "$@" ;; esac
echo begin >>'{notes}'
'{REAL_GIT}' "$@"
code=$?
echo end >>'{notes}'
exit $code
"""
    )
    script.chmod(0o755)
    return {"PATH": f"{script.parent}:{os.environ['PATH']}"}


def most_adds_at_once(folder: Path) -> int:
    steps = (folder / "adds").read_text().split()
    return max(accumulate(1 if step == "begin" else -1 for step in steps))


class NoLock:
    async def __aenter__(self) -> None:
        return None

    async def __aexit__(self, *_: object) -> None:
        return None


@pytest.mark.parametrize("is_locked", [True, False])
async def test_case_35_control_without_the_lock_adds_meet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_locked: bool
) -> None:
    """Of adds that meet some fail, a few in a hundred up to most, as the machine is."""
    if not is_locked:
        monkeypatch.setattr(Git, "lock", lambda self, *_: NoLock())
    repository = a_repository(tmp_path)

    class Now:
        def monotonic(self) -> float:
            return time.monotonic()

    ours = GitWorktrees(
        git=Git(repository.root, {**os.environ, **counting_adds(tmp_path)}),
        base_dir=repository.base_dir,
        clock=Now(),  # type: ignore[arg-type]
    )
    base = repository.head()

    async def add(number: int) -> None:
        names = await ours.propose(a_gap(f"MANY-{number}"))
        with contextlib.nullcontext() if is_locked else contextlib.suppress(Refused, Unavailable):
            await ours.add(names, base, f"many-{number}-x")

    async with anyio.create_task_group() as group:
        for number in range(20):
            group.start_soon(add, number)

    assert (most_adds_at_once(tmp_path) == 1) is is_locked


# 36: git killed at every system call of an add that changes something

MUTATING = ("mkdir", "openat", "write", "rename", "unlink", "rmdir", "link", "chmod", "ftruncate")


def strace() -> str:
    program = shutil.which("strace")
    if program is None:
        pytest.skip("strace is not installed: git cannot be killed at a chosen system call")
    return program


def points_of_an_add(trial: Trial) -> list[tuple[str, int]]:
    """Return the system calls of an add that change something, each with its number."""
    copy, traced = trial.folder / "copy", trial.folder / "traced"
    shutil.copytree(trial.root, copy, symlinks=True)
    command = (*Git.OPTIONS, "worktree", "add", "--no-track", "--lock", "--reason", "chump:probe")
    head = trial.git("rev-parse", "HEAD").strip()
    done = subprocess.run(
        (
            *(strace(), "-f", "-qq", "-e", f"trace={','.join(MUTATING)}", "-o", str(traced)),
            *(REAL_GIT, *command, "-b", "claude/probe", "--", str(copy / "probe"), head),
        ),
        cwd=copy,
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        pytest.skip(f"strace cannot trace here: {done.stderr[-200:]}")
    counts = Counter[tuple[str, str]]()
    points: set[tuple[str, int]] = set()
    for line in traced.read_text(errors="replace").splitlines():
        found = re.match(r"(\d+) +(\w+)\((.*)", line)
        if found is None:
            continue
        counts[found[1], found[2]] += 1
        opens_only = found[2] == "openat" and not re.search(r"O_CREAT|O_TRUNC", found[3])
        if not opens_only:
            points.add((found[2], counts[found[1], found[2]]))
    shutil.rmtree(copy)
    assert len(points) > 20
    return sorted(points)


def killing_git(trial: Trial, points: list[tuple[str, int]], *, daemon_too: bool) -> dict[str, str]:
    """Return a PATH whose git is killed at these points, one in each further add."""
    plan = trial.folder / "killing"
    plan.mkdir()
    rows = (f"{number} {call} {count}\n" for number, (call, count) in enumerate(points))
    (plan / "points").write_text("".join(rows))
    script = plan / "bin" / "git"
    script.parent.mkdir()
    script.write_text(
        f"""#!/bin/sh
case " $* " in *" worktree add "*) ;; *) exec '{REAL_GIT}' "$@" ;; esac
while read -r number call count; do
    mkdir '{plan}/'$number 2>/dev/null || continue
    '{strace()}' -f -qq -o /dev/null -e "trace=$call" -e "inject=$call:signal=KILL:when=$count" \\
        '{REAL_GIT}' "$@" </dev/null
    code=$?
    [ $code -ge 128 ] && {"kill -9 $PPID" if daemon_too else "kill -9 $$"}
    exit $code
done <'{plan}/points'
exec '{REAL_GIT}' "$@"
"""
    )
    script.chmod(0o755)
    return {"PATH": f"{script.parent}:{os.environ['PATH']}"}


def chosen(points: list[tuple[str, int]], number: int) -> list[tuple[str, int]]:
    seed = int(os.environ.get("FAULT_SEED", "0")) or random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    chance = random.Random(seed)
    return chance.sample(points, min(number * SEEDS, len(points)))


def test_case_36_git_killed_in_the_middle_of_an_add(begin: Begin) -> None:
    """The daemon lives: what is half made goes, and the gap is tried again."""
    strace()
    ids = [f"CUT-{number}" for number in range(4 * SEEDS)]
    trial = begin(*ids, slots=4)
    set_settings(trial, "max_attempts = 1", 'max_attempts = 2\nbase = "20ms"')
    points = chosen(points_of_an_add(trial), 4)
    env = killing_git(trial, points, daemon_too=False)

    for _ in range(2 * SEEDS):  # a row of failures pauses dispatching
        settle_rewired(trial, "", **env)
        trial.program("resume")
    trial.settle()

    trial.check()
    assert set(trial.outcomes().values()) == {"shipped"}
    assert "was killed by signal 9" in trial.log() or "git worktree failed" in trial.log()
    repository_works(trial)


def test_case_36_git_and_the_daemon_killed_in_the_middle_of_an_add(begin: Begin) -> None:
    """Nobody is there to tidy up: the next start heals, and the gap is begun anew."""
    strace()
    ids = [f"CUT-{number}" for number in range(3 * SEEDS)]
    trial = begin(*ids, slots=1)
    points = chosen(points_of_an_add(trial), 4)
    env = killing_git(trial, points, daemon_too=True)

    deaths = 0
    while settle_rewired(trial, "", **env) == -signal.SIGKILL:
        deaths += 1
    trial.settle()

    assert deaths > 0, points
    trial.check()
    assert set(trial.outcomes().values()) == {"shipped"}
    repository_works(trial)


# 37: broken worktrees


def a_worktree(trial: Trial, path: Path, *options: str) -> Path:
    """Make a worktree and return its administrative folder."""
    trial.git("worktree", "add", "-q", "--detach", *options, str(path))
    return Path(trial.git("rev-parse", "--absolute-git-dir", at=path).strip())


def content(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def test_case_37_strangers_broken_worktrees(begin: Begin) -> None:
    trial = begin("ANY-1")
    garbage = b"\0\xff garbage"
    broken = [("gitdir", None), ("gitdir", garbage), ("commondir", None), ("HEAD", garbage)]
    broken += [("HEAD", b""), ("gitdir", b"")]
    folders = []
    for number, (file, text) in enumerate(broken):
        stranger = trial.folder / f"stranger-{number}"
        admin = a_worktree(trial, stranger)
        (admin / file).unlink() if text is None else (admin / file).write_bytes(text)
        folders += [admin, stranger]
    before = [content(folder) for folder in folders]

    trial.settle()

    trial.check()
    assert set(trial.outcomes().values()) == {"shipped"}
    assert [content(folder) for folder in folders] == before


def test_case_37_a_stranger_s_worktree_that_stops_git_altogether(begin: Begin) -> None:
    """An empty commondir stops every git, ours and the agents': nothing is thrown after it."""
    trial = begin("ANY-1")
    admin = a_worktree(trial, trial.folder / "stranger")
    whole = (admin / "commondir").read_bytes()
    (admin / "commondir").write_bytes(b"")
    broken = content(admin)

    daemon = trial.start("--once", **trial.env)
    wait_until(lambda: "dispatching.postponed" in trial.log())
    status_is_prompt(trial)
    during = trial.outcomes(), content(admin)
    (admin / "commondir").write_bytes(whole)

    assert daemon.wait(90) == 0, trial.log()
    trial.check()
    assert during == ({}, broken)
    assert str(admin) in trial.log()
    assert set(trial.outcomes().values()) == {"shipped"}


def break_one_of_ours(trial: Trial) -> None:
    """Leave what a git killed in the middle of an add may leave."""
    base = trial.root / ".claude" / "worktrees"
    base.mkdir(parents=True)
    admin = a_worktree(trial, base / "old-1", "--lock", "--reason", "chump:old-1-x")
    (admin / "commondir").write_bytes(b"")


def test_case_37_one_of_ours_is_put_aside(begin: Begin) -> None:
    trial = begin("ANY-1")
    break_one_of_ours(trial)

    trial.settle()

    trial.check()
    assert set(trial.outcomes().values()) == {"shipped"}
    assert list((trial.root / ".git" / "chump-quarantine").glob("*/old-1"))


def test_case_37_control_without_healing_nothing_ships(begin: Begin) -> None:
    trial = begin("ANY-1")
    break_one_of_ours(trial)

    settle_rewired(
        trial,
        """
from datetime import timedelta
from chump_orchestrator.adapters.worktrees.dispatches import GitWorktrees
from chump_orchestrator.daemon import brakes
async def heal(self):
    return ()
GitWorktrees.heal = heal
brakes.POSTPONED = brakes.LONGEST_POSTPONED = timedelta(milliseconds=100)
""",
    )

    with pytest.raises(AssertionError, match="I6"):
        trial.check()


# 38: locks, stale and live


def test_case_38_stale_locks_of_git(begin: Begin) -> None:
    """They are somebody's, and stay; none of them is in the way of ours."""
    trial = begin("ANY-1")
    locks = ("refs/heads/main", "refs/remotes/origin/main", "HEAD", "index", "config", "shallow")
    places = [trial.root / ".git" / f"{lock}.lock" for lock in locks]
    for place in places:
        place.touch()

    trial.settle()

    trial.check()
    assert set(trial.outcomes().values()) == {"shipped"}
    assert all(place.exists() for place in places)


def test_case_38_a_stale_index_lock_in_the_worktree(begin: Begin) -> None:
    """As an agent leaves it that is killed in the middle of a commit; its work is kept."""
    trial = begin(
        "CUT-1",
        agent="""
if gap == "CUT-1":
    commit("first.txt", "first")
    leave("second.txt", "second")
    told = subprocess.run(["git", "rev-parse", "--absolute-git-dir"], capture_output=True)
    open(os.path.join(os.fsdecode(told.stdout.strip()), "index.lock"), "w").close()
    os.kill(os.getpid(), 9)
ship()""",
    )

    trial.settle()

    trial.check()
    assert trial.outcomes() == {"CUT-1": "killed", BYSTANDER: "shipped"}
    (salvaged,) = trial.git("for-each-ref", "--format=%(refname)", "refs/chump/salvage").split()
    assert trial.git("show", f"{salvaged}:second.txt") == "second"


def test_case_38_locks_that_are_held_for_a_while(begin: Begin) -> None:
    """First our own, by somebody who lives, then one of git's: both are waited for."""
    trial = begin("ANY-1", agent=WAIT + "ship()")
    common = trial.root / ".git"
    daemon = trial.start("--once", **trial.env)
    wait_until(lambda: len(trial.starts()) == 2)
    held = os.open(common / "chump-worktree.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)
    (trial.evidence / "go").touch()
    wait_until(lambda: len(list(trial.state.glob("d/*/exit.json"))) == 2)
    (common / "packed-refs.lock").touch()
    time.sleep(1)
    status_is_prompt(trial)
    os.close(held)
    wait_until(lambda: "dispatch.untidied" in trial.log())
    (common / "packed-refs.lock").unlink()

    assert daemon.wait(90) == 0, trial.log()
    trial.check()
    assert set(trial.outcomes().values()) == {"shipped"}
    assert trial.left()["worktrees"] == []
    assert "claude/" not in trial.git("branch", "--list")


# 39: what others have hung into git


def hook(trial: Trial, name: str, body: str) -> None:
    path = trial.root / ".git" / "hooks" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\necho {name} >>'{trial.folder}/called'\n{body}\n")
    path.chmod(0o755)


HOOKS = ("post-checkout", "pre-push", "reference-transaction", "post-index-change", "pre-auto-gc")


def hang_hooks_into(trial: Trial, body: str) -> None:
    for name in HOOKS:
        hook(trial, name, body)
    monitor = trial.folder / "fsmonitor"
    monitor.write_text(f"#!/bin/sh\necho fsmonitor >>'{trial.folder}/called'\n{body}\n")
    monitor.chmod(0o755)
    trial.git("config", "core.fsmonitor", str(monitor))


@pytest.mark.parametrize("body", ["exec sleep 600", "exit 1"], ids=["hanging", "failing"])
def test_case_39_hooks_of_the_repository_are_not_ours(begin: Begin, body: str) -> None:
    trial = begin("ANY-1", "CUT-1", agent=PLAIN_GIT + 'if gap == "CUT-1": sys.exit(3)\nship()')
    hang_hooks_into(trial, body)

    trial.settle(patience_s=60)

    trial.check()
    assert trial.outcomes() == {"ANY-1": "shipped", "CUT-1": "killed", BYSTANDER: "shipped"}
    assert not (trial.folder / "called").exists()
    assert trial.left()["worktrees"] == []


def test_case_39_control_with_hooks_on_nothing_ships(begin: Begin) -> None:
    trial = begin("ANY-1", agent=PLAIN_GIT + "ship()")
    hang_hooks_into(trial, "exit 1")

    settle_rewired(
        trial,
        """
from chump_orchestrator.adapters.git import Git
Git.OPTIONS = Git.OPTIONS[2:]
""",
    )

    with pytest.raises(AssertionError, match="I6"):
        trial.check()


@pytest.mark.parametrize("body", ["sleep 600", "exit 1"], ids=["hanging", "failing"])
def test_case_39_a_smudge_filter(begin: Begin, body: str) -> None:
    """No worktree can be made; nothing is left of those that were begun, and it is ended soon."""
    trial = begin("ANY-1", agent="ship()")
    commit_to_main(trial, ".gitattributes", "*.bin filter=odd\n")
    commit_to_main(trial, "a.bin", "binary")
    called = trial.folder / "called"
    trial.git("config", "filter.odd.smudge", f"touch '{called}'; {body}")
    trial.git("config", "filter.odd.required", "true")

    daemon = trial.start(**trial.env)
    wait_until(called.exists)
    status_is_prompt(trial)
    if body == "exit 1":
        wait_until(lambda: len(trial.outcomes()) == 2)
    daemon.send_signal(signal.SIGTERM)
    code = daemon.wait(30)
    left = trial.left(), trial.git("worktree", "list").count("\n")
    hanging = subprocess.run(
        ["ps", "-eo", "args"], capture_output=True, text=True, check=True
    ).stdout.count(str(called))
    trial.git("config", "--remove-section", "filter.odd")
    for gap in ("ANY-1", BYSTANDER):
        trial.program("release", gap)
    trial.settle()

    assert code == 0, trial.log()
    assert left == ({"worktrees": [], "leases": [], "processes": []}, 1)
    assert hanging == 0
    trial.check()
    assert set(trial.outcomes().values()) == {"shipped"}


class Gate(http.server.BaseHTTPRequestHandler):
    """Lets nobody in without a password."""

    def do_GET(self) -> None:
        self.send_response(401)
        self.send_header("WWW-Authenticate", 'Basic realm="trial"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_GET  # noqa: N815 - the server's names

    def log_message(self, *_: object) -> None:
        return


@contextmanager
def a_remote_that_asks() -> Iterator[str]:
    """Serve a remote that answers 401; gives its URL."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Gate)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/project.git"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_case_39_a_remote_that_asks_for_a_password(begin: Begin) -> None:
    """Nobody is asked; what was fetched before serves, and all ship once it lets us in again."""
    trial = begin("ANY-1", agent=WAIT + "ship()")
    called, askpass = trial.folder / "called", trial.folder / "askpass"
    askpass.write_text(f"#!/bin/sh\ntouch '{called}'\nexec sleep 600\n")
    askpass.chmod(0o755)
    trial.git("config", "core.askPass", str(askpass))
    trial.git("config", "credential.helper", "")
    asking = {"SSH_ASKPASS": str(askpass), "DISPLAY": ":7", "SSH_ASKPASS_REQUIRE": "force"}

    with a_remote_that_asks() as url:
        trial.git("remote", "set-url", "origin", url)
        daemon = trial.start("--once", **trial.env, **asking)
        wait_until(lambda: len(trial.starts()) == 2)
        wait_until(lambda: "base.fetch_failed" in trial.log())
        wait_until(lambda: "pulls.unavailable" in trial.log())
        status_is_prompt(trial)
        during = trial.outcomes()
        trial.git("remote", "set-url", "origin", str(trial.origin))
    (trial.evidence / "go").touch()

    assert daemon.wait(60) == 0, trial.log()
    trial.check()
    assert during == {}
    assert not called.exists()
    assert set(trial.outcomes().values()) == {"shipped"}


# 40: what may be lost by cleaning up

MESS = """\
identity = ["-c", "user.name=T", "-c", "user.email=t@example.org"]
def fails(*args):
    subprocess.run(["git", *args], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
if gap == "DIRTY-1":
    with open("docs/gaps.yaml", "a") as file:
        file.write("# changed\\n")
    leave("staged.txt", "staged")
    git("add", "staged.txt")
if gap == "UNTRACKED-1":
    os.makedirs("deep/er")
    leave("deep/er/odd name\\u00e9;x.txt".replace(" ", "_"), "untracked")
    os.symlink("nowhere", "deep/link")
if gap == "UNPUSHED-1":
    commit("unpushed.txt", "unpushed")
if gap == "DETACHED-1":
    git("checkout", "-q", "--detach")
    commit("detached.txt", "detached")
if gap == "STASHED-1":
    with open("stashed.txt", "w") as file:
        file.write("stashed")
    git("add", "stashed.txt")
    git("stash", "push", "-q")
    stash = subprocess.run(["git", "rev-parse", "refs/stash"], capture_output=True, text=True)
    sign("commits", gap, stash.stdout.strip())
if gap in ("MERGING-1", "REBASING-1"):
    name = gap.lower()
    commit("both.txt", "one")
    git("branch", name + "-side", "HEAD")
    commit("both.txt", "two")
    git("checkout", "-q", name + "-side")
    commit("both.txt", "three")
    fails(*(["merge", branch] if gap == "MERGING-1" else ["rebase", branch]))
    leave("resolved.txt", "half-resolved")
if gap == "IGNORED-1":
    os.makedirs("target/debug")
    with open("target/debug/big.o", "w") as file:
        file.write("made again")
if gap == "SECRET-1":
    leave(".env.local", "ignored_but_kept")
sys.exit(3 if gap != "OTHER-1" else ship())
"""

MESSY = {
    "DIRTY-1",
    "UNTRACKED-1",
    "UNPUSHED-1",
    "DETACHED-1",
    "STASHED-1",
    "MERGING-1",
    "REBASING-1",
    "SECRET-1",
}


def make_messes(begin: Begin) -> Trial:
    trial = begin(*sorted(MESSY), "IGNORED-1", agent=MESS, slots=3)
    commit_to_main(trial, ".gitignore", "target/\n.env*\n")
    return trial


def run_through(trial: Trial, change: str = "") -> None:
    """Run to the end, however often a row of failures pauses dispatching."""
    for _ in range(5):
        settle_rewired(trial, change)
        trial.program("resume")
        if len(trial.outcomes()) == len(MESSY) + 2:
            return
    raise AssertionError(trial.log())


def work_in(path: Path) -> dict[str, bytes]:
    """Return what is in a worktree, but for what is ignored and made again."""
    return {
        str(file.relative_to(path)): bytes(file.readlink())
        if file.is_symlink()
        else file.read_bytes()
        for file in path.rglob("*")
        if (file.is_symlink() or file.is_file())
        and file.relative_to(path).parts[0] not in (".git", "target")
    }


def restored(trial: Trial, ref: str) -> dict[str, bytes]:
    """Return what is in a snapshot, checked out afresh."""
    place = trial.folder / "restored"
    trial.git("worktree", "add", "-q", "--detach", str(place), ref)
    try:
        return work_in(place)
    finally:
        trial.git("worktree", "remove", "-f", str(place))


def test_case_40_no_clean_up_loses_work(begin: Begin) -> None:
    trial = make_messes(begin)

    run_through(trial)

    trial.check()
    base = trial.root / ".claude" / "worktrees"
    assert {path.name for path in base.iterdir() if not path.name.startswith(".")} == {
        gap.lower() for gap in MESSY
    }
    stash = trial.git("rev-parse", "refs/stash").strip()
    trial.git("stash", "drop", "-q")
    for gap in MESSY:
        (ref,) = trial.git(
            "for-each-ref", "--format=%(refname)", f"refs/chump/salvage/{gap.lower()}-*"
        ).split()
        if gap == "STASHED-1":
            trial.git("merge-base", "--is-ancestor", stash, ref)
        assert restored(trial, ref) == work_in(base / gap.lower()), gap


def test_case_40_control_without_examination_work_is_lost(begin: Begin) -> None:
    trial = make_messes(begin)

    run_through(
        trial,
        """
from chump_orchestrator.adapters.worktrees.losses import Findings, Losses
async def examine(self, workspace, entry, base_ref):
    tip = await self._git.commit(f"refs/heads/{workspace.branch}")
    return Findings((), tip, (), False, (), (), False)
Losses.examine = examine
""",
    )

    with pytest.raises(AssertionError, match="I4"):
        trial.check()


# 41: something in the way


def test_case_41_what_is_in_the_way_stays_and_the_next_number_is_taken(begin: Begin) -> None:
    ways = ("BRANCH-1", "FOLDER-1", "FILE-1", "LINK-1", "DANGLING-1")
    trial = begin(*ways)
    base, elsewhere = trial.root / ".claude" / "worktrees", trial.folder / "elsewhere"
    base.mkdir(parents=True)
    elsewhere.mkdir()
    (elsewhere / "mine").write_text("mine")
    trial.git("branch", "claude/branch-1")
    (base / "folder-1").mkdir()
    (base / "folder-1" / "mine").write_text("mine")
    (base / "file-1").write_text("mine")
    (base / "link-1").symlink_to(elsewhere)
    (base / "dangling-1").symlink_to("nowhere")
    branch = trial.git("rev-parse", "claude/branch-1")

    trial.settle()

    trial.check()
    assert trial.outcomes() == dict.fromkeys([*ways, BYSTANDER], "shipped")
    pushed = trial.git("for-each-ref", "--format=%(refname:lstrip=2)", at=trial.origin).split()
    assert {f"claude/{way.lower()}-r2" for way in ways} <= set(pushed)
    assert trial.git("rev-parse", "claude/branch-1") == branch
    assert (base / "folder-1" / "mine").read_text() == "mine"
    assert (base / "file-1").read_text() == "mine"
    assert (base / "link-1").readlink() == elsewhere
    assert (base / "dangling-1").readlink() == Path("nowhere")
    assert list(elsewhere.iterdir()) == [elsewhere / "mine"]


def test_case_41_what_comes_into_the_way_in_the_last_moment_is_left_alone(begin: Begin) -> None:
    """Between the choice of a name and the add; the gap is tried again under the next name."""
    trial = begin("LATE-1")
    set_settings(trial, "max_attempts = 1", 'max_attempts = 2\nbase = "20ms"')

    settle_rewired(
        trial,
        """
import os
from pathlib import Path
from chump_orchestrator.adapters.worktrees.dispatches import GitWorktrees
add = GitWorktrees.add
async def late(self, names, base, dispatch_id):
    if names.folder == "late-1":
        self._base_dir.mkdir(parents=True, exist_ok=True)
        os.symlink("nowhere", self._base_dir / "late-1")
    return await add(self, names, base, dispatch_id)
GitWorktrees.add = late
""",
    )

    trial.check()
    assert trial.outcomes() == {"LATE-1": "shipped", BYSTANDER: "shipped"}
    assert (trial.root / ".claude" / "worktrees" / "late-1").readlink() == Path("nowhere")
