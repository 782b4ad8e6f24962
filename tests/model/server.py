"""The database's side: what the statements do to the tables, in which order they may come, what a commit keeps.

Each method names the statement that it stands for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from .world import Db, Flight, JobSpec, Node, Row, Run, Scope, World, on_line, tokens

__all__ = [
    "FAULTS",
    "GUARDS",
    "Server",
    "Step",
    "broken_off",
    "fresh",
    "given_back",
    "replaced",
    "with_node",
]

#: What may go wrong, or be asked for by a human. A quiet ending has none of it.
FAULTS = frozenset(
    {
        "pause",  # SIGSTOP, at any step
        "crash",  # SIGKILL
        "cut",  # the network between one node and the database
        "loss",  # a connection breaks: before, or after, the server did what it was asked
        "delay",  # … and the server does it later, when the node has long asked what became of it
        "slow",  # a statement takes longer than anybody would think
        "raise",  # user code raises
        "shutdown",  # Node.stop
        "cancel",  # cancel.sql
        "delete",  # delete.sql
        "database",  # the server crashes: what committed asynchronously since the last flush is gone
        "failover",  # a lagging standby takes over: everything since some moment is gone
    }
)

GUARDS = frozenset(
    {
        "token compared",  # every write of a run: `and j.token = …`
        "random token",  # new_token(); without: a counter in the row
        "row lock",  # claim.sql: for update skip locked
        "stalls counted",  # stalled.sql: stalls = j.stalls + 1
        "stalled scan",  # stalled.sql at all
        "beats until written",  # Ledger: a claim is held until its outcome is written
        "self-fencing",  # Fence.step
        "database clock",  # stalled.sql: {now}()
        "completion mark",  # mark_completed.sql: completed_at
        "mark asked for",  # finish.sql: `g.marked is not true or j.completed_at is not null`
        "lost answer looked up",  # Recorder._resolve_doubts: written.sql
        "looked up by token",  # … by (id, token), not by id alone
        "schedule waits for the disk",  # insert.sql, upsert.sql: synchronous_commit
        "older claim told",  # Ledger.hold: who holds an older claim of the same job has lost it
        "stale claim not begun",  # Ledger.outlived: an answer, or a pause, that took longer than a claim lasts
        "a lock is no proof",  # heartbeat.sql: a row that was locked has not been beaten
        "catch-up written first",  # catch_up.sql: the row says which occurrence runs
        "asked again",  # Runner.plan: the answer to catch_up.sql may come when the claim is lost
        "every end recorded",  # finish.sql: a row that leaves has a line in history
        "unstarted never leaves",  # finish.sql: what was only given back is not deleted
    }
)


class Step(NamedTuple):
    kind: str  # a fault's name, or 'quiet'
    text: str
    world: World
    broken: str = ""  # the promise that this step breaks


class Server:
    """Everything that happens in PostgreSQL. `without` names the guard that is taken out."""

    def __init__(self, scope: Scope, without: str = "") -> None:
        assert not without or without in GUARDS, without
        assert scope.kinds <= FAULTS, scope.kinds
        assert not {"database", "failover"} <= scope.kinds, "both use World.past"
        self.scope = scope
        self.without = without

    # --- statements ----------------------------------------------------------------------------------------

    def _server(self, world: World, at: int, node: Node, line: str, flight: Flight) -> Iterator[Step]:
        """A statement arrives and is executed, or its connection breaks."""
        if flight.stage == "sent" and flight.claim and self.without == "row lock":
            # Two statements can read the same due rows, and the second takes what the first has taken.
            picks = self._due(world, flight.slots)
            read = node._replace(dispatcher=flight._replace(stage="read", picks=picks))
            yield Step("quiet", f"server reads what is due for n{at}", with_node(world, at, read))
        elif flight.stage != "answered":
            done = self._execute(world, flight)
            if done is not None:
                after, answered, broken = done
                text = f"server executes what n{at}'s {line} sent"
                yield Step("quiet", text, with_node(after, at, on_line(node, line, answered)), broken)
        # The connection breaks: the node does not know what the server did.
        text = f"n{at}'s {line} loses its connection, {flight.stage}"
        lost = with_node(world, at, broken_off(node, line, flight))
        spent = world.faults - 1
        if node.cut:
            yield Step("quiet", text, lost)
        elif self._may(world, "loss"):
            yield Step("loss", text, lost._replace(faults=spent))
        if self._may(world, "slow") and not flight.slow:
            slow = with_node(world, at, on_line(node, line, flight._replace(slow=True)))
            yield Step("slow", f"n{at}'s {line} must wait, {flight.stage}", slow._replace(faults=spent))
        if flight.stage == "sent" and self._may(world, "delay"):
            left = lost._replace(faults=spent, late=(*world.late, flight))
            yield Step("delay", f"{text}; the server has it still", left)

    def _execute(self, world: World, flight: Flight) -> tuple[World, Flight, str] | None:
        """complete.sql, finish.sql, claim.sql or catch_up.sql; None while it must wait for a row's lock."""
        rows, broken = list(world.db.rows), ""
        runs, final, starts = world.db.runs, world.final, list(world.starts)
        refused: list[int] = []
        for place, run in enumerate(flight.outcomes):
            row, spec = rows[run.job], self.scope.jobs[run.job]
            # What its own transaction completed must say so: a failover may have kept the claim and lost that.
            unmarked = self.marked(run) and not row.done and self.without != "mark asked for"
            if unmarked or not self._owns(row, run):
                refused.append(place)
                continue
            if self._waits(world, run):
                return None
            if row.claim != run.claim:
                broken = broken or "fenced"
            changed, recorded, fault = self._finish(row, run, spec)
            # A failover that loses commits may lose a catch-up that its node has seen: README.md.
            excused = spec.missed and world.jumped and "failover" in self.scope.kinds
            broken = broken or ("" if excused else fault)
            if recorded:
                runs |= {(run.job, run.claim, False)}
            if run.verdict == "interrupted" and starts[run.job]:
                starts[run.job] -= 1  # burns no attempt
            if changed.occurrence != row.occurrence:
                starts[run.job] = 0
            if changed.state == "gone":
                final |= 1 << run.job
            rows[run.job] = changed
        claims: list[Run] = []
        if flight.claim:
            for job in flight.picks if flight.stage == "read" else self._due(world, flight.slots):
                row = rows[job]
                if row.state == "gone":
                    continue
                row = row._replace(state="running", claim=flight.claim, age=0)
                if self.without == "random token":
                    row = row._replace(number=row.number + 1)
                rows[job] = row
                facts = (row.failures, row.stalls, row.done, row.cancel, row.occurrence, 0)
                claims.append(Run(job, row.claim, row.number, "ready", "", 0, "", True, False, *facts))
        db = Db(tuple(rows), runs)
        # Nobody waits for the disk where only a claim is at stake.
        after = self._commit(world, db, waits=not flight.claim) if db != world.db else world
        after = after._replace(final=final, starts=tuple(starts))
        answer = flight._replace(
            stage="answered", picks=(), slots=0, refused=tuple(refused), claims=tuple(claims)
        )
        return after, answer, broken

    def _finish(self, row: Row, run: Run, spec: JobSpec) -> tuple[Row, bool, str]:
        """What becomes of the row: (row, has a line in history, broken)."""
        verdict, recurring = run.verdict, spec.occurrences > 0
        if verdict == "missed":
            broken = "both or neither" if row.effects else ""
            return row._replace(occurrence=run.occurrence + 1), False, broken
        over = verdict in ("ok", "recorded", "cancelled", "poisoned")
        again = verdict == "fail" and run.failures < spec.retries
        over = over or (verdict == "fail" and not again)
        following = over and recurring and run.occurrence + 1 < spec.occurrences  # next_at is not null
        ends = over and not following
        started = verdict != "released"  # outcome is not null
        unstarted = self.without == "unstarted never leaves" or started
        leaves = ends or (row.delete and started) or (row.done and not recurring and unstarted)
        kept = leaves if self.without != "every end recorded" else not recurring
        recorded = started and (not row.done or kept or following)
        outcome = "completed" if row.done or verdict in ("ok", "recorded") else verdict
        broken = ""
        if started and run.occurrence != row.occurrence:
            broken = "every end is recorded"  # that of another occurrence
        if leaves or following:
            if not recorded:
                broken = "every end is recorded"
            elif spec.body == "transaction" and row.effects != (outcome == "completed"):
                broken = "both or neither"
        if leaves:
            return row._replace(state="gone", claim=0, age=0, cancel=False, delete=False), recorded, broken
        row = given_back(row)
        row = row._replace(failures=run.failures + again, stalls=run.stalls)
        if started:
            row = row._replace(delete=False)
        if following:
            row = Row("pending", number=row.number, occurrence=run.occurrence + 1)
        return row, recorded, broken

    def _due(self, world: World, slots: int) -> tuple[int, ...]:
        """claim.sql: pending, and not locked."""
        due = [
            j for j, row in enumerate(world.db.rows) if row.state == "pending" and not self._locked(world, j)
        ]
        return tuple(due[:slots])

    def _anyone(self, world: World) -> Iterator[Step]:
        """Statements of any connection: clients' verbs, and the chores of whichever node is awake."""
        for index, flight in enumerate(world.late):
            done = self._execute(world, flight)
            if done is not None:
                after, _, broken = done
                rest = (*world.late[:index], *world.late[index + 1 :])
                yield Step(
                    "quiet",
                    "server executes what nobody waits for",
                    after._replace(late=rest),
                    broken,
                )
        awake = any(node.state == "up" and not node.cut for node in world.nodes)
        for job, row in enumerate(world.db.rows):
            yield from self._verbs(world, job, row)
            if (
                awake
                and row.state == "running"
                and not self._locked(world, job)
                and self.without != "stalled scan"
            ):
                # stalled.sql, in Maintenance.step; without the database's clock, a node's own is two ticks ahead
                age = row.age + 2 if self.without == "database clock" else row.age
                if age >= self.scope.timeout:
                    yield self._reset(world, job, row)

    def _verbs(self, world: World, job: int, row: Row) -> Iterator[Step]:
        if row.state == "absent":
            # insert.sql, upsert.sql: schedule() returns after the commit
            waits = self.without != "schedule waits for the disk"
            after = self._commit(world, with_row(world.db, job, row._replace(state="pending")), waits=waits)
            lost = "" if not (world.acknowledged >> job) & 1 or world.jumped else "nothing is lost"
            after = after._replace(acknowledged=world.acknowledged | 1 << job)
            if not lost:
                yield Step("quiet", f"job{job} is scheduled", after)
            return
        if row.state == "gone" or self._locked(world, job):
            return
        for kind in ("cancel", "delete"):
            if not self._may(world, kind) or row.cancel:
                continue
            final = world.final
            recurring = self.scope.jobs[job].occurrences > 0
            broken = ""
            if row.state == "running":  # asked to stop: the next heartbeat's answer tells
                changed = row._replace(cancel=True, delete=row.delete or kind == "delete")
            elif kind == "delete" or not recurring:  # ends here
                changed = row._replace(state="gone", delete=False)
                final |= 1 << job
                if row.effects != row.done:
                    broken = "both or neither"
            else:
                continue
            after = self._commit(world, with_row(world.db, job, changed))
            after = after._replace(final=final, faults=world.faults - 1)
            yield Step(kind, f"job{job}: {kind}", after, broken)

    def _reset(self, world: World, job: int, row: Row) -> Step:
        """stalled.sql: due again, the stall counted and recorded."""
        living = any(
            run.claim == row.claim and run.job == job and run.held and run.stop != "lost" and not run.excused
            for node in world.nodes
            if node.state == "up" and not node.cut
            for run in node.runs
        )
        broken = "a living claim is kept" if living and not row.done else ""
        counted = 0 if row.done or self.without == "stalls counted" else 1
        changed = given_back(row)._replace(stalls=min(row.stalls + counted, self.scope.jobs[job].max_stalls))
        db = with_row(world.db, job, changed)
        if not row.done:
            db = db._replace(runs=db.runs | {(job, row.claim, True)})
        return Step("quiet", f"job{job}#{row.claim} is found stalled", self._commit(world, db), broken)

    # --- small words ---------------------------------------------------------------------------------------

    def _may(self, world: World, kind: str) -> bool:
        return world.faults > 0 and kind in self.scope.kinds

    def marked(self, run: Run) -> bool:
        """Its ctx.transaction() has committed: Ended.marked."""
        return run.verdict == "ok" and self.scope.jobs[run.job].body == "transaction"

    def _waits(self, world: World, run: Run) -> bool:
        """Its outcome's statement must wait until a transaction lets go of the row."""
        return self._locked(world, run.job) and self._owns(world.db.rows[run.job], run)

    def _owns(self, row: Row, run: Run) -> bool:
        """`where j.id = … and j.token = …`"""
        if row.state in ("absent", "gone"):
            return False
        if self.without == "token compared":
            return True
        if self.without == "random token":
            return row.state == "running" and row.number == run.number
        return row.claim == run.claim

    def _locked(self, world: World, job: int) -> bool:
        for node in world.nodes:
            for run in node.runs:
                if run.phase == "locked" and run.job == job:
                    return True
        return False

    def _commit(self, world: World, db: Db, waits: bool = True) -> World:
        """A transaction ends. One that does not wait for the disk can be lost, together with all after the last flush."""
        if "database" not in self.scope.kinds or not world.faults:
            return world._replace(db=db)
        return world._replace(db=db, past=None if waits else world.past or world.db)


def given_back(row: Row) -> Row:
    return row._replace(state="pending", claim=0, age=0)


def replaced(values: tuple, index: int, value: object) -> tuple:  # type: ignore[type-arg]
    return (*values[:index], value, *values[index + 1 :])


def with_row(db: Db, job: int, row: Row) -> Db:
    return db._replace(rows=replaced(db.rows, job, row))


def broken_off(node: Node, line: str, flight: Flight) -> Node:
    """What the node makes of a statement whose answer will not come."""
    node = on_line(node, line, None)
    if line == "dispatcher":  # Dispatcher._claim
        return node._replace(unanswered=(*node.unanswered, flight.claim))
    sent = {(run.job, run.claim) for run in flight.outcomes}
    runs = list(node.runs)
    for index, run in enumerate(runs):
        if (run.job, run.claim) in sent and line == "recorder":  # Recorder._write
            runs[index] = run._replace(doubtful=True)
        elif (run.job, run.claim) in sent:  # Runner._catch_up: the job goes back, and nothing was begun
            runs[index] = run._replace(phase="settled", verdict="released")
    return node._replace(runs=tuple(runs))


def with_node(world: World, at: int, node: Node) -> World:
    return world._replace(nodes=replaced(world.nodes, at, node))


def fresh(world: World) -> int:
    """A token that nobody has."""
    known = [0]
    for db in (world.db, world.past):
        if db is not None:
            known += [*(row.claim for row in db.rows), *(claim for _, claim, _ in db.runs)]
    for one in (*world.nodes, *world.late):
        known += tokens(one)
    return max(known) + 1
