"""A program that takes claude's arguments and prints what claude prints; the title of its gap says
what befalls it.

It imitates what was seen of claude 2.1.197: a stream of JSON, errors on standard output alone,
tools in sessions of their own, INT that ends a tool and is answered with a result, TERM that ends
the program at once and leaves its tool alive, a session that can be begun once, and gone on with in
the directory in which it was begun.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SHIP = """
set -e
git add -A; git commit -q --allow-empty -m "$0"; git push -q origin "HEAD:refs/heads/$1"
for i in 1 2 3 4 5 6 7 8 9; do
  git fetch -q --refmap= origin main; git checkout -q --detach "$1" || continue
  git rebase -q FETCH_HEAD; git push -q origin HEAD:refs/heads/main && break; sleep 0.1
done
git checkout -q "$1"
"""


def say(**event: Any) -> None:
    print(json.dumps({**event, "session_id": session}), flush=True)


def assistant(part: dict[str, Any], number: int, **more: Any) -> None:
    usage = {"input_tokens": 1000, "cache_read_input_tokens": 500, "output_tokens": 1}
    message = {"id": f"m-{number}", "role": "assistant", "model": "scripted", "usage": usage}
    say(type="assistant", message={**message, "content": [part]}, parent_tool_use_id=None, **more)


def result(text: str = "", *, is_error: bool = False, **more: Any) -> None:
    used = {"inputTokens": 2000, "outputTokens": 40, "cacheReadInputTokens": 1000}
    fields = {"subtype": "success", "is_error": is_error, "num_turns": 2, "result": text, **more}
    say(type="result", total_cost_usd=0.125, modelUsage={"scripted": used}, **fields)


def gets(output: str) -> None:
    part = {"type": "tool_result", "content": output}
    say(type="user", message={"role": "user", "content": [part]})


def fails(text: str, status: int) -> None:
    part = {"type": "text", "text": text}
    say(type="assistant", message={"id": "x", "model": "<synthetic>", "content": [part]})
    result(text, is_error=True, api_error_status=status)
    sys.exit(1)


def uses_a_tool(*argv: str, number: int = 1) -> str:
    """Run a command in a session of its own; INT ends it and then the program."""
    assistant({"type": "tool_use", "name": "Bash", "input": {"command": argv[-1]}}, number)
    tool = subprocess.Popen(argv, start_new_session=True, stdout=-1, stderr=-2, text=True)

    def interrupted(_number: int, _frame: object) -> None:
        os.killpg(tool.pid, signal.SIGKILL)
        errors = ["[diagnostic] interrupted"]
        result(is_error=True, subtype="error_during_execution", errors=errors)
        os._exit(1)

    signal.signal(signal.SIGINT, interrupted)
    said, _ = tool.communicate()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    gets(said)
    return said


def waits_for_an_answer() -> None:
    try:
        time.sleep(600)
    except KeyboardInterrupt:
        os._exit(0)


arguments = argparse.ArgumentParser()
arguments.add_argument("-p", action="store_true", required=True)
arguments.add_argument("--output-format", choices=["stream-json"], required=True)
arguments.add_argument("--verbose", action="store_true", required=True)
arguments.add_argument("--dangerously-skip-permissions", action="store_true", required=True)
arguments.add_argument("--session-id")
arguments.add_argument("--resume")
arguments.add_argument("--model")
arguments.add_argument("--max-turns", type=int)
given = arguments.parse_args()
if bool(given.session_id) == bool(given.resume):
    sys.exit("Error: --session-id or --resume")
session = given.session_id or given.resume

used = Path(os.environ["CLAUDE_SCRIPT_FOLDER"]) / session
before = json.loads(used.read_text()) if used.exists() else None
if given.session_id and before is not None:
    sys.exit(f"Error: Session ID {session} is already in use.")
if given.resume and (before is None or before["cwd"] != str(Path.cwd())):
    none = f"No conversation found with session ID: {session}"
    print(none, file=sys.stderr)
    result(is_error=True, subtype="error_during_execution", errors=[none], num_turns=0)
    sys.exit(1)
seen = {name: os.environ.get(name) for name in ("CLAUDE_CODE_MAX_RETRIES", "API_TIMEOUT_MS")}
briefs = [*(before["briefs"] if before else []), sys.stdin.read()]
known = {"argv": sys.argv[1:], "env": seen, "cwd": str(Path.cwd()), "briefs": briefs}
used.write_text(json.dumps(known))

brief = briefs[-1]
if not brief.strip():
    sys.exit("Error: Input must be provided")
say(type="system", subtype="init", model=given.model or "scripted", cwd=str(Path.cwd()))
if brief.startswith("/"):
    result(f"Unknown command: {brief.split()[0]}")
    sys.exit(0)

match = re.search(r"gap ([A-Z]+-\d+)", brief)
gap = match[1] if match else "?"
branch = subprocess.run(
    ["git", "branch", "--show-current"], capture_output=True, text=True, check=True
).stdout.strip()

if "meets a limit" in brief:
    info = {"status": "rejected", "resetsAt": int(time.time()) + 7200, "rateLimitType": "five_hour"}
    say(type="rate_limit_event", rate_limit_info=info)
    fails("You've hit your session limit · resets 3am (UTC)", 429)
if "is not logged in" in brief:
    fails("Not logged in · Please run /login", 401)
if "is not served" in brief:
    told = {"attempt": 1, "max_retries": 1, "error_status": 529, "error": "overloaded"}
    say(type="system", subtype="api_retry", **told)
    fails("API Error: 529 Overloaded. Usually temporary.", 529)
if "waits for an answer" in brief:
    waits_for_an_answer()
if "has a tool that lasts" in brief:
    uses_a_tool("sh", "-c", "echo begun > begun; exec sleep 600")
if "takes its time" in brief:
    uses_a_tool("sh", "-c", "while ! test -e go; do sleep 0.05; done; rm go; echo gone")
if "says much" in brief:
    gets("HTTP 402 " * 400_000)

uses_a_tool("sh", "-c", SHIP, gap, branch, number=2)
answer = ("It is done. " * 2000 + "\n\n7") if "says much" in brief else "7"
assistant({"type": "text", "text": answer}, 3)
result(answer)
