"""The server and the way to it: the schema's version, settings, connections, clocks, notifications."""

from __future__ import annotations

from datetime import UTC, timedelta
from typing import Any

from pgscheduler.schedule import TZDATA_VERSION, zone

from ._check import SHOWN, Verdict, check, graded, ok, problem, warning
from ._facts import Facts, stored_tzdata

__all__ = ["CHECKS"]

CLOCK_OFF = 2.0  # seconds; time services keep a tenth, and who computes run_at from this clock is so much off
CLOCK_WRONG = 60.0  # seconds; a whole field of a cron line, and certificates and tokens begin to fail as well
NODE_CONNECTIONS = 8  # a node's four loops and its pool of four
LEAST_CONNECTIONS = (
    3  # without a heartbeat's, a dispatcher's and a recorder's no node can come back after a restart
)


@check()
def schema_version(facts: Facts) -> Verdict:
    """The tables are those that this version works with."""
    if "doctor_schema" in facts.failed:
        reason = facts.failed["doctor_schema"]
        return problem(
            f"the tables cannot be read: {reason}",
            "Run `pgscheduler migrate`, or check schema, table_prefix and role.",
        )
    found = facts.one("doctor_schema")["version"]
    figures = {"version": found, "needed": facts.needed}
    if found == facts.needed:
        return ok(f"the schema has version {found}", **figures)
    if found is None or found < facts.needed:
        return problem(
            f"the schema has version {found or 0}, this pgscheduler needs {facts.needed}",
            "Run `pgscheduler migrate`.",
            **figures,
        )
    return problem(
        f"the schema has version {found}, this pgscheduler knows only {facts.needed}",
        "Upgrade pgscheduler here.",
        **figures,
    )


@check("doctor_server")
def writable(facts: Facts) -> Verdict:
    """Nodes can write here."""
    server = facts.one("doctor_server")
    figures = {"standby": server["standby"], "read_only": server["read_only"], "version": server["version"]}
    if server["standby"]:
        return problem("this is a standby: no node can work here", "Point the DSN at the primary.", **figures)
    if server["read_only"]:
        return problem(
            "transactions are read-only by default",
            "Reset default_transaction_read_only for this role and database.",
            **figures,
        )
    return ok(f"PostgreSQL {server['version']} takes writes", **figures)


@check("doctor_server")
def durability(facts: Facts) -> Verdict:
    """What was acknowledged survives a crash."""
    server = facts.one("doctor_server")
    figures = {
        name: server[name]
        for name in ("fsync", "full_page_writes", "synchronous_commit", "synchronous_standbys")
    }
    if not server["fsync"]:
        return problem("fsync is off: a power cut may destroy the database", "Turn fsync on.", **figures)
    if server["synchronous_commit"] == "off":
        return problem(
            "synchronous_commit is off: a crash forgets jobs and outcomes that were acknowledged",
            "Reset it for this role and database; what may commit asynchronously already does.",
            **figures,
        )
    if not server["full_page_writes"]:
        return warning(
            "full_page_writes is off: a crash may tear pages",
            "Turn it on, unless the file system writes whole pages.",
            **figures,
        )
    if server["synchronous_standbys"] and server["synchronous_commit"] == "local":
        return warning(
            "synchronous_commit is local: a failover may lose what was acknowledged",
            "Set it to on for this role.",
            **figures,
        )
    return ok("what was acknowledged survives a crash", **figures)


@check("doctor_server")
def connections(facts: Facts) -> Verdict:
    """A node can still connect, whichever of the three limits is nearest."""
    server = facts.one("doctor_server")
    free = {"server": server["max_connections"] - server["reserved"] - server["connected"]}
    if server["database_limit"] >= 0:
        free["database"] = server["database_limit"] - server["database_connected"]
    if server["role_limit"] >= 0:
        free["role"] = server["role_limit"] - server["role_connected"]
    limit, left = min(free.items(), key=lambda item: item[1])
    figures = {"free": free, "max_connections": server["max_connections"], "connected": server["connected"]}
    if left >= NODE_CONNECTIONS:
        return ok(f"{left} connections are free", **figures)
    return graded(left < LEAST_CONNECTIONS)(
        f"only {max(left, 0)} more connections are allowed by the {limit}'s limit; a node opens up to {NODE_CONNECTIONS}",
        "Raise the limit, lower pool_size, or put a pooler in session mode before the other clients.",
        **figures,
    )


@check()
def certificate(facts: Facts) -> Verdict:
    """Who answers on another machine is known to be the database."""
    if facts.unchecked is None:
        return ok("the server is on this machine, or its certificate is checked")
    host, mode = facts.unchecked
    return warning(
        f"nothing checks that it is {host} that answers: sslmode is {mode}",
        "Say sslmode=verify-full, and sslrootcert if a CA of your own signed the server's certificate.",
        host=host,
        sslmode=mode,
    )


@check("now")
def clock(facts: Facts) -> Verdict:
    """This machine and the database agree on the time."""
    figures = {"ahead_seconds": round(facts.ahead, 3) + 0.0, "doubt_seconds": round(facts.doubt, 3)}
    off = abs(facts.ahead) - facts.doubt
    if off < CLOCK_OFF:
        return ok(f"this machine's clock and the database's differ by {abs(facts.ahead):.3f} s", **figures)
    return graded(off >= CLOCK_WRONG)(
        f"this machine's clock is {abs(facts.ahead):.1f} s {'ahead of' if facts.ahead > 0 else 'behind'} the database's",
        "Check the time service on both. The database's clock decides, but times that your program computes do not know it.",
        **figures,
    )


@check("doctor_offsets", "doctor_schedules")
def time_zones(facts: Facts) -> Verdict:
    """For the zones in use, the rules here are those of PostgreSQL and of whoever scheduled."""
    figures: dict[str, Any] = {"tzdata": TZDATA_VERSION}
    newest = max(
        filter(None, (stored_tzdata(row["schedule"]) for row in facts.rows["doctor_schedules"])), default=None
    )
    if newest is not None and newest > TZDATA_VERSION:
        return warning(
            f"a node scheduled with tzdata {newest}, here is {TZDATA_VERSION}",
            "Upgrade the tzdata package here: all nodes must have the same.",
            stored=newest,
            **figures,
        )
    differing: dict[str, dict[str, Any]] = {}
    for row in facts.rows["doctor_offsets"]:
        here = row["at"].astimezone(zone(row["zone"])).utcoffset()
        theirs = None if row["offset"] is None else timedelta(seconds=row["offset"])
        if here != theirs and row["zone"] not in differing:
            day = row["at"].astimezone(UTC).date().isoformat()
            differing[row["zone"]] = {
                "day": day,
                "here": str(here),
                "postgresql": None if theirs is None else str(theirs),
            }
    figures["zones"] = len({row["zone"] for row in facts.rows["doctor_offsets"]})
    if not differing:
        return ok(f"the rules of the {figures['zones']} time zones in use are PostgreSQL's", **figures)
    return warning(
        f"the rules of {', '.join(sorted(differing)[:SHOWN])} differ from PostgreSQL's",
        "One of the two is out of date: upgrade the tzdata package on all nodes, or the server's time zones. "
        "Schedules follow the package.",
        differing=dict(sorted(differing.items())[:SHOWN]),
        **figures,
    )


@check()
def notifications(facts: Facts) -> Verdict:
    """A notification that one connection sends, another hears."""
    if not facts.listen:
        return ok("listening is turned off", heard_seconds=None)
    if facts.heard is not None:
        return ok(
            f"notifications arrive, after {facts.heard * 1000:.0f} ms", heard_seconds=round(facts.heard, 4)
        )
    reason = facts.failed.get("doctor_notify", "probably a pooler in transaction mode")
    return warning(
        f"notifications do not arrive ({reason}): jobs are found only at their due times and every job_check_interval",
        "Give the nodes a direct connection, at least as listen_dsn; or set listen=False and a short job_check_interval.",
        heard_seconds=None,
    )


#: In the order of the report.
CHECKS = (
    schema_version,
    writable,
    durability,
    connections,
    certificate,
    clock,
    time_zones,
    notifications,
)
