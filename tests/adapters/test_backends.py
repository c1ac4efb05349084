"""The command line of each kind of agent, and what is read of its output (behaviour A, F1)."""

from __future__ import annotations

import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest

from chump_orchestrator import plugins
from chump_orchestrator.adapters import faults
from chump_orchestrator.adapters.backends import (
    CHUMP_VARIABLES,
    CLAUDE_VARIABLES,
    BackendOptions,
    ChumpLocal,
    Claude,
    Custom,
)
from chump_orchestrator.adapters.backends.aider import Aider
from chump_orchestrator.adapters.backends.codex import Codex
from chump_orchestrator.adapters.backends.gemini import Gemini
from chump_orchestrator.adapters.backends.goose import Goose
from chump_orchestrator.adapters.backends.opencode import Opencode
from chump_orchestrator.adapters.backends.qwen import Qwen
from chump_orchestrator.adapters.faults import FAULTS, first_fault
from chump_orchestrator.core.dispatch import Command
from chump_orchestrator.core.errors import ConfigError
from chump_orchestrator.core.ports import Backend
from chump_orchestrator.core.resuming import Resumes
from chump_orchestrator.core.routing import Route
from chump_orchestrator.core.testimony import Progress
from chump_orchestrator.decisions import BYPASSING
from tests.builders import a_gap

GAP = a_gap("COMP-005a-fe")


STREAM = ("-p", "--output-format", "stream-json", "--verbose", "--dangerously-skip-permissions")
SESSION = ("--session-id", "{session}")


def test_a_claude_runs_unattended_with_the_brief_on_standard_input() -> None:
    command = Claude(BackendOptions()).command(GAP, Route("claude"), "the brief")

    assert command == Command(
        programs=("scripts/coord/claude-retry.sh", "scripts/claude-retry.sh", "claude"),
        args=(*STREAM, *SESSION),
        pass_env=CLAUDE_VARIABLES,
        stop_signals=("INT", "TERM"),
        brief_on_stdin=True,
    )
    assert command.names_session


def test_a_claude_takes_the_operators_options() -> None:
    options = BackendOptions(
        program="/opt/claude",
        model="sonnet",
        extra_args=("--add-dir", "/data"),
        pass_env=("NPM_*",),
        stop_signals=("TERM",),
        env={"MY_OWN": "1"},
        fallback_model="haiku",
        max_turns=9,
        max_budget_usd=2.5,
        max_retries=0,
        api_timeout=timedelta(seconds=90),
    )
    command = Claude(options).command(GAP, Route("claude"), "the brief")

    assert command == Command(
        programs=("/opt/claude",),
        args=(
            *STREAM,
            *SESSION,
            *("--model", "sonnet"),
            *("--fallback-model", "haiku"),
            *("--max-turns", "9"),
            *("--max-budget-usd", "2.5"),
            *("--add-dir", "/data"),
        ),
        env={"CLAUDE_CODE_MAX_RETRIES": "0", "API_TIMEOUT_MS": "90000", "MY_OWN": "1"},
        pass_env=(*CLAUDE_VARIABLES, "NPM_*"),
        stop_signals=("TERM",),
    )


def test_a2_the_routes_model_outranks_the_settings() -> None:
    command = Claude(BackendOptions(model="sonnet")).command(GAP, Route("claude", "opus"), "")

    assert command.args[-2:] == ("--model", "opus")


STREAMING: tuple[Backend, ...] = (Claude(), Codex(), Gemini(), Opencode(), Goose(), Qwen(), Aider())


def test_a5_every_client_that_runs_past_its_own_prompts_needs_consent() -> None:
    assert {backend.label for backend in STREAMING} == BYPASSING


@pytest.mark.parametrize("backend", STREAMING, ids=lambda one: one.label)
def test_a_brief_that_begins_like_a_command_is_led_up_to(backend: Backend) -> None:
    """Agents take such a brief for one of their own commands, and end with 0 at once."""
    plain = backend.command(GAP, Route(backend.label), "# Rules\n/etc is taboo")
    hidden = backend.command(GAP, Route(backend.label), "\n /init all of it")

    assert plain.brief_prefix == ""
    assert hidden.brief_prefix
    assert not hidden.brief_prefix.lstrip().startswith(("/", "-", "!", "#", "@"))


@pytest.mark.parametrize(
    ("backend", "programs", "args", "env"),
    [
        (
            Codex(),
            ("codex",),
            ("exec", "--json", "--dangerously-bypass-approvals-and-sandbox", "--model", "m", "-"),
            {},
        ),
        (
            Gemini(),
            ("gemini",),
            (
                *("--output-format", "stream-json", "--yolo", "--skip-trust"),
                *SESSION,
                *("--model", "m"),
            ),
            {},
        ),
        (
            Opencode(),
            ("opencode",),
            ("run", "--format", "json", "--auto", "--model", "m"),
            {},
        ),
        (
            Goose(),
            ("goose",),
            (
                *("run", "--name", "{session}", "--with-builtin", "developer"),
                *("--output-format", "stream-json", "-q", "--model", "m", "-i", "-"),
            ),
            {"GOOSE_MODE": "auto"},
        ),
        (
            Qwen(),
            ("qwen",),
            (
                *("--output-format", "stream-json", "--yolo", "--auth-type", "openai"),
                *SESSION,
                *("--model", "m"),
            ),
            {"OPENAI_MODEL": "m"},
        ),
    ],
    ids=lambda one: getattr(one, "label", ""),
)
def test_other_clients_run_unattended_with_events_as_json(
    backend: Backend, programs: tuple[str, ...], args: tuple[str, ...], env: dict[str, str]
) -> None:
    command = backend.command(GAP, Route(backend.label, "m"), "the brief")

    assert (command.programs, command.args, command.env) == (programs, args, env)
    assert command.brief_on_stdin
    assert command.stop_signals == ("INT", "TERM")
    assert not command.expand


@pytest.mark.parametrize(
    ("backend", "instead", "how"),
    [
        (Claude(), SESSION, ("--resume", "s-1")),
        (Codex(), (), ("resume", "s-1")),
        (Gemini(), SESSION, ("--resume", "s-1")),
        (Opencode(), (), ("--session", "s-1")),
        (Goose(), ("--name", "{session}"), ("--resume", "--name", "s-1")),
        (Qwen(), SESSION, ("--resume", "s-1")),
    ],
    ids=lambda one: getattr(one, "label", ""),
)
def test_d1_a_session_is_gone_on_with_by_the_same_command_but_for_its_name(
    backend: Backend, instead: tuple[str, ...], how: tuple[str, ...]
) -> None:
    """Which program, settings and variables it has is no other; an id is given once."""
    assert isinstance(backend, Resumes)
    anew = backend.command(GAP, Route(backend.label, "m"), "/what to do")
    again = backend.resume_command(GAP, Route(backend.label, "m"), "/what to do", "s-1")

    assert again is not None
    position = next(n for n, arg in enumerate(again.args) if arg == how[0])
    assert again.args[position : position + len(how)] == how
    without = again.args[:position] + again.args[position + len(how) :]
    assert without == tuple(arg for arg in anew.args if arg not in instead)
    assert not again.names_session
    for name in ("programs", "env", "pass_env", "env_from", "stop_signals", "brief_prefix"):
        assert getattr(again, name) == getattr(anew, name)


def test_codex_reads_what_to_do_from_its_input_after_the_session() -> None:
    command = Codex().resume_command(GAP, Route("codex"), "what to do", "s-1")

    assert command.args[-3:] == ("resume", "s-1", "-")


@pytest.mark.parametrize(
    "backend",
    [Aider(), ChumpLocal(), Custom(BackendOptions(argv=("my-agent",)))],
    ids=lambda one: one.label,
)
def test_clients_without_sessions_do_not_claim_to_go_on_with_them(backend: Backend) -> None:
    assert not isinstance(backend, Resumes)


def test_an_aider_has_its_brief_in_a_file_and_leaves_the_repository_s_files_alone() -> None:
    command = Aider().command(GAP, Route("aider", "m", "TOGETHER"), "the brief")

    assert command.args[:3] == ("--message-file", "{prompt_file}", "--yes-always")
    assert command.args[-2:] == ("--model", "m")
    assert {"--no-gitignore", "--chat-history-file", "--input-history-file"} <= {*command.args}
    assert command.expand
    assert not command.brief_on_stdin
    assert command.env_from == {
        "OPENAI_API_BASE": "TOGETHER_API_BASE",
        "OPENAI_API_KEY": "TOGETHER_API_KEY",
    }


@pytest.mark.parametrize("backend", STREAMING, ids=lambda one: one.label)
def test_every_client_takes_the_operator_s_program_arguments_variables_and_signals(
    backend: Backend,
) -> None:
    options = BackendOptions(
        program="/opt/it",
        model="mine",
        extra_args=("--more", "of it"),
        pass_env=("MY_*",),
        stop_signals=("HUP",),
        env={"A": "b"},
    )
    command = type(backend)(options).command(GAP, Route(backend.label), "")  # type: ignore[call-arg]

    assert command.programs == ("/opt/it",)
    assert "mine" in command.args
    assert command.args[command.args.index("--more") + 1] == "of it"
    assert command.pass_env[-1] == "MY_*"
    assert command.env["A"] == "b"
    assert command.stop_signals == ("HUP",)


def test_a2_a_provider_reaches_qwen_by_the_names_that_it_knows() -> None:
    command = Qwen().command(GAP, Route("qwen", "", "TOGETHER"), "")

    assert command.env_from == {
        "OPENAI_BASE_URL": "TOGETHER_API_BASE",
        "OPENAI_API_KEY": "TOGETHER_API_KEY",
    }


@pytest.mark.parametrize(
    "backend", [Codex(), Gemini(), Opencode(), Goose()], ids=lambda one: one.label
)
def test_a2_a_provider_that_cannot_be_given_is_refused(backend: Backend) -> None:
    with pytest.raises(ConfigError, match=f"backend {backend.label} cannot be given a provider"):
        backend.command(GAP, Route(backend.label, "", "TOGETHER"), "")


def test_a_chump_local_is_searched_for_upwards_and_gets_the_id() -> None:
    command = ChumpLocal(BackendOptions()).command(GAP, Route("chump-local"), "the brief")

    assert command == Command(
        programs=(
            "target/release/chump",
            "target/debug/chump",
            "../target/release/chump",
            "../target/debug/chump",
            "../../target/release/chump",
            "../../target/debug/chump",
            "../../../target/release/chump",
            "../../../target/debug/chump",
            "../../../../target/release/chump",
            "../../../../target/debug/chump",
            "chump",
        ),
        args=("--execute-gap", "COMP-005a-fe"),
        env={"CHUMP_DISPATCH_BACKEND_LABEL": "chump-local"},
        pass_env=CHUMP_VARIABLES,
    )


def test_a2_model_and_provider_reach_an_openai_compatible_backend() -> None:
    route = Route("chump-local", "qwen3", "TOGETHER")
    options = BackendOptions(program="./chump", model="other", env={"OPENAI_MODEL": "third"})
    command = ChumpLocal(options).command(GAP, route, "")

    assert command.programs == ("./chump",)
    assert command.env == {
        "CHUMP_DISPATCH_BACKEND_LABEL": "chump-local",
        "OPENAI_MODEL": "qwen3",
    }
    assert command.env_from == {
        "OPENAI_API_BASE": "TOGETHER_API_BASE",
        "OPENAI_API_KEY": "TOGETHER_API_KEY",
    }


def test_a_custom_fills_in_what_it_knows_and_leaves_the_rest_to_the_launcher() -> None:
    argv = ("{worktree}/run", "{gap}={model}", "{prompt_file}", "{worktree}", "{branch}", "{x}")
    backend = Custom(BackendOptions(argv=argv, stop_signals=("HUP",), pass_env=("MY_*",)))
    command = backend.command(GAP, Route("custom", "{gap}"), "the brief")

    assert command == Command(
        programs=("./run",),
        args=("COMP-005a-fe={gap}", "{prompt_file}", "{worktree}", "{branch}", "{x}"),
        pass_env=("MY_*",),
        stop_signals=("HUP",),
        expand=True,
        brief_on_stdin=False,
    )


def test_a_custom_without_a_file_has_its_brief_on_standard_input() -> None:
    command = Custom(BackendOptions(argv=("my-agent", "-"))).command(GAP, Route("custom"), "")

    assert command.programs == ("my-agent",)
    assert command.args == ("-",)
    assert command.brief_on_stdin


@pytest.mark.parametrize("argv", [(), ("",), (" ", "x")])
def test_a_custom_without_a_program_is_the_operators_error(argv: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"backend\.custom\.argv: empty; write the program"):
        Custom(BackendOptions(argv=argv))


EVERY: tuple[Backend, ...] = (*STREAMING, ChumpLocal(), Custom(BackendOptions(argv=("x",))))


@pytest.mark.parametrize("backend", EVERY, ids=lambda one: one.label)
def test_a_model_that_would_be_an_option_is_refused(backend: Backend) -> None:
    with pytest.raises(ConfigError, match="would be an option"):
        backend.command(GAP, Route(backend.label, "--model-of-harm"), "")


@pytest.mark.parametrize("prefix", ["A B", "1X", "X-Y", "É"])
def test_a_prefix_that_begins_no_variable_is_refused(prefix: str) -> None:
    with pytest.raises(ConfigError, match="provider_pfx"):
        ChumpLocal().command(GAP, Route("chump-local", "", prefix), "")


@pytest.mark.parametrize(
    ("line", "number"),
    [
        ("412", 412),
        ("  412\r\n", 412),
        ("#412", 412),
        ("**#412**", 412),
        ("https://github.com/o/r/pull/412", 412),
        ("<https://forge.example/o/r/pull/412/>", 412),
        ("", None),
        ("0", None),
        ("#", None),
        ("412 files changed", None),
        ("PR=412", None),
        ("see https://github.com/o/r/pull/412", None),
        ("https://github.com/o/r/pull/412/files", None),
        ("https://github.com/o/r/issues/412", None),
        ("4.12", None),
        ("-412", None),
        ("٤١٢", None),
        ("1234567890", None),
        ('{"type":"result","result":"412"}', None),
    ],
)
@pytest.mark.parametrize("backend", EVERY, ids=lambda one: one.label)
def test_a_line_that_is_only_a_pull_request_names_one(
    backend: Backend, line: str, number: int | None
) -> None:
    assert backend.read(line) == (None if number is None else Progress(pull_number=number))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("exit_1", "exit_1"),
        ("nonsense, exit_0_no_pr ,exit_1", "exit_0_no_pr"),
        ("monitor_timeout,spawn_fail", "monitor_timeout"),
        ("", None),
        (" , ", None),
        ("exit_12,EXIT_1", None),
    ],
)
def test_f1_the_first_known_word_counts(text: str, fault: str | None) -> None:
    assert first_fault(text) == fault


MADE = (
    faults.SpawnFail(BackendOptions()),
    faults.ExitOne(BackendOptions()),
    faults.ExitZeroNoPull(BackendOptions()),
    faults.MonitorTimeout(BackendOptions()),
)


def test_f1_every_fault_is_a_backend_under_its_name() -> None:
    backends: tuple[Backend, ...] = MADE

    assert tuple(backend.label for backend in backends) == FAULTS
    assert [backend.read("412") for backend in backends] == [None] * 4


def run(fault: Backend, cwd: Path) -> subprocess.Popen[bytes]:
    command = fault.command(GAP, Route(fault.label), "the brief")
    return subprocess.Popen([command.programs[0], *command.args], cwd=cwd)


@pytest.mark.parametrize(("fault", "code"), [(MADE[1], 1), (MADE[2], 0)])
def test_f1_exits_come_after_a_tenth_of_a_second(tmp_path: Path, fault: Backend, code: int) -> None:
    began = time.monotonic()
    process = run(fault, tmp_path)

    assert process.wait(timeout=60) == code
    assert time.monotonic() - began >= 0.1


def test_f1_a_spawn_fails_as_there_is_no_such_program(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        run(MADE[0], tmp_path)


def test_f1_a_timeout_sleeps_for_an_hour(tmp_path: Path) -> None:
    process = run(MADE[3], tmp_path)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.5)
    process.kill()
    process.wait(timeout=60)

    assert MADE[3].command(GAP, Route("x"), "").args == ("3600",)


class Greedy:
    """A plug-in that asks for more than there is."""

    def __init__(self, options: object, moon: object, *, stars: int = 1) -> None: ...


@pytest.fixture
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install a distribution whose entry points are those of the built-in backends, and others."""
    info = tmp_path / "made_for_a_test-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: made-for-a-test\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[chump_orchestrator.backends]\n"
        "claude = chump_orchestrator.adapters.backends.claude:Claude\n"
        "chump-local = chump_orchestrator.adapters.backends:ChumpLocal\n"
        "exit_1 = chump_orchestrator.adapters.faults:ExitOne\n"
        "gone = no_such_module_anywhere:Nothing\n"
        "hollow = chump_orchestrator.adapters.backends:Nothing\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])


@pytest.mark.usefixtures("registered")
def test_a1_backends_are_found_by_their_registered_names() -> None:
    assert {"claude", "chump-local", "exit_1"} <= plugins.installed("backends").keys()
    assert isinstance(plugins.make("backends", "claude", {"options": BackendOptions()}), Claude)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("name", ["chump-local", "chump_local", "local"])
def test_a1_every_spelling_of_chump_local_is_known(name: str) -> None:
    made = plugins.make("backends", name, {"options": BackendOptions(model="m"), "more": 1})

    assert made == ChumpLocal(BackendOptions(model="m"))


@pytest.mark.usefixtures("registered")
def test_a1_an_unknown_backend_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        plugins.make("backends", "cluade", {"options": BackendOptions()})

    told = str(caught.value)
    assert told.startswith("no backend named 'cluade'; installed: ")
    assert "chump-local, claude" in told


def test_a_plug_in_that_asks_for_what_is_not_there_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plugins, "find", lambda *_: Greedy)

    with pytest.raises(ConfigError, match="backend 'greedy' asks for moon, which is not"):
        plugins.make("backends", "greedy", {"options": BackendOptions()})


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("name", ["gone", "hollow"])
def test_a_plug_in_that_cannot_be_loaded_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"backend '{name}': .* cannot be loaded"):
        plugins.find("backends", name)


def test_an_empty_slot_says_so() -> None:
    assert plugins.installed("nothing_of_this_name") == {}
    with pytest.raises(ConfigError, match="no plug-in named 'x'; installed: none"):
        plugins.find("nothing_of_this_name", "x")
