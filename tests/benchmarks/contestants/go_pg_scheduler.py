"""go-pg-scheduler, the Go library whose shape pgscheduler follows: it could not be had, so there is no program for it."""

from __future__ import annotations

from pathlib import Path

from tests.benchmarks.contestant import Contestant, Setting, Unavailable


def install(home: Path) -> list[str]:
    raise Unavailable(
        "github.com/tzahifadida/go-pg-scheduler could not be downloaded, so no program was written"
    )


CONTESTANT = Contestant(
    name="go-pg-scheduler",
    version="0.1.9",
    language="Go",
    settings=(Setting("default", "no setting"),),
    history="the finished job's row itself, until the cleaner deletes it",
    unfinished="select false",
    install=install,
)
