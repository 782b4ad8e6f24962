"""Who may call, from where, how much may be sent and how long it may take; and what is said when it breaks."""

from __future__ import annotations

import asyncio
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from pgscheduler import DatabaseUnavailableError, InvalidValueError, JobConfig, ListenError, Scheduler
from pgscheduler._hosts import is_loopback
from pgscheduler.web import Limits, Server, Tokens, create_app
from tests.engine.conftest import Call
from tests.support import eventually, reserved_port
from tests.web.conftest import READ, WRITE

JOBS = "/api/v1/jobs"
BOTH = Tokens(read=[READ], write=[WRITE])
REQUEST_CODES = {401, 403}
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
PROTECTION = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def protected(answer: httpx.Response) -> httpx.Response:
    """An answer, which has what every answer has, once, and nothing that says what serves it or lets others read it."""
    for name, value in PROTECTION.items():
        assert answer.headers.get_list(name) == [value], (answer.request, answer.headers)
    assert not {"server", "access-control-allow-origin", "x-powered-by"} & answer.headers.keys()
    if answer.status_code != 204:
        assert answer.headers["content-type"] == "application/json"
    return answer


def paths_of(app: FastAPI) -> list[str]:
    """Each path of an app, with something in the place of its parameters."""
    found = {route.path_format for route in app.state.endpoints}
    assert found == app.openapi()["paths"].keys()
    return [path.format(job_id="1", run_id="1-0000000000000001", code="A") for path in sorted(found)]


def ask(
    scheduler: Scheduler,
    method: str = "GET",
    path: str = JOBS,
    *,
    address: Any = ("127.0.0.1", 1),
    host: str | None = None,
    tokens: Tokens | None = None,
    **options: Any,
) -> httpx.Response:
    """One request without a socket, from any address."""
    app = create_app(scheduler, tokens=tokens or Tokens())

    async def call() -> httpx.Response:
        transport = httpx.ASGITransport(app, client=address)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            request = client.build_request(method, path, **options)
            if host is not None:
                request.headers["Host"] = host
            return await client.send(request)

    return asyncio.run(call())


# --- tokens -------------------------------------------------------------------------------------------------


def test_every_route_needs_a_token(scheduler: Scheduler, client_of: Callable[..., httpx.Client]) -> None:
    """Each endpoint but the two for probes refuses who has no token, before it looks at anything else."""
    client = client_of(scheduler, tokens=BOTH)
    app = create_app(scheduler, tokens=BOTH)
    seen = 0
    for route in app.state.endpoints:
        path = route.path_format.format(job_id="1", run_id="1-0000000000000001", code="A")
        for method in route.methods:
            seen += 1
            bare = client.request(method, path)
            reader = client.request(method, path, headers=bearer(READ))
            writer = client.request(method, path, headers=bearer(WRITE))
            if path in ("/healthz", "/readyz"):
                assert bare.status_code == 200
                continue
            assert (bare.status_code, bare.json()["code"]) == (401, "unauthorized"), path
            assert bare.headers["www-authenticate"].startswith("Bearer")
            asks = method == "GET" or path.endswith(("/definitions/plan", "/templates/A/validate"))
            assert (reader.status_code == 403) == (not asks), path
            assert writer.status_code not in REQUEST_CODES, path
    assert seen > 20
    for path in ("/nowhere", "/docs", "/openapi.json", "/metrics", "/redoc", "/api/v1/jobs/"):
        assert client.get(path).status_code == 401
        assert client.get(path, headers=bearer(READ)).status_code == 404


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"Bearer",
        b"Basic " + WRITE.encode(),
        WRITE.encode(),
        b"Bearer " + WRITE[:-1].encode(),
        b"Bearer " + WRITE.encode() + b"x",
        b"Bearer " + WRITE.upper().encode(),
        b"Bearer \xff\xfe" + WRITE.encode(),
        b"Bearer " + "tokén-0123456789ab".encode(),
        b"Bearer " + b"x" * 5000,
        b"Bearer ' or 1=1 --",
    ],
)
def test_wrong_tokens(scheduler: Scheduler, client_of: Callable[..., httpx.Client], value: bytes) -> None:
    """Nothing but the whole token opens; whatever is sent instead is 401 and never a fault."""
    answer = client_of(scheduler, tokens=BOTH).get(JOBS, headers={"Authorization": value})
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")


def test_tokens_elsewhere_do_not_count(scheduler: Scheduler, client_of: Callable[..., httpx.Client]) -> None:
    """A token in the query, in a cookie, or beside another one is none."""
    client = client_of(scheduler, tokens=BOTH)
    assert client.get(JOBS, headers={"Cookie": f"token={WRITE}"}).status_code == 401
    twice = [("Authorization", f"Bearer {READ}"), ("Authorization", f"Bearer {WRITE}")]
    assert client.get(JOBS, headers=twice).status_code == 401
    assert client.get(JOBS, headers={"Authorization": f"bearer  {READ}"}).status_code == 200


def test_a_token_in_a_query_is_in_no_log(
    scheduler: Scheduler,
    client_of: Callable[..., httpx.Client],
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """It opens nothing, whatever it is called and whatever is asked, and no line of the server shows it."""
    caplog.set_level(logging.DEBUG)
    client = client_of(scheduler, tokens=BOTH)
    for name in ("token", "access_token", "api_key", "authorization"):
        for method, path in (
            ("GET", JOBS),
            ("POST", JOBS),
            ("GET", "/nowhere"),
            ("POST", f"{JOBS}/1/trigger"),
        ):
            bare = client.request(method, f"{path}?{name}={WRITE}")
            assert (bare.status_code, bare.json()["code"]) == (401, "unauthorized")
            wrong = client.request(method, f"{path}?{name}={WRITE}", headers=bearer("x" * 20))
            assert wrong.status_code in (401, 429)
            # Let in by a token of its own, it is an unknown parameter, or nothing at all where there is no endpoint.
            inside = client.request(method, f"{path}?{name}={WRITE}", headers=bearer(WRITE))
            assert inside.status_code in (400, 404, 415, 422), inside.text
            assert not any(WRITE in answer.text for answer in (bare, wrong, inside))
    assert any(event == "api change" for event in scheduler.log.events())
    assert WRITE not in str(scheduler.log.lines)
    # The client of this test logs what it asks.
    lines = [line.getMessage() for line in caplog.records if not line.name.startswith("httpx")]
    assert WRITE not in str([*lines, *capfd.readouterr()])


def test_tokens_from_the_environment() -> None:
    """Separated by commas or blanks; a wrong or empty one is an error that does not show it."""
    both = Tokens.from_env(
        {
            "PGSCHEDULER_API_READ_TOKENS": f"{READ}, other-read-token-1",
            "PGSCHEDULER_API_WRITE_TOKENS": f" {WRITE}\n{READ}x ",
        }
    )
    assert repr(both) == "Tokens(read=2, write=2)"
    assert [both.scope_of(t.encode()) for t in (READ, WRITE, READ + "x", "x")] == [
        "read",
        "write",
        "write",
        None,
    ]
    assert not Tokens.from_env({})
    for variable in ("PGSCHEDULER_API_READ_TOKENS", "PGSCHEDULER_API_WRITE_TOKENS"):
        for text in ("", " ", ",", "hunter2", f"{WRITE} hunter2", "hunter2-with-ümlaut-1234"):
            with pytest.raises(InvalidValueError, match=variable) as caught:
                Tokens.from_env({variable: text})
            assert "hunter2" not in str(caught.value)


def test_a_token_has_one_scope() -> None:
    """The same token for reading and for writing is a mistake in the set-up, and refused without showing it."""
    with pytest.raises(InvalidValueError, match=r"WRITE_TOKENS must not hold .* may only read") as caught:
        Tokens.from_env(
            {"PGSCHEDULER_API_READ_TOKENS": READ, "PGSCHEDULER_API_WRITE_TOKENS": f"deploy:{READ}"}
        )
    assert READ not in str(caught.value)
    assert repr(Tokens(read=[READ, READ])) == "Tokens(read=1, write=0)"


def test_the_default_is_the_environment(scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    """An app that is given no tokens has those of the environment."""
    monkeypatch.setenv("PGSCHEDULER_API_READ_TOKENS", READ)
    with Server(create_app(scheduler), port=0) as server:
        assert httpx.get(f"{server.url}{JOBS}").status_code == 401
        assert httpx.get(f"{server.url}{JOBS}", headers=bearer(READ)).status_code == 200


# --- without a token: this machine only -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        (("127.0.0.1", 1), True),
        (("127.9.9.9", 1), True),
        (("::1", 1), True),
        (("::ffff:127.0.0.1", 1), True),
        (("203.0.113.9", 1), False),
        (("10.0.0.1", 1), False),
        (("::ffff:10.0.0.1", 1), False),
        (("testclient", 1), False),
        (None, False),
    ],
)
def test_only_this_machine(scheduler: Scheduler, address: Any, allowed: bool) -> None:
    """However it is served: without a token configured, another machine is refused."""
    answer = ask(scheduler, address=address)
    assert (answer.status_code == 200) == allowed
    if not allowed:
        assert answer.json()["code"] == "loopback_only"
        assert ask(scheduler, address=address, tokens=BOTH, headers=bearer(READ)).status_code == 200
        assert ask(scheduler, path="/healthz", address=address).status_code == 200


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("localhost", True),
        ("LOCALHOST:8000", True),
        ("127.0.0.1:1", True),
        ("[::1]:8000", True),
        ("evil.example", False),
        ("evil.example:8000", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("127.0.0.1@evil.example", False),
        ("2130706433", False),
        ("[::1", False),
        ("0.0.0.0", False),
        ("", False),
    ],
)
def test_the_host_header_must_mean_this_machine(scheduler: Scheduler, host: str, allowed: bool) -> None:
    """A page whose name was made to resolve to 127.0.0.1 gives itself away."""
    assert (ask(scheduler, host=host).status_code == 200) == allowed


def test_loopback_names() -> None:
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "::1", "[::1]", "127.255.0.1")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.org", "", "127.1", "localhost.")))


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_no_public_address_without_a_token(scheduler: Scheduler, host: str) -> None:
    """It is refused before anything listens, and the text says what would help."""
    with pytest.raises(InvalidValueError, match=r"host.*PGSCHEDULER_API_WRITE_TOKENS"):
        Server(create_app(scheduler, tokens=Tokens()), host=host, port=0)


# --- other sites' pages ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, True),
        ({"Origin": "http://localhost"}, True),
        ({"Origin": "http://evil.example"}, False),
        ({"Origin": "http://localhost:9999"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": "http://[::1"}, False),
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "none"}, True),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "same-site"}, False),
    ],
)
def test_no_page_of_another_site_changes_anything(
    scheduler: Scheduler, headers: dict[str, str], allowed: bool
) -> None:
    """A browser says whose page sends; with and without a token, body or none."""
    for path, body in ((JOBS, {"name": "x", "parameters": {}}), (f"{JOBS}/999/trigger", None)):
        for tokens in (None, BOTH):
            given = {**headers, **(bearer(WRITE) if tokens else {})}
            answer = ask(scheduler, "POST", path, json=body, headers=given, tokens=tokens)
            assert (answer.status_code in (201, 404)) == allowed, answer.text
            if not allowed:
                assert answer.json()["code"] == "cross_origin"
    assert len(scheduler.jobs()) == (2 if allowed else 0)


@pytest.mark.parametrize(
    ("kind", "allowed"),
    [
        ("application/json", True),
        ("Application/JSON; charset=UTF-8", True),
        ('application/json;charset="utf-8"', True),
        ("application/json; charset=latin-1", False),
        ("application/problem+json", False),
        ("text/plain", False),
        ("application/x-www-form-urlencoded", False),
        ("multipart/form-data; boundary=x", False),
        ("", False),
        (None, False),
    ],
)
def test_only_json(api: httpx.Client, scheduler: Scheduler, kind: str | None, allowed: bool) -> None:
    """What a form can send is not read, whatever is in it."""
    headers = {} if kind is None else {"Content-Type": kind}
    answer = api.post(JOBS, content=b'{"name": "x", "parameters": {}}', headers=headers)
    assert answer.status_code == (201 if allowed else 415)
    assert len(scheduler.jobs()) == allowed
    if kind and not allowed:  # a form without fields has its type and no body
        assert api.post(f"{JOBS}/1/trigger", headers=headers).json()["code"] == "unsupported_media_type"


def test_nothing_is_changed_by_get(api: httpx.Client, scheduler: Scheduler) -> None:
    """Where something is changed, GET does nothing and says which methods there are."""
    job = api.post(JOBS, json={"name": "x", "parameters": {}}).json()["job"]["id"]
    for verb in ("enable", "disable", "trigger", "cancel"):
        answer = api.get(f"{JOBS}/{job}/{verb}")
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
        assert answer.json()["code"] == "method_not_allowed"
    for method in ("PUT", "TRACE", "OPTIONS", "BREW"):
        answer = api.request(method, f"{JOBS}/{job}")
        assert (answer.status_code, answer.headers["allow"]) == (405, "DELETE, GET, HEAD, PATCH")
    assert [j.state for j in scheduler.jobs()] == ["pending"]


def test_headers(api: httpx.Client) -> None:
    """Every answer, errors too, forbids sniffing, framing and keeping; nobody else's page may read it."""
    for path in ("/", "/healthz", JOBS, f"{JOBS}/0", "/nowhere"):
        protected(api.get(path, headers={"Origin": "http://evil.example"}))


@pytest.mark.parametrize("token", [None, "wrong-token-0123456789", READ, WRITE])
def test_headers_of_every_route(
    scheduler: Scheduler, client_of: Callable[..., httpx.Client], token: str | None
) -> None:
    """Each path by each method, with each kind of token and none: whatever the answer is, it has them."""
    client = client_of(scheduler, tokens=BOTH, token=token, limits=Limits(wrong_tokens_per_minute=10))
    scheduler.templates.create("A", handler="work")
    seen = set()
    for path in (*paths_of(create_app(scheduler, tokens=BOTH)), "/nowhere"):
        for method in METHODS:
            seen.add(protected(client.request(method, path)).status_code)
    if token is None:
        assert seen == {200, 401, 405}  # the probes
    elif token not in (READ, WRITE):
        assert seen == {200, 401, 405, 429}
    else:
        assert seen >= {200, 404, 405, 422} | ({403} if token == READ else {204})


def test_head(api: httpx.Client) -> None:
    """HEAD is GET without the body."""
    for path in ("/", "/healthz", JOBS, "/nowhere"):
        head, get = api.head(path), api.get(path)
        assert (head.status_code, head.content) == (get.status_code, b"")
        assert head.headers["content-length"] == get.headers["content-length"]


# --- how much, how long -----------------------------------------------------------------------------------------


def test_large_bodies(scheduler: Scheduler, client_of: Callable[..., httpx.Client]) -> None:
    """Too much is refused as soon as that is known, with and without a Content-Length."""
    api = client_of(scheduler, limits=Limits(max_body_bytes=4096))
    body = b'{"name": "x", "parameters": {"a": "%s"}}'
    json = {"Content-Type": "application/json"}
    assert api.post(JOBS, content=body % (b"a" * 4000), headers=json).status_code == 201
    assert api.post(JOBS, content=body % (b"a" * 4100), headers=json).status_code == 413

    def endless() -> Iterator[bytes]:
        for _ in range(100):
            yield b"a" * 1000

    answer = protected(api.post(JOBS, content=endless(), headers=json))
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")
    assert len(scheduler.jobs()) == 1


def test_a_body_that_does_not_come(scheduler: Scheduler, client_of: Callable[..., httpx.Client]) -> None:
    """A client that announces a body and sends none is not waited for."""
    api = client_of(scheduler, limits=Limits(body_timeout=0.2))
    with socket.create_connection((api.base_url.host, api.base_url.port or 80), 30) as slow:
        slow.sendall(
            b"POST /api/v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100\r\n\r\n{"
        )
        answer = b""
        while chunk := slow.recv(4096):
            answer += chunk
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"request_timeout" in answer
    assert api.get("/healthz").status_code == 200


@pytest.fixture
def stuck(scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """`stats` does not come back until the event is set."""
    release = threading.Event()
    monkeypatch.setattr(scheduler, "stats", lambda: release.wait(60) and {})
    yield release
    release.set()


def test_a_slow_answer(
    scheduler: Scheduler, stuck: threading.Event, client_of: Callable[..., httpx.Client]
) -> None:
    """Who waits too long is told; the server goes on."""
    api = client_of(scheduler, limits=Limits(request_timeout=3))
    answer = protected(api.get("/api/v1/stats"))
    assert (answer.status_code, answer.json()["code"]) == (504, "timeout")
    assert api.get(JOBS).status_code == 200


def test_too_many_requests(
    scheduler: Scheduler, stuck: threading.Event, client_of: Callable[..., httpx.Client]
) -> None:
    """One more than may wait is turned away at once; probes are answered, and all is well afterwards."""
    api = client_of(scheduler, limits=Limits(max_requests=2, request_timeout=1))
    assert [api.get("/api/v1/stats").status_code for _ in range(2)] == [504, 504]
    answer = protected(api.get(JOBS))
    assert (answer.status_code, answer.json()["code"]) == (503, "busy")
    assert answer.headers["retry-after"] == "1"
    assert api.get("/healthz").status_code == 200
    stuck.set()
    eventually(lambda: api.get(JOBS).status_code == 200)


# --- faults -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (RuntimeError("hunter2 in /usr/lib"), 500, "internal"),
        (
            DatabaseUnavailableError('connection to server at "db.internal", user "hunter2" failed'),
            503,
            "database_unavailable",
        ),
    ],
)
def test_faults_are_not_shown(
    api: httpx.Client,
    scheduler: Scheduler,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    status: int,
    code: str,
) -> None:
    """The caller gets a word, the log the cause."""

    def fail() -> Any:
        raise error

    monkeypatch.setattr(scheduler, "stats", fail)
    answer = protected(api.get("/api/v1/stats"))
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert not any(word in answer.text for word in ("hunter2", "db.internal", "/usr", "Traceback"))
    assert ("retry-after" in answer.headers) == (status == 503)
    (facts,) = [facts for _, event, facts in scheduler.log.lines if event == "request failed"]
    assert "exc_info" not in facts  # a logger would write the frames' variables: the token, the body
    assert type(error).__name__ in facts["error"]
    if status == 500:
        assert "raise error\nRuntimeError: hunter2 in /usr/lib" in facts["exception"]


#: A request in which something breaks, logged as structlog does by itself: with rich at hand, every variable of every frame.
BROKEN = """
import asyncio, sys, httpx
from pgscheduler import Scheduler, SchedulerConfig
from pgscheduler.web import Tokens, create_app

token, canary = sys.argv[1:]
scheduler = Scheduler(SchedulerConfig(dsn=f"postgresql://user:{canary}@127.0.0.1:1/x"))

def broken(*given, **more):
    deeper(*given, **more)

def deeper(*given, **more):
    raise LookupError("a fault of ours")

scheduler.enqueue = broken
app = create_app(scheduler, tokens=Tokens(write=[token]))
body = {"name": "a", "parameters": {"token": canary, "note": canary}, "metadata": {"a": canary}}

async def call():
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        return await client.post("/api/v1/jobs", json=body, headers={"Authorization": f"Bearer {token}"})

answer = asyncio.run(call())
print(answer.status_code, answer.text)
"""


def test_a_fault_is_logged_without_variables() -> None:
    """The log has the traceback of what broke, and neither the token nor the body of who asked, nor the DSN."""
    canary = "canary-in-the-mine"
    run = subprocess.run(
        [sys.executable, "-c", BROKEN, WRITE, canary], check=True, capture_output=True, text=True, timeout=120
    )
    assert '500 {"error":"Internal server error.","code":"internal"}' in run.stdout
    said = run.stdout + run.stderr
    for part in ("request failed", "LookupError: a fault of ours", "in deeper", "in broken"):
        assert part in said
    assert not any(secret in said for secret in (WRITE, canary))
    assert len(said) < 12_000


def test_health_without_a_database(
    dsn: str, proxy_to: Any, scheduler_on: Any, client_of: Callable[..., httpx.Client]
) -> None:
    """The process is alive but not ready while the database is away, refused or silent, and ready again after."""
    proxy = proxy_to(dsn)
    api = client_of(scheduler_on(proxy.dsn, connect_timeout=2))
    assert api.get("/readyz").json() == {"status": "ready", "reasons": []}
    for away in (proxy.refuse, proxy.stall):
        away()
        answer = api.get("/readyz")
        assert (answer.status_code, answer.json()["status"]) == (503, "not ready")
        assert answer.json()["reasons"][0].startswith("database: ")
        assert api.get("/healthz").status_code == 200
        proxy.heal()
        eventually(lambda: api.get("/readyz").status_code == 200, timeout=60)
    proxy.refuse()
    answer = api.post(JOBS, json={"name": "x", "parameters": {}})
    assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
    assert int(answer.headers["retry-after"]) > 0


def test_health_of_a_node(dsn: str, scheduler_on: Any, client_of: Callable[..., httpx.Client]) -> None:
    """A node whose loop fails, hangs or has ended is not ready; neither is one that was shut down."""
    node = scheduler_on(dsn, start=True, register=(Call(JobConfig(name="work")),))
    api = client_of(node)
    eventually(lambda: api.get("/readyz").status_code == 200)
    real = node.node_stats
    for change, word in (
        ({"failures": 9}, "dispatcher: failed 9 times"),
        ({"alive": False}, "dispatcher: its thread has ended"),
        ({"last_success_seconds": 3600.0}, "dispatcher: no success for 3600 s"),
    ):
        stats = real()
        stats["loops"]["dispatcher"] |= change
        node.node_stats = lambda stats=stats: stats
        answer = api.get("/readyz")
        assert (answer.status_code, answer.json()["reasons"][0][: len(word)]) == (503, word)
    node.node_stats = real
    node.shutdown()
    answer = api.get("/readyz")
    assert answer.status_code == 503
    assert "scheduler: stopped" in answer.json()["reasons"]
    assert api.get(JOBS).json()["code"] == "shutting_down"


@pytest.fixture
def port() -> Iterator[int]:
    """A port that nobody else is given."""
    with reserved_port() as port:
        yield port


def test_server_leaves_nothing_behind(scheduler: Scheduler, port: int) -> None:
    """Closed while somebody asks: the answer comes, the port is free, and no thread is left."""
    before = set(threading.enumerate())
    server = Server(create_app(scheduler, tokens=Tokens()), port=port)
    asked = threading.Event()
    real, answers = scheduler.stats, []

    def slow() -> Any:
        asked.set()
        time.sleep(0.3)  # the close must come while this is under way
        return real()

    scheduler.stats = slow  # type: ignore[method-assign]
    asking = threading.Thread(
        target=lambda: answers.append(httpx.get(f"{server.url}/api/v1/stats", timeout=60))
    )
    asking.start()
    assert asked.wait(30)
    server.close()
    server.close()
    asking.join()
    assert [answer.status_code for answer in answers] == [200]
    eventually(lambda: set(threading.enumerate()) <= before, describe=lambda: threading.enumerate())
    with Server(create_app(scheduler, tokens=Tokens()), port=server.port) as again:
        assert again.port == server.port
        with pytest.raises(ListenError):
            Server(create_app(scheduler, tokens=Tokens()), port=server.port)


@pytest.mark.parametrize("missing", ["fastapi", "uvicorn"])
def test_without_the_extra(scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    """What is missing is named, and what to install."""
    app = create_app(scheduler, tokens=Tokens())
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, "pgscheduler.web._app")
    with pytest.raises(InvalidValueError, match=r"pgscheduler\[server\]"):
        Server(app, port=0) if missing == "uvicorn" else create_app(scheduler)


# --- connections ------------------------------------------------------------------------------------------------


def test_a_head_that_does_not_come(scheduler: Scheduler, client_of: Callable[..., httpx.Client]) -> None:
    """Who connects and does not say what it wants is not waited for: not at first, not byte by byte, not the next time."""
    api = client_of(scheduler, limits=Limits(head_timeout=0.5))
    whole = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    for begun, answers in ((b"", 0), (b"GET /healthz HTTP/1.1\r\nHost: loc", 0), (whole + whole[:20], 1)):
        with socket.create_connection((api.base_url.host, api.base_url.port or 80), 30) as slow:
            slow.sendall(begun)
            assert _rest(slow).count(b"HTTP/1.1 200") == answers
    with socket.create_connection((api.base_url.host, api.base_url.port or 80), 30) as trickle:
        begun_at, trickle_end = time.monotonic(), threading.Event()

        def send() -> None:
            while not trickle_end.wait(0.05):  # each byte comes before the time is over
                try:
                    trickle.sendall(b"x")
                except OSError:
                    return

        sender = threading.Thread(target=send)
        sender.start()
        assert _rest(trickle) == b""
        trickle_end.set()
        sender.join()
        assert time.monotonic() - begun_at < 30
    assert api.get("/healthz").status_code == 200


def test_a_slow_answer_is_no_slow_head(
    scheduler: Scheduler, stuck: threading.Event, client_of: Callable[..., httpx.Client]
) -> None:
    """The limit is for the head alone: an answer may take longer, and the connection be used again after it."""
    api = client_of(scheduler, limits=Limits(head_timeout=0.2, request_timeout=1))
    assert [api.get("/api/v1/stats").status_code, api.get("/healthz").status_code] == [504, 200]


def test_too_many_connections(scheduler: Scheduler, client_of: Callable[..., httpx.Client]) -> None:
    """One more than may be open is closed unheard; there is room again when one goes."""
    api = client_of(scheduler, limits=Limits(max_connections=3, head_timeout=60))
    place = (api.base_url.host, api.base_url.port or 80)
    held = [socket.create_connection(place, 30) for _ in range(3)]
    try:
        with socket.create_connection(place, 30) as more:
            assert _rest(more) == b""
        held.pop().close()
        eventually(lambda: _healthy(api))
    finally:
        for one in held:
            one.close()


def _rest(connection: socket.socket) -> bytes:
    """What comes until the other side hangs up, in whichever way."""
    found = b""
    try:
        while chunk := connection.recv(4096):
            found += chunk
    except ConnectionResetError:
        pass
    return found


def _healthy(api: httpx.Client) -> bool:
    try:
        return api.get("/healthz").status_code == 200
    except httpx.TransportError:
        return False
