"""The nodes of a fault test: starts them, stops them, and remembers what was done to which process and when."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.chaos.history import Began, Ended, Life, boottime, read
from tests.chaos.hosts import Host
from tests.chaos.worker import Options
from tests.support import ROOT
from tests.support.clockskew import SkewedClock
from tests.support.proxy import Proxy

__all__ = ["Fleet", "Node", "Process"]

Span = tuple[float, float]


class Process:
    """One process of a node, from its start to its end."""

    def __init__(self, options: Options, directory: Path, env: dict[str, str], skew: float) -> None:
        self.name = options.process
        self.skew = skew
        self.events = Path(options.events)
        self.asked_to_stop: float | None = None
        self.ended: float | None = None
        self.spans: dict[str, list[Span]] = {"stopped": [], "cut_off": []}  # guarded by _lock
        self._open: dict[str, float] = {}  # spans that have begun; guarded by _lock
        self._lock = threading.Lock()
        self.over = threading.Event()
        self.stderr = directory / f"{self.name}.stderr"
        self.started = boottime()
        with self.stderr.open("wb") as stderr:
            self._popen = subprocess.Popen(
                [sys.executable, "-u", "-m", "tests.chaos.worker", options.to_json()],
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), **env},
                start_new_session=True,
            )
        self.pid = self._popen.pid
        threading.Thread(target=self._wait, name=f"wait-{self.name}", daemon=True).start()

    @property
    def alive(self) -> bool:
        return not self.over.is_set()

    def signal(self, number: signal.Signals) -> None:
        if number is signal.SIGTERM and self.asked_to_stop is None:
            self.asked_to_stop = boottime()
        self._popen.send_signal(number)

    def heard(self) -> dict[str, dict[str, Any]]:
        """What it said of itself, the last of each kind."""
        if not self.events.exists():
            return {}
        lines = [json.loads(line) for line in self.events.read_text().splitlines()]
        return {line["event"]: line for line in lines}

    def begin(self, kind: str) -> None:
        with self._lock:
            self._open.setdefault(kind, boottime())

    def end(self, kind: str) -> None:
        with self._lock:
            began = self._open.pop(kind, None)
            if began is not None:
                self.spans[kind].append((began, boottime()))

    def life(self, journal: Path) -> Life:
        """As the history keeps it."""
        heard = self.heard()
        for kind in list(self._open):
            self.end(kind)
        return Life(
            process=self.name,
            node=heard.get("ready", {}).get("node"),
            pid=self.pid,
            started=self.started,
            ready=heard.get("ready", {}).get("at"),
            asked_to_stop=self.asked_to_stop,
            left=heard.get("leaving", {}).get("at"),
            ended=self.ended,
            exit_code=self._popen.returncode if self.ended is not None else None,
            clean=heard.get("stopped", {}).get("clean"),
            stopped=tuple(self.spans["stopped"]),
            cut_off=tuple(self.spans["cut_off"]),
            starved=tuple(self._starved(journal)),
            skew=self.skew,
        )

    def _starved(self, journal: Path) -> Iterator[Span]:
        """When its own jobs held the GIL, or took all memory that it may have: they say so themselves."""
        if not journal.exists():
            return
        began: dict[str, float] = {}
        for record in read(journal):
            if isinstance(record, Began) and record.name in ("grips", "hogs"):
                began[record.run_id] = record.at
            elif isinstance(record, Ended) and record.run_id in began:
                yield began.pop(record.run_id), record.at
        for at in began.values():
            yield at, self.ended if self.ended is not None else boottime()

    def _wait(self) -> None:
        self._popen.wait()
        self.ended = boottime()
        # Its descendants (isolated jobs) end by themselves when it is gone; that is part of the test.
        self.over.set()

    def close(self) -> None:
        """Kill it with all its descendants."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.over.wait(10)


class Node:
    """A place where a worker runs: its way to the database, its clock, its present process."""

    def __init__(
        self,
        number: int,
        options: Options,
        directory: Path,
        *,
        host: Host | None = None,
        proxy: Proxy | None = None,
        clock: SkewedClock | None = None,
    ) -> None:
        self.number = number
        self.host = host
        self.proxy = proxy
        self.clock = clock
        self.skew = 0.0
        self.processes: list[Process] = []
        self.limit: Path | None = None  # the memory cgroup of its processes
        self._options = options
        self._directory = directory
        self.lock = threading.Lock()  # one fault at a time on one node

    @property
    def process(self) -> Process:
        return self.processes[-1]

    def journal(self, process: Process) -> Path:
        return self._directory / f"{process.name}.jsonl"

    def start(self) -> Process:
        """A new process in this place."""
        name = f"n{self.number}.{len(self.processes)}"
        options = dataclasses.replace(
            self._options,
            process=name,
            journal=str(self._directory / f"{name}.jsonl"),
            events=str(self._directory / f"{name}.events"),
        )
        process = Process(options, self._directory, self.clock.env if self.clock else {}, self.skew)
        if self.limit is not None:
            with suppress(OSError):  # it has died already
                (self.limit / "cgroup.procs").write_text(str(process.pid))
        self.processes.append(process)
        return process

    def step_clock(self, seconds: float) -> None:
        assert self.clock is not None
        self.clock.set(seconds)
        self.skew = self.process.skew = seconds

    @contextmanager
    def during(self, kind: str) -> Iterator[None]:
        """Its present process is stopped, or cut off, in this block."""
        process = self.process
        process.begin(kind)
        try:
            yield
        finally:
            process.end(kind)


class Fleet:
    """All nodes; replaces those that died by themselves."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes
        self._closing = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="chaos-keeper", daemon=True)

    def start(self) -> None:
        for node in self.nodes:
            node.start()
        self._keeper.start()

    def _keep(self) -> None:
        """A supervisor: what ended without being asked is started again, as a container would be."""
        while not self._closing.wait(0.2):
            for node in self.nodes:
                if node.lock.acquire(blocking=False):
                    try:
                        if not node.process.alive and not self._closing.is_set():
                            node.start()
                    finally:
                        node.lock.release()

    def await_ready(self, seconds: float) -> list[Node]:
        """Wait until each node says that it is; returns those that did not in time."""
        end = boottime() + seconds
        waiting = list(self.nodes)
        while waiting and boottime() < end:
            waiting = [node for node in waiting if "ready" not in node.process.heard()]
            self._closing.wait(0.05)
        return waiting

    def shutdown(self, seconds: float) -> None:
        """SIGTERM to all, and wait; what does not end in time is left to be killed by `close`."""
        self._closing.set()
        self._keeper.join()
        for node in self.nodes:
            if node.process.alive:
                node.process.signal(signal.SIGTERM)
        end = boottime() + seconds
        for node in self.nodes:
            node.process.over.wait(max(end - boottime(), 0.0))

    def lives(self) -> list[Life]:
        return [process.life(node.journal(process)) for node in self.nodes for process in node.processes]

    def journals(self) -> list[Path]:
        found = [node.journal(process) for node in self.nodes for process in node.processes]
        return [path for path in found if path.exists()]

    def close(self) -> None:
        """Nothing of it is left."""
        self._closing.set()
        if self._keeper.ident is not None:
            self._keeper.join(5)
        for node in self.nodes:
            for process in node.processes:
                process.close()
