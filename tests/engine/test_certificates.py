"""Whose database it is: a connection to another machine that checks no certificate is told, once, without the DSN."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from pgscheduler import Scheduler, _hosts
from pgscheduler.doctor import CHECKS, Facts, Severity, examine

SECRET = "canary-in-the-mine"


@pytest.mark.parametrize(
    ("host", "address", "mode", "said"),
    [
        ("/var/run/postgresql", "", None, None),
        ("@abstract", "", None, None),
        ("", "", None, None),
        ("localhost", "127.0.0.1", None, None),
        ("localhost", "::1", "disable", None),
        ("db.example.org", "127.0.0.1", "disable", None),  # a tunnel, or a name in /etc/hosts
        ("localhost", "203.0.113.9", None, ("localhost", "prefer")),
        ("db.example.org", "203.0.113.9", None, ("db.example.org", "prefer")),
        ("", "203.0.113.9", "require", ("203.0.113.9", "require")),
        ("db.example.org", "", "allow", ("db.example.org", "allow")),
        ("db.example.org", "2001:db8::1", "disable", ("db.example.org", "disable")),
        ("db.example.org", "203.0.113.9", "verify-ca", None),
        ("db.example.org", "203.0.113.9", "verify-full", None),
    ],
)
def test_which_connections_are_told(host: str, address: str, mode: str | None, said: Any) -> None:
    """Those that leave this machine and check nobody; where they go counts, not what the host is called."""
    given = {} if mode is None else {"sslmode": mode}
    info = SimpleNamespace(host=host, hostaddr=address, get_parameters=lambda: given)
    connection: Any = SimpleNamespace(info=info)
    assert _hosts.unchecked(connection) == said


@pytest.fixture
def elsewhere(dsn: str, proxy_to: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """A way to the database over TCP that passes for one to another machine."""
    monkeypatch.setattr(_hosts, "is_loopback", lambda _: False)
    return make_conninfo(proxy_to(dsn).dsn, password=SECRET)


@pytest.mark.parametrize("mode", [None, "disable"])
def test_it_is_said_once(
    elsewhere: str, scheduler_on: Callable[..., Scheduler], monkeypatch: pytest.MonkeyPatch, mode: str | None
) -> None:
    """`init()` warns, whether the mode is the default or from a variable, and nothing later repeats it."""
    if mode is not None:
        monkeypatch.setenv("PGSSLMODE", mode)
    node = scheduler_on(elsewhere, start=True)
    node.jobs()
    node.shutdown()
    told: Any = node.log
    lines = [(level, facts) for level, event, facts in told.lines if "certificate" in event]
    ((level, facts),) = lines
    assert (level, facts["host"], facts["sslmode"]) == ("warning", "127.0.0.1", mode or "prefer")
    assert SECRET not in str(told.lines)


def test_nothing_is_said_of_a_socket(dsn: str, scheduler_on: Callable[..., Scheduler]) -> None:
    """Nor of this machine's own addresses; the tests' database is there."""
    with psycopg.connect(dsn) as connection:
        assert _hosts.unchecked(connection) is None
    told: Any = scheduler_on(dsn, start=True).log
    assert not any("certificate" in event for event in told.events())


def test_the_doctor_says_it(elsewhere: str) -> None:
    """A warning with the host and the mode; ok for what is checked."""
    found = {finding.check: finding for finding in examine(elsewhere)}["certificate"]
    assert found.severity is Severity.WARNING
    assert found.evidence == {"host": "127.0.0.1", "sslmode": "prefer"}
    assert "verify-full" in found.advice
    assert SECRET not in str(found)
    (check,) = [check for check in CHECKS if check.name == "certificate"]
    assert check.finding(Facts()).severity is Severity.OK
