"""The service as it is installed: its file, its PATH, how long it lives."""

from __future__ import annotations

import os
import pwd
import shutil
from collections.abc import Iterable, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path

from chump_orchestrator.adapters.local.launching import find_program
from chump_orchestrator.adapters.process import run
from chump_orchestrator.core.errors import ConfigError, Refused, Unavailable
from chump_orchestrator.doctor.agents import candidates
from chump_orchestrator.doctor.findings import Check, Finding, fail, ok, skip, warn
from chump_orchestrator.doctor.installed import Service
from chump_orchestrator.doctor.subject import Subject, in_thread

LINGERING = Path("/var/lib/systemd/linger")
"""Has a file for each user whose service manager runs without a login."""

PATIENCE = timedelta(seconds=5)
NONE = "no service is installed for this repository"
ANEW = "`chump-orchestrator service install` writes it anew, and shows the difference first"


async def look_at_service(subject: Subject) -> Sequence[Finding]:
    """Look whether the installed service can start at all: its file, program and folder."""
    services = await subject.services()
    if not services:
        return [skip(f"{NONE}; `chump-orchestrator service install` does that")]
    found = []
    for service in services:
        if service.unreadable:
            found.append(warn(service.unreadable, ANEW))
            continue
        found += await in_thread(_judged_file, service)
    readable = [service for service in services if not service.unreadable]
    if len(readable) > 1:
        names = " and ".join(f"{one.name} ({one.scope})" for one in readable)
        text = f"several services are for this repository: {names}"
        found.append(fail(text, "uninstall all but one: only one daemon can have a repository"))
    return found or [ok(f"{readable[0].name}, a {readable[0].scope} service")]


def _judged_file(service: Service) -> list[Finding]:
    unit = service.unit
    program = unit.program[0] if unit.program else ""
    found = []
    if not os.access(program, os.X_OK):
        text = f"{service.name} would start {program or 'nothing'}, which cannot be executed"
        found.append(fail(text, ANEW))
    found += [
        fail(f"{service.name} needs {name}, which is not there", "write it, or remove the line")
        for name, is_needed in unit.environment_files
        if is_needed and not os.path.exists(name)  # noqa: PTH110 - no pattern of ours
    ]
    if service.scope == "system":
        try:
            pwd.getpwnam(service.user)
        except KeyError:
            if not service.user.isdigit():
                text = f"{service.name} runs as {service.user}, and there is no such user"
                found.append(fail(text, f"useradd --system --create-home {service.user}"))
    return found


async def look_at_path(subject: Subject) -> Sequence[Finding]:
    """Look on the PATH of the installed unit for every program that the daemon needs."""
    service = await subject.service()
    if service is None:
        return [skip(NONE)]
    around = await subject.surroundings()
    path = around.variables.get("PATH", "")
    found = []
    if "PATH" not in service.unit.environment:
        text = f"{service.name} sets no PATH, and its manager's ({path}) lacks folders of users"
        found.append(warn(text, ANEW))
    needed = ["git", *(["gh"] if subject.settings.pulls.use == "gh" else [])]
    for name in needed:
        if not await in_thread(partial(shutil.which, name, path=path)):
            text = f"{name} is not on the PATH of {service.name} ({path})"
            found.append(fail(text, _where(name, subject)))
    try:
        commands = await candidates(subject)
    except ConfigError:
        commands = {}  # a check of its own says what is wrong with the settings
    for backend, (command, variables) in commands.items():
        try:
            await in_thread(find_program, command.programs, str(subject.root), variables)
        except Refused:
            name = Path(command.programs[-1]).name
            text = f"{name}, the agent of {backend}, is not on the PATH of {service.name} ({path})"
            found.append(fail(text, _where(name, subject)))
    found += await in_thread(_judged_folders, path, service)
    return found or [ok(f"git{', gh' if len(needed) > 1 else ''} and agents are on {path}")]


def _where(name: str, subject: Subject) -> str:
    """Say what to do about a program that the service does not find and this shell may."""
    here = shutil.which(name, path=subject.environ.get("PATH", os.defpath))
    return f"this shell finds {here}: {ANEW}" if here else "install it"


def _judged_folders(path: str, service: Service) -> Iterable[Finding]:
    relative = [folder for folder in path.split(":") if not folder.startswith("/")]
    if relative:
        text = f"the PATH of {service.name} has {relative[0]!r}, which is not absolute"
        return [warn(text, ANEW)]
    return []


async def look_at_lingering(subject: Subject) -> Sequence[Finding]:
    """Look whether a user's service lives when nobody is logged in."""
    service = await subject.service()
    if service is None:
        return [skip(NONE)]
    if service.is_launchd or service.scope == "system":
        return [skip("it depends on nobody being logged in")]
    lingers = await _lingers(subject, service.user)
    if lingers is None:
        return [skip("nothing tells whether the user's services outlive their logins")]
    if lingers:
        return [ok(f"services of {service.user} run without a login")]
    text = f"{service.name} ends when {service.user} logs out, and does not start with the machine"
    return [warn(text, f"loginctl enable-linger {service.user}")]


async def _lingers(subject: Subject, user: str) -> bool | None:
    try:
        told = await run(
            ("loginctl", "show-user", user, "--property=Linger", "--value"),
            cwd="/",
            env=subject.environ,
            timeout=PATIENCE,
        )
    except (Refused, Unavailable):
        told = None
    answer = told.out.decode("ascii", "replace").strip() if told is not None else ""
    if answer in ("yes", "no"):
        return answer == "yes"
    # Of a user who is not logged in, it says nothing.
    if not await in_thread(LINGERING.is_dir):
        return None
    return await in_thread((LINGERING / user).exists)


SERVICE = "service"
CHECKS = (
    Check("service", SERVICE, "the installed service can start", look_at_service),
    Check("service-path", SERVICE, "its PATH leads to every program", look_at_path),
    Check("lingering", SERVICE, "it runs without a login", look_at_lingering),
)
