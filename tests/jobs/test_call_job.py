"""CallJob: functions of the modules that the node lists, and nothing else."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pgscheduler import InvalidTypeError, InvalidValueError, JobConfig, JobState, Scheduler, SchedulerConfig
from pgscheduler.jobs import CallError, CallJob, CallParameters

SHOP = """
import os
from os import getpid
from functools import cache, wraps

from . import hidden

CONSTANT = 5
calls = []

def add(a, b=1, *, c=0):
    calls.append((a, b, c))
    return a + b + c

def boom():
    raise RuntimeError("it was told to")

def unstorable():
    return {1, 2}

async def later():
    return 1

@cache
def cached():
    return "cached"

def _private():
    return 1

class Thing:
    pass
"""
CHOSEN = """
from os.path import basename
__all__ = ["basename"]
def not_chosen():
    return 1
"""


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Packages `shop`, with `hidden` and `untouched` inside, and `chosen`, on the path for one test."""
    package = tmp_path / "shop"
    package.mkdir()
    (package / "__init__.py").write_text(SHOP)
    (package / "hidden.py").write_text("def f():\n    return 1\n")
    (package / "untouched.py").write_text("def f():\n    return 1\n")
    (tmp_path / "chosen.py").write_text(CHOSEN)
    (tmp_path / "broken.py").write_text("raise RuntimeError('broken inside')")
    monkeypatch.syspath_prepend(tmp_path)
    names = ("shop", "shop.hidden", "shop.untouched", "chosen", "broken")
    yield lambda: sys.modules["shop"]
    for name in names:
        sys.modules.pop(name, None)


class Silent:
    def debug(self, event: str, **fields: object) -> None:
        pass

    info = warning = error = debug


def test_calls_with_arguments(shop: Any, run: Any) -> None:
    """The function gets `args` and `kwargs`, and what it returns is the result."""
    job = CallJob(modules=["shop"])
    assert run(job, module="shop", function="add", args=[1, 2], kwargs={"c": 3}) == 6
    assert run(job, module="shop", function="add", args=[1]) == 2
    assert run(job, module="shop", function="cached") == "cached"
    assert shop().calls == [(1, 2, 3), (1, 1, 0)]


def test_all_chooses(shop: Any, run: Any) -> None:
    """A module with `__all__` offers what is in it, also what it imported, and nothing beside."""
    job = CallJob(modules=["chosen"])
    assert run(job, module="chosen", function="basename", args=["/a/b"]) == "b"
    with pytest.raises(CallError, match="chosen offers no function 'not_chosen'"):
        run(job, module="chosen", function="not_chosen")


@pytest.mark.parametrize(
    ("module", "function", "pattern"),
    [
        ("os", "system", "module 'os' is not allowed"),
        ("builtins", "exec", "not allowed"),
        ("shop.hidden", "f", "not allowed"),
        ("shop.untouched", "f", "not allowed"),
        (" shop", "add", "not allowed"),
        ("shop", "os.system", "offers no function 'os.system'"),
        ("shop", "getpid", "offers no function"),
        ("shop", "wraps", "offers no function"),
        ("shop", "os", "offers no function"),
        ("shop", "hidden", "offers no function"),
        ("shop", "hidden.f", "offers no function"),
        ("shop", "_private", "offers no function"),
        ("shop", "__getattribute__", "offers no function"),
        ("shop", "add.__globals__", "offers no function"),
        ("shop", "Thing", "offers no function"),
        ("shop", "CONSTANT", "offers no function"),
        ("shop", "missing", "offers no function"),
        ("shop", "later", "async"),
    ],
)
def test_nothing_else_is_called(shop: Any, run: Any, module: str, function: str, pattern: str) -> None:
    """Other modules, sub-modules, imported, private and missing names are refused, and nothing is imported."""
    job = CallJob(modules=["shop"])
    with pytest.raises(CallError, match=pattern):
        run(job, module=module, function=function)
    assert "shop.untouched" not in sys.modules


@pytest.mark.parametrize(
    ("wrong", "pattern"),
    [
        ({"module": ""}, "^module must be given"),
        ({"function": ""}, "^function must be given"),
        ({"module": 5}, "^module must be a str"),
        ({"function": ["hunter2"]}, "^function must be a str"),
        ({"args": "hunter2"}, "^args must be a list"),
        ({"kwargs": ["hunter2"]}, "^kwargs must be an object"),
    ],
)
def test_wrong_parameters(wrong: dict[str, Any], pattern: str) -> None:
    """A wrong parameter is refused by name."""
    with pytest.raises((InvalidValueError, InvalidTypeError), match=pattern):
        CallParameters(**{"module": "shop", "function": "add", **wrong})


@pytest.mark.parametrize("kwargs", [{}, {"a": 1, "d": 2}, {"a": 1, "b": 2, "c": 3, "e": "hunter2"}])
def test_arguments_must_fit(shop: Any, kwargs: dict[str, Any]) -> None:
    """Arguments that the function does not take are refused before anything is called, without their values."""
    config = JobConfig.one_time("call_job", {"module": "shop", "function": "add", "kwargs": kwargs})
    with pytest.raises(InvalidTypeError, match=r"^args do not fit shop\.add") as caught:
        CallJob(config, modules=["shop"])
    assert "hunter2" not in str(caught.value)
    assert shop().calls == []


@pytest.mark.parametrize(
    ("modules", "pattern"),
    [
        ([], "^modules must name"),
        ("shop", "^modules must be a list"),
        ([5], "^modules must hold only str"),
        (["no.such.module"], "^modules must be importable.*ModuleNotFoundError"),
        (["broken"], "^modules must be importable.*broken inside"),
        ([".relative"], "^modules must be importable"),
        ([""], "^modules must be importable"),
    ],
)
def test_wrong_modules(shop: Any, modules: Any, pattern: str) -> None:
    """An allow-list that is missing or cannot be imported is refused when the job is made."""
    with pytest.raises((InvalidValueError, InvalidTypeError), match=pattern):
        CallJob(modules=modules)


def test_not_without_a_list(dsn: str) -> None:
    """Registering the class itself is refused: there is no default list."""
    with Scheduler(SchedulerConfig(dsn=dsn, logger=Silent())) as scheduler:
        with pytest.raises(InvalidValueError, match="modules"):
            scheduler.register(CallJob)
        assert scheduler.stats()["states"] == {}


def test_through_a_scheduler(shop: Any, dsn: str, db: Any) -> None:
    """Checked before storing, and again before the run whatever way it came; errors fail the attempt."""
    job = CallJob(modules=["shop"])
    with Scheduler(SchedulerConfig(dsn=dsn, logger=Silent())) as scheduler:
        with pytest.raises(CallError, match="not allowed"):
            scheduler.schedule(
                job.with_config(JobConfig.one_time("call_job", {"module": "os", "function": "abort"}))
            )
        with pytest.raises(InvalidValueError, match="do not fit CallParameters"):
            scheduler.schedule(job)
        assert scheduler.jobs() == []

        with Scheduler(SchedulerConfig(dsn=dsn, logger=Silent())) as another:
            records = [
                another.enqueue("call_job", parameters)
                for parameters in (
                    {"module": "shop", "function": "add", "args": [20, 22]},
                    {"module": "os", "function": "abort"},
                    {"module": "shop", "function": "boom"},
                    {"module": "shop", "function": "unstorable"},
                )
            ]
        ((stored,),) = db.execute(
            """select pgscheduler_enqueue('call_job', '{"function": "add"}')"""
        ).fetchall()
        scheduler.register(job)
        for wrong, rule in (
            ({"function": "add"}, "do not fit CallParameters: module must be given"),
            ({"module": "os", "function": "abort"}, "are not allowed here: module 'os' is not allowed"),
            (
                {"module": "shop", "function": "add", "args": [1, 2, 3]},
                "are not allowed here: args do not fit shop.add",
            ),
        ):
            with pytest.raises(InvalidValueError, match=f"^parameters {rule}"):
                scheduler.enqueue("call_job", wrong)
        scheduler.run_pending()
        ended = [scheduler.get_job(record) for record in (*records, stored)]

    assert [job.state for job in ended] == [
        JobState.COMPLETED, JobState.FAILED, JobState.FAILED, JobState.COMPLETED, JobState.FAILED
    ]  # fmt: skip
    assert ended[0].result == 42
    assert "module 'os' is not allowed" in (ended[1].last_error or "")
    assert "RuntimeError: it was told to" in (ended[2].last_error or "")
    assert "module must be given" in (ended[4].last_error or "")


def test_in_a_process_of_its_own(dsn: str) -> None:
    """A call can be isolated: the list travels to the process."""
    parameters = {"module": "os.path", "function": "basename", "args": ["/a/b"]}
    with Scheduler(SchedulerConfig(dsn=dsn, logger=Silent())) as scheduler:
        config = JobConfig.one_time("call_job", parameters, isolation="process")
        record = scheduler.schedule(CallJob(config, modules=["os.path"]))
        scheduler.run_pending()
        assert scheduler.get_job(record).result == "b"


def test_repr_shows_no_arguments() -> None:
    """Arguments may be secrets, so what is printed of the parameters leaves them out."""
    text = repr(CallParameters(module="m", function="f", args=["hunter2"], kwargs={"a": "hunter2"}))
    assert text == "CallParameters(m:f, 1 args, kwargs ['a'])"


def test_the_list_is_looked_at_again(shop: Any) -> None:
    """A run checks by itself: parameters that were never checked call nothing."""
    context: Any = SimpleNamespace(parameters=CallParameters(module="os", function="abort"))
    with pytest.raises(CallError, match="not allowed"):
        CallJob(modules=["shop"]).run(context)
