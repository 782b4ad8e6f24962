"""One run of the fault test: a server of its own, nodes, clients and the nemesis, and in the end the history.

Order: everything is made, the recurring jobs are stored, nodes and clients start; faults for the time that was
asked for; then all is made whole, clients stop, and what is due gets `settle` seconds to be done. The nodes are
asked to stop like in a deploy, and the rows are read last, when nothing moves any more.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psycopg
from psycopg import conninfo

from tests.chaos.fleet import Fleet, Node
from tests.chaos.history import End, History, Record, Settings, append, boottime
from tests.chaos.hosts import Network, why_not
from tests.chaos.jobs import EFFECTS
from tests.chaos.nemesis import FAULTS, Ground, Nemesis
from tests.chaos.observer import Observer, read_rows, sample
from tests.chaos.worker import Options
from tests.chaos.workload import Client, Workload
from tests.support.clockskew import SkewedClock, build_preload
from tests.support.clockskew import why_not as no_skew
from tests.support.postgres import PrivateServer, apply_schema
from tests.support.proxy import Proxy

__all__ = ["Plan", "Result", "compare_clocks", "gather", "run", "settings_of", "settle"]

_DISK = "400m"  # the server's file system, where one can be mounted
_MEMORY = 320 << 20  # bytes that a node and its isolated jobs may have
_SERVER = {
    "max_connections": "80",
    "max_wal_size": "64MB",
    "shared_buffers": "32MB",
    "log_min_messages": "fatal",
    "tcp_keepalives_idle": "5",
    # A node that vanished in mid-transaction must not keep its locks for longer than its jobs are waited for.
    "tcp_user_timeout": "4000",
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be tried."""

    minutes: float = 3.0
    seed: int = 1
    nodes: int = 4
    faults: tuple[str, ...] = tuple(FAULTS)
    plant: str | None = None
    keep: Path | None = None  # where the history and the nodes' own words stay
    settle: float = 45.0
    gap: float = 3.0  # seconds between two faults of a lane
    pause: float = 0.25  # seconds between two calls of a client
    clients: int = 2


@dataclass(frozen=True)
class Result:
    """What was observed, and what went wrong with the test itself."""

    history: History
    #: Errors of clients that no promise allows, nodes that did not come back, faults that could not be played.
    surprises: list[str]
    faults: dict[str, int]
    calls: int


def run(plan: Plan, tell: Callable[[str], None] = lambda _: None) -> Result:
    """Play it. Nothing is left behind but what `keep` names."""
    with ExitStack() as stack:
        directory = plan.keep or Path(stack.enter_context(TemporaryDirectory(prefix="pgscheduler-chaos-")))
        directory.mkdir(parents=True, exist_ok=True)
        return _World(plan, directory, stack, tell).play()


class _World:
    def __init__(self, plan: Plan, directory: Path, stack: ExitStack, tell: Callable[[str], None]) -> None:
        self.plan = plan
        self.tell = tell
        self.directory = directory
        self.journal = directory / "harness.jsonl"
        options = Options(process="", dsn="", journal="", events="", plant=plan.plant)
        self.settings = settings_of(
            options, seed=plan.seed, nodes=plan.nodes, faults=plan.faults, settle=plan.settle
        )
        network = self._network(stack)
        self.disk = self._disk(stack)
        self.server = stack.enter_context(self._serve(network, stack))
        apply_schema(self.server.dsn)
        with psycopg.connect(self.server.dsn, autocommit=True) as connection:
            connection.execute(EFFECTS)
        self.limit = self._limit(stack)
        self.fleet = Fleet(self._nodes(options, network, stack))
        stack.callback(self.fleet.close)

    # --- the parts --------------------------------------------------------------------------------------

    def _network(self, stack: ExitStack) -> Network | None:
        if not {"partition", "thin"} & set(self.plan.faults):
            return None
        reason = why_not()
        if reason is not None:
            self.tell(f"no network of the nodes' own: {reason}")
            return None
        return stack.enter_context(Network(max(self.plan.nodes - 2, 1)))

    def _disk(self, stack: ExitStack) -> Path | None:
        """A small file system in memory, to be filled."""
        if "disk" not in self.plan.faults or os.geteuid() != 0:
            return None
        mount = _open_directory(stack, "disk")
        command = ["mount", "-t", "tmpfs", "-o", f"size={_DISK},mode=755", "tmpfs", str(mount)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode != 0:
            self.tell(f"no small file system: {done.stderr.strip()}")
            return None
        stack.callback(subprocess.run, ["umount", "-l", str(mount)], check=False)
        return mount

    def _serve(self, network: Network | None, stack: ExitStack) -> PrivateServer:
        settings = dict(_SERVER)
        if network is not None:
            access = _open_directory(stack, "hba") / "pg_hba.conf"
            access.write_text(f"local all all trust\nhost all all {network.subnet} trust\n")
            settings |= {
                "listen_addresses": ",".join(network.addresses),
                "hba_file": str(access),
                "port": str(20000 + os.getpid() % 20000),
            }
        home = None if self.disk is None else self.disk / "server"
        return PrivateServer(home, settings=settings)

    def _limit(self, stack: ExitStack) -> Path | None:
        """A memory cgroup for each node under this one."""
        if "memory" not in self.plan.faults:
            return None
        for root, name in (
            (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
            (Path("/sys/fs/cgroup"), "memory.max"),
        ):
            group = root / f"chaos-{os.getpid()}-{secrets.token_hex(3)}"
            try:
                group.mkdir()
            except OSError:
                continue
            stack.callback(_remove_group, group)
            if (group / name).exists():
                return group
        return None

    def _limited(self, number: int, stack: ExitStack) -> Path | None:
        if self.limit is None:
            return None
        group = self.limit / f"n{number}"
        try:
            group.mkdir()
            stack.callback(_remove_group, group)
            for name in ("memory.limit_in_bytes", "memory.max"):
                if (group / name).exists():
                    (group / name).write_text(str(_MEMORY))
                    return group
        except OSError as error:
            self.tell(f"no memory limit: {error}")
        return None

    def _nodes(self, options: Options, network: Network | None, stack: ExitStack) -> list[Node]:
        """The first is beside the server, the second behind a proxy, the others are hosts of their own."""
        preload = None
        if "clock" in self.plan.faults and no_skew() is None:
            preload = build_preload(_open_directory(stack, "skew"))
        nodes = []
        for number in range(self.plan.nodes):
            dsn, host, proxy, clock = self.server.dsn, None, None, None
            if network is not None and number >= 2:
                host = network.host(number - 2)
                dsn = conninfo.make_conninfo(dsn, host=host.server)
            elif number % 2 == 1:
                proxy = stack.enter_context(Proxy(self.server.dsn))
                dsn = proxy.dsn
            if preload is not None and number % 2 == 0:
                clock = SkewedClock(preload)
                stack.callback(clock.close)
            node = Node(
                number,
                replace(options, dsn=dsn, space=host.space if host else None),
                self.directory,
                host=host,
                proxy=proxy,
                clock=clock,
            )
            node.limit = self._limited(number, stack)
            nodes.append(node)
        return nodes

    # --- the play ---------------------------------------------------------------------------------------

    def play(self) -> Result:
        plan, dsn = self.plan, self.server.dsn
        append(self.journal, self.settings)
        surprises: list[str] = []
        with ExitStack() as stack:
            compare_clocks(dsn, self.journal)
            client = Client("nemesis", dsn, self.journal, f"{plan.seed}-nemesis")
            stack.callback(client.close)
            client.define()
            observer = Observer(dsn, self.journal)
            observer.start()
            self.fleet.start()
            late = self.fleet.await_ready(60)
            surprises += [f"node {node.number} did not start: {_last_words(node)}" for node in late]
            workload = Workload([dsn] * plan.clients, self.journal, plan.seed, plan.pause)
            stack.callback(workload.close)
            workload.start()
            ground = Ground(
                fleet=self.fleet,
                server=self.server,
                client=client,
                settings=self.settings,
                journal=self.journal,
                disk=self.disk,
                limits=all(node.limit is not None for node in self.fleet.nodes),
            )
            nemesis = Nemesis(ground, list(plan.faults), plan.seed, plan.gap, self.tell)
            nemesis.run(plan.minutes * 60)
            surprises += nemesis.failures
            self.tell(f"faults are over; {plan.settle:g} s at most for what is due")
            if not workload.stop(60):
                surprises.append("a client did not get through after the last fault")
            late = self.fleet.await_ready(60)
            surprises += [f"node {node.number} did not come back: {_last_words(node)}" for node in late]
            surprises += workload.surprises + client.surprises
            faults_over = boottime()
            settle(dsn, self.settings, faults_over + plan.settle)
            self.fleet.shutdown(self.settings.shutdown_timeout + 20)
            for life in self.fleet.lives():
                if life.ended is None:
                    surprises.append(f"{life.process} did not end after SIGTERM")
            observer.stop()
            rows = read_rows(dsn)
            rows_read = boottime()
            compare_clocks(dsn, self.journal)
            calls = client.calls + sum(each.calls for each in workload.clients)
        append(self.journal, End(faults_over=faults_over, rows_read=rows_read))
        history = gather(self.journal, rows, self.fleet, self.directory)
        return Result(history, surprises, nemesis.done, calls)


# --- what a trial of another kind needs as well ----------------------------------------------------------


def settings_of(options: Options, **more: Any) -> Settings:
    """What the nodes are started with, for whoever judges them."""
    names = {field.name for field in fields(Settings)} & {field.name for field in fields(Options)}
    return Settings(**{**{name: getattr(options, name) for name in names}, **more})


def compare_clocks(dsn: str, journal: Path) -> None:
    """Note the database's time beside ours."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        sample(connection, journal)


def settle(dsn: str, settings: Settings, until: float) -> None:
    """Wait until no one-time job is left, and each recurring one has had time to come again."""
    query = "select count(*) from pgscheduler_jobs where schedule is null"
    least = boottime() + 2 * settings.job_check_interval + settings.no_heartbeat_timeout
    while boottime() < until:
        # A fault that was late to begin may cut this connection too.
        with suppress(psycopg.OperationalError), psycopg.connect(dsn, autocommit=True) as connection:
            while boottime() < until:
                if connection.execute(query).fetchone() == (0,) and boottime() > least:
                    return
                time.sleep(0.2)
        time.sleep(0.2)


def gather(journal: Path, rows: Iterable[Record], fleet: Fleet, directory: Path) -> History:
    """Everything that was written down by whom, as one history, saved in `directory`."""
    for record in (*rows, *fleet.lives()):
        append(journal, record)
    history = History.load(journal, *fleet.journals())
    history.save(directory / "history.jsonl")
    return history


def _open_directory(stack: ExitStack, name: str) -> Path:
    """A temporary directory that the server's user can read; as root we are not that user."""
    path = Path(stack.enter_context(TemporaryDirectory(prefix=f"pgscheduler-chaos-{name}-")))
    path.chmod(0o755)
    return path


def _last_words(node: Node) -> str:
    words = node.process.stderr.read_text(errors="replace")
    return f"{json.dumps(node.process.heard())} {words[-1500:]}"


def _remove_group(group: Path) -> None:
    for _ in range(50):
        try:
            group.rmdir()
            return
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.1)  # what was in it is just ending
