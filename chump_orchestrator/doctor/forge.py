"""GitHub as `gh` sees it in the daemon's environment: there, logged in, and allowed enough."""

from __future__ import annotations

from collections.abc import Sequence

from chump_orchestrator.core.errors import ConfigError, MissingProgram, Refused, Unavailable
from chump_orchestrator.core.gap import on_one_line
from chump_orchestrator.doctor.far_side import Forge
from chump_orchestrator.doctor.findings import Check, Finding, fail, ok, skip, told, warn
from chump_orchestrator.doctor.subject import Subject

OLDEST_GH = (2, 23)
"""The oldest that this version was tried with."""

WHOLE, PUBLIC, WORKFLOWS = "repo", "public_repo", "workflow"
"""Scopes of a classic token, and of `gh auth login`: all repositories, public ones, workflows."""

NOT_ASKED = "pulls.use is not gh"
NO_ANSWER = "GitHub has not answered"

OK_STATUS, UNAUTHORISED, FORBIDDEN, NOT_FOUND = 200, 401, 403, 404


async def look_at_gh(subject: Subject) -> Sequence[Finding]:
    """Look whether `gh` is there, and whether GitHub knows who asks."""
    if subject.settings.pulls.use != "gh":
        return [skip(NOT_ASKED)]
    if reason := await subject.another():
        return [skip(reason)]
    around = await subject.surroundings()
    try:
        forge = await subject.forge()
    except MissingProgram:
        text = f"there is no gh on the PATH of {around.whose}"
        return [fail(text, "install it (https://cli.github.com), or set pulls.use = git")]
    except (ConfigError, Refused, Unavailable) as error:
        return [told(error, "see to it, or set pulls.use = git")]
    if around.sealed and forge.status != OK_STATUS:
        names = ", ".join(around.sealed)
        return [skip(f"only the service manager can tell {names}, with which gh may log in")]
    found = _judged_answer(forge, around.whose)
    version = tuple(int(part) for part in forge.version.split(".")[:2] if part.isdigit())
    if version and version < OLDEST_GH:
        least = ".".join(map(str, OLDEST_GH))
        found.append(warn(f"gh is version {forge.version}", f"install {least} or later"))
    return found or [ok(f"gh {forge.version} is logged in to {forge.repository.host}")]


def _judged_answer(forge: Forge, whose: str) -> list[Finding]:
    host, said = forge.repository.host, on_one_line(forge.said)[:200]
    login = f"run `gh auth login --hostname {host}`, or give the daemon a valid GH_TOKEN"
    match forge.status:
        case 200:
            return []
        case 404:
            text = f"{forge.repository} is not there for whoever gh is logged in as"
            return [fail(text, "see the name, and that the token may read it; or set GH_REPO")]
        case 0 | 401:
            is_login = forge.status == UNAUTHORISED or "auth" in said
            text = f"gh is not logged in, in the environment of {whose}"
            remedy = login if is_login else "see to the network, and to a proxy it may need"
            text = text if is_login else f"gh reaches no GitHub: {said or 'it says nothing'}"
            return [fail(text, remedy)]
        case status:
            text = f"GitHub answers with HTTP {status}: {said or 'nothing else'}"
            return [fail(text, login if status == FORBIDDEN else "ask again later")]


async def look_at_scopes(subject: Subject) -> Sequence[Finding]:
    """Look at what the token and the repository allow."""
    if subject.settings.pulls.use != "gh":
        return [skip(NOT_ASKED)]
    if reason := await subject.another():
        return [skip(reason)]
    try:
        forge = await subject.forge()
    except (ConfigError, Refused, Unavailable):
        return [skip(NO_ANSWER)]
    if forge.status != OK_STATUS or forge.body is None:
        return [skip(NO_ANSWER)]
    found = _judged_scopes(forge)
    allowed = forge.body.get("permissions")
    if isinstance(allowed, dict) and allowed.get("push") is False:
        text = f"whoever gh is logged in as may not push to {forge.repository}"
        found.append(fail(text, "have that account made a collaborator, or log in as another"))
    if forge.body.get("archived") is True:
        found.append(fail(f"{forge.repository} is archived", "take it out of the archive"))
    if found:
        return found
    scopes = forge.scopes
    shown = f"scopes {', '.join(sorted(scopes))}" if scopes else "a token without scopes"
    return [ok(f"{shown}; pushing to {forge.repository} is allowed")]


def _judged_scopes(forge: Forge) -> list[Finding]:
    scopes, body = forge.scopes, forge.body or {}
    if not scopes:  # a fine-grained token, or an app's, has permissions instead
        return []
    host = forge.repository.host
    if WHOLE not in scopes and not (PUBLIC in scopes and body.get("private") is False):
        text = f"the token's scopes ({', '.join(sorted(scopes))}) do not allow pull requests"
        return [fail(text, f"run `gh auth refresh --hostname {host} --scopes repo,workflow`")]
    if WORKFLOWS not in scopes:
        text = "the token lacks the scope workflow: pushes that touch .github/workflows are refused"
        return [warn(text, f"run `gh auth refresh --hostname {host} --scopes workflow`")]
    return []


FORGE = "forge"
CHECKS = (
    Check("gh", FORGE, "gh is there and logged in", look_at_gh, limit_s=60.0),
    Check("gh-scopes", FORGE, "its token may push and open requests", look_at_scopes, limit_s=60.0),
)
