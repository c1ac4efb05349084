"""Tells over HTTP, on this machine alone, how a daemon fares: health, readiness, metrics, state.

It only tells: nothing can be asked of the daemon here, and no request has a body. To import this
package takes as long as most commands do in all, so that it is imported only where it is served.
"""

from chump_orchestrator.adapters.http.metrics import Metrics
from chump_orchestrator.adapters.http.pages import Source
from chump_orchestrator.adapters.http.server import serve

__all__ = ["Metrics", "Source", "serve"]
