"""One failover under load: nodes and clients as in the fault test, a blow, and in the end the history and figures.

Order: nodes and clients start and work for a while; the blow falls, and whoever is to take over does; work goes on;
clients stop, what is due is done, nodes stop, the rows are read. What happened is judged by the fault test's checker.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from tests.chaos.fleet import Fleet, Node
from tests.chaos.history import Away, End, Fault, History, append, boottime
from tests.chaos.jobs import EFFECTS
from tests.chaos.observer import Observer, read_rows
from tests.chaos.trial import compare_clocks, gather, settings_of, settle
from tests.chaos.worker import Options
from tests.chaos.workload import Client, Workload
from tests.support import eventually
from tests.support.postgres import apply_schema

__all__ = ["Figures", "Plan", "Result", "run"]

Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be tried. Times in seconds."""

    keep: Path  # where the history and the nodes' own words stay
    seed: int = 1
    nodes: int = 3
    clients: int = 2
    before: float = 12.0  # of work before the blow
    after: float = 20.0  # of work after the database is back
    pace: float = 0.05  # between two small jobs of the client whose jobs tell the rate
    settle: float = 45.0  # at most, for what is due in the end
    away: float = 90.0  # at most, until somebody has taken over
    crashed: bool = True  # the blow forgets what was not waited for: a crash, not a planned switchover
    lag: float = 0.0  # before the blow, in which the standby hears of nothing


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Seconds since the blow."""

    writable: float  # a new connection may write
    stored: float  # the first job that was stored afterwards
    begun: float  # the first of those that began
    rate: float  # jobs begun per second, before the blow
    full: float | None  # the end of the first second in which as many began as before (90 %); None: never

    def __str__(self) -> str:
        full = "never" if self.full is None else f"{self.full:.1f} s"
        return (
            f"writable again after {self.writable:.2f} s, first job stored after {self.stored:.2f} s and begun after"
            f" {self.begun:.2f} s; full rate ({self.rate:.0f}/s) after {full}"
        )


@dataclass(frozen=True, kw_only=True)
class Result:
    """What was observed. `lagged`, `blow` and `back` are of `boottime()`."""

    history: History
    figures: Figures
    lagged: float  # from here on the standby heard of nothing
    blow: float
    back: float
    surprises: list[str] = field(default_factory=list)


class _Pace:
    """A client that stores one small job after the other."""

    def __init__(self, dsn: str, journal: Path, plan: Plan) -> None:
        self.client = Client("pace", dsn, journal, f"{plan.seed}-pace")
        self._pause = plan.pace
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="failover-pace", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(30)

    def _work(self) -> None:
        while not self._stopping.wait(self._pause):
            self.client.store("work", {"seconds": 0.0, "pace": True})


def prepare(dsn: str) -> None:
    """The scheduler's tables, and the jobs' own."""
    apply_schema(dsn)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(EFFECTS)


def run(
    plan: Plan,
    dsn: str,
    strike: Callable[[], object],
    tell: Tell = lambda _: None,
    lag: Callable[[], object] = lambda: None,
) -> Result:
    """Play it on a prepared database. `strike` is the blow; it may return before somebody has taken over.

    `lag` is called `plan.lag` seconds before it.
    """
    plan.keep.mkdir(parents=True, exist_ok=True)
    journal = plan.keep / "harness.jsonl"
    options = Options(process="", dsn=dsn, journal="", events="")
    settings = settings_of(
        options, seed=plan.seed, nodes=plan.nodes, faults=("failover",), settle=plan.settle
    )
    append(journal, settings)
    surprises: list[str] = []
    with ExitStack() as stack:
        fleet = Fleet([Node(number, options, plan.keep) for number in range(plan.nodes)])
        stack.callback(fleet.close)
        compare_clocks(dsn, journal)
        observer = Observer(dsn, journal)
        observer.start()
        stack.callback(observer.stop)
        fleet.start()
        surprises += [f"node {node.number} did not start" for node in fleet.await_ready(60)]
        workload = Workload([dsn] * plan.clients, journal, plan.seed, 0.25)
        stack.callback(workload.close)
        pace = _Pace(dsn, journal, plan)
        stack.callback(pace.client.close)
        workload.start()
        pace.start()
        stack.callback(pace.stop)
        threading.Event().wait(plan.before)
        lag()
        lagged = boottime()
        threading.Event().wait(plan.lag)
        blow = boottime()
        strike()
        eventually(lambda: _writable(dsn), plan.away, "somebody to accept writes")
        back = boottime()
        tell(f"the blow fell; writes are accepted {back - blow:.2f} s later")
        append(journal, Fault(kind="failover", began=blow, ended=back, what="database"))
        append(journal, Away(began=blow, ended=back, kind="failover", crashed=plan.crashed))
        threading.Event().wait(plan.after)
        pace.stop()
        if not workload.stop(60):
            surprises.append("a client did not get through after the failover")
        surprises += [f"node {node.number} did not come back" for node in fleet.await_ready(60)]
        surprises += workload.surprises + pace.client.surprises
        over = boottime()
        settle(dsn, settings, over + plan.settle)
        fleet.shutdown(settings.shutdown_timeout + 20)
        observer.stop()
        rows = read_rows(dsn)
        rows_read = boottime()
        compare_clocks(dsn, journal)
        append(journal, End(faults_over=over, rows_read=rows_read))
        history = gather(journal, rows, fleet, plan.keep)
    figures = measure(history, blow, back)
    tell(str(figures))
    return Result(history=history, figures=figures, lagged=lagged, blow=blow, back=back, surprises=surprises)


def measure(history: History, blow: float, back: float) -> Figures:
    """What the clients and the jobs themselves wrote down."""
    fresh = {
        call.job_id: call.ended
        for call in history.calls
        if call.verb == "schedule" and call.answer == "ok" and call.schedule is None and call.began > back
    }
    starts = sorted(began.at for began in history.begans)
    before = [at for at in starts if blow - 8 <= at < blow]
    rate = len(before) / 8
    full = None
    at = back
    while at + 1 < starts[-1]:
        if bisect_left(starts, at + 1) - bisect_left(starts, at) >= 0.9 * rate:
            full = at + 1 - blow
            break
        at += 0.1
    return Figures(
        writable=back - blow,
        stored=min(fresh.values()) - blow,
        begun=min(b.at for b in history.begans if b.job_id in fresh and b.at > back) - blow,
        rate=rate,
        full=full,
    )


def _writable(dsn: str) -> bool:
    try:
        with psycopg.connect(dsn, connect_timeout=2, autocommit=True) as connection:
            connection.execute("create temporary table if not exists writable (x int)")
            return True
    except psycopg.Error:
        return False
