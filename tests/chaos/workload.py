"""The clients of a fault test: they schedule, cancel, pause and reschedule, and write down what each call answered.

Each client is a Scheduler that is never started, in the harness's own process, with a random generator of its own.
What a call must have answered is the checker's business; this only says what it was and when.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import psycopg

from pgscheduler import JobConfig, JobRecord, Scheduler, SchedulerConfig
from pgscheduler.errors import DatabaseUnavailableError, PgSchedulerError, ScheduleUnknownError
from tests.chaos.history import Call, append, boottime, epoch
from tests.chaos.jobs import KINDS, RECURRING
from tests.chaos.worker import described, recurring

__all__ = ["Client", "Workload"]

Answer = Literal["ok", "failed", "unknown"]


class _Quiet:
    def debug(self, event: object, **facts: object) -> None: ...

    info = warning = error = critical = debug


class Client:
    """One client. `act()` makes one random call; the named methods make a certain one."""

    def __init__(self, name: str, dsn: str, journal: Path, seed: str) -> None:
        self.name = name
        self.scheduler = Scheduler(
            SchedulerConfig(dsn=dsn, logger=_Quiet(), connect_timeout=timedelta(seconds=2))
        )
        self.surprises: list[str] = []  # errors that no promise allows
        self.calls = 0
        self._dsn = dsn
        self._journal = journal
        self._chance = random.Random(seed)
        self._known: list[tuple[int, str, str | None]] = []  # one-time jobs: id, name, key
        self._recurring = {name: recurring(name) for name in RECURRING}
        self._ids: dict[str, int] = {}  # of the recurring jobs, as this client last stored them
        self._paused: str | None = None
        self._resume_later: list[tuple[int, str, str | None]] = []
        self._ticket = 0
        self.scheduler.init()

    def close(self) -> None:
        self.scheduler.shutdown(1)

    def act(self) -> None:
        """One call, by weight."""
        verbs: list[tuple[Callable[[], None], int]] = [
            (self.enqueue, 30),
            (self.keyed, 8),
            (self.in_transaction, 6),
            (self.cancel, 6),
            (self.reschedule, 4),
            (self.trigger, 3),
            (self.delete, 2),
            (self.pause_or_resume, 3),
            (self.pause_recurring, 2),
            (self.trigger_recurring, 2),
            (self.cancel_recurring, 2),
            (self.coming_and_going, 1),
        ]
        self._chance.choices([verb for verb, _ in verbs], [weight for _, weight in verbs])[0]()

    # --- storing ----------------------------------------------------------------------------------------

    def define(self) -> None:
        """Store the recurring jobs."""
        for name in RECURRING:
            self._store_recurring(name)

    def enqueue(self) -> None:
        name, parameters, policies = self._something()
        self.store(name, parameters, **policies)

    def keyed(self) -> None:
        """Under a key that may be taken; one whose answer is unknown is tried again, as the error says."""
        name, parameters, policies = self._something()
        policies["key"] = f"key-{self._chance.randrange(12)}"
        for _ in range(3):
            if self.store(name, parameters, **policies) != "unknown":
                return

    def store(self, name: str, parameters: dict[str, Any], **policies: Any) -> Answer:
        """One one-time job."""
        self._ticket += 1
        parameters = {"ticket": f"{self.name}-{self._ticket}", **parameters}
        config = JobConfig.one_time(name, parameters, **policies)

        def call() -> JobRecord:
            record: JobRecord = self.scheduler.schedule(KINDS[name](config))
            return record

        answer, record = self._call("schedule", config, call)
        if record is not None:
            self._remember(record.id, name, config.key)
        return answer

    def in_transaction(self) -> None:
        """Stored by the caller's own transaction, which is then committed or rolled back."""
        name, parameters, policies = self._something()
        self._ticket += 1
        config = JobConfig.one_time(name, {"ticket": f"{self.name}-{self._ticket}", **parameters}, **policies)
        keep = self._chance.random() < 0.7
        began, committing, record = boottime(), False, None
        facts: dict[str, Any] = {"answer": "failed", "committed": keep, "job_id": None}
        try:
            with psycopg.connect(self._dsn, connect_timeout=2) as connection:
                record = self.scheduler.schedule(KINDS[name](config), connection=connection)
                if not keep:
                    connection.rollback()
                committing = keep
            facts |= {"answer": "ok", **_answered(record)}
            if keep:
                self._remember(record.id, name, config.key)
        except (psycopg.Error, PgSchedulerError) as error:
            if committing:
                facts |= {"answer": "unknown", **_answered(record)}
            facts["error"] = _text(error)
        self._write(described("schedule", self.name, began, config, **facts))

    def _store_recurring(self, name: str) -> None:
        job = self._recurring[name]
        _, record = self._call("schedule", job.config, lambda: self.scheduler.schedule(job))
        if record is not None:
            self._ids[name] = record.id

    # --- changing ---------------------------------------------------------------------------------------

    def cancel(self) -> None:
        self._change("cancel", self.scheduler.cancel)

    def delete(self) -> None:
        self._change("delete", self.scheduler.delete)

    def trigger(self) -> None:
        self._change("trigger", self.scheduler.trigger)

    def reschedule(self) -> None:
        delay = timedelta(seconds=round(self._chance.random() * 5, 3))
        self._change("reschedule", lambda job: self.scheduler.reschedule(job, delay=delay))

    def pause_or_resume(self) -> None:
        """A one-time job is paused; by another such call, or at the end, it goes on."""
        job = self._some_job()
        if self._resume_later and self._chance.random() < 0.6:
            if self._change("resume", self.scheduler.resume, self._resume_later[0]) != "unknown":
                del self._resume_later[0]
        elif job is not None:
            self._change("pause", self.scheduler.pause, job)
            self._resume_later.append(job)

    def pause_recurring(self) -> None:
        """One recurring job at a time is paused, until the next such call."""
        name, self._paused = self._paused, None
        if name is not None:
            self._recurring_call("resume", name, self.scheduler.resume)
        else:
            name = self._chance.choice(["second", "each", "spread", "overlong"])
            if self._recurring_call("pause", name, self.scheduler.pause) != "failed":
                self._paused = name

    def trigger_recurring(self) -> None:
        self._recurring_call("trigger", self._chance.choice(["minute", "spread"]), self.scheduler.trigger)

    def cancel_recurring(self) -> None:
        self._recurring_call(
            "cancel", self._chance.choice(["overlong", "minute", "spread"]), self.scheduler.cancel
        )

    def coming_and_going(self) -> None:
        """One recurring job is deleted and stored again."""
        if self._chance.random() < 0.5:
            self._recurring_call("delete", "gone", self.scheduler.delete)
        else:
            self._store_recurring("gone")

    def put_right(self) -> bool:
        """At the end: what this client paused goes on. False: try again."""
        if self._paused is not None:
            if self._recurring_call("resume", self._paused, self.scheduler.resume) != "ok":
                return False
            self._paused = None
        while self._resume_later:
            if self._change("resume", self.scheduler.resume, self._resume_later[-1]) == "unknown":
                return False
            self._resume_later.pop()
        return True

    # --- inside -----------------------------------------------------------------------------------------

    def _something(self) -> tuple[str, dict[str, Any], dict[str, Any]]:
        """A name, parameters and policies of a one-time job."""
        chance = self._chance
        name = chance.choices(
            [
                "work",
                "free",
                "transactional",
                "fenced",
                "stubborn",
                "swallow",
                "decides",
                "caged",
                "coroutine",
            ],
            [28, 8, 16, 8, 6, 4, 6, 2, 6],
        )[0]
        parameters: dict[str, Any] = {"seconds": round(chance.choice([0.0, 0.05, 0.2, 0.5, 1.0, 4.0]), 3)}
        policies: dict[str, Any] = {
            "delay": timedelta(seconds=round(chance.choice([0, 0, 0, 1, 3, 8]) * chance.random(), 3))
        }
        if name == "decides":
            parameters = {
                "says": chance.choice(["snooze", "snooze", "retry", "cancel", "fail"]),
                "until": boottime() + 2,
            }
        if name in ("work", "transactional", "caged", "coroutine") and chance.random() < 0.3:
            parameters["fails"] = chance.randrange(1, 4)
        if name == "stubborn":
            parameters["seconds"] = chance.choice([1.0, 4.0, 12.0])
        if name == "transactional":
            parameters["lingers"] = chance.choice([0.0, 0.5, 3.0, 5.0])
        if name == "work" and chance.random() < 0.3:
            parameters["seconds"] = 9.0  # so that each node has one when it is cut off
        if name == "work" and chance.random() < 0.2:
            parameters["talks"] = True
        if chance.random() < 0.5:
            policies["retries"] = chance.randrange(1, 4)
        if chance.random() < 0.1:
            policies["max_stalls"] = chance.choice([1, 2, 10])
        if name in ("work", "coroutine") and chance.random() < 0.1:
            policies["timeout"] = timedelta(seconds=chance.choice([0.4, 2.0]))
        if chance.random() < 0.2:
            policies["priority"] = chance.choice([1, 9])
        return name, parameters, policies

    def _some_job(self) -> tuple[int, str, str | None] | None:
        """One of the last that were stored: older ones have ended."""
        return self._chance.choice(self._known[-12:]) if self._known else None

    def _remember(self, job_id: int, name: str, key: str | None) -> None:
        self._known.append((job_id, name, key))

    def _change(
        self, verb: str, call: Callable[[int], Any], job: tuple[int, str, str | None] | None = None
    ) -> Answer:
        job = job or self._some_job()
        if job is None:
            return "failed"
        job_id, name, key = job
        return self._verb(verb, name, key, job_id, lambda: call(job_id))

    def _recurring_call(self, verb: str, name: str, call: Callable[[int], Any]) -> Answer:
        # By id: under the name another client may just have stored another job.
        job_id = self._ids.get(name)
        return "failed" if job_id is None else self._verb(verb, name, name, job_id, lambda: call(job_id))

    def _verb(
        self, verb: str, name: str, key: str | None, job_id: int | None, call: Callable[[], Any]
    ) -> Answer:
        """A call that changes a job; whether a broken one did is not known."""
        began = boottime()
        answer, value, facts = self._answer(call, unsure=DatabaseUnavailableError)
        if isinstance(value, JobRecord):
            facts |= _answered(value)
            value = None
        facts.setdefault("job_id", job_id)
        self._write(
            Call(
                verb=verb, client=self.name, began=began, ended=boottime(), answer=answer,
                name=name, key=key, value=value, **facts,
            )
        )  # fmt: skip
        return answer

    def _call(
        self, verb: str, config: JobConfig, call: Callable[[], JobRecord]
    ) -> tuple[Answer, JobRecord | None]:
        """A call that stores a job: it says exactly whether it did."""
        began = boottime()
        answer, record, facts = self._answer(call, unsure=ScheduleUnknownError)
        if record is not None:
            facts |= _answered(record)
        facts.setdefault("job_id", None)
        self._write(described(verb, self.name, began, config, answer=answer, **facts))
        return answer, record

    def _answer(
        self, call: Callable[[], Any], unsure: type[PgSchedulerError]
    ) -> tuple[Answer, Any, dict[str, Any]]:
        try:
            return "ok", call(), {}
        except unsure as error:
            return "unknown", None, {"error": _text(error)}
        except PgSchedulerError as error:
            return "failed", None, {"error": _text(error)}
        except Exception as error:
            self.surprises.append(_text(error))
            return "unknown", None, {"error": _text(error)}

    def _write(self, call: Call) -> None:
        self.calls += 1
        append(self._journal, call)


class Workload:
    """Several clients at once, on threads, until they are told to stop."""

    def __init__(self, dsns: list[str], journal: Path, seed: int, pause: float) -> None:
        self.clients = [
            Client(f"client{number}", dsn, journal, f"{seed}-{number}") for number, dsn in enumerate(dsns)
        ]
        self._pause = pause
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, args=[client], name=client.name, daemon=True)
            for client in self.clients
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self, seconds: float) -> bool:
        """No more calls; then each client puts right what it has paused. False: one did not get through."""
        self._stopping.set()
        end = boottime() + seconds
        for thread in self._threads:
            thread.join(max(end - boottime(), 0.1))
        return not any(thread.is_alive() for thread in self._threads)

    def close(self) -> None:
        for client in self.clients:
            client.close()

    @property
    def surprises(self) -> list[str]:
        return [text for client in self.clients for text in client.surprises]

    def _work(self, client: Client) -> None:
        try:
            chance = random.Random(client.name)
            client.define()  # as everybody does; nothing has changed
            while not self._stopping.wait(chance.random() * 2 * self._pause):
                client.act()
            while not client.put_right():
                time.sleep(0.2)  # the database is away
        except Exception as error:
            client.surprises.append(f"{client.name} ended: {_text(error)}")


def _answered(record: JobRecord | None) -> Mapping[str, Any]:
    if record is None:
        return {}
    return {"job_id": record.id, "run_at": epoch(record.run_at), "scheduled_at": epoch(record.scheduled_at)}


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:300]
