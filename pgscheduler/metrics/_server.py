"""`GET /metrics` over a small HTTP server of the standard library, on threads of its own."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from collections.abc import Iterable
from socketserver import ThreadingMixIn
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from pgscheduler import _check as check
from pgscheduler.clock import monotonic
from pgscheduler.errors import InvalidTypeError, InvalidValueError, ListenError, SchedulerStateError
from pgscheduler.scheduler import Scheduler

from ._metrics import Metrics

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["DEFAULT_HOST", "DEFAULT_PORT", "MetricsServer", "serve_metrics"]

#: Only this machine: there is no password, and names of jobs tell what a company does. In a container or for a
#: Prometheus elsewhere say `0.0.0.0`, and keep the port from the public.
DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 3000  # Kronii's
PATIENCE = 5.0  # seconds for a client to say something; a silent one must not keep a thread
LONGEST = 15.0  # seconds for all of it, however slowly its bytes come and go
MOST = 64  # connections at the same time, each of which is a thread


def serve_metrics(scheduler: Scheduler, port: int = DEFAULT_PORT, host: str = DEFAULT_HOST) -> MetricsServer:
    """Answer `GET /metrics` from now on, until `close()` or the scheduler's end.

    `port` 0 takes any free one; `MetricsServer.port` says which. It may be called before or after `start()`; while a
    shutdown waits for running jobs it still answers. Raises `ListenError` when the address cannot be had,
    `InvalidValueError` for a bad one and when prometheus_client is missing (extra `metrics`).
    """
    check.integer("port", port, 0, 65535)
    if not isinstance(host, str):
        raise InvalidTypeError("host", host, "must be a str")
    if not host:
        # The socket's own reading, every interface, is the opposite of what leaving it out means here.
        raise InvalidValueError("host", host, "cannot be empty; for every interface say 0.0.0.0 or ::")
    metrics = Metrics.of(scheduler)
    if metrics.closed:
        raise SchedulerStateError("scheduler was shut down: serve_metrics() cannot be called any more")
    return MetricsServer(metrics, host, port)


class MetricsServer:
    """One listening socket and the thread that serves it."""

    def __init__(self, metrics: Metrics, host: str, port: int) -> None:
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            kind: type[_Server] = type("_FamilyServer", (_Server,), {"address_family": family})
            app = _only_metrics(metrics.wsgi())
            self._server = make_server(str(address[0]), port, app, server_class=kind, handler_class=_Handler)
        except OSError as error:
            raise ListenError(host, port, error.strerror or str(error)) from error
        self.host = host
        self.port: int = self._server.server_port
        self._metrics = metrics
        self._closed = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(
            target=self._server.serve_forever, name=f"{metrics.name}-http", daemon=True
        )
        self._thread.start()
        metrics.on_close.append(self.close)

    @property
    def url(self) -> str:
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}/metrics"

    def close(self) -> None:
        """Stop listening. Returns when the port is free; a second call does no harm."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        with contextlib.suppress(OSError):
            # Wakes its thread at once; it would else notice the end only within half a second.
            self._server.socket.shutdown(socket.SHUT_RDWR)
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        with contextlib.suppress(ValueError):
            self._metrics.on_close.remove(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Server(ThreadingMixIn, WSGIServer):
    """Answers on a thread per request, so that a slow client keeps nobody waiting."""

    daemon_threads = True

    def __init__(self, *given: Any, **more: Any) -> None:
        self._open: dict[socket.socket, float] = {}  # since when; entered by the loop, left by the threads
        super().__init__(*given, **more)

    def process_request(self, request: Any, client_address: Any) -> None:
        if len(self._open) >= MOST:
            self.shutdown_request(request)
            return
        self._open[request] = monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        # Called by the loop, after each connection and twice a second.
        for request, since in self._open.copy().items():
            if monotonic() - since > LONGEST:
                with contextlib.suppress(OSError):  # its thread may have closed it meanwhile
                    request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that went away or said nothing is its own affair; anything else would be a bug of ours.
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(WSGIRequestHandler):
    timeout = PATIENCE

    def log_message(self, *_: Any) -> None:
        """A scrape every few seconds is not news."""


def _only_metrics(metrics: WSGIApplication) -> WSGIApplication:
    """The library's own application answers every path; here others do not exist."""

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ.get("PATH_INFO") in ("/metrics", "/metrics/"):
            return metrics(environ, start_response)
        start_response("404 Not Found", [("Content-Type", "text/plain; charset=utf-8")])
        return [b"only /metrics is here\n"]

    return answer
