"""launchd as a service manager: a LaunchAgent of the user, while they are logged in."""

from __future__ import annotations

import os
import re
import shlex
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from xml.sax.saxutils import escape

import anyio

from chump_orchestrator.adapters import process
from chump_orchestrator.core.errors import MissingProgram
from chump_orchestrator.daemon.address import address
from chump_orchestrator.service import property_list, quoting, templates
from chump_orchestrator.service.difference import seal
from chump_orchestrator.service.naming import instance_of, label_of
from chump_orchestrator.service.state import State
from chump_orchestrator.service.steps import SOON, Await, Remove, Run, Step, Write
from chump_orchestrator.service.survey import Survey
from chump_orchestrator.service.units import Unit

COMMENT = "<!-- {} -->"

STOP_LIMIT = timedelta(minutes=5)
"""Longer than `ExitTimeOut` of the job, after which launchd kills."""

START_LIMIT = timedelta(minutes=2)
"""Reading a large backlog and taking up what an earlier daemon left takes seconds."""

_PID = re.compile(r"^\s*pid = (\d+)$", re.MULTILINE)
_STATE = re.compile(r"^\s*state = (.+)$", re.MULTILINE)
_EXIT = re.compile(r"^\s*last exit code = (.+)$", re.MULTILINE)
_RUNS = re.compile(r"^\s*runs = (\d+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Launchd:
    """The manager of one user's graphical session."""

    user: str
    uid: int
    environ: Mapping[str, str]

    is_user = True
    can_linger = False
    lingers = False
    is_reachable = True

    @property
    def home(self) -> Path:
        """The user's home."""
        return Path(self.environ.get("HOME", "/"))

    @property
    def folder(self) -> Path:
        """Where LaunchAgents of the user lie."""
        return self.home / "Library" / "LaunchAgents"

    @property
    def domain(self) -> str:
        """What launchd calls the session."""
        return f"gui/{self.uid}"

    def log(self, root: Path) -> Path:
        """Return where the log goes that the settings have no file for."""
        return self.home / "Library" / "Logs" / "chump-orchestrator" / f"{instance_of(root)}.log"

    def standard_error(self, root: Path) -> Path:
        """Return where the job's standard streams go."""
        return self.log(root).with_suffix(".err")

    def file(self, root: Path) -> Path:
        """Return where the property list of a repository lies."""
        return self.folder / f"{label_of(root)}.plist"

    def log_command(self, root: Path) -> str:
        """Return what shows the log, where the settings have no file for it."""
        return shlex.join(("tail", "-F", str(self.log(root))))

    def units(self, seen: Survey, program: Iterable[str]) -> tuple[Unit, ...]:
        """Return the property list of a repository."""
        root = Path(seen.root)
        values = {
            "LABEL": label_of(root),
            "PROGRAM": "\n".join(f"<string>{_text(word)}</string>" for word in program),
            "REPOSITORY": _text(seen.root),
            "PATH": _text(":".join(seen.path)),
            "LOG_FILE": "" if seen.log else _variable("CHUMP_LOG_FILE", self.log(root)),
            "STANDARD_ERROR": _text(str(self.standard_error(root))),
        }
        text = templates.filled(templates.read(templates.LAUNCH_AGENT), values)
        return (Unit(f"{label_of(root)}.plist", seal(text, COMMENT)),)

    async def verify(self, units: Sequence[Unit]) -> tuple[str, ...]:
        """Return what launchd would object to, or ignore without a word."""
        return tuple(
            f"{unit.name}: {text}" for unit in units for text in property_list.objections(unit.text)
        )

    def installing(
        self,
        writes: Sequence[Write],
        seen: Survey,
        *,
        before_start: Sequence[Step],
        linger: bool,  # noqa: ARG002 - launchd has nothing of the kind
        state: State,
    ) -> list[Step]:
        """Return the steps that load a job; one that runs is replaced, its agents go on."""
        root, control = Path(seen.root), Path(seen.control)
        job = f"{self.domain}/{label_of(root)}"
        return [
            *(self._ending(job, state.pid, keep_agents=True) if state.enabled else []),
            *writes,
            # Files launchd makes itself, but no folders for them.
            Run(("mkdir", "-p", str(self.log(root).parent)), self.environ),
            *before_start,
            self._run("enable", job),
            self._run("bootstrap", self.domain, str(self.file(root))),
            # launchd itself cannot be told when a job is ready.
            Await("the daemon's answer", lambda: _answers(control), START_LIMIT),
        ]

    def removing(self, root: Path, *, keep_agents: bool, state: State) -> list[Step]:
        """Return the steps that end a job and take its file away."""
        job = f"{self.domain}/{label_of(root)}"
        return [*self._ending(job, state.pid, keep_agents=keep_agents), Remove(self.file(root))]

    def _ending(self, job: str, pid: int, *, keep_agents: bool) -> list[Step]:
        gone = Await(f"the end of process {pid}", lambda: not _lives(pid), STOP_LIMIT)
        # launchd answers before the job has ended, and would not load it anew until then.
        bootout = Run(
            ("launchctl", "bootout", job), self.environ, STOP_LIMIT, may_fail=True, quiet=True
        )
        if not pid:
            return [bootout]
        detach = self._run("kill", "SIGUSR1", job)
        return [detach, gone, bootout] if keep_agents else [bootout, gone]

    def _run(self, *words: str) -> Run:
        return Run(("launchctl", *words), self.environ)

    async def last_words(self, root: Path, since: datetime) -> str:  # noqa: ARG002 - lines have no time
        """Return the end of what the job has written; empty when there is nothing."""
        try:
            told = await anyio.Path(self.standard_error(root)).read_text("utf-8", "replace")
        except OSError:
            return ""
        return "\n".join(told.splitlines()[-20:])

    async def state(self, root: Path) -> State:
        """Ask how a job fares; an empty state when launchd does not know it."""
        try:
            done = await process.run(
                ("launchctl", "print", f"{self.domain}/{label_of(root)}"),
                cwd="/",
                env=self.environ,
                timeout=SOON,
            )
        except MissingProgram:
            return State()
        if done.code:
            return State()
        told = done.out.decode("utf-8", "replace")
        pid = int(_first(_PID, told) or 0)
        return State(
            enabled="enabled",
            active="active" if pid else "inactive",
            sub=_first(_STATE, told),
            pid=pid,
            restarts=max(int(_first(_RUNS, told) or 1) - 1, 0),
            result=_first(_EXIT, told),
        )


def _first(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.search(text)
    return "" if found is None else found[1].strip()


def _variable(name: str, value: Path) -> str:
    return f"<key>{name}</key>\n<string>{_text(str(value))}</string>"


def _text(text: str) -> str:
    return escape(quoting.checked(text))


def _answers(control: Path) -> bool:
    """Say whether a daemon listens."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(1)
            with address(control) as name:
                connection.connect(name)
    except OSError:
        return False
    return True


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
