"""Each run has a copy of the registered instance: quickly made where nothing else would notice, else by `copy.copy`."""

from __future__ import annotations

import copy
import copyreg
import dataclasses
from collections.abc import Iterator
from typing import Any, Self

import pytest

from pgscheduler import Job
from pgscheduler._registry import Registered


class Plain(Job):
    def __init__(self, **fields: Any) -> None:
        self.__dict__.update(fields)

    def run(self, ctx: Any) -> None: ...


@dataclasses.dataclass
class Data(Job):
    shared: list[int]

    def run(self, ctx: Any) -> None: ...


class Slotted(Plain):
    __slots__ = ("inside",)


class Copying(Plain):
    def __copy__(self) -> Copying:
        return Copying(**self.__dict__, made="by __copy__")


class Stateful(Plain):
    def __getstate__(self) -> Any:
        return {**self.__dict__, "made": "by __getstate__"}


class Restoring(Plain):
    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state, made="by __setstate__")


class Reducing(Plain):
    def __reduce__(self) -> Any:
        return Reducing, (), {**self.__dict__, "made": "by __reduce__"}


class Born(Plain):
    def __new__(cls, *_: Any, **__: Any) -> Self:
        made: Self = super().__new__(cls)
        made.made = "by __new__"  # type: ignore[attr-defined]
        return made


class Counted(Plain, dict[str, int]):
    """What it holds as a dictionary is not in `__dict__`."""


class Dispatched(Plain): ...


@pytest.fixture
def dispatched() -> Iterator[None]:
    copyreg.pickle(Dispatched, lambda job: (Dispatched, (), {**job.__dict__, "made": "by the table"}))  # type: ignore[arg-type]
    yield
    del copyreg.dispatch_table[Dispatched]


@pytest.mark.parametrize(
    "job", [Plain(), Plain(shared=[1], seven=7), Data([1])], ids=["empty", "plain", "dataclass"]
)
def test_a_plain_job_is_copied_without_asking_the_copy_module(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = copy.copy(job)
    entry = Registered("plain", job)
    monkeypatch.setattr(copy, "copy", lambda _: pytest.fail("the slow way"))
    made = entry.make()
    assert (type(made), made.__dict__) == (type(wanted), wanted.__dict__)
    assert made is not job
    assert made.__dict__ is not job.__dict__
    assert all(made.__dict__[name] is value for name, value in job.__dict__.items())  # shallow


def test_a_copy_has_what_the_registered_instance_has_at_that_moment() -> None:
    job = Plain(count=1)
    entry = Registered("plain", job)
    job.count = 2  # type: ignore[attr-defined]
    assert entry.make().count == 2  # type: ignore[attr-defined]
    job.__dict__ = {"count": 3}
    assert entry.make().count == 3  # type: ignore[attr-defined]


@pytest.mark.usefixtures("dispatched")
@pytest.mark.parametrize("kind", [Copying, Stateful, Restoring, Reducing, Born, Dispatched])
def test_a_job_that_says_how_it_is_copied_is_copied_so(kind: type[Plain]) -> None:
    job = kind(given=1)
    made, wanted = Registered("own", job).make(), copy.copy(job)
    assert made.__dict__ == wanted.__dict__
    assert "made" in made.__dict__


def test_what_lies_outside_the_instance_s_dictionary_is_copied_too() -> None:
    slotted = Slotted(given=1)
    slotted.inside = 2
    made: Any = Registered("slotted", slotted).make()
    assert (made.given, made.inside) == (1, 2)
    counted = Counted(given=1)
    counted["jobs"] = 3
    made = Registered("counted", counted).make()
    assert (made.given, dict(made)) == (1, {"jobs": 3})
