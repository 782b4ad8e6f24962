"""The metrics' server and clients that do not come to the point."""

from __future__ import annotations

import socket
import threading
import urllib.request
from collections.abc import Callable

import pytest

from pgscheduler import Scheduler

pytest.importorskip("prometheus_client")

from pgscheduler.metrics import _server, serve_metrics


def test_a_client_that_trickles_is_dropped(
    dsn: str, scheduler_on: Callable[..., Scheduler], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that goes on and on, byte by byte, ends when its time is over."""
    monkeypatch.setattr(_server, "LONGEST", 0.5)
    end = threading.Event()
    with (
        serve_metrics(scheduler_on(dsn), port=0) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=30) as trickle,
    ):

        def send() -> None:
            while not end.wait(0.05):  # each byte comes before a silent one's time is over
                try:
                    trickle.sendall(b"x")
                except OSError:
                    return

        sender = threading.Thread(target=send)
        sender.start()
        try:
            assert _hung_up(trickle)
        finally:
            end.set()
            sender.join()


def test_connections_are_bounded(
    dsn: str, scheduler_on: Callable[..., Scheduler], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One more than may be open is closed unheard; when they are gone, all is well."""
    monkeypatch.setattr(_server, "MOST", 2)
    monkeypatch.setattr(_server._Handler, "timeout", 60)
    with serve_metrics(scheduler_on(dsn), port=0) as server:
        held = [socket.create_connection(("127.0.0.1", server.port), timeout=30) for _ in range(2)]
        try:
            with socket.create_connection(("127.0.0.1", server.port), timeout=30) as more:
                assert _hung_up(more)
        finally:
            for one in held:
                one.shutdown(socket.SHUT_WR)
                assert _hung_up(one)
                one.close()
        with urllib.request.urlopen(server.url, timeout=30) as answer:
            assert answer.status == 200


def _hung_up(connection: socket.socket) -> bool:
    """The other side closes without an answer, in whichever way."""
    try:
        return not connection.recv(4096).startswith(b"HTTP/1.0 200")
    except ConnectionResetError:
        return True
