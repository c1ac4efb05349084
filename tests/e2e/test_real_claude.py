"""The real Claude Code, at work on a gap, with a model on the loopback interface.

npm installs it once into `.build/clients`. Where that cannot be done these tests are skipped, and
the reason is told at the end of the run. `CHUMP_TEST_CLAUDE` may name a program that is there.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.builders import a_dispatch
from tests.e2e.messages_api import (
    TOKENS_CACHED,
    TOKENS_IN,
    TOKENS_OUT,
    Answer,
    Failure,
    MessagesApi,
    Step,
    Tool,
)
from tests.e2e.projects import EMPTY, Project, gaps

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

VERSION = "2.1.197"
CACHE = Path(__file__).parent.parent.parent / ".build" / "clients" / f"claude-{VERSION}"
PROGRAM = CACHE / "node_modules" / ".bin" / "claude"
NPM = (
    *("--no-audit", "--no-fund", "--fetch-retries=1"),
    *("--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=5000"),
)
INSTALL_S = 240

KEY = "sk-ant-api03-of-no-use-to-anybody"
TOKEN = "sk-ant-oat01-of-no-use-to-anybody"

SHIP = """\
set -e
branch=$(git branch --show-current)
echo done > a-1.txt; git add a-1.txt; git commit -qm 'Do it'
git push -q origin HEAD:refs/heads/$branch
git push -q origin HEAD:refs/heads/main
git log -1 --format=%an
"""


@pytest.fixture(scope="session")
def claude() -> Path:
    """Return the program, installed where it is not there yet."""
    given = os.environ.get("CHUMP_TEST_CLAUDE")
    if given:
        return Path(given)
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests may run in several processes
        if not works():
            install()
    return PROGRAM


def works() -> bool:
    if not PROGRAM.exists():
        return False
    asked = subprocess.run([PROGRAM, "--version"], capture_output=True, timeout=60, check=False)
    return asked.returncode == 0


def install() -> None:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("the real claude: npm is not installed")
    try:
        done = subprocess.run(
            [npm, "install", *NPM, f"@anthropic-ai/claude-code@{VERSION}"],
            cwd=CACHE,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=INSTALL_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"the real claude: npm did not install it within {INSTALL_S} s")
    if done.returncode != 0:
        why = (done.stderr.strip().splitlines() or ["no reason given"])[0]
        pytest.skip(f"the real claude: npm could not install it: {why[:200]}")
    if not works():
        # Its program for this platform is put in place by a script that npm may not have run.
        script = CACHE / "node_modules" / "@anthropic-ai" / "claude-code" / "install.cjs"
        subprocess.run(["node", script], capture_output=True, timeout=INSTALL_S, check=False)
    if not works():
        pytest.skip("the real claude: it was installed, and cannot be run on this machine")


class Scene:
    """A project with one gap, a model that thinks what it is told, and a home without settings."""

    def __init__(self, folder: Path, program: Path, steps: tuple[Step, ...], claude: str) -> None:
        self.api = MessagesApi(steps)
        self.home = folder / "home"
        self.home.mkdir()
        options = f'[backend.claude]\nprogram = "{program}"\n{claude}\n'
        self.project = Project.make(folder / "p", gaps("A-1"), more=options)
        settings = self.project.root / ".chump" / "orchestrator.toml"
        text = settings.read_text().replace('use = "custom"', 'use = "claude"', 1)
        settings.write_text(f"consent = true\n{text}")
        self.env = {
            "HOME": str(self.home),
            "ANTHROPIC_API_KEY": KEY,
            "ANTHROPIC_BASE_URL": self.api.url,
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "DISABLE_AUTOUPDATER": "1",
            "DISABLE_TELEMETRY": "1",
            "IS_SANDBOX": "1",  # as root it refuses to work otherwise
        }

    def run(self, **env: str) -> subprocess.CompletedProcess[str]:
        return self.project.program("run", "--once", **{**self.env, **env})

    def row(self) -> dict[str, Any]:
        told: list[dict[str, Any]] = self.project.json("history")["dispatches"]
        return told[-1]


Set = Callable[..., Scene]


@pytest.fixture
def scene(tmp_path: Path, claude: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Set]:
    for name in tuple(os.environ):
        if name.startswith(("ANTHROPIC_", "CLAUDE_", "API_TIMEOUT")):
            monkeypatch.delenv(name)
    made: list[Scene] = []

    def build(*steps: Step, settings: str = "max_retries = 0") -> Scene:
        made.append(Scene(tmp_path, claude, steps, settings))
        return made[-1]

    yield build
    for one in made:
        one.project.clean()
        one.api.close()


def test_it_ships_a_gap_and_all_that_it_tells_is_understood(scene: Set) -> None:
    """Behaviour A3: it runs a tool that commits and pushes, and answers with a number."""
    one = scene(Tool(SHIP), Answer("7"))

    done = one.run()

    told = one.row()
    assert done.returncode == 0, done.stderr
    assert (told["outcome"], told["answer"], told["trouble"]) == ("shipped", "7", None)
    assert told["session"] == a_dispatch(told["id"]).session
    assert (told["turns"], told["tool_calls"]) == (2, 1)
    assert told["tokens"] == 2 * (TOKENS_IN + TOKENS_CACHED + TOKENS_OUT)
    assert told["cost_usd"] > 0
    asked = json.dumps(one.api.requests[-1]["messages"])
    assert "working on gap A-1" in asked
    assert "Chump Dispatched" in asked
    assert one.project.left() == EMPTY


def test_a_brief_that_begins_like_a_command_reaches_the_model(scene: Set) -> None:
    one = scene(Tool(SHIP), Answer("7"))
    (one.project.root / "brief.txt").write_text("/init is no command here\n")
    settings = one.project.root / ".chump" / "orchestrator.toml"
    settings.write_text(settings.read_text() + '[prompt]\ntemplate = "brief.txt"\n')

    one.run()

    assert one.row()["outcome"] == "shipped"
    assert "/init is no command here" in json.dumps(one.api.requests[0]["messages"])


def test_a_key_that_is_not_known_is_the_cause(scene: Set) -> None:
    """Behaviour O2."""
    one = scene(Failure(401, "authentication_error", "invalid x-api-key"))

    done = one.run()

    told = one.row()
    assert done.returncode == 1
    assert (told["outcome"], told["cause"]) == ("killed", "auth")
    assert "Invalid API key" in told["trouble"]


def test_x4_a_limit_of_the_account_and_its_reset_are_understood(scene: Set) -> None:
    resets_at = int(time.time()) + 7200
    unified = "anthropic-ratelimit-unified"
    headers = {
        f"{unified}-status": "rejected",
        f"{unified}-reset": str(resets_at),
        f"{unified}-representative-claim": "five_hour",
        f"{unified}-5h-status": "rejected",
        f"{unified}-5h-reset": str(resets_at),
        f"{unified}-overage-status": "rejected",
    }
    one = scene(Failure(429, "rate_limit_error", "This would exceed your limit.", headers))

    done = one.run(ANTHROPIC_API_KEY="", CLAUDE_CODE_OAUTH_TOKEN=TOKEN)

    told = one.row()
    until = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(resets_at))
    assert (told["outcome"], told["cause"]) == ("killed", "usage-limit"), told
    assert f"parked until {until}: its account has met its limit" in done.stdout
    assert one.project.json("status")["parked"] == []


def test_what_it_is_allowed_is_used_up(scene: Set) -> None:
    one = scene(Tool("echo one"), settings="max_turns = 1\nmax_retries = 0")

    one.run()

    told = one.row()
    assert (told["outcome"], told["cause"]) == ("killed", "no-pr")
    assert "Reached maximum number of turns (1)" in told["trouble"]
    assert told["cost_usd"] > 0


def test_p2_stopped_in_a_tool_it_tells_its_cost_and_leaves_nothing_alive(scene: Set) -> None:
    one = scene(Tool("touch begun; sleep 601"), Answer("7"))
    one.project.start(**one.env)
    begun = one.project.root / ".claude" / "worktrees" / "a-1" / "begun"
    one.project.eventually(begun.exists)
    (during,) = one.project.json("status")["dispatches"]

    one.project.program("stop", "A-1")
    one.project.eventually(lambda: one.project.json("history")["dispatches"])

    told = one.row()
    assert (during["activity"], during["turns"]) == ("Bash", 1)
    assert (told["outcome"], told["session"]) == ("cancelled", during["session"])
    assert told["cost_usd"] > 0
    assert one.project.processes() == []


def test_d1_a_stopped_session_is_gone_on_with_and_remembers(scene: Set) -> None:
    """The same conversation, in the same worktree; what was said before is in its requests."""
    # Of the call that was cut short the conversation keeps more or less, so either may be due.
    once = Tool(f"if ! test -e a-1.txt; then\n{SHIP}fi")
    one = scene(Tool("touch begun; sleep 601"), once, once, Answer("7"))
    one.project.start(**one.env)
    worktree = one.project.root / ".claude" / "worktrees" / "a-1"
    one.project.eventually((worktree / "begun").exists)
    one.project.program("stop", "A-1")
    one.project.eventually(lambda: one.project.json("history")["dispatches"])
    one.project.eventually(lambda: one.project.json("status")["dispatches"] == [])

    said = one.project.program("retry", "A-1", "--resume")
    one.project.eventually(lambda: len(one.project.json("history")["dispatches"]) == 2)

    last, first = one.project.json("history")["dispatches"]
    assert said.returncode == 0, said.stderr
    assert (last["outcome"], last["cause"], last["trouble"]) == ("shipped", None, None), last
    assert (last["session"], last["resumed_from"]) == (first["session"], first["id"])
    asked = json.dumps(one.api.requests[-1]["messages"])
    assert "You are an autonomous coding agent working on gap A-1" in asked
    assert "an operator stopped you" in asked


def test_a_session_that_is_not_there_is_told_apart(scene: Set) -> None:
    """Behaviour O2: it says so in two places, and neither is an answer of its API."""
    one = scene(Tool("touch begun; sleep 601"))
    one.project.start(**one.env)
    worktree = one.project.root / ".claude" / "worktrees" / "a-1"
    one.project.eventually((worktree / "begun").exists)
    one.project.program("stop", "A-1")
    one.project.eventually(lambda: one.project.json("history")["dispatches"])
    one.project.eventually(lambda: one.project.json("status")["dispatches"] == [])
    shutil.rmtree(one.home / ".claude" / "projects")

    one.project.program("retry", "A-1", "--resume")
    one.project.eventually(lambda: len(one.project.json("history")["dispatches"]) == 2)

    last = one.project.json("history")["dispatches"][0]
    assert (last["outcome"], last["cause"]) == ("killed", "session")
    assert (worktree / "begun").exists()
