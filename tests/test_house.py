"""The rules of the house that no linter knows."""

import ast
import functools
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "chump_orchestrator"
EVENTS = ROOT / "docs" / "reference" / "events.md"

FOLDERS = {"chump_orchestrator", "docs", "launchd", "systemd", "tests"}
FILES = {"CHANGELOG.md", "LICENSE", "Makefile", "README.md", "pyproject.toml", "requirements.lock"}

LONGEST_MODULE_LINES = 400
"""Reading gets hard in every file of this field that is much longer."""

REGISTRY_HOSTS = tuple(
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("npmjs", "org"),
        ("npmjs", "com"),
        ("yarnpkg", "com"),
        ("crates", "io"),
        ("golang", "org"),
        ("deb", "debian", "org"),
        ("archive", "ubuntu", "com"),
    )
)
"""Spelled in pieces, so that this file does not name them either."""

LEVELS = {"debug", "info", "warning", "error", "exception", "critical"} | {
    f"a{level}" for level in ("debug", "info", "warning", "error", "exception", "critical")
}
ENVIRONMENT = {"os.environ", "os.environb", "os.getenv", "os.getenvb"}
LOGGERS = {"log", "_log", "logger", "_logger"}
EVENT = re.compile(r"[a-z][a-z_]*(\.[a-z][a-z_]*)+")


def files_of_the_repository() -> list[Path]:
    """Everything tracked, and everything that `git add` would take."""
    listing = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z", "-co", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    )
    found = (ROOT / name for name in listing.stdout.split("\0") if name)
    return [path for path in found if path.is_file()]


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def logged_events() -> dict[str, str]:
    """Every event that production code logs, and a place where it does."""
    return {
        event: f"{name_of(path)}:{line}"
        for path in modules()
        for event, line in _events_in(tree_of(path))
    }


def _events_in(tree: ast.Module) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in LEVELS
            and node.args
            and LOGGERS & set(_names_in(node.func.value))
        ):
            for constant in ast.walk(node.args[0]):
                if isinstance(constant, ast.Constant) and isinstance(constant.value, str):
                    yield constant.value, constant.lineno


def _names_in(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr


def documented_events() -> set[str]:
    """The names in backquotes that begin a row of a table or an entry of a list."""
    if not EVENTS.exists():
        return set()
    first = re.compile(rf"^(?:\||[-*]|#+)\s*`({EVENT.pattern})`", re.MULTILINE)
    return {match[1] for match in first.finditer(EVENTS.read_text("utf-8"))}


def test_the_top_level_holds_only_what_was_agreed() -> None:
    tops = {path.relative_to(ROOT).parts for path in files_of_the_repository()}

    folders = {parts[0] for parts in tops if len(parts) > 1 and not parts[0].startswith(".")}
    files = {parts[0] for parts in tops if len(parts) == 1 and not parts[0].startswith(".")}
    assert folders - FOLDERS == set()
    assert files - FILES == set()


def test_no_module_is_too_long_to_be_read() -> None:
    lengths = {name_of(path): len(path.read_text("utf-8").splitlines()) for path in modules()}

    assert lengths
    assert {n: long for n, long in lengths.items() if long > LONGEST_MODULE_LINES} == {}


def test_no_module_is_named_after_nothing() -> None:
    vague = {"base", "common", "helpers", "manager", "utils"}

    assert [name_of(path) for path in modules() if vague & {path.stem, path.parent.name}] == []


def test_no_file_names_a_package_registry() -> None:
    named = [
        f"{name_of(path)}: {host}"
        for path in files_of_the_repository()
        for host in REGISTRY_HOSTS
        if host.encode() in path.read_bytes()
    ]

    assert named == []


def test_nothing_in_production_is_left_for_later() -> None:
    later = re.compile("|".join(("TO" + "DO", "FIX" + "ME", "NotImplemented" + "Error")))

    found = [
        f"{name_of(path)}:{number}: {line.strip()}"
        for path in modules()
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if later.search(line)
    ]

    assert found == []


def test_every_module_says_what_it_is_for() -> None:
    mute = [name_of(p) for p in modules() if not ast.get_docstring(tree_of(p))]

    assert mute == []


def test_nothing_is_mocked() -> None:
    mocks = {"mock", "unittest.mock", "pytest_mock"}
    found = [
        f"{name_of(path)}:{node.lineno}"
        for path in (*modules(), *sorted((ROOT / "tests").rglob("*.py")))
        for node in ast.walk(tree_of(path))
        if (isinstance(node, ast.Import) and mocks & {alias.name for alias in node.names})
        or (isinstance(node, ast.ImportFrom) and node.module in mocks)
        or (
            isinstance(node, ast.ImportFrom)
            and node.module == "unittest"
            and mocks & {alias.name for alias in node.names}
        )
    ]

    assert found == []


def test_the_shim_stands_on_the_standard_library_and_itself_alone() -> None:
    modules_of_shim = sorted((PACKAGE / "shim").glob("*.py"))
    imported = {
        name
        for path in modules_of_shim
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or "."]
        )
    }
    foreign = {
        name
        for name in imported
        if name.partition(".")[0] not in sys.stdlib_module_names
        and not name.startswith("chump_orchestrator.shim")
    }

    assert modules_of_shim
    assert foreign == set()


def test_only_config_reads_the_environment() -> None:
    readers = {
        name_of(path)
        for path in modules()
        for node in ast.walk(tree_of(path))
        if (isinstance(node, ast.Attribute) and ast.unparse(node) in ENVIRONMENT)
        or (isinstance(node, ast.ImportFrom) and node.module == "os" and _imports_it(node))
    }

    assert readers - {"chump_orchestrator/config.py"} == set()


def _imports_it(node: ast.ImportFrom) -> bool:
    return bool({f"os.{alias.name}" for alias in node.names} & ENVIRONMENT)


def test_every_event_has_a_noun_and_a_past_participle() -> None:
    misnamed = {e: place for e, place in logged_events().items() if not EVENT.fullmatch(e)}

    assert misnamed == {}


def test_every_event_that_is_logged_is_documented() -> None:
    missing = {e: place for e, place in logged_events().items() if e not in documented_events()}

    assert missing == {}, f"{name_of(EVENTS)} lacks a row that begins with each of these in `...`"


def test_every_event_that_is_documented_is_logged() -> None:
    assert documented_events() - logged_events().keys() == set()


def test_every_dependency_is_in_the_lock_and_every_pin_has_its_hash() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    wanted = [
        *project["project"]["dependencies"],
        *project["build-system"]["requires"],
        *(entry for group in project["dependency-groups"].values() for entry in group),
    ]
    names = {
        re.split(r"[^\w.-]", entry, maxsplit=1)[0].lower()
        for entry in wanted
        if isinstance(entry, str)
    }
    lock = (ROOT / "requirements.lock").read_text("utf-8").replace("\\\n", "")
    pins = [line for line in lock.splitlines() if line and not line.startswith("#")]

    assert names - {pin.partition("==")[0] for pin in pins} == set()
    assert [pin for pin in pins if "--hash=sha256:" not in pin] == []
    assert re.search(r"\w+://|--\w*index|--find-links", lock) is None


@pytest.mark.parametrize("name", ["Makefile", ".ci/run"])
def test_what_machines_run_needs_no_answer_from_a_person(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")

    assert "sudo" not in text
    assert not re.search(r"^\s*read\s", text, re.MULTILINE)


def test_what_continuous_integration_runs_can_be_run() -> None:
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111 == 0o111
