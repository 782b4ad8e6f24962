"""Nodes and jobs: who works, what is late, what nobody can run, what is broken."""

from __future__ import annotations

from ._check import SHOWN, Verdict, check, examples, graded, length, names, ok, problem, warning
from ._facts import LATE, SAMPLE, Facts, zone_of

__all__ = ["CHECKS"]

TOO_LATE = 900.0  # seconds; bulk work may be minutes behind, a quarter of an hour means that nodes or slots are missing
#: × no_heartbeat_timeout; after 1¼ a living node has reset a silent claim, so here nobody does it
RESET_LATE = 1.5


@check("doctor_nodes", "doctor_overdue")
def nodes(facts: Facts) -> Verdict:
    """Somebody is there to work."""
    found = facts.one("doctor_nodes")
    figures = {name: found[name] for name in ("alive", "slots", "silent")}
    if found["alive"]:
        return ok(f"{found['alive']} nodes live, with {found['slots']} slots", **figures)
    if not found["work"]:
        return ok("no node lives, and no job waits for one", **figures)
    since = (
        "none was ever here"
        if found["last_heard"] is None
        else f"the last was heard {length(found['last_heard'])} ago"
    )
    # A deploy may leave a gap; what is late already says that this is none.
    return graded(bool(facts.rows["doctor_overdue"]))(
        f"no node lives, and jobs wait; {since}",
        "Start a node: `pgscheduler run MODULE`, or your program.",
        **figures,
    )


@check("doctor_claims", "doctor_nodes")
def claims(facts: Facts) -> Verdict:
    """Each running job has a node that lives and says so."""
    found = facts.rows["doctor_claims"]
    if not found:
        return ok("each running job has a living node")
    stuck = [row for row in found if row["seconds"] > row["timeout"] * RESET_LATE]
    figures = {
        "jobs": len(found),
        "stuck": len(stuck),
        "examples": examples(found, "id", "name", "node", "seconds", "timeout"),
    }
    text = f"{len(found)} running jobs have no living node ({names(found)}); the longest silent for {length(found[0]['seconds'])}"
    if stuck or not facts.one("doctor_nodes")["alive"]:
        return problem(
            text + ", and nobody takes them over",
            "Start a node, or see in the nodes' logs why their maintenance fails.",
            **figures,
        )
    return warning(
        text,
        "Living nodes take them over within 1¼ × no_heartbeat_timeout; see why the node died.",
        **figures,
    )


@check("doctor_overdue", "doctor_nodes")
def overdue_schedules(facts: Facts) -> Verdict:
    """Recurring jobs start when they are due."""
    return _overdue(facts, "recurring jobs", True)


@check("doctor_overdue", "doctor_nodes")
def overdue_jobs(facts: Facts) -> Verdict:
    """One-time jobs start when they are due."""
    return _overdue(facts, "one-time jobs", False)


def _overdue(facts: Facts, noun: str, recurring: bool) -> Verdict:
    # What no living node knows is the next check's; when no node lives, nothing is known.
    alone = not facts.one("doctor_nodes")["alive"]
    rows = [r for r in facts.rows["doctor_overdue"] if r["recurring"] == recurring and (r["known"] or alone)]
    count = sum(row["jobs"] for row in rows)
    if not rows:
        return ok(f"no {noun} wait for more than {length(LATE)}", jobs=0)
    oldest = max(row["seconds"] for row in rows)
    least = "at least " if count >= SAMPLE else ""
    return graded(oldest >= TOO_LATE)(
        f"{least}{count} {noun} wait for more than {length(LATE)} ({names(rows)}); the oldest for {length(oldest)}",
        "See with `pgscheduler nodes` whether the slots are full; add nodes or slots, or find the runs that do not end.",
        jobs=count,
        oldest_seconds=round(oldest, 3),
        examples=examples(rows, "name", "jobs", "seconds", "ids"),
    )


@check("doctor_names", "doctor_nodes")
def unknown_names(facts: Facts) -> Verdict:
    """Each waiting job has a living node that knows its name."""
    if not facts.one("doctor_nodes")["alive"]:
        return ok("no node lives to know a name: see nodes")
    found = facts.rows["doctor_names"]
    if not found:
        return ok("each waiting job has a living node that knows its name")
    oldest = max((row["seconds"] for row in found if row["seconds"] is not None), default=0.0)
    return graded(oldest >= TOO_LATE)(
        f"no living node knows {names(found)}, for which at least {sum(row['jobs'] for row in found)} jobs wait",
        "Start a node that registers the name, or delete the jobs; after orphaned_job_timeout they become history.",
        oldest_due_seconds=round(oldest, 3),
        names=examples(found, "name", "jobs", "due", "seconds", "last_known"),
    )


@check("doctor_rows")
def rows(facts: Facts) -> Verdict:
    """No row that was looked at breaks a rule."""
    found = facts.rows["doctor_rows"]
    if not found:
        return ok("no row breaks a rule")
    return problem(
        "rows break a rule: " + "; ".join(f"{row['rule']} ({row['rows']})" for row in found),
        "Something else than pgscheduler has written to its tables, or this is a fault to report, with these ids.",
        rules=examples(found, "rule", "rows", "ids"),
    )


@check("doctor_guards")
def guards(facts: Facts) -> Verdict:
    """Constraints and indexes are there and valid."""
    found = facts.rows["doctor_guards"]
    if not found:
        return ok("constraints and indexes are in force")
    return problem(
        "missing or not valid: " + ", ".join(f"{row['kind']} {row['name']}" for row in found),
        "Make it again as `pgscheduler migrate --print` has it (REINDEX for an index that is only invalid).",
        missing=examples(found, "kind", "name"),
    )


@check("doctor_schedules")
def schedules(facts: Facts) -> Verdict:
    """Each stored schedule can be read."""
    bad = []
    for row in facts.rows["doctor_schedules"]:
        try:
            zone_of(row["schedule"])
        except Exception as error:  # noqa: BLE001 - whatever a foreign hand wrote there
            bad.append({"id": row["id"], "name": row["name"], "jobs": row["jobs"], "error": str(error)[:200]})
    if not bad:
        return ok("each schedule can be read", schedules=len(facts.rows["doctor_schedules"]))
    return problem(
        f"schedules cannot be read, so these jobs do not go on: {names(bad)}",
        "Schedule these jobs again.",
        examples=bad[:SHOWN],
    )


#: In the order of the report.
CHECKS = (
    nodes,
    claims,
    overdue_schedules,
    overdue_jobs,
    unknown_names,
    rows,
    guards,
    schedules,
)
