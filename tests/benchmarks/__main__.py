"""Everything, or one workload: `python -m tests.benchmarks [WORKLOAD …]`. See RESULTS.md for what the figures mean."""

from __future__ import annotations

import argparse
import functools
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks import arena, report, server
from tests.benchmarks.arena import Entry, Results
from tests.benchmarks.own import ceiling, cost, growth, recurring, transactional
from tests.benchmarks.server import Server

HERE = Path(__file__).parent
DRAIN = 100_000  # jobs; a rival that would take longer than RIVAL_SECONDS gets fewer
RIVAL_SECONDS = 6.0


class Bench:
    """One run: the server, the results file, and what was asked for. Each workload is a method."""

    def __init__(self, server: Server, results: Results, options: argparse.Namespace) -> None:
        self.server = server
        self.results = results
        self.pairs: int = options.pairs
        self.scale: float = options.scale
        self.rivals: list[str] = options.rivals
        self.best: bool = options.best
        ours = arena.install(arena.known()["pgscheduler"])
        self.ours: Entry = ours[0]
        self.many_slots: Entry = ours[1]
        self._rivals: list[list[Entry]] | None = None

    @property
    def rival_entries(self) -> list[list[Entry]]:
        if self._rivals is None:
            self._rivals = list(arena.entries(self.rivals, self.results, best=self.best))
        return self._rivals

    def _size(self, jobs: int) -> int:
        return max(int(jobs * self.scale), 1000)

    # --- against rivals ---

    def drain(self) -> None:
        """No-op jobs, one process, against each rival in each setting."""
        for entries in self.rival_entries:
            self._compare("drain", entries, functools.partial(self._drain, processes=1))

    def two(self) -> None:
        """The same with two processes: ours against ours with one, and each rival's best setting."""
        one = functools.partial(arena.drain, self.server, self.ours, self._size(DRAIN))
        two = functools.partial(arena.drain, self.server, self.ours, self._size(DRAIN), 2)
        arena.alternate(
            self.results,
            "two processes",
            (f"{self.ours.label} × 2", two),
            [(self.ours.label, one)],
            self.pairs,
        )
        for entries in self.rival_entries:
            self._compare(
                "drain with two processes", entries[:1], functools.partial(self._drain, processes=2)
            )

    def enqueue(self) -> None:
        """100,000 in bulk, and one by one, against each rival's best setting."""
        for mode, most in (("bulk", DRAIN), ("one", 3_000)):
            for entries in self.rival_entries:
                run = functools.partial(self._enqueue, mode=mode, most=self._size(most))
                self._compare(f"enqueue {mode}", entries[:1], run)

    def insert(self) -> None:
        """One by one, against a bare one-row INSERT."""
        arena.alternate(
            self.results,
            "enqueue one, against INSERT",
            (self.ours.label, lambda: arena.enqueue(self.server, self.ours, "one", self._size(5_000))),
            [("bare INSERT", lambda: ceiling.bare_insert(self.server))],
            self.pairs * 2,
        )

    def pickup(self) -> None:
        """From commit to start on an idle worker, against each rival's best setting."""
        for entries in self.rival_entries:
            run = functools.partial(self._pickup, jobs=self._size(500) if self.scale < 1 else 500)
            self._compare("idle pick-up", entries[:1], run, pairs=min(self.pairs, 3), figure="p50_ms")

    def load(self) -> None:
        """End to end latency at half the load that each can drain."""
        for entries in self.rival_entries:
            self._compare(
                "half load", entries[:1], self._half_load, pairs=min(self.pairs, 3), figure="p50_ms"
            )

    def sleep(self) -> None:
        """Jobs of 1 ms and 50 ms: the share of the ideal, slots / duration, at 10 and at 100 slots."""
        for entry, slots in ((self.ours, 10), (self.many_slots, 100)):
            for sleep_ms, jobs in ((1, 20_000), (50, 5_000)):
                for pair in range(self.pairs):
                    found = arena.drain(self.server, entry, self._size(jobs), sleep_ms=sleep_ms)
                    bare = ceiling.bare_threads(slots, sleep_ms, self._size(jobs))
                    self.results.add(
                        "sleep",
                        label=entry.label,
                        pair=pair,
                        ideal=round(found["per_s"] / (slots / sleep_ms * 1000), 3),
                        of_bare_threads=round(found["per_s"] / bare["per_s"], 3),
                        bare_threads_per_s=bare["per_s"],
                        **found,
                    )

    # --- ours alone ---

    def ceiling(self) -> None:
        """Drain against the same two statements in pgbench."""
        clients = [
            (
                f"pgbench, same SQL, {count} client{'s' * (count > 1)}",
                functools.partial(ceiling.same_sql, self.server, self.ours, self._size(DRAIN), count),
            )
            for count in (1, 2)
        ]
        mine = functools.partial(arena.drain, self.server, self.ours, self._size(DRAIN))
        arena.alternate(self.results, "drain, against pgbench", (self.ours.label, mine), clients, self.pairs)

    def cost(self) -> None:
        """Write-ahead log, commits and dead tuples of a job from enqueue to history."""
        for pair in range(self.pairs):
            cost.cost(self.server, self.results, self.ours, self._size(DRAIN), pair)

    def growth(self) -> None:
        """The same drain with full tables."""
        growth.growth(self.server, self.results, self.ours, self.pairs, self._size(DRAIN), self.scale)

    def snapshot(self) -> None:
        """The same drain while another session has held a snapshot for ten minutes."""
        growth.held_snapshot(self.server, self.results, self.ours, self._size(DRAIN), 600 * self.scale)

    def endurance(self) -> None:
        """A million jobs in one go."""
        growth.endurance(self.server, self.results, self.ours, self._size(1_000_000))

    def recurring(self) -> None:
        """Schedules that fall due together."""
        run = functools.partial(recurring.recurring, self.server, self.results, self.ours)
        count = lambda n: max(int(n * self.scale), 60)  # noqa: E731
        seconds = 60 if self.scale >= 1 else 10
        run("1,000 in one second of the minute", ["0 * * * * *"], count(1_000), 15)
        run("10,000 in one second of the minute", ["0 * * * * *"], count(10_000), 15)
        run("1,000 every second", ["* * * * * *"], count(1_000), seconds)
        spread = [f"{second} * * * * *" for second in range(60)]
        run("100,000 spread over the minute", spread, count(100_000), seconds)

    def schedules(self) -> None:
        """A million schedules stored, all overdue."""
        recurring.backlog(self.server, self.results, self.ours, self._size(1_000_000), 20)

    def heartbeats(self) -> None:
        """10,000 claims held."""
        recurring.held_claims(self.server, self.results, self.ours, self._size(10_000), 90)

    def transactional(self) -> None:
        """Storing jobs in a caller's transaction."""
        transactional.commits(self.server, self.results, self.ours, self.pairs)
        transactional.open_transaction(self.server, self.results, self.ours)
        transactional.opposite_order(self.server, self.results, self.ours, self._size(10_000))

    # --- parts ---

    def _compare(
        self,
        workload: str,
        entries: list[Entry],
        run: Callable[[Entry], Callable[[], dict[str, object]]],
        pairs: int | None = None,
        figure: str = "per_s",
    ) -> None:
        reason = entries[0].contestant.skips.get(workload) if entries else None
        if reason is not None:
            self.results.add("skipped", workload=workload, label=entries[0].contestant.name, why=reason)
            return
        ceiling.calibrate(self.server, self.results)
        others = []
        for entry in entries:
            try:
                others.append((entry.label, run(entry)))
            except arena.FAILURES as error:
                self.results.add("skipped", workload=workload, label=entry.label, why=str(error)[:500])
        if others:
            arena.alternate(
                self.results, workload, (self.ours.label, run(self.ours)), others, pairs or self.pairs, figure
            )

    def _drain(self, entry: Entry, processes: int) -> Callable[[], dict[str, object]]:
        jobs = self._size(DRAIN)
        if entry is not self.ours:
            jobs = arena.jobs_for(self.server, entry, RIVAL_SECONDS, jobs)
        limit = 15.0 if jobs <= 200 else arena.SLOW
        return lambda: arena.drain(self.server, entry, jobs, processes, limit=limit)

    def _enqueue(self, entry: Entry, mode: str, most: int) -> Callable[[], dict[str, object]]:
        jobs = most
        if entry is not self.ours:
            rate = arena.enqueue(self.server, entry, mode, 200)["per_s"]
            jobs = int(min(most, max(200, rate * RIVAL_SECONDS)))
        return lambda: arena.enqueue(self.server, entry, mode, jobs)

    def _pickup(self, entry: Entry, jobs: int) -> Callable[[], dict[str, object]]:
        return lambda: arena.pickup(self.server, entry, jobs)

    def _half_load(self, entry: Entry) -> Callable[[], dict[str, object]]:
        jobs = arena.jobs_for(self.server, entry, 4.0, self._size(DRAIN))
        rate = arena.drain(self.server, entry, jobs)["per_s"] / 2
        # A producer shares the machine, so no more than it can store beside the worker.
        return lambda: arena.load(self.server, entry, min(rate, 10_000.0))


WORKLOADS = (
    "ceiling", "insert", "drain", "two", "enqueue", "pickup", "load", "sleep", "cost", "transactional", "endurance",
    "recurring", "schedules", "heartbeats", "growth", "snapshot",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description="Measure pgscheduler, and the libraries that it is compared with, on this machine.",
        epilog="workloads: "
        + "; ".join(f"{name}: {(getattr(Bench, name).__doc__ or '').strip()}" for name in WORKLOADS),
    )
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help="default: all")
    parser.add_argument("--rivals", nargs="*", default=[], help="names; default: all that can be installed")
    parser.add_argument("--best", action="store_true", help="of each rival only its best setting")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="below 1: a trial run, not for quoting")
    parser.add_argument("--server", choices=["distribution", "wheel"], default="distribution")
    parser.add_argument("--out", type=Path, default=HERE / "results" / time.strftime("%Y-%m-%d.jsonl"))
    parser.add_argument("--report", type=Path, help="only print the table of this results file")
    options = parser.parse_args()
    if options.report:
        print(report.table(options.report))
        return
    unknown = [name for name in options.workloads if name not in WORKLOADS]
    if unknown:
        parser.error(f"unknown workload {', '.join(unknown)}; there are {', '.join(WORKLOADS)}")
    rivals = [name for name in arena.known() if name != "pgscheduler"]
    unknown = [name for name in options.rivals if name not in rivals]
    if unknown:
        parser.error(f"unknown rival {', '.join(unknown)}; there are {', '.join(rivals)}")
    results, failed = Results(options.out), False
    # Like Ctrl-C: what runs is ended, and what was measured until then is in the file and in the table.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with server.start(options.server) as running:
            bench = Bench(running, results, options)
            results.add("machine", **arena.machine(running))
            for name in options.workloads or WORKLOADS:
                try:
                    ceiling.calibrate(running, results)
                    getattr(bench, name)()
                except arena.FAILURES as error:
                    failed = True  # ours or the server; the other workloads are run all the same
                    results.add("failed", workload=name, why=str(error)[:500])
    finally:
        print(report.table(options.out), flush=True)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
