"""Wrong tokens are limited, right ones are not; and whoever changes something is in the log, without a secret."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from pgscheduler import InvalidValueError, JobConfig, Scheduler
from pgscheduler.web import Limits, Tokens, create_app
from pgscheduler.web._throttle import Throttle
from tests.engine.conftest import Call
from tests.support import eventually
from tests.web.conftest import READ, WRITE

JOBS = "/api/v1/jobs"
BOTH = Tokens(read=[READ], write=[WRITE])
SECRET = "canary-in-the-mine"


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


class Machine:
    """Requests to one app from any address, without a socket."""

    def __init__(self, scheduler: Scheduler, tokens: Tokens = BOTH, **limits: Any) -> None:
        self._app = create_app(scheduler, tokens=tokens, limits=Limits(**limits))

    def ask(
        self, token: str | None, *, address: Any = ("203.0.113.9", 1), path: str = JOBS
    ) -> httpx.Response:
        async def call() -> httpx.Response:
            transport = httpx.ASGITransport(self._app, client=address)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                return await client.get(path, headers={} if token is None else bearer(token))

        return asyncio.run(call())


# --- wrong tokens -------------------------------------------------------------------------------------------


def test_wrong_tokens_are_limited(scheduler: Scheduler) -> None:
    """200 wrong tokens from one address: the first are 401, the rest 429 with the time to wait; a right token is let in
    at once, and another address has a limit of its own."""
    machine = Machine(scheduler)
    found = [machine.ask(f"wrong-token-{n:016}") for n in range(200)]
    limit = Limits().wrong_tokens_per_minute
    assert [answer.status_code for answer in found[:limit]] == [401] * limit
    assert {answer.status_code for answer in found[limit + 10 :]} == {429}
    last = found[-1]
    assert last.json()["code"] == "too_many_attempts"
    assert 1 <= int(last.headers["retry-after"]) <= 60
    assert last.headers["x-content-type-options"] == "nosniff"
    for token in (READ, WRITE):
        assert machine.ask(token).status_code == 200
    assert machine.ask("wrong-token-0123456789", address=("203.0.113.10", 1)).status_code == 401
    assert machine.ask("wrong-token-0123456789", path="/healthz").status_code == 200


def test_no_token_is_no_wrong_one(scheduler: Scheduler) -> None:
    """A probe that has none learns that it needs one, however often it asks."""
    machine = Machine(scheduler, wrong_tokens_per_minute=1)
    assert {machine.ask(None).status_code for _ in range(5)} == {401}
    assert [machine.ask("x").status_code for _ in range(2)] == [401, 429]


def test_a_wrong_token_is_told_in_the_log_and_not_shown(scheduler: Scheduler) -> None:
    """One line each with the address, as far as the limit goes."""
    machine = Machine(scheduler, wrong_tokens_per_minute=3)
    for _ in range(9):
        machine.ask(SECRET)
    lines = [line for line in scheduler.log.lines if line[1] == "wrong api token"]
    assert [(level, facts["client"]) for level, _, facts in lines] == [("warning", "203.0.113.9")] * 3
    assert SECRET not in str(scheduler.log.lines)


def test_throttle() -> None:
    """So many at once, then one for each share of a minute; after a quiet minute all of them again."""
    now = [1000.0]
    throttle = Throttle(3, clock=lambda: now[0])
    assert [throttle.mistake("a") for _ in range(5)] == [None, None, None, 20, 20]
    now[0] += 5.5
    assert throttle.mistake("a") == 15
    now[0] += 14.5
    assert [throttle.mistake("a") for _ in range(2)] == [None, 20]
    assert throttle.mistake("b") is None
    now[0] += 60
    assert [throttle.mistake("a") for _ in range(4)] == [None, None, None, 20]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff:2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2", True),
        ("::ffff:203.0.113.9", "203.0.113.9", True),
        ("203.0.113.9", "203.0.113.10", False),
        ("", "", True),
    ],
)
def test_who_counts_as_one(one: str, other: str, same: bool) -> None:
    """A network of IPv6 is one caller: whoever has one address of it has as many as anybody could try tokens with."""
    throttle = Throttle(1)
    assert throttle.mistake(one) is None
    assert (throttle.mistake(other) is not None) == same


def test_throttle_forgets() -> None:
    """However many addresses are wrong, so many are remembered: those that were wrong last; and none after a while."""
    now = [0.0]
    throttle = Throttle(1, addresses=100, clock=lambda: now[0])
    for n in range(10_000):
        now[0] += 0.001
        assert throttle.mistake(str(n)) is None
    assert len(throttle) == 100
    assert throttle.mistake("9999") is not None
    assert throttle.mistake("0") is None
    now[0] += 61
    for _ in range(100):
        throttle.mistake("1")
        now[0] += 61
    assert len(throttle) == 1


# --- who changed what ---------------------------------------------------------------------------------------


def changes(scheduler: Scheduler) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in facts.items() if name != "node"}
        for level, event, facts in list(scheduler.log.lines)
        if (level, event) == ("info", "api change")
    ]


def test_every_change_is_in_the_log(scheduler: Scheduler, client_of: Callable[..., httpx.Client]) -> None:
    """One line for each, with the verb, the job, whose token, from where, and how it ended; nothing of what was sent."""
    scheduler.register(Call(JobConfig(name="call")))
    tokens = Tokens(read=[READ], write=[WRITE, f"deploy:{WRITE}x"])
    api = client_of(scheduler, tokens=tokens, token=WRITE)
    deploy = client_of(scheduler, tokens=tokens, token=f"{WRITE}x")

    body = {
        "name": "call",
        "key": "k",
        "parameters": {"a": SECRET},
        "metadata": {"b": SECRET},
        "delay_seconds": 60,
    }
    job = api.post(JOBS, json=body).json()["job"]["id"]
    deploy.patch(f"{JOBS}/{job}", json={"priority": 1, "parameters": {"a": SECRET}})
    for verb in ("disable", "enable", "trigger", "cancel"):
        api.post(f"{JOBS}/{job}/{verb}")
    api.delete(f"{JOBS}/{job}")
    again = scheduler.enqueue("call")
    api.post("/jobs/engine/run")
    (run,) = scheduler.runs(again.id)
    retried = api.post(f"/api/v1/runs/{run.id}/retry").json()["id"]
    api.post("/api/v1/templates", json={"code": "T", "handler": "call", "name": SECRET})
    made = api.post("/api/v1/templates/T/jobs", json={"parameters": {"a": SECRET}}).json()["job"]["id"]
    deploy.patch("/api/v1/templates/T", json={"retries": 1})
    deploy.delete("/api/v1/templates/T")
    declared = {"name": "nightly", "every": 60, "parameters": {"a": SECRET}}
    api.post("/api/v1/definitions/apply", json={"source": "shop", "jobs": [declared]})

    by = {"by": "write", "client": "127.0.0.1"}
    of = {"job_id": job, "job": "call", "key": "k", **by}
    expected: list[dict[str, Any]] = [
        {"verb": "jobs_create", **of, "status": 201},
        {"verb": "jobs_change", **of, "by": "deploy", "status": 200},
        *({"verb": f"jobs_{verb}", **of, "status": 200} for verb in ("disable", "enable", "trigger")),
        {"verb": "jobs_cancel", "job_id": job, **by, "status": 200},
        {"verb": "jobs_delete", "job_id": job, **by, "status": 409},
        {"verb": "system_run_engine", **by, "status": 200},
        {"verb": "runs_retry", "run_id": run.id, "job_id": retried, "job": "call", **by, "status": 201},
        {"verb": "templates_create", **by, "status": 201},
        {"verb": "templates_enqueue", "template": "T", "job_id": made, "job": "call", **by, "status": 201},
        {"verb": "templates_change", "template": "T", **by, "by": "deploy", "status": 200},
        {"verb": "templates_delete", "template": "T", **by, "by": "deploy", "status": 204},
        {"verb": "definitions_apply", "source": "shop", "changes": 1, **by, "status": 200},
    ]  # fmt: skip
    eventually(lambda: len(changes(scheduler)) >= len(expected), describe=lambda: changes(scheduler))
    assert changes(scheduler) == expected
    said = str(scheduler.log.lines)
    assert not any(secret in said for secret in (SECRET, READ, WRITE))


def test_refused_changes_are_in_the_log_and_questions_are_not(
    scheduler: Scheduler, client_of: Callable[..., httpx.Client]
) -> None:
    """What did not work has its status; what only asks, or reaches no endpoint, has no line."""
    api = client_of(scheduler)
    api.get(JOBS)
    api.head(JOBS)
    api.post("/api/v1/definitions/plan", json={"source": "s", "jobs": []})
    api.post("/nowhere", json={})
    api.put(JOBS, json={})
    api.post(JOBS, json={"name": "x", "parameters": {}}, headers={"Origin": "http://evil.example"})
    api.post(f"{JOBS}/7/trigger")
    api.post(f"{JOBS}/x%0Ay/trigger")
    api.post(JOBS, json={"name": "x", "nonsense": SECRET})

    by = {"by": "this machine", "client": "127.0.0.1"}
    expected = [
        {"verb": "jobs_trigger", "job_id": 7, **by, "status": 404},
        {"verb": "jobs_trigger", "job_id": "x\\ny", **by, "status": 400},
        {"verb": "jobs_create", **by, "status": 422},
    ]
    eventually(lambda: len(changes(scheduler)) >= len(expected), describe=lambda: changes(scheduler))
    assert changes(scheduler) == expected
    assert SECRET not in str(scheduler.log.lines)


def test_names_of_tokens() -> None:
    """A name before a colon, from the environment too; the secret alone opens, and errors show neither."""
    both = Tokens.from_env({"PGSCHEDULER_API_WRITE_TOKENS": f"deploy:{WRITE},{WRITE}2"})
    caller = both.caller_of(WRITE.encode())
    assert caller is not None
    assert (caller.name, caller.scope) == ("deploy", "write")
    unnamed = both.caller_of(f"{WRITE}2".encode())
    assert unnamed is not None
    assert unnamed.name == "write"
    assert both.caller_of(f"deploy:{WRITE}".encode()) is None
    assert WRITE not in repr(both)
    for wrong in (
        f":{WRITE}",
        f"two words:{WRITE}",
        f"a:b:{WRITE}",
        "hunter2:short",
        f"{'n' * 65}:{WRITE}",
        "deploy:",
    ):
        with pytest.raises(InvalidValueError, match=r"tokens\.write") as caught:
            Tokens(write=[wrong])
        assert not any(part in str(caught.value) for part in (WRITE, "hunter2", "words"))
