"""What the server counts, in Prometheus' format, and the small HTTP server that shows it on this machine."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client import generate_latest as text_of

from valueguide.errors import ConfigError, mismatch
from valueguide.transport.messages import DecideReply

log = logging.getLogger("valueguide.serving")
_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_BATCHES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters of one server. Names begin with valueguide_; docs/serve.md lists them."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()

        def seconds(name: str, text: str) -> Histogram:
            return Histogram(f"valueguide_{name}_seconds", text, buckets=_SECONDS, registry=registry)

        self.requests = Counter(
            "valueguide_requests", "Requests by what became of them", ["outcome"], registry=registry
        )
        self.decision = seconds("decision", "From a request's arrival to its answer")
        self.queue = seconds("queue", "From a request's arrival to the models' begin")
        self.policy = seconds("policy", "In the policy, a batch")
        self.critic = seconds("critic", "In the critic, a batch")
        self.batch = Histogram(
            "valueguide_batch_size", "Requests answered in one pass", buckets=_BATCHES, registry=registry
        )
        self.received = Counter("valueguide_received_bytes", "Of messages", registry=registry)
        self.sent = Counter("valueguide_sent_bytes", "Of messages", registry=registry)
        self.sessions = Gauge("valueguide_sessions", "Robots connected", registry=registry)
        self.waiting = Gauge("valueguide_waiting", "Requests that were not begun", registry=registry)
        self.swaps = Counter(
            "valueguide_swaps", "Models put in service, or refused", ["model", "outcome"], registry=registry
        )
        self.models = Info("valueguide_models", "What is in service", registry=registry)

    def answered(self, reply: DecideReply, took_s: float) -> None:
        """One decision went out."""
        self.requests.labels("decision").inc()
        self.decision.observe(took_s)
        self.queue.observe(reply.queue_s)
        self.policy.observe(reply.policy_s)
        self.critic.observe(reply.critic_s)

    def text(self) -> bytes:
        return text_of(self.registry)


class _Pages(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Readers that leave in the middle are theirs to explain: one line, where it is asked for."""
        log.info("status page: %s left in the middle: %s", client_address, sys.exception())


class StatusPage:
    """GET /metrics and /health on a loopback port. health: JSON-ready, with "status"; 503 unless "ready"."""

    def __init__(self, port: int, metrics: Metrics, health: Callable[[], dict[str, Any]]) -> None:
        """port: 0 takes a free one. Raises ConfigError when it is in use."""

        class Handler(BaseHTTPRequestHandler):
            timeout = 5.0

            def do_GET(self) -> None:
                if self.path == "/metrics":
                    self._answer(200, CONTENT_TYPE_LATEST, metrics.text())
                elif self.path == "/health":
                    found = health()
                    code = 200 if found["status"] == "ready" else 503
                    self._answer(code, "application/json", json.dumps(found).encode())
                else:
                    self._answer(404, "text/plain", b"/metrics or /health\n")

            def _answer(self, code: int, kind: str, content: bytes) -> None:
                self.send_response(code)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None:
                """One line a scrape is too many."""

        try:
            self._server = _Pages(("127.0.0.1", port), Handler)
        except OSError as error:
            raise ConfigError(mismatch("--status-port", "port", "a free one", f"{port} ({error})")) from None
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True, name="status")
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
