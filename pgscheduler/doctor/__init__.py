"""A look at a live database: what is late, lost, broken, about to be, or set so that it will be.

Any user who may read the tables may ask. Nothing is changed, no big table is read whole: each statement walks an
index with a limit or reads statistics, so what it counts in a big backlog is "at least". `_facts` looks; the
checks in `_server`, `_jobs` and `_tables` judge, without a database. To add one: a statement that `_facts` asks, a
function, its name in `CHECKS`. Each threshold is a constant with its reason.
"""

from __future__ import annotations

from pgscheduler._sql import Names
from pgscheduler._store import Store
from pgscheduler.client import Client
from pgscheduler.config import SchedulerConfig
from pgscheduler.errors import InvalidTypeError
from pgscheduler.scheduler import Scheduler

from . import _jobs, _server, _tables
from ._facts import Facts, gather
from ._findings import Finding, Severity

__all__ = ["CHECKS", "Facts", "Finding", "Severity", "examine", "gather", "judge"]

#: In the order of the report.
CHECKS = (*_server.CHECKS, *_jobs.CHECKS, *_tables.CHECKS)


def examine(target: str | SchedulerConfig | Scheduler | Client) -> list[Finding]:
    """One finding for each check, good ones too. `target` is a DSN, a configuration, a scheduler or a client.

    It opens two connections of its own, by the same way as a node would. Raises `DatabaseUnavailableError` when
    there is no way.
    """
    if isinstance(target, Client):
        store = _quiet(target.store.conninfo, target.names, listen_conninfo=target.store.listen_conninfo)
        return judge(gather(store))
    if isinstance(target, str):
        target = SchedulerConfig(dsn=target)
    config = target.config if isinstance(target, Scheduler) else target
    if not isinstance(config, SchedulerConfig):
        # Only its type: what was handed in instead may hold a password.
        raise InvalidTypeError(
            "target", type(target), "must be a DSN, a SchedulerConfig, a Scheduler or a Client"
        )
    store = _quiet(
        config.conninfo,
        Names(config.schema, config.table_prefix),
        config.connect_timeout.total_seconds(),
        config.listen_dsn,
    )
    facts = gather(store, timeout=config.no_heartbeat_timeout.total_seconds(), listen=config.listen)
    return judge(facts)


def _quiet(
    conninfo: str, names: Names, connect_timeout: float = 5.0, listen_conninfo: str | None = None
) -> Store:
    # Nothing prepared, nothing set for the session: a pooler may hand the connection to somebody else.
    return Store(
        conninfo,
        names,
        application="pgscheduler/doctor",
        prepared=False,
        connect_timeout=connect_timeout,
        listen_conninfo=listen_conninfo,
    )


def judge(facts: Facts) -> list[Finding]:
    """From facts to findings, without a database."""
    return [check.finding(facts) for check in CHECKS if check.applies(facts)]
