"""The app on a socket: uvicorn on a thread of its own, so that signals stay with whoever owns the process."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from pgscheduler import _check as check
from pgscheduler._hosts import is_loopback
from pgscheduler.errors import InvalidTypeError, InvalidValueError, ListenError

from ._limits import Limits

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

__all__ = ["DEFAULT_HOST", "DEFAULT_PORT", "Server"]

#: Only this machine, unless somebody says otherwise and has a token.
DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8000  # 3000, Cron Service's, is the metrics' already
GRACEFUL = 10  # seconds for answers that are on their way when it is closed
STARTED = 30.0  # seconds for the app's own start
BACKLOG = 128


class Server:
    """One listening socket and the thread that answers it.

    ::

        with Server(create_app(scheduler), port=8000) as server:
            print(server.url)

    `port` 0 takes any free one; `Server.port` says which. Raises ListenError if the address cannot be had,
    InvalidValueError for a bad one, for a public address without a token, and when uvicorn is missing (extra
    `server`); and what the app's own start raises.
    """

    def __init__(self, app: FastAPI, *, host: str = DEFAULT_HOST, port: int = DEFAULT_PORT) -> None:
        check.integer("port", port, 0, 65535)
        if not isinstance(host, str):
            raise InvalidTypeError("host", host, "must be a str")
        if not host:
            raise InvalidValueError("host", host, "cannot be empty; for every interface say 0.0.0.0 or ::")
        try:
            import uvicorn
        except ModuleNotFoundError as error:
            raise InvalidValueError(
                "Server", "no uvicorn", 'needs uvicorn: pip install "pgscheduler[server]"'
            ) from error
        self._socket = _listen(host, port, app)
        self.host = host
        #: What it was told to ask for; shows how many there are, and none.
        self.tokens = getattr(app.state, "tokens", None)
        self._waiting = getattr(app.state, "waiting", None)
        self.port: int = self._socket.getsockname()[1]
        config = uvicorn.Config(
            app,
            loop="asyncio",
            http=_hasty(getattr(app.state, "limits", None) or Limits()),
            ws="none",
            lifespan="on",
            log_config=None,  # whoever runs the process configures its log
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=GRACEFUL,
        )
        if self._waiting is not None:
            self._waiting.close(False)  # an app may be served again
        self._started = threading.Event()
        self._server = _announcing(uvicorn.Server, self._started)(config)
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"pgscheduler-api-{self.port}", daemon=True)
        self._thread.start()
        if not self._started.wait(STARTED) or not self._server.started:
            self.close()
            raise self._failure or ListenError(host, self.port, "the app did not start")

    @property
    def url(self) -> str:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 - compared, not bound
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    def close(self) -> None:
        """Stop listening, let answers on their way come to their end, for 10 s. A second call does no harm.

        What takes longer, a pass of the engine with a long job, say, is left to its thread, which keeps no process
        from ending.
        """
        self._server.should_exit = True
        if self._waiting is not None:
            self._waiting.close()
        self._thread.join(GRACEFUL + 2)
        with contextlib.suppress(OSError):
            self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self) -> None:
        try:
            asyncio.run(self._server.serve(sockets=[self._socket]))
        except BaseException as error:  # noqa: BLE001 - told to the thread that waits for the start
            self._failure = error
        finally:
            self._started.set()


def _hasty(limits: Limits) -> type[asyncio.Protocol]:
    """The library's protocol, which waits for a request's head for a while only, and for so many clients.

    Before a head is there, no layer of the app knows of the connection; the library's own limits begin after it.
    """
    from uvicorn.protocols.http.h11_impl import H11Protocol

    seconds = limits.head_timeout.total_seconds()

    class Hasty(H11Protocol):
        _waiting: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > limits.max_connections:
                transport.abort()
                return
            self._waiting = self.loop.call_later(seconds, transport.abort)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._stop_waiting()
            elif self._waiting is None and not self.transport.is_closing():
                # The next head on this connection has begun; more of it does not buy more time.
                self._waiting = self.loop.call_later(seconds, self.transport.abort)

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def _stop_waiting(self) -> None:
            if self._waiting is not None:
                self._waiting.cancel()
                self._waiting = None

    return Hasty


def _announcing(kind: type[uvicorn.Server], started: threading.Event) -> type[uvicorn.Server]:
    """The library's server, which says when it answers."""

    class Announcing(kind):  # type: ignore[misc,valid-type]
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets=sockets)
            started.set()

    return Announcing


def _listen(host: str, port: int, app: Any) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        if not getattr(app.state, "tokens", None) and not is_loopback(str(address[0])):
            raise InvalidValueError(
                "host",
                host,
                "must be of this machine (127.0.0.1, ::1) as long as no token is set: "
                "PGSCHEDULER_API_READ_TOKENS, PGSCHEDULER_API_WRITE_TOKENS",
            )
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(BACKLOG)
        except BaseException:
            listening.close()
            raise
    except (OSError, UnicodeError) as error:
        raise ListenError(host, port, getattr(error, "strerror", None) or str(error)) from error
    return listening
