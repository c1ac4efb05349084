"""The agents: their programs and logins as the daemon would find them, and what they may do."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from chump_orchestrator import premises
from chump_orchestrator.adapters.local.launching import find_program
from chump_orchestrator.adapters.process import run
from chump_orchestrator.core.dispatch import Command
from chump_orchestrator.core.errors import Refused, Unavailable
from chump_orchestrator.core.gap import Gap
from chump_orchestrator.core.routing import Route, RoutePolicy
from chump_orchestrator.decisions import BYPASSING, reachable
from chump_orchestrator.doctor.findings import Check, Finding, fail, ok, skip, warn
from chump_orchestrator.doctor.installed import Surroundings
from chump_orchestrator.doctor.subject import Subject, in_thread
from chump_orchestrator.equipment import environment_of_agents

PATIENCE = timedelta(seconds=20)
"""For an agent to tell its version or login; one written in a slow language takes a second."""

CLAUDE_KEYS = (
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_AUTH_TOKEN",
    "CLAUDE_CODE_OAUTH_TOKEN",
    "CLAUDE_CODE_USE_BEDROCK",
    "CLAUDE_CODE_USE_VERTEX",
    "CLAUDE_CODE_USE_FOUNDRY",
)
"""Variables with any of which claude needs no login of its own."""

_ANY_GAP = Gap("DOCTOR-1", title="A gap that is never dispatched")


def command_of(subject: Subject, backend: str, route: Route) -> Command:
    """Return the command of a backend for no gap in particular; `ConfigError` when it has none."""
    return premises.backend(subject.settings, backend).command(_ANY_GAP, route, "")


async def candidates(subject: Subject) -> dict[str, tuple[Command, Mapping[str, str]]]:
    """Return the command and the environment of each backend that some gap may go to."""
    around, routed = await subject.surroundings(), await subject.routes()
    found: dict[str, tuple[Command, Mapping[str, str]]] = {}
    for backend in sorted(reachable(routed)):
        command = command_of(subject, backend, _route_to(backend, routed))
        given = environment_of_agents(subject.settings, around.variables)(command.pass_env)
        variables = {**given, **command.env}
        found[backend] = command, variables
    return found


def _route_to(backend: str, routed: RoutePolicy) -> Route:
    rows = (*(rule.candidates for rule in routed.table.rules), routed.table.default_candidates)
    every = (routed.override, *(one for row in rows for one in row), routed.default)
    return next(one for one in every if one is not None and one.backend == backend)


async def look_at_programs(subject: Subject) -> Sequence[Finding]:
    """Look for each agent's program as a launch does, and have claude tell its version."""
    around = await subject.surroundings()
    found = []
    for backend, (command, variables) in (await candidates(subject)).items():
        try:
            program = await in_thread(find_program, command.programs, str(subject.root), variables)
        except Refused:
            tried = ", ".join(command.programs)
            text = f"{backend}: there is no program for {around.whose}, tried {tried}"
            remedy = f"install it there, or set backend.{backend}.program to its whole path"
            found.append(fail(text, remedy))
            continue
        version = ""
        # As another user it would find, and perhaps leave, things in that user's home.
        if Path(program).name == "claude" and not await subject.another():
            version = await _version(program, variables)
            if not version:
                text = f"{backend}: {program} does not tell its version, so it may not run"
                found.append(fail(text, f"see what `{program} --version` says"))
                continue
        found.append(ok(f"{backend}: {program}{version and f', version {version}'}"))
    return found


async def _version(program: str, variables: Mapping[str, str]) -> str:
    try:
        told = await run((program, "--version"), cwd="/", env=variables, timeout=PATIENCE)
    except (Refused, Unavailable):
        return ""
    version = re.search(r"\d+(?:\.\d+)+", told.out.decode("utf-8", "replace"))
    return version[0] if told.code == 0 and version else ""


async def look_at_logins(subject: Subject) -> Sequence[Finding]:
    """Look whether each agent has what it needs to reach its model; no model is called."""
    if reason := await subject.another():
        return [skip(reason)]
    around, routed = await subject.surroundings(), await subject.routes()
    found = []
    for backend, (command, variables) in (await candidates(subject)).items():
        if backend == "claude":
            found.append(await _login_of_claude(subject, variables, around.sealed, around.whose))
        elif backend == "chump-local":
            found.append(_keys_of_providers(routed, around))
        else:
            name = Path(command.programs[0]).name
            found.append(skip(f"{backend}: how {name} logs in is not known here"))
    return found


async def _login_of_claude(
    subject: Subject, variables: Mapping[str, str], sealed: Sequence[str], whose: str
) -> Finding:
    if key := next((name for name in CLAUDE_KEYS if variables.get(name)), ""):
        return ok(f"claude: {key} is set")
    if key := next((name for name in CLAUDE_KEYS if name in sealed), ""):
        return ok(f"claude: the service manager sets {key}")
    remedy = (
        "run `claude auth login` as the user of the daemon, or hand it CLAUDE_CODE_OAUTH_TOKEN"
        " (claude setup-token) or ANTHROPIC_API_KEY as a secret"
    )
    names = (subject.settings.backend.of("claude").program or "claude", "claude")
    # A wrapper of the repository's would not know the question.
    wanted = tuple(dict.fromkeys(name for name in names if Path(name).name == "claude"))
    try:
        program = await in_thread(find_program, wanted, str(subject.root), variables)
        asked = (program, "auth", "status", "--json")
        told = await run(asked, cwd="/", env=variables, timeout=PATIENCE)
        answer = _object(told.out)
    except (Refused, Unavailable):
        return skip("claude: there is none to ask whether it is logged in")
    if answer.get("loggedIn") is True:
        return ok(f"claude: logged in ({answer.get('authMethod') or 'it does not say how'})")
    if answer.get("loggedIn") is False:
        return fail(f"claude: not logged in, in the environment of {whose}", remedy)
    home = Path(variables.get("HOME") or "/")
    if await in_thread(os.path.exists, home / ".claude" / ".credentials.json"):
        return ok(f"claude: {home}/.claude has credentials")
    return warn(f"claude: nothing tells of a login, in the environment of {whose}", remedy)


def _keys_of_providers(routed: RoutePolicy, around: Surroundings) -> Finding:
    rows = (*(rule.candidates for rule in routed.table.rules), routed.table.default_candidates)
    every = [one for row in rows for one in row] + [routed.override or routed.default]
    prefixes = {one.provider_pfx or "OPENAI" for one in every if one.backend == "chump-local"}
    wanted = {f"{prefix}_API_KEY" for prefix in prefixes}
    given = {name for name, value in around.variables.items() if value} | {*around.sealed}
    if missing := sorted(wanted - given):
        text = f"chump-local: {', '.join(missing)} is not set in the environment of {around.whose}"
        return warn(text, "hand it to the daemon as a secret, unless the server needs none")
    return ok(f"chump-local: {', '.join(sorted(wanted))} is set")


def _object(data: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


async def look_at_root(subject: Subject) -> Sequence[Finding]:
    """Look whether agents would bypass their prompts as root."""
    bypassing = sorted(BYPASSING & reachable(await subject.routes()))
    service, around = await subject.service(), await subject.surroundings()
    user = str(os.geteuid()) if service is None else service.user
    if user not in ("0", "root"):
        return [ok("agents do not run as root")]
    if not bypassing:
        text = "agents would run as root"
        return [warn(text, "run the daemon as a user of its own")]
    if around.variables.get("IS_SANDBOX") == "1":
        text = f"{bypassing[0]} would act as root without asking; IS_SANDBOX=1 lets it"
        return [warn(text, "see that this machine is nothing but a sandbox")]
    text = f"{bypassing[0]} refuses to act without asking as root"
    remedy = "run the daemon as a user of its own; in a throw-away sandbox, set IS_SANDBOX=1"
    return [fail(text, remedy)]


async def look_at_consent(subject: Subject) -> Sequence[Finding]:
    """Look whether the operator has agreed to agents that act without asking (behaviour A5)."""
    bypassing = sorted(BYPASSING & reachable(await subject.routes()))
    if not bypassing:
        return [ok("no backend needs it")]
    if subject.settings.consent:
        return [ok(f"{bypassing[0]} may act without asking ({subject.loaded.origins['consent']})")]
    text = f"nobody has agreed that {bypassing[0]} acts here without asking"
    return [fail(text, "run `chump-orchestrator init --yes`, once you do")]


AGENTS = "agents"
CHECKS = (
    Check("agent", AGENTS, "the programs of agents are there", look_at_programs, limit_s=60.0),
    Check("agent-login", AGENTS, "agents can log in", look_at_logins, limit_s=60.0),
    Check("root", AGENTS, "no agent bypasses its prompts as root", look_at_root),
    Check("consent", AGENTS, "the operator agreed to that bypass", look_at_consent),
)
