"""The two jobs of the demo, as one would write them in a program of one's own."""

from __future__ import annotations

import gzip
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

from pgscheduler._context import RunContext
from pgscheduler.job import Job, JobConfig
from pgscheduler.retry import Backoff

from .files import digest, write_whole

__all__ = ["LEDGER", "CountResults", "DigestSales"]

#: Deliberately without a primary key: what is written twice shall be found twice.
LEDGER = """
create table public.demo_ledger (
    file text not null, run_id text not null, node uuid not null, cents bigint not null, sha256 text not null
)
"""


class DigestSales(Job):
    """Read one branch's sales, total them, keep a compressed copy, and enter the total in the ledger."""

    config = JobConfig.one_time(
        "digest_sales",
        retries=20,
        backoff=Backoff(timedelta(seconds=0.4), factor=1.5, maximum=timedelta(seconds=2)),
    )

    def __init__(self, folder: Path, config: JobConfig | None = None) -> None:
        super().__init__(config)
        self.folder = folder  # shared by all runs; what a run opens for itself belongs in init()

    def run(self, ctx: RunContext) -> None:
        name = ctx.parameters["file"]
        text = (self.folder / "inbox" / name).read_text(encoding="utf-8")
        found = digest(
            name, text
        )  # raises while the file is unfinished: the attempt fails and is tried again
        packed = gzip.compress(text.encode(), mtime=0)
        ctx.wait(ctx.parameters["pause"])  # stands for a slow archive, so that there is something to watch
        ctx.check()
        # Writing the same files twice does no harm, so at-least-once is good enough here.
        write_whole(self.folder / "results" / f"{name}.gz", packed)
        write_whole(self.folder / "results" / f"{name}.json", json.dumps(found.to_dict()).encode())
        ctx.log.info("digested", rows=found.rows, cents=found.cents, packed=len(packed))
        # A total entered twice would do harm: the entry and this run's completion are one commit.
        with ctx.transaction(result={"rows": found.rows, "cents": found.cents}) as connection:
            connection.execute(
                "insert into public.demo_ledger (file, run_id, node, cents, sha256) values (%s, %s, %s, %s, %s)",
                [name, ctx.run_id, ctx.node, found.cents, found.sha256],
            )


class CountResults(Job):
    """Every two seconds: how many results are there, and what do they come to?"""

    config = JobConfig.recurring("count_results", "*/2 * * * * *", priority=0)

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def run(self, ctx: RunContext) -> dict[str, Any]:
        results = [json.loads(path.read_bytes()) for path in (self.folder / "results").glob("[!.]*.json")]
        found = {"files": len(results), "cents": sum(result["cents"] for result in results)}
        write_whole(
            self.folder / "summary.json", json.dumps({"at": ctx.scheduled_at.isoformat(), **found}).encode()
        )
        return found
