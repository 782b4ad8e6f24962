"""The shipped kinds in a process that has registered none of them: every door knows what they take, and none is laxer."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import psycopg
import pytest

from pgscheduler import Job, JobConfig, PgSchedulerError, RunContext, Scheduler
from pgscheduler._declared import Definition, Definitions
from pgscheduler._sql import SHARED_NAMES
from pgscheduler.cli import main
from pgscheduler.definitions import parse
from pgscheduler.jobs import CallJob, HttpJob, HttpParameters, ShellJob
from pgscheduler.jobs._shapes import SHAPES
from pgscheduler.jobs._urls import check_url
from pgscheduler.schedule import Cron
from tests.web.conftest import client_of

__all__ = ["client_of"]

SECRET = "hunter2"
DAY = 86_400

#: Addresses, modules and commands that a node's policy may well refuse: that is for the node to say.
GOOD: dict[str, list[Any]] = {
    "http_job": [
        {"url": "http://10.0.0.1/", "method": "get", "headers": {"Authorization": f"Bearer {SECRET}"}},
        {"url": "https://example.org:8443/?a=b", "method": "POST", "data": {"a": 1}, "params": {"b": [1]}, "timeout": 5},
        {"type": "API_CALL", "url": "https://example.org", "method": "PUT", "headers": {"A": {"$secret": SECRET}}},
    ],
    "call_job": [
        {"module": "os", "function": "abort"},
        {"module": "m", "function": "f", "args": [{"$secret": SECRET}], "kwargs": {"a": None}},
    ],
    "shell_job": [{"command": ["true"], "timeout": 60}, {"shell": f"echo {SECRET} | wc"}],
}  # fmt: skip

GET = {"url": "https://example.org/", "method": "GET"}
WRONG: dict[str, list[tuple[Any, str]]] = {
    "http_job": [
        ({}, "url must be given"),
        ([GET], "a JSON object is needed"),
        ({"url": "https://example.org/"}, "method must be given"),
        ({**GET, "url": "example.org"}, "url must have the scheme"),
        ({**GET, "url": f"https://u:{SECRET}@example.org/"}, "url must not hold a user name"),
        ({**GET, "url": "http://0177.0.0.1/"}, "url must be a valid URL"),
        ({**GET, "url": {"$secret": f"ftp://example.org/{SECRET}"}}, "url must have the scheme"),
        ({**GET, "method": "FETCH"}, "method must be one of"),
        ({**GET, "headers": {"A": f"{SECRET}\r\nB: c"}}, r"headers\.A must be printable"),
        ({**GET, "headers": {"Host": SECRET}}, r"headers\.Host must not be given"),
        ({**GET, "headers": {"A": {"$secret": [SECRET]}}}, r"headers\.A must be a str"),
        ({**GET, "params": [SECRET]}, "params must be an object"),
        ({**GET, "data": SECRET}, "data must not be given"),
        ({**GET, "timeout": 0}, "timeout must be > 0"),
        ({**GET, "hedaers": {"A": SECRET}}, "hedaers"),
    ],
    "call_job": [
        ({"function": "f"}, "module must be given"),
        ({"module": "m", "function": 5}, "function must be a str"),
        ({"module": "m", "function": "f", "args": SECRET}, "args must be a list"),
        ({"module": "m", "function": "f", "kwargs": [SECRET]}, "kwargs must be an object"),
        ({"module": "m", "function": "f", "arguments": [SECRET]}, "arguments"),
    ],
    "shell_job": [
        ({}, "command or shell must be given"),
        ({"command": f"echo {SECRET}"}, "command must be a list"),
        ({"command": ["a"], "shell": SECRET}, "command or shell must be given"),
        ({"shell": " "}, "shell cannot be empty"),
        ({"shell": "true", "timeout": "5"}, "timeout must be a timedelta"),
        ({"shell": "true", "env": {"A": SECRET}}, "env"),
    ],
}  # fmt: skip


@dataclass(frozen=True)
class Doors:
    """A program that has registered nothing: its scheduler, its command, its API, and a job of each kind to change."""

    dsn: str
    scheduler: Scheduler
    api: httpx.Client
    file: Path
    capsys: pytest.CaptureFixture[str]

    def command(self, *arguments: str) -> str | None:
        """What it says of an error."""
        status = main([*arguments, "--dsn", self.dsn])
        said = self.capsys.readouterr()
        assert (status == 0) == (said.err == ""), said
        return said.err or None

    def request(self, method: str, path: str, **body: Any) -> str | None:
        """What it answers to a wrong one."""
        answer = self.api.request(method, f"/api/v1{path}", json=body)
        assert answer.status_code in (200, 201, 422), answer.text
        return None if answer.is_success else str(answer.json()["error"])

    def written(self, text: str) -> str:
        self.file.write_text(text)
        return str(self.file)

    def yaml(self, name: str, parameters: Any) -> str:
        job = {"name": "new", "job": name, "every": DAY, "parameters": parameters}
        return self.written(json.dumps({"source": "s", "jobs": [job]}))


Door = Callable[[Doors, str, Any], str | None]


def python(call: Callable[[Scheduler, str, Any], Any]) -> Door:
    """A verb of the scheduler."""

    def door(doors: Doors, name: str, parameters: Any) -> str | None:
        try:
            call(doors.scheduler, name, parameters)
        except PgSchedulerError as error:
            return str(error)
        return None

    return door


def in_transaction(call: Callable[[Scheduler, str, Any, Any], Any]) -> Door:
    """A verb in a transaction of the caller's, which goes on."""

    def door(doors: Doors, name: str, parameters: Any) -> str | None:
        with psycopg.connect(doors.dsn) as connection:
            return python(lambda s, n, p: call(s, n, p, connection))(doors, name, parameters)

    return door


def in_async_transaction(doors: Doors, name: str, parameters: Any) -> str | None:
    async def go() -> None:
        async with await psycopg.AsyncConnection.connect(doors.dsn) as connection:
            await doors.scheduler.enqueue(name, parameters, connection=connection)

    return python(lambda *_: asyncio.run(go()))(doors, name, parameters)


def declared(name: str, parameters: Any) -> Definitions:
    config = JobConfig(name=name, key="new", schedule=Cron("@daily"), parameters=parameters)
    return Definitions("s", (Definition(config),))


def apply_file(doors: Doors, name: str, parameters: Any) -> str | None:
    text = Path(doors.yaml(name, parameters)).read_text()
    said = python(lambda s, *_: s.apply(parse(text)))(doors, name, parameters)
    assert said is None or "(line 1, column " in said
    return said


DOORS: dict[str, Door] = {
    "enqueue": python(lambda s, n, p: s.enqueue(n, p)),
    "enqueue-key": python(lambda s, n, p: s.enqueue(n, p, key="new", delay=DAY)),
    "enqueue-over": python(lambda s, n, p: s.enqueue(n, p, key="once")),
    "enqueue-keep": python(lambda s, n, p: s.enqueue(n, p, key="new", if_exists="keep")),
    "enqueue-error": python(lambda s, n, p: s.enqueue(n, p, key="new", if_exists="error", retries=2)),
    "enqueue-policies": python(lambda s, n, p: s.enqueue(n, p, retries=2, timeout=5)),
    "enqueue-transaction": in_transaction(lambda s, n, p, c: s.enqueue(n, p, connection=c)),
    "enqueue-keep-transaction": in_transaction(
        lambda s, n, p, c: s.enqueue(n, p, key="new", if_exists="keep", connection=c)
    ),
    "enqueue-async": in_async_transaction,
    "enqueue_many": python(lambda s, n, p: s.enqueue_many(n, [GOOD[n][0], p])),
    "enqueue_many-transaction": in_transaction(lambda s, n, p, c: s.enqueue_many(n, [p], connection=c)),
    "schedule_by_name": python(lambda s, n, p: s.schedule_by_name(n, "@daily", p, key="new")),
    "schedule_by_name-keep": python(
        lambda s, n, p: s.schedule_by_name(n, "@daily", p, key="new", if_exists="keep")
    ),
    "schedule_by_name-over": python(
        lambda s, n, p: s.schedule_by_name(n, "@daily", p, key="daily", if_exists="update", paused=True)
    ),
    "update": python(lambda s, n, p: s.update((n, "daily"), parameters=p)),
    "update-once": python(lambda s, n, p: s.update((n, "once"), parameters=p)),
    "template": python(lambda s, n, p: s.templates.enqueue(n, p)),
    "apply": python(lambda s, n, p: s.apply(declared(n, p))),
    "apply-file": apply_file,
    "command-enqueue": lambda d, n, p: d.command("enqueue", n, "--params", json.dumps(p)),
    "command-lines": lambda d, n, p: d.command("enqueue", n, "--lines", d.written(f"{json.dumps(p)}\n")),
    "command-schedule": lambda d, n, p: d.command(
        "schedule", n, "--key", "new", "--cron", "@daily", "--params", json.dumps(p)
    ),
    "command-update": lambda d, n, p: d.command("update", f"{n}/daily", "--params", json.dumps(p)),
    "command-apply": lambda d, n, p: d.command("apply", d.yaml(n, p), "--yes"),
    "rest-once": lambda d, n, p: d.request("POST", "/jobs", name=n, parameters=p),
    "rest-recurring": lambda d, n, p: d.request("POST", "/jobs", name=n, schedule={"cron": "@daily"}, key="new", parameters=p),
    "rest-bulk": lambda d, n, p: d.request("POST", "/jobs/bulk", name=n, parameters=[p]),
    "rest-change": lambda d, n, p: d.request(
        "PATCH", f"/jobs/{d.scheduler.get_job((n, 'daily')).id}", parameters=p
    ),
}  # fmt: skip


@pytest.fixture
def doors(
    dsn: str,
    scheduler_on: Callable[..., Scheduler],
    client_of: Callable[..., httpx.Client],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> Doors:
    scheduler = scheduler_on(dsn)
    for name, (good, *_) in GOOD.items():
        scheduler.enqueue(name, good, key="once", delay=DAY)
        scheduler.schedule_by_name(name, "@daily", good, key="daily")
        scheduler.templates.create(name, handler=name)
    return Doors(dsn, scheduler, client_of(scheduler), tmp_path / "file", capsys)


def rows(db: psycopg.Connection[Any]) -> list[Any]:
    """All that there is, as it is stored."""
    return db.execute("select xmin, * from pgscheduler_jobs order by id").fetchall()


@pytest.mark.parametrize("door", DOORS)
def test_no_door_takes_what_no_node_could_run(door: str, doors: Doors, db: psycopg.Connection[Any]) -> None:
    """Each says what is wrong, in the kind's own words and without what may be secret, and nothing is written."""
    before = rows(db)
    for name, wrongs in WRONG.items():
        for wrong, pattern in wrongs:
            said = DOORS[door](doors, name, wrong)
            assert said is not None, f"{door} took {wrong}"
            assert re.search(rf"parameters.*do not fit {SHAPES[name].__name__}.*{pattern}", said), said
            assert SECRET not in said
            assert rows(db) == before, wrong


@pytest.mark.parametrize("door", DOORS)
def test_every_door_takes_what_some_node_may_run(
    door: str, doors: Doors, db: psycopg.Connection[Any]
) -> None:
    """Where a request may go, which module may be called, is the node's to say; and what is marked stays marked."""
    for name, goods in GOOD.items():
        for good in goods:
            assert DOORS[door](doors, name, good) is None
            query = "select true from pgscheduler_jobs where name = %s and parameters = %s::jsonb"
            assert db.execute(query, [name, json.dumps(good)]).fetchone(), (door, good)
            db.execute("delete from pgscheduler_jobs where key = 'new'")


def test_parameters_that_are_not_given_are_not_changed(doors: Doors, db: psycopg.Connection[Any]) -> None:
    """A new schedule for a job that is there needs no parameters; a new job does."""
    for name, (good, *_) in GOOD.items():
        changed = doors.scheduler.schedule_by_name(name, "@weekly", key="daily", if_exists="update")
        assert (changed.schedule, changed.parameters) == ({"cron": "@weekly", "timezone": "UTC"}, good)
        kept = doors.scheduler.schedule_by_name(name, "@daily", key="daily", if_exists="keep")
        assert kept == changed
        before = rows(db)
        for how in ("update", "keep", "error"):
            with pytest.raises(PgSchedulerError, match="must be given"):
                doors.scheduler.schedule_by_name(name, "@daily", key="new", if_exists=how)
        assert rows(db) == before


def test_where_it_is_registered_the_policy_is_asked_too(
    dsn: str, db: psycopg.Connection[Any], scheduler_on: Callable[..., Scheduler]
) -> None:
    """A node stores under a name nothing that it would refuse to run itself, as when it is given the class."""
    scheduler = scheduler_on(dsn, register=(HttpJob(allow=["10.0.0.2"]), CallJob(modules=["os.path"])))
    allowed = {
        "http_job": {"url": "http://10.0.0.2/", "method": "GET"},
        "call_job": {"module": "os.path", "function": "join", "args": ["a"]},
    }
    blocked = {
        "http_job": ({"url": "http://10.0.0.1/", "method": "GET"}, "blocked: host '10.0.0.1'"),
        "call_job": ({"module": "os", "function": "abort"}, "module 'os' is not allowed"),
    }
    for name, parameters in allowed.items():
        stored = scheduler.enqueue(name, parameters, key="once", delay=DAY)
        before = rows(db)
        wrong, rule = blocked[name]
        calls: list[Callable[[], Any]] = [
            lambda name=name, wrong=wrong: scheduler.enqueue(name, wrong),
            lambda name=name, wrong=wrong: scheduler.enqueue(name, wrong, key="new", if_exists="keep"),
            lambda name=name, wrong=wrong: scheduler.enqueue_many(name, [wrong]),
            lambda name=name, wrong=wrong: scheduler.schedule_by_name(name, "@daily", wrong, key="new"),
            lambda name=name, wrong=wrong: scheduler.apply(declared(name, wrong)),
            lambda stored=stored, wrong=wrong: scheduler.update(stored, parameters=wrong),
        ]
        for call in calls:
            with pytest.raises(PgSchedulerError, match=f"^parameters.* are not allowed here: {rule}"):
                call()
            assert rows(db) == before
    marked = {"url": "http://10.0.0.1/", "method": {"$secret": "GET"}, "headers": {"A": {"$secret": SECRET}}}
    with pytest.raises(PgSchedulerError, match="are not allowed here") as refused:
        scheduler.enqueue("http_job", marked)
    assert refused.value.__cause__ is None  # it may hold what is secret


# --- the names ---------------------------------------------------------------------------------------


class Own(Job):
    def run(self, ctx: RunContext) -> None: ...


class Narrow(HttpJob):
    """The same parameters, another policy."""


class Wide(HttpJob):
    """Other parameters."""

    @dataclass(frozen=True, kw_only=True)
    class parameters(HttpParameters):
        tenant: str = ""


@pytest.mark.parametrize("name", SHARED_NAMES)
@pytest.mark.parametrize(
    "call",
    [
        lambda s, job: s.register(job),
        lambda s, job: s.schedule(job),
        lambda s, job: s.schedule(job, if_exists="keep"),
        lambda s, job: s.schedule_many([Own(JobConfig(name="other")), job]),
    ],
    ids=["register", "schedule", "schedule-keep", "schedule_many"],
)
def test_their_names_are_theirs(
    name: str, call: Any, dsn: str, db: psycopg.Connection[Any], scheduler_on: Callable[..., Scheduler]
) -> None:
    """A class of one's own, by whatever way it came to that name, or another kind: it is told to take another."""
    titled = type("".join(map(str.title, name.split("_"))), (Own,), {})
    another = CallJob if name != "call_job" else ShellJob
    policy: dict[str, Any] = {"modules": ["os.path"]} if another is CallJob else {"enabled": True}
    config = JobConfig(name=name, key="k")
    jobs = [titled(), Own(config), another(config, **policy)]
    if name == "http_job":
        jobs.append(Wide(config))
    scheduler = scheduler_on(dsn)
    for job in jobs:
        with pytest.raises(PgSchedulerError, match=rf"^name is kept for .* needs another.*got '{name}'"):
            call(scheduler, job)
    assert rows(db) == []
    assert len(scheduler._registry) == 0


def test_who_may_have_their_names(dsn: str, scheduler_on: Callable[..., Scheduler]) -> None:
    """A subclass with a policy of its own is still that kind; with other parameters it needs, and may have, another name."""
    scheduler = scheduler_on(dsn)
    assert scheduler.register(Narrow(JobConfig(name="http_job"))) == "http_job"
    assert scheduler.register(Wide()) == "wide"
    assert scheduler.register(Own(JobConfig(name="http_jobs"))) == "http_jobs"
    assert scheduler.enqueue("wide", {**GET, "tenant": "north"}).parameters["tenant"] == "north"


# --- without the extra -------------------------------------------------------------------------------


def test_neither_slow_nor_in_need_of_the_extra() -> None:
    """The package brings in neither the kinds nor httpx; what is checked by name needs the kinds, and no httpx."""
    code = """
import sys
import pgscheduler, pgscheduler.definitions
assert not {"httpx", "pgscheduler.jobs"} & sys.modules.keys()
sys.modules["httpx"] = sys.modules["idna"] = None
from pgscheduler.jobs._shapes import check_shape
for url in ("https://example.org/?a=b", "https://münchen.de", "https://faß.de", "https://xn--mnchen-3ya.de"):
    check_shape("http_job", {"url": url, "method": "GET"})
for url in ("https://a b", "ftp://example.org", "http://[::1", "http://①②⑦.0.0.1", "http://☃.net", "http://u@example.org"):
    try:
        check_shape("http_job", {"url": url, "method": "GET"})
    except pgscheduler.InvalidValueError as error:
        assert "do not fit HttpParameters: url must" in str(error), error
    else:
        raise AssertionError(url)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("knowing", [True, False], ids=["idna", "no-idna"])
@pytest.mark.parametrize(
    "url",
    [
        "http://example.org", "HTTPS://EXAMPLE.ORG:443/a?b#c", "http://[::1]:8080/", "http://1.2.3.4",
        "http://münchen.de/ü?é=ß", "http://example.org:", "http://a_b.internal",
        "", "http:", "//example.org", "http:///x", "http://:80", "http://1.2.3.400", "http://[1.2.3.4]", "http://[::1",
        "http://example.org:0", "http://example.org:65536", "http://example.org:x", "http://①.org", "http://xn--zzzz",
        "http://a@b@c", "http://\u2028", "http://" + "é" * 8000,
    ],
)  # fmt: skip
def test_what_is_a_url(url: str, knowing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is checked without httpx is what httpx would take."""
    try:
        parsed = httpx.URL(url)
        taken = parsed.scheme in ("http", "https") and bool(parsed.host) and not parsed.userinfo
        taken = taken and url.isprintable() and 1 <= (parsed.port or 80) <= 65535 and parsed.port != 0
    except (httpx.InvalidURL, ValueError):
        taken = False
    if not knowing:
        nothing: ModuleType | None = None
        monkeypatch.setitem(sys.modules, "idna", nothing)  # type: ignore[arg-type]
    if taken:
        check_url(url)
    else:
        with pytest.raises(PgSchedulerError, match=r"^url must"):
            check_url(url)
