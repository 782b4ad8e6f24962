"""Before the endpoints: who may call, from where, how much may be sent and how long it may take.

Plain ASGI, around everything, so that no route can be forgotten: what is not said to be public needs a token.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from fastapi import Request

from pgscheduler._decide import error_text
from pgscheduler._hosts import is_loopback

from ._audit import facts, noting
from ._errors import ApiError, error_answer
from ._limits import Limits
from ._throttle import Throttle
from ._tokens import Caller, Scope, Tokens

__all__ = ["PUBLIC", "Guard", "caller_of"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

#: Answered without a token: a probe has none, and learns nothing but whether it works.
PUBLIC = ("/healthz", "/readyz")
#: A pass of the engine runs jobs, and takes as long as they do.
UNHURRIED = ("/jobs/engine/run",)
#: Sent with POST, because a question is long; they change nothing.
QUESTIONS = re.compile(r"/api/v1/(definitions/plan|templates/[^/]+/validate)")

_SAFE = ("GET", "HEAD", "OPTIONS")
#: Who calls when there are no tokens.
_THIS_MACHINE = Caller("this machine", "write")
_CALLER = "pgscheduler.caller"  # where endpoints find who calls
_HEADERS = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)


class Guard:
    """The outermost layer of the app."""

    def __init__(self, app: App, *, tokens: Tokens, limits: Limits, log: Callable[[], Any]) -> None:
        self._app = app
        self._tokens = tokens
        self._limits = limits
        self._log = log
        # The event loop's alone: requests that are being answered, and how many are still being read.
        self._requests: set[asyncio.Task[None]] = set()
        self._reading = 0
        self._throttle = Throttle(limits.wrong_tokens_per_minute)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(scope, send)
        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}  # the same answer; _Answer leaves the body out
        path = _path(scope)
        asks = scope["method"] in _SAFE or (scope["method"] == "POST" and bool(QUESTIONS.fullmatch(path)))
        try:
            headers = _headers(scope)
            caller = self._check_caller(scope, headers, path, asks)
            scope = {**scope, _CALLER: caller}
            if len(self._requests) + self._reading >= self._limits.max_requests and path not in PUBLIC:
                raise ApiError(503, "busy", "Too many requests wait.", headers={"Retry-After": "1"})
            self._reading += 1
            try:
                body = await self._read(headers, receive)
            finally:
                self._reading -= 1
        except ApiError as error:
            await error_answer(error)(scope, receive, answer)
            return
        except _GoneError:
            return
        limits = None if path in UNHURRIED else self._limits
        if asks:
            await self._answer(scope, body, receive, answer, limits)
            return
        noted = noting()
        try:
            await self._answer(scope, body, receive, answer, limits)
        finally:
            self._record(scope, noted, caller, answer.status)

    # --- who ----------------------------------------------------------------------------------------------

    def _record(
        self, scope: Message, noted: dict[str, Any], caller: Caller | None, status: int | None
    ) -> None:
        """Who changed what. No status: nobody waited for the answer."""
        found = facts(scope, noted)
        if found is not None:
            by = None if caller is None else caller.name
            self._log().info("api change", **found, by=by, client=_address(scope), status=status)

    def _check_caller(
        self, scope: Message, headers: dict[bytes, list[bytes]], path: str, asks: bool
    ) -> Caller | None:
        """Raise unless this request may come; None if anybody may ask that."""
        method = scope["method"]
        if method not in _SAFE:
            _check_origin(headers)
        if path in PUBLIC:
            return None
        if not self._tokens:
            _check_loopback(scope, headers)
            return _THIS_MACHINE
        given = headers.get(b"authorization", [])
        kind, _, token = (given[0] if len(given) == 1 else b"").partition(b" ")
        known = self._tokens.caller_of(token.strip()) if kind.lower() == b"bearer" else None
        challenge = {"WWW-Authenticate": 'Bearer realm="pgscheduler"'}
        if known is None:
            if given:  # without a token nothing was tried
                self._count_mistake(scope)
            raise ApiError(401, "unauthorized", "A bearer token is missing or unknown.", headers=challenge)
        needed: Scope = "read" if asks else "write"
        if needed == "write" and known.scope != "write":
            challenge["WWW-Authenticate"] += ', error="insufficient_scope"'
            raise ApiError(403, "forbidden", "This token may only read.", headers=challenge)
        return known

    def _count_mistake(self, scope: Message) -> None:
        """A wrong token: raise if too many came from there.

        Right ones are looked at before, so that nobody is kept out by others behind the same address.
        """
        address = _address(scope)
        seconds = self._throttle.mistake(address)
        if seconds is None:
            self._log().warning("wrong api token", client=address)
            return
        text = "Too many wrong tokens came from this address."
        raise ApiError(429, "too_many_attempts", text, headers={"Retry-After": str(seconds)})

    # --- how much -----------------------------------------------------------------------------------------

    async def _read(self, headers: dict[bytes, list[bytes]], receive: Receive) -> bytes:
        """The whole body, checked for its size and kind."""
        too_large = ApiError(
            413, "body_too_large", f"The body must not be larger than {self._limits.max_body_bytes} bytes."
        )
        length = headers.get(b"content-length", [b"0"])[0]
        if length.isdigit() and int(length[:20]) > self._limits.max_body_bytes:
            raise too_large
        if b"content-type" in headers:
            _check_type(headers)
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.body_timeout.total_seconds()):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _GoneError
                    body += message.get("body", b"")
                    if len(body) > self._limits.max_body_bytes:
                        raise too_large
                    if not message.get("more_body"):
                        break
        except TimeoutError:
            text = f"The body did not arrive within {self._limits.body_timeout.total_seconds():g} s."
            raise ApiError(408, "request_timeout", text, headers={"Connection": "close"}) from None
        if body:
            _check_type(headers)
        return bytes(body)

    # --- how long -----------------------------------------------------------------------------------------

    async def _answer(
        self, scope: Message, body: bytes, receive: Receive, answer: _Answer, limits: Limits | None
    ) -> None:
        """Let the app answer; instead of it if it fails, or takes too long."""
        sent = False

        async def replay() -> Message:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def work() -> None:
            try:
                await self._app(scope, replay, answer)
            except Exception as error:  # noqa: BLE001 - whatever it is, the caller gets an answer and the log the cause
                # No exc_info: of that a logger may show every variable, the token and the body among them.
                self._log().error(
                    "request failed",
                    path=scope["path"],
                    error=repr(error)[:500],
                    exception=error_text(error),
                )
                await self._instead(ApiError(500, "internal", "Internal server error."), scope, answer)

        task = asyncio.create_task(work())
        self._requests.add(task)
        task.add_done_callback(self._requests.discard)
        seconds = None if limits is None else limits.request_timeout.total_seconds()
        try:
            done, _ = await asyncio.wait({task}, timeout=seconds)
        except asyncio.CancelledError:
            task.cancel()
            raise
        if not done:
            # A thread that asks the database cannot be stopped. It keeps its place among `max_requests`, and what
            # it still says is not sent.
            text = "The answer took too long; a change may or may not have been made."
            await self._instead(ApiError(504, "timeout", text), scope, answer)

    async def _instead(self, error: ApiError, scope: Message, answer: _Answer) -> None:
        if not answer.begun:
            answer.begun = True
            answer.status = error.status_code
            await error_answer(error)(scope, _nothing, answer.last_word())


def caller_of(request: Request) -> Caller:
    """Who calls an endpoint that needs a token."""
    found: Caller = request.scope[_CALLER]
    return found


class _GoneError(Exception):
    """Who asked has hung up before the end of the question."""


class _Answer:
    """`send` with the headers that every answer has; deaf once another answer was given instead."""

    def __init__(self, scope: Message, send: Send) -> None:
        self._send = send
        self._bare = scope["method"] == "HEAD"
        self.begun = False
        self.status: int | None = None
        self._over = False

    async def __call__(self, message: Message) -> None:
        if self._over:
            return
        if message["type"] == "http.response.start":
            self.begun = True
            self.status = message["status"]
            given = [(name.lower(), value) for name, value in message.get("headers", [])]
            names = {name for name, _ in given}
            added = [(name, value) for name, value in _HEADERS if name not in names]
            message = {**message, "headers": [*given, *added]}
        elif self._bare:
            message = {**message, "body": b""}
        await self._send(message)

    def last_word(self) -> _Answer:
        """What may still speak when this one may not."""
        other = _Answer({"method": "HEAD" if self._bare else "GET"}, self._send)
        self._over = True
        return other


async def _nothing() -> Message:
    return {"type": "http.disconnect"}


def _path(scope: Message) -> str:
    """The path without what the app is mounted at."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path[len(root) :] if root and path.startswith(root) else path


def _address(scope: Message) -> str:
    """Whose connection it is: a client's, or the proxy's before us; nothing of a socket that has none."""
    client = scope.get("client")
    return str(client[0]) if client else ""


def _headers(scope: Message) -> dict[bytes, list[bytes]]:
    found: dict[bytes, list[bytes]] = {}
    for name, value in scope["headers"]:
        found.setdefault(name.lower(), []).append(value)
    return found


def _check_loopback(scope: Message, headers: dict[bytes, list[bytes]]) -> None:
    """Without tokens: only programs of this machine, and only those that mean it.

    A page whose name was made to resolve to 127.0.0.1 comes from here too, but its Host header gives it away.
    """
    client = scope.get("client")
    text = "Without a token only this machine may call: set PGSCHEDULER_API_WRITE_TOKENS."
    if not client or not is_loopback(str(client[0])):
        raise ApiError(403, "loopback_only", text)
    hosts = headers.get(b"host", [])
    try:
        host = urlsplit("//" + hosts[0].decode("latin-1")).hostname if len(hosts) == 1 else None
    except ValueError:
        host = None
    if host is None or not is_loopback(host):
        raise ApiError(403, "loopback_only", "Without a token the Host header must name this machine.")


def _check_origin(headers: dict[bytes, list[bytes]]) -> None:
    """A browser says whose page sends a change; it must be the API's own."""
    site = headers.get(b"sec-fetch-site", [b"none"])[0]
    origin = headers.get(b"origin", [None])[0]
    host = headers.get(b"host", [b""])[0]
    try:
        own = (
            origin is None
            or urlsplit(origin.decode("latin-1")).netloc.lower() == host.decode("latin-1").lower()
        )
    except ValueError:
        own = False
    if not own or site in (b"cross-site", b"same-site"):
        raise ApiError(403, "cross_origin", "A page of another site may not change anything here.")


def _check_type(headers: dict[bytes, list[bytes]]) -> None:
    """Only JSON, which a form of another site's page cannot send."""
    given = headers.get(b"content-type", [])
    kind, _, options = (given[0] if len(given) == 1 else b"").decode("latin-1").lower().partition(";")
    charset = options.replace(" ", "").replace('"', "")
    if kind.strip() != "application/json" or charset not in ("", "charset=utf-8", "charset=utf8"):
        raise ApiError(415, "unsupported_media_type", "The body must be application/json in UTF-8.")
