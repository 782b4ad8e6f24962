"""The description and the server agree: whatever the description allows is answered as it says, the rest refused."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from schemathesis import Config

from pgscheduler import Job, JobConfig, Scheduler, SchedulerConfig
from pgscheduler.web import Limits, Server, Tokens, create_app
from tests.engine.conftest import Quiet
from tests.support.postgres import Server as Postgres
from tests.web.conftest import WRITE

# Of each operation, the same each time: what one run accepts the next one does. Another number is another search, by
# chance; do that after a change of the description.
SEARCH = os.environ.get("PGSCHEDULER_EXAMPLES")
EXAMPLES = int(SEARCH or 25)

#: What the formats of the description mean.
schemathesis.openapi.format(
    "cron", st.sampled_from(["* * * * *", "0 9 * * mon-fri", "*/10 * * * * *", "@daily"])
)
schemathesis.openapi.format(
    "http-url", st.sampled_from(["https://example.org/", "http://example.org:8080/a?b=c"])
)
schemathesis.openapi.format("header-name", st.sampled_from(["accept", "authorization", "x-request-id"]))
schemathesis.openapi.format("timezone", st.sampled_from(["UTC", "Europe/Berlin", "America/New_York"]))
schemathesis.openapi.format(
    "name",
    st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=40),
)
schemathesis.openapi.format(
    "date-time",
    st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1)).map(
        lambda at: at.isoformat(timespec="seconds") + "Z"
    ),
)


class Nothing(Job):
    config = JobConfig(name="nothing")

    def run(self, ctx: Any) -> None:
        ctx.log.info("nothing to do")


def description() -> dict[str, Any]:
    """As any app of ours gives it; asks no database."""
    nowhere = Scheduler(SchedulerConfig(dsn="postgresql://nowhere.invalid/none"))
    return create_app(nowhere, tokens=Tokens(write=[WRITE])).openapi()


@pytest.fixture(scope="module")
def url(server: Postgres, template: str) -> Iterator[str]:
    """Where a server with a little in its tables answers."""
    with server.database(template) as dsn, Scheduler(SchedulerConfig(dsn=dsn, logger=Quiet())) as scheduler:
        scheduler.register(Nothing)
        for key in ("a", "b"):
            scheduler.enqueue("nothing", key=key)
        scheduler.run_pending()
        scheduler.schedule_by_name("again", "0 9 * * *")
        scheduler.templates.create("A", handler="nothing")
        # Each operation is also called with a wrong token, which has to be 401.
        limits = Limits(wrong_tokens_per_minute=1_000_000)
        app = create_app(scheduler, tokens=Tokens(write=[WRITE]), limits=limits)
        with Server(app, port=0) as running:
            yield running.url


schema = schemathesis.openapi.from_dict(
    description(),
    config=Config.from_dict({"generation": {"allow-x00": False, "mode": "all"}}),
)


@schema.hook
def filter_case(context: Any, case: Any) -> bool:
    """No header with fields of the body that do not go with it, which no description can say; see test_idempotency."""
    header = "Idempotency-Key" in (case.headers or {})
    return not (
        header and isinstance(case.body, dict) and case.body.keys() & {"key", "if_exists", "ifExists"}
    )


@schema.parametrize()
@settings(
    max_examples=EXAMPLES, derandomize=not SEARCH, deadline=None, suppress_health_check=list(HealthCheck)
)
def test_as_described(case: Any, url: str) -> None:
    """Every answer has a status, a type and a shape that are described; nothing is a fault of the server."""
    case.call_and_validate(base_url=url, headers={"Authorization": f"Bearer {WRITE}"}, timeout=60)
