"""A request that is sent twice makes one job: `Idempotency-Key`."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from pgscheduler import JobConfig, JobNotFoundError, Scheduler
from tests.engine.conftest import Call
from tests.support import eventually

JOBS, TEMPLATES = "/api/v1/jobs", "/api/v1/templates"
HEADER = "Idempotency-Key"
BODY = {"name": "work", "parameters": {"a": 1}}
CRON = {
    "name": "ping",
    "cron_expression": "0 9 * * *",
    "task_payload": {"type": "API_CALL", "url": "https://example.org/", "method": "GET"},
}


def send(api: httpx.Client, key: str, path: str = JOBS, /, **body: Any) -> httpx.Response:
    return api.post(path, json=body or BODY, headers={HEADER: key})


def refused(answer: httpx.Response, field: str, code: str = "invalid_value", status: int = 422) -> str:
    """Its text; the answer is an error of the usual shape about this field."""
    body = answer.json()
    assert (answer.status_code, body["code"], body["field"]) == (status, code, field), body
    assert not any(
        word in answer.text for word in ("psycopg", "Traceback", "/usr/", "site-packages", "should")
    )
    text: str = body["error"]
    return text


def test_the_same_request_twice_makes_one_job(api: httpx.Client, scheduler: Scheduler) -> None:
    """The first is 201; each one after it is 200 with the job that is there. Another header is another job."""
    first, second = send(api, "order 42"), send(api, "order 42")
    assert [first.status_code, second.status_code] == [201, 200]
    assert first.json()["job"] == second.json()["job"]
    assert (first.json()["job"]["key"], first.json()["job"]["parameters"]) == ("order 42", {"a": 1})
    assert second.json()["message"] == "Job was stored already."
    third = send(api, "order 43")
    assert (third.status_code, scheduler.count_jobs()) == (201, 2)
    assert third.json()["job"]["id"] != first.json()["job"]["id"]
    # Of another name it is another job, as with a key of the body.
    assert send(api, "order 42", name="other", parameters={}).status_code == 201
    assert api.post(JOBS, json=BODY).json()["job"]["key"] is None


def test_the_audit_log_tells_a_repetition(api: httpx.Client, scheduler: Scheduler) -> None:
    """Each request has its line: the same job, and the status tells which of them made it."""
    job = send(api, "k").json()["job"]["id"]
    send(api, "k")

    def lines() -> list[tuple[int, int]]:
        return [
            (facts["job_id"], facts["status"])
            for _, event, facts in list(scheduler.log.lines)
            if event == "api change"
        ]

    eventually(lambda: len(lines()) == 2, describe=lines)
    assert lines() == [(job, 201), (job, 200)]


def test_many_at_the_same_time_make_one_job(api: httpx.Client, scheduler: Scheduler) -> None:
    """Whoever comes first: one of them is told that it was stored now, the others which job that is."""
    with ThreadPoolExecutor(8) as pool:
        for key in ("a", "b", "c"):
            answers = list(pool.map(lambda _, key=key: send(api, key), range(8)))
            assert sorted(answer.status_code for answer in answers) == [200] * 7 + [201]
            assert len({answer.json()["job"]["id"] for answer in answers}) == 1
    assert scheduler.count_jobs() == 3


def test_a_job_that_has_ended_is_not_made_again(api: httpx.Client, scheduler: Scheduler) -> None:
    """The repetition comes after the run, or after the job was cancelled: it is answered with how that ended."""
    done: list[int] = []
    scheduler.register(Call(JobConfig(name="work"), lambda ctx: done.append(1)))
    first = send(api, "k").json()["job"]["id"]
    cancelled = send(api, "c").json()["job"]["id"]
    api.post(f"{JOBS}/{cancelled}/cancel")
    scheduler.run_pending()
    for key, job, state in (("k", first, "completed"), ("c", cancelled, "cancelled")):
        again = send(api, key)
        assert again.status_code == 200
        assert (
            again.json()["job"].items() >= {"id": job, "key": key, "state": state, "is_active": False}.items()
        )
    assert (done, scheduler.count_jobs()) == ([1], 0)


def test_a_job_that_is_gone_is_made_again(
    api: httpx.Client, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was deleted between two requests, or between two looks of one, leaves nothing to answer with."""
    first = send(api, "k").json()["job"]["id"]
    api.delete(f"{JOBS}/{first}")
    second = send(api, "k")
    assert second.status_code == 201
    real = scheduler.get_job

    def gone(job: Any) -> Any:
        monkeypatch.setattr(scheduler, "get_job", real)
        scheduler.delete(second.json()["job"]["id"], history=True)
        raise JobNotFoundError(job)

    monkeypatch.setattr(scheduler, "get_job", gone)
    third = send(api, "k")
    assert third.status_code == 201
    assert third.json()["job"]["id"] not in (first, second.json()["job"]["id"])

    def never(job: Any) -> Any:
        raise JobNotFoundError(job)

    monkeypatch.setattr(scheduler, "get_job", never)
    answer = send(api, "k")
    assert (answer.status_code, answer.json()["code"]) == (409, "duplicate_job")


def test_the_key_of_the_body(api: httpx.Client) -> None:
    """The same key in both places is one key; a different one is refused, and so is another wish for what exists."""
    first = send(api, "k", **BODY, key="k")
    assert [first.status_code, send(api, "k", **BODY, key="k").status_code] == [201, 200]
    assert send(api, "k").json()["job"] == first.json()["job"]
    assert send(api, "k", **BODY, key=None, if_exists="error").status_code == 200
    assert api.post(JOBS, json={**BODY, "key": "k"}).status_code == 409
    text = refused(send(api, "k", **BODY, key="other"), "key")
    assert text == "key must be that of Idempotency-Key, or not be given, got 'other'"
    for wish in ("keep", "update"):
        text = refused(send(api, "k", **BODY, if_exists=wish), "if_exists")
        assert "must not be given together with Idempotency-Key" in text
    assert len(api.get(JOBS).json()) == 1


@pytest.mark.parametrize(
    ("key", "rule"),
    [
        (b"", "cannot be empty"),
        (b"x" * 256, "must not be longer than 255 characters (too long)"),
        (b"a\tb", "must be printable ASCII"),
        ("schl\u00fcssel".encode(), "must be printable ASCII"),
        (b"\xff", "must be printable ASCII"),
    ],
)
def test_wrong_headers(api: httpx.Client, key: bytes, rule: str) -> None:
    """A header is what a key may be, as far as a header can say it; where it is read it is always checked."""
    api.post(TEMPLATES, json={"code": "T", "handler": "work"})
    for path, body in (
        (JOBS, BODY),
        (JOBS, {**BODY, "schedule": {"every": 60}}),
        (JOBS, CRON),
        (f"{TEMPLATES}/T/jobs", {}),
    ):
        answer = api.post(path, json=body, headers={HEADER: key})
        assert refused(answer, HEADER) == f"{HEADER} {rule}"
    assert api.get(JOBS).json() == []


def test_longest_header(api: httpx.Client) -> None:
    """255 characters are a key, and so is each that can be printed."""
    for key in ("x" * 255, "".join(map(chr, range(33, 127)))):
        assert [send(api, key).status_code for _ in range(2)] == [201, 200]
        assert api.get(JOBS, params={"key": key}).json()[0]["key"] == key


def test_two_headers(api: httpx.Client) -> None:
    """Which of two would be meant, nobody can say."""
    answer = api.post(JOBS, json=BODY, headers=[(HEADER, "a"), (HEADER, "a")])
    assert refused(answer, HEADER, status=400) == f"{HEADER} is given twice"


def test_recurring_jobs_have_keys_anyway(api: httpx.Client, scheduler: Scheduler) -> None:
    """Their own key, or their name, is what makes a repetition harmless; it is 409, and the header changes nothing."""
    for body in ({"name": "work", "schedule": {"every": 60}}, CRON):
        assert send(api, "a", **body).status_code == 201
        again = send(api, "a", **body)
        assert (again.status_code, again.json()["code"]) == (409, "duplicate_job")
    assert scheduler.get_job("work").key == "work"
    assert scheduler.get_job(("http_job", "ping")).key == "ping"
    assert send(api, "b", name="own", key="mine", schedule={"every": 60}).json()["job"]["key"] == "mine"
    kind = send(api, "a")
    assert (kind.status_code, kind.json()["code"]) == (409, "job_kind")


def test_jobs_of_templates(api: httpx.Client, scheduler: Scheduler) -> None:
    """The same for a job of a template; its key is one of the template's handler."""
    api.post(TEMPLATES, json={"code": "T", "handler": "work"})
    path = f"{TEMPLATES}/T/jobs"
    given = {"parameters": {"a": 1}}
    first, second = send(api, "k", path, **given), send(api, "k", path, **given)
    assert [first.status_code, second.status_code] == [201, 200]
    assert first.json()["job"] == second.json()["job"]
    assert first.json()["job"].items() >= {"job": "work", "key": "k", "template": "T"}.items()
    assert send(api, "l", path, **given).status_code == 201
    assert send(api, "k", path, **given, key="k").status_code == 200
    refused(send(api, "k", path, **given, key="other"), "key")
    refused(send(api, "k", path, **given, if_exists="update"), "if_exists")
    scheduler.register(Call(JobConfig(name="work")))
    scheduler.run_pending()
    assert send(api, "k", path, **given).json()["job"]["state"] == "completed"
    assert send(api, "k", f"{TEMPLATES}/U/jobs", **given).status_code == 404


def test_where_it_cannot_be_kept_it_is_refused(api: httpx.Client, scheduler: Scheduler) -> None:
    """What makes jobs without keys cannot be made once: whoever sends the header is told so."""
    scheduler.register(Call(JobConfig(name="work")))
    api.post(JOBS, json=BODY)
    scheduler.run_pending()
    (run,) = api.get("/api/v1/runs").json()
    for path, body in (
        (f"{JOBS}/bulk", {"name": "work", "parameters": [{}]}),
        ("/api/v1/runs/retry", {"runs": [run["id"]]}),
        (f"/api/v1/runs/{run['id']}/retry", None),
    ):
        answer = api.post(path, json=body, headers={HEADER: "a"})
        assert "it is for one new job" in refused(answer, HEADER, "unknown_field")
    assert api.get(JOBS).json() == []


@pytest.mark.parametrize("path", [JOBS, TEMPLATES + "/{code}/jobs"])
def test_it_is_described(api: httpx.Client, path: str) -> None:
    """The header and both answers are in the description."""
    operation = api.get("/api/v1/openapi.json").json()["paths"][path]["post"]
    (header,) = [one for one in operation["parameters"] if one["in"] == "header"]
    assert (header["name"], header["required"]) == (HEADER, False)
    assert header["schema"].items() >= {"type": "string", "minLength": 1, "maxLength": 255}.items()
    assert "sent twice" in header["description"]
    assert {"200", "201", "409"} <= operation["responses"].keys()
    assert operation["responses"]["200"]["content"] == operation["responses"]["201"]["content"]


def test_two_servers(
    dsn: str, scheduler_on: Callable[..., Scheduler], client_of: Callable[..., httpx.Client]
) -> None:
    """The database keeps it, so a repetition may reach another process."""
    one, other = client_of(scheduler_on(dsn)), client_of(scheduler_on(dsn))
    answers = [send(one, "k"), send(other, "k")]
    assert [answer.status_code for answer in answers] == [201, 200]
    assert answers[0].json()["job"] == answers[1].json()["job"]
