"""A survey of a made-up repository, for rendering units of it."""

from __future__ import annotations

from typing import Any

from chump_orchestrator.service.survey import Survey


def a_survey(root: str = "/home/dev/my repo", *, home: str = "/home/dev", **fields: Any) -> Survey:
    """Return one of a repository in which nothing is wrong, with `fields` on top."""
    known: dict[str, Any] = {
        "path": (f"{home}/.local/bin", "/usr/local/bin", "/usr/bin", "/bin"),
        "found": (("git", "/usr/bin/git"),),
        "places": (home, root),
        "missing": (),
        "wrong": "",
        "lacking": (),
        "paused": False,
        "holder": 0,
        "running": 0,
        "log": "",
        "systemd": 252,
        "control": f"{root}/.chump/orchestrator/control.sock",
    }
    return Survey(root=root, home=home, **(known | fields))
