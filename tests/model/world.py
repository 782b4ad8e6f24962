"""The shapes of the model: what the database holds, what a node remembers, what is under way between them.

Everything is an immutable tuple, so that a whole world is a dictionary key. Fields marked *ghost* exist in no real
process: only the invariants read them. Time is relative: an age counts ticks since something was written, and stops
counting where a larger number would make no difference.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

__all__ = [
    "LINES",
    "Db",
    "Flight",
    "JobSpec",
    "Node",
    "Row",
    "Run",
    "Scope",
    "World",
    "canonical",
    "flights",
    "initial",
    "on_line",
    "show",
    "tokens",
]


class JobSpec(NamedTuple):
    """What a job is; the same for the whole search."""

    body: str = (
        "plain"  # plain: an effect that nobody guards; fenced: assert_owner(); transaction: ctx.transaction()
    )
    occurrences: int = 0  # 0: a one-time job; n: a recurring one whose schedule ends after n
    missed: bool = False  # when one occurrence is claimed, the next may be due as well: it alone is then run
    retries: int = 0
    max_stalls: int = 1


class Scope(NamedTuple):
    """How far one search looks."""

    name: str
    kinds: frozenset[str]  # the faults that may happen, see `protocol.FAULTS`
    faults: int  # how many of them, of any kinds, in any order
    jobs: tuple[JobSpec, ...] = (JobSpec(),)
    nodes: int = 2
    slots: int = 1
    interval: int = 1  # heartbeat_interval, in ticks
    timeout: int = 3  # no_heartbeat_timeout, in ticks: at least three intervals

    @property
    def patience(self) -> int:
        """When a node gives up what it could not renew."""
        return self.timeout - self.interval


class Row(NamedTuple):
    """A line of `jobs`."""

    state: str = "absent"  # absent (not scheduled yet), pending, running, gone (only in history)
    claim: int = 0  # the claim's token as a fresh value; 0: null
    number: int = 0  # the counter of the variant that has one
    age: int = 0  # ticks since coalesce(heartbeat_at, claimed_at)
    failures: int = 0
    stalls: int = 0
    cancel: bool = False  # cancel_requested
    delete: bool = False  # after_run = 'delete'
    done: bool = False  # completed_at is set
    occurrence: int = 0
    effects: int = 0  # what transactions of this occurrence have committed


class Db(NamedTuple):
    """What a commit makes and a crash may unmake."""

    rows: tuple[Row, ...]
    #: History, as far as a node may still ask: job, token, and whether the stalled scan wrote it.
    runs: frozenset[tuple[int, int, bool]] = frozenset()


class Run(NamedTuple):
    """A `Claim` and its run, as its node knows them."""

    job: int
    claim: int
    number: int  # the counter that the claim was given
    phase: str  # ready, asked (catch_up.sql is under way), running, locked (its transaction has the row), settled
    verdict: str  # how it ended, once settled
    age: int  # ticks since `beaten_at`
    stop: str  # why it was told to stop: cancelled, shutdown, lost, or ''
    held: bool  # the ledger knows it
    doubtful: bool  # its outcome was sent, and no answer came
    failures: int  # these five: the row, as the claim found it
    stalls: int
    done: bool
    cancel: bool
    occurrence: int
    excused: (
        int  # ghost: ticks for which its node cannot know that it was away; -1: the claim's answer came late
    )


class Flight(NamedTuple):
    """A statement, which is a transaction of its own, between its sending and its answer."""

    stage: str  # sent, read (only without the row lock), answered
    outcomes: tuple[Run, ...]  # what complete.sql or finish.sql is to write; for catch_up.sql the one run
    claim: int = 0  # the token of the claim that claim.sql is to make; 0: it is not that
    slots: int = 0
    age: int = 0  # ticks since it was sent
    slow: bool = False
    picks: tuple[int, ...] = ()
    refused: tuple[int, ...] = ()  # which of `outcomes`, by place
    claims: tuple[Run, ...] = ()


#: Who of a node sends statements, each on a connection of its own, so that none waits for another.
LINES = ("recorder", "dispatcher", "slot")


class Node(NamedTuple):
    """One process. A dead one remembers nothing."""

    state: str = "up"  # up, paused, dead
    cut: bool = False  # the network between it and the database is gone
    fenced: bool = False
    claiming: bool = True  # False once the shutdown has begun
    unanswered: tuple[int, ...] = ()  # tokens of claims whose answer never came
    runs: tuple[Run, ...] = ()
    recorder: Flight | None = None
    dispatcher: Flight | None = None
    slot: Flight | None = None  # the slots' pool: catch_up.sql, one at a time


class World(NamedTuple):
    db: Db
    past: Db | None  # what a crash, or the failover, would leave; None: nothing older than `db`
    nodes: tuple[Node, ...]
    late: tuple[Flight, ...]  # what the server may still execute, although its connection is gone
    faults: int  # how many may still happen
    jumped: bool  # ghost: the database has lost commits
    acknowledged: int  # ghost: bits of the jobs whose schedule() has returned
    final: int  # ghost: bits of the jobs that have ended
    starts: tuple[int, ...]  # ghost: runs of the present occurrence whose end the counters must account for


def initial(scope: Scope) -> World:
    count = len(scope.jobs)
    db = Db((Row(),) * count)
    return World(db, None, (Node(),) * scope.nodes, (), scope.faults, False, 0, 0, (0,) * count)


def flights(node: Node) -> list[tuple[str, Flight]]:
    """What the node has under way, and on which line."""
    found = ((line, getattr(node, line)) for line in LINES)
    return [(line, flight) for line, flight in found if flight is not None]


def on_line(node: Node, line: str, flight: Flight | None) -> Node:
    """The node with this under way on this line."""
    change: dict[str, Any] = {line: flight}
    return node._replace(**change)


def canonical(world: World) -> World:
    """The same world with its tokens renamed in order of appearance, nodes sorted, and what nobody can ask dropped.

    A fresh value is only ever compared for equality, so its name does not matter; nor does a node's.
    """
    names = {0: 0}
    for row in world.db.rows:
        names.setdefault(row.claim, len(names))
    nodes = world.nodes
    if len(nodes) > 1:
        nodes = tuple(sorted(nodes, key=lambda n: _text(n, tuple([names.get(c, -1) for c in tokens(n)]))))
    nodes = tuple([_renamed(node, _named(tokens(node), names)) for node in nodes])
    late = tuple([_renamed(flight, _named(tokens(flight), names)) for flight in world.late])
    past = world.past
    if past is not None:
        for row in past.rows:
            names.setdefault(row.claim, len(names))
        past = _renamed_db(past, nodes, names)
    return world._replace(db=_renamed_db(world.db, nodes, names), past=past, nodes=nodes, late=late)


def _named(claims: tuple[int, ...], names: dict[int, int]) -> tuple[int, ...]:
    return tuple([names.setdefault(claim, len(names)) for claim in claims])


def _renamed_db(db: Db, nodes: tuple[Node, ...], names: dict[int, int]) -> Db:
    rows = db.rows
    if any(row.claim != names[row.claim] for row in rows):
        rows = tuple([row._replace(claim=names[row.claim]) for row in rows])
    runs = db.runs
    if runs:
        asked = {(run.job, run.claim) for node in nodes for run in node.runs}
        runs = frozenset([(j, names[c], s) for j, c, s in runs if c in names and (j, names[c]) in asked])
    return Db(rows, runs)


# The same few nodes turn up in very many worlds, so what is said of one is remembered.


@cache
def tokens(of: Node | Flight) -> tuple[int, ...]:
    """All tokens in it, in a fixed order."""
    if isinstance(of, Flight):
        return (*[run.claim for run in (*of.outcomes, *of.claims)], of.claim)
    inner = [token for _, flight in flights(of) for token in tokens(flight)]
    return (*[run.claim for run in of.runs], *inner, *of.unanswered)


@cache
def _text(node: Node, names: tuple[int, ...]) -> str:
    return repr(_renamed(node, names))


@cache
def _renamed(of: Any, names: tuple[int, ...]) -> Any:
    """The node, or statement, with these tokens in the places of `tokens`."""
    if names == tokens(of):
        return of
    given = iter(names)

    def again(runs: tuple[Run, ...]) -> tuple[Run, ...]:
        return tuple([run._replace(claim=next(given)) for run in runs])

    def flown(flight: Flight) -> Flight:
        outcomes, claims = again(flight.outcomes), again(flight.claims)
        return flight._replace(outcomes=outcomes, claims=claims, claim=next(given))

    if isinstance(of, Flight):
        return flown(of)
    runs = again(of.runs)
    under_way: dict[str, Any] = {line: flown(flight) for line, flight in flights(of)}
    return of._replace(runs=runs, **under_way, unanswered=tuple([next(given) for _ in of.unanswered]))


def show(world: World) -> str:
    """One line: what differs from the plainest state, for a trace."""
    rows = [_brief(row, Row()) for row in world.db.rows]
    bare: dict[str, Any] = {"runs": (), **dict.fromkeys(LINES)}
    nodes = [_brief(node._replace(**bare), Node()) + _runs(node) for node in world.nodes]
    parts = [f"jobs {rows}", *(f"n{i} {text}" for i, text in enumerate(nodes) if text)]
    if world.past is not None:
        parts.append(f"may fall back to {[_brief(row, Row()) for row in world.past.rows]}")
    if world.late:
        parts.append(f"{len(world.late)} statement(s) still at the server")
    return "; ".join(parts).replace("'", "")


def _runs(node: Node) -> str:
    runs = [
        f"job{r.job}#{r.claim} {r.verdict or r.phase} age {r.age}{' told ' + r.stop if r.stop else ''}"
        for r in node.runs
    ]
    text = f" {runs}" if runs else ""
    for line, flight in flights(node):
        what = f"claim #{flight.claim}" if flight.claim else f"{len(flight.outcomes)} run(s)"
        text += f" {line} {flight.stage}: {what}"
    return text


def _brief(value: Row | Node, plain: Row | Node) -> str:
    pairs = [
        f"{field}={given}" if not isinstance(given, bool) else field
        for field, given, usual in zip(value._fields, value, plain, strict=True)
        if given != usual
    ]
    return " ".join(pairs)
