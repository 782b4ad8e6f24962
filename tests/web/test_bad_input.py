"""Whatever wrong thing is sent: an answer in the 400s that names it, nothing written, and all goes on."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from urllib.parse import quote

import httpx
import psycopg
import pytest

from pgscheduler import Every, InvalidValueError, Scheduler, SchedulerConfig
from pgscheduler.web import Server, Tokens, create_app
from pgscheduler.web._errors import CODES
from tests.engine.conftest import Quiet
from tests.support.postgres import Server as Postgres

JOBS, RUNS, TEMPLATES = "/api/v1/jobs", "/api/v1/runs", "/api/v1/templates"
OWN = {"name": "work", "schedule": {"every": 60}}
CRON = {
    "name": "ping",
    "cron_expression": "0 9 * * *",
    "task_payload": {"type": "API_CALL", "url": "https://example.org/", "method": "GET"},
}
TEMPLATE = {"code": "NEW", "handler": "work"}
HUGE = 10**400
HOSTILE = [
    "'; drop table pgscheduler_jobs; --",
    '"; drop schema public cascade; --',
    "' or '1'='1",
    "1); select pg_sleep(10); --",
    "%s%(name)s{jobs}$1",
    "\\'; select 1; --",
    "%",
    "_",
    "<script>alert(1)</script>",
    "../../etc/passwd",
    "{{7*7}}${7*7}",
]


@pytest.fixture(scope="module")
def place(server: Postgres, template: str) -> Iterator[tuple[Scheduler, httpx.Client, dict[str, Any], Any]]:
    """One server for all of these: none of them changes anything. A job and a template to aim at."""
    with (
        server.database(template) as dsn,
        Scheduler(SchedulerConfig(dsn=dsn, logger=Quiet())) as scheduler,
        Server(create_app(scheduler, tokens=Tokens()), port=0) as running,
        httpx.Client(base_url=running.url, timeout=60) as client,
        psycopg.connect(dsn, autocommit=True) as db,
    ):
        job = client.post(JOBS, json={"name": "target", "schedule": {"every": 3600}}).json()["job"]
        client.post(TEMPLATES, json={"code": "T", "handler": "work"})
        yield scheduler, client, job, db


@pytest.fixture
def scheduler(place: Any) -> Scheduler:
    found: Scheduler = place[0]
    return found


@pytest.fixture
def api(place: Any) -> httpx.Client:
    found: httpx.Client = place[1]
    return found


@pytest.fixture(autouse=True)
def stored(place: Any) -> Iterator[dict[str, Any]]:
    """The job to aim at. Afterwards all tables are as they were, and a good call works."""
    _, client, job, db = place

    def rows() -> Any:
        return [
            db.execute(f"select * from pgscheduler_{table} order by 1").fetchall()
            for table in ("jobs", "runs", "templates")
        ]

    before = rows()
    yield job
    assert rows() == before
    assert client.get(f"{JOBS}/{job['id']}").json() == job


#: Of the inside of the server; and how pydantic begins what we say in words of our own.
UNSAID = ("psycopg", "Traceback", "/usr/", "site-packages", "pydantic", "should")


def refused(answer: httpx.Response, field: str | None = None, statuses: tuple[int, ...] = (400, 422)) -> None:
    assert answer.status_code in statuses, (answer.status_code, answer.text)
    assert not any(word in answer.text for word in UNSAID), answer.text
    body = answer.json()
    assert body.keys() <= {"error", "code", "field", "detail"}
    assert body["code"] in CODES
    assert body["error"]
    if field is not None:
        assert body["field"] == field, body


# --- bodies -------------------------------------------------------------------------------------------------

TYPES: list[Any] = [None, True, 5, 1.5, "text", [], {}, [1], {"a": 1}]


def wrong(*right: type | None) -> list[Any]:
    """A value of each JSON type but these."""
    return [v for v in TYPES if type(v) not in right and not (v is None and None in right)]


FIELDS: list[tuple[str, list[Any]]] = [
    ("name", [*wrong(str), "", "a\x00b", "a\nb", "\x1b[2J", "\ud800", "x" * 256, " ", "\u202e"]),
    ("key", [*wrong(str, None), "", "a\x00b", "\ud800", "x" * 256]),
    ("priority", [*wrong(int, None), -1, 32768, HUGE, "5"]),
    ("retries", [*wrong(int, None), -1, 10_001, HUGE, 1e300]),
    ("timeout_seconds", [*wrong(int, float, None), -1, 0, 1e300, "5"]),
    ("misfire", [*wrong(None), "never"]),
    ("misfire_grace_seconds", [*wrong(int, float, None), -1, 1e300]),
    ("catchup", [*wrong(int, None), 0, HUGE]),
    ("jitter_seconds", [*wrong(int, float, None), -1]),
    ("isolation", [*wrong(None), "fiber"]),
    ("max_stalls", [*wrong(int, None), 0, HUGE]),
    ("metadata", [*wrong(dict, None), {"a": "\x00"}, {"a\x00": 1}, {"a": "\ud800"}, {"a": "x" * 20_000}]),
    ("parameters", [{"a": "\x00"}, {"\x00": 1}, {"a": "\ud800"}, "x" * 70_000, 1 << 5000]),
    ("is_active", wrong(bool)),
    ("if_exists", [*wrong(), "replace"]),
    ("backoff", [*wrong(dict, None), {"initial_seconds": -1}, {"factor": 0}, {"jitter": 2}, {"unknown": 1}]),
    (
        "schedule",
        [
            5,
            "0 9 * * *",
            [],
            {},
            {"every": 0},
            {"every": 1.5},
            {"every": "60"},
            {"every": 1e300},
            {"cron": 5},
            {"cron": ""},
        ],
    ),
    (
        "schedule",
        [{"cron": "a b c d e"}, {"cron": "0 0 30 2 *"}, {"cron": "R * * * *"}, {"cron": "* * * * *" * 5000}],
    ),
    (
        "schedule",
        [{"cron": "* * * * *", "timezone": z} for z in ("Nope/Nope", "../../etc/passwd", "", 5, "\x00")],
    ),
    ("schedule", [{"cron": "* * * * *", "every": 60}, {"cron": "* * * * *", "unknown": 1}]),
    ("unknown", [1]),
    ("id", [1]),
    ("Name", ["x"]),
    ("name\x00", ["x"]),
    ("\ud800", [1]),
    ("x" * 5000, [1]),
]


@pytest.mark.parametrize(
    ("field", "values"), FIELDS, ids=[ascii(f)[:20] + str(i) for i, (f, _) in enumerate(FIELDS)]
)
def test_own_bodies(api: httpx.Client, stored: dict[str, Any], field: str, values: list[Any]) -> None:
    """Each field of a job with each wrong value, where it is stored and where it is changed."""
    for value in values:
        made = api.post(
            JOBS, content=json.dumps({**OWN, field: value}), headers={"Content-Type": "application/json"}
        )
        refused(made)
        # Cron lines are told apart by their own field's name; a bad name of a field is shown escaped.
        if field.isidentifier() and made.json()["code"] not in ("invalid_cron", "malformed_body"):
            assert made.json()["field"].split(".")[0].startswith(field[:400]), made.text
        if field in ("name", "key", "if_exists", "is_active") or (field == "schedule" and not value):
            continue
        refused(
            api.patch(
                f"{JOBS}/{stored['id']}",
                content=json.dumps({field: value}),
                headers={"Content-Type": "application/json"},
            )
        )


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({**OWN, "run_at": "2031-01-01T00:00:00Z"}, "run_at"),
        ({**OWN, "delay_seconds": 1}, "delay_seconds"),
        ({**OWN, "expires_in_seconds": 1}, "expires_in_seconds"),
        ({"name": "a", "run_at": "2031-01-01T00:00:00Z", "delay_seconds": 1}, "delay_seconds"),
        ({"name": "a", "is_active": False, "parameters": {}}, "is_active"),
        ({"name": "a", "run_at": "tomorrow"}, "run_at"),
        ({"name": "a", "run_at": "2031-01-01T00:00:00"}, "run_at"),
        ({"name": "a", "run_at": 1_900_000_000}, "run_at"),
        ({"name": "a", "run_at": "0001-01-01T00:00:00Z"}, "run_at"),
        ({"name": "a", "run_at": "9999-12-31T23:59:59-23:59"}, "run_at"),
        ({"name": "a", "run_at": "2031-13-01T00:00:00Z"}, "run_at"),
        ({"name": "a", "delay_seconds": -1}, "delay_seconds"),
        ({"name": "a", "delay_seconds": 1e300}, "delay_seconds"),
        ({"parameters": {}, "schedule": None}, "name"),
        ({**OWN, "timeoutSeconds": 1, "timeout_seconds": 1}, "body"),
        ({**CRON, "parameters": {}}, "parameters"),
        ({**CRON, "schedule": {"every": 60}}, "schedule"),
        ({**CRON, "name": 5}, "name"),
        ({**CRON, "name": "x" * 256}, "name"),
        ({**CRON, "name": "a\x00"}, "name"),
        ({**CRON, "cron_expression": 5}, "cron_expression"),
        ({**CRON, "cron_expression": "\x00"}, "cron_expression"),
        ({**CRON, "timezone": "Nope"}, "timezone"),
        ({**CRON, "task_payload": "text"}, "task_payload"),
        ({**CRON, "task_payload": [1]}, "task_payload"),
        ({**CRON, "task_payload": {**CRON["task_payload"], "url": "file:///etc/passwd"}}, "task_payload.url"),
        ({**CRON, "task_payload": {**CRON["task_payload"], "url": "https://u:p@a.test"}}, "task_payload.url"),
        ({**CRON, "task_payload": {**CRON["task_payload"], "url": 5}}, "task_payload.url"),
        ({**CRON, "task_payload": {**CRON["task_payload"], "method": "GET\r\nX: y"}}, "task_payload.method"),
        (
            {**CRON, "task_payload": {**CRON["task_payload"], "headers": {"a": "b\r\nc"}}},
            "task_payload.headers.a",
        ),
        ({**CRON, "task_payload": {**CRON["task_payload"], "headers": 5}}, "task_payload.headers"),
        ({**CRON, "task_payload": {**CRON["task_payload"], "data": 1}}, "task_payload.data"),
        ({**CRON, "task_payload": {**CRON["task_payload"], "timeout": "5"}}, "task_payload.timeout"),
        ({**CRON, "task_payload": {**CRON["task_payload"], "unknown": 1}}, "task_payload.unknown"),
        ({**CRON, "task_payload": {**CRON["task_payload"], "type": {"a": 1}}}, "task_payload.type"),
        ({**CRON, "task_payload": {**CRON["task_payload"], "params": {"a": {}}}}, "task_payload.params.a"),
        ({**CRON, "task_payload": {**CRON["task_payload"], "params": {"a": "\x00"}}}, "task_payload"),
        ([], None),
        ("text", None),
        (5, None),
        (None, None),
    ],
)
def test_other_bodies(api: httpx.Client, body: Any, field: str | None) -> None:
    """What does not fit together, and what is no body at all; the field is named."""
    answer = api.post(JOBS, content=json.dumps(body), headers={"Content-Type": "application/json"})
    refused(answer, field)


@pytest.mark.parametrize(
    ("body", "field", "code", "text"),
    [
        ([], "body", "invalid_type", "body must be a JSON object"),
        ({"name": "a", "schedule": 5}, "schedule", "invalid_type", "with cron or every_seconds"),
        ({"name": "a", "schedule": {}}, "schedule", "invalid_value", "with cron or every_seconds"),
        (
            {"name": "a", "schedule": {"every_seconds": 0}},
            "schedule.every_seconds",
            "invalid_value",
            "must be >= 1",
        ),
        (
            {"name": "a", "schedule": {"every_seconds": 9, "every": 9}},
            "schedule.every",
            "unknown_field",
            "known",
        ),
        ({"name": "a", "schedule": {"cron": "x"}}, "schedule.cron", "invalid_cron", "5 fields"),
        ({"name": "a", "schedule": {"cron": "99 * * * *"}}, "schedule.cron", "invalid_cron", "minute"),
        (
            {"name": "a", "schedule": {"cron": "@daily", "timezone": "X"}},
            "schedule.timezone",
            "invalid_cron",
            "X",
        ),
        ({"name": "a", "backoff": 5}, "backoff", "invalid_type", "backoff must be a JSON object"),
        ({"name": "a", "metadata": 5}, "metadata", "invalid_type", "metadata must be a JSON object"),
    ],
)
def test_what_is_wrong_is_told_in_the_words_of_the_body(
    api: httpx.Client, stored: dict[str, Any], body: Any, field: str, code: str, text: str
) -> None:
    """The field is where it is in the body, and no text speaks of what reads it."""
    changed = body if isinstance(body, list) else {k: v for k, v in body.items() if k != "name"}
    for answer in (api.post(JOBS, json=body), api.patch(f"{JOBS}/{stored['id']}", json=changed)):
        refused(answer, field)
        assert answer.json()["code"] == code
        assert text in answer.json()["error"]
        for inside in ("discriminator", "CronLine", "Interval", "dictionary", "instance", "_kind"):
            assert inside not in answer.text


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", "x" * 256),
        ("name", "a\x00b"),
        ("key", ""),
        ("key", "x" * 256),
        ("key", "a\nb"),
        ("key", " "),
        ("priority", -1),
        ("priority", 32768),
        ("retries", -1),
        ("retries", 10_001),
        ("catchup", 0),
        ("catchup", 10_001),
        ("max_stalls", 0),
        ("misfire", "never"),
        ("isolation", "fiber"),
        ("if_exists", "replace"),
        ("metadata", {"a": "\x00"}),
        ("parameters", {"a": "\x00"}),
    ],
)
def test_a_rule_is_told_in_the_words_of_the_verb(
    api: httpx.Client, scheduler: Scheduler, field: str, value: Any
) -> None:
    """The same text as in Python, at most without the value, which may be a secret."""
    answer = api.post(JOBS, json={"name": "work", "key": "k", "schedule": {"every": 60}, field: value})
    refused(answer, field)
    given: Any = {"key": "k", field: value}
    with pytest.raises(InvalidValueError) as caught:
        scheduler.schedule_by_name(given.pop("name", "work"), Every(timedelta(seconds=60)), **given)
    assert str(caught.value).startswith(answer.json()["error"])
    assert answer.json()["error"].startswith(f"{field} {caught.value.rule}")


@pytest.mark.parametrize(
    ("method", "path", "body", "text"),
    [
        ("POST", JOBS, {"name": 5, "parameters": {}}, "name must be a string"),
        ("POST", JOBS, {"name": "a", "retries": "5"}, "retries must be an integer"),
        ("POST", JOBS, {"name": "a", "parameters": {}, "is_active": 5}, "is_active must be a boolean"),
        ("POST", JOBS, {"name": "a", "timeout_seconds": "5"}, "timeout_seconds must be a number"),
        ("POST", JOBS, {"name": "a", "timeout_seconds": 0}, "timeout_seconds must be >= 0.001"),
        ("POST", JOBS, {"name": "a", "delay_seconds": -1}, "delay_seconds must be >= 0"),
        ("POST", JOBS, {"name": "a", "delay_seconds": 1e300}, "delay_seconds must be <= 315360000"),
        ("POST", JOBS, {"name": "a", "misfire": "x"}, "misfire must be one of run_once, skip, run_all"),
        ("POST", JOBS, {"name": "a", "backoff": {"factor": 0}}, "backoff.factor must be >= 1"),
        ("POST", f"{JOBS}/bulk", {"name": "a", "parameters": {}}, "parameters must be a list"),
        ("POST", f"{RUNS}/retry", {"runs": []}, "runs cannot be empty"),
        (
            "POST",
            f"{RUNS}/retry",
            {"runs": ["1-0000000000000001"] * 1001},
            "runs must not have more than 1000 items",
        ),
        ("POST", f"{RUNS}/retry", {"runs": ["x"]}, "runs.0 must not be shorter than 18 characters"),
        (
            "POST",
            TEMPLATES,
            {"code": "a b", "handler": "a"},
            "code must match ^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$",
        ),
        ("GET", f"{JOBS}?limit=0", None, "limit must be >= 1"),
        ("GET", f"{JOBS}?offset=-1", None, "offset must be non-negative (>= 0)"),
        ("GET", f"{JOBS}?state=ended", None, "state must be one of pending, running, paused"),
        ("GET", f"{RUNS}?node=here", None, "node must be a UUID"),
    ],
)
def test_each_kind_of_rule(api: httpx.Client, method: str, path: str, body: Any, text: str) -> None:
    """The field and the rule, in words that the other errors have too."""
    answer = api.request(method, path, json=body)
    refused(answer, text.split()[0])
    assert answer.json()["error"] == text


@pytest.mark.parametrize("body", [{}, {"name": "welcome"}, {"name": "welcome", "isActive": True}])
def test_what_is_missing_is_told_for_both_kinds_of_body(api: httpx.Client, body: Any) -> None:
    """A name alone is answered in Cron Service's words, and with what a job of this package has beside it."""
    answer = api.post(JOBS, json=body)
    refused(answer)
    assert answer.json()["error"] == "Missing required fields: name, cron_expression, and task_payload."
    assert "the parameters of a one-time job ({} if it needs none)" in answer.json()["detail"]
    assert "detail" not in api.post(JOBS, json={**body, "task_payload": {}}).json()


BULK = {"name": "work", "parameters": [{}]}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ([], "body"),
        ({}, "name"),
        ({"name": "work"}, "parameters"),
        ({**BULK, "name": "\x00"}, "name"),
        ({**BULK, "parameters": {"a": 1}}, "parameters"),
        ({**BULK, "parameters": "text"}, "parameters"),
        ({**BULK, "parameters": [{}, {"a": "\x00"}]}, "parameters.1"),
        ({**BULK, "parameters": [{}, {}, "x" * 70_000]}, "parameters.2"),
        ({**BULK, "parameters": [{}, {"headers": {"Authorization": "***"}}]}, "parameters.1"),
        ({**BULK, "key": "a"}, "key"),
        ({**BULK, "retries": 1}, "retries"),
        ({**BULK, "priority": -1}, "priority"),
        ({**BULK, "priority": None}, "priority"),
        ({**BULK, "run_at": "2031-01-01T00:00:00Z", "delay_seconds": 1}, "delay_seconds"),
        ({**BULK, "delaySeconds": -1}, "delay_seconds"),
    ],
)
def test_wrong_bulks(api: httpx.Client, body: Any, field: str) -> None:
    """One of many that is wrong is named by its place, and none is stored."""
    refused(api.post(f"{JOBS}/bulk", json=body), field)


@pytest.mark.parametrize("runs", [None, [], "1-0000000000000001", [1], ["x"], ["1-0000000000000001"] * 1001])
def test_wrong_retries(api: httpx.Client, runs: Any) -> None:
    """What are no ids of runs is refused before any is looked for."""
    refused(api.post(f"{RUNS}/retry", json={"runs": runs}))


def sent_as_body(api: httpx.Client, job: int, text: bytes) -> list[httpx.Response]:
    """What each place that reads a body says of this one."""
    return [
        api.request(method, path, content=text, headers={"Content-Type": "application/json"})
        for method, path in (
            ("POST", JOBS),
            ("PATCH", f"{JOBS}/{job}"),
            ("POST", f"{JOBS}/bulk"),
            ("POST", f"{RUNS}/retry"),
            ("POST", TEMPLATES),
            ("PATCH", f"{TEMPLATES}/T"),
            ("POST", f"{TEMPLATES}/T/jobs"),
            ("POST", f"{TEMPLATES}/T/validate"),
            ("POST", "/api/v1/definitions/plan"),
            ("POST", "/api/v1/definitions/apply"),
        )
    ]


@pytest.mark.parametrize(
    ("text", "field"),
    [
        (b"{", "body"),
        (b"{'name': 'x'}", "body"),
        (b'{"name": "x",}', "body"),
        (b'{"name": "x"} {"name": "y"}', "body"),
        (b"\xff\xfe{", "body"),
        ('{"name": "x"}'.encode("utf-16"), "body"),
        (b"\xef\xbb\xbf" + b'{"name": "x", "parameters": {}}', "body"),
        (b'{"name": "x", "name": "y", "parameters": {}}', "name"),
        (b'{"name": "x", "parameters": {"a": {"b": 1, "b": 2}}}', "b"),
        (b'{"name": "x", "parameters": NaN}', "body"),
        (b'{"name": "x", "parameters": -Infinity}', "body"),
        (b'{"name": "x", "parameters": 1e999}', "body"),
        (b'{"name": "x", "parameters": ' + b"9" * 5000 + b"}", "body"),
        (b'{"name": "x", "parameters": ' + b"[" * 20_000 + b"]" * 20_000 + b"}", "body"),
        (b'{"name": "x", "parameters": ' + b'{"a":' * 20_000 + b"1" + b"}" * 20_000 + b"}", "body"),
        (b'{"name": "x", "parameters": "\x00"}', "body"),
        (b"\x00", "body"),
    ],
)
def test_what_is_no_json(api: httpx.Client, stored: dict[str, Any], text: bytes, field: str) -> None:
    """Only one document that can be read in one way is read at all."""
    for answer in sent_as_body(api, stored["id"], text):
        refused(answer, field, statuses=(400,))
        assert answer.json()["code"] == "malformed_body"


def test_no_body(api: httpx.Client, stored: dict[str, Any]) -> None:
    """Nothing at all is a document that is missing, not one that cannot be read."""
    for answer in sent_as_body(api, stored["id"], b""):
        refused(answer, "body", statuses=(422,))
        assert answer.json()["code"] == "missing_field"


def test_deep_parameters(api: httpx.Client, stored: dict[str, Any]) -> None:
    """What can be read and is nested deeper than PostgreSQL is to read is a value that breaks a rule."""
    deep: Any = []
    for _ in range(101):
        deep = [deep]
    for method, path, body in (
        ("POST", JOBS, {"name": "x"}),
        ("POST", JOBS, OWN),
        ("PATCH", f"{JOBS}/{stored['id']}", {}),
        ("POST", f"{TEMPLATES}/T/jobs", {}),
    ):
        answer = api.request(method, path, json={**body, "parameters": deep})
        refused(answer, "parameters", statuses=(422,))
        assert answer.json()["code"] == "invalid_value"


def test_a_body_where_none_is_read(api: httpx.Client, stored: dict[str, Any]) -> None:
    """Somebody who sends one believes that it means something."""
    for method, path in (
        ("POST", f"{JOBS}/{stored['id']}/trigger"),
        ("POST", f"{JOBS}/{stored['id']}/cancel"),
        ("DELETE", f"{JOBS}/{stored['id']}"),
        ("GET", JOBS),
        ("POST", "/jobs/engine/run"),
        ("DELETE", f"{TEMPLATES}/T"),
    ):
        answer = api.request(method, path, json={"a": 1})
        refused(answer, "body")
        assert answer.json()["code"] == "unexpected_body"


DEFINITIONS = "/api/v1/definitions"
DECLARED = {"name": "a", "cron": "0 9 * * *"}
LATER = {"name": "z", "every": 60}


@pytest.mark.parametrize(
    ("body", "field", "code"),
    [
        ([], "body", "invalid_type"),
        ({}, "source", "missing_field"),
        ({"source": "s"}, "jobs", "missing_field"),
        ({"source": "", "jobs": []}, "source", "invalid_value"),
        ({"source": "a\x00", "jobs": []}, "source", "invalid_value"),
        ({"source": 5, "jobs": []}, "source", "invalid_type"),
        ({"source": "s", "jobs": {}}, "jobs", "invalid_type"),
        ({"source": "s", "jobs": [5]}, "jobs.0", "invalid_type"),
        ({"source": "s", "jobs": [LATER] * 5001}, "jobs", "invalid_value"),
        ({"source": "s", "jobs": [], "defaults": 5}, "defaults", "invalid_type"),
        ({"source": "s", "jobs": [], "defaults": {"cron": "@daily"}}, "defaults.cron", "unknown_field"),
        ({"source": "s", "jobs": [], "defaults": {"retries": -1}}, "defaults.retries", "invalid_value"),
        ({"source": "s", "jobs": [], "defaults": {"maxStalls": 0}}, "defaults.max_stalls", "invalid_value"),
        ({"source": "s", "jobs": [], "job": []}, "job", "unknown_field"),
        ({"source": "s", "jobs": [], "$schema": 5}, "$schema", "invalid_type"),
        ([LATER, {"cron": "@daily"}], "jobs.1.name", "missing_field"),
        ([LATER, {"name": "a"}], "jobs.1", "invalid_value"),
        ([LATER, {**DECLARED, "every": 60}], "jobs.1", "invalid_value"),
        ([LATER, {**DECLARED, "schedule": "@daily"}], "jobs.1", "invalid_value"),
        ([LATER, {**DECLARED, "timeout": 1, "timeout_seconds": 1}], "jobs.1", "invalid_value"),
        ([LATER, {**DECLARED, "timeoutSeconds": 1, "timeout_seconds": 1}], "jobs.1", "invalid_value"),
        ([LATER, {**DECLARED, "cron": "x"}], "jobs.1.cron", "invalid_cron"),
        ([LATER, {"name": "a", "schedule": "0 0 30 2 *"}], "jobs.1.schedule", "invalid_cron"),
        ([LATER, {**DECLARED, "timezone": "Nope"}], "jobs.1.timezone", "invalid_cron"),
        ([LATER, {**DECLARED, "cron": 5}], "jobs.1.cron", "invalid_value"),
        ([LATER, {**DECLARED, "name": "a\nb"}], "jobs.1.name", "invalid_value"),
        ([LATER, {**DECLARED, "retries": "3"}], "jobs.1.retries", "invalid_value"),
        ([LATER, {**DECLARED, "retries": HUGE}], "jobs.1.retries", "invalid_value"),
        ([LATER, {**DECLARED, "retries": None}], "jobs.1.retries", "invalid_value"),
        ([LATER, {**DECLARED, "timeout": 0}], "jobs.1.timeout", "invalid_value"),
        ([LATER, {**DECLARED, "timeout": 0.0001}], "jobs.1", "invalid_value"),
        ([LATER, {**DECLARED, "backoff": {"factor": 0}}], "jobs.1.backoff.factor", "invalid_value"),
        ([LATER, {**DECLARED, "backoff": {"fact": 2}}], "jobs.1.backoff.fact", "unknown_field"),
        ([LATER, {**DECLARED, "enabled": 1}], "jobs.1.enabled", "invalid_value"),
        ([LATER, {**DECLARED, "misfire": "never"}], "jobs.1.misfire", "invalid_value"),
        ([LATER, {**DECLARED, "retry": 1}], "jobs.1.retry", "unknown_field"),
        ([LATER, {**DECLARED, "job": "os.system"}], "jobs.1.job", "invalid_value"),
        ([LATER, {**DECLARED, "command": " "}], "jobs.1.command", "invalid_value"),
        ([LATER, {**DECLARED, "metadata": {"definitions_source": "x"}}], "jobs.1.metadata", "invalid_value"),
        ([LATER, {**DECLARED, "parameters": {"a": "\x00"}}], "jobs.1.parameters", "invalid_value"),
        ([LATER, {**DECLARED, "parameters": "x" * 70_000}], "jobs.1.parameters", "invalid_value"),
        ([LATER, {**DECLARED, "parameters": {"token": "***"}}], "jobs.1.parameters", "invalid_value"),
        ([LATER, {**DECLARED, "parameters": [[[[]]] * 30_000]}], "jobs.1.parameters.0.24", "invalid_value"),
    ],
)
def test_wrong_definitions(api: httpx.Client, body: Any, field: str, code: str) -> None:
    """What is wrong in a document is named by its place, the same by both doors, and nothing is applied."""
    if isinstance(body, list) and body:
        body = {"source": "s", "jobs": body}
    for verb in ("plan", "apply"):
        answer = api.post(
            f"{DEFINITIONS}/{verb}",
            content=json.dumps(body),
            headers={"Content-Type": "application/json"},
        )
        refused(answer)
        assert answer.json()["field"].startswith(field), answer.text
        assert answer.json()["code"] == code, answer.text


def test_deep_definitions(api: httpx.Client) -> None:
    """What is nested deeper than a file may be is refused, and is no fault of the server."""
    for depth in (60, 400, 900):
        text = '{"source": "s", "jobs": [{"name": "a", "every": 60, "parameters": %s1%s}]}'
        body = text % ("[" * depth, "]" * depth)
        answer = api.post(f"{DEFINITIONS}/apply", content=body, headers={"Content-Type": "application/json"})
        refused(answer)
        assert "50 levels" in answer.json()["error"]


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"retire": None}, "retire"),
        ({"retire": "all"}, "retire"),
        ({"retire": 1}, "retire"),
        ({"retire": {"a": 1}}, "retire"),
        ({"retire": ["1"]}, "retire.0"),
        ({"retire": [1, 0]}, "retire.1"),
        ({"retire": [1.5]}, "retire.0"),
        ({"retire": [True]}, "retire.0"),
        ({"wait_seconds": -1}, "wait_seconds"),
        ({"wait_seconds": 1e300}, "wait_seconds"),
        ({"waitSeconds": "5"}, "wait_seconds"),
        ({"wait": 5}, "wait"),
    ],
)
def test_wrong_applies(api: httpx.Client, more: Any, field: str) -> None:
    """How it is applied is checked like what; a plan knows nothing of it."""
    body = {"source": "s", "jobs": [LATER], **more}
    refused(api.post(f"{DEFINITIONS}/apply", json=body), field)
    asked = api.post(f"{DEFINITIONS}/plan", json=body)
    refused(asked)
    assert asked.json()["code"] == "unknown_field"


TEMPLATE_FIELDS: list[tuple[str, list[Any]]] = [
    ("code", [*wrong(str), "", "a b", "a/b", "-a", "a" * 101, "ä", "a\n", "a\x00"]),
    ("handler", [*wrong(str), "", "a\x00"]),
    ("name", [*wrong(str, None), "", "\ud800", "x" * 256]),
    ("retries", [*wrong(int), -1, HUGE]),
    ("timeout_seconds", [*wrong(int, float, None), 0, -1, 1e300]),
    ("active", wrong(bool)),
    ("display_order", [*wrong(int), 2**31, HUGE]),
    ("parameters_schema", [*wrong(dict, None), {"type": "nothing"}, {"pattern": "("}, {"a": "x" * 20_000}]),
    ("unknown", [1]),
]


@pytest.mark.parametrize(("field", "values"), TEMPLATE_FIELDS, ids=[f for f, _ in TEMPLATE_FIELDS])
def test_template_bodies(api: httpx.Client, field: str, values: list[Any]) -> None:
    """Each field of a template with each wrong value."""
    for value in values:
        body = json.dumps({**TEMPLATE, field: value})
        refused(api.post(TEMPLATES, content=body, headers={"Content-Type": "application/json"}))
        if not (field == "handler" and value is None):  # in a change: nothing is said about it
            body = json.dumps({field: value})
            refused(api.patch(f"{TEMPLATES}/T", content=body, headers={"Content-Type": "application/json"}))


@pytest.mark.parametrize(
    "body",
    [
        {"parameters": {"a": "\x00"}},
        {"key": ""},
        {"priority": "5"},
        {"run_at": "2031-01-01T00:00:00Z", "delay_seconds": 5},
        {"name": "other"},
        {"schedule": {"every": 60}},
        {"metadata": {"job_template": "X"}},
        [],
    ],
)
def test_jobs_of_templates(api: httpx.Client, body: Any) -> None:
    """What a job of a template cannot say."""
    refused(api.post(f"{TEMPLATES}/T/jobs", json=body))


# --- paths and queries ----------------------------------------------------------------------------------------

IDS = [
    "0",
    "-1",
    "+1",
    "1.0",
    "1e3",
    "0x1",
    "01",
    "12abc",
    " 1",
    "1 ",
    "1_0",
    "٣",
    str(2**63),
    "9" * 5000,
    "null",
    "'",
]
IDS += ["%00", "..%2f1", "1%00", "%ff", "1;drop", quote("'; drop table pgscheduler_jobs; --", safe="")]


@pytest.mark.parametrize("id_", IDS, ids=range(len(IDS)))
def test_job_ids(api: httpx.Client, id_: str) -> None:
    """An id is a positive whole number, written in one way."""
    path = id_ if "%" in id_ else quote(id_, safe="")
    for method, tail in (
        ("GET", ""),
        ("PATCH", ""),
        ("DELETE", ""),
        ("POST", "/trigger"),
        ("POST", "/enable"),
        ("POST", "/disable"),
        ("POST", "/cancel"),
        ("GET", "/position"),
        ("GET", "/wait"),
    ):
        body = {"priority": 1} if method == "PATCH" else None
        answer = api.request(method, f"{JOBS}/{path}{tail}", json=body)
        refused(answer, statuses=(400, 404))
        if answer.status_code == 400:
            assert answer.json()["error"] == "Invalid job ID provided."


@pytest.mark.parametrize(
    "id_", ["1", "1-", "-1", "1-none", "1-xyz", "0-0000000000000001", "1-000000000000000G", "%00", "a" * 300]
)
def test_run_ids(api: httpx.Client, id_: str) -> None:
    for method, tail in (("GET", ""), ("GET", "/logs"), ("POST", "/retry")):
        answer = api.request(method, f"{RUNS}/{id_}{tail}")
        refused(answer, "run_id", statuses=(400,))
        assert answer.json()["error"] == "Invalid run ID provided."


@pytest.mark.parametrize(
    ("path", "field"),
    [
        (f"{JOBS}?limit=0", "limit"),
        (f"{JOBS}?limit=-1", "limit"),
        (f"{JOBS}?limit=1001", "limit"),
        (f"{JOBS}?limit=1000000000", "limit"),
        (f"{JOBS}?limit={HUGE}", "limit"),
        (f"{JOBS}?limit=", "limit"),
        (f"{JOBS}?limit=1.5", "limit"),
        (f"{JOBS}?limit=%2010", "limit"),
        (f"{JOBS}?offset=-1", "offset"),
        (f"{JOBS}?offset=abc", "offset"),
        (f"{JOBS}?offset=10000000000", "offset"),
        (f"{JOBS}?limit=1&limit=2", "limit"),
        (f"{JOBS}?state=completed", "state"),
        (f"{JOBS}?state=%00", "state"),
        (f"{JOBS}?recurring=yes", "recurring"),
        (f"{JOBS}?due=1", "due"),
        (f"{JOBS}?name=", "name"),
        (f"{JOBS}?name=%00", "name"),
        (f"{JOBS}?key=a%0Ab", "key"),
        (f"{JOBS}?search=%00", "search"),
        (f"{JOBS}?search={'x' * 256}", "search"),
        (f"{JOBS}?limt=5", "limt"),
        (f"{JOBS}?sort=name;drop", "sort"),
        (f"{JOBS}?%00=1", None),
        (f"{JOBS}?{'&'.join(f'a{n}=1' for n in range(200))}", None),
        (f"{JOBS}?jobId=1&job_id=x", "job_id"),
        (f"{RUNS}?jobId=x", "jobId"),
        (f"{RUNS}?outcome=good", "outcome"),
        (f"{RUNS}?since=yesterday", "since"),
        (f"{RUNS}?since=2031-01-01", "since"),
        (f"{RUNS}?until=2031-01-01T00:00:00+01:00", "until"),
        (f"{RUNS}?until=0001-01-01T00:00:00Z", "until"),
        (f"{RUNS}?node=here", "node"),
        (f"{RUNS}?limit=99999", "limit"),
        (f"{RUNS}?template=%00", "template"),
        (f"{JOBS}?template=", "template"),
        (f"{JOBS}/count?limit=1", "limit"),
        (f"{RUNS}/count?outcome=good", "outcome"),
        (f"{RUNS}/1-0000000000000001/logs?limit=1001", "limit"),
        (f"{RUNS}/1-0000000000000001/logs?offset=-1", "offset"),
        ("/api/v1/nodes?alive=maybe", "alive"),
        ("/api/v1/nodes?name=x", "name"),
        ("/api/v1/stats?name=x", "name"),
        ("/healthz?x=1", "x"),
        ("/readyz?x=1", "x"),
        ("/?x=1", "x"),
        (f"{JOBS}/1?x=1", "x"),
        *(
            (f"{JOBS}/1/wait?timeout_seconds={seconds}", "timeout_seconds")
            for seconds in ("", "-1", "1.5", "1e3", "nan", "inf", "9" * 30, "%205")
        ),
        (f"{JOBS}/1/wait?timeout=5", "timeout"),
        (f"{TEMPLATES}?active=x", "active"),
        (f"{TEMPLATES}/T?x=1", "x"),
        (f"{TEMPLATES}/a%20b", "code"),
        (f"{TEMPLATES}/%00", "code"),
    ],
)
def test_queries(api: httpx.Client, path: str, field: str | None) -> None:
    """A parameter that is wrong, unknown or given twice is named."""
    refused(api.get(path), field)


def test_queries_of_changes(api: httpx.Client, stored: dict[str, Any]) -> None:
    """An unknown parameter keeps a change from being made too."""
    for method, path, body in (
        ("POST", JOBS, OWN),
        ("PATCH", f"{JOBS}/{stored['id']}", {"priority": 1}),
        ("DELETE", f"{JOBS}/{stored['id']}", None),
        ("POST", f"{JOBS}/{stored['id']}/trigger", None),
        ("POST", "/jobs/engine/run", None),
        ("POST", TEMPLATES, TEMPLATE),
        ("DELETE", f"{TEMPLATES}/T", None),
    ):
        refused(api.request(method, f"{path}?dry_run=true", json=body), "dry_run")


@pytest.mark.parametrize("path", ["/%00", "/api//v1/jobs", "/%ff", "/" + "a" * 5000])
def test_paths(api: httpx.Client, path: str) -> None:
    refused(api.get(path), statuses=(404,))


# --- hostile, but allowed -------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_strings_are_only_strings(api: httpx.Client, scheduler: Scheduler, text: str) -> None:
    """In every string of every body and query: kept as it is, and nothing else happens."""
    job = api.post(
        JOBS,
        json={
            "name": text,
            "key": text,
            "schedule": {"every": 3600},
            "parameters": {text: [text]},
            "metadata": {text: text},
        },
    ).json()["job"]
    try:
        assert (job["job"], job["key"], job["parameters"]) == (text, text, {text: [text]})
        for query in ("name", "key", "search"):
            found = api.get(JOBS, params={query: text}).json()
            assert job["id"] in [one["id"] for one in found], query
            # As it is: neither a pattern nor a condition, so what it would match as one is not there.
            assert all(text.lower() in (one["job"] + one["key"]).lower() for one in found), query
        assert api.get(RUNS, params={"name": text, "key": text}).json() == []
        for query in ("state", "outcome", "since", "node", "limit", "jobId"):
            refused(api.get(RUNS, params={query: text}))
        template = api.post(TEMPLATES, json={"code": "H", "handler": text, "name": text})
        assert template.json()["handler"] == text
        made = api.post(f"{TEMPLATES}/H/jobs", json={"parameters": {"a": text}, "key": "1"})
        assert made.status_code == 409, "a one-time job of a recurring job's name"
        refused(api.post(TEMPLATES, json={"code": text, "handler": "x"}))
    finally:
        scheduler.delete(job["id"], history=True)
        api.delete(f"{TEMPLATES}/H")


def test_raw_requests(api: httpx.Client) -> None:
    """What no client library sends: the server answers or hangs up, and goes on."""
    for raw in (
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 1_000_000 + b"\r\n\r\n",
        b"POST /api/v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: abc\r\n\r\n",
        b"POST /api/v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"POST /api/v1/jobs HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"\x16\x03\x01\x02\x00",
        b"GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ):
        with socket.create_connection((api.base_url.host, api.base_url.port or 80), 30) as connection:
            connection.sendall(raw)
            with contextlib.suppress(OSError):  # the server may have hung up at once
                connection.shutdown(socket.SHUT_WR)
            answer = b""
            try:
                while chunk := connection.recv(65536):
                    answer += chunk
            except ConnectionResetError:
                pass
        assert answer == b"" or answer.startswith(b"HTTP/1.1 4"), (raw[:60], answer[:200])
        assert api.get("/healthz").status_code == 200
