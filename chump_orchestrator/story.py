"""What happens to dispatches, one line each, for people who watch."""

from __future__ import annotations

from collections.abc import Mapping

from chump_orchestrator.core.gap import on_one_line

GAP_WIDTH = 8
"""Columns for the id of a gap; longer ones push their line to the right."""

_ENDINGS = {
    "teardown": "ending: every agent is stopped; the same signal again kills",
    "drain": "ending as soon as the last agent has ended; nothing more is started",
    "detach": "ending; the agents go on by themselves",
}


def told(event: str, fields: Mapping[str, object]) -> str:
    """Return the line for an event of the daemon, or empty for what is no part of the story."""
    line = _of(event, fields)
    return on_one_line(f"{fields.get('gap', ''):<{GAP_WIDTH}} {line}") if line else ""


def _of(event: str, fields: Mapping[str, object]) -> str:
    match event:
        case "dispatch.launched":
            return f"agent {fields['pid']} works on branch {fields['branch']}"
        case "daemon.ending":
            return _ENDINGS.get(str(fields["manner"]), "")
        case "dispatch.overdue":
            return "is past its soft deadline"
        case "dispatch.silent":
            return "has not written anything for long"
        case "pull.changed" if fields["number"] is not None:
            return f"pull request #{fields['number']} is {fields['state']}"
        case "ship.pushed":
            return f"its work is pushed to branch {fields['branch']}"
        case "ship.opened":
            return f"pull request #{fields['number']} is opened for it"
        case "ship.delayed":
            return f"its work cannot be shipped yet: {fields['why']}"
        case "ship.denied":
            return f"pull request #{fields['number']} is open, but {fields['why']}"
        case "agent.exited":
            by = f", stopped: {fields['stopped_by']}" if fields["stopped_by"] else ""
            return f"agent ended, {fields['how']}{by}"
        case "budget.reached" if "gap" not in fields:
            return f"budget.{fields['budget']} is reached until {fields['until']}"
        case "budget.renewed" if "gap" not in fields:
            return f"budget.{fields['budget']} has room again: {fields['why']}"
        case "gap.handed_over":
            return f"goes from {fields['candidate']} ({fields['cause']}) to {fields['next']}"
        case "dispatch.settled":
            why = f" ({fields['reason']})" if fields["reason"] else ""
            return f"{str(fields['outcome']).upper()}{why}"
        case "dispatch.corrected":
            return f"{str(fields['outcome']).upper()} after all (it had counted as {fields['was']})"
        case _:
            return ""
