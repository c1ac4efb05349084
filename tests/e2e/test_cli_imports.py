"""What a command waits for before it does anything: the modules it has imported when it ends.

To import is most of what a short command takes, and nobody notices one module more. So all that may
be imported stands here by name: whoever adds a name has thought about it.
"""

import gc
import re
import subprocess
import sys
from pathlib import Path

import pytest

import chump_orchestrator
from chump_orchestrator.adapters import parsed
from chump_orchestrator.cli.repository import wait_for
from tests.e2e.cli_repository import Repository

SCRIPT = """\
import sys
from chump_orchestrator.cli.root import main
code = main(sys.argv[1:])
print(*sys.modules, file=sys.stderr)
sys.exit(code)
"""


def named(text: str) -> frozenset[str]:
    return frozenset(text.split())


SLOW = named("""
    anyio asyncio concurrent.futures difflib email hashlib http importlib.metadata logging
    multiprocessing platformdirs prometheus_client psutil pygments random rich shutil socket
    sqlite3 ssl starlette structlog subprocess tempfile tomllib traceback uvicorn yaml zoneinfo
    """)
"""Modules of which each takes as long as several of ours, or brings others that do."""

BEGINNING = named("""
    cli cli.exits cli.options cli.root cli.streams core core.deferred core.errors core.gap
    """)
"""Our own modules, without which nothing is understood."""

SETTINGS = BEGINNING | named("""
    adapters adapters.git_asked adapters.git_manners adapters.starting cli.render cli.repository
    config core.attempts core.backlog core.budget core.causes core.dispatch core.outcome
    core.picker core.pull core.routing premises settings settings.choices settings.display
    settings.layers settings.passed settings.rules settings.schema settings.secret_sources
    settings.secrets settings.shipping settings.tables settings.toml_file telling
    """)
"""What it takes to know where we are, and what is set."""

BACKLOG = SETTINGS | named("""
    adapters.backlog_turns adapters.backlogs adapters.host adapters.parsed cli.client
    cli.planning cli.read cli.refs core.cascade core.learning core.records core.reflection
    core.shipping
    core.testimony daemon daemon.address looking
    """)
"""The same, and what the backlog holds; that it is read by whoever plans makes it one module."""

LEDGER = BACKLOG | named("""
    adapters.lease_files adapters.ledger adapters.ledger_at_once adapters.ledger_chronicle
    adapters.ledger_corrections adapters.ledger_marks adapters.ledger_rows adapters.ledger_schema
    adapters.routing_file adapters.sqlite adapters.sqlite_requests core.brakes core.brief
    core.complaints
    core.corrections core.ports core.resuming core.tail daemon.standing
    """)
"""The same, and what was dispatched."""

STATUS = (LEDGER - {"cli.planning", "cli.read", "cli.refs", "core.cascade", "core.learning"}) | {
    "adapters.routing_file",
    "cli.board",
    "cli.status",
    "shim",
    "shim.files",
    "shim.regardless",
}

ASKS_GIT = frozenset({"subprocess"})
READS_A_FILE = ASKS_GIT | {"tomllib"}
ASKS_THE_LEDGER = READS_A_FILE | {"sqlite3"}

LOOKS = [
    (("--version",), BEGINNING, frozenset()),
    (("--help",), BEGINNING, {"shutil"}),
    (("plan",), LEDGER, ASKS_THE_LEDGER),
    (("plan", "--explain", "--json"), LEDGER, ASKS_THE_LEDGER),
    (("why", "DEMO-1"), LEDGER, ASKS_THE_LEDGER),
    (("status",), STATUS, ASKS_THE_LEDGER),
    (("status", "--json"), STATUS, ASKS_THE_LEDGER),
    (("history",), LEDGER, ASKS_THE_LEDGER),
    (("backlog", "check"), BACKLOG, READS_A_FILE),
    (("config", "show"), SETTINGS | {"cli.settings"}, READS_A_FILE),
    (("config", "path"), SETTINGS | {"cli.settings"}, READS_A_FILE),
    (
        ("config", "check"),
        SETTINGS | {"adapters.routing_file", "cli.settings"},
        READS_A_FILE,
    ),
]

NOT_FOR_A_DAEMON = named("""
    batch cli.planning cli.read cli.service cli.status demo doctor looking self_test service
    testing throwaway timing
    """)
NOT_WITHOUT_HTTP = named("""
    http.server platformdirs prometheus_client starlette uvicorn
    """)


def imported(root: Path, *arguments: str) -> tuple[frozenset[str], frozenset[str]]:
    """Run a command; return what it has imported of ours, without the package, and of others."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        check=False,
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 3), done.stderr
    modules = done.stderr.splitlines()[-1].split()
    ours = (one for one in modules if one.startswith("chump_orchestrator."))
    theirs = (one for one in modules if not one.startswith("chump_orchestrator"))
    return frozenset(one.partition(".")[2] for one in ours), frozenset(theirs)


@pytest.fixture
def settled(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> Repository:
    """One with settings and a ledger, whose backlog has been read before."""
    monkeypatch.setattr(parsed, "SETTLED_S", 0.0)
    repository.write(".chump/orchestrator.toml", '[pulls]\nuse = "git"\n')
    assert repository.say("pause", "to have a ledger").code == 0
    assert repository.say("resume").code == 0
    assert repository.say("backlog", "check").code == 0
    return repository


@pytest.mark.parametrize(
    ("arguments", "ours", "slow"), LOOKS, ids=[" ".join(arguments) for arguments, _, _ in LOOKS]
)
def test_who_only_looks_imports_no_more_than_is_written_here(
    settled: Repository, arguments: tuple[str, ...], ours: frozenset[str], slow: frozenset[str]
) -> None:
    found, others = imported(settled.root, *arguments)

    assert found - ours == set()
    assert (SLOW & others) - slow == set()


def test_nothing_is_written_here_that_nobody_imports(settled: Repository) -> None:
    found = frozenset[str]().union(
        *(imported(settled.root, *arguments)[0] for arguments, _, _ in LOOKS)
    )

    assert frozenset[str]().union(*(ours for _, ours, _ in LOOKS)) - found == set()


def test_a_daemon_imports_nothing_of_what_others_do(settled: Repository) -> None:
    settled.write("docs/gaps.yaml", "gaps: []\n")

    found, others = imported(settled.root, "run", "--once", "--yes")

    assert {"wiring", "daemon.orchestrator"} <= found
    assert [one for one in found if {one, one.partition(".")[0]} & NOT_FOR_A_DAEMON] == []
    assert others & NOT_WITHOUT_HTTP == set()


def test_classes_on_the_way_are_made_when_they_are_used() -> None:
    """A data class of the standard library costs each of these commands 0.6 ms."""
    at_once = re.compile(
        r"^(from dataclasses import .*\bdataclass\b|@dataclasses\.dataclass)", re.MULTILINE
    )
    package = Path(chump_orchestrator.__file__).parent
    names = LEDGER | STATUS | SETTINGS | {"cli.settings"}
    files = (package / f"{one.replace('.', '/')}.py" for one in names - {"core.deferred"})

    assert [file.stem for file in files if file.exists() and at_once.search(file.read_text())] == []


def test_the_collector_is_on_where_a_loop_runs() -> None:
    async def is_on() -> bool:
        return gc.isenabled()

    gc.disable()
    try:
        assert wait_for(is_on)
    finally:
        gc.enable()
        gc.unfreeze()


@pytest.mark.parametrize("arguments", [("plan", "--json"), ("why", "NO-1"), ("config", "nothing")])
def test_who_ends_at_once_has_said_all_and_ends_as_ever(
    settled: Repository, arguments: tuple[str, ...]
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "chump_orchestrator", *arguments],
        check=False,
        cwd=settled.root,
        capture_output=True,
        text=True,
    )

    said = settled.say(*arguments)
    assert (done.returncode, done.stdout, done.stderr) == (said.code, said.out, said.err)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_what_standard_output_does_not_take_is_told_also_by_who_ends_at_once(
    settled: Repository,
) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "chump_orchestrator", "plan", "--json"],
            check=False,
            cwd=settled.root,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )

    assert done.returncode == 1
    assert "standard output: No space left on device" in done.stderr
