"""What the service of a repository is called: by its folder, and by a hash that keeps it apart."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

LONGEST_NAME = 40
"""Characters of a folder's name; those of a unit, its suffix included, may be 255."""

HASH_DIGITS = 6

UNIT_PATTERN = "chump-orchestrator@*.service"
"""The units of all repositories, for `systemctl` and for looking into folders."""

SLICE = "chump-agents.slice"


def instance_of(root: Path) -> str:
    """Return what tells one repository from all others of this machine, `my-repo-3f9a1c`.

    It depends on the repository's path alone, links resolved, and not on what else is installed.
    """
    path = os.path.realpath(root)
    name = re.sub(r"[^A-Za-z0-9]+", "-", Path(path).name).strip("-")[:LONGEST_NAME].strip("-")
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:HASH_DIGITS]
    return f"{name or 'repository'}-{digest}"


def unit_of(root: Path) -> str:
    """Return the name of the unit; a drop-in of `chump-orchestrator@.service` holds for all."""
    return f"chump-orchestrator@{instance_of(root)}.service"


def label_of(root: Path) -> str:
    """Return the label of the LaunchAgent."""
    return f"dev.chump.orchestrator.{instance_of(root)}"
