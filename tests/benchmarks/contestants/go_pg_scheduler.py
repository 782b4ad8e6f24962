"""go-pg-scheduler, the Go library whose shape pgscheduler follows: it cannot be had, so there is no program for it."""

from __future__ import annotations

from pathlib import Path

from tests.benchmarks.contestant import Contestant, Setting, Unavailable


def install(home: Path) -> list[str]:
    raise Unavailable(
        "the Go module proxy refuses github.com/tzahifadida/go-pg-scheduler"
        " (403 Forbidden: This module version is not available)"
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
