"""Pull requests opened by the real `gh`, of which a small server takes the requests (P9)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from chump_orchestrator.adapters.git import Git
from chump_orchestrator.adapters.shipping import GhShipper
from chump_orchestrator.adapters.shipping.gh import _credentials_of_gh
from chump_orchestrator.core.errors import Unavailable
from chump_orchestrator.core.shipping import Letter, Opened
from tests.adapters.a_shipment import AShipment

pytestmark = pytest.mark.skipif(shutil.which("gh") is None, reason="gh is not installed")

LETTER = Letter("GAP-1: `a` $title", "a body\n")
NOT_ALLOWED = "Pull request Auto merge is not allowed for this repository"


class _Forge(BaseHTTPRequestHandler):
    """Answers as GitHub does, to one who takes it for a proxy."""

    def log_message(self, *_: object) -> None:
        """It says nothing."""

    def do_POST(self) -> None:
        body = json.loads(self._body())
        server = self.server
        assert isinstance(server, _Server)
        path = self.path.removeprefix("http://api.github.localhost")
        server.asked.append((path, self.headers.get("authorization") or "", body))
        code, answer = server.answer(path, body)
        data = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _body(self) -> bytes:
        if "chunked" not in (self.headers.get("transfer-encoding") or ""):
            return self.rfile.read(int(self.headers.get("content-length", 0)))
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data


class _Server(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Forge)
        self.asked: list[tuple[str, str, dict[str, Any]]] = []
        self.has_one = False

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        query = body.get("query", "")
        if "enablePullRequestAutoMerge" in query:
            data = {"enablePullRequestAutoMerge": None}
            return 200, {"data": data, "errors": [{"message": NOT_ALLOWED}]}
        if "pullRequest(number" in query:
            told = {"id": "PR_x", "state": "OPEN", "autoMergeRequest": None}
            return 200, {"data": {"repository": {"pullRequest": told}}}
        if query:
            return 200, {"data": {"rateLimit": None, "repository": {"b0": {"nodes": []}}}}
        if not path.endswith("/pulls"):
            return 200, [{"name": "agent"}]
        if self.has_one:
            message = "A pull request already exists for acme:claude/gap-1."
            error = {"resource": "PullRequest", "code": "custom", "message": message}
            return 422, {"message": "Validation Failed", "errors": [error]}
        return 201, {"number": 12, "html_url": "https://github.localhost/acme/anvil/pull/12"}


@pytest.fixture
def server() -> Iterator[_Server]:
    with _Server() as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


async def test_the_real_gh_says_what_is_expected_of_it(tmp_path: Path, server: _Server) -> None:
    shipment = AShipment(tmp_path)
    head = shipment.commit()
    await shipment.shipper.push(shipment.workspace, head)
    env = {
        **shipment.repository.env,
        "GH_REPO": "github.localhost/acme/anvil",
        "GH_TOKEN": "a-token-for-tests",
        "GH_CONFIG_DIR": str(tmp_path / "gh"),
        "http_proxy": f"http://127.0.0.1:{server.server_port}",
    }
    git = Git(shipment.repository.root, env)
    shipper = GhShipper(
        git=git, env=env, base_ref="", labels=("agent",), auto_merge="squash", draft=True
    )
    await shipper.check()

    opened = await shipper.open(shipment.workspace, head, LETTER, datetime.now(UTC))
    assert opened == Opened(12, "https://github.localhost/acme/anvil/pull/12")
    lacking = await shipper.finish(opened)
    server.has_one = True
    with pytest.raises(Unavailable, match="does not show yet"):
        await shipper.open(shipment.workspace, head, LETTER, datetime.now(UTC))

    assert lacking == (f"no auto-merge: {NOT_ALLOWED}",)
    paths = [path for path, _, _ in server.asked]
    assert paths[1:3] == ["/repos/acme/anvil/pulls", "/repos/acme/anvil/issues/12/labels"]
    assert {who for _, who, _ in server.asked} == {"token a-token-for-tests"}
    assert server.asked[1][2] == {
        "title": LETTER.title,
        "body": LETTER.body,
        "head": "claude/gap-1",
        "base": "main",
        "draft": True,
    }


def test_the_real_gh_hands_its_token_to_git(tmp_path: Path) -> None:
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "GH_TOKEN": "a-token-for-tests"}

    told = subprocess.run(
        ["git", "credential", "fill"],
        input="protocol=https\nhost=github.com\n\n",
        env=env | _credentials_of_gh(env) | {"GIT_TERMINAL_PROMPT": "0"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert "password=a-token-for-tests" in told.stdout
