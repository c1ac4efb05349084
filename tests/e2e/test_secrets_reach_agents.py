"""Secrets of a service on their way to an agent, and nowhere else (behaviour D5, promise I7)."""

import json
from pathlib import Path

from tests.e2e.projects import Make, Project, gaps

AGENT = """\
for name in ("PROJECT_PLAIN", "PROJECT_FILED", "DEPLOY_KEY", "CREDENTIALS_DIRECTORY"):
    print("WARN", name, "is", os.environ.get(name, "absent"), file=sys.stderr)
print("the answer is", os.environ["PROJECT_PLAIN"] == "a-credential-of-it", flush=True)
ship()
"""

VALUES = ("a-credential-of-it", "a-line-of-the-file", "for-nobody-at-all")


def a_project(make: Make) -> tuple[Project, dict[str, str]]:
    project = make(gaps("A-1"), AGENT)
    credentials = project.folder / "credentials"
    credentials.mkdir()
    (credentials / "project-plain").write_text("a-credential-of-it\n")
    (credentials / "deploy-key").write_text("for-nobody-at-all\n")
    file = project.root / ".chump" / "secrets.env"
    file.write_text("PROJECT_FILED=a-line-of-the-file\nPROJECT_PLAIN=outranked-by-it\n")
    file.chmod(0o600)
    return project, {"CREDENTIALS_DIRECTORY": str(credentials), "PROJECT_PLAIN": "of the shell"}


def holders_of(folder: Path, value: str) -> list[str]:
    """Return the files below a folder that hold a value."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return [str(path) for path in files if value.encode() in path.read_bytes()]


def test_an_agent_has_the_secrets_that_it_is_to_have_and_no_record_has_any(make: Make) -> None:
    project, environment = a_project(make)

    done = project.program("run", "--once", **environment)
    logs = project.program("logs", "A-1", **environment)
    history = project.program("history", "--json", **environment)

    assert json.loads(history.stdout)["dispatches"][0]["outcome"] == "shipped", done.stderr
    assert "the answer is True" in logs.stdout
    assert "WARN PROJECT_PLAIN is [redacted]" in logs.stdout
    assert "WARN PROJECT_FILED is [redacted]" in logs.stdout
    assert "WARN DEPLOY_KEY is absent" in logs.stdout
    assert "WARN CREDENTIALS_DIRECTORY is absent" in logs.stdout
    (spec,) = project.state.glob("d/*/spec.json")
    assert "PROJECT_PLAIN" in json.loads(spec.read_text())["environment"]
    said = done.stdout + done.stderr + logs.stdout + logs.stderr + history.stdout
    for value in VALUES:
        assert value not in said
        assert holders_of(project.state, value) == []
        assert holders_of(project.root / "sessions", value) == []


def test_show_names_a_secret_and_where_it_comes_from_but_never_its_value(make: Make) -> None:
    """Behaviour C4."""
    project, environment = a_project(make)

    table = project.program("config", "show", **environment).stdout
    document = json.loads(project.program("config", "show", "--json", **environment).stdout)

    origins = {one["name"]: one["origin"] for one in document["secrets"]}
    assert origins["PROJECT_PLAIN"] == f"{environment['CREDENTIALS_DIRECTORY']}/project-plain"
    assert origins["PROJECT_FILED"] == f"{project.root}/.chump/secrets.env:1"
    (row,) = [line for line in table.splitlines() if line.startswith("PROJECT_FILED")]
    assert row.split() == ["PROJECT_FILED", "***", origins["PROJECT_FILED"]]
    assert all(value not in table + json.dumps(document) for value in VALUES)


def test_with_secrets_that_others_can_read_nothing_is_started(make: Make) -> None:
    project, environment = a_project(make)
    (project.root / ".chump" / "secrets.env").chmod(0o644)

    done = project.program("run", "--once", **environment)
    checked = project.program("config", "check", **environment)

    assert (done.returncode, checked.returncode) == (78, 78)
    assert "chmod 600" in done.stderr
    assert project.left()["worktrees"] == []


def test_a_reload_says_when_secrets_wait_for_the_next_start(make: Make) -> None:
    project, environment = a_project(make)
    project.write_backlog("  []\n")
    project.start(**environment)
    project.eventually(lambda: project.program("status", **environment).returncode == 0)

    same = project.program("reload", **environment)
    (project.root / ".chump" / "secrets.env").write_text("PROJECT_FILED=another-line-of-it\n")
    changed = project.program("reload", **environment)
    project.program("drain", **environment)

    assert project.daemon is not None
    assert project.daemon.wait(60) == 0
    assert "secrets" not in same.stdout + same.stderr
    assert "next start: secrets" in changed.stdout + changed.stderr
