"""Nothing that can take long is done on the daemon's loop."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.e2e.projects import Make, gaps

MOMENTS = {
    # The program's own files and the kernel's, which no disk keeps waiting; microseconds each.
    "plugins.py installed": "which plug-ins are installed, once for each kind",
    "shim/cgroup.py _seen": "a path is made absolute, without looking at it",
    "adapters/local/cgroups.py _lingers": "whether systemd keeps the user's manager, in /var/lib",
    "adapters/local/cgroups.py <genexpr>": "whether a control group may be written, in /sys",
    "adapters/local/standby.py start": "asyncio reads whether the shim could be executed",
    "daemon/control.py _identity": "whose socket this is, at the end",
    "daemon/control.py serve": "the socket goes, at the end",
}

LOCKS = "lock.acquire"
"""Held for microseconds by threads that hand a result over, or pass a file on."""


def test_nothing_on_the_loop_waits_for_a_disk_or_a_program(make: Make) -> None:
    """Control: a read of the backlog on the loop is told, as the test below shows."""
    project = make(gaps(*(f"A-{number}" for number in range(1, 7))), slots=3)
    told = watched(project.root, project.folder)

    assert told["shipped"] == [f"A-{number}" for number in range(1, 7)]
    odd = {(name, where) for name, where in told["calls"] if where not in MOMENTS}
    assert {one for one in odd if one[0] != LOCKS} == set()


def test_what_waits_for_a_disk_is_noticed(make: Make) -> None:
    project = make(gaps("A-1"))
    change = (
        "import os\n"
        "from chump_orchestrator.adapters.worktrees.dispatches import GitWorktrees\n"
        "theirs = GitWorktrees._entries\n"
        "async def entries(self):\n"
        "    os.listdir(self._git.common_dir)\n"
        "    return await theirs(self)\n"
        "GitWorktrees._entries = entries\n"
    )
    told = watched(project.root, project.folder, change)

    where = {place for name, place in told["calls"] if name == "os.listdir"}
    assert any(place.startswith("adapters/worktrees/dispatches.py") for place in where)


def watched(root: Path, folder: Path, change: str = "") -> dict[str, Any]:
    output = folder / "calls.json"
    script = folder / "watched.py"
    script.write_text(
        f"{change}import sys\nfrom pathlib import Path\n"
        "from tests.e2e.watched_loop import main\n"
        "main(Path(sys.argv[1]), Path(sys.argv[2]))\n"
    )
    here = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, str(script), str(root), str(output)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(here)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(output.read_text())
    return found
