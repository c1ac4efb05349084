"""The command itself: its families of commands, each imported when it is called for."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from chump_orchestrator import __version__
from chump_orchestrator.cli import streams
from chump_orchestrator.cli.exits import kept_from_click, told
from chump_orchestrator.cli.options import Invocation, choosing, everywhere

NAME = "chump-orchestrator"

COMMANDS = {
    "init": ("settings", "Write a settings file, and consent to unattended agents."),
    "plan": ("read", "Show what would be dispatched now."),
    "why": ("read", "Say why GAP is, or is not, dispatched now."),
    "run": ("run", "Dispatch agents, in the foreground, until told to end."),
    "status": ("status", "Show what runs now."),
    "logs": ("logs", "Print what the newest agent of GAP wrote."),
    "history": ("read", "List the dispatches that have ended, newest first."),
    "routes": ("routes", "Show where gaps go, and how it went."),
    "report": ("report", "Tell what a night came to: shipped, failed, waiting for you, spent."),
    "stop": ("act", "Stop the agent of GAP."),
    "retry": ("act", "Dispatch GAP now, also one that is parked or was shipped."),
    "release": ("act", "Free a parked GAP, so that it may be picked again."),
    "pause": ("act", "Start no more agents until `resume`, also over restarts."),
    "resume": ("act", "Start agents again."),
    "drain": ("act", "Let the daemon end once its agents have ended."),
    "reload": ("act", "Have the daemon read settings and backlog anew."),
    "salvage": ("salvage", "List, show and restore work that was kept when its worktree went."),
    "doctor": ("doctor", "Look at everything that agents need, and say what is amiss."),
    "backlog": ("read", "Look at the backlog itself."),
    "config": ("settings", "Look at the settings."),
    "service": ("service", "Have the daemon started and kept up by the machine."),
    "demo": ("demo", "Drain a made-up backlog with scripted agents, without any account."),
    "self-test": ("demo", "Try the whole pipeline with injected faults."),
}
"""Each command with the module it lives in and its line in `--help`, in the order of `--help`."""


class Families(click.Group):
    """Knows its commands by name and imports a family only when one of it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(COMMANDS)

    def get_command(
        self,
        ctx: click.Context,  # noqa: ARG002 - click's signature
        cmd_name: str,
    ) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        family, _ = COMMANDS[cmd_name]
        module = importlib.import_module(f"chump_orchestrator.cli.{family}")
        command: click.Command = getattr(module, f"{cmd_name.replace('-', '_')}_command")
        return command

    def format_commands(
        self,
        ctx: click.Context,  # noqa: ARG002 - click's signature
        formatter: click.HelpFormatter,
    ) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])

    def make_context(self, *args: Any, **extra: Any) -> click.Context:  # noqa: ANN401 - click's
        with kept_from_click():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - click's signature
        with kept_from_click():
            return super().invoke(ctx)


@click.group(
    NAME,
    cls=Families,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name=NAME)
@everywhere
@choosing
@click.option(
    "--dry-run/--no-dry-run", "dry_run", default=None, help="Only print the choice, the default."
)
@click.option("--execute", is_flag=True, help="Dispatch one batch; the same as --no-dry-run.")
@click.option(
    "--watch", "--blocking", "watch", is_flag=True, help="Wait for the batch and print outcomes."
)
@click.option("--no-reflect", is_flag=True, help="Write no reflections.")
@click.option("--self-test", "self_test", is_flag=True, help="The same as the command self-test.")
@click.pass_context
def cli(
    context: click.Context,
    *,
    backlog: Path | None,
    base_ref: str | None,
    max_parallel: int | None,
    dry_run: bool | None,
    execute: bool,
    watch: bool,
    no_reflect: bool,
    self_test: bool,
) -> int | None:
    """Dispatch coding agents on a backlog of gaps.

    Without a command, the options below choose one batch and print or dispatch it, as the first
    implementation did; in that form nothing is refilled.
    """
    if context.invoked_subcommand is not None:
        if any((backlog, base_ref, max_parallel, dry_run is not None, execute, watch)) or (
            no_reflect or self_test
        ):
            raise click.UsageError(
                f"only --repo-root and --debug go before {context.invoked_subcommand};"
                " write its options behind it"
            )
        return None
    if execute and dry_run:
        raise click.UsageError("--dry-run and --execute contradict each other")
    from chump_orchestrator.cli import legacy  # noqa: PLC0415 - imports everything there is

    if self_test:
        return legacy.self_test()
    given = {"backlog": backlog, "base_ref": base_ref, "max_parallel": max_parallel}
    invocation = context.ensure_object(Invocation)
    if execute or dry_run is False:
        return legacy.execute(invocation, given, watch=watch, reflect=not no_reflect)
    return legacy.dry_run(invocation, given)


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out the command line, this process's own when `None`; return the exit code (C3)."""
    streams.complete()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    invocation = Invocation()

    def carry_out() -> object:
        return cli.main(arguments, prog_name=NAME, obj=invocation, standalone_mode=False)

    return told(NAME, carry_out, is_debugging=lambda: invocation.debug)
