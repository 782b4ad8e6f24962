"""db-scheduler, the task scheduler in Java, with the PostgreSQL JDBC driver and HikariCP."""

from __future__ import annotations

from pathlib import Path

from tests.benchmarks.contestant import HERE, Contestant, Setting
from tests.benchmarks.install import copied, run, tool

SOURCE = HERE / "contestants" / "db_scheduler"


def tuned(threads: int, lower: float, upper: float) -> Setting:
    return Setting(
        f"{threads} threads",
        f"lock-and-fetch with {threads} threads, limits {lower} and {upper} (docs/performance.md), pollingInterval 1 s"
        " (its examples), reWriteBatchedInserts (the JDBC driver's documentation); all jobs in one scheduleBatch",
    )


def install(home: Path) -> list[str]:
    java, maven = tool("java"), tool("mvn")
    target, built = home / "target", home / "built"
    if copied(SOURCE, home) or not built.exists():
        built.unlink(missing_ok=True)
        run([maven, "-q", "-B", "package"], cwd=home)
        built.touch()
    return [
        java,
        "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
        "-cp",
        f"{target / 'classes'}:{target / 'lib'}/*",
        "Bench",
    ]


CONTESTANT = Contestant(
    name="db-scheduler",
    version="16.12.0",
    language="Java",
    settings=(
        tuned(100, 2.0, 6.0),
        tuned(20, 4.0, 20.0),
        tuned(50, 0.5, 4.0),
        Setting(
            "default", "no setting: polling strategy fetch every 10 s, 10 threads, HikariCP's 10 connections"
        ),
    ),
    history="none: a finished one-time job's row is deleted",
    unfinished="select (select true from scheduled_tasks order by execution_time limit 1) is not null",
    install=install,
)
