"""How far to look, by default and on request; and for each guard where its absence shows."""

from __future__ import annotations

from typing import Any

from .protocol import FAULTS
from .world import JobSpec, Scope

__all__ = ["DEFAULT", "GUARDED", "scopes"]

ONE_NODE = FAULTS - {"database", "failover"}  # what befalls a node, its network, its user
ONCE = JobSpec(retries=1, max_stalls=2)
POOR = JobSpec(max_stalls=2)
GUARDED_EFFECT = JobSpec("fenced", max_stalls=2)
TRANSACTION = JobSpec("transaction", max_stalls=2)
RECURRING = JobSpec("transaction", occurrences=2)
MISSED = JobSpec(occurrences=2, missed=True)


def _scope(name: str, kinds: str, faults: int, *jobs: JobSpec, slots: int = 1, nodes: int = 2) -> Scope:
    return Scope(name, frozenset(kinds.split()), faults, jobs, nodes, slots)


#: For each guard: where to look once it is taken out, and which promise breaks first.
GUARDED: dict[str, tuple[Scope, str]] = {
    "token compared": (_scope("a cut", "cut", 1, POOR), "fenced"),
    "random token": (_scope("a failover", "failover", 1, POOR), "fenced"),
    "row lock": (_scope("no fault", "", 0, POOR), "no run begins on a lost claim"),
    "stalls counted": (_scope("a crash", "crash", 1, JobSpec()), "attempts bounded"),
    "stalled scan": (_scope("a crash", "crash", 1, POOR), "every job ends"),
    "beats until written": (_scope("a slow statement", "slow", 1, POOR), "a living claim is kept"),
    "self-fencing": (_scope("a cut", "cut", 1, POOR), "one at a time"),
    "database clock": (_scope("no fault", "", 0, POOR), "a living claim is kept"),
    "completion mark": (_scope("a crash", "crash", 1, TRANSACTION), "effects at most once"),
    "mark asked for": (_scope("a failover", "failover", 1, TRANSACTION, nodes=1), "both or neither"),
    "lost answer looked up": (_scope("a loss", "loss", 1, POOR), "told the truth"),
    "looked up by token": (
        _scope("a pause and a loss, alone", "pause loss", 2, JobSpec(), slots=2, nodes=1),
        "no outcome is dropped",
    ),
    "schedule waits for the disk": (_scope("a server crash", "database", 1, POOR), "nothing is lost"),
    "older claim told": (_scope("a server crash", "database", 1, POOR, slots=2), "one at a time"),
    "stale claim not begun": (_scope("a slow statement", "slow", 1, POOR), "no run begins on a lost claim"),
    "a lock is no proof": (_scope("no fault", "", 0, GUARDED_EFFECT), "a living claim is kept"),
    "catch-up written first": (_scope("no fault", "", 0, MISSED), "every end is recorded"),
    "asked again": (_scope("a cut", "cut", 1, MISSED, nodes=1), "no run begins on a lost claim"),
    "every end recorded": (_scope("no fault", "", 0, RECURRING), "every end is recorded"),
    "unstarted never leaves": (
        _scope("a crash and a shutdown", "crash shutdown", 2, JobSpec("transaction")),
        "every end is recorded",
    ),
}


def scopes(nodes: int = 2, faults: int = 1) -> list[Scope]:
    """One search per kind of job, and per kind of disaster."""

    def scope(name: str, kinds: frozenset[str], *jobs: JobSpec, slots: int = 1) -> Scope:
        return Scope(name, kinds, faults, jobs, nodes, slots)

    return [
        scope("plain", ONE_NODE, ONCE),
        scope("transaction", ONE_NODE, TRANSACTION),
        scope("fenced", ONE_NODE, GUARDED_EFFECT),
        scope("recurring transaction", ONE_NODE, RECURRING),
        scope("missed occurrence", ONE_NODE, MISSED),
        scope("two jobs", ONE_NODE, JobSpec(), JobSpec()),
        scope("two jobs, two slots", frozenset({"loss", "raise"}), JobSpec(), JobSpec(), slots=2),
        scope("server crash, two slots", frozenset({"database", "pause", "loss", "raise"}), ONCE, slots=2),
        scope("server crash, transaction", frozenset({"database", "pause", "loss"}), TRANSACTION),
        scope("server crash, missed occurrence", frozenset({"database"}), MISSED),
        scope("failover, two slots", frozenset({"failover", "pause"}), POOR, slots=2),
        scope("failover, transaction", frozenset({"failover", "pause"}), TRANSACTION),
    ]


def _only(kinds: str, nodes: int = 2) -> dict[str, Any]:
    return {"kinds": frozenset(kinds.split()), "nodes": nodes}


#: The larger ones of these, for the tests: faults that take a node away, and what only such a job can show.
FEWER = {
    "fenced": _only("pause crash"),
    "recurring transaction": _only("crash loss"),
    "two jobs": _only("crash"),
    "server crash, transaction": _only("database"),
    "failover, two slots": _only("failover"),
    "failover, transaction": _only("failover", nodes=1),
}

DEFAULT = [scope._replace(**FEWER.get(scope.name, {})) for scope in scopes()]
