"""Commands that need no repository: demo and self-test (behaviour C9, F1)."""

from __future__ import annotations

from functools import partial

import click

from chump_orchestrator import logs
from chump_orchestrator.cli.options import everywhere
from chump_orchestrator.cli.render import say_meanwhile
from chump_orchestrator.cli.repository import wait_for
from chump_orchestrator.demo import demo
from chump_orchestrator.self_test import self_test
from chump_orchestrator.timing import self_test_timing


@click.command("demo")
@click.option("--keep", is_flag=True, help="Leave the repository of the demo behind.")
@everywhere
def demo_command(*, keep: bool) -> int:
    """Drain a made-up backlog with scripted agents, without any account."""
    logs.configure(level="error", format="console")
    return wait_for(partial(demo, say_meanwhile, keep=keep))


@click.command("self-test")
@click.option("--timing", is_flag=True, help="Inject none; time the phases of a dispatch instead.")
@everywhere
def self_test_command(*, timing: bool) -> int:
    """Try the whole pipeline with injected faults."""
    logs.configure(level="critical", format="console")
    return wait_for(partial(self_test_timing if timing else self_test, say_meanwhile))
