"""One question to git, without a loop, is asked just as the daemon asks it."""

import json
import os
import stat
import sys
import time
from pathlib import Path

import psutil
import pytest

from chump_orchestrator.adapters import git_asked
from chump_orchestrator.adapters.git import Git
from chump_orchestrator.adapters.git_asked import ask
from chump_orchestrator.core.errors import MissingProgram, Refused, Unavailable
from tests.adapters.repositories import a_repository


def a_git(folder: Path, script: str) -> dict[str, str]:
    """Write a program called git, and return an environment in which it is found first."""
    folder.mkdir()
    program = folder / "git"
    program.write_text(f"#!{sys.executable}\n{script}")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}


TELLS = """\
import json, os, sys
session = os.getsid(0) == os.getpid()
print(json.dumps([sys.argv[1:], dict(os.environ), os.getcwd(), sys.stdin.read(), session]))
"""


async def test_it_is_asked_as_a_daemon_asks(tmp_path: Path) -> None:
    env = a_git(tmp_path / "bin", TELLS)
    env |= {"GIT_DIR": "/elsewhere", "GIT_SSH_COMMAND": "ssh -v", "NOTIFY_SOCKET": "/run/x"}

    told = json.loads(ask(tmp_path, env, "rev-parse", "HEAD").stdout)
    as_daemon = await Git(tmp_path, env).run("rev-parse", "HEAD")

    assert told == json.loads(as_daemon.out)
    assert "GIT_DIR" not in told[1]
    assert "NOTIFY_SOCKET" not in told[1]
    assert told[4]


def test_exit_code_and_both_streams_are_told(tmp_path: Path) -> None:
    repository = a_repository(tmp_path)

    answer = ask(repository.root, os.environ, "cat-file", "-p", "HEAD:README")
    no_answer = ask(repository.root, os.environ, "cat-file", "-p", "HEAD:nothing")

    assert (answer.returncode, answer.stdout) == (0, b"read me\n")
    assert no_answer.returncode == 128
    assert b"nothing" in no_answer.stderr


def test_what_does_not_end_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    script = f"""\
import subprocess, sys
child = subprocess.Popen(["sleep", "600"])
with open({str(tmp_path / "pid")!r}, "w") as file:
    file.write(str(child.pid))
child.wait()
"""
    env = a_git(tmp_path / "bin", script)

    with pytest.raises(Unavailable, match=r"git did not finish within 1 s and was killed"):
        ask(tmp_path, env, "rev-parse", timeout_s=1.0)

    child = int((tmp_path / "pid").read_text())
    until = time.monotonic() + 30
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until
        time.sleep(0.01)


def test_more_than_an_answer_may_have_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(git_asked, "LIMIT_BYTES", 7)
    repository = a_repository(tmp_path)

    with pytest.raises(Refused, match="more than 7 bytes"):
        ask(repository.root, os.environ, "cat-file", "-p", "HEAD:README")


def test_a_git_that_is_not_there_is_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingProgram, match="git was not found; install it"):
        ask(tmp_path, {"PATH": str(tmp_path)}, "version")


def test_a_git_that_cannot_be_executed_is_refused(tmp_path: Path) -> None:
    env = a_git(tmp_path / "bin", "")
    (tmp_path / "bin" / "git").write_text("#!/nothing/here\n")
    (tmp_path / "bin" / "git").chmod(0o644)

    with pytest.raises(Refused, match="git cannot be executed"):
        ask(tmp_path, {**env, "PATH": str(tmp_path / "bin")}, "version")


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no such folder"):
        ask(tmp_path / "gone", os.environ, "version")
    with pytest.raises(Refused, match="NUL"):
        ask(tmp_path, os.environ, "rev-parse", "a\0b")


def test_more_than_may_be_said_is_not_even_collected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(git_asked, "LIMIT_BYTES", 1_000_000)
    env = a_git(tmp_path / "bin", "import sys\nwhile True: sys.stdout.write('x' * 65536)\n")

    with pytest.raises(Refused, match="was stopped; ask for less"):
        ask(tmp_path, env, "rev-parse", timeout_s=60)


LEAVES = """\
import pathlib, subprocess
left = subprocess.Popen(["sleep", "60"])
pathlib.Path("left").write_text(str(left.pid))
print("said", flush=True)
"""


def test_whoever_git_left_running_with_its_pipes_is_not_waited_for(tmp_path: Path) -> None:
    env = a_git(tmp_path / "bin", LEAVES)

    told = ask(tmp_path, env, "rev-parse", timeout_s=20)
    left = psutil.Process(int((tmp_path / "left").read_text()))
    left.kill()
    left.wait()

    assert (told.returncode, told.stdout) == (0, b"said\n")


HUSHES = "import os, sys, time\nos.close(1), os.close(2)\ntime.sleep({for_s})\nos._exit(3)\n"


@pytest.mark.parametrize("has_descriptors", [True, False])
def test_the_end_of_one_that_says_no_more_is_awaited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, has_descriptors: bool
) -> None:
    if not has_descriptors:
        monkeypatch.delattr(os, "pidfd_open", raising=False)

    assert ask(tmp_path, a_git(tmp_path / "soon", HUSHES.format(for_s=0.3))).returncode == 3
    with pytest.raises(Unavailable, match="did not finish within"):
        ask(tmp_path, a_git(tmp_path / "late", HUSHES.format(for_s=60)), timeout_s=0.5)
