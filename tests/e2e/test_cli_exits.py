"""What every command says about itself, and how it ends (behaviour C1, C3)."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from chump_orchestrator import __version__
from chump_orchestrator.cli.client import NotRunning
from chump_orchestrator.cli.exits import NotAuthorised, told
from chump_orchestrator.cli.root import COMMANDS, cli
from chump_orchestrator.core.errors import ConfigError, Refused, Unavailable
from tests.e2e.cli_repository import Repository


def raising(error: BaseException) -> Callable[[], object]:
    def command() -> object:
        raise error

    return command


def a_missing_program() -> BaseException:
    error = Refused("git was not found; install it, or correct PATH")
    error.__cause__ = FileNotFoundError("git")
    outer = ConfigError(str(error))
    outer.__cause__ = error
    return outer


def a_missing_file() -> BaseException:
    error = Refused("docs/gaps.yaml is not there")
    error.__cause__ = FileNotFoundError("docs/gaps.yaml")
    return error


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ConfigError("a.toml:1: wrong\nb.toml:2: wrong"), 78, "x: a.toml:1: wrong\nx: b.toml:2: "),
        (Unavailable("not now"), 1, "x: not now"),
        (Refused("no"), 1, "x: no"),
        (NotRunning("no daemon"), 4, "x: no daemon"),
        (NotAuthorised("somebody else's"), 77, "x: somebody else's"),
        (a_missing_program(), 69, "x: git was not found"),
        (a_missing_file(), 1, "x: docs/gaps.yaml"),
        (KeyError("oops"), 70, "x: a bug: KeyError: 'oops' (--debug"),
        (KeyboardInterrupt(), 130, ""),
        (click.Abort(), 130, ""),
        (click.UsageError("which?"), 2, "Error: which?"),
        (SystemExit(5), 5, ""),
        (ExceptionGroup("a", [ExceptionGroup("b", [ConfigError("deep")])]), 78, "x: deep"),
        (BaseExceptionGroup("a", [KeyboardInterrupt()]), 130, ""),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_every_ending_has_its_code_and_at_most_its_message(
    error: BaseException, code: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Behaviour C3."""
    found = told("x", raising(error), is_debugging=lambda: False)

    out, err = capsys.readouterr()
    assert (found, out) == (code, "")
    assert err.startswith(text)
    assert "Traceback" not in err
    assert bool(err) == bool(text)


def test_a_traceback_is_shown_to_those_who_debug(capsys: pytest.CaptureFixture[str]) -> None:
    told("x", raising(KeyError("oops")), is_debugging=lambda: True)

    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [("--debug", "plan"), ("plan", "--debug")])
def test_debug_goes_before_and_behind(repository: Repository, arguments: tuple[str, ...]) -> None:
    (repository.root / "docs/gaps.yaml").unlink()

    said = repository.say(*arguments)

    assert said.code == 78
    assert "Traceback" in said.err


@pytest.mark.parametrize("number", [0, 1, 3])
def test_a_number_that_a_command_returns_is_its_code(number: int) -> None:
    assert told("x", lambda: number, is_debugging=lambda: False) == number


@pytest.mark.parametrize(
    "arguments",
    [
        ("explode",),
        ("plan", "--explode"),
        ("why",),
        ("history", "--limit", "0"),
        ("logs", "DEMO-1", "--stream", "stdin"),
        ("run", "--gap", "../etc"),
        ("run", "--until", "25:00"),
        ("run", "--until", "noon"),
        ("run", "--pull-wait", "soon"),
        ("run", "--limit", "0"),
        ("--max-parallel", "many"),
        ("service", "install"),
        ("report",),
        ("doctor",),
    ],
)
def test_what_nobody_knows_is_a_matter_of_usage(
    repository: Repository, arguments: tuple[str, ...]
) -> None:
    """Behaviour C3."""
    said = repository.say(*arguments)

    assert (said.code, said.out) == (2, "")
    assert "Error:" in said.err


def test_outside_of_a_repository_there_is_nothing_to_do(
    repository: Repository, tmp_path_factory: pytest.TempPathFactory
) -> None:
    said = repository.say("plan", "--repo-root", str(tmp_path_factory.mktemp("elsewhere")))

    assert (said.code, said.out) == (78, "")
    assert "--repo-root" in said.err


def test_help_lists_every_command_with_its_own_words(repository: Repository) -> None:
    said = repository.say("--help")

    assert said.code == 0
    for name, (family, summary) in COMMANDS.items():
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        assert command.name == name
        assert command.callback is not None
        assert command.callback.__module__ == f"chump_orchestrator.cli.{family}"
        assert command.get_short_help_str(200) == summary
        assert f"  {name} " in said.out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(repository: Repository, name: str) -> None:
    said = repository.say(name, "--help")

    assert said.code == 0
    assert said.out.startswith(f"Usage: chump-orchestrator {name}")


def test_every_command_takes_a_repository(repository: Repository) -> None:
    """Behaviour C1."""
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        members = command.commands.values() if isinstance(command, click.Group) else [command]
        for member in members:
            assert "--repo-root" in {o for p in member.params for o in p.opts}, member.name


def test_the_reference_tells_of_every_command_and_option() -> None:
    reference = Path(__file__).parents[2] / "docs/reference/command-line.md"
    text = reference.read_text("utf-8")

    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        members = command.commands if isinstance(command, click.Group) else {"": command}
        for inner, member in members.items():
            assert f"`{f'{name} {inner}'.strip()}" in text
            for parameter in member.params:
                if isinstance(parameter, click.Option):
                    assert f"`{parameter.opts[-1]}" in text, (name, parameter.opts)
    for parameter in cli.params:
        assert all(f"`{option}" in text for option in parameter.opts), parameter.opts


def test_the_version_is_told(repository: Repository) -> None:
    said = repository.say("--version")

    assert (said.code, said.out) == (0, f"chump-orchestrator, version {__version__}\n")


def test_help_does_not_wait_for_what_only_a_daemon_needs() -> None:
    script = (
        "import sys\n"
        "from chump_orchestrator.cli.root import main\n"
        "assert main(['--help']) == 0\n"
        "heavy = {'anyio', 'asyncio', 'sqlite3', 'yaml', 'structlog', 'psutil', 'rich'}\n"
        "print(heavy & set(sys.modules), file=sys.stderr)\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )

    assert done.stderr.strip() == "set()"


def test_the_module_is_a_program(repository: Repository) -> None:
    with repository.start("plan", "--json", stdout=subprocess.PIPE) as process:
        out, _ = process.communicate(timeout=60)

    assert process.returncode == 0
    assert out.startswith('{\n  "schema_version": 1')


def test_a_reader_that_has_seen_enough_is_no_error(repository: Repository) -> None:
    entries = "".join(f"  - {{id: A-{n}, status: open, priority: P0}}\n" for n in range(3000))
    repository.write("docs/gaps.yaml", f"gaps:\n{entries}")

    with repository.start(
        "plan", "--json", stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        err = process.stderr.read()
        code = process.wait(60)

    assert (code, err) == (0, "")


def test_text_that_the_terminal_cannot_show_is_no_error(repository: Repository) -> None:
    repository.write(
        "docs/gaps.yaml", 'gaps: [{id: A-1, status: open, priority: P0, title: "all ✓"}]'
    )
    environment = os.environ | {"PYTHONIOENCODING": "latin-1"}

    with repository.start(stdout=subprocess.PIPE, env=environment) as process:
        out, _ = process.communicate(timeout=60)

    assert process.returncode == 0
    assert "all ?" in out
