"""From a fork to an agent: the few steps between, and how one of them failing is told.

The child blocks on a barrier until it is on record. When the shim dies before that, the barrier
reads as ended and the child leaves: no agent ever runs unrecorded.
"""

import errno
import os
import signal
import sys

from chump_orchestrator.shim.order import Order, Secrets
from chump_orchestrator.shim.regardless import Regardless

if sys.platform == "linux":
    from chump_orchestrator.shim import linux as host
else:
    from chump_orchestrator.shim import macos as host

_GO = b"g"
_NOT_STARTED = 127
_STDIN, _STDOUT, _STDERR = 0, 1, 2


class SpawnError(Exception):
    """The agent could not be started; `number` is the errno, the text says what and why."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number


class Child:
    """A forked child, and the shim's ends of its pipes."""

    def __init__(self, pid: int, barrier: int, verdict: int, stdout: int, stderr: int) -> None:
        self.pid = pid
        self.stdout = stdout
        self.stderr = stderr
        self.verdict = verdict
        """Ends without a word when the agent is executing; a failure is written there first."""
        self._barrier = barrier

    def release(self) -> None:
        """Let the child become the agent."""
        with Regardless(OSError):
            os.write(self._barrier, _GO)
        self.abandon()

    def abandon(self) -> None:
        """Close the barrier: a child that was not released leaves."""
        os.close(self._barrier)

    def read_verdict(self) -> SpawnError | None:
        """Why there is no agent, or `None` if there is one. Waits until that is known; once."""
        told = b""
        while piece := os.read(self.verdict, 4096):
            told += piece
        os.close(self.verdict)
        number, _, message = told.decode("utf-8", "replace").partition(" ")
        return SpawnError(int(number), message) if told else None


def fork(order: Order, secrets: Secrets, umask: int) -> Child:
    """Fork the child that is to become the agent, with the umask that the agent gets.

    Raises `SpawnError` when the machine has no process or descriptor left.
    """
    pipes: list[int] = []
    try:
        for _ in range(4):
            pipes += os.pipe()
        shim = os.getpid()
        # Nothing may reach the handlers of the shim in the child.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            pid = os.fork()
            if pid == 0:
                _become_agent(order, secrets, umask, shim, pipes)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    except OSError as error:
        for fd in pipes:
            os.close(fd)
        raise SpawnError(error.errno or errno.EAGAIN, f"cannot fork: {error.strerror}") from error
    barrier_end, barrier, verdict, verdict_end, stdout, stdout_end, stderr, stderr_end = pipes
    for fd in (barrier_end, verdict_end, stdout_end, stderr_end):
        os.close(fd)
    return Child(pid, barrier, verdict, stdout, stderr)


def _become_agent(order: Order, secrets: Secrets, umask: int, shim: int, pipes: list[int]) -> None:
    """The child's side of the fork; never returns."""
    barrier, barrier_write, _, verdict, _, stdout, _, stderr = pipes
    step = "cannot prepare"
    try:
        signal.set_wakeup_fd(-1)
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            with Regardless(OSError):
                signal.signal(number, signal.SIG_DFL)
        os.setsid()
        host.die_with_parent(shim)
        host.go_first()
        os.close(barrier_write)
        if os.read(barrier, 1) != _GO:
            os._exit(_NOT_STARTED)
        step = f"cannot read {os.fsdecode(order.stdin)}"
        os.dup2(os.open(order.stdin, os.O_RDONLY), _STDIN)
        os.dup2(stdout, _STDOUT)
        os.dup2(stderr, _STDERR)
        step = f"cannot enter {os.fsdecode(order.cwd)}"
        os.chdir(order.cwd)
        os.umask(umask)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        step = f"cannot execute {os.fsdecode(order.argv[0])}"
        os.execve(order.argv[0], order.argv, secrets.environment)  # noqa: S606 - no shell, by design
    except BaseException as error:
        # Nothing may unwind into the code of the shim, of which this is a copy.
        code = (error.errno if isinstance(error, OSError) else None) or errno.EINVAL
        reason = error.strerror if isinstance(error, OSError) else str(error)
        os.write(verdict, f"{code} {step}: {reason}".encode("utf-8", "replace"))
    finally:
        os._exit(_NOT_STARTED)
