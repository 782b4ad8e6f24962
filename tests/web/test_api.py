"""What each endpoint does, and Cron Service's and Bildad's words to the letter."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from pgscheduler import JobConfig, Scheduler, SchedulerConfig
from pgscheduler.cli import main
from pgscheduler.jobs import HttpJob
from pgscheduler.web import Server, Tokens, create_app
from tests.engine.conftest import Call, Gate
from tests.support import eventually

PAYLOAD = {"type": "API_CALL", "url": "https://example.org/hook", "method": "POST", "data": {"a": 1}}
SNAKE = {"name": "ping", "cron_expression": "*/5 * * * *", "task_payload": PAYLOAD}
CAMEL = {"name": "ping", "cronExpression": "*/5 * * * *", "taskPayload": PAYLOAD}
JOBS = "/api/v1/jobs"


def make(api: httpx.Client, **body: Any) -> dict[str, Any]:
    """Store a job; the job as it is answered."""
    answer = api.post(JOBS, json={"name": "work", "parameters": {}, **body})
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()["job"]
    return found


# --- Cron Service -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [SNAKE, CAMEL], ids=["snake_case", "camelCase"])
def test_cron_service_job(api: httpx.Client, scheduler: Scheduler, body: dict[str, Any]) -> None:
    """Its body in either spelling makes a job of HttpJob under its name, answered in its words."""
    answer = api.post(JOBS, json=body)
    assert answer.status_code == 201
    assert answer.json()["message"] == "Job scheduled successfully."
    told = answer.json()["job"]
    assert told.items() >= {"name": "ping", "cron_expression": "*/5 * * * *", "is_active": True}.items()
    job = scheduler.get_job(("http_job", "ping"))
    assert (told["id"], job.parameters) == (job.id, PAYLOAD)
    assert job.options == {
        "retries": 2,
        "backoff": [5.0, 2.0, 3600.0, 0.1],
    }  # three attempts, 5 and 10 s between


def test_cron_service_list(api: httpx.Client) -> None:
    """The list is an array by id, with its five fields; one job by `jobId`."""
    ids = [api.post(JOBS, json={**SNAKE, "name": name}).json()["job"]["id"] for name in ("b", "a", "c")]
    api.post(f"{JOBS}/{ids[1]}/disable")
    found = api.get(JOBS).json()
    assert [(job["id"], job["name"], job["is_active"]) for job in found] == [
        (ids[0], "b", True),
        (ids[1], "a", False),
        (ids[2], "c", True),
    ]
    assert {"id", "name", "cron_expression", "is_active", "created_at"} <= found[0].keys()
    assert [job["name"] for job in api.get(f"{JOBS}?jobId={ids[2]}").json()] == ["c"]
    assert api.get(f"{JOBS}?job_id={ids[2]}").json() == api.get(f"{JOBS}?jobId={ids[2]}").json()


def test_cron_service_inactive(api: httpx.Client, scheduler: Scheduler) -> None:
    """A job that is stored as not active is paused from the first moment."""
    job = api.post(JOBS, json={**CAMEL, "isActive": False}).json()["job"]
    assert job["is_active"] is False
    assert scheduler.get_job(job["id"]).state == "paused"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "text"),
    [
        ("POST", JOBS, {}, 400, "Missing required fields: name, cron_expression, and task_payload."),
        (
            "POST",
            JOBS,
            {"name": "x"},
            400,
            "Missing required fields: name, cron_expression, and task_payload.",
        ),
        (
            "POST",
            JOBS,
            {"name": "x", "cronExpression": "* * * * *"},
            400,
            "Missing required fields: name, cron_expression, and task_payload.",
        ),
        (
            "POST",
            JOBS,
            {**SNAKE, "name": ""},
            400,
            "Missing required fields: name, cron_expression, and task_payload.",
        ),
        ("POST", JOBS, {**SNAKE, "cron_expression": "every day"}, 400, "Invalid cron_expression format."),
        ("POST", JOBS, {**SNAKE, "cron_expression": "0 0 30 2 *"}, 400, "Invalid cron_expression format."),
        (
            "POST",
            JOBS,
            {**SNAKE, "task_payload": {**PAYLOAD, "type": "MAIL"}},
            400,
            "Unsupported job type: MAIL",
        ),
        (
            "POST",
            JOBS,
            {**SNAKE, "task_payload": {"type": "API_CALL", "url": "https://a.test"}},
            400,
            "API_CALL task missing required 'url' or 'method' in config.",
        ),
        ("POST", JOBS, {**SNAKE, "name": "taken"}, 409, "Job with name 'taken' already exists."),
        ("GET", f"{JOBS}?jobId=12abc", None, 400, "jobId must be a valid integer."),
        ("GET", f"{JOBS}?jobId=", None, 400, "jobId must be a valid integer."),
        ("GET", f"{JOBS}?jobId=999999", None, 404, "Job with ID 999999 not found."),
        ("DELETE", f"{JOBS}/12abc", None, 400, "Invalid job ID provided."),
        ("DELETE", f"{JOBS}/0", None, 400, "Invalid job ID provided."),
        ("DELETE", f"{JOBS}/1.0", None, 400, "Invalid job ID provided."),
        ("DELETE", f"{JOBS}/999999", None, 404, "Job with ID 999999 not found."),
    ],
)
def test_cron_service_errors(
    api: httpx.Client, method: str, path: str, body: Any, status: int, text: str
) -> None:
    """Its codes and its texts."""
    api.post(JOBS, json={**SNAKE, "name": "taken"})
    answer = api.request(method, path, json=body)
    assert (answer.status_code, answer.json()["error"]) == (status, text)


def test_cron_service_delete(api: httpx.Client, scheduler: Scheduler) -> None:
    """A job goes with its history, and the answer says so."""
    scheduler.register(Call(JobConfig(name="work"), lambda ctx: ctx.log.info("hello")))
    job = make(api, key="a", schedule={"every": 60})
    api.post(f"{JOBS}/{job['id']}/trigger")
    scheduler.run_pending()
    assert len(api.get(f"/api/v1/runs?jobId={job['id']}").json()) == 1
    answer = api.delete(f"{JOBS}/{job['id']}")
    assert answer.status_code == 200
    text = f"Job ID {job['id']} and all its execution history deleted successfully."
    assert answer.json()["message"] == text
    assert api.get("/api/v1/runs").json() == []


def test_delete_without_history(api: httpx.Client, scheduler: Scheduler) -> None:
    """`history=false` leaves the runs of a job, and the answer says so."""
    scheduler.register(Call(JobConfig(name="work")))
    job = make(api, schedule={"every_seconds": 60})
    api.post(f"{JOBS}/{job['id']}/trigger")
    scheduler.run_pending()
    answer = api.delete(f"{JOBS}/{job['id']}?history=false")
    text = f"Job ID {job['id']} deleted successfully; its execution history stays."
    assert (answer.status_code, answer.json()["message"]) == (200, text)
    assert "completed" in {run["outcome"] for run in api.get("/api/v1/runs").json()}


def test_cron_service_root(api: httpx.Client, dsn: str) -> None:
    """Its greeting, in which nothing is secret."""
    answer = api.get("/")
    assert answer.json().keys() == {"service", "status", "dbHost", "queueName", "version"}
    assert (answer.json()["status"], answer.json()["queueName"]) == ("Running", "public.pgscheduler_")
    assert "password" not in answer.text


def test_its_payload_is_requested(scheduler: Scheduler, api: httpx.Client) -> None:
    """What Cron Service's body stored is run by HttpJob: here it is refused, for its address is not public."""
    payload = {"type": "API_CALL", "config": {"url": "http://127.0.0.1/", "method": "get"}}
    job = api.post(JOBS, json={**CAMEL, "taskPayload": payload}).json()["job"]
    scheduler.register(HttpJob())  # now: it would else be refused when it is stored
    api.post(f"{JOBS}/{job['id']}/trigger")
    scheduler.run_pending()
    (run,) = api.get(f"/api/v1/runs?jobId={job['id']}").json()
    assert (run["status"], run["outcome"]) == ("FAILED", "failed")
    assert run["error"].startswith("blocked: host '127.0.0.1'")


# --- jobs ---------------------------------------------------------------------------------------------------


def test_one_time_job(api: httpx.Client, scheduler: Scheduler) -> None:
    """A one-time job by name, with policies and a time, read back as it was sent."""
    at = datetime(2031, 3, 1, 9, 0, tzinfo=UTC)
    job = make(
        api,
        key="42",
        parameters={"user": [1, None, "ü", 2**100]},
        run_at="2031-03-01T10:00:00+01:00",
        retries=3,
        timeout_seconds=2.5,
        priority=1,
        expires_in_seconds=60,
        backoff={"initial_seconds": 1, "factor": 3},
        metadata={"team": "a"},
    )
    stored = scheduler.get_job(job["id"])
    assert (stored.run_at, stored.key, stored.priority, stored.recurring) == (at, "42", 1, False)
    assert job["parameters"] == stored.parameters == {"user": [1, None, "ü", 2**100]}
    assert (job["run_at"], job["job"], job["name"]) == ("2031-03-01T09:00:00Z", "work", "work")
    assert stored.options == {
        "retries": 3,
        "timeout": 2.5,
        "expires_in": 60.0,
        "backoff": [1.0, 3.0, 3600.0, 0.1],
        "metadata": {"team": "a"},
    }
    assert api.get(f"{JOBS}/{job['id']}").json() == job


def test_without_policies_the_class_decides(api: httpx.Client, scheduler: Scheduler) -> None:
    """What is not said is not stored, so that the policies of the class apply."""
    assert scheduler.get_job(make(api)["id"]).options is None
    assert scheduler.get_job(make(api, name="again", schedule={"every": 60})["id"]).options is None


@pytest.mark.parametrize(
    ("schedule", "stored"),
    [
        ({"cron": "0 9 * * 1-5"}, {"cron": "0 9 * * 1-5", "timezone": "UTC"}),
        (
            {"cron": "0 9 * * *", "timezone": "Europe/Berlin"},
            {"cron": "0 9 * * *", "timezone": "Europe/Berlin"},
        ),
        ({"every": 90}, {"every": 90.0}),
        ({"every_seconds": 90}, {"every": 90.0}),
    ],
)
def test_recurring_job(api: httpx.Client, scheduler: Scheduler, schedule: Any, stored: Any) -> None:
    """A recurring job by the name of a class that this process lacks."""
    job = make(api, schedule=schedule, retries=1)
    assert (job["schedule"], job["recurring"], job["key"]) == (stored, True, "work")
    assert job["cron_expression"] == stored.get("cron")
    assert scheduler.get_job("work").id == job["id"]


def test_if_exists(api: httpx.Client) -> None:
    """A second job of a name and key is refused, left alone, or becomes what is there, as one asks."""
    first = make(api, schedule={"every": 60}, priority=1)
    body = {"name": "work", "schedule": {"every": 90}, "priority": 2}
    refused = api.post(JOBS, json=body)
    assert (refused.status_code, refused.json()["code"]) == (409, "duplicate_job")
    kept = api.post(JOBS, json={**body, "if_exists": "keep"}).json()["job"]
    assert kept == first
    changed = api.post(JOBS, json={**body, "ifExists": "update"}).json()["job"]
    assert (changed["id"], changed["priority"], changed["schedule"]) == (first["id"], 2, {"every": 90.0})
    once = make(api, name="once", key="k")
    assert api.post(JOBS, json={"name": "once", "key": "k"}).status_code == 409
    assert make(api, name="once", key="k", if_exists="keep")["id"] == once["id"]


def test_what_was_read_can_be_sent_back(api: httpx.Client) -> None:
    """A schedule as it is answered is a schedule as it is given."""
    for name, schedule in (
        ("a", {"every_seconds": 90}),
        ("b", {"cron": "0 9 * * *", "timezone": "Europe/Berlin"}),
    ):
        job = make(api, name=name, schedule=schedule)
        assert api.patch(f"{JOBS}/{job['id']}", json={"schedule": job["schedule"]}).json() == job


def test_many_at_once(api: httpx.Client, scheduler: Scheduler) -> None:
    """One request stores a one-time job for each of the parameters, with one time and priority; all or none."""
    answer = api.post(
        f"{JOBS}/bulk",
        json={"name": "work", "parameters": [{"n": 1}, None, [2]], "priority": 3, "delaySeconds": 60},
    )
    assert (answer.status_code, answer.json()) == (201, {"stored": 3})
    found = scheduler.jobs()
    assert [job.parameters for job in reversed(found)] == [{"n": 1}, {}, [2]]
    assert {(job.name, job.key, job.priority, job.run_at > job.created_at) for job in found} == {
        ("work", None, 3, True)
    }
    assert api.post(f"{JOBS}/bulk", json={"name": "work", "parameters": []}).json() == {"stored": 0}
    make(api, name="again", schedule={"every_seconds": 60})
    refused = api.post(f"{JOBS}/bulk", json={"name": "again", "parameters": [{}, {}]})
    assert (refused.status_code, refused.json()["code"]) == (409, "job_kind")
    assert scheduler.count_jobs() == 4


def test_counts(api: httpx.Client, scheduler: Scheduler) -> None:
    """How many rows a list has, with its filters and without reading them; of a template's jobs too."""
    scheduler.register(Call(JobConfig(name="work")))
    scheduler.templates.create("T", handler="work")
    for _ in range(3):
        api.post("/api/v1/templates/T/jobs", json={})
    make(api)
    make(api, name="other")
    for query, count in (
        ("", 5),
        ("?name=work", 4),
        ("?template=T", 3),
        ("?template=U", 0),
        ("?recurring=true", 0),
    ):
        assert api.get(f"{JOBS}/count{query}").json() == {"count": count}
        assert len(api.get(f"{JOBS}{query}").json()) == count
    scheduler.run_pending()
    job = api.get("/api/v1/runs?template=T&limit=1").json()[0]["job_id"]
    for query, count in (("", 4), ("?outcome=failed", 0), ("?template=T", 3), (f"?jobId={job}", 1)):
        assert api.get(f"/api/v1/runs/count{query}").json() == {"count": count}
        assert len(api.get(f"/api/v1/runs{query}").json()) == count


def test_paths_of_their_own_are_no_ids(api: httpx.Client) -> None:
    """What such a path does not offer is 405 with what it does, and not a wrong id."""
    for path, allow, methods in (
        (f"{JOBS}/bulk", "POST", ("GET", "PATCH", "DELETE")),
        (f"{JOBS}/count", "GET, HEAD", ("POST", "PATCH", "DELETE")),
        ("/api/v1/runs/count", "GET, HEAD", ("POST",)),
        ("/api/v1/runs/retry", "POST", ("GET",)),
    ):
        for method in methods:
            answer = api.request(method, path)
            assert (answer.status_code, answer.headers["allow"]) == (405, allow), (method, path)


def test_kinds_do_not_mix(api: httpx.Client) -> None:
    """A one-time job does not share its name with a recurring one."""
    make(api, schedule={"every": 60})
    answer = api.post(JOBS, json={"name": "work", "parameters": {}})
    assert (answer.status_code, answer.json()["code"]) == (409, "job_kind")


def test_change(api: httpx.Client) -> None:
    """A change touches what it names; a changed schedule moves the next occurrence, nothing else does."""
    job = make(api, schedule={"cron": "0 9 * * *"}, priority=3, retries=1, parameters={"a": 1})
    path = f"{JOBS}/{job['id']}"
    after = api.patch(path, json={"priority": 7}).json()
    assert after == {**job, "priority": 7}
    after = api.patch(
        path, json={"cronExpression": "30 9 * * *", "timeoutSeconds": 5, "parameters": {"a": 2}}
    ).json()
    assert (after["cron_expression"], after["parameters"]) == ("30 9 * * *", {"a": 2})
    assert after["options"] == {"retries": 1, "timeout": 5.0}
    assert after["scheduled_at"].endswith("09:30:00Z")
    assert api.patch(path, json={"timeout_seconds": None}).json()["options"] == {"retries": 1}
    assert api.patch(path, json={"is_active": False}).json()["state"] == "paused"
    assert api.patch(path, json={"is_active": True, "priority": 1}).json()["state"] == "pending"
    assert api.get(path).json()["priority"] == 1


def test_change_of_a_request(api: httpx.Client) -> None:
    """Another payload, in Cron Service's words; for other jobs it has no meaning."""
    job = api.post(JOBS, json=SNAKE).json()["job"]
    other = {"type": "API_CALL", "url": "https://example.org/other", "method": "GET"}
    assert api.patch(f"{JOBS}/{job['id']}", json={"task_payload": other}).json()["parameters"] == other
    refused = api.patch(f"{JOBS}/{make(api)['id']}", json={"taskPayload": other})
    assert (refused.status_code, refused.json()["code"]) == (409, "job_kind")


def test_change_while_it_runs(api: httpx.Client, scheduler_on: Any, dsn: str, gate: Gate) -> None:
    """A job that runs is not changed under its run, but it is cancelled and deleted as soon as it stops."""
    scheduler_on(dsn, start=True, register=(Call(JobConfig(name="work"), gate),))
    job = make(api, schedule={"every": 3600})
    path = f"{JOBS}/{job['id']}"
    api.post(f"{path}/trigger")
    gate.wait_for(1)
    answer = api.patch(path, json={"priority": 1})
    assert (answer.status_code, answer.json()["code"]) == (409, "job_running")
    assert api.post(f"{path}/trigger").json()["code"] == "job_running"
    answer = api.delete(path)
    assert (answer.status_code, answer.json()["result"]) == (202, "requested")
    eventually(lambda: api.get(JOBS).json() == [])


def test_enable_disable(api: httpx.Client, scheduler: Scheduler) -> None:
    """A disabled job is not started; enabled, it goes on. Both may be said twice."""
    done: list[int] = []
    scheduler.register(Call(JobConfig(name="work"), lambda ctx: done.append(1)))
    job = make(api)
    path = f"{JOBS}/{job['id']}"
    for _ in range(2):
        assert api.post(f"{path}/disable").json()["is_active"] is False
    assert scheduler.run_pending().claimed == 0
    for _ in range(2):
        assert api.post(f"{path}/enable").json()["is_active"] is True
    scheduler.run_pending()
    assert done == [1]


def test_cancel(api: httpx.Client) -> None:
    """A job that waits is cancelled at once; one that has ended, or waits for its next time, is not running."""
    job = make(api)
    path = f"{JOBS}/{job['id']}/cancel"
    answer = api.post(path)
    assert (answer.status_code, answer.json()["result"]) == (200, "cancelled")
    assert (api.post(path).status_code, api.post(path).json()["code"]) == (409, "job_not_running")
    again = make(api, name="again", schedule={"every": 60})
    assert api.post(f"{JOBS}/{again['id']}/cancel").json()["code"] == "job_not_running"


def test_cancel_while_it_runs(api: httpx.Client, scheduler_on: Any, dsn: str, gate: Gate) -> None:
    """A job that runs elsewhere is asked to stop."""
    scheduler_on(dsn, start=True, register=(Call(JobConfig(name="work"), gate),))
    job = make(api)
    gate.wait_for(1)
    answer = api.post(f"{JOBS}/{job['id']}/cancel")
    assert (answer.status_code, answer.json()["result"]) == (202, "requested")
    eventually(lambda: [r["outcome"] for r in api.get("/api/v1/runs").json()] == ["cancelled"])


def test_position(api: httpx.Client) -> None:
    """The place among those that wait, by priority."""
    later, first = make(api, priority=9), make(api, priority=1)
    assert api.get(f"{JOBS}/{first['id']}/position").json() == {"id": first["id"], "position": 1}
    assert api.get(f"{JOBS}/{later['id']}/position").json()["position"] == 2
    assert api.get(f"{JOBS}/999/position").status_code == 404


def test_filters_and_pages(api: httpx.Client) -> None:
    """Every filter narrows; pages are neighbours, and each says where the next and the one before are."""
    ids = [make(api, name=f"job_{n}", key=f"k{n}", delay_seconds=3600 * (n % 2))["id"] for n in range(7)]
    make(api, name="again", schedule={"every": 60}, is_active=False)
    for query, expected in {
        "name=job_3": [3],
        "key=k4": [4],
        "search=OB_5": [5],
        "due=true": [0, 2, 4, 6],
        "recurring=false&state=pending": list(range(7)),
        "name=nobody": [],
    }.items():
        assert [job["id"] for job in api.get(f"{JOBS}?{query}").json()] == [ids[n] for n in expected], query
    assert [job["name"] for job in api.get(f"{JOBS}?state=paused").json()] == ["again"]
    seen, path = [], f"{JOBS}?recurring=false&limit=3"
    backwards = []
    while path:
        answer = api.get(path)
        seen.append([job["id"] for job in answer.json()])
        backwards.append("prev" in answer.links)
        path = answer.links.get("next", {}).get("url", "")
    assert seen == [ids[:3], ids[3:6], ids[6:]]
    assert backwards == [False, True, True]


# --- runs ---------------------------------------------------------------------------------------------------


@pytest.fixture
def history(api: httpx.Client, scheduler: Scheduler) -> list[dict[str, Any]]:
    """Two runs: one that failed and logged, one that is good."""

    def run(ctx: Any) -> str:
        ctx.log.info("begun", step=1)
        if ctx.parameters.get("fail"):
            raise RuntimeError("as it was told")
        return "done"

    scheduler.register(Call(JobConfig(name="work"), run))
    make(api, key="bad", parameters={"fail": True})
    make(api, key="good")
    scheduler.run_pending()
    found: list[dict[str, Any]] = api.get("/api/v1/runs").json()
    return found


def test_runs(api: httpx.Client, history: list[dict[str, Any]]) -> None:
    """History with its filters, in both vocabularies."""
    by_key = {run["key"]: run for run in history}
    assert (by_key["good"]["status"], by_key["good"]["outcome"], by_key["good"]["result"]) == (
        "SUCCESS",
        "completed",
        "done",
    )
    assert (by_key["bad"]["status"], by_key["bad"]["attempt"]) == ("FAILED", 1)
    assert "as it was told" in by_key["bad"]["error"]
    good = by_key["good"]
    ahead = (datetime.now(UTC) + timedelta(hours=1)).isoformat().replace("+", "%2B")
    for query, expected in {
        f"jobId={good['job_id']}": ["good"],
        f"job_id={good['job_id']}": ["good"],
        "key=bad": ["bad"],
        "outcome=failed": ["bad"],
        "name=nobody": [],
        f"since={ahead}": [],
        f"until={ahead}&outcome=completed": ["good"],
        f"node={good['node_id']}&key=good": ["good"],
        "node=00000000-0000-0000-0000-000000000000": [],
    }.items():
        answer = api.get(f"/api/v1/runs?{query}")
        assert answer.status_code == 200, answer.text
        assert [run["key"] for run in answer.json()] == expected, query
    first = api.get("/api/v1/runs?limit=1")
    second = api.get(first.links["next"]["url"])
    assert [*first.json(), *second.json()] == history
    assert "next" not in second.links


def test_run_and_its_logs(api: httpx.Client, history: list[dict[str, Any]]) -> None:
    """One run by its id, and what it said."""
    for run in history:
        assert api.get(f"/api/v1/runs/{run['id']}").json() == run
        (line,) = api.get(f"/api/v1/runs/{run['id']}/logs").json()
        assert (line["level"], line["event"], line["fields"]) == ("info", "begun", {"step": 1})
    absent = api.get("/api/v1/runs/99-0000000000000001/logs")
    assert (absent.status_code, absent.json()["error"]) == (404, "Run 99-0000000000000001 not found.")


def test_what_never_ran_has_an_id_too(
    api: httpx.Client, scheduler: Scheduler, clock: Any, capsys: pytest.CaptureFixture[str], dsn: str
) -> None:
    """Skipped occurrences and a job that was cancelled before it began: each line is found by its id, by every door."""
    scheduler.register(Call(JobConfig(name="work"), lambda _: None))
    scheduler.cancel(scheduler.enqueue("work", delay=60))
    scheduler.schedule_by_name("tick", "* * * * *")
    scheduler.register(Call(JobConfig(name="tick"), lambda _: None))
    clock(by=timedelta(minutes=10))
    scheduler.run_pending()
    runs = scheduler.runs(limit=100)
    assert {(run.outcome, run.started_at is None) for run in runs} == {
        ("skipped", True), ("cancelled", True), ("completed", False),
    }  # fmt: skip
    assert len({run.id for run in runs}) == len(runs) > 5
    for run in runs:
        assert scheduler.get_run(run.id) == run
        assert api.get(f"/api/v1/runs/{run.id}").json()["scheduled_at"] == _seen(run.scheduled_at)
        assert api.get(f"/api/v1/runs/{run.id}/logs").json() == []
        assert main(["show", run.id, "--dsn", dsn, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["id"] == run.id
    (skipped, *_) = [run for run in runs if run.outcome == "skipped"]
    assert api.post(f"/api/v1/runs/{skipped.id}/retry").json()["id"] == skipped.job_id
    for absent in (f"{skipped.job_id}-ffffffffffffffff", f"{skipped.job_id}-8000000000000000"):
        assert api.get(f"/api/v1/runs/{absent}").status_code == 404


def _seen(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")


def test_retry(api: httpx.Client, scheduler: Scheduler, history: list[dict[str, Any]]) -> None:
    """Another attempt, as a new job with the same parameters, for its own is gone."""
    bad = next(run for run in history if run["key"] == "bad")
    answer = api.post(f"/api/v1/runs/{bad['id']}/retry")
    assert answer.status_code == 201
    assert (answer.json()["key"], answer.json()["parameters"]) == ("bad", {"fail": True})
    scheduler.run_pending()
    assert len(api.get("/api/v1/runs?key=bad").json()) == 2


def test_retry_many(api: httpx.Client, scheduler: Scheduler, history: list[dict[str, Any]]) -> None:
    """Several runs at once: all of their jobs, or none if one of them cannot be."""
    ids = [run["id"] for run in history]
    answer = api.post("/api/v1/runs/retry", json={"runs": [*ids, "99-0000000000000001"]})
    assert (answer.status_code, answer.json()["error"]) == (404, "Run 99-0000000000000001 not found.")
    assert api.get(JOBS).json() == []
    answer = api.post("/api/v1/runs/retry", json={"runs": [*ids, ids[0]]})
    assert answer.status_code == 201
    assert [job["key"] for job in answer.json()] == [run["key"] for run in history]
    assert {job["id"] for job in api.get(JOBS).json()} == {job["id"] for job in answer.json()}


def test_logs_come_in_pages(api: httpx.Client, scheduler: Scheduler) -> None:
    """At most 1000 lines at once, as everywhere; the links lead through all of them, in order."""
    scheduler.register(
        Call(JobConfig(name="work"), lambda ctx: [ctx.log.info("line", n=n) for n in range(1100)] and None)
    )
    make(api)
    scheduler.run_pending()
    (run,) = api.get("/api/v1/runs").json()
    whole = scheduler.logs(run["id"])
    assert len(whole) > 1000
    path = f"/api/v1/runs/{run['id']}/logs"
    first = api.get(path)
    second = api.get(first.links["next"]["url"])
    assert (len(first.json()), "next" in second.links) == (1000, False)
    assert [line["event"] for line in first.json() + second.json()] == [line.event for line in whole]
    assert api.get(f"{path}?limit=2&offset=5").json() == first.json()[5:7]


# --- secrets ------------------------------------------------------------------------------------------------


def test_secrets_of_requests_are_hidden(api: httpx.Client, scheduler: Scheduler) -> None:
    """Headers and telling parameters of a stored request are never shown, wherever the job is."""
    payload = {
        "type": "API_CALL",
        "url": "https://example.org/hook?api_key=hunter2a&page=3",
        "method": "POST",
        "headers": {"Authorization": "Bearer hunter2b", "X-Custom": "hunter2c", "Accept": "text/plain"},
        "params": {"token": "hunter2d", "page": 1},
    }
    made = api.post(JOBS, json={**SNAKE, "task_payload": payload})
    id_ = made.json()["job"]["id"]
    assert scheduler.get_job(id_).parameters == payload
    scheduler.register(HttpJob())
    api.post(f"{JOBS}/{id_}/trigger")
    answers = [
        made,
        api.get(f"{JOBS}/{id_}"),
        api.get(JOBS),
        api.patch(f"{JOBS}/{id_}", json={"priority": 1}),
    ]
    once = api.post(JOBS, json={"name": "other", "parameters": payload})
    api.post(f"{JOBS}/{once.json()['job']['id']}/cancel")
    answers += [once, api.get("/api/v1/runs")]
    assert "cancelled" in answers[-1].text
    for answer in answers:
        assert "hunter2" not in answer.text
        assert "***" in answer.text
        assert "text/plain" in answer.text


def test_what_is_hidden_is_not_stored_back(api: httpx.Client) -> None:
    """Whoever sends back what was shown is told, and the secret stays."""
    payload = {**PAYLOAD, "headers": {"Authorization": "Bearer hunter2"}}
    job = api.post(JOBS, json={**SNAKE, "task_payload": payload}).json()["job"]
    for name in ("task_payload", "parameters"):
        answer = api.patch(f"{JOBS}/{job['id']}", json={name: job["parameters"]})
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_value"), name


# --- the system -----------------------------------------------------------------------------------------------


def test_nodes_and_stats(api: httpx.Client, scheduler_on: Any, dsn: str) -> None:
    """Which nodes there are and what waits."""
    assert api.get("/api/v1/nodes").json() == []
    node = scheduler_on(dsn, start=True, register=(Call(JobConfig(name="work")),))
    make(api, name="nobody")
    (found,) = api.get("/api/v1/nodes?alive=true").json()
    assert (found["id"], found["names"], found["alive"]) == (node.id, ["work"], True)
    stats = api.get("/api/v1/stats").json()
    assert (stats["names"], stats["due"]) == ({"nobody": {"pending": 1}}, 1)
    node.shutdown()
    assert api.get("/api/v1/nodes?alive=true").json() == []
    assert len(api.get("/api/v1/nodes").json()) == 1


def test_engine(api: httpx.Client, scheduler: Scheduler) -> None:
    """Bildad's answer, exactly; ten jobs at most, failed ones counted apart."""

    def run(ctx: Any) -> None:
        if ctx.parameters.get("fail"):
            raise RuntimeError("as it was told")

    scheduler.register(Call(JobConfig(name="work"), run))
    for n in range(15):
        make(api, parameters={"fail": n < 3})
    answers = [api.post("/jobs/engine/run").json() for _ in range(3)]
    nothing = {"ok_count": 0, "error_count": 0}
    assert answers == [
        {"start": {"ok_count": 7, "error_count": 3}, "expire": nothing},
        {"start": {"ok_count": 5, "error_count": 0}, "expire": nothing},
        {"start": nothing, "expire": nothing},
    ]


def test_engine_passes_take_turns(
    api: httpx.Client, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process makes one pass at a time, however many call; each gets its own answer."""
    real, lock, inside = scheduler.run_pending, threading.Lock(), []

    def slow(limit: int) -> Any:
        with lock:
            inside.append(len(inside) + 1)
            most.append(len(inside))
        time.sleep(0.2)  # passes that are not kept apart meet here
        with lock:
            inside.pop()
        return real(limit)

    most: list[int] = []
    monkeypatch.setattr(scheduler, "run_pending", slow)
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda _: api.post("/jobs/engine/run").status_code, range(3)))
    assert (answers, most) == ([200, 200, 200], [1, 1, 1])


def test_engine_of_a_node_that_runs_by_itself(client_of: Any, scheduler_on: Any, dsn: str) -> None:
    """A started node needs no call, and says so."""
    answer = client_of(scheduler_on(dsn, start=True)).post("/jobs/engine/run")
    assert (answer.status_code, answer.json()["code"]) == (409, "node_runs_by_itself")


def test_engine_expires(api: httpx.Client, scheduler: Scheduler, clock: Any, db: Any) -> None:
    """Jobs of a node that died are given back first, counted, and run in the same pass."""
    done: list[int] = []
    scheduler.register(Call(JobConfig(name="work"), lambda ctx: done.append(1)))
    make(api)
    db.execute(
        "update pgscheduler_jobs set state = 'running', token = 1, claimed_at = now() - interval '1 hour',"
        " heartbeat_at = now() - interval '1 hour', node_id = gen_random_uuid()"
    )
    answer = api.post("/jobs/engine/run").json()
    assert answer == {"start": {"ok_count": 1, "error_count": 0}, "expire": {"ok_count": 1, "error_count": 0}}
    assert done == [1]


def test_templates(api: httpx.Client) -> None:
    """Templates come and go; a job of one carries its policies, and fits its schema."""
    path = "/api/v1/templates"
    body = {
        "code": "MONTHLY",
        "handler": "report",
        "parametersSchema": {"required": ["month"]},
        "timeout_seconds": 60,
        "display_order": 2,
    }
    made = api.post(path, json=body)
    assert made.status_code == 201
    assert made.json().items() >= {"code": "MONTHLY", "retries": 3, "timeout_seconds": 60.0}.items()
    assert api.post(path, json=body).json()["code"] == "duplicate_template"
    api.post(path, json={"code": "A", "handler": "a", "active": False})
    assert [t["code"] for t in api.get(path).json()] == ["A", "MONTHLY"]
    assert [t["code"] for t in api.get(f"{path}?active=true").json()] == ["MONTHLY"]
    assert api.get(f"{path}/MONTHLY").json() == made.json()
    job = api.post(f"{path}/MONTHLY/jobs", json={"parameters": {"month": "2027-01"}, "key": "2027-01"})
    assert job.status_code == 201
    assert job.json()["job"].items() >= {"job": "report", "key": "2027-01", "template": "MONTHLY"}.items()
    wrong = api.post(f"{path}/MONTHLY/jobs", json={"parameters": {"year": 2027}})
    assert (wrong.status_code, wrong.json()["field"]) == (422, "parameters")
    assert api.post(f"{path}/A/jobs", json={}).json()["code"] == "template_inactive"
    again = {"parameters": {"month": "2027-02"}, "key": "2027-01", "expiresInSeconds": 60}
    answer = api.post(f"{path}/MONTHLY/jobs", json=again)
    assert (answer.status_code, answer.json()["code"]) == (409, "duplicate_job")
    changed = api.post(f"{path}/MONTHLY/jobs", json={**again, "ifExists": "update"}).json()["job"]
    assert (changed["parameters"], changed["options"]["expires_in"]) == ({"month": "2027-02"}, 60)
    assert api.post(f"{path}/MONTHLY/validate", json={"parameters": {"month": "x"}}).json() == {
        "status": "valid"
    }
    for wrong in ({"parameters": {"year": 2027}}, {}):
        answer = api.post(f"{path}/MONTHLY/validate", json=wrong)
        assert (answer.status_code, answer.json()["field"]) == (422, "parameters")
    assert api.post(f"{path}/A/validate", json={}).status_code == 200
    assert api.post(f"{path}/B/validate", json={}).json()["error"] == "Template B not found."
    assert len(api.get(JOBS).json()) == 1
    changed = api.patch(f"{path}/MONTHLY", json={"retries": 0, "timeoutSeconds": None}).json()
    assert (changed["retries"], changed["timeout_seconds"], changed["handler"]) == (0, None, "report")
    assert api.delete(f"{path}/MONTHLY").status_code == 204
    for answer in (api.get(f"{path}/MONTHLY"), api.delete(f"{path}/MONTHLY")):
        assert (answer.status_code, answer.json()["error"]) == (404, "Template MONTHLY not found.")


def test_description(api: httpx.Client) -> None:
    """The description of the API is part of it, and names each error that an answer may have."""
    found = api.get("/api/v1/openapi.json").json()
    assert found["openapi"].startswith("3.")
    for path, methods in found["paths"].items():
        for method, operation in methods.items():
            secured = path not in ("/healthz", "/readyz")
            assert bool(operation.get("security")) == secured, path
            for status, answer in operation["responses"].items():
                assert answer.get("content") or status == "204", (method, path, status)
            for parameter in operation.get("parameters", ()):
                # A query can leave out, and say no null.
                assert "null" not in str(parameter["schema"]), (method, path, parameter["name"])


def test_app_with_a_scheduler_of_its_own(dsn: str) -> None:
    """Given a configuration, the app opens the database when it starts and closes it when it ends."""
    app = create_app(SchedulerConfig(dsn=dsn), tokens=Tokens())
    with Server(app, port=0) as server:
        assert httpx.get(f"{server.url}{JOBS}").json() == []
        assert httpx.get(f"{server.url}/readyz").status_code == 200
    assert app.state.scheduler.node_stats()["state"] == "stopped"


def test_mounted(scheduler: Scheduler) -> None:
    """In an app of one's own the paths begin where it is mounted, links too."""
    outer = FastAPI()
    outer.mount("/scheduler", create_app(scheduler, tokens=Tokens()))
    with Server(outer, port=0) as server, httpx.Client(base_url=server.url) as client:
        for name in ("a", "b"):
            made = client.post(f"/scheduler{JOBS}", json={"name": name, "parameters": {}})
            assert made.status_code == 201
        answer = client.get(f"/scheduler{JOBS}?limit=1")
        assert [job["name"] for job in client.get(answer.links["next"]["url"]).json()] == ["b"]
        assert client.get("/scheduler/healthz").status_code == 200
        assert client.put(f"/scheduler{JOBS}").headers["allow"] == "GET, HEAD, POST"
