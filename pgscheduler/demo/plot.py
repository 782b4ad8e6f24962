"""The plot of the demo: the cast, the four acts, and the reckoning."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any, NoReturn

import psycopg
import structlog

from pgscheduler import embedded
from pgscheduler.config import SchedulerConfig
from pgscheduler.errors import PgSchedulerError
from pgscheduler.job import JobConfig
from pgscheduler.records import NodeRecord, RunRecord
from pgscheduler.scheduler import Scheduler
from pgscheduler.states import JobState, Outcome

from .files import Delivery, generate, result_is_right
from .jobs import LEDGER, CountResults, DigestSales
from .node import HEARTBEAT, TIMEOUT
from .show import Check, NodeView, Snapshot, Stage, stage_for

__all__ = ["DemoError", "play"]

JOBS = 100
LATE = 6  # files that are only half there when their job first comes
SLOTS = 4  # per node
PAUSES = (0.2, 0.45)  # seconds that a job waits beside its work
LOOK = 0.1  # seconds between two looks at the database
PATIENCE = 60.0  # seconds; the demo takes a fifth of it, a busy machine perhaps half
GRACE = 10.0  # seconds for a process to end when told to

PACKAGE_PARENT = Path(__file__).parents[2]


class DemoError(PgSchedulerError, RuntimeError):
    """The demo could not be played: a process did not start, or ended unasked."""


def play(*, keep: bool = False, as_json: bool = False) -> int:
    """Play it; 0 if nothing was lost or doubled, every result is right, and the kill took running jobs over."""
    with _cleaning_up() as stack:
        stage = stage_for(as_json)
        stack.callback(stage.close)
        reckoning = _Play(stack, stage, keep).play()
        after = _farewell(reckoning)
        stage.end(reckoning["ok"], _checks(reckoning), after)
        if as_json:
            print(json.dumps(reckoning, indent=2), flush=True)
        return 0 if reckoning["ok"] else 1


@contextmanager
def _cleaning_up() -> Iterator[ExitStack]:
    """A stack that is unwound whole, also after Ctrl-C and SIGTERM, and is not interrupted while at it."""

    def end(_number: int, _frame: object) -> NoReturn:
        raise KeyboardInterrupt

    ending = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    previous = {number: signal.signal(number, end) for number in ending}
    try:
        with ExitStack() as stack:
            try:
                yield stack
            finally:
                for number in ending:
                    signal.signal(number, signal.SIG_IGN)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class _Process:
    """A process of ours that ends when its standard input is closed, or sooner."""

    def __init__(self, module: str, *arguments: object, log: Path, out: int = subprocess.DEVNULL) -> None:
        path = os.pathsep.join(filter(None, [str(PACKAGE_PARENT), os.environ.get("PYTHONPATH")]))
        self._log = log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                # -P: a file in the current directory must not stand in for a module.
                [sys.executable, "-P", "-m", f"pgscheduler.demo.{module}", *map(str, arguments)],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=errors,
                env={**os.environ, "PYTHONPATH": path},
                start_new_session=True,  # Ctrl-C is for us; we tell it
            )
        self.pid = self._process.pid

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    @property
    def output(self) -> IO[bytes]:
        assert self._process.stdout is not None
        return self._process.stdout

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def last_words(self) -> str:
        text = self._log.read_text(errors="replace").strip()
        return text.splitlines()[-1] if text else "it said nothing"

    def stop(self) -> int:
        """Close its input, wait, and kill it if need be; its exit status."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            return self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


class _Node(_Process):
    def __init__(self, label: str, dsn: str, folder: Path) -> None:
        super().__init__("node", dsn, folder, SLOTS, log=folder / f"node-{label}.log")
        self.label = label
        self.killed = False


class _Play:
    """One performance."""

    def __init__(self, stack: ExitStack, stage: Stage, keep: bool) -> None:
        self._stack = stack
        self._stage = stage
        self._keep = keep
        self._began = time.monotonic()
        self._keeper: _Process | None = None  # holds the server of --keep
        self._cast: list[_Node] = []
        self._labels: dict[str, str] = {}  # node id -> A, B
        self._deliveries: dict[str, Delivery] = {}
        self._told: set[object] = set()  # what the audience knows already
        self._snapshot = Snapshot()

    def play(self) -> dict[str, Any]:
        """All acts; what is returned is the summary, read back from the history."""
        self._folder = Path(tempfile.mkdtemp(prefix="pgscheduler-demo-"))
        self._stack.callback(self._remove_folder)
        self._say("dim", f"making {JOBS} files of sales in {self._folder}")
        self._dsn = self._start_server()
        self._scheduler = self._stack.enter_context(Scheduler(self._configuration()))
        with psycopg.connect(self._dsn) as connection:
            connection.execute(LEDGER)
        self._start_nodes()
        scheduled = self._schedule()
        killed = self._watch(scheduled)
        exits = {node.label: node.stop() for node in self._cast}
        found = self._reckon(scheduled, killed, exits)
        if self._keep and self._keeper is not None:
            found["kept"] = {"dsn": self._dsn, "pid": self._keeper.pid, "files": str(self._folder)}
            self._keeper = None  # from here on it is the user's
        return found

    # Act one: the cast.

    def _start_server(self) -> str:
        if not self._keep:
            # A port in the DSN, because PGPORT in the environment would stand in for it.
            server = self._stack.enter_context(embedded.start(settings={"port": "5432"}))
            self._say("", "PostgreSQL is up, private and temporary")
            return server.dsn
        self._keeper = _Process("server", self._folder, log=self._folder / "server.log", out=subprocess.PIPE)
        self._stack.callback(self._stop_keeper)
        dsn = self._keeper.output.readline().decode().strip()
        self._keeper.output.close()
        if not dsn:
            raise DemoError(f"PostgreSQL did not start: {self._keeper.last_words()}")
        self._say("", f"PostgreSQL is up, and stays: {dsn}")
        return dsn

    def _stop_keeper(self) -> None:
        if self._keeper is not None:
            self._keeper.signal(signal.SIGTERM)
            self._keeper.stop()

    def _remove_folder(self) -> None:
        if not self._keep or self._keeper is not None or self._snapshot.total == 0:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _configuration(self) -> SchedulerConfig:
        silent = structlog.make_filtering_bound_logger("critical")
        quiet = structlog.wrap_logger(structlog.PrintLogger(sys.stderr), wrapper_class=silent)
        return SchedulerConfig(dsn=self._dsn, create_schema=True, logger=quiet)

    def _start_nodes(self) -> None:
        for label in ("A", "B"):
            node = _Node(label, self._dsn, self._folder)
            self._cast.append(node)
            self._stack.callback(node.stop)
        starting = tuple(NodeView(node.label, node.pid, "starting", None, 0, SLOTS, 0) for node in self._cast)
        self._stage.show(self._now, Snapshot(nodes=starting))
        self._deliveries = generate(self._folder / "inbox", JOBS, LATE, seed=random.randrange(2**32))  # noqa: S311
        self._until(lambda: len(self._present()) == 2, "the two nodes did not start")
        for node in self._cast:
            self._say("green", f"node {node.label} is up: pid {node.pid}, {SLOTS} slots")

    def _present(self) -> list[NodeRecord]:
        by_pid = {node.pid: node.label for node in self._cast}
        found = [record for record in self._scheduler.nodes() if record.pid in by_pid]
        self._labels = {record.id: by_pid[record.pid] for record in found}
        return found

    # Act two: the work.

    def _schedule(self) -> dict[int, str]:
        """Store the jobs; file name by job id."""
        self._scheduler.schedule(CountResults(self._folder))
        expression = getattr(CountResults.config.schedule, "expression", "")
        self._say("", f"count_results is scheduled: every two seconds, {expression}")
        dice = random.Random()  # noqa: S311
        common = DigestSales.config
        self._scheduler.schedule_many(
            DigestSales(
                self._folder,
                JobConfig.one_time(
                    "digest_sales",
                    {"file": name, "pause": round(dice.uniform(*PAUSES), 3)},
                    key=name,
                    retries=common.retries,
                    backoff=common.backoff,
                ),
            )
            for name in self._deliveries
        )
        stored = self._stored_jobs()
        self._say(
            "",
            f"{JOBS} one-time jobs are scheduled in one transaction; {LATE} of their files are still being written",
        )
        return stored

    def _stored_jobs(self) -> dict[int, str]:
        """What was stored, from live jobs and history alike: the nodes are quick."""
        with psycopg.connect(self._dsn) as connection:
            rows = connection.execute(
                "select id, key from public.pgscheduler_jobs where name = 'digest_sales'"
                " union select job_id, key from public.pgscheduler_runs where name = 'digest_sales'"
            ).fetchall()
        return dict(rows)

    # Act three: the kill, and what comes of it.

    def _watch(self, scheduled: dict[int, str]) -> dict[str, Any]:
        killed: dict[str, Any] = {}

        def done() -> bool:
            runs = self._look(scheduled)
            if not killed and self._snapshot.completed >= JOBS // 2:
                killed.update(self._kill(scheduled, self._snapshot.completed))
            counted = self._snapshot.counts[-1][1] if self._snapshot.counts else 0
            finished = not self._snapshot.running + self._snapshot.retrying + self._snapshot.waiting
            return bool(runs) and finished and counted == JOBS

        with suppress(TimeoutError):  # the reckoning says what is missing
            self._until(done, "", raising=TimeoutError)
        return killed

    def _kill(self, scheduled: dict[int, str], completed: int) -> dict[str, Any]:
        """kill -9 the busier node, provided that it holds jobs at this very moment."""
        node = max(
            self._cast, key=lambda n: sum(v.running for v in self._snapshot.nodes if v.label == n.label)
        )
        own = {id_ for id_, label in self._labels.items() if label == node.label}
        # Stopped first, so that what the database says of it is still true when it dies.
        node.signal(signal.SIGSTOP)
        time.sleep(0.03)
        held = [job for job in self._scheduler.jobs(state=JobState.RUNNING, limit=1000) if job.node_id in own]
        if not any(job.id in scheduled for job in held):
            node.signal(signal.SIGCONT)
            return {}
        at = datetime.now(UTC)
        node.signal(signal.SIGKILL)
        node.killed = True
        names = ", ".join(sorted((job.key or job.name).removesuffix(".csv") for job in held))
        self._say("bold red", f"kill -9 node {node.label} (pid {node.pid}) while it runs {names}")
        return {
            "node": node.label,
            "pid": node.pid,
            "signal": "SIGKILL",
            "at": at.isoformat(),
            "completed_before": completed,
            "running": sorted(job.id for job in held if job.id in scheduled),
        }

    def _look(self, scheduled: dict[int, str]) -> list[RunRecord]:
        """One look: tell what is new, let late files arrive, and draw the picture."""
        for node in self._cast:
            if node.ended and not node.killed:
                raise DemoError(f"node {node.label} ended unasked: {node.last_words()}")
        live = self._scheduler.jobs(name="digest_sales", limit=1000)
        runs = self._scheduler.runs(name="digest_sales", limit=2000)
        counts = self._scheduler.runs(name="count_results", limit=1000)
        nodes = self._present()
        for run in sorted(runs + counts, key=lambda r: r.finished_at):
            self._tell(run)
        for record in nodes:
            label = self._labels[record.id]
            if not record.alive and not record.stopped_at and self._new(("silent", label)):
                self._say("red", f"node {label} is given up: no heartbeat for {TIMEOUT:g} s")
        completed = [run for run in runs if run.outcome is Outcome.COMPLETED]
        running = [job for job in live if job.state is JobState.RUNNING]
        held = Counter(self._labels.get(job.node_id or "", "?") for job in running)
        done = Counter(self._labels.get(run.node_id or "", "?") for run in completed)
        again = sum(job.state is JobState.PENDING and job.failures + job.stalls > 0 for job in live)
        self._snapshot = Snapshot(
            total=len(scheduled),
            completed=len({run.job_id for run in completed}),
            running=len(running),
            retrying=again,
            waiting=len(live) - len(running) - again,
            nodes=tuple(
                self._view(node, held, done) for node in sorted(nodes, key=lambda n: self._labels[n.id])
            ),
            counts=tuple(
                (f"{run.scheduled_at:%H:%M:%S}", run.result["files"])
                for run in sorted(counts, key=lambda r: r.scheduled_at)
                if run.outcome is Outcome.COMPLETED
            ),
        )
        self._stage.show(self._now, self._snapshot)
        return runs

    def _view(self, node: NodeRecord, held: Counter[str], done: Counter[str]) -> NodeView:
        label = self._labels[node.id]
        age = max((datetime.now(UTC) - node.heartbeat_at).total_seconds(), 0.0)
        state = "alive" if age < 3 * HEARTBEAT else "silent"
        if any(ours.label == label and ours.killed for ours in self._cast):
            state = "killed"
        if not node.alive:
            state = "stopped" if node.stopped_at else "dead"
        return NodeView(label, node.pid, state, age, held[label], node.slots, done[label])

    def _tell(self, run: RunRecord) -> None:
        """What a new line of history means to the audience, if anything."""
        if not self._new((run.id, run.scheduled_at, run.outcome)):
            return
        node = self._labels.get(run.node_id or "", "?")
        if run.name == "count_results":
            if run.outcome is not Outcome.COMPLETED:
                self._say(
                    "yellow", f"count_results of {run.scheduled_at:%H:%M:%S}: {run.outcome} on node {node}"
                )
            return
        key = run.key or ""
        if run.outcome is Outcome.COMPLETED:
            if ("stalled", key) in self._told:
                self._say(
                    "bold green", f"{key} taken over by node {node} and completed, attempt {run.attempt}"
                )
            elif run.attempt > 1:
                self._say("green", f"{key} completed by node {node}, attempt {run.attempt}")
        elif run.outcome is Outcome.STALLED:
            self._told.add(("stalled", key))
            self._say("yellow", f"{key} stalled on node {node}: due again")
        else:
            self._say("magenta", f"{key} {run.outcome} on node {node}, attempt {run.attempt}: {_reason(run)}")
            self._deliveries[key].finish()

    def _new(self, fact: object) -> bool:
        known = fact in self._told
        self._told.add(fact)
        return not known

    # Act four: the reckoning.

    def _reckon(
        self, scheduled: dict[int, str], killed: dict[str, Any], exits: dict[str, int]
    ) -> dict[str, Any]:
        """Read everything back. Nothing here is remembered from the show but what was asked for."""
        by_job: dict[int, list[RunRecord]] = defaultdict(list)
        for run in self._scheduler.runs(name="digest_sales", limit=10_000):
            by_job[run.job_id].append(run)
        good = {id_: [r for r in by_job[id_] if r.outcome is Outcome.COMPLETED] for id_ in scheduled}
        stalled = {id_: [r for r in by_job[id_] if r.outcome is Outcome.STALLED] for id_ in scheduled}
        failed = {id_: [r for r in by_job[id_] if r.outcome is Outcome.FAILED] for id_ in scheduled}
        victims = {node_id for node_id, label in self._labels.items() if label == killed.get("node")}

        def was_taken_over(id_: int) -> bool:
            return any(
                s.node_id in victims and g.node_id not in victims for s in stalled[id_] for g in good[id_]
            )

        taken_over = [id_ for id_ in scheduled if was_taken_over(id_)]
        resets = [r.finished_at for id_ in taken_over for r in stalled[id_]]
        entries = self._ledger()
        expected = {d.expected.file: d.expected for d in self._deliveries.values()}
        entered = Counter(file for file, _, _ in entries)
        totals = sum(cents for _, cents, _ in entries), sum(e.cents for e in expected.values())
        wrong = [f for f, e in expected.items() if not result_is_right(self._folder / "results", e)]
        wrong_entries = [
            f for f, cents, sha256 in entries if (expected[f].cents, expected[f].sha256) != (cents, sha256)
        ]
        recurring = self._recurring()
        lost = (
            sum(not good[id_] for id_ in scheduled)
            + (JOBS - len(scheduled))
            + sum(f not in entered for f in expected)
        )
        doubled = (
            sum(len(runs) > 1 for runs in good.values())
            + sum(count > 1 for count in entered.values())
            + recurring["doubled"]
        )
        survivors = [label for label in exits if label != killed.get("node")]
        ok = (
            not lost
            and not doubled
            and not wrong
            and not wrong_entries
            and totals[0] == totals[1]
            and len(taken_over) >= 1
            and not recurring["missing"]
            and recurring["completed"] > 0
            and all(exits[label] == 0 for label in survivors)
        )
        return {
            "ok": ok,
            "scheduled": len(scheduled),
            "completed": sum(bool(runs) for runs in good.values()),
            "retried": sum(bool(failed[id_]) and bool(good[id_]) for id_ in scheduled),
            "taken_over": len(taken_over),
            "lost": lost,
            "doubled": doubled,
            "wrong_results": len(wrong) + len(wrong_entries),
            "rows": sum(e.rows for e in expected.values()),
            "ledger_cents": totals[0],
            "expected_cents": totals[1],
            "recurring": recurring,
            "killed": {**killed, "running": len(killed["running"])} if killed else None,
            "noticed_after_seconds": _seconds(killed, min(resets)) if resets else None,
            "exits": exits,
            "seconds": round(self._now, 1),
        }

    def _ledger(self) -> list[tuple[str, int, str]]:
        with psycopg.connect(self._dsn) as connection:
            return connection.execute("select file, cents, sha256 from public.demo_ledger").fetchall()

    def _recurring(self) -> dict[str, Any]:
        """Every occurrence from the first to the last: completed once, or skipped with a reason, or missing."""
        runs = self._scheduler.runs(name="count_results", limit=10_000)
        done = Counter(run.scheduled_at for run in runs if run.outcome is Outcome.COMPLETED)
        skipped = {run.scheduled_at for run in runs if run.outcome is Outcome.SKIPPED}
        known = sorted({*done, *skipped})
        schedule, expected = CountResults.config.schedule, list(known[:1])
        assert schedule is not None
        while expected and expected[-1] < known[-1]:
            following = schedule.next_after(expected[-1])
            assert following is not None
            expected.append(following)
        late = sorted(
            (run.started_at - run.scheduled_at) / timedelta(milliseconds=1)
            for run in runs
            if run.outcome is Outcome.COMPLETED and run.started_at is not None and run.attempt == 1
        )
        return {
            "schedule": getattr(schedule, "expression", ""),
            "completed": len(done),
            "skipped": len(skipped - set(done)),
            "missing": len(set(expected) - set(known)),
            "doubled": sum(count > 1 for count in done.values()),
            "late_ms_median": round(statistics.median(late), 1) if late else None,
            "late_ms_worst": round(late[-1], 1) if late else None,
        }

    # Helpers.

    @property
    def _now(self) -> float:
        return time.monotonic() - self._began

    def _say(self, style: str, text: str) -> None:
        self._stage.event(self._now, style, text)

    def _until(self, done: Callable[[], bool], failure: str, raising: type[Exception] = DemoError) -> None:
        deadline = time.monotonic() + PATIENCE
        while not done():
            if time.monotonic() > deadline:
                raise raising(failure)
            for node in self._cast:
                if node.ended and not node.killed:
                    raise DemoError(f"node {node.label} ended unasked: {node.last_words()}")
            time.sleep(LOOK)


def _ms(value: float | None) -> str:
    return "?" if value is None else f"{value:.0f} ms"


def _reason(run: RunRecord) -> str:
    text = run.error or run.reason or ""
    last = text.strip().splitlines()[-1] if text.strip() else ""
    return last.rpartition("Error: ")[2].removeprefix(f"{run.key} is ")


def _seconds(killed: dict[str, Any], at: datetime) -> float:
    return round((at - datetime.fromisoformat(killed["at"])).total_seconds(), 1)


def _checks(found: dict[str, Any]) -> list[Check]:
    """The summary as lines."""
    killed, recurring = found["killed"] or {}, found["recurring"]
    other = {"A": "B", "B": "A"}.get(killed.get("node", ""), "?")
    euros = f"{found['ledger_cents'] / 100:,.2f}"
    same = found["ledger_cents"] == found["expected_cents"]
    noticed = found["noticed_after_seconds"]
    return [
        Check(
            found["completed"] == found["scheduled"],
            "jobs",
            f"{found['completed']} of {found['scheduled']} completed",
        ),
        Check(not found["lost"], "lost", str(found["lost"])),
        Check(not found["doubled"], "doubled", str(found["doubled"])),
        Check(
            found["taken_over"] > 0,
            "taken over",
            str(found["taken_over"]),
            f"node {killed['node']} was killed with {killed['running']} running; due again after {noticed} s, done by {other}"
            if killed and noticed is not None
            else "no running job was taken over",
        ),
        Check(True, "retried", str(found["retried"]), "their files were still being written"),
        Check(
            not recurring["missing"] and recurring["completed"] > 0,
            "recurring",
            f"{recurring['completed']} completed",
            f"{recurring['skipped']} skipped, {recurring['missing']} missing; "
            f"started {_ms(recurring['late_ms_median'])} (median) after their second, beside full slots",
        ),
        Check(
            same and not found["wrong_results"],
            "results",
            "all right" if not found["wrong_results"] else f"{found['wrong_results']} wrong",
            f"{found['rows']:,} sales, {euros} in the ledger, entered once each"
            if same
            else f"{euros} is not what was sold",
        ),
    ]


def _farewell(found: dict[str, Any]) -> list[str]:
    kept = found.get("kept")
    if kept is None:
        return [
            f"Took {found['seconds']} s. Everything is removed again; `pgscheduler demo --keep` leaves the database."
        ]
    return [
        f"The database is up: {kept['dsn']}",
        f"  export PGSCHEDULER_DSN='{kept['dsn']}'",
        "  pgscheduler runs --outcome stalled",
        "  pgscheduler nodes",
        f"Remove it, and the files in {kept['files']}: kill {kept['pid']}",
    ]
