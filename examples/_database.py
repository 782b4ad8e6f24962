"""What all examples need: a database, and silence, so that each prints only what it has to say.

Set PGSCHEDULER_DSN to use your own PostgreSQL. Without it a private server is started from the `embedded`
extra, and removed at the end.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from pgscheduler import embedded

structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


@contextmanager
def database() -> Iterator[str]:
    """The connection string of a PostgreSQL that the example may use."""
    given = os.environ.get("PGSCHEDULER_DSN")
    if given:
        yield given
    else:
        with embedded.start() as server:
            yield server.dsn
