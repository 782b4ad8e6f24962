"""Parameters that somebody marked as secret: the run gets them, and nothing that anybody is shown has them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from pgscheduler import (
    Backoff,
    Cancel,
    Every,
    Fail,
    InvalidValueError,
    Job,
    JobConfig,
    JobState,
    RunContext,
    Scheduler,
    _marks,
    definitions,
    secret,
)  # fmt: skip
from pgscheduler._json import dump_json
from pgscheduler._registry import validate_parameters
from pgscheduler.cli import main
from pgscheduler.web import Server, Tokens, create_app
from tests.engine.conftest import Quiet
from tests.support import eventually
from tests.support.postgres import execute

CANARY = 'canary "in" the\nmine'
HIDDEN = {"$secret": "***"}
AT_ONCE = Backoff(initial=timedelta(0), factor=1, jitter=0)


def leaks(text: str) -> bool:
    return "canary" in text


class Spill(Job):
    """Says its secret in every way that a job can."""

    def run(self, ctx: RunContext) -> Any:
        token, how = ctx.parameters["token"], ctx.parameters.get("how", "return")
        assert token == CANARY
        assert ctx.parameters["deep"] == [{"pin": 90210, "plain": "shown"}]
        log = ctx.log.bind(bound=token)
        event = f"begins with {token}"
        log.info(event, field=token, nested={"a": [token]}, pin=90210)
        ctx.progress(1, 2, f"has {token}")
        try:
            raise RuntimeError(token)
        except RuntimeError as error:
            log.exception("it failed", error=error)
            match how:
                case "raise":
                    raise
                case "cause":
                    raise ValueError("in other words") from error
        if how == "fail":
            raise Fail(f"because of {token}")
        if how == "cancel":
            return Cancel(f"because of {token}")
        return {"echo": token, "pin": 90210, "list": [ctx.parameters], token: 1}


class SpillElsewhere(Spill):
    config = JobConfig(name="elsewhere", isolation="process")


class SpillAsync(Spill):
    config = JobConfig(name="async")

    async def run(self, ctx: RunContext) -> Any:
        return super().run(ctx)


@dataclass
class Typed:
    token: str
    deep: list[dict[str, Any]]
    how: str = "return"

    def __post_init__(self) -> None:
        if not isinstance(self.token, str) or self.how == "refuse":
            raise ValueError(f"{self.token} is no good")


class SpillTyped(Job):
    config = JobConfig(name="typed", parameters_schema=Typed)

    def run(self, ctx: RunContext) -> Any:
        found: Typed = ctx.parameters
        assert found.token == CANARY
        ctx.log.info("has", it=found)
        raise RuntimeError(f"{found!r}")


def given(how: str = "return", **more: Any) -> dict[str, Any]:
    deep = [{"pin": secret(90210), "plain": "shown"}]
    return {"token": secret(CANARY), "deep": deep, "how": how, **more}


def test_marked_parameters_are_for_the_run_alone(
    dsn: str,
    scheduler_on: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Through every door and in every kind of run: the job has the secret, and no record, event, log line of it or of
    the node, result, error, listing, plan or answer of REST has; what is not marked is shown."""
    monkeypatch.setenv("PGSCHEDULER_DSN", dsn)
    log = Quiet()
    node = scheduler_on(dsn, logger=log, max_concurrent_jobs=4)
    said: list[Any] = []
    node.subscribe(said.append)
    for job in (Spill(JobConfig(name="spill")), SpillElsewhere, SpillAsync, SpillTyped):
        node.register(job)
    node.start()

    jobs = [node.enqueue("spill", given(how)) for how in ("return", "raise", "cause", "fail", "cancel")]
    jobs += [node.enqueue(name, given()) for name in ("elsewhere", "async", "typed")]
    jobs.append(node.enqueue("elsewhere", given("raise")))
    jobs.append(node.enqueue("spill", given("raise"), retries=1, backoff=AT_ONCE))
    node.schedule_many([Spill(JobConfig(name="spill", key="bulk", parameters=given()))])
    jobs.append(node.get_job(("spill", "bulk")))
    call = "select pgscheduler_enqueue('spill', %s::jsonb)"
    ((by_sql,),) = execute(dsn, call, [json.dumps(given())])
    assert main(["enqueue", "spill", "--params", json.dumps(given()), "--json"]) == 0
    by_command = json.loads(capsys.readouterr().out)
    assert by_command["parameters"]["token"] == HIDDEN
    with Server(create_app(node, tokens=Tokens()), port=0) as server:
        answer = httpx.post(f"{server.url}/api/v1/jobs", json={"name": "spill", "parameters": given()}).json()
        assert answer["job"]["parameters"] == {
            "token": HIDDEN, "deep": [{"pin": HIDDEN, "plain": "shown"}], "how": "return",
        }  # fmt: skip
        ids = [*(job.id for job in jobs), by_sql, by_command["id"], answer["job"]["id"]]
        ended = [node.wait(each, 60) for each in ids]
        completed = [job for job in ended if job.state is JobState.COMPLETED]
        assert len(completed) == 7
        assert all(job.result["echo"] == "***" and job.result["pin"] == "***" for job in completed)
        eventually(lambda: len(node.runs(limit=100)) == len(ids) + 1)

        # A declared one, and one that waits and is changed.
        node.schedule(
            Spill(JobConfig.recurring("spill_hourly", Every(timedelta(hours=1)), parameters=given()))
        )
        waits = node.enqueue("spill", given(), key="k", delay=3600)
        changed = node.update(waits, parameters=given("raise"))
        file = tmp_path / "jobs.yaml"
        document = {"source": "s", "jobs": [{"name": "declared", "every": 60, "parameters": given()}]}
        file.write_text(json.dumps(document))
        node.apply(definitions.load(file))
        document["jobs"][0]["parameters"]["token"] = secret(CANARY + "2")  # type: ignore[index]
        file.write_text(json.dumps(document))
        plan = node.plan(definitions.load(file))
        assert plan.changes[0].differences["parameters"] == (
            {"token": HIDDEN},
            {"token": {"$secret": "*** (secret changed)"}},
        )

        told = [*ended, *jobs, waits, changed, *node.jobs(), plan, plan.to_dict(), *said, node.stats()]
        for run in node.runs(limit=100):
            told += [run, run.to_dict(), *node.logs(run.id)]
            for path in ("", "/logs"):
                told.append(httpx.get(f"{server.url}/api/v1/runs/{run.id}{path}").text)
        told += [httpx.get(f"{server.url}/api/v1/{path}").text for path in ("jobs", "runs", "nodes", "stats")]
        for id_ in ids:
            told.append(httpx.get(f"{server.url}/api/v1/jobs/{id_}").text)
    for command in (
        ["jobs"], ["runs"], ["show", "spill/k"], ["plan", str(file)], ["apply", str(file), "--yes"],
        *(["show", run.id] for run in node.runs(limit=100)), *(["logs", run.id] for run in node.runs(limit=100)),
    ):  # fmt: skip
        main(command)
        main([*command, "--json"])
    printed = capsys.readouterr()
    told += [printed.out, printed.err]
    told += [{**line[2], "exc_info": None} for line in log.lines] + [line[1] for line in log.lines]

    assert [
        text[:600] for text in (f"{each} {each!r}" for each in told) if leaks(text) or "90210" in text
    ] == []
    assert "***" in printed.out
    assert "shown" in printed.out
    assert any("begins with ***" in event for event in log.events())
    assert not any(facts.get("exc_info") for _, event, facts in log.lines if event == "it failed")
    # And it was where it belongs, or nothing was proved.
    stored = execute(dsn, "select parameters->'token'->>'$secret' from pgscheduler_runs")
    assert {value for (value,) in stored} == {CANARY}
    leaked = "select count(*) from pgscheduler_{} where {}::text like '%%canary%%'"
    for table, columns in {
        "runs": ("result", "progress", "reason", "error"),
        "run_logs": ("event", "fields"),
    }.items():
        for column in columns:
            assert execute(dsn, leaked.format(table, column)) == [(0,)], (table, column)


def test_a_retry_has_the_secret_still(scheduler_on: Any, dsn: str) -> None:
    """What records hide is read from the table again."""
    node = scheduler_on(dsn)
    got: list[Any] = []

    class Keep(Job):
        def run(self, ctx: RunContext) -> None:
            got.append(ctx.parameters)

    node.register(Keep)
    job = node.enqueue("keep", {"token": secret({"a": [CANARY, 1]})})
    node.run_pending()
    (run,) = node.runs(job.id)
    assert run.parameters == {"token": HIDDEN}
    node.retry(run)
    node.run_pending()
    assert got == [{"token": {"a": [CANARY, 1]}}] * 2


@pytest.mark.parametrize(
    ("parameters", "rule"),
    [
        ({"a": {"$secret": CANARY, "b": 1}}, r"nothing beside.*\$\.a"),
        ({"a": [{"$secret": "***"}]}, r"the secret itself.*\$\.a\[0\]"),
        ({"a": {"$secret": {"$secret": CANARY}}}, r"another.*\$\.a"),
    ],
)
def test_wrong_marks(
    scheduler_on: Any, dsn: str, db: psycopg.Connection[Any], parameters: Any, rule: str
) -> None:
    """What is no mark, or is what was shown instead of a secret, is refused by every verb that takes parameters."""
    client: Scheduler = scheduler_on(dsn)
    there = client.enqueue("x", {"a": secret(CANARY)}, key="k", delay=60)
    for call in (
        lambda: client.enqueue("x", parameters),
        lambda: client.enqueue("x", parameters, key="other"),
        lambda: client.update(there, parameters=parameters),
        lambda: client.schedule_by_name("y", "@daily", parameters),
        lambda: client.schedule_many([Spill(JobConfig(name="x", parameters=parameters))]),
    ):
        with pytest.raises(InvalidValueError, match=rule) as caught:
            call()
        assert not leaks(str(caught.value))
    assert db.execute("select parameters->'a'->>'$secret' from pgscheduler_jobs").fetchall() == [(CANARY,)]


def test_what_does_not_fit_is_not_repeated(scheduler_on: Any, dsn: str) -> None:
    """A class, a pydantic model and a JSON Schema are asked about the value itself, and the refusal hides it."""
    import pydantic

    class Model(pydantic.BaseModel):
        token: int

    client: Scheduler = scheduler_on(dsn)
    for schema in (Model, {"properties": {"token": {"type": "integer"}}}):
        config = JobConfig(name="x", parameters={"token": secret(CANARY)}, parameters_schema=schema)
        with pytest.raises(InvalidValueError, match="do not fit") as caught:
            client.schedule(Spill(config))
        assert not leaks(f"{caught.value} {vars(caught.value)} {caught.value.__cause__}")
        good = JobConfig(name="x", parameters={"token": secret(1)}, parameters_schema=schema)
        assert client.schedule(Spill(good)).parameters == {"token": HIDDEN}
    with pytest.raises(InvalidValueError, match="do not fit Typed") as caught:
        client.schedule(
            SpillTyped(JobConfig(name="typed", parameters=given("refuse"), parameters_schema=Typed))
        )
    assert not leaks(f"{caught.value} {caught.value.__cause__}")


def test_what_has_no_end_is_refused() -> None:
    """Before it is looked through for marks without end."""
    endless: dict[str, Any] = {}
    endless["a"] = [endless]
    with pytest.raises(InvalidValueError, match="circular"):
        validate_parameters(Typed, endless)


def test_marks_are_only_marks() -> None:
    """Reveal and hide leave everything else as it is; texts are found however they are written."""
    plain = {"a": [1, None, True, 2.5, "x", {"b": {}}], "c": "$secret"}
    assert _marks.revealed(plain) == _marks.hidden(plain) == plain
    assert not _marks.marked(dump_json("x", plain, 1000).replace('"$secret"', ""))
    found = _marks.texts_of({"a": secret([CANARY, {"k": 12345}, 7, None, True]), "b": "free"})
    assert {CANARY, json.dumps(CANARY)[1:-1], "12345"} <= found
    assert not {"7", "None", "True", "free"} & found
    assert _marks.masked({"x": [f"a {CANARY}", 12345, 1, None]}, found) == {"x": ["a ***", "***", 1, None]}


@pytest.mark.parametrize(
    ("parameters", "place"),
    [
        ({"headers": {"Authorization": "***"}}, r"\$\.headers\.Authorization"),
        ({"url": "https://example.org/?page=2&token=***"}, r"\$\.url"),
        ({"url": "https://***@example.org/"}, r"\$\.url"),
        ({"data": [{"password": "***"}]}, r"\$\.data\[0\]\.password"),
    ],
)
@pytest.mark.parametrize("verb", ["enqueue", "enqueue_many", "update", "schedule_by_name"])
def test_what_is_shown_instead_of_a_secret_is_not_stored(
    dsn: str, scheduler_on: Any, verb: str, parameters: dict[str, Any], place: str
) -> None:
    """Somebody read a job, and sends back what they saw: no door takes the stars for the secret."""
    client, good = scheduler_on(dsn), {"method": "POST", "url": "https://example.org/"}
    parameters = {**good, **parameters}
    stored = client.enqueue("http_job", good, key="one", delay=3600)
    calls: dict[str, Any] = {
        "enqueue": lambda: client.enqueue("http_job", parameters),
        "enqueue_many": lambda: client.enqueue_many("http_job", [parameters]),
        "update": lambda: client.update(stored, parameters=parameters),
        "schedule_by_name": lambda: client.schedule_by_name("http_job", "@daily", parameters, key="two"),
    }
    with pytest.raises(InvalidValueError, match=rf"parameters.*{place}"):
        calls[verb]()
    assert [job.parameters for job in client.jobs()] == [good]


def test_stars_in_a_text_are_only_a_text(dsn: str, scheduler_on: Any) -> None:
    """What merely holds them is stored as it is."""
    client = scheduler_on(dsn)
    given = {"say": "*** hello ***", "rating": "*****", "sum": "a=***b"}
    assert client.enqueue("mail", given).parameters == given
