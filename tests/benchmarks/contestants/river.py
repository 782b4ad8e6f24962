"""River, the job queue in Go, with its pgx driver."""

from __future__ import annotations

from pathlib import Path

from tests.benchmarks.contestant import HERE, Contestant, Setting
from tests.benchmarks.install import copied, run, tool

SOURCE = HERE / "contestants" / "river"


def install(home: Path) -> list[str]:
    go = tool("go")
    program = home / "bench"
    if copied(SOURCE, home) or not program.exists():
        program.unlink(missing_ok=True)
        run([go, "build", "-o", program, "."], cwd=home)
    return [str(program)]


def state_has_jobs(state: str) -> str:
    """One look into the index that the fetch uses; `exists` alone may scan the finished jobs when statistics are old."""
    return (
        f"(select true from river_job where state = '{state}'"
        " order by state, queue, priority, scheduled_at, id limit 1)"
    )


CONTESTANT = Contestant(
    name="River",
    version="0.51.1",
    language="Go",
    settings=(
        Setting(
            "1000 workers",
            "MaxWorkers 1000, which the source of its own `river bench` calls about the best"
            " (cmd/river/riverbench/river_bench.go), FetchCooldown 2 ms, FetchPollInterval 20 ms as set there;"
            " InsertManyFast (COPY) for many jobs (riverqueue.com/docs/batch-job-insertion)",
        ),
        Setting("river bench", "the same with MaxWorkers 2000: exactly what `river bench` sets"),
        Setting(
            "default",
            "a queue of MaxWorkers 100, which River wants named and its README sets; FetchCooldown 100 ms and"
            " FetchPollInterval 1 s by default",
        ),
    ),
    history="the finished job's row itself, kept 24 hours",
    unfinished="select coalesce("
    + ", ".join(state_has_jobs(state) for state in ("available", "running", "retryable"))
    + ", false)",
    install=install,
)
