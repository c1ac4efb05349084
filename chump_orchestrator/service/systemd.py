"""systemd as a service manager: the machine's own, or that of a user."""

from __future__ import annotations

import re
import shlex
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio.to_thread

from chump_orchestrator.adapters import process
from chump_orchestrator.core.errors import MissingProgram, Refused
from chump_orchestrator.service.naming import SLICE, UNIT_PATTERN, unit_of
from chump_orchestrator.service.state import State
from chump_orchestrator.service.steps import SOON, Await, Remove, Run, Step, Write
from chump_orchestrator.service.survey import Survey
from chump_orchestrator.service.units import CREDENTIALS, Unit, system_units, user_units

BOOTED = Path("/run/systemd/system")
"""There when systemd is the first process of the machine."""

LINGERING = Path("/var/lib/systemd/linger")
"""Has a file for each user whose manager runs without anybody logged in."""

START_LIMIT = timedelta(minutes=6)
"""A start may take `TimeoutStartSec` of the unit, and its check of the settings comes before."""

STOP_LIMIT = timedelta(days=2)
"""A stop may be a drain, which takes as long as the agents do."""

NO_SYSTEMD = (
    "systemd is not what runs this machine; have your own service manager start `{program} run` in"
    " the repository, with the PATH that `{program} service print` shows. On WSL, write"
    " systemd=true under [boot] into /etc/wsl.conf, and run `wsl --shutdown` in Windows"
)


BY_NAME = "SYSLOG_IDENTIFIER=chump-orchestrator"


@dataclass(frozen=True, slots=True)
class Systemd:
    """One manager: that of `user` where `is_user`, otherwise the machine's, to run as `user`.

    `environ` is what the manager's programs are started with, `uid` the user's number.
    """

    is_user: bool
    user: str
    uid: int
    environ: Mapping[str, str]

    @property
    def can_linger(self) -> bool:
        """Whether the service depends on somebody being logged in."""
        return self.is_user

    @property
    def folder(self) -> Path:
        """Where units of the operator lie."""
        if not self.is_user:
            return Path("/etc/systemd/system")
        home = Path(self.environ.get("HOME", "/"))
        return Path(self.environ.get("XDG_CONFIG_HOME") or home / ".config") / "systemd" / "user"

    @property
    def runtime(self) -> Path:
        """Where the user's manager is to be reached."""
        return Path(self.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{self.uid}")

    @property
    def is_reachable(self) -> bool:
        """Whether this manager can be asked now; a user's runs while they are logged in."""
        return not self.is_user or (self.runtime / "systemd" / "private").exists()

    @property
    def lingers(self) -> bool:
        """Whether the user's manager runs from boot, without anybody logged in."""
        return (LINGERING / self.user).exists()

    def command(self, *words: str) -> tuple[str, ...]:
        """Return a command line for the manager."""
        return ("systemctl", *(("--user",) if self.is_user else ()), *words)

    def run(self, *words: str, limit: timedelta = SOON, meanwhile: str = "") -> Run:
        """Return a step that has the manager do something."""
        return Run(self.command(*words), self._environ(), limit, meanwhile=meanwhile)

    def file(self, root: Path) -> Path:
        """Return where the unit of a repository lies."""
        return self.folder / unit_of(root)

    def log_command(self, root: Path) -> str:
        """Return what shows the log of the service."""
        return shlex.join((*self._journal(root), "-f"))

    def _journal(self, root: Path) -> tuple[str, ...]:
        return ("journalctl", *(("--user",) if self.is_user else ()), "-u", unit_of(root))

    def units(self, seen: Survey, program: Iterable[str]) -> tuple[Unit, ...]:
        """Return the unit of a repository, and the slice that its agents are in."""
        if self.is_user:
            return user_units(seen, program)
        return system_units(seen, program, self.user, credentials_in(CREDENTIALS))

    def installing(
        self,
        writes: Sequence[Write],
        seen: Survey,
        *,
        before_start: Sequence[Step],
        linger: bool,
        state: State,
    ) -> list[Step]:
        """Return the steps that make a service of files; a daemon that runs is replaced."""
        steps: list[Step] = []
        if linger:
            steps.append(Run(("loginctl", "enable-linger", self.user), self._environ()))
            if not self.is_reachable:
                steps.append(Await("the user's service manager", lambda: self.is_reachable))
        unit = unit_of(Path(seen.root))
        verb = "restart" if state.is_active else "start"
        return [
            *steps,
            *writes,
            self.run("daemon-reload"),
            self.run("enable", unit),
            *before_start,
            self.run(verb, unit, limit=START_LIMIT, meanwhile="waiting until it is ready"),
        ]

    def removing(self, root: Path, *, keep_agents: bool, state: State) -> list[Step]:
        """Return the steps that end a service and take its files away, the slice with the last."""
        unit = unit_of(root)
        files = [self.file(root)]
        if all(other.name == unit for other in self.folder.glob(UNIT_PATTERN)):
            files.append(self.folder / SLICE)
        detach = self.run("kill", "--kill-who=main", "--signal=SIGUSR1", unit)
        stop = "" if keep_agents else "waiting until its agents have ended"
        return [
            *([detach] if keep_agents and state.pid else []),
            self.run("stop", unit, limit=STOP_LIMIT, meanwhile=stop),
            self.run("disable", unit),
            *(Remove(file) for file in files if file.exists()),
            self.run("daemon-reload"),
            Run(self.command("reset-failed", unit), self._environ(), may_fail=True, quiet=True),
        ]

    async def state(self, root: Path) -> State:
        """Ask how the unit of a repository fares; empty when the manager cannot be asked."""
        try:
            done = await process.run(
                self.command("show", f"--property={','.join(_PROPERTIES)}", unit_of(root)),
                cwd="/",
                env=self._environ(),
                timeout=SOON,
            )
        except MissingProgram:
            return State()
        told = dict(
            line.split("=", 1)
            for line in done.out.decode("utf-8", "replace").splitlines()
            if "=" in line
        )
        if told.get("LoadState") != "loaded":
            return State()
        return State(
            enabled=told.get("UnitFileState", ""),
            active=told.get("ActiveState", ""),
            sub=told.get("SubState", ""),
            pid=_number(told.get("MainPID", "")),
            since=_instant(told.get("StateChangeTimestamp", "")),
            says=told.get("StatusText", ""),
            restarts=_number(told.get("NRestarts", "")),
            result=told.get("Result", ""),
            drop_ins=tuple(told.get("DropInPaths", "").split()),
            needs_reload=told.get("NeedDaemonReload") == "yes",
        )

    async def verify(self, units: Sequence[Unit]) -> tuple[str, ...]:
        """Have systemd read units that are not installed yet; returns what it objects to."""
        with tempfile.TemporaryDirectory(prefix="chump-") as name:
            folder = Path(name)
            # It wants to write there, also while there is no manager of the user's.
            environ = {**self._environ(), "XDG_RUNTIME_DIR": name}
            for unit in units:
                await anyio.to_thread.run_sync((folder / unit.name).write_text, unit.text, "utf-8")
            done = await process.run(
                (
                    "systemd-analyze",
                    *(("--user",) if self.is_user else ()),
                    "--man=no",
                    "verify",
                    *(str(folder / unit.name) for unit in units),
                ),
                cwd="/",
                env=environ,
                timeout=SOON,
            )
            said = (done.err + done.out).decode("utf-8", "replace").splitlines()
            names = [unit.name for unit in units]
            # It also tells of other units that ours has to do with, which are not ours to mend.
            ours = [line for line in said if any(one in line for one in names)]
            if done.code and not ours:
                ours = said or [f"systemd-analyze ended with {done.code}"]
            return tuple(line.replace(f"{folder}/", "") for line in ours)

    async def last_words(self, root: Path, since: datetime) -> str:
        """Return what the service has written since then; empty when that cannot be had."""
        unit, whose = unit_of(root), "USER_" if self.is_user else ""
        # What a process writes right before its end, the journal may not know the unit of.
        matches = (f"_SYSTEMD_{whose}UNIT={unit}", f"{whose}UNIT={unit}", BY_NAME)
        try:
            done = await process.run(
                (
                    *("journalctl", "--user" if self.is_user else "--system", "--quiet"),
                    *("--no-pager", "--output=cat", "--lines=20", f"--since=@{since.timestamp()}"),
                    *" + ".join(matches).split(" "),
                ),
                cwd="/",
                env=self._environ(),
                timeout=SOON,
            )
        except Refused:
            return ""
        return done.out.decode("utf-8", "replace").strip()

    def _environ(self) -> dict[str, str]:
        own = {"LC_ALL": "C", "TZ": "UTC", "SYSTEMD_PAGER": "", "SYSTEMD_COLORS": "0"}
        if self.is_user:
            own["XDG_RUNTIME_DIR"] = str(self.runtime)
        return {**self.environ, **own}


def is_booted() -> bool:
    """Say whether systemd runs this machine."""
    return BOOTED.is_dir()


_PROPERTIES = (
    "LoadState",
    "UnitFileState",
    "ActiveState",
    "SubState",
    "MainPID",
    "StateChangeTimestamp",
    "StatusText",
    "NRestarts",
    "Result",
    "DropInPaths",
    "NeedDaemonReload",
)

_TIMESTAMP = re.compile(r"\w+ (\d{4}-\d{2}-\d{2} \d{2}:\d{2}:\d{2}) UTC")


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() else 0


def _instant(text: str) -> datetime | None:
    found = _TIMESTAMP.fullmatch(text)
    return None if found is None else datetime.fromisoformat(found[1]).replace(tzinfo=UTC)


def credentials_in(folder: Path) -> tuple[Path, ...]:
    """Return the files that are to be handed to a system unit; none when they cannot be seen."""
    try:
        return tuple(sorted(p for p in folder.iterdir() if not p.name.startswith(".")))
    except OSError:
        return ()
