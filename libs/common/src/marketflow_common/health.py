"""The HTTP side of a service: /metrics, /healthz (alive), /readyz (able to do its work).

Must never do the service's work or block it: a thread of its own that only reads.
"""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest

from . import metrics

__all__ = ["Health"]


class Health:
    """Readiness and liveness of one process, served over HTTP.

    A loop calls ``beat()`` each round; without a beat for ``stall_after`` seconds /healthz answers 503.
    ``ready(True)`` is said once the service can work; /readyz answers 503 until then, with ``reason``.
    """

    def __init__(self, service: str, host: str = "127.0.0.1", port: int = 0, stall_after: float = 60.0) -> None:
        self._service, self._stall_after = service, stall_after
        self._ready, self._reason, self._beat = False, "starting", time.monotonic()
        self._details: dict[str, Any] = {}
        handler = type("Handler", (_Handler,), {"health": self})
        try:
            self._server = ThreadingHTTPServer((host, port), handler)
        except OSError as error:
            raise OSError(
                error.errno,
                f"cannot listen on {host}:{port} for /metrics: {error.strerror}; "
                f"set MARKETFLOW_{service.upper()}_HTTP_PORT to a free port (0: any)",
            ) from None
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.2,), name="health", daemon=True)

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return int(self._server.server_address[1])

    def beat(self) -> None:
        """The main loop is alive."""
        self._beat = time.monotonic()

    @property
    def last_beat(self) -> float:
        """When it was, by time.monotonic()."""
        return self._beat

    def ready(self, is_ready: bool, reason: str = "") -> None:
        """Whether the service can do its work now; the reason is shown while it cannot."""
        self._ready, self._reason = is_ready, reason

    def detail(self, **details: Any) -> None:
        """Facts for people, shown in /readyz."""
        self._details.update(details)

    def state(self) -> dict[str, Any]:
        """What /readyz shows."""
        stalled = time.monotonic() - self._beat > self._stall_after
        return {
            "service": self._service,
            "ready": self._ready and not stalled,
            "alive": not stalled,
            "reason": f"no sign of life for {self._stall_after:.0f} s" if stalled else self._reason,
            **self._details,
        }

    def __enter__(self) -> Health:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    health: Health
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path == "/metrics":
            metrics.READY.set(self.health.state()["ready"])
            self._answer(200, generate_latest(REGISTRY), CONTENT_TYPE_LATEST)
        elif path in ("/healthz", "/readyz"):
            state = self.health.state()
            good = state["alive"] if path == "/healthz" else state["ready"]
            self._answer(200 if good else 503, json.dumps(state).encode(), "application/json")
        else:
            self._answer(404, b"see /metrics, /healthz, /readyz\n", "text/plain")

    def _answer(self, status: int, body: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are not worth a log line."""
