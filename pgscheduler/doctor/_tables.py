"""The tables: whether vacuum can keep the one of jobs small, and history its partitions."""

from __future__ import annotations

from ._check import Verdict, check, examples, graded, length, ok, problem, warning
from ._facts import Facts, Row

__all__ = ["CHECKS"]

HELD = 600.0  # seconds; a snapshot of ten minutes is what claims were measured under
HELD_LONG = 3600.0  # seconds; no transaction of a healthy service is open for an hour
HELD_TRANSACTIONS = 1_000_000  # by slots and standbys, which do not tell since when
DEAD_FACTOR = 10  # × what starts autovacuum; it comes once a minute, and a burst leaves some multiples
DEAD_PILE = 5_000_000  # rows; more than the fastest drain that was measured leaves in a minute
VACUUM_LATE = 600.0  # seconds; ten of autovacuum's rounds
SPACE = 1 << 30  # bytes; below it a scan costs nothing, and a drained table keeps its space for the next jobs
SPACE_USED = 0.1  # of the space; a queue that breathes by ten times its size is still usual


@check("doctor_server", "doctor_hot_table")
def autovacuum(facts: Facts) -> Verdict:
    """Autovacuum may clean the table of jobs."""
    server, table = facts.one("doctor_server"), facts.one("doctor_hot_table")
    figures = {
        "server": server["autovacuum"],
        "table": table["autovacuum"],
        "track_counts": server["track_counts"],
    }
    if all(figures.values()):
        return ok("autovacuum is on", **figures)
    where = "for the table of jobs" if server["autovacuum"] and server["track_counts"] else "on the server"
    return problem(
        f"autovacuum is off {where}: claims become slower with every job",
        "Turn autovacuum and track_counts on, and reset autovacuum_enabled on the table of jobs.",
        **figures,
    )


@check("doctor_horizon", "doctor_hot_table")
def vacuum_horizon(facts: Facts) -> Verdict:
    """Nobody keeps vacuum from removing dead rows."""
    found = facts.rows["doctor_horizon"]
    hidden = sum(row["kind"] == "hidden session" for row in found)
    holders = [row for row in found if row["kind"] != "hidden session"]
    held = [row for row in holders if _holds(row)]
    piling = _piling(facts)
    figures = {
        "hidden_sessions": hidden,
        "holders": examples(held, "kind", "who", "state", "seconds", "transactions"),
    }
    if held:
        first = held[0]
        since = (
            f"for {first['transactions']} transactions"
            if first["seconds"] is None
            else f"for {length(first['seconds'])}"
        )
        return graded(piling or (first["seconds"] or 0) >= HELD_LONG)(
            f"vacuum is held back {since} by {first['kind']} {first['who']}"
            + (", and dead rows pile up" if piling else ""),
            "End it: commit or `select pg_terminate_backend(pid)`; roll back the prepared transaction; drop the slot.",
            **figures,
        )
    if hidden and piling:
        return warning(
            f"dead rows pile up, and {hidden} sessions do not show this role since when they are open",
            "Ask again as a member of pg_monitor.",
            **figures,
        )
    return ok("nobody holds back vacuum", **figures)


def _holds(row: Row) -> bool:
    if row["seconds"] is None:
        return (row["transactions"] or 0) >= HELD_TRANSACTIONS
    return bool(row["seconds"] >= HELD)


def _piling(facts: Facts) -> bool:
    table = facts.one("doctor_hot_table")
    return bool(table["dead"] >= DEAD_FACTOR * table["vacuum_due"])


@check("doctor_hot_table")
def dead_rows(facts: Facts) -> Verdict:
    """Vacuum keeps up with the table of jobs."""
    table = facts.one("doctor_hot_table")
    figures = {
        "dead": table["dead"], "live": table["live"], "vacuum_due_at": round(table["vacuum_due"]),
        "seconds_since_vacuum": None if table["vacuumed"] is None else round(table["vacuumed"]),
    }  # fmt: skip
    pile = table["dead"] >= DEAD_PILE
    if not pile and (
        not _piling(facts) or (table["vacuumed"] is not None and table["vacuumed"] < VACUUM_LATE)
    ):
        return ok(f"{table['dead']} dead rows among {table['live']}", **figures)
    when = "never" if table["vacuumed"] is None else f"{length(table['vacuumed'])} ago"
    return graded(pile)(
        f"{table['dead']} dead rows among {table['live']}; the last vacuum was {when}",
        "See vacuum_horizon and autovacuum; then `vacuum` the table of jobs by hand.",
        **figures,
    )


@check("doctor_hot_table")
def space(facts: Facts) -> Verdict:
    """The table of jobs has not grown far beyond what is in it."""
    table = facts.one("doctor_hot_table")
    taken = table["table_bytes"] + table["index_bytes"]
    # 28 bytes of header and pointer; about as much again for each row's entries in three indexes.
    needed = table["live"] * ((table["row_bytes"] or 200) + 100)
    figures = {
        "table_bytes": table["table_bytes"],
        "index_bytes": table["index_bytes"],
        "needed_bytes": needed,
    }
    if taken < SPACE or needed >= taken * SPACE_USED:
        return ok(f"the table of jobs and its indexes take {taken >> 20} MiB", **figures)
    return warning(
        f"the table of jobs and its indexes take {taken >> 20} MiB for {needed >> 20} MiB of jobs",
        "If no such backlog comes again: `reindex table concurrently`, and `vacuum full` in a quiet minute (it locks).",
        **figures,
    )


@check("doctor_partitions")
def partitions(facts: Facts) -> Verdict:
    """History has its partitions for today and tomorrow."""
    missing = {row["parent"]: row["missing"] for row in facts.rows["doctor_partitions"] if row["missing"]}
    if not missing:
        return ok("today's and tomorrow's partitions of history are there")
    return warning(
        "partitions of history are missing: "
        + "; ".join(f"{parent}: {', '.join(days)}" for parent, days in missing.items()),
        "A running node makes them every hour if its role may create tables; otherwise a DBA should.",
        missing=missing,
    )


@check("doctor_partitions")
def default_partition(facts: Facts) -> Verdict:
    """All history is in partitions of days, which retention can drop."""
    found = {row["parent"]: row["rows"] or 0 for row in facts.rows["doctor_partitions"] if row["occupied"]}
    if not found:
        return ok("all history is in partitions of days")
    return warning(
        "history lies in the default partition: "
        + ", ".join(f"about {n} rows of {parent}" for parent, n in found.items()),
        "Its days' partitions were missing. Retention deletes it row by row; or move it into partitions by hand.",
        rows=found,
    )


#: In the order of the report.
CHECKS = (
    autovacuum,
    vacuum_horizon,
    dead_rows,
    space,
    partitions,
    default_partition,
)
