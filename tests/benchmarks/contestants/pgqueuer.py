"""PgQueuer: asyncio workers over asyncpg or psycopg, on the event loop that its own command `pgq run` takes (uvloop)."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.benchmarks.contestant import HERE, Contestant, Setting
from tests.benchmarks.install import python_program

VERSION = "1.6.0"
PROGRAM = HERE / "contestants" / "pgqueuer_program.py"
TUNED = "docs/guides/performance-tuning.md (Batch size: raise it for short jobs; checklist: pgq autovac)"


def install(home: Path) -> list[str]:
    return python_program(
        home,
        PROGRAM,
        f"pgqueuer[asyncpg,psycopg]=={VERSION}",
        "asyncpg==0.32.0",
        "psycopg[binary]==3.3.9",
        "uvloop==0.23.0",
    )


CONTESTANT = Contestant(
    name="pgqueuer",
    version=VERSION,
    language=f"Python {sys.version_info.major}.{sys.version_info.minor}",
    settings=(
        Setting("asyncpg, batch 1000", f"asyncpg, run(batch_size=1000), pgq autovac; {TUNED}"),
        Setting("asyncpg, batch 100", f"asyncpg, run(batch_size=100), pgq autovac; {TUNED}"),
        Setting(
            "psycopg, batch 100",
            f"psycopg with its C implementation, run(batch_size=100), pgq autovac; {TUNED}",
        ),
        Setting(
            "default",
            "no setting: asyncpg, which docs/getting-started/installation.md recommends, batch_size 10",
        ),
    ),
    history="a row in pgqueuer_log for every change of state, folded into statistics every 30 s",
    unfinished="select exists (select from pgqueuer)",
    install=install,
)
