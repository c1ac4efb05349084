"""What is measured: counted as events come, and read off a daemon's vitals when it is asked for.

Every name begins with `chump_` and ends with its unit. Values of labels are from closed lists, or
from a list that stops growing, so that no agent or backlog can fill a database of metrics.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any

import prometheus_client
import psutil
from prometheus_client import CollectorRegistry, Counter, Histogram, Info
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from chump_orchestrator.core.causes import Cause
from chump_orchestrator.core.outcome import OutcomeKind, PullState
from chump_orchestrator.core.records import ForgeBudget, Vitals
from chump_orchestrator.core.turns import BOUNDS_S, TurnsTaken

DURATIONS_S = (30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14_400, 28_800, 86_400)
"""Upper ends of the buckets for dispatches, which last from half a minute to a day."""

LAGS_S = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 30)
"""The same for delays of the event loop."""

MOST_BACKENDS = 32
"""Names of backends that are told apart; those that come later are `other`."""

OTHER = "other"
NONE = "none"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)


class Metrics:
    """The metrics of one daemon; not shared between threads."""

    def __init__(self, version: str) -> None:
        # When a counter was made is told by its process's start, once for all of them.
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = registry = CollectorRegistry()
        self._backends: set[str] = set()
        self._vitals: Vitals | None = None
        Info("chump_build", "Which version runs.", registry=registry).info({"version": version})
        self._launched = Counter(
            "chump_dispatches_launched",
            "Agents that were started, by backend.",
            ("backend",),
            registry=registry,
        )
        self._settled = Counter(
            "chump_dispatches",
            "Dispatches that ended, by outcome, cause of failure, and backend.",
            ("outcome", "cause", "backend"),
            registry=registry,
        )
        self._corrected = Counter(
            "chump_dispatches_corrected",
            "Dispatches whose request was merged after all, by what they had counted as.",
            ("was",),
            registry=registry,
        )
        self._durations = Histogram(
            "chump_dispatch_duration_seconds",
            "From the launch of a dispatch to its outcome.",
            ("outcome",),
            buckets=DURATIONS_S,
            registry=registry,
        )
        self._cost = Counter(
            "chump_cost_usd",
            "What settled dispatches cost, as their agents reported it.",
            ("backend",),
            registry=registry,
        )
        self._tokens = Counter(
            "chump_tokens",
            "Tokens of settled dispatches, as their agents reported them.",
            ("backend",),
            registry=registry,
        )
        self._pulls = Counter(
            "chump_pull_changes",
            "Pull requests that were seen to change, by what they had become.",
            ("state",),
            registry=registry,
        )
        self._lag = Histogram(
            "chump_loop_lag_seconds",
            "How much later than asked for the event loop woke its meter.",
            buckets=LAGS_S,
            registry=registry,
        )
        registry.register(_Now(self))
        registry.register(_Process())

    def hear(self, event: str, fields: Mapping[str, object]) -> None:
        """Count an event of the daemon; a listener."""
        match event:
            case "dispatch.launched":
                self._launched.labels(self._backend(fields)).inc()
            case "dispatch.settled":
                self._count_settled(fields)
            case "dispatch.corrected":
                self._corrected.labels(_word(fields.get("was"), OutcomeKind)).inc()
            case "pull.changed":
                self._pulls.labels(_word(fields.get("state"), PullState)).inc()
            case _:
                pass

    def _count_settled(self, fields: Mapping[str, object]) -> None:
        outcome, backend = _word(fields.get("outcome"), OutcomeKind), self._backend(fields)
        cause = NONE if fields.get("cause") is None else _word(fields["cause"], Cause)
        self._settled.labels(outcome, cause, backend).inc()
        self._durations.labels(outcome).observe(_amount(fields.get("duration_s")))
        if cost := _amount(fields.get("cost_usd")):
            self._cost.labels(backend).inc(cost)
        if tokens := _amount(fields.get("tokens")):
            self._tokens.labels(backend).inc(tokens)

    def lagged(self, seconds: float) -> None:
        """Count one measurement of the event loop's delay."""
        self._lag.observe(max(seconds, 0.0))

    def page(self, vitals: Vitals, accept: str) -> tuple[bytes, str]:
        """Return the metrics as text, and its media type, in the format that `accept` prefers."""
        self._vitals = vitals
        encode, media_type = choose_encoder(accept)
        return encode(self._registry), media_type

    @property
    def vitals(self) -> Vitals | None:
        """What was last told of the daemon."""
        return self._vitals

    def _backend(self, fields: Mapping[str, object]) -> str:
        name = str(fields.get("backend", ""))
        if name in self._backends:
            return name
        if not _NAME.fullmatch(name) or len(self._backends) >= MOST_BACKENDS:
            return OTHER
        self._backends.add(name)
        return name


def _word(value: object, known: Any) -> str:  # noqa: ANN401 - an enumeration of texts
    text = str(value)
    return text if text in tuple(known) else OTHER


def _amount(value: object) -> float:
    """Return a number that a counter can take: what is none, or below zero, counts nothing."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0.0
    return float(value) if 0 <= value < float("inf") else 0.0


class _Now(Collector):
    """What is true at this moment; a value that is not known now is left out."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        now = self._metrics.vitals
        if now is None:
            return
        forge = now.forge_budget or ForgeBudget()
        for name, text, value in (
            ("chump_daemon_ready", "Whether the daemon is ready, as /readyz tells.", now.is_ready),
            ("chump_dispatching_paused", "Whether no agent is started.", now.is_paused),
            ("chump_agents_running", "Agents that hold a slot.", now.running),
            ("chump_agents_overdue", "Running agents past their soft deadline.", now.overdue),
            ("chump_agents_silent", "Running agents that write nothing.", now.silent),
            ("chump_slots", "Agents that may run at once.", now.slots),
            ("chump_gaps_ready", "Eligible gaps that wait for a slot.", now.ready),
            ("chump_gaps_parked", "Gaps that are parked or in a backoff.", now.parked),
            ("chump_pulls_open", "Pull requests that are waited for.", now.open_pulls),
            (
                "chump_backlog_stale",
                "Whether an older backlog is in use, as its file cannot be.",
                now.is_backlog_stale,
            ),
            (
                "chump_forge_silent_seconds",
                "For how long no look at the forge has succeeded.",
                now.forge_silent_s,
            ),
            (
                "chump_forge_requests_remaining",
                "What the forge grants until its budget is renewed.",
                forge.left,
            ),
            (
                "chump_forge_reset_timestamp_seconds",
                "When the forge's budget is renewed, since the epoch.",
                None if forge.resets_at is None else forge.resets_at.timestamp(),
            ),
            (
                "chump_outbox_reflections",
                "Reflections that wait for the journal.",
                now.outbox,
            ),
            (
                "chump_ledger_waiting_records",
                "Records that wait for the ledger.",
                now.unstored,
            ),
        ):
            if value is not None:
                yield GaugeMetricFamily(name, text, value=float(value))
        yield from _of_the_budget(now.budget or {})
        if now.forge_budget is not None:
            asked = "Questions that were put to the forge."
            yield CounterMetricFamily("chump_forge_requests", asked, value=forge.requests)
            cost = "What the forge said that its answers cost, in points."
            yield CounterMetricFamily("chump_forge_points", cost, value=forge.points)
        if now.turns is not None:
            yield from _of_the_loop(now.turns)
        looks = "Looks at the forge that were answered."
        yield CounterMetricFamily("chump_looks", looks, value=now.looks)
        failures = CounterMetricFamily(
            "chump_look_failures", "Looks at the forge that failed, by kind.", labels=("kind",)
        )
        for kind, count in sorted(now.failed_looks.items()):
            failures.add_metric((kind,), count)
        yield failures


def _of_the_loop(taken: TurnsTaken) -> Iterator[Metric]:
    """Yield how long the turns of the loop took, which is how long others had to wait for one."""
    text = "How long a turn of the event loop took, that of every one."
    bounds = [*map(floatToGoString, BOUNDS_S), "+Inf"]
    buckets = list(zip(bounds, accumulate(taken.counts), strict=True))
    yield HistogramMetricFamily(
        "chump_loop_turn_seconds", text, buckets=buckets, sum_value=taken.total_s
    )
    text = "The longest turn of the last 10 minutes or more."
    yield GaugeMetricFamily("chump_loop_longest_turn_seconds", text, value=taken.longest_s)


def _of_the_budget(told: Mapping[str, object]) -> Iterator[Metric]:
    """Yield what the local day has cost so far, and what it may; a budget that is not set is 0."""
    if not told:
        return
    for name, text, value in (
        ("chump_day_spent_usd", "What agents told to have cost today.", told.get("usd_today")),
        ("chump_day_spent_tokens", "What agents told to have used.", told.get("tokens_today")),
        ("chump_day_budget_usd", "What a day may cost; 0 is no limit.", told.get("usd_per_day")),
        ("chump_day_budget_tokens", "The same in tokens.", told.get("tokens_per_day")),
        ("chump_day_expected_usd", "What agents at work may cost yet.", told.get("expected_usd")),
        ("chump_day_untold_dispatches", "Today's of unknown cost.", told.get("untold_cost")),
        ("chump_budget_reached", "Whether the day's is.", bool(told.get("reached"))),
    ):
        yield GaugeMetricFamily(name, text, value=_amount(int(value) if value is True else value))


class _Process(Collector):
    """What the daemon's process takes of the machine, shims and agents left out."""

    def __init__(self) -> None:
        self._self = psutil.Process()

    def collect(self) -> Iterator[Metric]:
        process = self._self
        with process.oneshot():
            times = process.cpu_times()
            for name, text, value in (
                ("open_fds", "Open descriptors.", process.num_fds()),
                ("resident_memory_bytes", "Resident memory.", process.memory_info().rss),
                ("start_time_seconds", "Start, since the epoch.", process.create_time()),
            ):
                yield GaugeMetricFamily(f"chump_process_{name}", text, value=value)
        yield CounterMetricFamily(
            "chump_process_cpu_seconds", "Time of processors.", value=times.user + times.system
        )
