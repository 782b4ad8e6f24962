"""The jobs and functions that the tests of features run in processes of their own."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from typing import Any

from pgscheduler import Job, JobConfig
from pgscheduler.retry import Backoff

__all__ = ["Greet", "Long", "Mark", "Stubborn", "add", "refuse"]


class Greet(Job):
    """Says which process ran it."""

    config = JobConfig.one_time("greet")

    def run(self, ctx: Any) -> Any:
        return {"pid": os.getpid()}


class Mark(Job):
    """Takes a moment, so that two of it could meet."""

    config = JobConfig(name="mark", max_stalls=50)

    def run(self, ctx: Any) -> Any:
        begun = time.time()
        ctx.wait((ctx.parameters or {}).get("seconds", 0.02))
        return {"pid": os.getpid(), "begun": begun, "ended": time.time()}


class Long(Job):
    """Goes on until it is told to stop, and ends badly; would be tried again at once."""

    config = JobConfig(name="long", retries=3, backoff=Backoff(initial=timedelta(0), jitter=0))

    def run(self, ctx: Any) -> None:
        ctx.progress(0, 1, "begun")
        ctx.wait(600)
        raise ValueError("in the middle of it")


class Stubborn(Job):
    """Hears nothing."""

    config = JobConfig.one_time("stubborn")

    def run(self, ctx: Any) -> None:
        ctx.progress(0, 1, "begun")
        time.sleep(600)


def add(*numbers: float) -> float:
    return sum(numbers)


def refuse(reason: str) -> None:
    raise ValueError(reason)
