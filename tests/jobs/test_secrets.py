"""A whole life of a scheduler with secrets in every place that may hold one: none is in anything that it says."""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Callable
from typing import Any

import httpx
import psycopg
import pytest
import structlog

from pgscheduler import Backoff, Every, JobConfig, JobState, PgSchedulerError, Scheduler, SchedulerConfig
from pgscheduler.cli import main
from pgscheduler.jobs import HttpJob, HttpParameters
from pgscheduler.jobs._secrets import shown
from pgscheduler.metrics import Metrics
from pgscheduler.web import Tokens, serve_api
from tests.support.postgres import execute, terminate_backends

CANARY = "canary-in-the-mine"
AT_ONCE = Backoff(initial=0 * Backoff().initial, factor=1, jitter=0)


class Heard:
    """Everything that was said, by whom, to be searched."""

    def __init__(self) -> None:
        self.said: list[tuple[str, str]] = []

    def add(self, by: str, *what: object) -> None:
        for each in what:
            self.said += [(by, str(each)), (by, repr(each))]

    def keep(self, _: object, level: str, event: dict[str, Any]) -> Any:
        error = event.get("exc_info")
        self.add("log", level, event, vars(error) if isinstance(error, BaseException) else error)
        raise structlog.DropEvent

    def refused(self, by: str, call: Callable[[], object]) -> None:
        with pytest.raises(PgSchedulerError) as caught:
            call()
        error: BaseException | None = caught.value
        self.add(by, "".join(traceback.format_exception(error)))
        while error is not None:
            # Of psycopg's errors their text: what else they hold is the connection itself.
            self.add(by, error, vars(error) if isinstance(error, PgSchedulerError) else None)
            error = error.__cause__ or error.__context__

    def leaks(self) -> list[tuple[str, str]]:
        return [(by, text[:2000]) for by, text in self.said if CANARY in text]


def test_no_secret_is_in_anything_that_was_said(
    dsn: str,
    web: Any,
    eventually: Any,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """DSN password, headers, telling parameters and a node's own credentials: in the stored parameters and on the wire,
    and in no log line, error, event, record's error or result, listing of the command, or statement of the server."""
    caplog.set_level(logging.DEBUG)
    heard = Heard()

    def echo(request: Any) -> None:
        last = server.seen[-1]
        status = int(last.headers.get("x-want", "200"))
        request.reply(status, f"{last.path} {json.dumps(last.headers)} {last.body}".encode())

    server = web(echo)
    secret = {
        "headers": {"Authorization": f"Bearer {CANARY}-1", "Cookie": f"session={CANARY}-2"},
        "params": {"api_key": f"{CANARY}-3", "page": 1},
    }

    def request(want: int = 200, place: str = server.url) -> dict[str, Any]:
        headers = {**secret["headers"], "X-Want": str(want)}
        return {**secret, "headers": headers, "url": f"{place}/x?token={CANARY}-4", "method": "GET"}

    http = HttpJob(
        JobConfig(name="http_job", retries=1, backoff=AT_ONCE),
        allow=[server.place, "127.0.0.1:1"],
        credentials={server.url: {"X-Node": f"{CANARY}-5"}},
    )
    private = psycopg.conninfo.make_conninfo(dsn, password=f"{CANARY}-6")
    logger = structlog.wrap_logger(None, processors=[heard.keep], wrapper_class=structlog.stdlib.BoundLogger)
    config = SchedulerConfig(dsn=private, logger=logger, run_immediately=True, heartbeat_interval=0.2,
                             no_heartbeat_timeout=60, shutdown_timeout=5)  # fmt: skip
    node = Scheduler(config)
    with node:
        node.subscribe(lambda change: heard.add("event", change))
        node.register(http)
        node.start()
        good, bad = node.enqueue("http_job", request()), node.enqueue("http_job", request(500))
        gone = node.enqueue("http_job", request(place="http://127.0.0.1:1"))
        where = request(place="http://127.0.0.2:9")
        heard.refused("refusal", lambda: node.enqueue("http_job", where))
        with Scheduler(config) as another:  # nothing is registered there
            blocked = another.enqueue("http_job", where, run_at=None, delay=3600, key="k")
        hourly = HttpJob(JobConfig.recurring("hourly", Every(3600 * Backoff().initial), parameters=request()),
                         allow=[server.place])  # fmt: skip
        node.schedule(hourly)
        node.trigger("hourly")
        assert node.wait(good, 30).state is JobState.COMPLETED
        for each in (bad, gone):
            assert node.wait(each, 30).state is JobState.FAILED
        eventually(lambda: node.runs(name="hourly"))
        terminate_backends(dsn)
        assert node.get_job(blocked).key == "k"
        node.pause(blocked)
        (failed, *_) = node.runs(bad.id)
        node.retry(failed)

        # What is refused, when it is stored or when it runs.
        for wrong in (
            {"headers": {"A": f"{CANARY}-7\nB"}},
            {"url": f"http://u:{CANARY}-8@x/"},
            {"params": {"token": {"b": f"{CANARY}-9"}}},
        ):
            parameters = {**request(), **wrong}
            heard.refused(
                "refusal", lambda parameters=parameters: http.with_config(JobConfig(parameters=parameters))
            )
            heard.refused("refusal", lambda parameters=parameters: node.enqueue("http_job", parameters))
            with Scheduler(config) as another:  # nothing is registered there
                heard.refused(
                    "refusal", lambda parameters=parameters: another.enqueue("http_job", parameters)
                )
            with psycopg.connect(dsn, autocommit=True) as connection:
                call, values = "select pgscheduler_enqueue('http_job', %s)", [json.dumps(parameters)]
                ((stored,),) = connection.execute(call, values).fetchall()
            assert node.wait(stored, 30).state is JobState.FAILED
        heard.refused("refusal", lambda: SchedulerConfig(dsn=f"postgresql://u:{CANARY}-10@h/db?bogus=1"))
        heard.refused(
            "refusal",
            lambda: Scheduler(SchedulerConfig(dsn=f"postgresql://u:{CANARY}-11@127.0.0.1:1/x")).init(),
        )

        # What is told of it, but for the stored parameters themselves.
        for record in (
            *node.jobs(),
            *node.runs(limit=100),
            *(node.get_job(each) for each in (good, bad, gone)),
        ):
            told = {**vars(record), "parameters": None}
            heard.add("record", told)
        for run in node.runs(limit=100):
            heard.add("record", node.logs(run.id))
        heard.add(
            "about",
            config,
            node,
            http,
            node.stats(),
            node.node_stats(),
            node.nodes(),
            HttpParameters(**request()),
        )
        heard.add("metrics", Metrics.of(node).text().decode())
        reader, writer, wrong = f"{CANARY}-12-read", f"{CANARY}-13-write", f"{CANARY}-14-wrong"
        tokens = Tokens(read=[reader], write=[writer])
        with (
            serve_api(node, port=0, tokens=tokens) as api,
            httpx.Client(base_url=api.url, timeout=60) as client,
        ):
            listings = [f"/api/v1/{name}" for name in ("jobs", "runs", "nodes", "stats", "openapi.json")]
            one = [
                f"/api/v1/jobs/{blocked.id}",
                f"/api/v1/runs/{failed.id}",
                f"/api/v1/runs/{failed.id}/logs",
            ]
            for token in (reader, writer, wrong):
                for path in ("/", "/healthz", "/readyz", "/nothing", *listings, *one):
                    answer = client.get(path, headers={"Authorization": f"Bearer {token}"})
                    assert answer.status_code != 200 or token != wrong or path in ("/healthz", "/readyz"), (
                        path
                    )
                    heard.add("api", answer.status_code, dict(answer.headers), answer.text)
            body = {"name": "http_job", "parameters": request(), "delay_seconds": 60}
            answer = client.post("/api/v1/jobs", json=body, headers={"Authorization": f"Bearer {writer}"})
            assert answer.status_code == 201, answer.text
            heard.add("api", answer.text)
        heard.add("server", execute(dsn, "select application_name, query from pg_stat_activity"))

        monkeypatch.setenv("PGSCHEDULER_DSN", private)
        for command in (
            ["enqueue", "http_job", "--delay", "60", "--params", json.dumps(request())],
            ["jobs"], ["runs"], ["runs", str(bad.id)], ["logs", failed.id], ["stats"], ["nodes"], ["doctor"],
            ["pause", "http_job/k"], ["cancel", "http_job/k"], ["jobs", "--search", "http"],
        ):  # fmt: skip
            for form in ([], ["--json"]):
                main([*command, *form, "--debug"])
    said = capsys.readouterr()
    heard.add("command", said.out, said.err)
    heard.add("python's log", caplog.text)

    # All of it was where it belongs, or nothing was proved.
    assert {"metrics", "api", "log", "event", "record", "refusal", "command", "python's log"} <= {
        by for by, text in heard.said if text
    }
    stored = str(execute(dsn, "select parameters from pgscheduler_runs"))
    sent = " ".join(f"{each.path} {each.headers}" for each in server.seen)  # which came first, nobody knows
    assert [n for n in range(1, 5) if f"{CANARY}-{n}" not in stored] == []
    assert [n for n in (1, 2, 3, 4, 5) if f"{CANARY}-{n}" not in sent] == []
    assert "***" in said.out
    assert heard.leaks() == []


# --- data --------------------------------------------------------------------------------------------


def test_telling_names_in_the_data_of_a_request(
    dsn: str, web: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a body holds under a telling name, however deep, is sent, and shown neither by a listing, REST or a plan,
    nor in a result or an error where the server repeats it; what has another name is shown."""
    server = web(lambda request: request.reply(200 if request.path == "/good" else 500, seen().encode()))

    def seen() -> str:
        return str(server.seen[-1].body)

    data = {"password": f"{CANARY}-1", "user": {"api_key": f"{CANARY}-2", "name": "Ada"},
            "all": [{"token": [f"{CANARY}-3", {"n": 987654}]}]}  # fmt: skip

    def request(path: str) -> dict[str, Any]:
        return {"method": "POST", "url": server.url + path, "data": data}

    monkeypatch.setenv("PGSCHEDULER_DSN", dsn)
    said: list[str] = []
    with Scheduler(SchedulerConfig(dsn=dsn)) as node:
        node.register(HttpJob(allow=[server.place]))
        good, bad = (node.enqueue("http_job", request(path)) for path in ("/good", "/bad"))
        node.run_pending()
        waits = node.enqueue("http_job", request("/later"), delay=3600)
        assert sum(CANARY in one.body for one in server.seen) == 2
        ended = node.get_job(good)
        assert "Ada" in ended.result["body"]
        said += [str(ended.result), str(node.get_job(bad).last_error)]
        with serve_api(node, port=0) as api, httpx.Client(base_url=api.url, timeout=60) as client:
            paths = ("jobs", "runs", f"jobs/{good.id}", f"jobs/{waits.id}")
            listings = [client.get(f"/api/v1/{path}").text for path in paths]
    for command in ("jobs", "runs"), ("show", str(waits.id)):
        for form in ([], ["--json"]):
            main([*command, *form])
    listings += [capsys.readouterr().out]
    assert all("Ada" in text for text in listings)
    assert [text for text in (*said, *listings) if CANARY in text or "987654" in text] == []


@pytest.mark.parametrize(
    ("value", "shown_as"),
    [
        ({"data": {"password": "x"}}, {"data": {"password": "***"}}),
        ({"data": [{"a": {"Secret": {"n": 1}}}]}, {"data": [{"a": {"Secret": "***"}}]}),
        ({"params": {"a": {"key": 1}}}, {"params": {"a": {"key": "***"}}}),
        ({"data": "a text", "key": "k"}, {"data": "a text", "key": "k"}),
        ({"data": {"$secret": "x"}}, {"data": {"$secret": "***"}}),
        (
            {"parameters": {"data": {"headers": {"X": 1}}}},
            {"parameters": {"data": {"headers": {"X": "***"}}}},
        ),
    ],
)
def test_what_a_listing_hides(value: Any, shown_as: Any) -> None:
    """Telling names hide what is under them in `params` and `data`, and nowhere else."""
    assert shown(value) == shown_as
