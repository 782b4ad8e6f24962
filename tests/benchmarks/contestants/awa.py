"""awa: a Rust core with bindings for Python (`awa-pg`), here with async handlers."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.benchmarks.contestant import HERE, Contestant, Setting
from tests.benchmarks.install import python_program

VERSION = "0.6.9"
PROGRAM = HERE / "contestants" / "awa_program.py"

# The stored jobs of a partition of the ring against the completed ones: both stay until they are truncated together.
# (Its own view of all jobs takes seconds over a few thousand.)
UNFINISHED = """
select coalesce((select sum(next_lane_seq - first_lane_seq) from awa.ready_segments), 0)
    > coalesce((select sum(completed_count) from awa.receipt_completion_batches), 0)
        + (select count(*) from awa.done_entries)
    or exists (select from awa.deferred_jobs) or exists (select from awa.leases)
"""


def install(home: Path) -> list[str]:
    return python_program(home, PROGRAM, f"awa-pg=={VERSION}")


CONTESTANT = Contestant(
    name="awa",
    version=VERSION,
    language=f"Python {sys.version_info.major}.{sys.version_info.minor}, Rust core",
    settings=(
        Setting(
            "1024 workers",
            "max_workers 1024, claim_batch_size 512, claimers 1 (docs/benchmarking.md, offered-rate benchmark), and as "
            "that benchmark in awa/tests/benchmark_test.rs polling every 50 ms and no deadline per attempt, which makes "
            "the compact form of a claim possible; 50 connections (awa-python/scripts/benchmark_runtime.py)",
        ),
        Setting(
            "256 workers",
            "max_workers 256, 50 connections, polling every 50 ms: what awa-python/scripts/benchmark_runtime.py sets",
        ),
        Setting(
            "default", "no setting: 50 workers, 10 connections (docs/configuration.md, Queue configuration)"
        ),
    ),
    history="a compact row for every batch of completed jobs, until its partition of the ring is truncated",
    unfinished=UNFINISHED,
    install=install,
)
