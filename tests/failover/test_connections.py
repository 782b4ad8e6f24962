"""What a failover does to connections that were made before it, and to what was remembered of the old primary."""

from __future__ import annotations

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from pgscheduler import JobState, Scheduler, SchedulerConfig
from pgscheduler._sql import Names
from pgscheduler._store import Store, bigints
from pgscheduler.errors import DatabaseUnavailableError


def test_a_connection_that_turned_read_only_is_not_used_again(dsn: str) -> None:
    """A pooled connection to what is a standby now is refused once; the next one may lead to the new primary."""
    with Scheduler(SchedulerConfig(dsn=dsn, pool_size=1)) as scheduler:
        with scheduler._store.pool.connection() as connection:
            connection.execute("set session characteristics as transaction read only")
        with pytest.raises(DatabaseUnavailableError, match="read-only"):
            scheduler.enqueue("mail")
        assert scheduler.enqueue("mail").state is JobState.PENDING


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("host=one,two dbname=shop", "read-write"),
        ("postgresql://one,two/shop", "read-write"),
        ("hostaddr=127.0.0.1,127.0.0.2 dbname=shop", "read-write"),
        ("host=one,two target_session_attrs=primary", "primary"),
        ("host=one dbname=shop", None),
    ],
)
def test_of_several_hosts_the_one_that_accepts_writes(given: str, expected: str | None) -> None:
    """A DSN with several hosts and no word on which of them means the primary; its own word counts."""
    store = Store(given, Names("public", "pgscheduler_"))
    assert conninfo_to_dict(store.conninfo).get("target_session_attrs") == expected
    assert conninfo_to_dict(store.listen_conninfo).get("target_session_attrs") == expected


def test_a_transaction_that_this_server_has_not_come_to(dsn: str) -> None:
    """After a failover that lost transactions their numbers lie in the future: not settled, and no error."""
    store = Store(dsn, Names("public", "pgscheduler_"))
    with psycopg.connect(dsn, autocommit=True) as connection:
        row = connection.execute("select pg_current_xact_id()::text::bigint").fetchone()
        assert row is not None
        asked = bigints([row[0], row[0] + 1_000_000])
        found = connection.execute(store.sql["settled"], {"transactions": asked}).fetchall()
    assert found == [(row[0], True), (row[0] + 1_000_000, None)]
