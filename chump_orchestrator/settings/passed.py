"""Which variables of the environment reach an agent (behaviour D5)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase, translate
from functools import lru_cache

AGENT_VARIABLES = (  # noqa: SIM905 - a line for each would hide the whole
    "PATH HOME USER LOGNAME SHELL LANG LC_* TZ TERM SSL_CERT_* NODE_EXTRA_CA_CERTS *_PROXY "
    "*_proxy XDG_* DBUS_SESSION_BUS_ADDRESS SSH_AUTH_SOCK GNUPGHOME CARGO_HOME RUSTUP_HOME "
    "RUSTUP_TOOLCHAIN JAVA_HOME SDKMAN_DIR GRADLE_USER_HOME MAVEN_HOME ANDROID_HOME "
    "ANDROID_SDK_ROOT DOTNET_ROOT GOPATH GOROOT NVM_DIR FNM_DIR VOLTA_HOME PNPM_HOME "
    "BUN_INSTALL DENO_DIR PYENV_ROOT RBENV_ROOT GEM_HOME ASDF_DIR ASDF_DATA_DIR MISE_DATA_DIR"
).split()
"""What every agent gets of the orchestrator's environment."""

FORGE_VARIABLES = ("GH_*", "GITHUB_TOKEN", "GIT_SSH_COMMAND", "GIT_SSL_CAINFO")
"""What an agent gets on top while it ships for itself (behaviour D5)."""

FORGE_ACCESS = (*FORGE_VARIABLES, "GITHUB_*TOKEN", "GITLAB_*TOKEN", "GIT_ASKPASS", "SSH_*")
"""What an agent does not get while the daemon ships for it (behaviour P9)."""

NEVER_PASSED = (  # noqa: SIM905 - a line for each would hide the whole
    "NOTIFY_SOCKET WATCHDOG_* LISTEN_* MAINPID INVOCATION_ID JOURNAL_STREAM LD_* DYLD_* "
    "PYTHON* CHUMP_DISPATCH_* CHUMP_SESSION_ID CHUMP_PICKER_* CHUMP_FAULT_INJECT "
    "CREDENTIALS_DIRECTORY "
    "CHUMP_CRASH_AT CHUMP_LOG_FILE CHUMP_CLAUDE_BIN CHUMP_LOCAL_BIN"
).split()
"""What no agent gets: the service manager's, the loader's, and the orchestrator's own."""


def passed_complaint(text: str) -> str | None:
    """Say why `text` cannot say which variables are passed, or `None`."""
    if not re.fullmatch(r"[A-Za-z_*][A-Za-z0-9_*]*", text, re.ASCII):
        return "this is no name of a variable"
    if text.startswith("GIT_") and "*" in text:
        return "variables of git are passed only one by one"
    if any(text.startswith(n.rstrip("*")) if n.endswith("*") else text == n for n in NEVER_PASSED):
        return "this is never passed to an agent"
    return None


def is_never_passed(name: str) -> bool:
    """Say whether no agent gets the variable `name`, whoever asks for it."""
    return _fits(tuple(NEVER_PASSED))(name) is not None


def agent_environment(variables: Mapping[str, str], patterns: Iterable[str] = ()) -> dict[str, str]:
    """Return what an agent gets of `variables` (behaviour D5), before ours is set on top.

    `patterns` are names, or names with `*`, beyond those that every agent gets. Variables of git
    are passed only when named in full, some of the service manager's and our own never.
    """
    wanted = (*AGENT_VARIABLES, *patterns)
    fits = _fits(wanted)

    def is_passed(name: str) -> bool:
        if is_never_passed(name):
            return False
        if name.startswith("GIT_"):
            return name in wanted
        return fits(name) is not None

    return {name: value for name, value in variables.items() if is_passed(name)}


@lru_cache(maxsize=64)
def _fits(patterns: tuple[str, ...]) -> Callable[[str], re.Match[str] | None]:
    """Return what matches the names that fit one of `patterns`: this is asked at each launch."""
    return re.compile("|".join(map(translate, patterns))).match


def names_forge_access(pattern: str) -> bool:
    """Say whether a pattern of `pass_env` is meant for what gives access to a forge.

    `*` and other patterns that only happen to fit it are not.
    """
    return any(fnmatchcase(pattern.replace("*", "_"), access) for access in FORGE_ACCESS)


def passes_forge(name: str, patterns: Iterable[str]) -> bool:
    """Say whether patterns of `pass_env` hand on a variable `name` that gives such access."""
    return any(names_forge_access(p) and fnmatchcase(name, p) for p in patterns)


def environment_without_forge(
    variables: Mapping[str, str], patterns: Iterable[str] = ()
) -> dict[str, str]:
    """Return what an agent gets that does not ship: what gives access to a forge only by name."""
    wanted = tuple(patterns)
    return {
        name: value
        for name, value in agent_environment(variables, wanted).items()
        if not any(fnmatchcase(name, access) for access in FORGE_ACCESS)
        or passes_forge(name, wanted)
    }
