"""The pages, and who may see them: four to look at, for whoever names this machine as their host.

A page of some web site that a browser on this machine has open can send requests here, too. It
cannot make them name this machine as their host, and it is not allowed to read what comes back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from email.utils import format_datetime
from typing import TYPE_CHECKING, Protocol

import structlog
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from chump_orchestrator.core.errors import Unavailable

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from chump_orchestrator.adapters.http.metrics import Metrics
    from chump_orchestrator.core.ports import Clock
    from chump_orchestrator.core.records import Vitals

log = structlog.get_logger()

PAGES = ("/healthz", "/readyz", "/metrics", "/api/v1/state")

METHODS = ("GET", "HEAD")

JSON = "application/json"

_HERE = re.compile(r"(localhost|127(\.\d{1,3}){3}|\[::1\])\.?(:\d{1,5})?", re.ASCII | re.IGNORECASE)
"""How requests name this machine: in the manner of an address, or by the one name it always has."""


class Source(Protocol):
    """Where the pages have their content from: a daemon. No method takes more than a second."""

    def why_not_ready(self) -> str:
        """Return why the daemon is not ready, empty when it is."""
        ...

    async def state(self) -> Mapping[str, object]:
        """Return the document of `status --json` (behaviour C6); `Unavailable` before recovery."""
        ...

    async def vitals(self) -> Vitals:
        """Return how the daemon fares."""
        ...


def pages(source: Source, metrics: Metrics, clock: Clock, *, is_for_browsers: bool) -> ASGIApp:
    """Return the application; `metrics` are what /metrics shows, beside the vitals.

    `is_for_browsers` says that a browser could come here, as none can to a socket in the file
    system: then the host that a request names is looked at.
    """

    async def health(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readiness(_: Request) -> Response:
        why = source.why_not_ready()
        return PlainTextResponse(f"{why or 'ready'}\n", 503 if why else 200)

    async def measured(request: Request) -> Response:
        text, media_type = metrics.page(await source.vitals(), request.headers.get("accept", ""))
        return Response(text, headers={"content-type": media_type})

    async def state(_: Request) -> Response:
        try:
            document = await source.state()
        except Unavailable as error:
            return Response(json.dumps({"error": str(error)}), 503, media_type=JSON)
        return Response(json.dumps(document), media_type=JSON)

    async def unknown(_: Request, __: Exception) -> Response:
        return PlainTextResponse(f"there are {', '.join(PAGES)}\n", 404)

    async def broken(request: Request, error: Exception) -> Response:
        log.error("http.failed", page=request.url.path, exc_info=error)
        return PlainTextResponse("this is a bug; see the daemon's log\n", 500)

    shown = zip(PAGES, (health, readiness, measured, state), strict=True)
    application = Starlette(
        routes=[Route(path, page, methods=list(METHODS)) for path, page in shown],
        exception_handlers={404: unknown, Exception: broken},
    )
    application.router.redirect_slashes = False
    return _Door(application, clock, is_for_browsers=is_for_browsers)


class _Door:
    """Turns away what is no request for a page, and says with each answer how it is to be taken.

    Every connection is for one request, and no body is read, whatever length it may be said to
    have.
    """

    def __init__(self, application: ASGIApp, clock: Clock, *, is_for_browsers: bool) -> None:
        self._application = application
        self._clock = clock
        self._is_for_browsers = is_for_browsers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["connection"] = "close"
                headers["date"] = format_datetime(self._clock.now(), usegmt=True)
                headers["cache-control"] = "no-store"
                headers["x-content-type-options"] = "nosniff"
                headers["cross-origin-resource-policy"] = "same-origin"
            await send(message)

        refused = self._refused(scope)
        await (self._application if refused is None else refused)(scope, receive, answer)

    def _refused(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if self._is_for_browsers and not _HERE.fullmatch(",".join(headers.getlist("host"))):
            text = "this is for requests to localhost, 127.0.0.1 or [::1], by that name\n"
            return PlainTextResponse(text, 421)
        if scope["method"] not in METHODS:
            allowed = {"allow": ", ".join(METHODS)}
            return PlainTextResponse("this is to be looked at only\n", 405, headers=allowed)
        if headers.get("content-length", "0").strip("0") or "transfer-encoding" in headers:
            return PlainTextResponse("no body is read here\n", 413)
        return None
