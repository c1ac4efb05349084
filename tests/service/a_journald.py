"""A real journald of its own, without the rest of systemd, and programs whose stderr leads to it.

It runs in a mount namespace in which `/run` and `/var/log` are empty. What it has stored goes with
it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

JOURNALD = Path("/lib/systemd/systemd-journald")
MACHINE_ID = Path("/etc/machine-id")

BEGIN = """\
for place in /run /var/log; do mount -t tmpfs -o mode=755 tmpfs $place; done
mkdir -p /run/systemd/journal /run/log/journal
mkdir -p /run/systemd/journald.conf.d
cat > /run/systemd/journald.conf.d/test.conf <<END
[Journal]
Storage=volatile
ReadKMsg=no
Audit=no
RateLimitBurst=0
ForwardToSyslog=no
ForwardToWall=no
END
exec 3>&1
"$1" >&2 3>&- &
journald=$!
tries=0
until test -S /run/systemd/journal/socket && test -S /run/systemd/journal/stdout; do
    kill -0 $journald
    tries=$((tries + 1))
    test $tries -lt 500
    sleep 0.02
done
echo there
exec 3>&-
read -r _ || :
kill $journald
wait $journald || :
"""
"""Until its standard input ends, the journal is there."""

LEADING_THERE = 'JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2) exec "$@"'
"""What the first process does for a service: says where its stderr leads."""


def objection() -> str:
    """Say why there can be no such journal here; empty when there can."""
    if sys.platform != "linux":
        return "needs Linux"
    if os.geteuid() != 0:
        return "needs to be root"
    if not JOURNALD.exists():
        return "systemd-journald is not installed"
    if not MACHINE_ID.exists() or not MACHINE_ID.read_text().strip():
        return "/etc/machine-id is empty"
    wanted = ("unshare", "nsenter", "systemd-cat", "journalctl")
    if missing := [name for name in wanted if not shutil.which(name)]:
        return f"{missing[0]} is not installed"
    trial = subprocess.run(
        ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/run"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"nothing can be mounted: {trial.stderr.strip()}" if trial.returncode else ""


class Journald:
    """One such journal; `running` makes one."""

    def __init__(self, shell: subprocess.Popen[str]) -> None:
        self._shell = shell

    @classmethod
    @contextlib.contextmanager
    def running(cls) -> Iterator[Journald]:
        """Have a journal."""
        shell = subprocess.Popen(
            ["unshare", "--mount", "sh", "-ec", BEGIN, "journal", str(JOURNALD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert shell.stdin is not None
        assert shell.stdout is not None
        try:
            assert shell.stdout.readline() == "there\n"
            yield cls(shell)
        finally:
            shell.stdin.close()
            shell.stdout.close()
            shell.wait(60)

    def run(
        self, *argv: str, cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end that sees this journal."""
        return subprocess.run(
            ["nsenter", "--target", str(self._shell.pid), "--mount", "--", *argv],
            # nsenter goes to the root of that namespace, and so takes the way back by itself.
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def serve(self, *argv: str, cwd: Path) -> int:
        """Run a program as a service does, its streams leading to this journal; return its exit."""
        where = ("env", "-C", str(cwd))
        cat = ("systemd-cat", "-t", "python", "sh", "-c", LEADING_THERE, "sh")
        done = self.run(*where, *cat, *argv)
        assert done.stdout == ""
        return done.returncode

    def records(self, *matches: str) -> list[dict[str, Any]]:
        """Return what `journalctl` finds with these arguments, oldest first."""
        self.run("journalctl", "--sync")
        done = self.run("journalctl", "--quiet", "--no-pager", "-o", "json", "--all", *matches)
        assert done.returncode in (0, 1), done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]
