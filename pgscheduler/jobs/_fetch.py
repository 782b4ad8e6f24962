"""One HTTP request, with every hop checked, bounded in size, and made to an address that was looked at."""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import json
import socket
import ssl
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pgscheduler._version import __version__
from pgscheduler.errors import PgSchedulerError

from ._addresses import Address, Guard, HttpBlockedError
from ._secrets import harmless

if TYPE_CHECKING:
    import httpx

__all__ = ["Answer", "HttpCallError", "Order", "fetch", "origin", "port_of", "where"]

MAX_REDIRECTS = 3
CONNECT_TIMEOUT = 10.0  # seconds for one address; the whole call has its own deadline
FAILED = "API Call execution FAILED."


class HttpCallError(PgSchedulerError, RuntimeError):
    """A request that was made did not succeed. `status` is the answer's, None if there was none."""

    plain = True

    def __init__(self, message: str, status: int | None = None) -> None:
        self.status = status
        super().__init__(message)


@dataclass(frozen=True)
class Order:
    """One request, and what holds for all its hops."""

    method: str
    url: httpx.URL
    headers: Mapping[str, str]
    content: bytes | None
    guard: Guard
    #: Headers that this node adds, by origin; they never leave for another.
    credentials: Mapping[str, Mapping[str, str]]
    limit: int  # bytes of an answer, as sent and as unpacked
    tls: ssl.SSLContext | None


@dataclass(frozen=True)
class Answer:
    """What came back, whatever its status."""

    status: int
    url: str  # of the last hop, without its query
    size: int  # bytes as sent
    text: str


def port_of(url: httpx.URL) -> int:
    return url.port if url.port is not None else {"http": 80, "https": 443}[url.scheme]


def origin(url: httpx.URL) -> str:
    """Scheme, host and port, always with the port."""
    host = url.raw_host.decode("ascii").lower()
    return f"{url.scheme}://{f'[{host}]' if ':' in host else host}:{port_of(url)}"


def where(url: httpx.URL) -> str:
    """A URL as it may be shown: its query may hold a key."""
    return f"{url.scheme}://{url.netloc.decode('ascii', 'replace')}{url.path}"[:300]


async def fetch(order: Order) -> Answer:
    """The answer to a request, after at most three redirects.

    Raises HttpBlockedError before anything goes where it must not, HttpCallError for everything else. The caller
    sets the deadline, and cancels.
    """
    import httpx

    method, url, headers, content = order.method, order.url, dict(order.headers), order.content
    for _ in range(MAX_REDIRECTS + 1):
        answer, location = await _exchange(order, method, url, headers, content)
        if location is None:
            return answer
        try:
            target = url.join(location).copy_with(fragment=None)
        except (httpx.InvalidURL, ValueError):
            raise HttpCallError(f"{FAILED} It redirects to what is not a URL", answer.status) from None
        _check_hop(url, target)
        if answer.status == 303 or (answer.status in (301, 302) and method == "POST"):
            method, content = ("HEAD" if method == "HEAD" else "GET"), None
            headers = {n: v for n, v in headers.items() if not n.lower().startswith("content-")}
        if origin(target) != origin(url):
            if content is not None:
                text = f"{FAILED} It redirects the request's data to another origin, {origin(target)}"
                raise HttpCallError(text, answer.status)
            # For good: coming back to the first origin does not bring them back.
            headers = {name: value for name, value in headers.items() if harmless(name)}
        url = target
    raise HttpCallError(f"{FAILED} More than {MAX_REDIRECTS} redirects", answer.status)


def _check_hop(source: httpx.URL, target: httpx.URL) -> None:
    if target.scheme not in ("http", "https") or not target.host:
        raise HttpBlockedError("blocked: a redirect to a URL that is not http or https")
    if target.userinfo:
        raise HttpBlockedError("blocked: a redirect to a URL with a user name")
    if (source.scheme, target.scheme) == ("https", "http"):
        raise HttpBlockedError(f"blocked: a redirect from https to http, {where(target)}")


async def _exchange(
    order: Order, method: str, url: httpx.URL, headers: Mapping[str, str], content: bytes | None
) -> tuple[Answer, str | None]:
    """One hop: the answer, and where it redirects to, if it does."""
    import httpx

    host, port = url.raw_host.decode("ascii"), port_of(url)
    addresses = order.guard.check(host, await _resolve(host, port), port)
    # Nothing that has to be unpacked is asked for.
    sent = httpx.Headers(
        {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": f"pgscheduler/{__version__}"}
    )
    for more in (headers, order.credentials.get(origin(url), {})):
        sent.update(more)  # whatever the case of a name
    sent.update({"Host": url.netloc.decode("ascii"), "Connection": "close"})
    pause = {"connect": CONNECT_TIMEOUT, "read": None, "write": None, "pool": None}
    # Below httpx's client: no proxies or passwords from the environment, no cookies, no log line with the query.
    async with httpx.AsyncHTTPTransport(verify=order.tls or _tls(), trust_env=False) as transport:
        try:
            for index, address in enumerate(addresses):
                request = httpx.Request(
                    method,
                    url.copy_with(host=str(address)),
                    headers=sent,
                    content=content,
                    extensions={"timeout": pause, "sni_hostname": host},
                )
                try:
                    response = await transport.handle_async_request(request)
                    break
                except (httpx.ConnectError, httpx.ConnectTimeout):
                    if index == len(addresses) - 1:
                        raise
            try:
                status, location = response.status_code, response.headers.get("location")
                if status in (301, 302, 303, 307, 308) and location is not None:
                    return Answer(status, where(url), 0, ""), location
                size, body = await _read(response, order.limit)
            finally:
                await response.aclose()
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, ssl.SSLError) as error:
            # `from None`: the libraries' own texts repeat what was sent.
            raise HttpCallError(f"{FAILED} No answer from {where(url)}: {_plainly(error)}") from None
    return Answer(status, where(url), size, body), None


async def _resolve(host: str, port: int) -> list[Address]:
    """All addresses of a host, in the system's order."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        text = getattr(error, "strerror", None) or "not a host name"
        raise HttpCallError(f"{FAILED} The host {host!a} has no address: {text}") from None
    addresses = [ipaddress.ip_address(entry[4][0]) for entry in found]
    return list(dict.fromkeys(addresses))


async def _read(response: httpx.Response, limit: int) -> tuple[int, str]:
    """Size and text of a body of at most `limit` bytes, also once it is unpacked."""
    coding = response.headers.get("content-encoding", "identity").strip().lower()
    unpack = zlib.decompressobj(wbits=47) if coding in ("gzip", "x-gzip", "deflate") else None
    size, body = 0, bytearray()
    async for chunk in response.aiter_raw():
        size += len(chunk)
        if unpack is not None:
            try:
                # Not a byte more than would be too much: a small answer may stand for a gigabyte.
                chunk = unpack.decompress(chunk, limit + 1 - len(body))
            except zlib.error:
                raise HttpCallError(f"{FAILED} The answer is not {coding}", response.status_code) from None
        body += chunk
        if size > limit or len(body) > limit:
            text = f"{FAILED} The answer is larger than {limit} bytes (max_response_bytes)"
            raise HttpCallError(text, response.status_code)
    if unpack is None and coding != "identity":
        return size, f"<{size} bytes of {coding[:40]}>"
    try:
        return size, body.decode(response.charset_encoding or "utf-8", "replace")
    except LookupError:
        return size, body.decode("utf-8", "replace")


def _plainly(error: Exception) -> str:
    """What went wrong, by the kind of error; only a certificate's failing is told in the library's words."""
    text = str(error)
    return f"{type(error).__name__}: {text[:200]}" if "CERTIFICATE" in text else type(error).__name__


@functools.cache
def _tls() -> ssl.SSLContext:
    import httpx

    return httpx.create_ssl_context()


def encode(data: Any, headers: Mapping[str, str]) -> tuple[bytes | None, dict[str, str]]:
    """A body, and the headers that go with it: text as it is, a form if the headers say so, else JSON."""
    import httpx

    given = {name.lower(): value for name, value in headers.items()}.get("content-type", "")
    kind = given.partition(";")[0].strip().lower()
    if data is None:
        return None, {}
    if isinstance(data, str):
        return data.encode(), {} if given else {"Content-Type": "text/plain; charset=utf-8"}
    if isinstance(data, dict) and kind == "application/x-www-form-urlencoded":
        return str(httpx.QueryParams(data)).encode(), {}
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode(), {} if given else {"Content-Type": "application/json"}
