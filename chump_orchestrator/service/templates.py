"""The files of `systemd/` and `launchd/`, which the program ships and fills in.

In a checkout they lie at its top level, in an installed package beside this module: they are the
same files, put there by the build.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from chump_orchestrator.core.errors import ConfigError

USER_UNIT = "systemd/chump-orchestrator@.service"
SYSTEM_UNIT = "systemd/chump-orchestrator-system@.service"
SLICE = "systemd/chump-agents.slice"
LAUNCH_AGENT = "launchd/dev.chump.orchestrator.plist"

_HERE = Path(__file__).parent
_PLACEHOLDER = re.compile(r"@([A-Z]+(?:_[A-Z]+)*)@")
_ALONE = re.compile(r"^([ \t]*)@([A-Z]+(?:_[A-Z]+)*)@\n", re.MULTILINE)


def read(name: str) -> str:
    """Return a template as it is shipped; `ConfigError` when the installation lacks it."""
    for folder in (_HERE, _HERE.parent.parent):
        path = folder / name
        if path.is_file():
            return path.read_text("utf-8")
    raise ConfigError(
        f"this installation lacks {name}; install chump-orchestrator anew, from a wheel or from a"
        " checkout"
    )


def filled(template: str, values: Mapping[str, str]) -> str:
    """Return a template with its placeholders filled in, each by a value in quotes already.

    A line that is a placeholder and nothing else becomes a line for each of its value, none when
    that is empty. A placeholder without a value is a bug, a `KeyError`.
    """

    def line(found: re.Match[str]) -> str:
        lines = values[found[2]].splitlines()
        return "".join(f"{found[1]}{line}\n" for line in lines)

    return _PLACEHOLDER.sub(lambda found: values[found[1]], _ALONE.sub(line, template))
