"""aider, unattended. It prints no JSON; a few of its lines have a form of their own.

It commits what it edits and does not push; how that is arranged is in its page of the reference. It
ends with status 0 whatever happens.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from chump_orchestrator.adapters.backends.answers import kept, pull_in
from chump_orchestrator.adapters.backends.options import (
    BackendOptions,
    lead_for,
    option,
    provider,
)
from chump_orchestrator.core.dispatch import Command
from chump_orchestrator.core.gap import Gap
from chump_orchestrator.core.routing import Route
from chump_orchestrator.core.tail import LINE_BYTES
from chump_orchestrator.core.testimony import WORDS, Progress, Report, Usage

AIDER_VARIABLES = (
    "AIDER_*",
    "OPENAI_*",
    "ANTHROPIC_*",
    "GEMINI_*",
    "OPENROUTER_*",
    "DEEPSEEK_*",
    "GROQ_*",
    "XAI_*",
    "AZURE_*",
    "OLLAMA_*",
    "AWS_*",
)

COLUMNS = "1000"
"""Lines are wrapped at so many columns: an error is to stand on one."""

_TOKENS = re.compile(r"Tokens: (?P<counts>[^$]{1,200}?\d[\d.]*[kM]? received)\.", re.ASCII)
_COUNT = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)([kM]?) ", re.ASCII)
_COST = re.compile(r"\$(\d{1,6}(?:\.\d{1,9})?) session", re.ASCII)
_SCALE = {"": 1, "k": 1000, "M": 1_000_000}
_ERROR = re.compile(r"litellm\.\w{1,60}(?:Error|Exception)\b|Invalid command: /")
_MORE = re.compile(r"The API provider\b|Check your API key\b")
_STEP = re.compile(r"Applied edit to |Commit [0-9a-f]{7,40} ")


@dataclass(frozen=True, slots=True)
class Aider:
    """aider with the brief in a file."""

    options: BackendOptions = field(default_factory=BackendOptions)

    @property
    def label(self) -> str:
        return "aider"

    def command(self, gap: Gap, route: Route, prompt: str) -> Command:  # noqa: ARG002
        options = self.options
        return Command(
            programs=options.programs("aider"),
            args=(
                "--message-file",
                "{prompt_file}",
                "--yes-always",
                "--no-pretty",
                "--no-stream",
                "--no-check-update",
                "--no-show-release-notes",
                "--no-gitignore",
                "--chat-history-file",
                "/dev/null",
                "--input-history-file",
                "/dev/null",
                *option("--model", options.model_for(route)),
                *options.extra_args,
            ),
            env={"COLUMNS": COLUMNS, **options.env},
            env_from=provider(route.provider_pfx, "OPENAI_API_BASE", "OPENAI_API_KEY"),
            pass_env=(*AIDER_VARIABLES, *options.pass_env),
            stop_signals=options.stop_signals,
            expand=True,
            brief_on_stdin=False,
            brief_prefix=lead_for(prompt),
        )

    def read(self, line: str) -> Usage | Progress | None:
        return pull_in(line)

    def reader(self) -> AiderReader:
        return AiderReader()


class AiderReader:
    """Reads one agent; what stands between the lines that it knows is the model's, and prose."""

    longest_line = LINE_BYTES

    def __init__(self) -> None:
        self._report = Report(is_stream=True)

    def read(self, line: str) -> Report | None:
        before = self._report
        text = line.strip()
        if (used := _usage(text)) is not None:
            so_far = Usage(tokens=used.tokens, turns=1).plus(before.usage)
            cost_usd = before.usage.cost_usd if used.cost_usd is None else used.cost_usd
            self._step("answering")
            self._report = replace(self._report, usage=replace(so_far, cost_usd=cost_usd))
        elif _STEP.match(text):
            self._step(text.partition(" ")[0].lower())
        elif _ERROR.match(text):
            self._report = replace(before, failure=kept(text), activity="failed")
        elif _MORE.match(text) and before.failure:
            failure = f"{before.failure}\n{kept(text)}"[-WORDS:]
            self._report = replace(before, failure=failure)
        elif (said := pull_in(text)) is not None:
            self._step("answering")
            self._report = replace(self._report, pull_number=said.pull_number)
        return self._report if self._report is not before else None

    def _step(self, activity: str) -> None:
        steps = self._report.steps + 1
        self._report = replace(self._report, steps=steps, activity=activity, failure="")


def _usage(text: str) -> Usage | None:
    """Return the tokens of one message and the cost of the session, if a line tells them."""
    found = _TOKENS.match(text)
    if found is None:
        return None
    counts = _COUNT.findall(found["counts"])
    cost = _COST.search(text)
    tokens = round(sum(float(number) * _SCALE[scale] for number, scale in counts))
    return Usage(float(cost[1]) if cost else None, tokens)
