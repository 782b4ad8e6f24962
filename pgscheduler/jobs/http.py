"""An HTTP request. Success is a status from 200 to 299.

It cannot be made to reach into your network: only public addresses are connected to, and those that the node's
owner allows, whatever names, redirects or number formats a URL comes with (see `_addresses`).
"""

from __future__ import annotations

import asyncio
import importlib.util
import re
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from pgscheduler import _check as check
from pgscheduler._json import clean_text
from pgscheduler.clock import monotonic
from pgscheduler.errors import InvalidTypeError, InvalidValueError
from pgscheduler.job import JobConfig

from ._addresses import Guard, HttpBlockedError
from ._fetch import FAILED, HttpCallError, Order, encode, fetch, origin, port_of, where
from ._kind import KindOfJob
from ._secrets import HIDDEN, mask, redacted, secrets_of
from ._urls import check_url, not_a_url

if TYPE_CHECKING:
    import httpx

    from pgscheduler._context import RunContext

__all__ = ["HttpBlockedError", "HttpCallError", "HttpJob", "HttpParameters"]

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
BODILESS = ("GET", "HEAD")
KEPT = 1000  # characters of an answer that a result holds
SHOWN = 100  # of one that failed, in its error text
LONGEST = timedelta(hours=1)
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,200}\Z")
_VALUE = re.compile(r"[\t\x20-\x7e]{0,8192}\Z")
#: They say where a request goes and where it ends: that is not the job's to say.
FRAMING = frozenset(
    {
        "connection", "content-length", "expect", "host", "keep-alive", "proxy-authorization", "proxy-connection",
        "te", "trailer", "transfer-encoding", "upgrade",
    }
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class HttpParameters:
    """What is requested. `repr` shows neither headers that may be secret, nor the query, nor the data."""

    #: `http` or `https`, without user name and password.
    url: str = ""
    method: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    #: The body: a str as it is; anything else as JSON, or, an object under that content type, as a form.
    data: Any = None
    #: Added to the URL's query: each a str, number, bool or None, or a list of them.
    params: Mapping[str, Any] = field(default_factory=dict)
    #: Seconds for everything together, redirects too. None: the node's (30 s).
    timeout: float | None = None
    #: The only one there is.
    type: str = "API_CALL"

    def __post_init__(self) -> None:
        if self.type != "API_CALL":
            raise InvalidValueError("type", self.type, f"must be API_CALL. Unsupported job type: {self.type}")
        if not self.url or not self.method:
            field_name = "method" if self.url else "url"
            rule = "must be given. API_CALL task missing required 'url' or 'method' in config."
            raise InvalidValueError(field_name, getattr(self, field_name), rule)
        check_url(self.url)
        if not isinstance(self.method, str):
            raise InvalidTypeError("method", self.method, "must be a str")
        object.__setattr__(self, "method", self.method.upper())
        check.one_of("method", self.method, METHODS)
        object.__setattr__(self, "headers", check_headers("headers", self.headers))
        _check_params(self.params)
        if self.data is not None and self.method in BODILESS:
            raise InvalidValueError("data", HIDDEN, f"must not be given with {self.method}: it has no body")
        if self.timeout is not None:
            seconds = check.duration("timeout", self.timeout, maximum=LONGEST).total_seconds()
            object.__setattr__(self, "timeout", seconds)

    def __repr__(self) -> str:
        shown = self.url.partition("#")[0].partition("?")[0]
        return f"HttpParameters({self.method} {shown[:300]}, headers={redacted(self.headers)})"


class HttpJob(KindOfJob):
    """Makes one HTTP request; its parameters are `HttpParameters`.

    The result is `{"status": 200, "url": …, "bytes": …, "seconds": …, "body": …}`: the last hop's URL without its
    query, and the first 1000 characters of the answer. Values of headers that may be secret, and of what
    has a telling name in `params` or `data`, are masked in it wherever the server repeats them. Every other
    outcome fails the attempt with HttpCallError or HttpBlockedError.

    `allow` opens addresses that are not public, and ports other than `ports`: networks (`10.0.0.0/8`), addresses
    or host names, each with a port or for all ports (`metrics.internal:9090`). A name that is allowed is
    trusted with whatever address it has.

    `credentials` are headers that this node adds to requests to an origin, and to no other, so that they need
    not be stored with a job: `{"https://api.example.org": {"Authorization": "Bearer …"}}`.

    `timeout` is for everything together, unless the job names its own; 30 s is what most servers give up after.
    `max_response_bytes` holds for the answer as sent and as unpacked. `tls` is your own `ssl.SSLContext`, say
    for a private authority; certificates are always checked by the default one.

    Needs httpx, from the extra `http`: InvalidValueError without it, and for each wrong argument.
    """

    parameters = HttpParameters
    own_name = "http_job"

    def __init__(
        self,
        config: JobConfig | None = None,
        *,
        allow: Iterable[str] = (),
        ports: Iterable[int] = (80, 443),
        credentials: Mapping[str, Mapping[str, str]] | None = None,
        timeout: timedelta | float = 30.0,
        max_response_bytes: int = 1
        << 20,  # of which a thousandth is kept; more is not an answer but a download
        tls: ssl.SSLContext | None = None,
    ) -> None:
        if importlib.util.find_spec("httpx") is None:
            raise InvalidValueError("HttpJob", "no httpx", 'needs httpx: pip install "pgscheduler[http]"')
        self._guard = Guard(allow, ports)
        self._credentials = _check_credentials({} if credentials is None else credentials)
        self._timeout = check.duration("timeout", timeout, maximum=LONGEST).total_seconds()
        self._limit = check.integer("max_response_bytes", max_response_bytes, 1, 1 << 30)
        if not isinstance(tls, ssl.SSLContext | None):
            raise InvalidTypeError("tls", tls, "must be an ssl.SSLContext")
        self._tls = tls
        super().__init__(config)

    def check(self, parameters: HttpParameters) -> None:
        """HttpBlockedError if the URL's port, or its address if it names one, is not allowed here."""
        url = parse_url(parameters.url)
        self._guard.check_host(url.raw_host.decode("ascii"), port_of(url))

    async def run(self, ctx: RunContext) -> dict[str, Any]:
        call: HttpParameters = ctx.parameters
        self.check(call)
        begun = monotonic()
        url = parse_url(call.url)
        if call.params:
            url = url.copy_merge_params(dict(call.params))
        content, added = encode(call.data, call.headers)
        headers = {**call.headers, **added}
        order = Order(
            call.method, url, headers, content, self._guard, self._credentials, self._limit, self._tls
        )
        seconds = self._timeout if call.timeout is None else call.timeout
        try:
            async with asyncio.timeout(seconds):
                answer = await fetch(order)
        except TimeoutError:
            raise HttpCallError(f"{FAILED} No answer from {where(url)} within {seconds:g} s") from None
        secrets = secrets_of(call.headers, {**dict(url.params.multi_items()), **call.params}, call.data)
        for own in self._credentials.values():
            secrets |= secrets_of(own)
        text = clean_text(mask(answer.text, secrets), len(answer.text) + 1)
        if not 200 <= answer.status <= 299:
            shown = f"Status: {answer.status}, Data: {text[:SHOWN]}..."
            raise HttpCallError(f"{FAILED} {shown}", answer.status)
        return {
            "status": answer.status,
            "url": mask(answer.url, secrets),
            "bytes": answer.size,
            "seconds": round(monotonic() - begun, 3),
            "body": text[:KEPT],
        }


def parse_url(text: Any) -> httpx.URL:
    """A URL that can be requested, ready for it; raises like `check_url`."""
    import httpx

    check_url(text)
    try:
        return httpx.URL(text).copy_with(fragment=None)
    except (httpx.InvalidURL, ValueError):  # another version of httpx may see it otherwise
        raise not_a_url() from None


def check_headers(field_name: str, headers: Any) -> dict[str, str]:
    """Headers as they are sent; errors name them and do not show their values."""
    if not isinstance(headers, Mapping):
        raise InvalidTypeError(field_name, type(headers), "must be an object (str to str)")
    found: dict[str, str] = {}
    for name, value in headers.items():
        if not isinstance(name, str) or not _TOKEN.match(name):
            raise InvalidValueError(field_name, name, "must have names of letters, digits and -")
        place = f"{field_name}.{name}"
        if name.lower() in FRAMING:
            raise InvalidValueError(place, HIDDEN, "must not be given: the request sets it itself")
        if name.lower() in (known.lower() for known in found):
            raise InvalidValueError(place, HIDDEN, "must be given once")
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise InvalidTypeError(place, type(value), "must be a str")
        text = str(value)
        if not _VALUE.match(text):
            raise InvalidValueError(
                place, HIDDEN, "must be printable ASCII without line breaks, at most 8192 characters"
            )
        found[name] = text.strip()
    return found


def _check_params(params: Any) -> None:
    if not isinstance(params, Mapping):
        raise InvalidTypeError("params", type(params), "must be an object")
    for name, value in params.items():
        if not isinstance(name, str):
            raise InvalidTypeError("params", name, "must have str as names")
        for one in value if isinstance(value, list) else [value]:
            if not isinstance(one, str | int | float | None):
                raise InvalidTypeError(f"params.{name}", type(one), "must be a str, a number, a bool or None")


def _check_credentials(given: Any) -> dict[str, dict[str, str]]:
    if not isinstance(given, Mapping):
        raise InvalidTypeError("credentials", type(given), "must map origins to headers")
    found = {}
    for place, headers in given.items():
        url = parse_url(place)
        if url.path not in ("", "/") or url.query:
            raise InvalidValueError(
                "credentials", where(url), "must have an origin as key: scheme, host, port"
            )
        found[origin(url)] = check_headers("credentials", headers)
    return found
