"""Waiting for a job's end over REST: it is heard of soon, and whoever waits leaves room for everybody else."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from pgscheduler import JobConfig, Scheduler
from pgscheduler.web import Limits, Server, Tokens, create_app
from tests.engine.conftest import Call, Gate
from tests.support import eventually

JOBS = "/api/v1/jobs"


def path(job: Any, seconds: int = 20) -> str:
    return f"{JOBS}/{job.id}/wait?timeout_seconds={seconds}"


@pytest.fixture
def running(scheduler_on: Any, dsn: str, gate: Gate) -> Scheduler:
    """A node whose jobs wait in the gate."""
    found: Scheduler = scheduler_on(dsn, start=True, register=(Call(JobConfig(name="work"), gate),))
    return found


def test_the_end_is_heard_of(api: httpx.Client, running: Scheduler, gate: Gate) -> None:
    """The answer comes when the job has ended on another node, with how; afterwards at once."""
    job = running.enqueue("work")
    gate.wait_for(1)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(api.get, path(job))
        time.sleep(0.3)
        assert not waiting.done()
        gate.open()
        answer = waiting.result(60)
    assert (answer.status_code, answer.json()["state"], answer.json()["id"]) == (200, "completed", job.id)
    assert api.get(path(job)).json() == answer.json() == api.get(f"{JOBS}/{job.id}").json()


def test_the_time_is_over(api: httpx.Client, scheduler: Scheduler) -> None:
    """Of a job that has not ended it is said so, with the job as it is; of none that there is none."""
    job = scheduler.enqueue("work", key="k")
    for seconds in (0, 1):
        begun = time.monotonic()
        answer = api.get(path(job, seconds))
        assert (answer.status_code, answer.json()["state"]) == (202, "pending")
        assert time.monotonic() - begun >= seconds
    again = scheduler.schedule_by_name("again", "@daily")
    assert api.get(path(again, 0)).status_code == 202
    answer = api.get(f"{JOBS}/999999/wait")
    assert (answer.status_code, answer.json()["error"]) == (404, "Job with ID 999999 not found.")
    scheduler.cancel(job)
    answer = api.get(path(job))
    assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")


def test_a_request_takes_no_longer_than_it_may(
    scheduler: Scheduler, client_of: Callable[..., httpx.Client]
) -> None:
    """However long somebody would wait: the answer is that it has not ended, in time, and not 504."""
    api = client_of(scheduler, limits=Limits(request_timeout=10))
    assert api.get(path(scheduler.enqueue("work"), 3600)).status_code == 202


def test_room_for_the_others(scheduler: Scheduler, client_of: Callable[..., httpx.Client]) -> None:
    """Half of the requests may wait, and one more is told to come again. The others are answered meanwhile: those who
    wait are more than the pool has threads, and keep none."""
    api = client_of(scheduler, limits=Limits(max_requests=100))
    job = scheduler.enqueue("work")
    with ThreadPoolExecutor(55) as pool, httpx.Client(base_url=api.base_url, timeout=60) as many:
        waiting = [pool.submit(many.get, path(job, 25)) for _ in range(55)]
        eventually(lambda: sum(one.done() for one in waiting) == 5)
        assert api.get(path(job, 0)).status_code == 202  # who does not wait needs no room
        for _ in range(5):
            assert api.get("/api/v1/stats").status_code == 200
        assert sum(one.done() for one in waiting) == 5  # nobody had to go for that
        scheduler.cancel(job)
        answers = [one.result(60) for one in waiting]
    assert sorted(answer.status_code for answer in answers) == [200] * 50 + [503] * 5
    (busy,) = {(a.json()["code"], a.headers["retry-after"]) for a in answers if a.status_code == 503}
    assert busy == ("busy", "1")
    assert api.get(path(job)).status_code == 200


def test_two_look_at_the_same_time(
    scheduler: Scheduler, client_of: Callable[..., httpx.Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that does not answer is asked by two of those who wait, and by all who do not."""
    release, asked = threading.Event(), []
    job = scheduler.enqueue("work")
    monkeypatch.setattr(scheduler, "get_job", lambda _: asked.append(1) or (release.wait(30) and job))
    api = client_of(scheduler)
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(api.get, path(job, 0)) for _ in range(8)]
        try:
            eventually(lambda: len(asked) >= 2)
            assert api.get("/api/v1/stats").status_code == 200
            time.sleep(0.3)
            assert len(asked) == 2
        finally:
            release.set()
        assert {one.result(60).status_code for one in waiting} == {202}


def test_who_hangs_up_leaves_the_room(
    scheduler: Scheduler, client_of: Callable[..., httpx.Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is waited for who does not hear the answer."""
    api = client_of(scheduler, limits=Limits(max_requests=2))
    job = scheduler.enqueue("work")
    real, looks = scheduler.get_job, []
    monkeypatch.setattr(scheduler, "get_job", lambda given: looks.append(1) or real(given))
    with socket.create_connection((api.base_url.host, api.base_url.port or 80), 30) as gone:
        gone.sendall(f"GET {path(job, 25)} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        eventually(lambda: len(looks) >= 2)
        assert api.get(path(job, 1)).status_code == 503
    eventually(lambda: api.get(path(job, 1)).status_code == 202, timeout=10)


def test_a_server_that_stops_waits_for_nobody(scheduler: Scheduler) -> None:
    """Who waits when it is closed hears at once that the job has not ended."""
    server = Server(create_app(scheduler, tokens=Tokens()), port=0)
    job = scheduler.enqueue("work")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(httpx.get, f"{server.url}{path(job, 25)}", timeout=60)
        time.sleep(0.5)
        begun = time.monotonic()
        server.close()
        assert waiting.result(60).status_code == 202
        assert time.monotonic() - begun < 9
