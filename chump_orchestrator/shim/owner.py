"""The life of one agent, from its order to its record: launch, mind, sweep, tell.

The steps s1 to s11 are those of the shim protocol. Each of them may turn out to be the last, and
recovery can tell from the files which it was. Before the first, the shim detaches itself.
"""

import errno
import math
import os
import signal

from chump_orchestrator.shim.child import Child, SpawnError, fork
from chump_orchestrator.shim.containment import Containment, Unlimited
from chump_orchestrator.shim.control import Control
from chump_orchestrator.shim.detaching import detach
from chump_orchestrator.shim.files import (
    EXIT,
    PASSING,
    RUNNING,
    Leave,
    make_way,
    stamp,
    take_over,
    write_durably,
)
from chump_orchestrator.shim.first_word import tell
from chump_orchestrator.shim.ladder import Ladder
from chump_orchestrator.shim.logs import StreamLog
from chump_orchestrator.shim.order import Order, Secrets, read_order, read_secrets, seconds
from chump_orchestrator.shim.redaction import Redactor
from chump_orchestrator.shim.regardless import Regardless
from chump_orchestrator.shim.stream import Stream
from chump_orchestrator.shim.tree import Tree, adopt_orphans, describe, is_by_term
from chump_orchestrator.shim.turns import LONGEST_TURN_S, READABLE, Turns

_KILLING_S = 5.0
"""How long KILL is repeated before what still lives is called a survivor."""

_KILL_AGAIN_S = 0.05
_LOOK_AGAIN_S = 0.5
_DRAIN_S = 2.0
_FAREWELL_S = 1.0
_RETRY_S = 1.0
_TRIES = 3
"""For a record that no disk is too full for: its folder has gone, say, and comes not back."""

_MEND_S = LONGEST_TURN_S
_LEFT = 75
_MAX_INHERITED = 4096
_DEAF_TO = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def main(argv: list[str]) -> int:
    """Own the agent that the order in `argv[1]`, the directory of a dispatch, is about.

    Gives the exit status: 0 once `exit.json` is durable, 75 when nothing was started. Whoever
    launched the shim sees neither, but the 0 of the process that forked it.
    """
    umask = os.umask(0o077)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in _DEAF_TO:
        signal.signal(number, signal.SIG_IGN)
    os.closerange(3, _MAX_INHERITED)
    try:
        detach()
        secrets = read_secrets()  # started before there was an order, perhaps: nothing until then
        _lock = take_over(argv[1])  # s1, s2; held, as long as the descriptor is open, to the end
        owner = Owner(read_order())
        owner.launch(secrets, umask)
    except Unlimited as why:
        tell({"state": "left", "why": str(why), "is_final": True})
        return _LEFT
    except (Leave, OSError) as why:
        tell({"state": "left", "why": str(why)})
        return _LEFT
    owner.mind()
    return 0


class Owner:
    """Owns one agent: `running`, then `stopping` once it is wanted gone, `sweeping` once it is."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._hard_s = order.hard_s
        self._contained = Containment(order)
        self._turns = Turns()
        self._ladder = Ladder(order.stop_signals, order.grace_s)
        self._tree: Tree | None = None
        self._streams: tuple[Stream, ...] = ()
        self._logs: dict[str, StreamLog] = {}
        self._control: Control | None = None
        self._punctual: tuple[Stream | Control, ...] = ()
        self._spawn_error: SpawnError | None = None
        self._verdict: Child | None = None  # until it is known whether the agent executes
        self._started_at = stamp()
        self._ended_at: str | None = None
        self._ended_s: float | None = None  # the agent's end in active seconds; its zombie stays
        self._gone = False  # and so is everything that it left, or all that could be killed
        self._survivors = 0
        self._stirred = False  # a child may have ended
        self._is_termed = False
        self._running: dict[str, object] = {}
        self._mend_at = 0.0  # when to see that nobody took our files from the folder
        self._again_at = 0.0  # when to look at, or to kill, the processes once more
        self._kill_until = math.inf
        self._drain_until = math.inf
        self._record_at = 0.0
        self._record: dict[str, object] | None = None
        self._tries = _TRIES
        self._leave_at = math.inf

    def launch(self, secrets: Secrets, umask: int) -> None:
        """Steps s3 to s5. Raises `Leave` when nothing was started and nothing recorded."""
        self._listen_to_signals()
        adopt_orphans()
        contained = self._contained
        try:
            child = fork(self._order, secrets, umask)  # s3
            contained.take_in(child.pid)
            try:
                self._running = describe(child.pid, os.getpid()) | contained.told()
                self._running["started_at"] = self._started_at
                self._write(RUNNING, self._running)  # s4
            except OSError as error:
                child.abandon()
                raise Leave(f"cannot write {RUNNING}: {error}") from error
            self._tree = Tree(child.pid, self._order.dispatch, contained.cgroup)
            self._serve(child, secrets)
            child.release()  # s5
        except SpawnError as error:
            self._spawn_error = error
            self._end()
            self._gone = True

    def mind(self) -> None:
        """Steps s6 to s11: until the agent's end is on record."""
        while self._turns.active_s < self._leave_at:
            self._turns.take(self._next_at() - self._turns.active_s)
            self._advance(self._turns.active_s)
            if self._leave_at < math.inf and not (self._control and self._control.clients):
                break

    def answer(self, request: dict[str, object]) -> dict[str, object]:
        """Answer a request from the control socket; `ValueError` or the like for a bad one."""
        match request.get("op"):
            case "status":
                return {"ok": True, "v": 1, **self._status()}
            case "stop":
                reason, at_once = request.get("reason"), request.get("now", False)
                if not isinstance(reason, str) or not reason or not isinstance(at_once, bool):
                    raise ValueError("stop needs a reason; now is true or false")
                self.stop(reason, at_once=at_once)
                return {"ok": True}
            case "deadline":
                hard_s = seconds(request, "hard_s")
                if self._ladder.reason is not None or self._ended_s is not None:
                    raise ValueError("the agent is being stopped, or has ended")
                self._hard_s = hard_s
                return {"ok": True}
            case op:
                raise ValueError(f"no such operation: {op!r}")

    def stop(self, reason: str, *, at_once: bool = False) -> None:
        """Begin the ladder, or go to its end. An agent that has ended was not stopped by us."""
        now = self._turns.active_s
        self._look(now)
        if self._ended_s is None:
            self._ladder.begin(reason, now)
        if at_once:
            self._ladder.skip_to_the_end(now)
            self._again_at = now

    def _listen_to_signals(self) -> None:
        self._wakes, wake = os.pipe()
        for end in (self._wakes, wake):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        self._turns.watch(self._wakes, READABLE, self._woken)

    def _serve(self, child: Child, secrets: Secrets) -> None:
        sizes = (self._order.head_bytes, self._order.ring_bytes)
        pipes = {"stdout": child.stdout, "stderr": child.stderr}
        self._logs = {name: StreamLog(name, *sizes) for name in pipes}
        self._streams = tuple(
            Stream(name, pipe, self._logs[name], Redactor(secrets.redact), self._turns)
            for name, pipe in pipes.items()
        )
        try:
            self._control = Control(self._turns, self._logs, self.answer)
        except OSError as error:
            child.abandon()
            message = f"cannot listen on the control socket: {error.strerror}"
            raise SpawnError(error.errno or errno.EIO, message) from error
        for stream in self._streams:
            stream.listener = self._control.offer
        self._punctual = (*self._streams, self._control)
        self._verdict = child
        self._turns.watch(child.verdict, READABLE, self._judged)

    def _judged(self, _events: int) -> None:
        """The child executes the agent by now, or has said why it cannot."""
        if self._verdict is None:
            return
        child, self._verdict = self._verdict, None
        self._turns.forget(child.verdict)
        self._spawn_error = child.read_verdict()
        if self._spawn_error is None:
            tell({"state": "running", "pid": child.pid})

    def _woken(self, _events: int) -> None:
        self._stirred = True
        with Regardless(BlockingIOError):
            if signal.SIGTERM in os.read(self._wakes, 4096):
                # Somebody who cannot reach the socket says it twice to have it done at once.
                self.stop("host", at_once=self._is_termed)
                self._is_termed = True

    def _advance(self, now: float) -> None:
        """Do whatever is due by now."""
        for one in self._punctual:
            one.settle()
        if now >= self._mend_at and self._leave_at == math.inf:
            self._mend(now)
        if self._stirred:
            self._stirred = False
            self._again_at = min(self._again_at, now)
            self._look(now)
        if self._tree is not None and not self._gone:
            if self._ended_s is None:
                self._press(self._tree, now)
            elif now >= self._again_at:
                self._sweep(self._tree, now)
        if self._gone and now >= self._record_at and self._leave_at == math.inf:
            self._settle(now)

    def _mend(self, now: float) -> None:
        """Put back what an agent, or a clean-up, has taken from the folder while we live."""
        self._mend_at = now + _MEND_S
        if self._control is None:
            return
        if self._ended_s is None:
            self._contained.mend()
        with Regardless(OSError):
            if not os.path.lexists(RUNNING):
                self._write(RUNNING, self._running)
        self._control.mend()

    def _look(self, now: float) -> None:
        """s7: see whether the agent has ended; bury the orphans that have."""
        if self._tree is None or self._gone:
            return
        self._tree.bury_orphans()
        if self._ended_s is None and self._tree.has_agent_ended():
            self._judged(0)
            self._end()
            self._ladder.leave_grace(now)
            self._again_at = now

    def _end(self) -> None:
        self._ended_s = self._turns.active_s
        self._ended_at = stamp()

    def _press(self, tree: Tree, now: float) -> None:
        """Hold the agent to its deadline, and the ladder to its rungs."""
        if now >= self._hard_s and self._ladder.reason is None:
            self.stop("deadline")
        for number, for_all in self._ladder.due(now):
            if for_all:
                tree.ask_all(number)
            else:
                tree.ask_agent(number)
        if now >= max(self._ladder.kill_at, self._again_at):
            self._again_at = now + _KILL_AGAIN_S
            self._kill_until = min(self._kill_until, now + _KILLING_S)
            tree.kill_all()
            if now >= self._kill_until:
                self._give_up(tree)

    def _sweep(self, tree: Tree, now: float) -> None:
        """s8: TERM to what the agent left, KILL when the grace is over, until nothing lives."""
        killing = now >= self._ladder.kill_at
        self._again_at = min(now + _LOOK_AGAIN_S, self._ladder.kill_at)
        if killing:
            self._again_at = now + _KILL_AGAIN_S
            self._kill_until = min(self._kill_until, now + _KILLING_S)
        if tree.sweep(kill=killing):
            self._gone = True
        elif now >= self._kill_until:
            self._give_up(tree)

    def _give_up(self, tree: Tree) -> None:
        self._survivors = len(tree.living())
        self._gone = True
        if self._ended_s is None:
            self._end()

    def _settle(self, now: float) -> None:
        """s9 to s11: drain what is left in the pipes, write the record, take leave."""
        if self._drain_until == math.inf:
            self._drain_until = now + _DRAIN_S
        if now < self._drain_until and any(stream.is_open for stream in self._streams):
            return
        for stream in self._streams:
            stream.close()
            stream.log.sync()
        if self._record is None:
            self._record = self._sum_up()
        if self._record["killed_by"] is None and is_by_term(self._record):
            # Whoever ends the machine, or our unit, signals all at once: it may be our turn next.
            if self._is_termed:
                self._record["killed_by"] = "host"
            elif now < self._drain_until:
                return
        try:
            self._write(EXIT, self._record)
        except OSError as error:
            # An outcome is never dropped: the lock stays held until the disk takes it. But a
            # folder that has gone never will, and nobody could end us.
            with Regardless(OSError):
                os.write(2, f"cannot write {EXIT}, will try again: {error}\n".encode())
            if error.errno not in PASSING:
                make_way(EXIT)
                self._tries -= 1
            if self._tries > 0:
                self._record_at = now + _RETRY_S
                return
            self._take_leave(now, record=self._record)
            return
        self._take_leave(now)

    def _take_leave(self, now: float, **farewell: object) -> None:
        """s11: say what there is to say, to whoever listens, and go."""
        self._leave_at = now + _FAREWELL_S
        if self._spawn_error is not None:
            why = self._spawn_error
            tell({"state": "spawn_failed", "error": str(why), "errno": why.number})
        if self._control is not None:
            self._control.finish(**farewell)

    def _sum_up(self) -> dict[str, object]:
        """What there is to say about the agent. Reaps it, for only that tells memory and time.

        The sweep is over by now, so no signal can meet whoever gets its pid next.
        """
        ending = self._tree.bury_agent() if self._tree else None
        out_of_memory = self._contained.out_of_memory()
        if self._tree is not None:
            self._tree.release()
        why = self._spawn_error
        ending = ending if why is None else None
        return {
            "code": ending if ending is not None and ending >= 0 else None,
            "signal": -ending if ending is not None and ending < 0 else None,
            "killed_by": self._ladder.reason,
            "spawn_error": {"errno": why.number, "message": str(why)} if why else None,
            "swept": len(self._tree.swept) if self._tree else 0,
            "survivors": self._survivors,
            "out_of_memory": out_of_memory,
            "peak_rss_bytes": self._tree.peak_rss_bytes if self._tree else 0,
            "cpu_s": round(self._tree.cpu_s, 3) if self._tree else 0.0,
            "active_s": round(self._ended_s or 0.0, 3),
            "started_at": self._started_at,
            "ended_at": self._ended_at,
            "bytes": {name: log.end for name, log in self._logs.items()},
            "dropped": {name: log.dropped for name, log in self._logs.items()},
        }

    def _status(self) -> dict[str, object]:
        state = "running" if self._ladder.reason is None else "stopping"
        last_at = max(stream.last_at for stream in self._streams)
        return {
            "state": state if self._ended_s is None else "sweeping",
            "pid": self._tree.agent if self._tree else None,
            "active_s": round(self._turns.active_s, 3),
            "hard_s": self._hard_s,
            "silent_s": round(self._turns.active_s - last_at, 3),
            "bytes": {name: log.end for name, log in self._logs.items()},
        }

    def _next_at(self) -> float:
        """The active second of whatever is due next, should nothing happen before."""
        now = self._turns.active_s
        due = [now + LONGEST_TURN_S, *(one.settles_at() for one in self._punctual)]
        if self._leave_at < math.inf:
            due.append(self._leave_at)
        elif self._gone:
            is_draining = self._drain_until < math.inf
            due.append(max(self._drain_until, self._record_at) if is_draining else now)
        elif self._ended_s is not None or now >= self._ladder.kill_at:
            due.append(self._again_at)
        else:
            due.append(self._ladder.next_at() if self._ladder.reason else self._hard_s)
        return min(due)

    def _write(self, name: str, content: dict[str, object]) -> None:
        write_durably(name, {"dispatch": self._order.dispatch, **content})
