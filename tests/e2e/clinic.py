"""A healthy project with scripted `gh` and `claude`, to be broken on purpose and examined."""

import json
import os
import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.cli_repository import Repository, Said

SETTINGS = """\
consent = true
[backend]
use = "{backend}"
[pulls]
use = "{pulls}"
[worktrees]
min_free = "{min_free}"
"""

GH = """\
import json, os, sys
told = json.load(open(os.path.join(os.path.dirname(__file__), "gh.json")))
if sys.argv[1:] == ["--version"]:
    print("gh version", told["version"], "(2026-01-01)")
elif sys.argv[1:5] == ["api", "--include", "--hostname", "github.com"]:
    with open(os.path.join(os.path.dirname(__file__), "asked"), "a") as file:
        file.write(sys.argv[5] + " " + os.environ.get("GH_TOKEN", "-") + "\\n")
    if told["status"]:
        print("HTTP/2.0", told["status"], "Told")
        for name, value in told["headers"].items():
            print(f"{name}: {value}\\r")
        print("\\r")
        print(json.dumps(told["body"]))
    sys.stderr.write(told["said"])
    sys.exit(0 if told["status"] == 200 else 1)
else:
    sys.exit(f"what is {sys.argv[1:]}?")
"""

UNIT = "chump-orchestrator@x.service"

CLAUDE = """\
import json, os, sys
told = json.load(open(os.path.join(os.path.dirname(__file__), "claude.json")))
if sys.argv[1:] == ["--version"]:
    print(told["version"])
elif sys.argv[1:] == ["auth", "status", "--json"]:
    print(told["status"])
    sys.exit(0 if '"loggedIn": true' in told["status"] else 1)
else:
    sys.exit(f"what is {sys.argv[1:]}?")
"""


class Clinic:
    """The project, what its scripts say, and what `doctor` makes of it all."""

    def __init__(self, repository: Repository, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.repository = repository
        self.root = repository.root
        self.state = repository.state
        self.folder = folder
        self.bin = folder / "bin"
        self.home = folder / "home"
        self.origin = folder / "origin.git"
        self.patch = patch
        for made in (self.bin, self.home):
            made.mkdir()
        self.settings()
        self.script("gh", GH)
        self.script("claude", CLAUDE)
        self.gh()
        self.claude()
        repository.git("init", "-q", "--bare", "-b", "main", str(self.origin))
        repository.git("add", "docs")
        repository.git("commit", "-q", "-m", "Begin")
        repository.git("remote", "add", "origin", str(self.origin))
        repository.git("push", "-q", "-u", "origin", "main")
        repository.git("remote", "set-head", "origin", "main")
        patch.setenv("HOME", str(self.home))
        patch.setenv("PATH", f"{self.bin}:{os.environ['PATH']}")
        patch.setenv("GH_REPO", "acme/anvil")
        if os.geteuid() == 0:
            patch.setenv("IS_SANDBOX", "1")

    def settings(
        self, more: str = "", *, backend: str = "claude", pulls: str = "gh", min_free: str = "0GiB"
    ) -> None:
        """Write the settings, with `more` at their end."""
        text = SETTINGS.format(backend=backend, pulls=pulls, min_free=min_free) + more
        self.repository.write(".chump/orchestrator.toml", text)

    def script(self, name: str, source: str, *, shebang: str | None = None) -> Path:
        """Put a program on the PATH."""
        path = self.bin / name
        path.write_text(f"#!{shebang or f'{sys.executable} -IS'}\n{source}")
        path.chmod(0o755)
        return path

    def gh(
        self,
        *,
        status: int = 200,
        version: str = "2.60.0",
        headers: Mapping[str, str] | None = None,
        said: str = "",
        **body: Any,
    ) -> None:
        """Say what `gh` tells of the repository."""
        told = {
            "status": status,
            "version": version,
            "headers": {"X-Oauth-Scopes": "repo, workflow", **(headers or {})},
            "said": said,
            "body": {"private": True, "permissions": {"push": True}, **body},
        }
        (self.bin / "gh.json").write_text(json.dumps(told))

    def claude(self, *, status: str = "", version: str = "2.1.197 (Claude Code)") -> None:
        """Say what `claude` tells of itself."""
        status = status or '{"loggedIn": true, "authMethod": "claude.ai"}'
        (self.bin / "claude.json").write_text(json.dumps({"status": status, "version": version}))

    def unit(
        self, text: str = "", *, name: str = "chump-orchestrator@x.service", **keys: str
    ) -> Path:
        """Install a unit of the user's, with a PATH on which everything is found."""
        given = {
            "WorkingDirectory": str(self.root),
            "ExecStart": f"{sys.executable} -m chump_orchestrator run",
            "Environment": f"PATH={os.environ['PATH']} GH_REPO=acme/anvil",
        } | keys
        lines = [f"{key}={value}" for key, value in given.items()]
        path = self.home / ".config" / "systemd" / "user" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text or "\n".join(["[Service]", *lines, ""]))
        return path

    def doctor(self, *arguments: str) -> Said:
        """Run the command in this process."""
        return self.repository.say("doctor", *arguments)

    def found(self, *names: str, fix: bool = False) -> dict[str, Any]:
        """Return what each check found, by its name."""
        said = self.doctor("--json", *(["--fix"] if fix else []), *names)
        document = said.json()
        assert document["schema_version"] == 1
        assert said.code == (0 if document["ok"] else 1)
        return {one["name"]: one for one in document["checks"]}

    def check(self, name: str, *, fix: bool = False) -> Any:
        """Return what one check found, an object with `status`, `found` and `remedy`."""
        return Found(self.found(name, fix=fix)[name])


class Found:
    """What one check found."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.document = document
        self.status = document["status"]
        self.found = document["found"]
        self.remedy = document["remedy"]
        self.fixed = document["fixed"]
        self.not_fixed = document["not_fixed"]

    def __repr__(self) -> str:
        return f"Found({self.document!r})"


def snapshot(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Return every file below a folder with its mode, its size, and when it changed.

    But for those in which SQLite keeps account of a database's readers.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        is_folder = stat.S_ISDIR(status.st_mode)
        size, changed = (0, 0) if is_folder else (status.st_size, status.st_mtime_ns)
        if not path.name.endswith(("-wal", "-shm")):
            found[str(path.relative_to(folder))] = (status.st_mode, size, changed)
    return found


def run_apart(clinic: Clinic, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a program in the clinic's repository, in a process of its own."""
    return subprocess.run(words, cwd=clinic.root, capture_output=True, text=True, check=False)
