"""Definitions over REST: what a plan says and an apply does, whose token may ask, and what is never shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from pgscheduler import JobConfig, JobState, Scheduler, ScheduleUnknownError
from pgscheduler.cli import main
from pgscheduler.web import Limits, Tokens
from tests.engine.conftest import Call, Gate
from tests.web.conftest import READ, WRITE

PLAN, APPLY = "/api/v1/definitions/plan", "/api/v1/definitions/apply"
CANARY = "canary-in-the-mine"


def declared(*jobs: Any, source: str = "shop", **more: Any) -> dict[str, Any]:
    return {"source": source, "jobs": list(jobs), **more}


def hourly(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "every": 3600, **more}


def actions(answer: httpx.Response) -> list[tuple[str, str]]:
    assert answer.status_code == 200, answer.text
    return [(change["action"], change["key"]) for change in answer.json()["changes"]]


def test_plan_and_apply(api: httpx.Client, scheduler: Scheduler) -> None:
    """A plan changes nothing and says what the apply does, which answers the same; applied twice, nothing happens."""
    first = declared(hourly("a", retries=2), {"name": "b", "cron": "0 9 * * *"}, hourly("c", command="true"))
    planned = api.post(PLAN, json=first)
    assert actions(planned) == [("create", "a"), ("create", "b"), ("create", "c")]
    assert scheduler.jobs() == []
    assert api.post(APPLY, json=first).json() == planned.json()
    assert scheduler.get_job(("shell_job", "c")).parameters == {"shell": "true"}
    assert api.post(APPLY, json=first).json() == {"source": "shop", "changes": [], "unchanged": 3}

    second = declared(hourly("a", retries=3), {"name": "b", "cron": "0 9 * * *"})
    planned = api.post(PLAN, json=second)
    assert actions(planned) == [("change", "a"), ("retire", "c")]
    assert planned.json()["changes"][0]["differences"] == {
        "options": {"from": {"retries": 2}, "to": {"retries": 3}}
    }
    assert planned.json()["changes"][0]["id"] == scheduler.get_job("a").id
    assert api.post(APPLY, json=second).json() == planned.json()
    assert {job.key for job in scheduler.jobs()} == {"a", "b"}


def test_both_spellings(api: httpx.Client, scheduler: Scheduler) -> None:
    """Words that a file knows twice are known twice here, keys may be in camelCase, and 3.0 is an integer."""
    snake = declared(
        {
            "name": "a",
            "schedule": "0 9 * * *",
            "timeout": 5,
            "misfire_grace": 7,
            "max_stalls": 2,
            "retries": 3,
        },
        defaults={"timezone": "Europe/Berlin"},
    )
    camel = declared(
        {
            "name": "a",
            "cron": "0 9 * * *",
            "timeoutSeconds": 5.0,
            "misfireGrace": 7,
            "maxStalls": 2.0,
            "retries": 3.0,
        },
        defaults={"timezone": "Europe/Berlin"},
        **{"$schema": "https://example.org/definitions.schema.json"},
    )
    api.post(APPLY, json=snake)
    assert api.post(PLAN, json=camel).json() == {"source": "shop", "changes": [], "unchanged": 1}
    job = scheduler.get_job("a")
    assert (job.schedule or {})["timezone"] == "Europe/Berlin"
    assert (job.options or {}).items() >= {
        "timeout": 5.0,
        "misfire_grace": 7.0,
        "max_stalls": 2,
        "retries": 3,
    }.items()
    kept = declared(hourly("b", parameters={"camelCase": 3.0, "n": [{"aB": 1.0}]}), source="other")
    api.post(APPLY, json=kept)
    assert json.dumps(scheduler.get_job("b").parameters) == '{"n": [{"aB": 1.0}], "camelCase": 3.0}'


def test_the_command_says_the_same(
    api: httpx.Client, dsn: str, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """`plan --json` of the document as a file has the same answer, header values and secrets hidden in both."""
    headers = {"X-Key": CANARY, "Accept": "text/html"}
    request = {"url": "https://example.org/", "method": "GET", "headers": headers}
    before = declared(
        hourly("a", job="http_job", parameters=request),
        hourly("b", parameters={"token": {"$secret": CANARY}}),
    )
    after = declared(
        hourly("a", job="http_job", parameters={**request, "headers": {**headers, "X-Key": f"{CANARY}2"}}),
        hourly("b", parameters={"token": {"$secret": f"{CANARY}2"}}),
        hourly("c"),
    )
    api.post(APPLY, json=before)
    told = api.post(PLAN, json=after)
    file = tmp_path / "jobs.yaml"
    file.write_text(json.dumps(after))
    assert main(["plan", str(file), "--json", "--dsn", dsn]) == 0
    assert json.loads(capsys.readouterr().out) == told.json()
    assert told.text.count("(secret changed)") == 2
    assert CANARY not in told.text


def test_conflicts(api: httpx.Client, scheduler: Scheduler) -> None:
    """Somebody else's job is a conflict in a plan and 409 from an apply, which creates nothing beside it."""
    scheduler.schedule_by_name("mine", "@daily")
    body = declared(hourly("new"), hourly("mine"))
    planned = api.post(PLAN, json=body)
    assert actions(planned) == [("create", "new"), ("conflict", "mine")]
    assert planned.json()["changes"][1]["differences"]["reason"]["from"] == "made by a program or by hand"
    answer = api.post(APPLY, json=body)
    assert (answer.status_code, answer.json()["code"]) == (409, "duplicate_job")
    scheduler.enqueue("once", key="k", delay=None, run_at=None, priority=1)
    scheduler.pause(("once", "k"))
    answer = api.post(APPLY, json=declared(hourly("new"), hourly("fresh", job="once")))
    assert (answer.status_code, answer.json()["code"]) == (409, "job_kind")
    for verb in (PLAN, APPLY):
        answer = api.post(verb, json=declared(hourly("a"), hourly("b"), {"name": "a", "cron": "@daily"}))
        assert (answer.status_code, answer.json()["code"]) == (409, "duplicate_job")
        assert (answer.json()["field"], "first at jobs.0.name" in answer.json()["error"]) == (
            "jobs.2.name",
            True,
        )
    assert {job.name for job in scheduler.jobs()} == {"mine", "once"}


def test_retire(api: httpx.Client, scheduler: Scheduler) -> None:
    """What left the document goes, or stays, or goes only if its id was given."""
    api.post(APPLY, json=declared(hourly("a"), hourly("b"), hourly("c")))
    b = scheduler.get_job("b").id
    assert actions(api.post(APPLY, json=declared(hourly("a"), retire=False))) == []
    assert actions(api.post(APPLY, json=declared(hourly("a"), retire=[]))) == []
    chosen = declared(hourly("a"), retire=[b, 2**62, 10**30])
    assert actions(api.post(APPLY, json=chosen)) == [("retire", "b")]
    assert actions(api.post(APPLY, json=declared(hourly("a"), retire=True))) == [("retire", "c")]
    assert [job.name for job in scheduler.jobs()] == ["a"]


def test_a_running_job(
    client_of: Callable[..., httpx.Client], scheduler_on: Any, dsn: str, gate: Gate
) -> None:
    """What must change and runs is waited for: within the time it is changed, else 409 and nothing is."""
    scheduler = scheduler_on(dsn, start=True, register=(Call(JobConfig(name="a"), gate),))
    api = client_of(scheduler)
    api.post(APPLY, json=declared(hourly("a")))
    scheduler.trigger("a")
    gate.wait_for(1)
    body = declared(hourly("a", priority=1), hourly("b"))
    assert api.post(PLAN, json=body).json()["changes"][0]["running"] is True
    for seconds in (0, 0.3):
        answer = api.post(APPLY, json={**body, "wait_seconds": seconds})
        assert (answer.status_code, answer.json()["code"]) == (409, "job_running")
    assert [job.name for job in scheduler.jobs()] == ["a"]
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(api.post, APPLY, json={**body, "waitSeconds": 25})
        gate.open()
        assert actions(waiting.result(60)) == [("change", "a"), ("create", "b")]
    assert scheduler.get_job("a").priority == 1


def test_a_wait_is_no_longer_than_a_request(
    client_of: Callable[..., httpx.Client], scheduler_on: Any, dsn: str, gate: Gate
) -> None:
    """Whoever would wait longer than a request may take hears in time that the job still runs, and not 504."""
    scheduler = scheduler_on(dsn, start=True, register=(Call(JobConfig(name="a"), gate),))
    api = client_of(scheduler, limits=Limits(request_timeout=4))
    api.post(APPLY, json=declared(hourly("a")))
    scheduler.trigger("a")
    gate.wait_for(1)
    answer = api.post(APPLY, json=declared(hourly("a", priority=1), wait_seconds=3600))
    assert (answer.status_code, answer.json()["code"]) == (409, "job_running")


def test_a_commit_without_an_answer(
    api: httpx.Client, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever cannot know whether it was applied hears that once more does no harm."""

    def lost(*_: Any, **__: Any) -> Any:
        raise ScheduleUnknownError("the connection to db.internal was lost")

    monkeypatch.setattr(scheduler, "apply", lost)
    answer = api.post(APPLY, json=declared(hourly("a")))
    assert (answer.status_code, answer.json()["code"]) == (503, "outcome_unknown")
    assert ("twice does no harm" in answer.json()["error"], "db.internal" in answer.text) == (True, False)
    assert int(answer.headers["retry-after"]) > 0


def test_who_may(scheduler: Scheduler, client_of: Callable[..., httpx.Client]) -> None:
    """A token that may only read may plan and not apply; and it cannot find out a secret by guessing."""
    tokens = Tokens(read=[READ], write=[WRITE])
    reader, writer = (client_of(scheduler, tokens=tokens, token=token) for token in (READ, WRITE))
    secret = declared(hourly("a", parameters={"pin": {"$secret": 1234}}))
    keyed = declared(
        hourly(
            "b",
            job="http_job",
            parameters={"url": "https://example.org/", "method": "GET", "headers": {"X-Key": CANARY}},
        ),
        source="other",
    )
    for body in (secret, keyed):
        assert reader.post(APPLY, json=body).json()["code"] == "forbidden"
        assert writer.post(APPLY, json=body).status_code == 200
        refused = reader.post(PLAN, json=body)
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
        assert refused.json()["field"] == "jobs.0.parameters"
        assert writer.post(PLAN, json=body).json()["unchanged"] == 1
    assert actions(reader.post(PLAN, json=declared(hourly("x")))) == [("create", "x"), ("retire", "a")]
    assert reader.post("/api/v1/templates/NONE/validate", json={}).status_code == 404
    assert [job.state for job in scheduler.jobs()] == [JobState.PENDING] * 2
