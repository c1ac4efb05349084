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
from chump_orchestrator.core.errors import ConfigError, MissingProgram, Refused, Unavailable
from tests.e2e.cli_repository import BACKLOG, Repository


def raising(error: BaseException) -> Callable[[], object]:
    def command() -> object:
        raise error

    return command


def a_missing_program() -> BaseException:
    error = MissingProgram("git was not found; install it, or correct PATH")
    error.__cause__ = FileNotFoundError("git")
    outer = ConfigError(str(error))
    outer.__cause__ = error
    return outer


def a_missing_file() -> BaseException:
    error = Refused("docs/gaps.yaml is not there; install it")
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
        (PermissionError(13, "x", "/a/b"), 78, "x: /a/b: Permission denied; give yourself"),
        (FileExistsError(17, "x", "/a/b"), 78, "x: /a/b: File exists; something else is in"),
        (OSError(28, "x", "/a/b"), 1, "x: /a/b: No space left on device; make room"),
        (OSError(28, "x"), 1, "x: standard output: No space left on device; make room"),
        (OSError(9, "x"), 70, "x: a bug: OSError"),
        (BrokenPipeError(32, "x"), 1, "x: standard output: Broken pipe"),
        (Refused("a\x1b[2Jb"), 1, "x: a[2Jb"),
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
        ("history", "--gap", "../etc"),
        ("history", "--gap", ""),
        ("logs", "DEMO-1", "--stream", "stdin"),
        ("logs", "\x1b[2J"),
        ("plan", "--max-parallel", "0"),
        ("plan", "--max-parallel", "1001"),
        ("plan", "--backlog", ""),
        ("backlog", "check", "--backlog", ""),
        ("plan", "--repo-root", ""),
        ("--backlog", ""),
        ("--max-parallel", "0"),
        ("run", "--gap", "../etc"),
        ("run", "--until", "25:00"),
        ("run", "--until", "noon"),
        ("run", "--pull-wait", "soon"),
        ("run", "--limit", "0"),
        ("--max-parallel", "many"),
        ("service", "explode"),
        ("report", "--explode"),
        ("doctor", "explode"),
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


@pytest.mark.parametrize("words", [("config", "show"), ("config", "path"), ("backlog", "check")])
def test_a_repository_goes_before_and_behind_and_in_between(
    repository: Repository,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, str],
) -> None:
    """Behaviour C1."""
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    group, command = words
    root = ("--repo-root", str(repository.root))

    ways = [
        repository.say(*root, group, command),
        repository.say(group, *root, command),
        repository.say(group, command, *root),
    ]

    assert [said.code for said in ways] == [0, 0, 0]
    assert ways[0] == ways[1] == ways[2]
    assert repository.say(group, command).code == 78


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


HEAVY = {"chump_orchestrator.daemon.orchestrator", "chump_orchestrator.wiring", "psutil", "rich"}


@pytest.mark.parametrize(
    "arguments",
    [
        ("status",),
        ("status", "--json"),
        ("plan",),
        ("plan", "--explain"),
        ("why", "DEMO-1"),
        ("history",),
        ("config", "path"),
        ("config", "show"),
        ("pause",),
    ],
)
def test_who_only_looks_does_not_wait_for_what_only_a_daemon_needs(
    repository: Repository, arguments: tuple[str, ...]
) -> None:
    script = (
        "import sys\n"
        "from chump_orchestrator.cli.root import main\n"
        f"assert main({arguments!r}) in (0, 3)\n"
        f"print({HEAVY!r} & set(sys.modules), file=sys.stderr)\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", script],
        check=False,
        cwd=repository.root,
        capture_output=True,
        text=True,
    )

    assert (done.returncode, done.stderr.splitlines()[-1]) == (0, "set()"), done.stderr


def test_what_is_told_by_the_way_stays_out_of_the_data(repository: Repository) -> None:
    """A lease that cannot be read is told on standard error, in colours on a terminal only."""
    repository.write(".chump-locks/evil\x1b[2J.json", "{")

    said = repository.say("plan", "--json")

    assert said.json()["total"] == 6
    assert "lease.ignored" in said.err
    assert "\x1b" not in said.err


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


def without_a_reader() -> int:
    """Return the end of a pipe whose other end is closed already."""
    ours, theirs = os.pipe()
    os.close(ours)
    return theirs


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--help",), 0),
        (("--version",), 0),
        (("plan",), 0),
        (("plan", "--json"), 0),
        (("plan", "--help"), 0),
        (("config", "show"), 0),
        (("why", "DEMO-1"), 0),
        ((), 0),
        (("status",), 3),
        (("status", "--json"), 3),
        (("backlog", "check"), 1),
        (("explode",), 2),
    ],
)
def test_nobody_reading_changes_nothing_about_how_it_ends(
    repository: Repository, arguments: tuple[str, ...], code: int
) -> None:
    """Behaviour C3."""
    repository.write("docs/gaps.yaml", BACKLOG + "  - {id: ../etc}\n")
    pipe = without_a_reader()

    with repository.start(*arguments, stdout=pipe, stderr=subprocess.PIPE) as process:
        os.close(pipe)
        _, err = process.communicate(timeout=60)

    assert process.returncode == code
    assert "Traceback" not in err
    assert "Exception ignored" not in err
    assert "a bug" not in err


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(("plan",), 0), (("status",), 3), (("explode",), 2), (("why", "A-1"), 1)],
)
def test_nobody_listening_to_the_talk_changes_nothing_either(
    repository: Repository, arguments: tuple[str, ...], code: int
) -> None:
    pipe = without_a_reader()

    with repository.start(*arguments, stdout=subprocess.PIPE, stderr=pipe) as process:
        os.close(pipe)
        out, _ = process.communicate(timeout=60)

    assert process.returncode == code
    assert bool(out) == (code in (0, 3))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("arguments", [("plan",), ("config", "show"), ("--help",), ("status",)])
def test_output_that_cannot_be_written_is_a_failure_and_no_bug(
    repository: Repository, arguments: tuple[str, ...]
) -> None:
    """Behaviour C3."""
    with (
        Path("/dev/full").open("w") as full,
        repository.start(*arguments, stdout=full, stderr=subprocess.PIPE) as process,
    ):
        _, err = process.communicate(timeout=60)

    assert process.returncode == 1
    assert err.splitlines()[-1].endswith("standard output: No space left on device; make room")
    assert "bug" not in err


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(
    ("arguments", "code"), [("plan", 0), ("status", 3), ("init", 0), ("pause", 0), ("explode", 2)]
)
def test_closed_streams_are_no_bug(
    repository: Repository, closed: str, arguments: str, code: int
) -> None:
    script = f'exec "$0" -m chump_orchestrator {arguments} {closed}'

    done = subprocess.run(
        ["sh", "-c", script, sys.executable],
        cwd=repository.root,
        check=False,
        capture_output=True,
        text=True,
    )

    assert done.returncode == code, done.stderr
    assert "bug" not in done.stderr


def test_a_current_directory_that_is_gone_is_told_and_can_be_done_without(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = repository.root / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()

    said = repository.say("plan")
    relative = repository.say("plan", "--backlog", "x.yaml", "--repo-root", str(repository.root))

    assert (said.code, relative.code) == (78, 78)
    assert "the current directory cannot be had" in said.err
    assert "the current directory cannot be had" in relative.err
    assert repository.say("plan", "--repo-root", str(repository.root)).code == 0


@pytest.mark.parametrize(
    "arguments", [("pause",), ("release", "DEMO-1"), ("init", "--yes"), ("retry", "DEMO-1")]
)
def test_a_folder_in_whose_place_something_else_is_needs_the_operator(
    repository: Repository, arguments: tuple[str, ...]
) -> None:
    """Behaviour C3."""
    (repository.root / ".chump").symlink_to("nowhere")

    said = repository.say(*arguments)

    assert (said.code, said.out) == (78, "")
    assert ".chump" in said.err
    assert "bug" not in said.err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.parametrize("arguments", [("pause",), ("init", "--yes")])
def test_a_repository_that_cannot_be_written_needs_the_operator(
    repository: Repository, arguments: tuple[str, ...]
) -> None:
    """Behaviour C3."""
    repository.root.chmod(0o555)
    try:
        said = repository.say(*arguments)
    finally:
        repository.root.chmod(0o755)

    assert (said.code, said.out) == (78, "")
    assert "Permission denied" in said.err


def test_a_git_that_is_not_there_is_a_missing_program(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behaviour C3."""
    monkeypatch.setenv("PATH", str(repository.root))

    said = repository.say("plan")

    assert (said.code, said.out) == (69, "")
    assert "install it" in said.err
