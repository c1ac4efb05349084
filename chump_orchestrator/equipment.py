"""What agents are given of the environment, and what the daemon ships their work with (D5, P9)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from chump_orchestrator import config, plugins

if TYPE_CHECKING:
    from chump_orchestrator.adapters.git import Git
    from chump_orchestrator.config import Loaded, Settings
    from chump_orchestrator.core.shipping import Shipper

NO_HELPER = ("credential.helper", "")
"""The last entry that git reads of helpers: it takes back every one that files have named."""

NO_UPKEEP = (("gc.auto", "0"), ("maintenance.auto", "false"))
"""Entries with which no command of git begins an upkeep of the repository."""

WITHOUT_CREDENTIALS = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ASKPASS": "",
    "GIT_SSH_COMMAND": "ssh -F /dev/null -o BatchMode=yes -o IdentityAgent=none"
    " -o IdentitiesOnly=yes -o IdentityFile=/dev/null",
    "GH_CONFIG_DIR": "/nonexistent",
}
"""Keeps git and `gh` of an agent from the logins in its home, as far as variables can (P9).

It runs as the same user and can set them anew: this keeps an agent from pushing by habit, not by
intent.
"""


def is_daemon_shipping(settings: Settings) -> bool:
    """Whether agents have the daemon ship for them."""
    return str(settings.ship.by) == "daemon"


def environment_of_agents(
    settings: Settings, environ: Mapping[str, str]
) -> Callable[[tuple[str, ...]], Mapping[str, str]]:
    """Return what gives an agent its variables, by the patterns of its backend (behaviour D5)."""

    def environment(more: tuple[str, ...]) -> Mapping[str, str]:
        patterns = (*settings.pass_env, *more)
        if is_daemon_shipping(settings):
            return config.environment_without_forge(environ, patterns)
        return config.agent_environment(environ, (*config.FORGE_VARIABLES, *patterns))

    return environment


def overlay_of_agents(settings: Settings) -> Mapping[str, str]:
    """Return the variables that are set for every agent, over what it is given.

    What `pass_env` names at top level stays as the operator has it.
    """
    if not is_daemon_shipping(settings):
        return identity(settings)
    sealing = {
        name: value
        for name, value in WITHOUT_CREDENTIALS.items()
        if not config.passes_forge(name, settings.pass_env)
    }
    return {**identity(settings, NO_HELPER), **sealing}


def identity(settings: Settings, *more: tuple[str, str]) -> dict[str, str]:
    """Return the variables that say whom commits are by, and that nobody is asked to sign them.

    What git does in the background is kept from it as well: it would be ended with the agent, and
    the daemon sees to it. `more` are keys and values of git's own configuration that outrank its
    files, too.
    """
    by = settings.commits
    named = {"NAME": by.author_name, "EMAIL": by.author_email}
    found = {
        f"GIT_{role}_{what}": value
        for role in ("AUTHOR", "COMMITTER")
        for what, value in named.items()
        if value
    }
    # Who signs may have git's settings handed on from the daemon's own environment instead.
    unsigned = () if by.sign else (("commit.gpgsign", "false"),)
    upkeep = () if by.sign and "GIT_CONFIG_COUNT" in settings.pass_env else NO_UPKEEP
    entries = [*unsigned, *upkeep, *more]
    for number, (key, value) in enumerate(entries):
        found |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    return {**found, "GIT_CONFIG_COUNT": str(len(entries))} if entries else found


def shipper(root: Path, loaded: Loaded, git: Git, environ: Mapping[str, str]) -> Shipper | None:
    """Make who ships, by the name of the provider of pull requests.

    `None` where none is installed under that name and nobody needs one. `ConfigError` where agents
    rely on it.
    """
    settings = loaded.settings
    name = settings.pulls.use
    if not is_daemon_shipping(settings) and name not in plugins.installed("shippers"):
        return None
    ship = settings.ship
    made: Shipper = plugins.make(
        "shippers",
        name,
        {
            "git": git,
            "env": environ,
            "base_ref": settings.base_ref,
            "forbidden": ship.forbidden_paths,
            "always": _our_places(root, settings),
            "secrets": config.hidden(loaded),
            "allow": ship.allow,
            "commits": str(ship.uncommitted) == "commit",
            "identity": identity(settings),
            "draft": ship.draft,
            "labels": ship.labels,
            "auto_merge": str(ship.auto_merge),
        },
    )
    return made


def _our_places(root: Path, settings: Settings) -> tuple[str, ...]:
    """Return patterns of what the orchestrator keeps in the repository, whatever settings say."""
    places = [
        settings.state.dir,
        settings.leases.dir,
        settings.worktrees.base,
        f"{settings.journal.reflections}*",
        f"{settings.journal.routing}*",
        config.FILE.as_posix(),
        settings.secrets.file,
        settings.log.file,
    ]
    inside = []
    for place in filter(None, places):
        path = Path(place)
        if path.is_absolute() and path.is_relative_to(root):
            path = path.relative_to(root)
        if not path.is_absolute():
            inside.append(f"/{path.as_posix()}")
    return tuple(inside)
