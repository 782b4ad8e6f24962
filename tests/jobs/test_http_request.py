"""HttpJob: what is sent, what counts as success, and what a run's record holds of the answer."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from typing import Any

import pytest

from pgscheduler import InvalidTypeError, InvalidValueError, JobConfig, JobState, Scheduler, SchedulerConfig
from pgscheduler.jobs import HttpCallError, HttpJob, HttpParameters

CANARY = "canary-in-the-mine"


def job(web: Any, **policy: Any) -> HttpJob:
    return HttpJob(allow=[web.place], **policy)


# --- success and failure -----------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 201, 202, 299])
def test_2xx_is_success(web: Any, run: Any, status: int) -> None:
    """Every status from 200 to 299 completes the run, and the result says what came back."""
    server = web(lambda r: r.reply(status, b"hello"))

    result = run(job(server), url=f"{server.url}/a?key=1", method="get")

    assert result.pop("seconds") >= 0
    assert result == {"status": status, "url": f"{server.url}/a", "bytes": 5, "body": "hello"}


def test_no_content_is_success(web: Any, run: Any) -> None:
    """204 has no body, and completes the run."""
    server = web(lambda r: (r.send_response(204), r.end_headers()))
    assert run(job(server), url=server.url, method="DELETE")["status"] == 204


@pytest.mark.parametrize("status", [304, 400, 404, 500, 503])
def test_other_statuses_fail(web: Any, run: Any, status: int) -> None:
    """Any other status fails the attempt; the text names it and shows the first 100 characters of the answer."""
    server = web(lambda r: r.reply(status, b"x" * 500))
    with pytest.raises(HttpCallError) as caught:
        run(job(server), url=server.url, method="POST")
    shown = "" if status == 304 else "x" * 100
    assert caught.value.status == status
    if status != 304:
        assert str(caught.value) == f"API Call execution FAILED. Status: {status}, Data: {shown}..."


def test_result_keeps_the_beginning(web: Any, run: Any) -> None:
    """A long answer's size is told, and its first 1000 characters are kept."""
    server = web(lambda r: r.reply(200, b"y" * 50_000))
    result = run(job(server), url=server.url, method="GET")
    assert (result["bytes"], result["body"]) == (50_000, "y" * 1000)


def test_any_bytes_can_be_recorded(web: Any, run: Any) -> None:
    """An answer that is not text, or names a charset that does not exist, is recorded as text that fits JSON."""
    server = web(lambda r: r.reply(200, b"a\x00\xff", content_type="text/plain; charset=nonsense"))
    assert run(job(server), url=server.url, method="GET")["body"] == "a\\x00\ufffd"


def test_nobody_listens(web: Any, run: Any) -> None:
    """A refused connection fails the attempt with a text that names the place, and nothing else of the request."""
    server = web()
    server.close()
    with pytest.raises(
        HttpCallError, match=r"API Call execution FAILED\. No answer from .*ConnectError"
    ) as caught:
        run(job(server), url=f"{server.url}/?token={CANARY}", method="GET")
    assert CANARY not in str(caught.value)
    assert caught.value.status is None


def test_no_such_host(run: Any) -> None:
    """A host that does not exist fails the attempt."""
    with pytest.raises(HttpCallError, match=r"nowhere\.invalid.*has no address"):
        run(HttpJob(), url="http://nowhere.invalid/", method="GET")


# --- what is sent ------------------------------------------------------------------------------------


def test_request_as_sent(web: Any, run: Any) -> None:
    """Method, path, query with added params, and headers arrive; a caller's header replaces the default one."""
    server = web()
    run(
        job(server),
        url=f"{server.url}/a%20b?x=1#part",
        method="get",
        params={"y": "ä &", "z": [1, 2], "on": True, "none": None},
        headers={"X-Thing": "seven", "user-agent": "me", "n": 7},
    )
    (seen,) = server.seen
    assert (seen.method, seen.path) == ("GET", "/a%20b?x=1&y=%C3%A4+%26&z=1&z=2&on=true&none=")
    assert {n: seen.headers[n] for n in ("x-thing", "user-agent", "n", "host")} == {
        "x-thing": "seven",
        "user-agent": "me",
        "n": "7",
        "host": server.place,
    }
    assert seen.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize(
    ("data", "headers", "kind", "body"),
    [
        ({"a": [1, "ü"]}, {}, "application/json", '{"a":[1,"ü"]}'),
        ([1], {"content-type": "application/vnd.x+json"}, "application/vnd.x+json", "[1]"),
        (False, {}, "application/json", "false"),
        ("plain", {}, "text/plain; charset=utf-8", "plain"),
        ("a=1", {"Content-Type": "text/x"}, "text/x", "a=1"),
        (
            {"a": "1 2", "b": 3},
            {"Content-Type": "application/x-www-form-urlencoded"},
            "application/x-www-form-urlencoded",
            "a=1+2&b=3",
        ),
    ],
)
def test_body(web: Any, run: Any, data: Any, headers: Any, kind: str, body: str) -> None:
    """Data is sent as JSON, as the text that it is, or as a form if the content type says so."""
    server = web()
    run(job(server), url=server.url, method="PUT", data=data, headers=headers)
    (seen,) = server.seen
    assert (seen.headers["content-type"], seen.body) == (kind, body)


def test_proxies_of_the_environment_are_ignored(web: Any, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy variable does not lead requests past the check of addresses."""
    server = web()
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert run(job(server), url=server.url, method="GET")["status"] == 200


# --- wrong parameters --------------------------------------------------------------------------------

GOOD = {"url": "https://example.org/", "method": "GET"}


@pytest.mark.parametrize(
    ("wrong", "error", "pattern"),
    [
        ({"url": ""}, ValueError, r"^url .*API_CALL task missing required 'url' or 'method' in config\."),
        ({"method": None}, ValueError, r"^method .*API_CALL task missing required 'url' or 'method' in config\."),
        ({"type": "FTP_CALL"}, ValueError, r"^type .*Unsupported job type: FTP_CALL"),
        ({"url": 5}, TypeError, "^url"),
        ({"url": "example.org/x"}, ValueError, "^url.*scheme"),
        ({"url": "file:///etc/passwd"}, ValueError, "^url.*http"),
        ({"url": "gopher://example.org"}, ValueError, "^url.*http"),
        ({"url": "ftp://example.org"}, ValueError, "^url.*http"),
        ({"url": "http://"}, ValueError, "^url.*host"),
        ({"url": "http://user:hunter2@example.org"}, ValueError, "^url.*user name"),
        ({"url": "http://example.org\r\nX: y"}, ValueError, "^url.*control"),
        ({"url": "http://exa mple.org"}, ValueError, "^url.*spaces"),
        ({"url": "http://①②⑦.0.0.1/"}, ValueError, "^url.*valid"),
        ({"url": "http://0177.0.0.1/"}, ValueError, "^url.*valid"),
        ({"url": "http://[::1"}, ValueError, "^url.*valid"),
        ({"url": "http://example.org:99999"}, ValueError, "^url.*port"),
        ({"url": "http://example.org/" + "a" * 9000}, ValueError, "^url.*8192"),
        ({"method": "GET\r\nX: y"}, ValueError, "^method"),
        ({"method": "CONNECT"}, ValueError, "^method"),
        ({"method": 5}, TypeError, "^method"),
        ({"headers": ["a"]}, TypeError, "^headers"),
        ({"headers": {"A": "hunter2\r\nB: c"}}, ValueError, r"^headers\.A.*line breaks"),
        ({"headers": {"A": "hunter2\nB"}}, ValueError, r"^headers\.A"),
        ({"headers": {"A": "hunter2\x00"}}, ValueError, r"^headers\.A"),
        ({"headers": {"A": "hunter2é"}}, ValueError, r"^headers\.A.*ASCII"),
        ({"headers": {"A\r\nB": "c"}}, ValueError, "^headers.*names"),
        ({"headers": {"A:": "c"}}, ValueError, "^headers.*names"),
        ({"headers": {"": "c"}}, ValueError, "^headers.*names"),
        ({"headers": {"A": None}}, TypeError, r"^headers\.A"),
        ({"headers": {"A": ["hunter2"]}}, TypeError, r"^headers\.A"),
        ({"headers": {"Host": "inside"}}, ValueError, r"^headers\.Host"),
        ({"headers": {"content-LENGTH": "5"}}, ValueError, r"^headers\.content-LENGTH"),
        ({"headers": {"Transfer-Encoding": "chunked"}}, ValueError, r"^headers\.Transfer-Encoding"),
        ({"headers": {"a": "hunter2", "A": "hunter2"}}, ValueError, r"^headers\.A.*once"),
        ({"data": "hunter2"}, ValueError, "^data.*GET"),
        ({"params": "hunter2"}, TypeError, "^params"),
        ({"params": {"a": {"b": "hunter2"}}}, TypeError, r"^params\.a"),
        ({"timeout": 0}, ValueError, "^timeout"),
        ({"timeout": -1}, ValueError, "^timeout"),
        ({"timeout": float("inf")}, ValueError, "^timeout"),
        ({"timeout": 1e9}, ValueError, "^timeout"),
        ({"timeout": "5"}, TypeError, "^timeout"),
    ],
)  # fmt: skip
def test_wrong_parameters(wrong: dict[str, Any], error: type[Exception], pattern: str) -> None:
    """A wrong parameter is refused by a typed error that names it, and never shows what may be secret."""
    with pytest.raises(error, match=pattern) as caught:
        HttpParameters(**{**GOOD, **wrong})
    assert isinstance(caught.value, InvalidValueError | InvalidTypeError)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "pattern"),
    [
        ({"allow": "10.0.0.0/8"}, "^allow"),
        ({"allow": ["10.0.0.1/8"]}, "^allow"),
        ({"allow": ["10.0.0"]}, "^allow"),
        ({"allow": ["a b"]}, "^allow"),
        ({"allow": ["a:0"]}, "^allow"),
        ({"allow": ["a:99999"]}, "^allow"),
        ({"allow": [5]}, "^allow"),
        ({"ports": [0]}, "^ports"),
        ({"ports": 80}, "^ports"),
        ({"timeout": 0}, "^timeout"),
        ({"max_response_bytes": 0}, "^max_response_bytes"),
        ({"tls": True}, "^tls"),
        ({"credentials": []}, "^credentials"),
        ({"credentials": {"https://a.example/path": {}}}, "^credentials.*origin"),
        ({"credentials": {"https://a.example": {"X": "hunter2\n"}}}, r"^credentials\.X"),
        ({"config": JobConfig(parameters_schema={})}, "^parameters_schema"),
    ],
)
def test_wrong_policy(wrong: dict[str, Any], pattern: str) -> None:
    """A wrong argument of the constructor is refused by name."""
    with pytest.raises((InvalidValueError, InvalidTypeError), match=pattern) as caught:
        HttpJob(**wrong)
    assert "hunter2" not in str(caught.value)


def test_without_httpx(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra, the constructor says what to install."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InvalidValueError, match=r'pip install "pgscheduler\[http\]"'):
        HttpJob()


def test_the_other_kinds_need_no_httpx() -> None:
    """Importing the job kinds does not import httpx."""
    code = "import sys, pgscheduler.jobs; assert 'httpx' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- through a scheduler -----------------------------------------------------------------------------


class Lines:
    """A logger that keeps all it is told."""

    def __init__(self) -> None:
        self.text = ""

    def debug(self, event: str, **fields: object) -> None:
        self.text += f"{event} {fields}\n"

    info = warning = error = debug


def test_checked_before_it_is_stored(dsn: str, web: Any) -> None:
    """What breaks a rule, or what the node's policy does not allow, is not stored."""
    http = HttpJob()
    with Scheduler(SchedulerConfig(dsn=dsn, logger=Lines())) as scheduler:
        for wrong in (
            {},
            {"url": "https://example.org"},
            {**GOOD, "url": "http://10.0.0.1/"},
            {**GOOD, "hedaers": {}},
        ):
            with pytest.raises((ValueError, PermissionError)):
                scheduler.schedule(http.with_config(JobConfig.one_time("http_job", wrong)))
        assert scheduler.jobs() == []


def test_checked_before_each_run(dsn: str, db: Any, web: Any) -> None:
    """What came into the table by another way is checked by the node that runs it; nothing is sent."""
    server = web()
    config = SchedulerConfig(dsn=dsn, logger=Lines())
    with Scheduler(config) as scheduler, Scheduler(config) as another:
        scheduler.register(HttpJob())
        blocked = {
            "url": server.url,
            "method": "GET",
        }  # well-formed: only the node that runs it knows where it may go
        for wrong in (blocked, {"url": server.url}, [1], "x", {"type": "PING"}):
            with pytest.raises(InvalidValueError):
                scheduler.enqueue("http_job", wrong)
            if wrong is blocked:
                job = another.enqueue("http_job", wrong).id
            else:
                with pytest.raises(InvalidValueError):
                    another.enqueue("http_job", wrong)
                call = "select pgscheduler_enqueue('http_job', %s)"
                ((job,),) = db.execute(call, [json.dumps(wrong)]).fetchall()
            scheduler.run_pending()
            assert scheduler.get_job(job).state == JobState.FAILED
        assert "Unsupported job type: PING" in (scheduler.get_job(job).last_error or "")
    assert server.seen == []


def test_scheduled_with_a_policy(dsn: str, web: Any) -> None:
    """A recurring request runs with the policy of the object that was scheduled, and keeps its config's policies."""
    server = web()
    config = JobConfig.recurring(
        "poll", "@hourly", parameters={"url": server.url, "method": "HEAD"}, retries=2
    )
    with Scheduler(SchedulerConfig(dsn=dsn, logger=Lines())) as scheduler:
        record = scheduler.schedule(job(server).with_config(config))
        scheduler.trigger(record)
        assert scheduler.run_pending().completed == 1
        assert record.options == {"retries": 2}
    assert [seen.method for seen in server.seen] == ["HEAD"]


def test_runs_in_a_process_of_its_own(dsn: str, web: Any) -> None:
    """A request can be isolated: its policy travels to the process."""
    server = web()
    parameters = {"url": server.url, "method": "GET"}
    with Scheduler(SchedulerConfig(dsn=dsn, logger=Lines())) as scheduler:
        config = JobConfig.one_time("http_job", parameters, isolation="process")
        record = scheduler.schedule(job(server).with_config(config))
        scheduler.run_pending()
        assert scheduler.get_job(record).result["status"] == 200


def test_cancel_interrupts(dsn: str, web: Any, eventually: Any) -> None:
    """A request that waits for its answer ends as cancelled when somebody asks for it."""
    server = web(lambda r: server.closing.wait(60))
    with Scheduler(SchedulerConfig(dsn=dsn, logger=Lines())) as scheduler:
        scheduler.register(job(server))
        scheduler.start()
        record = scheduler.enqueue("http_job", {"url": server.url, "method": "GET"})
        eventually(lambda: server.seen)
        scheduler.cancel(record)
        assert scheduler.wait(record, timeout=20).state == JobState.CANCELLED


# --- secrets -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 500])
def test_secrets_are_masked(dsn: str, web: Any, caplog: pytest.LogCaptureFixture, status: int) -> None:
    """A server that repeats every header gets none of them into results, errors, history or logs."""

    def echo(request: Any) -> None:
        request.reply(status, f"{server.seen[-1].path} {json.dumps(server.seen[-1].headers)}".encode())

    server = web(echo)
    caplog.set_level(logging.DEBUG)
    lines = Lines()
    headers = {
        "Authorization": f"Bearer {CANARY}-1",
        "Cookie": f"a=b; session={CANARY}-2",
        "X-Unheard-Of": f'{CANARY}-"3"',
        "Accept": "text/x-shown",
    }
    parameters = {
        "url": f"{server.url}/p?api_key={CANARY}-4",
        "method": "POST",
        "headers": headers,
        "params": {"access_token": f"{CANARY}-5"},
    }
    http = job(server, credentials={server.url: {"X-Node": f"{CANARY}-6"}})
    with Scheduler(SchedulerConfig(dsn=dsn, logger=lines)) as scheduler:
        scheduler.register(http)
        record = scheduler.enqueue("http_job", parameters)
        scheduler.run_pending()
        ended = scheduler.get_job(record)
        (history,) = scheduler.runs(record.id)
        shown = [ended.last_error, ended.result, history.error, history.result, history.reason, lines.text]
        shown += [caplog.text, repr(HttpParameters(**parameters)), scheduler.logs(history.id)]
    assert server.seen[0].headers["authorization"] == f"Bearer {CANARY}-1"
    assert server.seen[0].headers["x-node"] == f"{CANARY}-6"
    assert server.seen[0].path == f"/p?api_key={CANARY}-4&access_token={CANARY}-5"
    assert "***" in f"{ended.last_error} {ended.result}"
    assert CANARY not in str(shown)
    if status == 200:
        assert "text/x-shown" in ended.result["body"]


@pytest.mark.parametrize(
    ("header", "value", "repeated"),
    [
        ("Authorization", "Bearer hunter2", "your token is hunter2."),
        ("Authorization", "Basic bWU6aHVudGVyMg==", "user me, password hunter2."),
        ("Cookie", "a=b; session=hunter2", "session hunter2 is over."),
        ("X-Key", 'hunter2"quoted', r'{"key": "hunter2\"quoted"}'),
    ],
)
def test_parts_of_a_secret_are_masked(web: Any, run: Any, header: str, value: str, repeated: str) -> None:
    """A server that repeats only the part of a header that matters, or as JSON, is masked too."""
    server = web(lambda r: r.reply(200, repeated.encode()))
    result = run(job(server), url=server.url, method="GET", headers={header: value})
    assert "hunter2" not in result["body"]
    assert "***" in result["body"]
