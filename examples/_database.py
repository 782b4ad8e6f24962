"""What all examples need: a database, and silence, so that each prints only what it has to say.

Set PGSCHEDULER_DSN to use your own PostgreSQL: an example makes a database of its own there, and drops it at the end,
so that each run finds what the first one found. Without it a private server is started from the `embedded` extra.
"""

import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import structlog
from psycopg.conninfo import make_conninfo

from pgscheduler import embedded

structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


@contextmanager
def database() -> Iterator[str]:
    """The connection string of a PostgreSQL that the example may use."""
    given = os.environ.get("PGSCHEDULER_DSN")
    if given:
        with own_database(given) as dsn:
            yield dsn
    else:
        with embedded.start() as server:
            yield server.dsn


@contextmanager
def own_database(dsn: str) -> Iterator[str]:
    """One that is new, beside the one of this connection string; that one itself if its role may make none."""
    name = f"pgscheduler_example_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(dsn, autocommit=True) as connection:
        try:
            connection.execute(f"create database {name}")
        except psycopg.errors.InsufficientPrivilege:
            yield dsn
            return
        try:
            yield make_conninfo(dsn, dbname=name)
        finally:
            connection.execute(f"drop database {name} with (force)")
