"""`python -m tests.chaos.recovery`: how soon a node drains its backlog as before, after PostgreSQL was away.

One node drains a deep backlog. The server is killed without a checkpoint, or every process of it stands still, for
6, 45 and 120 seconds; then it is back. Told are the seconds until work flows again, and the rate per second in
windows of one second, before and after. Only ratios within one run say anything: another program on the machine
changes every rate, so medians of windows are compared, and a trial without any outage shows what is left of noise.

Exit status: 0, or 1 when some median after was below the share of the one before that `--share` asks for.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tests.support.postgres import PrivateServer, apply_schema, execute
from tests.support.processes import NodeProcess, spawn_node

__all__ = ["main"]

NODE = """
import json, sys, threading, time
from pgscheduler import Job, Scheduler, SchedulerConfig
from tests.support.processes import commands, emit

class Nothing(Job):
    def run(self, ctx):
        if pause:
            time.sleep(pause)

class Quiet:
    def debug(self, event, **facts): ...
    info = warning = error = debug

pause = float(sys.argv[2])
with Scheduler(SchedulerConfig(dsn=sys.argv[1], run_immediately=True, logger=Quiet())) as scheduler:
    scheduler.register(Nothing)
    scheduler.start()
    emit("ready")
    over = threading.Event()
    def count():
        while not over.wait(0.1):
            found = scheduler.node_stats()
            emit("count", at=time.monotonic(), recorded=found["recorded"], lost=found["lost"])
    counter = threading.Thread(target=count)
    counter.start()
    for _ in commands():
        pass
    over.set()
    counter.join()
"""

SETTINGS = {"max_wal_size": "1GB", "shared_buffers": "128MB", "log_min_messages": "fatal"}
FILL = """
insert into pgscheduler_jobs (name, run_at, scheduled_at, created_at)
select 'nothing', now(), now(), now() from generate_series(1, %s)
"""
WAYS = ("crash", "freeze")
GRACE = 10.0  # seconds after the return in which full speed must be back


@dataclass(frozen=True)
class Trial:
    """What one outage did; rates are medians of windows of a second, in jobs per second."""

    way: str
    seconds: float
    flows: float  # seconds from the return to the first outcome that was recorded
    before: float
    after: float  # from GRACE seconds after the return on
    windows: list[float]  # from the return on
    lost: int

    @property
    def share(self) -> float:
        return self.after / self.before if self.before else float("nan")


class Bench:
    """A server, a node at work, and how far it is."""

    def __init__(self, server: PrivateServer, node: NodeProcess, most: int) -> None:
        self._server = server
        self._node = node
        self._most = most  # jobs in the backlog when a trial begins

    def fill(self) -> None:
        """Make the backlog deep again."""
        ((left,),) = execute(self._server.dsn, "select count(*) from pgscheduler_jobs")
        execute(self._server.dsn, FILL, [max(self._most - left, 0)])
        execute(self._server.dsn, "vacuum analyze pgscheduler_jobs")
        execute(self._server.dsn, "checkpoint")
        execute(self._server.dsn, "select pgscheduler_enqueue('nothing')")  # and with it the wake-up

    def trial(self, way: str, seconds: float, window: int) -> Trial:
        self.fill()
        time.sleep(window + 3)
        away = time.monotonic()
        with self._away(way):
            time.sleep(seconds)
        back = time.monotonic()
        time.sleep(GRACE + window + 1)
        counts = self._counts()
        lost = [facts["lost"] for facts in self._node.seen("count")]
        done_then = _at(counts, back)
        flows = next((at for at, recorded in counts if at > back and recorded > done_then), float("inf"))
        return Trial(
            way=way,
            seconds=seconds,
            flows=flows - back,
            before=statistics.median(_rates(counts, away - window, window)),
            after=statistics.median(_rates(counts, back + GRACE, window)),
            windows=_rates(counts, back, int(GRACE) + window),
            lost=lost[-1],
        )

    @contextmanager
    def _away(self, way: str) -> Iterator[None]:
        if way == "freeze":
            with self._server.frozen():
                yield
        elif way == "crash":
            self._server.crash()
            yield
            self._server.start()
        else:
            yield

    def _counts(self) -> list[tuple[float, int]]:
        return [(facts["at"], facts["recorded"]) for facts in self._node.seen("count")]


def _at(counts: Sequence[tuple[float, int]], moment: float) -> float:
    """How many were recorded at a moment: on the line between the samples around it."""
    before = max((each for each in counts if each[0] <= moment), default=counts[0])
    after = min((each for each in counts if each[0] > moment), default=counts[-1])
    if after[0] <= before[0]:
        return float(before[1])
    return before[1] + (after[1] - before[1]) * (moment - before[0]) / (after[0] - before[0])


def _rates(counts: Sequence[tuple[float, int]], begin: float, windows: int) -> list[float]:
    """Jobs per second in each of so many windows of one second."""
    marks = [_at(counts, begin + second) for second in range(windows + 1)]
    return [later - earlier for earlier, later in itertools.pairwise(marks)]


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    logging.getLogger("psycopg").setLevel(logging.CRITICAL)
    ways = [way for way in options.ways.split(",") if way]
    if set(ways) - set(WAYS):
        print(f"--ways takes {', '.join(WAYS)}", file=sys.stderr)
        return 2
    plan = [("none", 0.0)] + [(way, float(each)) for each in options.outages.split(",") for way in ways]
    trials = []
    with PrivateServer(settings=SETTINGS) as server:
        apply_schema(server.dsn)
        with spawn_node(NODE, server.dsn, options.job_ms / 1000) as node:
            node.wait_for("ready", timeout=60)
            bench = Bench(server, node, options.backlog)
            for way, seconds in plan:
                found = bench.trial(way, seconds, options.window)
                trials.append(found)
                _tell(found)
            node.hang_up()
            node.wait(60)
    slow = [each for each in trials if not each.share >= options.share]
    if options.json:
        print(json.dumps([{**vars(each), "share": each.share} for each in trials]))
    return 1 if slow else 0


def _tell(found: Trial) -> None:
    print(
        f"{found.way:>6} {found.seconds:5.0f} s   work flows after {found.flows:5.2f} s   before {found.before:7.0f}/s"
        f"   after {found.after:7.0f}/s   {found.share:6.1%}   lost {found.lost}",
        flush=True,
    )
    print(
        f"        per second since the return: {' '.join(f'{rate:.0f}' for rate in found.windows)}",
        flush=True,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.recovery", description=__doc__)
    parser.add_argument(
        "--outages", default="6,45,120", help="seconds, separated by commas (default: 6,45,120)"
    )
    parser.add_argument("--ways", default=",".join(WAYS), help="crash, freeze (default: both)")
    parser.add_argument("--backlog", type=int, default=800_000, help="jobs that wait when a trial begins")
    parser.add_argument(
        "--job-ms", type=float, default=2.0, help="milliseconds that a job takes (default: 2)"
    )
    parser.add_argument("--window", type=int, default=15, help="seconds of measuring before, and after")
    parser.add_argument(
        "--share", type=float, default=0.0, help="of the speed before, else exit status 1, say 0.98"
    )
    parser.add_argument("--json", action="store_true", help="all figures once more, as JSON")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
