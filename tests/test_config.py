"""Settings: defaults, precedence, origins, and one clear line for everything that is wrong."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import platformdirs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chump_orchestrator.config import (
    FORGE_VARIABLES,
    Loaded,
    OriginKind,
    Settings,
    agent_environment,
    environment,
    load,
    salvage,
    secret_values,
    show,
    user_settings_file,
)
from chump_orchestrator.core.dispatch import DEFAULT_SOFT
from chump_orchestrator.core.errors import ConfigError
from chump_orchestrator.core.gap import Effort, Priority
from chump_orchestrator.core.routing import Route
from chump_orchestrator.settings.choices import LogFormat, OnSignal, PickKind
from chump_orchestrator.settings.rules import prefix_complaint
from chump_orchestrator.settings.schema import build, flatten
from chump_orchestrator.settings.tables import CLAUDES_OPTIONS, BackendOptions
from chump_orchestrator.settings.toml_file import checked, dotted

REFERENCE = Path(__file__).parent.parent / "docs" / "reference" / "settings.md"

DEFAULTS = """
max_parallel = 2
max_open_pulls = 10
base_ref = ""                  # empty: the remote's HEAD branch
consent = false
pass_env = []

[backlog]
path = "docs/gaps.yaml"        # or a folder; relative to the repository
ref = ""                       # e.g. "origin/main"

[pick]
kind = "user"
priorities = ["P0", "P1", "P2"]
exclude_efforts = ["xl"]
order = "effort"               # or "declared"
require_opt_in = false
bias_threshold = 0.8
bias_window = 10
repeat = "24h"

[deadlines]
xs = "20m"
s = "20m"
m = "60m"
l = "180m"
xl = "360m"
unknown = "60m"
grace = "30s"
silent = "5m"

[backend]
use = "claude"

[backend.claude]
program = ""
model = ""
fallback_model = ""
max_turns = 0
max_budget_usd = 0
max_retries = 8
api_timeout = "3m"
extra_args = []
pass_env = []

[backend.custom]
argv = []                      # e.g. ["my-agent", "--brief", "{prompt_file}"]
pass_env = []
stop_signals = ["INT", "TERM"]

[commits]
author_name = "Chump Dispatched"
author_email = "chump-dispatch@chump.bot"
sign = false

[prompt]
template = ""

[pulls]
use = "gh"                     # or "git"
interval = "30s"
ci_grace = "30m"
deadline = "24h"
on_failed_checks = "wait"      # or "resume"

[retry]
max_attempts = 2
base = "10s"
cap = "5m"

[brake]
sessions = 3
usd = 0

[budget]
usd_per_gap = 0
usd_per_day = 0
tokens_per_day = 0

[routing]
table = "docs/dispatch/routing.yaml"
learn = false

[worktrees]
base = ".claude/worktrees"
prefix = "claude/"
keep_days = 7
keep_ignored = [".env*", "*.local"]
min_free = "2GiB"

[leases]
dir = ".chump-locks"
ttl = "4h"

[journal]
enabled = true
reflections = "sessions/chump_memory.db"
routing = ".chump/state.db"

[state]
dir = ".chump/orchestrator"
keep_days = 30                 # of settled dispatches' logs

[stop]
on_signal = "teardown"         # SIGTERM: or "detach", "drain"

[log]
format = "auto"                # "console", "json", "journal"
level = "info"

[faults]
allowed = false
"""
"""The file of behaviour C5, word for word."""

INSTALLED = {
    "backends": ("claude", "chump-local", "custom", "exit_1"),
    "pulls": ("gh", "git", "forge"),
    "shippers": ("gh", "git"),
}


class Repository:
    """A repository with a settings file, and a user with another."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "repository"
        self.file = self.root / ".chump" / "orchestrator.toml"
        self.user_file = folder / "user.toml"
        self.file.parent.mkdir(parents=True)

    def load(
        self,
        text: str | bytes = "",
        *,
        user: str = "",
        variables: Mapping[str, str] | None = None,
        flags: Mapping[str, object] | None = None,
    ) -> Loaded:
        if text:
            self.file.write_bytes(text.encode() if isinstance(text, str) else text)
        if user:
            self.user_file.write_text(user, "utf-8")
        return load(
            self.root,
            environ=variables or {},
            flags=flags,
            user_file=self.user_file,
            installed=lambda group: INSTALLED[group],
        )

    def complaints(self, text: str | bytes = "", **layers: Any) -> list[str]:
        """What is wrong, line by line, with FILE and USER for the names of the files."""
        with pytest.raises(ConfigError) as caught:
            self.load(text, **layers)
        told = str(caught.value).replace(str(self.file), "FILE")
        return told.replace(str(self.user_file), "USER").splitlines()


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path)


# --- defaults (behaviour C5)


def test_the_file_of_behaviour_c5_says_what_holds_without_any_file(repository: Repository) -> None:
    loaded = repository.load(DEFAULTS)

    assert loaded.settings == Settings()
    assert loaded.notices == ()


def test_without_files_every_value_is_a_default(repository: Repository) -> None:
    loaded = repository.load()

    assert loaded.settings == Settings()
    assert {str(origin) for origin in loaded.origins.values()} == {"default"}
    assert {origin.kind for origin in loaded.origins.values()} == {OriginKind.DEFAULT}


def test_defaults_have_the_types_of_the_core() -> None:
    settings = Settings()

    assert settings.deadlines.soft == DEFAULT_SOFT
    assert settings.pick.priorities == (Priority.P0, Priority.P1, Priority.P2)
    assert settings.pick.exclude_efforts == (Effort.XL,)
    assert settings.worktrees.min_free == 2 * 1024**3
    assert settings.leases.ttl == timedelta(hours=4)
    assert settings.lessons.enabled is True
    assert (settings.override, settings.depth, settings.fault_inject) == (None, "", "")


def leaves(table: Mapping[str, Any], above: tuple[str, ...] = ()) -> dict[tuple[str, ...], object]:
    found: dict[tuple[str, ...], object] = {}
    for name, value in table.items():
        inner = leaves(value, (*above, name)) if isinstance(value, dict) else {}
        found |= inner or {(*above, name): value}
    return found


def test_the_reference_shows_every_key_with_its_default() -> None:
    text = REFERENCE.read_text("utf-8")
    block = re.search(r"```toml\n(.*?)```", text, re.DOTALL)
    assert block is not None

    shown = {k: checked(k, v) for k, v in leaves(tomllib.loads(block[1])).items()}

    expected = flatten(Settings())
    assert {k: v for k, v in shown.items() if expected.get(k) != v} == {}
    # Options that hardly anybody sets stand in the tables alone.
    fixed = {k for k in expected if k[:1] != ("backend",) or k == ("backend", "use")}
    assert fixed - shown.keys() == set()


def test_the_tables_of_the_reference_agree_with_the_defaults() -> None:
    text = REFERENCE.read_text("utf-8")
    rows = re.findall(r"^\| `([\w.<>-]+)` \| `([^`]*)` \|", text, re.MULTILINE)
    told = {tuple(name.replace("<name>", "other").split(".")): given for name, given in rows}
    documented = {key: checked(key, tomllib.loads(f"k = {v}")["k"]) for key, v in told.items()}

    expected = {k: v for k, v in flatten(Settings()).items() if k[:2] != ("backend", "claude")}
    expected = {k: v for k, v in expected.items() if k[:2] != ("backend", "custom")}
    options = BackendOptions()
    for option in BackendOptions.__slots__:
        whose = "claude" if option in CLAUDES_OPTIONS else "other"
        expected["backend", whose, option] = getattr(options, option)
    assert documented == expected


def test_the_reference_names_every_variable_that_is_read() -> None:
    source = Path(__file__).parent.parent / "chump_orchestrator" / "config.py"
    names = set(re.findall(r'"((?:CHUMP|GAP|CLAUDE|API)_[A-Z_]+)"', source.read_text("utf-8")))

    text = REFERENCE.read_text("utf-8")
    assert names
    assert {name for name in names if f"`{name}`" not in text} == set()


# --- precedence and origins (behaviour C4)


def test_flags_outrank_the_environment_which_outranks_files(repository: Repository) -> None:
    names = {"CHUMP_DISPATCH_CAPACITY": "6"}
    user = "max_parallel = 3\nmax_open_pulls = 30\nbase_ref = 'origin/user'"
    own = "max_parallel = 4\nmax_open_pulls = 40"

    default = repository.load().settings
    by_user = repository.load(user=user).settings
    by_file = repository.load(own, user=user).settings
    by_name = repository.load(own, user=user, variables=names).settings
    by_flag = repository.load(
        own, user=user, variables=names, flags={"max_parallel": 7, "base_ref": None}
    ).settings

    parallel = [s.max_parallel for s in (default, by_user, by_file, by_name, by_flag)]
    assert parallel == [2, 3, 4, 6, 7]
    assert (by_flag.max_open_pulls, by_flag.base_ref) == (40, "origin/user")


def test_every_value_knows_where_it_comes_from(repository: Repository) -> None:
    loaded = repository.load(
        "# a comment\n\n[pick]\nkind = 'any'\n\n[backend.claude]\nmodel = 'opus'\n",
        user="max_open_pulls = 5\n",
        variables={"GAP_CLAIM_TTL_HOURS": "1.5", "CHUMP_LOCAL_BIN": "/opt/chump"},
        flags={"backlog.path": Path("/elsewhere/gaps.yaml"), "max_parallel": 3, "consent": True},
    )

    told = {key: str(o) for key, o in loaded.origins.items() if o.kind is not OriginKind.DEFAULT}
    assert told == {
        "max_parallel": "--max-parallel",
        "max_open_pulls": f"{repository.user_file}:1",
        "consent": "--yes",
        "backlog.path": "--backlog",
        "pick.kind": f"{repository.file}:4",
        "backend.claude.model": f"{repository.file}:7",
        "backend.chump-local.program": "CHUMP_LOCAL_BIN",
        "leases.ttl": "GAP_CLAIM_TTL_HOURS",
    }
    assert loaded.settings.pick.kind is PickKind.ANY
    assert loaded.settings.leases.ttl == timedelta(minutes=90)
    assert loaded.settings.backlog.path == "/elsewhere/gaps.yaml"
    assert loaded.settings.backend.of("chump-local").program == "/opt/chump"


def test_lines_are_right_in_any_way_of_writing_toml(repository: Repository) -> None:
    text = '''pass_env = [
  "NPM_TOKEN",   # ] = "not the end
  'A_*',
]
backlog.path = """gaps.yaml"""
"base_ref" = "origin/main"

  [ 'pick' ]
order = "declared"

[pulls] # [pick]
[worktrees]
'''
    loaded = repository.load(text)

    lines = {key: o.line for key, o in loaded.origins.items() if o.line}
    assert lines == {"pass_env": 1, "backlog.path": 5, "base_ref": 6, "pick.order": 9}


def test_a_key_in_an_inline_table_has_the_line_of_the_table(repository: Repository) -> None:
    (told,) = repository.complaints('\npulls = { use = "git", interval = 3 }')

    assert told.startswith("FILE:2: pulls.interval: 3 is not a duration; ")


def test_the_environment_sets_what_behaviour_names(repository: Repository) -> None:
    settings = repository.load(
        variables={
            "CHUMP_DISPATCH_CAPACITY": " 5 ",
            "CHUMP_PICKER_BIAS_THRESHOLD": "0.5",
            "CHUMP_PICKER_BIAS_WINDOW": "20",
            "CHUMP_CLAUDE_BIN": "/opt/claude",
            "CHUMP_LOCK_DIR": "/var/lock/chump",
            "CHUMP_LOG_FILE": "/var/log/chump.log",
            "CLAUDE_CODE_MAX_RETRIES": "3",
            "API_TIMEOUT_MS": "90000",
            "CHUMP_DISPATCH_DEPTH": "1",
            "CHUMP_STATE_DIR": "/nowhere",
        }
    ).settings

    assert settings.max_parallel == 5
    assert (settings.pick.bias_threshold, settings.pick.bias_window) == (0.5, 20)
    assert settings.backend.of("claude") == BackendOptions(
        program="/opt/claude", max_retries=3, api_timeout=timedelta(seconds=90)
    )
    assert settings.leases.dir == "/var/lock/chump"
    assert settings.log.file == "/var/log/chump.log"
    assert settings.depth == "1"
    assert settings.state == Settings().state


def test_an_empty_variable_counts_as_unset(repository: Repository) -> None:
    assert repository.load(variables={"CHUMP_DISPATCH_CAPACITY": ""}).settings == Settings()


def test_the_environment_can_prescribe_the_route(repository: Repository) -> None:
    """Behaviour G3, and A1 for the spellings of a backend."""
    loaded = repository.load(
        variables={
            "CHUMP_DISPATCH_BACKEND": "chump_local",
            "CHUMP_DISPATCH_MODEL": "qwen",
            "CHUMP_DISPATCH_PROVIDER_PFX": "TOGETHER",
        }
    )
    alone = repository.load(variables={"CHUMP_DISPATCH_MODEL": "qwen"})

    expected = Route("chump-local", "qwen", "TOGETHER", "CHUMP_DISPATCH_BACKEND")
    assert loaded.settings.override == expected
    assert alone.settings.override is None
    assert alone.notices == ("CHUMP_DISPATCH_MODEL has no effect without CHUMP_DISPATCH_BACKEND",)


def test_backends_may_be_spelled_as_behaviour_a1_allows(repository: Repository) -> None:
    settings = repository.load(
        '[backend]\nuse = "local"\n[backend.chump_local]\nmodel = "m"'
    ).settings

    assert settings.backend.use == "chump-local"
    assert settings.backend.of("chump-local") == BackendOptions(model="m")


def test_faults_in_the_environment_are_told_but_not_refused(repository: Repository) -> None:
    """Behaviour F1."""
    names = {"CHUMP_FAULT_INJECT": "exit_1"}

    live = repository.load(variables=names)
    allowed = repository.load("[faults]\nallowed = true", variables=names)

    assert live.settings.fault_inject == allowed.settings.fault_inject == "exit_1"
    assert [notice.split(" is set")[0] for notice in live.notices] == ["CHUMP_FAULT_INJECT"]
    assert allowed.notices == ()


def test_what_this_process_has_is_used_when_nothing_else_is_said(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHUMP_DISPATCH_CAPACITY", "9")

    loaded = load(repository.root, user_file=repository.user_file)

    assert loaded.settings.max_parallel == 9
    assert environment()["CHUMP_DISPATCH_CAPACITY"] == "9"


def test_the_users_file_lies_in_the_platforms_folder(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if sys.platform != "linux":
        pytest.skip("the folder is another one on other platforms")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "etc"))
    file = tmp_path / "etc" / "chump-orchestrator" / "orchestrator.toml"
    file.parent.mkdir(parents=True)
    file.write_text("max_parallel = 8", "utf-8")

    loaded = load(repository.root, environ={})

    assert loaded.settings.max_parallel == 8
    assert str(loaded.origins["max_parallel"]) == f"{file}:1"


# --- what is wrong (behaviour C4)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            "max_paralel = 3",
            "FILE:1: max_paralel: there is no such key; did you mean max_parallel?",
        ),
        (
            "[pick]\nkynd = 'any'",
            "FILE:2: pick.kynd: there is no such key; did you mean pick.kind?",
        ),
        ("[piks]", "FILE:1: piks: there is no such key; did you mean pick?"),
        (
            "[log]\nmax_parallel = 3",
            "FILE:2: log.max_parallel: there is no such key here; did you mean max_parallel"
            " (above the first table)?",
        ),
        (
            "[stop]\nzzz = 3",
            "FILE:2: stop.zzz: there is no such key; [stop] may have on_signal",
        ),
        (
            "max_parallel = 'two'",
            "FILE:1: max_parallel: 'two' is not a whole number; write a whole number from 1 to"
            " 1000",
        ),
        (
            "max_parallel = true",
            "FILE:1: max_parallel: true is not a whole number; write a whole number from 1 to 1000",
        ),
        (
            "max_parallel = 0",
            "FILE:1: max_parallel: 0 is out of range; write a whole number from 1 to 1000",
        ),
        (
            "[max_parallel]\nx = 1",
            "FILE:1: max_parallel: a table is not a whole number; write a whole number from 1 to"
            " 1000",
        ),
        (
            "pick = 3",
            "FILE:1: pick: 3 is not a table; write [pick] with keys below it",
        ),
        (
            "[[pick]]\nkind = 'any'",
            "FILE:1: pick: a list is not a table; write [pick] with keys below it",
        ),
        (
            "[pick]\nbias_threshold = 1.5",
            "FILE:2: pick.bias_threshold: 1.5 is out of range; write a number from 0 to 1",
        ),
        (
            "[pick]\nbias_threshold = nan",
            "FILE:2: pick.bias_threshold: nan is out of range; write a number from 0 to 1",
        ),
        (
            "[deadlines]\n\nxs = '20 minutes'",
            "FILE:3: deadlines.xs: '20 minutes' is not a duration; write a number and ms, s, m, h"
            ' or d in quotes, such as "90s", 1ms to 3650d',
        ),
        (
            "[deadlines]\ns = '0s'",
            "FILE:2: deadlines.s: 0s is out of range; write a number and ms, s, m, h or d in"
            ' quotes, such as "90s", 1ms to 3650d',
        ),
        (
            "[worktrees]\nmin_free = '2GB'",
            "FILE:2: worktrees.min_free: '2GB' is not a size; write a number and KiB, MiB or GiB"
            ' in quotes, such as "2GiB"',
        ),
        (
            "[pick]\npriorities = ['P0', 'P9']",
            "FILE:2: pick.priorities: 'P9' is not among them; write a list of P0, P1, P2, P3, P4,"
            " unknown in quotes",
        ),
        (
            "[pick]\npriorities = []",
            "FILE:2: pick.priorities: the list is empty; write a list of P0, P1, P2, P3, P4,"
            " unknown in quotes",
        ),
        (
            "[stop]\non_signal = 'panic'",
            'FILE:2: stop.on_signal: \'panic\' is not among them; write "teardown" or "detach" or'
            ' "drain"',
        ),
        (
            "consent = 'yes'",
            "FILE:1: consent: 'yes' is neither true nor false; write true or false, without quotes",
        ),
        (
            "[backlog]\npath = '../gaps.yaml'",
            "FILE:2: backlog.path: '../gaps.yaml': it leaves the repository; write a file or"
            " folder relative to the repository and inside it",
        ),
        (
            "[state]\ndir = '/var/chump'",
            "FILE:2: state.dir: '/var/chump': it is absolute; write a folder relative to the"
            " repository and inside it",
        ),
        (
            "[state]\ndir = 'x/../.git/chump'",
            "FILE:2: state.dir: 'x/../.git/chump': it lies in git's own folder; write a folder"
            " relative to the repository and inside it",
        ),
        (
            "[worktrees]\nbase = '.'",
            "FILE:2: worktrees.base: '.': it is the repository itself; write a folder relative to"
            " the repository and inside it",
        ),
        (
            "[worktrees]\nprefix = '-x'",
            "FILE:2: worktrees.prefix: '-x': no branch can begin so; write the beginning of a"
            ' branch, such as "claude/"',
        ),
        (
            "base_ref = '--upload-pack=x'",
            "FILE:1: base_ref: '--upload-pack=x': this names no commit; write a branch, tag or"
            ' commit, such as "origin/main", or ""',
        ),
        (
            "[commits]\nauthor_name = 'a <b>'",
            "FILE:2: commits.author_name: 'a <b>': git takes < and > out of it; write a name or an"
            " address as git has it, or nothing for git's own",
        ),
        (
            "[commits]\nauthor_name = '...'",
            "FILE:2: commits.author_name: '...': git finds no name in it; write a name or an"
            " address as git has it, or nothing for git's own",
        ),
        (
            "[prompt]\ntemplate = '~/brief.md'",
            "FILE:2: prompt.template: '~/brief.md': ~ is not expanded; write a path, absolute or"
            " relative to the repository",
        ),
        (
            "pass_env = ['PYTHONPATH']",
            "FILE:1: pass_env: 'PYTHONPATH': this is never passed to an agent; write a list of"
            ' names of variables, * for any text, such as ["NPM_*"]',
        ),
        (
            "pass_env = ['GIT_*']",
            "FILE:1: pass_env: 'GIT_*': variables of git are passed only one by one; write a list"
            ' of names of variables, * for any text, such as ["NPM_*"]',
        ),
        (
            "[backend.custom]\nargv = ['a']\nstop_signals = ['STOP']",
            "FILE:3: backend.custom.stop_signals: 'STOP' is not a signal to stop with; write a list"
            " of INT, TERM, HUP, QUIT, USR1, USR2, at least one",
        ),
        (
            "[backend.claude]\nargv = ['a']",
            "FILE:2: backend.claude.argv: there is no such key; [backend.claude] may have program,"
            " model, extra_args, pass_env, stop_signals, fallback_model, max_turns, max_budget_usd,"
            " max_retries, api_timeout",
        ),
        (
            "[backend.codex]\nmax_turns = 3",
            "FILE:2: backend.codex.max_turns: there is no such key; [backend.codex] may have"
            " program, model, extra_args, pass_env, stop_signals",
        ),
        (
            "[backend.claude]\nmax_turns = -1",
            "FILE:2: backend.claude.max_turns: -1 is out of range; write a whole number from 0 to"
            " 100000",
        ),
        (
            "[backend.claude]\nmax_budget_usd = '5'",
            "FILE:2: backend.claude.max_budget_usd: '5' is not a number; write a number from 0 to"
            " 100000",
        ),
        (
            "[backend.claude]\nmax_retries = 101",
            "FILE:2: backend.claude.max_retries: 101 is out of range; write a whole number from 0"
            " to 100",
        ),
        (
            "[backend.claude]\napi_timeout = '2h'",
            "FILE:2: backend.claude.api_timeout: 2h is out of range; write a number and ms, s, m, h"
            ' or d in quotes, such as "90s", 1s to 1h',
        ),
        (
            "[backend]\nus = 'claude'",
            "FILE:2: backend.us: there is no such key; did you mean backend.use?",
        ),
        (
            "[backend]\nuse = 'codec'",
            "FILE:2: backend.use: no backend named 'codec'; installed: chump-local, claude, custom,"
            " exit_1",
        ),
        (
            "[backend.cluade]\nmodel = 'm'",
            "FILE:2: backend.cluade: no backend named 'cluade'; installed: chump-local, claude,"
            " custom, exit_1",
        ),
        (
            "consent = true\n[backend.typo]",
            "FILE:2: backend.typo: no backend named 'typo'; installed: chump-local, claude,"
            " custom, exit_1",
        ),
        (
            "[backend]\ntypo = {}",
            "FILE:2: backend.typo: no backend named 'typo'; installed: chump-local, claude,"
            " custom, exit_1",
        ),
        (
            "[backend.local]\nmodel = 'a'\n[backend.chump-local]\nmodel = 'b'",
            "FILE:4: backend.chump-local.model: given twice, under two names of one backend; keep"
            " one of them",
        ),
        (
            "[pulls]\nuse = 'gitlab'",
            "FILE:2: pulls.use: no provider named 'gitlab'; installed: forge, gh, git",
        ),
        (
            "[backend]\nuse = 'custom'",
            "FILE:2: backend.use: the custom backend needs a command; write [backend.custom] with"
            ' argv = ["my-agent"]',
        ),
        (
            "[log]\nmax_size = '1KiB'",
            "FILE:2: log.max_size: '1KiB' is less than \"64KiB\"; write a number and KiB, MiB or"
            ' GiB in quotes, such as "2GiB"',
        ),
        *(
            (
                f"[log]\nfile = '{place}'",
                f"FILE:2: log.file: '{place}': {why}; write a file, absolute, or relative to the"
                ' repository and inside it, or ""',
            )
            for place, why in (
                ("../x.log", "it leaves the repository"),
                ("~/x.log", "~ is not expanded"),
                (".git/x.log", "it lies in git's own folder"),
                (".", "it is the repository itself"),
            )
        ),
        (
            "[retry]\nbase = '10m'",
            'FILE:2: retry.base: "10m" is longer than retry.cap; write at most "5m"',
        ),
        (
            "[worktrees]\nbase = '.chump/orchestrator/trees'",
            "FILE:2: worktrees.base: it shares a folder with state.dir; keep them apart",
        ),
        (
            "[state]\ndir = '.chump-locks'",
            "FILE:2: state.dir: leases.dir and state.dir are one folder; keep them apart",
        ),
        (
            '[routing.classes]\n"A.B-" = 3',
            'FILE:2: routing.classes."A.B-": 3 is not text in quotes; write a task class, such as'
            ' "research"',
        ),
    ],
)
def test_a_bad_setting_is_told_with_its_place_and_what_would_be_valid(
    repository: Repository, text: str, complaint: str
) -> None:
    assert repository.complaints(text) == [complaint]


def test_a_provider_that_nobody_ships_to_is_fine_while_agents_ship(
    repository: Repository,
) -> None:
    """Behaviour P9: what cannot be had is told before anything runs."""
    assert repository.load('[pulls]\nuse = "forge"').settings.pulls.use == "forge"

    assert repository.complaints('[ship]\nby = "daemon"\n[pulls]\nuse = "forge"') == [
        "FILE:2: ship.by: no shipper named 'forge'; installed: gh, git"
    ]


def test_a_flag_of_other_tools_turns_learning_on(repository: Repository) -> None:
    """Behaviour G4."""
    loaded = repository.load("", variables={"CHUMP_FLAGS": "other, cog_037"})

    assert loaded.settings.routing.learn
    assert str(loaded.origins["routing.learn"]) == "CHUMP_FLAGS"
    assert not repository.load("", variables={"CHUMP_FLAGS": "other"}).settings.routing.learn


def test_learning_from_a_journal_that_nobody_writes_is_noticed(repository: Repository) -> None:
    loaded = repository.load("[routing]\nlearn = true\n[journal]\nenabled = false")

    assert loaded.notices == (
        "routing.learn has nothing to learn from; write journal.enabled = true",
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a = \n", "FILE:1: not valid TOML: Invalid value in column 5"),
        ("\nmax_parallel = 2\n[pick\n", "FILE:3: not valid TOML: "),
        ("[pick]\n[pick]\n", "FILE:2: not valid TOML: "),
        ("max_parallel = 2\nmax_parallel = 3\n", "FILE:2: not valid TOML: "),
        ("a = [1,\n", "FILE:2: not valid TOML: "),
        (b"# fine\nbase_ref = '\xff'", "FILE:2: this is not UTF-8; save the file in that encoding"),
        ("a = " + "[" * 20_000, "FILE: nested too deeply to be a settings file"),
        ("#" * 2_000_000, "FILE: it is larger than 1 MiB and so no settings file; remove it"),
    ],
)
def test_a_file_that_is_no_toml_is_told_with_its_line(
    repository: Repository, text: str | bytes, complaint: str
) -> None:
    (told,) = repository.complaints(text)

    assert told.startswith(complaint)


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(repository: Repository) -> None:
    loaded = repository.load(b"\xef\xbb\xbfmax_parallel = 4\r\n[pick]\r\nkind = 'any'\r\n")

    assert loaded.settings.max_parallel == 4
    assert loaded.origins["pick.kind"].line == 3


def test_a_folder_in_the_place_of_the_file_is_told(repository: Repository) -> None:
    repository.file.mkdir()

    assert repository.complaints() == [
        "FILE: this is a folder; write the settings into a file of that name"
    ]


def test_a_pipe_in_the_place_of_the_file_is_told_and_not_waited_for(repository: Repository) -> None:
    os.mkfifo(repository.file)

    assert repository.complaints() == ["FILE: this is no ordinary file; put one in its place"]


def test_a_file_that_cannot_be_read_is_told(repository: Repository) -> None:
    repository.file.symlink_to(repository.file)

    assert repository.complaints() == [
        "FILE: it cannot be read (Too many levels of symbolic links); mend its permissions or path"
    ]


def test_a_link_that_leads_nowhere_is_told(repository: Repository) -> None:
    repository.file.symlink_to("gone.toml")

    assert repository.complaints() == ["FILE: this link leads nowhere; mend or remove it"]


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        (
            "CHUMP_DISPATCH_CAPACITY",
            "many",
            "max_parallel: 'many' is not a whole number; write a whole number from 1 to 1000",
        ),
        (
            "CHUMP_DISPATCH_CAPACITY",
            "-1",
            "max_parallel: -1 is out of range; write a whole number from 1 to 1000",
        ),
        (
            "CHUMP_PICKER_BIAS_THRESHOLD",
            "80%",
            "pick.bias_threshold: '80%' is not a number; write a number from 0 to 1",
        ),
        (
            "GAP_CLAIM_TTL_HOURS",
            "0",
            "leases.ttl: '0' is no number of hours; write one such as 4 or 0.5",
        ),
        (
            "GAP_CLAIM_TTL_HOURS",
            "4h",
            "leases.ttl: '4h' is no number of hours; write one such as 4 or 0.5",
        ),
        (
            "API_TIMEOUT_MS",
            "soon",
            "backend.claude.api_timeout: 'soonms' is not a duration; write a number and ms, s, m, h"
            ' or d in quotes, such as "90s", 1s to 1h',
        ),
        (
            "CHUMP_DISPATCH_BACKEND",
            "codec",
            "no backend named 'codec'; installed: chump-local, claude, custom, exit_1",
        ),
        (
            "CHUMP_DISPATCH_BACKEND",
            "custom",
            'the custom backend needs a command; write [backend.custom] with argv = ["my-agent"]',
        ),
    ],
)
def test_a_bad_variable_is_an_error_that_names_it(
    repository: Repository, name: str, value: str, complaint: str
) -> None:
    assert repository.complaints(variables={name: value}) == [f"{name}: {complaint}"]


def test_a_bad_flag_is_an_error_that_names_it(repository: Repository) -> None:
    assert repository.complaints(flags={"max_parallel": 0}) == [
        "--max-parallel: max_parallel: 0 is out of range; write a whole number from 1 to 1000"
    ]


def test_everything_wrong_is_told_at_once(repository: Repository) -> None:
    told = repository.complaints(
        "max_parallel = 0\nconsentt = true\n[ship]\nby = 'us'\n[retry]\nbase = '10m'\n",
        user="[log]\nlevel = 'loud'\n",
        variables={"CHUMP_PICKER_BIAS_WINDOW": "x", "CHUMP_DISPATCH_BACKEND": "nobody"},
        flags={"max_open_pulls": -1},
    )

    assert sorted(line.partition(": ")[0] for line in told) == [
        "--max-open-pulls",
        "CHUMP_DISPATCH_BACKEND",
        "CHUMP_PICKER_BIAS_WINDOW",
        "FILE:1",
        "FILE:2",
        "FILE:4",
        "FILE:6",
        "USER:2",
    ]


def test_a_file_is_heard_even_where_a_flag_outranks_it(repository: Repository) -> None:
    (told,) = repository.complaints("max_parallel = 'x'", flags={"max_parallel": 3})

    assert told.startswith("FILE:1: max_parallel: ")


def test_odd_settings_are_noticed(repository: Repository) -> None:
    loaded = repository.load(
        "[deadlines]\ngrace = '30m'\nm = '2h'\nunknown = '2h'\n"
        "[backend.custom]\nargv = ['agent', '{gap}', '{branhc}']",
    )

    assert loaded.notices == (
        'deadlines.grace is "30m", as long as the whole deadline of effort xs, "20m"',
        'deadlines.grace is "30m", as long as the whole deadline of effort s, "20m"',
        "backend.custom.argv: {branhc} stays as it is; known: {gap} {prompt_file} {worktree}"
        " {branch} {model}",
    )


@given(st.binary(max_size=60))
def test_no_file_whatever_ends_in_anything_but_settings_or_config_error(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        repository = Repository(Path(folder))
        try:
            told = str(repository.load(b"[pick]\n" + data).settings.pick.kind)
        except ConfigError as error:
            told = str(error)

    assert told in tuple(PickKind) or told.startswith(str(repository.file))


@pytest.mark.parametrize(
    "prefix",
    [
        *("claude/", "a-", "x/y/", "a//", "/a", "-a", ".a", "a/.b", "a..b", "a b", "a~", "a^"),
        *("a:", "a?", "a*", "a[", "a\\", "a@{", "@", "a.lock/", "a\x7f", "ä/", "refs/heads/"),
    ],
)
def test_a_prefix_is_allowed_only_where_git_allows_the_branch(prefix: str) -> None:
    branch = f"refs/heads/{prefix}infra-1"
    git = subprocess.run(["git", "check-ref-format", branch], check=False)

    if prefix_complaint(prefix) is None:
        assert git.returncode == 0
    else:
        assert git.returncode != 0 or prefix.startswith(("-", "refs/"))


# --- showing (behaviour C4)


def test_what_is_shown_can_be_written_into_the_file_again(repository: Repository) -> None:
    text = (
        "pass_env = ['A_*']\n[pick]\nbias_threshold = 1\n[worktrees]\nmin_free = '1.5GiB'\n"
        "[deadlines]\nxs = '90s'\n[log]\nformat = 'json'\n[stop]\non_signal = 'drain'\n"
        "[routing.classes]\n'A.B-' = 'research'\n[backend.custom]\nargv = ['a \"b\"', '{gap}']\n"
    )
    loaded = repository.load(text)

    shown = "\n".join(f"{key} = {value}" for key, value, _ in show(loaded))

    again = repository.load(shown).settings
    assert again == loaded.settings
    assert again.log.format is LogFormat.JSON
    assert again.stop.on_signal is OnSignal.DRAIN
    assert again.worktrees.min_free == 3 * 2**29


def test_secrets_are_masked_when_settings_are_shown(repository: Repository) -> None:
    loaded = repository.load(
        "[backend.claude]\nextra_args = ['--api-key', 'abcdef', '--auth-token=ghijkl', '--fine',"
        " 'x', 'https://me:pass@host/', 'sk-ant-0123456789']\nmodel = 'hidden-by-value'\n"
    )

    rows = {key: (value, origin) for key, value, origin in show(loaded, ["hidden-by-value"])}

    arguments = (
        '["--api-key", "***", "--auth-token=***", "--fine", "x", "https://***@host/", "***"]'
    )
    assert rows["backend.claude.extra_args"] == (arguments, f"{repository.file}:2")
    assert rows["backend.claude.model"] == ('"***"', f"{repository.file}:3")
    assert rows["max_parallel"] == ("2", "default")


def test_secrets_are_masked_in_complaints(repository: Repository) -> None:
    (told,) = repository.complaints(
        "base_ref = '-correct-horse'", variables={"MY_TOKEN": "correct-horse"}
    )

    assert "correct-horse" not in told
    assert "***" in told


def test_what_comes_from_the_environment_alone_is_shown(repository: Repository) -> None:
    names = {
        "CHUMP_DISPATCH_BACKEND": "claude",
        "CHUMP_DISPATCH_MODEL": "opus",
        "CHUMP_DISPATCH_DEPTH": "1\x1b[2J",
        "CHUMP_FAULT_INJECT": "exit_1",
    }

    rows = show(repository.load(variables=names))

    assert rows[-3:] == [
        ("override", "claude opus", "CHUMP_DISPATCH_BACKEND"),
        ("depth", "1[2J", "CHUMP_DISPATCH_DEPTH"),
        ("fault_inject", "exit_1", "CHUMP_FAULT_INJECT"),
    ]


def test_secret_values_are_told_by_the_names_of_their_variables() -> None:
    found = secret_values(
        {
            "ANTHROPIC_API_KEY": "value-of-key",
            "GITHUB_TOKEN": "value-of-token",
            "AWS_SECRET_ACCESS_KEY": "value-of-access",
            "PGPASSWORD": "value-of-password",
            "DEPLOY_KEY": "-----BEGIN-----\nfirst-line-of-it\n",
            "HTTPS_PROXY": "http://me:value-of-proxy@proxy:3128",
            "SHORT_TOKEN": "abc",
            "CLAUDE_CODE_MAX_OUTPUT_TOKENS": "12345678",
            "SSH_AUTH_SOCK": "/tmp/ssh-agent.sock",
            "HOME": "/home/somebody",
        }
    )

    assert set(found) == {
        "value-of-key",
        "value-of-token",
        "value-of-access",
        "value-of-password",
        "value-of-proxy",
        "-----BEGIN-----\nfirst-line-of-it\n",
        "-----BEGIN-----\nfirst-line-of-it",
        "-----BEGIN-----",
        "first-line-of-it",
    }
    assert list(found) == sorted(found, key=lambda s: (-len(s), s))


# --- the environment of agents (behaviour D5)


def test_an_agent_gets_what_every_program_needs() -> None:
    names = (
        "PATH HOME USER LOGNAME SHELL LANG LC_ALL TZ TERM SSL_CERT_FILE NODE_EXTRA_CA_CERTS"
        " HTTPS_PROXY https_proxy XDG_RUNTIME_DIR DBUS_SESSION_BUS_ADDRESS SSH_AUTH_SOCK GNUPGHOME"
        " CARGO_HOME RUSTUP_HOME JAVA_HOME GOPATH NVM_DIR PYENV_ROOT"
    )
    variables = dict.fromkeys(names.split(), "x")

    assert agent_environment(variables) == variables


def test_an_agent_gets_nothing_that_was_not_asked_for() -> None:
    variables = dict.fromkeys(
        ("ANTHROPIC_API_KEY", "GH_TOKEN", "AWS_PROFILE", "DATABASE_URL", "path", "EDITOR"), "x"
    )

    assert agent_environment(variables) == {}
    assert agent_environment(variables, ["ANTHROPIC_*", "DATABASE_URL"]) == {
        "ANTHROPIC_API_KEY": "x",
        "DATABASE_URL": "x",
    }


NEVER = [
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "LISTEN_FDS",
    "LD_PRELOAD",
    "PYTHONPATH",
    "PYTHONHOME",
    "CHUMP_DISPATCH_DEPTH",
    "CHUMP_DISPATCH_BACKEND",
    "CHUMP_FAULT_INJECT",
    "CHUMP_SESSION_ID",
    "CHUMP_PICKER_BIAS_WINDOW",
]


@pytest.mark.parametrize("name", NEVER)
def test_some_variables_reach_no_agent_whoever_asks(name: str) -> None:
    assert agent_environment({name: "x"}, ["*", "CHUMP_*", name]) == {}


def test_variables_of_git_are_passed_only_by_name() -> None:
    variables = dict.fromkeys(
        ("GIT_DIR", "GIT_SSH_COMMAND", "GIT_SSL_CAINFO", "GITHUB_TOKEN", "GH_HOST"), "x"
    )

    assert agent_environment(variables, ["*", "GIT_*"]).keys() == {"GITHUB_TOKEN", "GH_HOST"}
    assert agent_environment(variables, FORGE_VARIABLES).keys() == variables.keys() - {"GIT_DIR"}


# --- the module itself


def test_building_from_what_was_flattened_gives_the_same_settings() -> None:
    values = {("max_parallel",): 5, ("backend", "exit_1", "model"): "m", ("leases", "dir"): "x"}
    settings = build(values)

    assert build(flatten(settings)) == settings
    assert flatten(settings).items() >= values.items()
    assert dotted(("routing", "classes", "A.B")) == 'routing.classes."A.B"'


def test_reading_settings_needs_neither_the_loop_nor_yaml() -> None:
    script = (
        "import sys, chump_orchestrator.config\n"
        "print(*{'asyncio', 'anyio', 'yaml', 'platformdirs', 'importlib.metadata', 'structlog'}"
        " & sys.modules.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=Path.cwd()
    )

    assert done.stdout.split() == []


@pytest.mark.parametrize(
    ("chosen", "home"),
    [("/etc/xdg", "/home/me"), ("", "/home/me"), (None, "/home/me"), (None, None)],
)
def test_the_users_file_lies_where_the_platform_has_such_files(
    monkeypatch: pytest.MonkeyPatch, chosen: str | None, home: str | None
) -> None:
    for name, text in (("XDG_CONFIG_HOME", chosen), ("HOME", home)):
        if text is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, text)

    expected = platformdirs.user_config_path("chump-orchestrator") / "orchestrator.toml"
    assert user_settings_file() == expected


# --- where a template lies, and what is left of settings of which something is wrong


def test_a_relative_template_lies_in_the_repository(repository: Repository) -> None:
    """Behaviour D7: the file that the operator sees, not one of that name in a worktree."""
    (repository.root / "brief.md").write_text("Do {gap}.")

    loaded = repository.load("[prompt]\ntemplate = 'brief.md'")

    assert loaded.settings.prompt.template == str(repository.root / "brief.md")
    assert loaded.notices == ()


def test_an_absolute_template_lies_anywhere(repository: Repository, tmp_path: Path) -> None:
    (tmp_path / "brief.md").write_text("Do {gap}.")

    loaded = repository.load(f"[prompt]\ntemplate = '{tmp_path / 'brief.md'}'")

    assert loaded.settings.prompt.template == str(tmp_path / "brief.md")
    assert loaded.notices == ()


def test_a_template_that_is_not_there_is_told(repository: Repository) -> None:
    loaded = repository.load("[prompt]\ntemplate = 'brief.md'")

    assert loaded.notices == (f"prompt.template: there is no file {repository.root / 'brief.md'}",)


def test_a_relative_template_must_not_lead_out_of_the_repository(repository: Repository) -> None:
    (repository.root / "brief.md").symlink_to("/etc/passwd")

    assert repository.complaints("[prompt]\ntemplate = 'brief.md'") == [
        f"FILE:2: prompt.template: {repository.root / 'brief.md'} leads out of the repository"
    ]
    assert "leads out" in repository.complaints("[prompt]\ntemplate = '../brief.md'")[0]


@pytest.mark.parametrize(
    "text",
    [
        "max_parallel = 'many'\n[state]\ndir = 'kept'",
        "[pick]\nkynd = 1\n[state]\ndir = 'kept'\nkeep_days = 'long'",
        "[pick]\nkind = \n[state]\ndir = 'kept'\n[log]\nlevel = 'info'",
        "max_parallel 2\n  [state]\ndir = 'kept'",
        "state.dir = 'kept'\n[pick]\nkind = ",
    ],
)
def test_the_state_folder_is_found_whatever_else_is_wrong(
    repository: Repository, text: str
) -> None:
    """Behaviour C4, C7: a slip of the pen does not take a running daemon away."""
    repository.file.write_text(text)

    loaded, wrong = salvage(repository.root, environ={}, user_file=repository.user_file)

    assert loaded.settings.state.dir == "kept"
    assert str(repository.file) in wrong


@pytest.mark.parametrize(
    "text",
    [
        "[state]\ndir = 7",
        "[state]\ndir = '/etc'",
        "[state\ndir = 'kept'",
        "[state]\ndir = 'kept",
        "state = 'x'\n[pick",
        "[pick",
    ],
)
def test_a_state_folder_that_cannot_be_told_is_the_usual_one(
    repository: Repository, text: str
) -> None:
    repository.file.write_text(text)

    loaded, wrong = salvage(repository.root, environ={}, user_file=repository.user_file)

    assert loaded.settings.state.dir == ".chump/orchestrator"
    assert wrong


def test_nothing_is_wrong_with_settings_that_are_fine(repository: Repository) -> None:
    repository.file.write_text("[state]\ndir = 'kept'")

    loaded, wrong = salvage(repository.root, environ={}, user_file=repository.user_file)

    assert (loaded.settings.state.dir, wrong) == ("kept", "")


@pytest.mark.parametrize(
    ("argument", "shown_as"),
    [
        ("OPENAI_API_KEY=supersecret", "OPENAI_API_KEY=***"),
        ("DB_PASSWORD=with some blanks", "DB_PASSWORD=***"),
        ("--env=MY_TOKEN=supersecret", "--env=MY_TOKEN=***"),
        ("-e=MY_TOKEN=supersecret", "-e=MY_TOKEN=***"),
        ("-eMY_TOKEN=supersecret", "-eMY_TOKEN=***"),
        ("cd x && MY_TOKEN=supersecret agent", "cd x && MY_TOKEN=*** agent"),
        ("MY_TOKEN='super secret' agent", "MY_TOKEN=***"),
        ("env A=1 MY_TOKEN='super secret' agent", "env A=1 MY_TOKEN=*** agent"),
        ("https://host/?api_key=supersecret&b=1", "https://host/?api_key=***&b=1"),
        ("PATH=/bin", "PATH=/bin"),
        ("--max-tokens=4000", "--max-tokens=4000"),
        ("MY_TOKEN=", "MY_TOKEN="),
    ],
)
def test_values_of_variables_named_like_secrets_are_masked_in_arguments(
    repository: Repository, argument: str, shown_as: str
) -> None:
    """Behaviour C4: `config show` masks secrets."""
    loaded = repository.load(f'[backend.custom]\nargv = ["env", "{argument}"]\n')

    rows = {key: value for key, value, _ in show(loaded)}

    assert rows["backend.custom.argv"] == f'["env", "{shown_as}"]'
