"""A model's API on the loopback interface, small and honest enough for a real agent to work with.

It speaks what `POST /v1/messages` speaks when it streams. What the model "thinks" is a list of
steps; which one is due is told by the conversation itself, so that requests may come twice.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKENS_IN, TOKENS_CACHED, TOKENS_OUT = 100, 20, 7
"""What every answer says it has used."""


@dataclass(frozen=True, slots=True)
class Tool:
    """The model wants a command to be run."""

    command: str


@dataclass(frozen=True, slots=True)
class Answer:
    """The model says this and is done."""

    text: str


@dataclass(frozen=True, slots=True)
class Failure:
    """The API answers with an error; `headers` are further ones of the answer."""

    status: int
    kind: str
    text: str
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Silence:
    """The API takes the request and says nothing for so long, then hangs up."""

    seconds: float


Step = Tool | Answer | Failure | Silence


class MessagesApi:
    """Serves until it is closed; `requests` are the bodies of what was asked, as they came."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = tuple(steps)
        self.requests: list[dict[str, Any]] = []
        self.closing = threading.Event()
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_told: object) -> None:
                """Say nothing."""

            def do_HEAD(self) -> None:
                self._say(200, b"")

            def do_GET(self) -> None:
                self._say(404, b'{"type":"error"}')

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                asked = json.loads(body or b"{}")
                if self.path.startswith("/v1/messages/count_tokens"):
                    self._say(200, b'{"input_tokens":10}')
                elif self.path.startswith("/v1/messages"):
                    api.requests.append(asked)
                    self._answer(asked)
                else:
                    self._say(404, b'{"type":"error"}')

            def _answer(self, asked: dict[str, Any]) -> None:
                match api.step_for(asked):
                    case Failure(status, kind, text, headers):
                        told = {"type": "error", "error": {"type": kind, "message": text}}
                        self._say(status, json.dumps(told).encode(), headers)
                    case Silence(seconds):
                        api.closing.wait(seconds)
                        self.close_connection = True
                    case step if asked.get("stream"):
                        events = "".join(
                            f"event: {event['type']}\ndata: {json.dumps(event)}\n\n"
                            for event in _events(step, asked, len(api.requests))
                        )
                        self._say(200, events.encode(), {"Content-Type": "text/event-stream"})
                    case step:
                        message = _message(asked, len(api.requests))
                        message |= {"content": [_block(step)], "stop_reason": _reason(step)}
                        self._say(200, json.dumps(message).encode())

            def _say(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def step_for(self, asked: dict[str, Any]) -> Step:
        """Return the step that is due: one for each time that the model has spoken already.

        A request without tools is some side question of the agent's, such as for a title.
        """
        if not asked.get("tools"):
            return Answer("a title")
        spoken = sum(1 for message in asked["messages"] if message["role"] == "assistant")
        return self.steps[min(spoken, len(self.steps) - 1)]

    def close(self) -> None:
        """Stop serving; whoever still waits for an answer is hung up on."""
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _block(step: Step) -> dict[str, Any]:
    if isinstance(step, Tool):
        asked = {"command": step.command, "description": "what the test wants"}
        return {"type": "tool_use", "id": "toolu_01test", "name": "Bash", "input": asked}
    assert isinstance(step, Answer)
    return {"type": "text", "text": step.text}


def _reason(step: Step) -> str:
    return "tool_use" if isinstance(step, Tool) else "end_turn"


def _message(asked: dict[str, Any], number: int) -> dict[str, Any]:
    return {
        "id": f"msg_{number:04}",
        "type": "message",
        "role": "assistant",
        "model": asked.get("model", "a-model"),
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {
            "input_tokens": TOKENS_IN,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": TOKENS_CACHED,
            "output_tokens": 1,
        },
    }


def _events(step: Step, asked: dict[str, Any], number: int) -> Iterator[dict[str, Any]]:
    yield {"type": "message_start", "message": _message(asked, number)}
    block = _block(step)
    delta: dict[str, Any]
    if block["type"] == "tool_use":
        start = {**block, "input": {}}
        delta = {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
    else:
        start = {**block, "text": ""}
        delta = {"type": "text_delta", "text": block["text"]}
    yield {"type": "content_block_start", "index": 0, "content_block": start}
    yield {"type": "content_block_delta", "index": 0, "delta": delta}
    yield {"type": "content_block_stop", "index": 0}
    yield {
        "type": "message_delta",
        "delta": {"stop_reason": _reason(step), "stop_sequence": None},
        "usage": {"output_tokens": TOKENS_OUT},
    }
    yield {"type": "message_stop"}
