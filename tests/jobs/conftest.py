"""What the tests of the job kinds share: an HTTP server to be told how to answer, names to be invented, a run."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pgscheduler._registry import validate_parameters
from tests.engine.conftest import gate, scheduler_on

__all__ = ["gate", "scheduler_on"]

CERTIFICATE = Path(__file__).with_name("shop.test.pem")  # of a shop.test that signed itself, with its key


@dataclass
class Seen:
    """One request, as it arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: str


class _Handler(BaseHTTPRequestHandler):
    server: Web._Server  # type: ignore[assignment]

    def handle_one(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0))).decode()
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.web.seen.append(Seen(self.command, self.path, headers, body))
        # Who called may have hung up.
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            self.server.web.answer(self)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = handle_one

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        """A whole answer; `content_type="…"` makes a header."""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Web:
    """A server on loopback. `answer` says what each request gets, `seen` what came."""

    class _Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False
        web: Web

        def handle_error(self, *_: object) -> None:
            pass

    def __init__(self, answer: Callable[[Any], None], *, tls: bool = False, host: str = "127.0.0.1") -> None:
        self.answer = answer
        self.seen: list[Seen] = []
        self.closing = threading.Event()
        self._server = self._Server((host, 0), _Handler)
        self._server.web = self
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(CERTIFICATE)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port: int = self._server.server_port
        self.place = f"127.0.0.1:{self.port}"
        self.url = f"{'https' if tls else 'http'}://{self.place}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


@pytest.fixture
def web() -> Iterator[Callable[..., Web]]:
    """`web(lambda request: request.reply(200, b"…"))`: a server, closed after the test."""
    with contextlib.ExitStack() as stack:

        def start(answer: Callable[[Any], None] = lambda r: r.reply(200, b"fine"), **options: Any) -> Web:
            server = Web(answer, **options)
            stack.callback(server.close)
            return server

        yield start


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """Names and the answers that a resolver gives for them, one after the other: each a list of addresses.

    The last answer stays. `names["asked"]` lists what was asked for.
    """
    known: dict[str, list[Any]] = {"asked": []}
    real = socket.getaddrinfo

    def resolve(host: Any, port: Any, *args: Any, **options: Any) -> Any:
        text = host.decode() if isinstance(host, bytes) else host
        if text not in known or text == "asked":
            return real(host, port, *args, **options)
        known["asked"].append(text)
        answers = known[text]
        addresses = answers.pop(0) if len(answers) > 1 else answers[0]
        return [
            (socket.AF_INET6, 1, 6, "", (address, port, 0, 0))
            if ":" in address
            else (socket.AF_INET, 1, 6, "", (address, port))
            for address in addresses
        ]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return known


@pytest.fixture
def run() -> Callable[..., Any]:
    """`run(job, **parameters)`: one run, checked and called as a node does it; its result or its error."""

    def call(job: Any, **parameters: Any) -> Any:
        typed = validate_parameters(job.config.parameters_schema, parameters)
        context: Any = SimpleNamespace(parameters=typed, cancel_reason=None)
        result = job.run(context)
        return asyncio.run(result) if asyncio.iscoroutine(result) else result

    return call
