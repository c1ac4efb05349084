"""A launchd of its own for one test, and the `launchctl` that asks it, on any POSIX system.

    launchctl.py bootstrap DOMAIN FILE | bootout JOB | kill SIGNAL JOB | enable JOB | print JOB

Does what launchd.plist(5) and launchctl(1) say of what our property list uses: an environment of
its own, nothing expanded, a process group that is killed with its job unless it is abandoned,
KeepAlive by the exit status, no start sooner than ThrottleInterval after the last, and KILL after
ExitTimeOut. What it knows lies in the folder of the variable FAKE_LAUNCHD, a file for each job.
Seconds are multiplied by FAKE_LAUNCHD_SCALE.
"""

from __future__ import annotations

import contextlib
import json
import os
import plistlib
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, BinaryIO

NO_SUCH_JOB = 113
"""What launchctl ends with for a job that launchd does not know."""

DEFAULTS = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "SHELL": "/bin/sh", "TMPDIR": "/tmp"}


def main(words: list[str]) -> int:
    verb, *rest = words
    if verb == "enable":
        return 0
    if verb == "bootstrap":
        return _bootstrap(Path(rest[1]))
    job = Job(rest[-1].rpartition("/")[2])
    if not job.exists():
        print("Could not find service", file=sys.stderr)
        return NO_SUCH_JOB
    told = job.told
    if verb == "print":
        print(f"{rest[-1]} = {{\n\tstate = {'running' if told['pid'] else 'waiting'}")
        print(f"\truns = {told['runs']}")
        if told["pid"]:
            print(f"\tpid = {told['pid']}")
        print(f"\tlast exit code = {told['exit']}\n}}")
    elif verb == "kill" and told["pid"]:
        os.kill(told["pid"], signal.Signals[rest[0]])
    elif verb == "bootout":
        os.kill(told["keeper"], signal.SIGTERM)
    return 0


def _bootstrap(file: Path) -> int:
    document = plistlib.loads(file.read_bytes())
    job = Job(document["Label"])
    if job.exists():
        print("Bootstrap failed: 5: Input/output error", file=sys.stderr)
        return 5
    if os.fork() == 0:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):
            os.dup2(null, descriptor)
        job.keep(document)
        os._exit(0)
    until = time.monotonic() + 10
    while not (job.exists() and job.told["runs"]) and time.monotonic() < until:
        time.sleep(0.02)
    return 0


class Job:
    """What is known of a job, kept in a file, and the process that keeps it up."""

    def __init__(self, label: str) -> None:
        self.label = label
        self._file = Path(os.environ["FAKE_LAUNCHD"]) / f"{label}.json"
        self._scale = float(os.environ.get("FAKE_LAUNCHD_SCALE", "1"))
        self._ends: list[int] = []

    def exists(self) -> bool:
        return self._file.exists()

    def is_ending(self) -> bool:
        return bool(self._ends)

    @property
    def told(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._file.read_text())
        return found

    def _tell(self, **facts: object) -> None:
        told = (
            self.told if self.exists() else {"pid": 0, "runs": 0, "exit": "(never exited)"}
        ) | facts
        temporary = self._file.with_suffix(".new")
        temporary.write_text(json.dumps(told))
        temporary.replace(self._file)

    def keep(self, document: dict[str, Any]) -> None:
        """Start the job, and again, until it need not be or the job is booted out."""
        signal.signal(signal.SIGTERM, self._end)
        self._tell(keeper=os.getpid())
        while not self.is_ending():
            begun = time.monotonic()
            code = self._run_once(document)
            keeps = document.get("KeepAlive", False)
            if isinstance(keeps, dict):
                keeps = (code == 0) == keeps["SuccessfulExit"]
            if not keeps:
                while not self.is_ending():
                    signal.pause()
            due = begun + document.get("ThrottleInterval", 10) * self._scale
            while not self.is_ending() and time.monotonic() < due:
                time.sleep(0.02)
        self._file.unlink()

    def _end(self, number: int, *_: object) -> None:
        self._ends.append(number)

    def _run_once(self, document: dict[str, Any]) -> int:
        with (
            Path(document["StandardOutPath"]).open("ab") as out,
            Path(document["StandardErrorPath"]).open("ab") as err,
        ):
            process = _started(document, out, err)
        self._tell(pid=process.pid, runs=self.told["runs"] + 1)
        patience = document.get("ExitTimeOut", 20) * self._scale
        told_to_end = None
        while process.poll() is None:
            now = time.monotonic()
            if self.is_ending() and told_to_end is None:
                told_to_end = now
                process.terminate()
            if told_to_end is not None and now - told_to_end > patience:
                process.kill()
            time.sleep(0.02)
        if not document.get("AbandonProcessGroup", False):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        self._tell(pid=0, exit=process.returncode)
        return process.returncode


def _started(document: dict[str, Any], out: BinaryIO, err: BinaryIO) -> subprocess.Popen[bytes]:
    files = document.get("SoftResourceLimits", {}).get("NumberOfFiles")
    if files is not None:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(files, hard), hard))
    return subprocess.Popen(
        document["ProgramArguments"],
        env={
            **DEFAULTS,
            "HOME": os.environ["HOME"],
            "USER": "somebody",
            "LOGNAME": "somebody",
            **{k: v for k, v in os.environ.items() if k.startswith("TEST_")},
            **document.get("EnvironmentVariables", {}),
        },
        cwd=document.get("WorkingDirectory", "/"),
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=err,
        process_group=0,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
