"""What a piece of work costs: time, processor time of server and client, write-ahead log, commits, dead tuples."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import psycopg

_TICK = 1e6 / os.sysconf("SC_CLK_TCK")  # microseconds
_PAGE = os.sysconf("SC_PAGE_SIZE")
_COUNTERS = """
select (pg_current_wal_lsn() - '0/0'::pg_lsn)::float8,
       (select xact_commit from pg_stat_database where datname = current_database()),
       (select coalesce(sum(n_tup_del + n_tup_upd), 0) from pg_stat_user_tables)
"""


@dataclasses.dataclass
class Cost:
    """Per job, of one piece of work."""

    seconds: float
    server_cpu_us: float
    client_cpu_us: float
    wal_bytes: float
    commits: float
    dead_tuples: float
    client_rss_mb: float

    def as_dict(self) -> dict[str, Any]:
        return {
            name: round(value, 4 if name == "commits" else 1)
            for name, value in dataclasses.asdict(self).items()
            if name != "seconds"
        }


class Meter:
    """Reads all counters at its start and its end. `clients` are the processes that do the work."""

    def __init__(self, dsn: str, server_pid: int, clients: Iterable[int]) -> None:
        self._dsn = dsn
        self._server = server_pid
        self._clients = list(clients)
        self._counters = self._read()
        self._cpu = self._processors()
        self._began = time.monotonic()

    def stop(self, jobs: int) -> Cost:
        """Of each counter the difference, per job. Waits a second: the server's own counters come late."""
        seconds = time.monotonic() - self._began
        server, client = (after - before for before, after in zip(self._cpu, self._processors(), strict=True))
        memory = sum(resident(pid) for pid in _tree(self._clients))
        time.sleep(1.1)
        wal, commits, dead = (
            after - before for before, after in zip(self._counters, self._read(), strict=True)
        )
        return Cost(
            seconds, server / jobs, client / jobs, wal / jobs, commits / jobs, dead / jobs, memory / 2**20
        )

    def _processors(self) -> tuple[float, float]:
        return cpu_us([self._server]), cpu_us(self._clients)

    def _read(self) -> tuple[float, float, float]:
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            row = connection.execute(_COUNTERS).fetchone()
        assert row is not None
        return float(row[0]), float(row[1]), float(row[2])


def cpu_us(roots: Sequence[int]) -> float:
    """Microseconds of processor time of these processes and all below them, ended ones included."""
    total = 0.0
    for pid in _tree(roots):
        fields = _stat(pid)
        if fields is not None:
            total += sum(int(field) for field in fields[11:15])  # utime, stime and those of ended children
    return total * _TICK


def resident(pid: int) -> float:
    """Bytes of memory that a process occupies."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    except OSError:
        return 0.0


def _tree(roots: Sequence[int]) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            fields = _stat(int(entry.name))
            if fields is not None:
                children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, waiting = [], list(roots)
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        waiting += children.get(pid, [])
    return found


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat that follow the name (which may hold anything): state, parent, …"""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return text.rpartition(")")[2].split()


def percentile(values: Sequence[float], share: float) -> float:
    """The value that this share (0 to 1) of them does not exceed."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]
