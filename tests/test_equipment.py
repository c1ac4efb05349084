"""What agents are given while the daemon ships for them, and what of it git obeys (D5, P9)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from chump_orchestrator import config
from chump_orchestrator.core.errors import ConfigError
from chump_orchestrator.equipment import (
    environment_of_agents,
    overlay_of_agents,
    shipper,
)

ENVIRON = {
    "PATH": "/bin",
    "GH_TOKEN": "t1",
    "GH_HOST": "ghe.acme.com",
    "GITHUB_TOKEN": "t2",
    "GITHUB_ENTERPRISE_TOKEN": "t3",
    "GITLAB_TOKEN": "t4",
    "GIT_SSH_COMMAND": "ssh -i key",
    "GIT_ASKPASS": "ask",
    "SSH_AUTH_SOCK": "/run/agent",
    "SSH_ASKPASS": "ask",
    "ANTHROPIC_API_KEY": "k",
}
IDENTITY = {
    "GIT_AUTHOR_NAME": "Chump Dispatched",
    "GIT_COMMITTER_NAME": "Chump Dispatched",
    "GIT_AUTHOR_EMAIL": "chump-dispatch@chump.bot",
    "GIT_COMMITTER_EMAIL": "chump-dispatch@chump.bot",
    "GIT_CONFIG_COUNT": "3",
    "GIT_CONFIG_KEY_0": "commit.gpgsign",
    "GIT_CONFIG_VALUE_0": "false",
    "GIT_CONFIG_KEY_1": "gc.auto",
    "GIT_CONFIG_VALUE_1": "0",
    "GIT_CONFIG_KEY_2": "maintenance.auto",
    "GIT_CONFIG_VALUE_2": "false",
}
Load = Callable[[str], config.Loaded]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    (tmp_path / ".chump").mkdir()

    def loaded(text: str) -> config.Loaded:
        (tmp_path / ".chump" / "orchestrator.toml").write_text(text)
        return config.load(tmp_path, environ={}, user_file=tmp_path / "none.toml")

    return loaded


def test_agents_that_ship_have_what_the_forge_asks_for(load: Load) -> None:
    settings = load("").settings

    given = environment_of_agents(settings, ENVIRON)(("ANTHROPIC_*",))

    assert {"GH_TOKEN", "GITHUB_TOKEN", "GIT_SSH_COMMAND", "SSH_AUTH_SOCK"} <= given.keys()
    assert overlay_of_agents(settings) == IDENTITY


def test_agents_that_do_not_ship_have_nothing_of_it(load: Load) -> None:
    settings = load('[ship]\nby = "daemon"').settings

    given = environment_of_agents(settings, ENVIRON)(("ANTHROPIC_*", "*"))

    assert given == {"PATH": "/bin", "ANTHROPIC_API_KEY": "k"}
    assert IDENTITY.items() - overlay_of_agents(settings).items() == {("GIT_CONFIG_COUNT", "3")}


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("GH_TOKEN", {"GH_TOKEN"}),
        ("GH_*", {"GH_TOKEN", "GH_HOST"}),
        ("SSH_AUTH_SOCK", {"SSH_AUTH_SOCK"}),
        ("GIT_SSH_COMMAND", {"GIT_SSH_COMMAND"}),
        ("G*", set()),
    ],
)
def test_what_is_named_is_passed_all_the_same_and_said_to_be(
    load: Load, pattern: str, names: set[str]
) -> None:
    loaded = load(f'pass_env = ["{pattern}"]\n[ship]\nby = "daemon"')

    given = environment_of_agents(loaded.settings, ENVIRON)(())

    assert given.keys() - {"PATH"} == names
    assert not names & overlay_of_agents(loaded.settings).keys()
    said = f"pass_env: {pattern} gives agents access to the forge, for which the daemon ships"
    assert (said in loaded.notices) is bool(names)


@pytest.mark.parametrize("key", ["credential.helper", "credential.https://forge.test.helper"])
@pytest.mark.parametrize("is_sealed", [True, False])
def test_git_of_an_agent_finds_no_login_of_the_users(
    tmp_path: Path, load: Load, key: str, is_sealed: bool
) -> None:
    helper = "!f() { echo username=u; echo password=p; }; f"
    home = tmp_path / "home"
    home.mkdir()
    environ = {"PATH": os.environ["PATH"], "HOME": str(home)}
    subprocess.run(["git", "config", "--global", key, helper], env=environ, check=True)
    text = '[ship]\nby = "daemon"' if is_sealed else ""

    told = subprocess.run(
        ["git", "credential", "fill"],
        input="protocol=https\nhost=forge.test\n\n",
        env=environ | {"GIT_TERMINAL_PROMPT": "0"} | dict(overlay_of_agents(load(text).settings)),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert ("password=p" in told.stdout) is not is_sealed


@pytest.mark.parametrize(
    ("text", "notice"),
    [
        ("draft = true", 'ship.draft has no effect while agents ship; write ship.by = "daemon"'),
        (
            'by = "daemon"\nlabels = ["x"]\n[pulls]\nuse = "git"',
            "ship.labels has no effect with pulls.use = git, which has no requests",
        ),
        (
            'by = "daemon"\ndraft = true\nauto_merge = "merge"',
            "ship.auto_merge: a draft is not merged before a person calls it ready",
        ),
    ],
)
def test_what_has_no_effect_is_said(load: Load, text: str, notice: str) -> None:
    assert notice in load(f"[ship]\n{text}").notices


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("by = 'us'", 'write "agent" or "daemon"'),
        ("auto_merge = 'rocket'", 'write "" or "merge" or "squash" or "rebase"'),
        ("forbidden_paths = ['./x']", "paths do not begin with ./ here"),
        ("allow = ['']", "it is empty"),
        (f"labels = ['{'x' * 51}']", "it is longer than 50 characters"),
        ("labels = 'x'", "is not a list"),
    ],
)
def test_what_cannot_be_used_is_refused(load: Load, line: str, wrong: str) -> None:
    with pytest.raises(ConfigError, match="ship") as caught:
        load(f"[ship]\n{line}")

    assert wrong in str(caught.value)


def test_our_own_folders_are_always_among_the_forbidden(tmp_path: Path, load: Load) -> None:
    from chump_orchestrator.adapters.git import Git  # noqa: PLC0415 - only here

    loaded = load('[ship]\nby = "daemon"\nforbidden_paths = []\n[pulls]\nuse = "git"')
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)

    made = shipper(tmp_path, loaded, Git(tmp_path, {}), {})

    assert made is not None
    paths = made._scan._paths  # type: ignore[attr-defined]
    for place in (
        ".chump/orchestrator/ledger.db",
        ".chump-locks/x.json",
        ".claude/worktrees/a/b",
        ".chump/orchestrator.toml",
        ".chump/secrets.env",
        ".chump/state.db-wal",
        "sessions/chump_memory.db",
    ):
        assert paths.forbidding(place), place
    assert not paths.forbidding("src/.chump-locks.py")


OURSELVES = """
[commits]
author_name = "Night Shift"
author_email = ""
sign = true
"""


def test_whom_commits_are_by_and_whether_they_are_signed_can_be_set(load: Load) -> None:
    """Behaviour D5: what is empty is as git itself has it."""
    assert overlay_of_agents(load(OURSELVES).settings) == {
        "GIT_AUTHOR_NAME": "Night Shift",
        "GIT_COMMITTER_NAME": "Night Shift",
        "GIT_CONFIG_COUNT": "2",
        "GIT_CONFIG_KEY_0": "gc.auto",
        "GIT_CONFIG_VALUE_0": "0",
        "GIT_CONFIG_KEY_1": "maintenance.auto",
        "GIT_CONFIG_VALUE_1": "false",
    }


def test_whoever_hands_on_entries_of_git_has_them_as_they_are(load: Load) -> None:
    passed = 'pass_env = ["GIT_CONFIG_COUNT", "GIT_CONFIG_KEY_0", "GIT_CONFIG_VALUE_0"]\n'

    assert not [
        name
        for name in overlay_of_agents(load(passed + OURSELVES).settings)
        if name.startswith("GIT_CONFIG")
    ]


@pytest.mark.parametrize("by", ["agent", "daemon"])
def test_git_commits_as_it_was_told_to(tmp_path: Path, load: Load, by: str) -> None:
    home = tmp_path / "home"
    home.mkdir()
    environ = {"PATH": os.environ["PATH"], "HOME": str(home)}
    for key, value in (("user.email", "me@home.test"), ("commit.gpgsign", "true")):
        subprocess.run(["git", "config", "--global", key, value], env=environ, check=True)
    settings = load(f'{OURSELVES}\n[ship]\nby = "{by}"').settings
    given = environ | dict(overlay_of_agents(settings))

    def git(*argv: str) -> str:
        command = ["git", "-C", str(tmp_path), *argv]
        return subprocess.run(
            command, env=given, check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init", "--quiet")
    git("commit", "--quiet", "--allow-empty", "--no-gpg-sign", "--message", "x")

    assert git("log", "-1", "--format=%an <%ae>, %cn <%ce>") == (
        "Night Shift <me@home.test>, Night Shift <me@home.test>"
    )
    assert git("config", "commit.gpgsign") == "true"
    assert git("config", "gc.auto") == "0"
    assert git("config", "--type=bool", "maintenance.auto") == "false"
