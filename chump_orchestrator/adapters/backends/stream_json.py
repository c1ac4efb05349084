"""The stream that claude prints with `--output-format stream-json`, and qwen likewise.

`system` begins it, `assistant` and `user` lines follow for each step, and `result` has the
totals. An `assistant` line tells what a message had cost when it began, so that only what was
read is counted from it; each message may come in several lines, one for each of its parts.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from datetime import UTC, datetime

from chump_orchestrator.adapters.backends import json_lines as its
from chump_orchestrator.adapters.backends.json_lines import Event
from chump_orchestrator.adapters.backends.streams import StreamReader
from chump_orchestrator.core.testimony import Report, Usage

SYNTHETIC = "<synthetic>"
"""The model of messages that the agent has put in a model's mouth, to tell of an error."""

REMEMBERED = 64
"""Messages whose tokens are known to be counted: parts of one may come between those of others."""

LIMIT_MET = "usage limit reached"
LATEST = 4_102_444_800
"""Seconds since 1970 that a limit may be reset at; whether they make sense, others decide."""

_READ = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
_BY_MODEL = ("inputTokens", "outputTokens", "cacheReadInputTokens", "cacheCreationInputTokens")
_ERROR = re.compile(r"\[?API Error\b|Unknown command: /")
_USER = '{"type":"user"'


class StreamJsonReader(StreamReader):
    """Reads one agent; a wrapper around it may start it more than once."""

    def __init__(self) -> None:
        super().__init__()
        self._before = Usage()
        self._run = Usage()
        self._run_session = ""
        self._is_over = False
        self._live = Usage()
        self._counted: OrderedDict[str, int] = OrderedDict()
        self._is_limited = False

    def read(self, line: str) -> Report | None:
        if line.startswith(_USER):
            # What a tool gave back: by far the longest lines, of which nothing is wanted.
            self.step()
            return self.report
        return super().read(line)

    def take(self, found: Event) -> None:
        match its.text(found, "type"):
            case "system":
                self._system(found)
            case "assistant":
                self._assistant(found)
            case "user" | "stream_event" | "tool_progress":
                self.step()
            case "rate_limit_event":
                self._limit(its.part(found, "rate_limit_info"))
            case "result":
                self._result(found)
            case _:
                pass

    def _system(self, found: Event) -> None:
        match its.text(found, "subtype"):
            case "init":
                if self._is_over:
                    self._is_over, self._live = False, Usage()
                self.step(
                    "starting",
                    session=its.name(found, "session_id") or self.report.session,
                    model=its.name(found, "model") or self.report.model,
                )
            case "api_retry":
                status, error = its.count(found, "error_status"), its.name(found, "error")
                attempt, most = its.count(found, "attempt"), its.count(found, "max_retries")
                what = " ".join(filter(None, (str(status or ""), error)))
                self.fail(f"API Error: {what}", activity=f"retry {attempt} of {most}: {what}")
            case "compact_boundary":
                self.step("compacting")
            case _:
                pass

    def _assistant(self, found: Event) -> None:
        message = its.part(found, "message")
        parts = its.items(message, "content")
        if its.text(message, "model") == SYNTHETIC:
            self.fail("\n".join(filter(None, (its.text(one, "text") for one in parts))))
            return
        if self._is_limited:
            self._is_limited = False
            self.tell(resets_at=None)
        self._count(message, is_own=its.part(found, "parent_tool_use_id") is None)
        for one in parts:
            match its.text(one, "type"):
                case "tool_use":
                    self.call(its.name(one, "name"))
                case "text":
                    self.speak(its.text(one, "text"))
                case _:
                    self.step("thinking")

    def _count(self, message: object, *, is_own: bool) -> None:
        """Count a message's turn and what was read for it, once."""
        key, read = its.name(message, "id"), its.total(its.part(message, "usage"), *_READ)
        if not key:
            return
        counted = self._counted.pop(key, None)
        self._counted[key] = max(counted or 0, read or 0)
        more = Usage(tokens=self._counted[key] - (counted or 0))
        if counted is None and is_own:
            more = more.plus(Usage(turns=1))
        if len(self._counted) > REMEMBERED:
            self._counted.popitem(last=False)
        self._live = self._live.plus(more)
        self.use(self._before.plus(self._run).plus(self._live))

    def _limit(self, info: object) -> None:
        if its.text(info, "status") != "rejected" or its.part(info, "isUsingOverage") is True:
            return
        at = its.count(info, "resetsAt")
        resets_at = datetime.fromtimestamp(at, UTC) if at and at < LATEST else None
        self._is_limited = True
        self.fail(LIMIT_MET, resets_at=resets_at)

    def _result(self, found: Event) -> None:
        session = its.name(found, "session_id")
        self._add_up(found, session)
        said = its.text(found, "result")
        errors = its.part(found, "errors")
        told = [one for one in errors if isinstance(one, str)] if isinstance(errors, list) else []
        subtype = its.name(found, "subtype")
        has_failed = its.part(found, "is_error") is True or subtype.startswith("error")
        if has_failed or _ERROR.match(said):
            status = its.count(found, "api_error_status")
            words = [said or "\n".join(told) or subtype]
            if status is not None and str(status) not in words[0]:
                words.append(f"HTTP {status}")
            if self._is_limited:
                words.append(LIMIT_MET)
            self.fail("\n".join(words), answer="", activity="failed")
        elif said:
            self.answer(said)
        if session:
            self.tell(session=session)

    def _add_up(self, found: Event, session: str) -> None:
        """Take the totals of a run; those of an earlier one are added to them.

        One agent tells of its run more than once when something in its background ends late; its
        totals then only grow.
        """
        run = Usage(
            its.money(found, "total_cost_usd"), _tokens(found), its.count(found, "num_turns")
        )
        is_another = session != self._run_session or (run.cost_usd or 0) < (self._run.cost_usd or 0)
        if is_another:
            self._before = self._before.plus(self._run)
        self._run, self._run_session = run, session
        self._is_over, self._live = True, Usage()
        self._counted.clear()
        self.use(self._before.plus(run))


def _tokens(found: Event) -> int | None:
    """Return all tokens of a run: those of every model, where they are told apart."""
    by_model = its.part(found, "modelUsage")
    if isinstance(by_model, Mapping) and by_model:
        sums = [n for used in by_model.values() if (n := its.total(used, *_BY_MODEL)) is not None]
        if sums:
            return sum(sums)
    usage = its.part(found, "usage")
    whole = its.count(usage, "total_tokens")
    return its.total(usage, *_READ, "output_tokens") if whole is None else whole
