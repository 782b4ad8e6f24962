"""Where contestants meet: one server, one results file, and the workloads that every contestant can run."""

from __future__ import annotations

import dataclasses
import importlib
import json
import pkgutil
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg

from tests.benchmarks import contestants
from tests.benchmarks.contestant import Contestant, Unavailable
from tests.benchmarks.measure import Meter, percentile
from tests.benchmarks.programs import Program
from tests.benchmarks.server import Server

CACHE = Path.home() / ".cache" / "pgscheduler-bench"
START = 60.0  # seconds that a program may take to look for jobs
SLOW = 90.0  # seconds after which a run is taken for what it did until then
# How a contestant's run fails, or the server under it: that is written down, and the others go on.
FAILURES = (Unavailable, RuntimeError, TimeoutError, LookupError, StopIteration, psycopg.Error)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One contestant with one setting, installed."""

    contestant: Contestant
    setting: str
    argv: tuple[str, ...]

    @property
    def label(self) -> str:
        return f"{self.contestant.name} ({self.setting})"

    def program(self, dsn: str, *verb: object, stamp: str = "none") -> Program:
        return Program(list(self.argv), *verb, dsn=dsn, setting=self.setting, stamp=stamp)

    def run(self, dsn: str, *verb: object) -> list[dict[str, Any]]:
        with self.program(dsn, *verb) as program:
            return program.finish()


class Results:
    """The raw runs, one JSON object a line, written as they come."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a")
        self.path = path

    def add(self, kind: str, **facts: Any) -> dict[str, Any]:
        line = {"kind": kind, "at": time.strftime("%Y-%m-%dT%H:%M:%S"), **facts}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        print(_short(line), flush=True)
        return line


def _short(line: dict[str, Any]) -> str:
    shown = {key: value for key, value in line.items() if key not in ("kind", "at", "cost")}
    return f"{line['at'][11:]} {line['kind']}: " + ", ".join(f"{k}={v}" for k, v in shown.items())


def known() -> dict[str, Contestant]:
    """Every contestant by name; ours first."""
    found = [
        importlib.import_module(f"{contestants.__name__}.{module.name}").CONTESTANT
        for module in pkgutil.iter_modules(contestants.__path__)
        if not module.name.endswith("_program") and not module.name.startswith("_") and not module.ispkg
    ]
    return {c.name: c for c in sorted(found, key=lambda c: (c.name != "pgscheduler", c.name))}


def install(contestant: Contestant) -> list[Entry]:
    """One entry per setting, the best first; raises `Unavailable`."""
    argv = contestant.install(CACHE / contestant.name)
    return [Entry(contestant, setting.name, tuple(argv)) for setting in contestant.settings]


def machine(server: Server) -> dict[str, Any]:
    """What a reader must know before believing a figure."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        "unknown",
    )
    cores = Path("/proc/cpuinfo").read_text().count("processor\t:")
    memory = int(Path("/proc/meminfo").read_text().split()[1]) // 2**20
    return {
        "processor": model,
        "cores": cores,
        "memory_gib": memory,
        "system": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        "python": platform.python_version(),
        "postgresql": server.version,
        "settings": dict(server.settings),
    }


# --- workloads ------------------------------------------------------------------------------------------------------


def enqueue(server: Server, entry: Entry, mode: str, jobs: int) -> dict[str, Any]:
    """Jobs a second that one producer stores."""
    with server.database() as dsn:
        entry.run(dsn, "prepare")
        server.checkpoint()
        with entry.program(dsn, "enqueue", mode, jobs, 0) as program:
            meter = Meter(dsn, server.pid, [program.pid])
            said = next(line for line in program.finish() if "enqueued" in line)
            cost = meter.stop(jobs)
    return {"per_s": round(jobs / said["seconds"]), "jobs": jobs, "cost": cost.as_dict()}


def drain(
    server: Server,
    entry: Entry,
    jobs: int,
    processes: int = 1,
    sleep_ms: float = 0,
    limit: float = SLOW,
) -> dict[str, Any]:
    """Jobs a second from the first start until no job is unfinished; the jobs are stored before it starts."""
    with server.database() as dsn:
        entry.run(dsn, "prepare")
        entry.run(dsn, "enqueue", "bulk", jobs, sleep_ms)
        server.settle(dsn)
        workers = [entry.program(dsn, "work") for _ in range(processes)]
        try:
            for worker in workers:
                worker.wait_for("ready", START)
            meter = Meter(dsn, server.pid, [worker.pid for worker in workers])
            ended, ran = _until_drained(dsn, entry, workers, jobs, limit)
            cost = meter.stop(max(ran, 1))
            first = min(line["first"] for worker in workers if (line := worker.latest("first")) is not None)
        finally:
            for worker in workers:
                worker.hang_up()
            for worker in workers:
                worker.close()
    return {
        "per_s": round(ran / (ended - first / 1e9), 1),
        "jobs": ran,
        "of": jobs,
        "processes": processes,
        "sleep_ms": sleep_ms,
        "cost": cost.as_dict(),
    }


def _until_drained(
    dsn: str, entry: Entry, workers: list[Program], jobs: int, limit: float
) -> tuple[float, int]:
    """When it was done (monotonic seconds), and how many ran until then or until the limit."""
    deadline = time.monotonic() + limit
    with psycopg.connect(dsn, autocommit=True) as connection:
        while True:
            ran = sum(line["ran"] for worker in workers if (line := worker.latest("ran")) is not None)
            if ran >= jobs:
                row = connection.execute(entry.contestant.unfinished).fetchone()
                if row == (False,):
                    return time.monotonic(), ran
                time.sleep(0.002)
            else:
                time.sleep(0.01)
            if time.monotonic() > deadline:
                return time.monotonic(), ran


def pickup(server: Server, entry: Entry, jobs: int = 500, seed: int = 1) -> dict[str, Any]:
    """Milliseconds from the answer of a commit to the first line of the job, on an idle worker."""
    chance = random.Random(seed)
    with server.database() as dsn:
        entry.run(dsn, "prepare")
        with (
            entry.program(dsn, "work", stamp="each") as worker,
            entry.program(dsn, "produce") as producer,
        ):
            worker.wait_for("ready", START)
            producer.wait_for("ready", START)
            time.sleep(1)
            waits: list[float] = []
            begun = time.monotonic()
            for _ in range(jobs):
                heard, told = len(worker.said), len(producer.said)
                producer.tell(1)
                committed = producer.wait_for("committed", 30, told)["committed"]
                waits.append((worker.wait_for("start", 30, heard)["start"] - committed) / 1e6)
                time.sleep(0.005 + chance.random() * 0.02)  # not in step with anyone's timer
                if time.monotonic() - begun > SLOW:
                    break
    return {
        "jobs": len(waits),
        **{f"p{name}_ms": round(percentile(waits, share), 2) for name, share in _SHARES},
    }


def load(server: Server, entry: Entry, rate: float, seconds: float = 10.0) -> dict[str, Any]:
    """Milliseconds from just before the call that stores a job to its start, at a steady rate."""
    tick = 0.01
    with server.database() as dsn:
        entry.run(dsn, "prepare")
        with (
            entry.program(dsn, "work", stamp="latency") as worker,
            entry.program(dsn, "produce") as producer,
        ):
            worker.wait_for("ready", START)
            producer.wait_for("ready", START)
            time.sleep(1)
            sent, begun = 0, time.monotonic()
            meter = Meter(dsn, server.pid, [worker.pid])
            while (now := time.monotonic() - begun) < seconds:
                due = int(now * rate) - sent
                if due > 0:
                    told = len(producer.said)
                    producer.tell(due)
                    producer.wait_for("committed", 60, told)
                    sent += due
                time.sleep(max(tick - (time.monotonic() - begun - now), 0.0))
            _until_drained(dsn, entry, [worker], sent, 30)
            cost = meter.stop(sent)
            worker.hang_up()
            latencies = [us / 1000 for us in worker.wait_for("latencies_us", 60)["latencies_us"]]
    return {
        "rate": round(rate),
        "sent_per_s": round(sent / seconds),
        "jobs": len(latencies),
        **{f"p{name}_ms": round(percentile(latencies, share), 2) for name, share in _SHARES},
        "cost": cost.as_dict(),
    }


_SHARES = (("50", 0.5), ("95", 0.95), ("99", 0.99))


# --- pairs ----------------------------------------------------------------------------------------------------------


def alternate(
    results: Results,
    workload: str,
    ours: tuple[str, Callable[[], dict[str, Any]]],
    others: list[tuple[str, Callable[[], dict[str, Any]]]],
    pairs: int,
    figure: str = "per_s",
) -> None:
    """A B A B …: ours, then each of the others, `pairs` times over; raw runs and the ratio pair by pair are kept.

    With several settings of one rival a round is A B C, and each is compared with the A of its own round. Each run is
    written when it ends, with its ratio; the medians are written also when the comparison is stopped before its end.
    """
    ratios: dict[str, list[float]] = {label: [] for label, _ in others}
    failed: set[str] = set()
    try:
        for pair in range(pairs):
            mine = results.add(workload, label=ours[0], pair=pair, **ours[1]())
            for label, run in others:
                if label in failed:
                    continue
                try:
                    theirs = run()
                except FAILURES as error:
                    failed.add(label)
                    results.add("skipped", workload=workload, label=label, why=str(error)[:500])
                    continue
                ratio = round(mine[figure] / theirs[figure], 3) if theirs[figure] else float("inf")
                ratios[label].append(ratio)
                results.add(workload, label=label, pair=pair, ratio=ratio, **theirs)
    finally:
        for label, found in ratios.items():
            if found:
                results.add(
                    "ratio",
                    workload=workload,
                    figure=figure,
                    ours=ours[0],
                    label=label,
                    ratios=found,
                    median=round(statistics.median(found), 3),
                )


def jobs_for(server: Server, entry: Entry, seconds: float, most: int, sleep_ms: float = 0) -> int:
    """As many jobs as this contestant does in about this time, by a first short run."""
    pilot = drain(server, entry, 200, sleep_ms=sleep_ms, limit=20)
    if pilot["jobs"] < 200 or pilot["per_s"] < 200 / seconds:
        return 200
    rate = pilot["per_s"]
    if rate * seconds > 4 * 200:
        rate = max(rate, drain(server, entry, min(most, 4000), sleep_ms=sleep_ms, limit=20)["per_s"])
    return int(min(most, max(200, rate * seconds)))


def entries(names: list[str], results: Results, *, best: bool = False) -> Iterator[list[Entry]]:
    """The chosen contestants, installed; one that cannot be had leaves a line that says why."""
    for name, contestant in known().items():
        if name == "pgscheduler" or (names and name not in names):
            continue
        try:
            found = install(contestant)
            yield found[:1] if best else found
        except Unavailable as error:
            results.add("skipped", workload="all", label=name, why=str(error))
