"""What may happen next: every step of a node and of a run, time, every fault, and what must never be seen.

Each step names the method or statement that it stands for; those of the database are in `server.py`.
`Protocol.steps` yields all that may follow a world; a step that shows a broken promise says which.
"""

from __future__ import annotations

from collections.abc import Iterator

from .server import FAULTS, GUARDS, Server, Step, broken_off, fresh, given_back, replaced, with_node
from .world import Db, Flight, Node, Run, World, flights, on_line

__all__ = ["FAULTS", "GUARDS", "Protocol", "Step"]


class Protocol(Server):
    """All steps of all parts."""

    # --- what may happen -----------------------------------------------------------------------------------

    def steps(self, world: World) -> Iterator[Step]:
        for at, node in enumerate(world.nodes):
            if node.state == "up":
                yield from self._node(world, at, node)
            yield from self._fate(world, at, node)
            for line, flight in flights(node):
                yield from self._server(world, at, node, line, flight)
        yield from self._anyone(world)
        yield from self._disasters(world)
        if not self._urgent(world):
            yield self._tick(world)

    def ended(self, world: World) -> bool:
        """Nothing is left to do."""
        return all(row.state == "gone" for row in world.db.rows)

    # --- time ----------------------------------------------------------------------------------------------

    def _urgent(self, world: World) -> bool:
        """What a healthy node does at once is done before time passes; user code alone takes as long as it likes."""
        scope = self.scope
        for node in world.nodes:
            if node.state != "up":
                continue
            if not node.cut:
                if node.unanswered and node.claiming:  # else it may end before it has asked
                    return True
                if any(not flight.slow and not self._stuck(world, flight) for _, flight in flights(node)):
                    return True
                if node.recorder is None and any(run.phase == "settled" for run in node.runs):
                    return True
            for run in node.runs:
                if run.phase == "ready":
                    return True
                if not run.held or run.stop == "lost":
                    continue
                if run.age >= scope.patience and run.phase != "settled" and self.without != "self-fencing":
                    return True
                # A row that is locked cannot be beaten, however often one tries.
                vain = self.without != "a lock is no proof" and self._waits(world, run)
                if run.age >= scope.interval and not node.cut and self._beats(run) and not vain:
                    return True
        return False

    def _stuck(self, world: World, flight: Flight) -> bool:
        return flight.stage != "answered" and any(self._waits(world, run) for run in flight.outcomes)

    def _tick(self, world: World) -> Step:
        scope = self.scope

        def older(db: Db) -> Db:
            return db._replace(
                rows=tuple([r._replace(age=min(r.age + 1, scope.timeout)) if r.claim else r for r in db.rows])
            )

        def aged(run: Run, awake: bool) -> Run:
            return run._replace(age=min(run.age + 1, scope.patience), excused=max(run.excused - awake, 0))

        def later(flight: Flight) -> Flight:
            return flight._replace(age=min(flight.age + 1, scope.patience))

        nodes = []
        for node in world.nodes:
            node = node._replace(runs=tuple([aged(run, node.state == "up") for run in node.runs]))
            for line, flight in flights(node):
                node = on_line(node, line, later(flight))
            nodes.append(node)
        # The WAL writer flushes within 0.6 s, which is much less than a heartbeat interval.
        past = world.past and older(world.past) if "failover" in scope.kinds else None
        after = world._replace(db=older(world.db), past=past, nodes=tuple(nodes))
        # Within one instant a node may not know yet; once time has passed, it must.
        return Step("quiet", "a tick", after, self._overlap(after))

    def _overlap(self, world: World) -> str:
        for job in range(len(world.db.rows)):
            active = [
                run
                for node in world.nodes
                if node.state == "up"
                for run in node.runs
                if run.job == job
                and run.phase in ("running", "locked")
                and run.stop != "lost"
                and run.excused <= 0
            ]
            if len(active) > 1:
                return "one at a time"
        return ""

    # --- one node ------------------------------------------------------------------------------------------

    def _node(self, world: World, at: int, node: Node) -> Iterator[Step]:
        def quiet(text: str, node: Node) -> Step:
            return Step("quiet", f"n{at} {text}", with_node(world, at, node))

        if not node.cut:
            if node.recorder is None:
                yield from self._record(world, at, node)
            if node.dispatcher is None:
                yield from self._claim(world, at, node)
            if self._wants_to_beat(world, node):
                yield self._heartbeat(world, at, node)
            answers = {"recorder": self._recorded, "dispatcher": self._claimed, "slot": self._caught_up}
            for line, flight in flights(node):
                if flight.stage == "answered":
                    yield answers[line](world, at, node, flight)
        if self.without != "self-fencing":
            # Ledger.expire, by Fence.step
            due = [r for r in node.runs if r.held and r.age >= self.scope.patience and r.phase != "settled"]
            if any(r.stop != "lost" for r in due):
                runs = tuple([r._replace(stop="lost") if r in due else r for r in node.runs])
                yield quiet("fences itself", node._replace(runs=runs, fenced=True))
        for index, run in enumerate(node.runs):
            yield from self._run(world, at, node, index, run)

    # --- its recorder, its dispatcher ------------------------------------------------------------------------

    def _record(self, world: World, at: int, node: Node) -> Iterator[Step]:
        """Recorder.step: what completed, by complete.sql; what ended in any other way, by finish.sql."""
        plain: dict[int, Run] = {}
        other = []
        for run in node.runs:
            if run.phase != "settled":
                continue
            if run.verdict != "ok" or self.scope.jobs[run.job].occurrences or self.marked(run):
                other.append(run)
            else:
                plain.setdefault(run.job, run)  # one outcome per job: _apart
        for outcomes in (tuple(plain.values()), tuple(other)):
            if any(run.doubtful for run in outcomes):
                yield self._resolve_doubts(world, at, node, outcomes)
            elif outcomes:
                # Nothing else of them reaches the server, so nothing else tells two such statements apart.
                bare = tuple([run._replace(age=0, stop="", held=True, excused=0) for run in outcomes])
                text = f"n{at} sends {len(outcomes)} outcome(s)"
                yield Step("quiet", text, with_node(world, at, node._replace(recorder=Flight("sent", bare))))

    def _resolve_doubts(self, world: World, at: int, node: Node, outcomes: tuple[Run, ...]) -> Step:
        """Recorder._resolve_doubts: written.sql."""
        history = {(job, claim) for job, claim, _ in world.db.runs}
        known = {(run.job, run.claim) for run in outcomes if run.doubtful} & history
        if self.without == "lost answer looked up":
            known = set()
        jobs = {job for job, _ in known}
        broken = ""
        runs = []
        for run in node.runs:
            if run in outcomes:
                same = (run.job, run.claim) in known
                if same or (self.without == "looked up by token" and run.job in jobs):
                    broken = broken or ("" if same else "no outcome is dropped")
                    continue
                run = run._replace(doubtful=False)
            runs.append(run)
        after = with_node(world, at, node._replace(runs=tuple(runs)))
        return Step("quiet", f"n{at} asks which outcomes were written", after, broken)

    def _recorded(self, world: World, at: int, node: Node, flight: Flight) -> Step:
        """Recorder.settle: let go of what is written."""
        refused = [flight.outcomes[place] for place in flight.refused]
        # Whether the claim is lost too, the answer to the next outcome tells: states.forgotten.
        gone = {(run.job, run.claim) for run in refused if self.marked(run)}
        sent = {(run.job, run.claim) for run in flight.outcomes} - gone
        broken = ""
        for run in refused:
            known = (run.job, run.claim) in sent and (run.job, run.claim, False) in world.db.runs
            if known and "delay" not in self.scope.kinds:
                broken = "told the truth"  # "claim lost", it says, of a run that is in history
        runs = tuple(
            [
                run._replace(verdict="interrupted") if (run.job, run.claim) in gone else run
                for run in node.runs
                if (run.job, run.claim) not in sent
            ]
        )
        after = with_node(world, at, node._replace(runs=runs, recorder=None))
        return Step("quiet", f"n{at} reads that its outcomes are written", after, broken)

    def _claim(self, world: World, at: int, node: Node) -> Iterator[Step]:
        """Dispatcher.step: give back what a lost answer may have claimed, then claim for the free slots."""
        if node.unanswered:
            yield self._release_unanswered(world, at, node)
            return
        # What has ended needs no slot, be it written or not.
        free = self.scope.slots - sum(run.held and run.phase != "settled" for run in node.runs)
        due = any(row.state == "pending" for row in world.db.rows)
        if node.claiming and not node.fenced and free > 0 and due:
            asking = node._replace(dispatcher=Flight("sent", (), fresh(world), free))  # new_token()
            yield Step("quiet", f"n{at} sends a claim", with_node(world, at, asking))

    def _release_unanswered(self, world: World, at: int, node: Node) -> Step:
        """Dispatcher._release_unanswered: release_claim.sql."""
        rows = tuple(
            [
                given_back(row) if row.state == "running" and row.claim in node.unanswered else row
                for row in world.db.rows
            ]
        )
        world = self._commit(world, world.db._replace(rows=rows)) if rows != world.db.rows else world
        text = f"n{at} gives back what it claimed unseen"
        return Step("quiet", text, with_node(world, at, node._replace(unanswered=())))

    def _claimed(self, world: World, at: int, node: Node, flight: Flight) -> Step:
        """Dispatcher._claim, once the answer is there: hold what was claimed."""
        runs = list(node.runs)
        taken = {run.job for run in flight.claims}
        # Ledger.hold: by job id, so a new claim takes the place of an older one.
        for index, run in enumerate(runs):
            if run.job in taken and run.held:
                told = run.phase != "settled" and self.without != "older claim told"
                runs[index] = run._replace(held=False, stop="lost" if told else run.stop)
        late = flight.age >= self.scope.patience
        for run in flight.claims:
            run = run._replace(age=flight.age, excused=-late)
            runs.append(run if node.claiming else run._replace(phase="settled", verdict="released"))
        after = node._replace(runs=tuple(runs), dispatcher=None)
        return Step("quiet", f"n{at} reads what it has claimed", with_node(world, at, after))

    # --- its heartbeat -----------------------------------------------------------------------------------------

    def _beats(self, run: Run) -> bool:
        return run.phase != "settled" or self.without != "beats until written"

    def _wants_to_beat(self, world: World, node: Node) -> bool:
        """A beat changes nothing unless something is old, was cancelled, or the node is fenced."""
        if node.fenced:
            return True
        for run in node.runs:
            if run.held and run.stop != "lost" and self._beats(run):
                row = world.db.rows[run.job]
                if run.age >= self.scope.interval or (row.cancel and not run.stop and self._owns(row, run)):
                    return True
        return False

    def _heartbeat(self, world: World, at: int, node: Node, answered: bool = True) -> Step:
        """Heartbeat.step and heartbeat.sql: renew, learn of cancels and losses."""
        rows = list(world.db.rows)
        runs = []
        for run in node.runs:
            if run.held and run.stop != "lost" and self._beats(run):
                row = rows[run.job]
                if self._owns(row, run):
                    locked = self._locked(world, run.job)
                    if not locked:
                        rows[run.job] = row._replace(age=0)
                    if not locked or self.without == "a lock is no proof":
                        run = run._replace(age=0)
                    if row.cancel and not run.stop:
                        run = run._replace(stop="cancelled")
                elif run.phase != "settled":
                    run = run._replace(stop="lost")
            runs.append(run)
        beaten = self._commit(world, world.db._replace(rows=tuple(rows)), waits=False)
        if not answered:
            return Step(
                "loss", f"n{at} beats, and the answer is lost", beaten._replace(faults=world.faults - 1)
            )
        after = node._replace(runs=tuple(runs), fenced=False)
        return Step("quiet", f"n{at} beats", with_node(beaten, at, after))

    # --- one run -------------------------------------------------------------------------------------------

    def _run(self, world: World, at: int, node: Node, index: int, run: Run) -> Iterator[Step]:
        spec = self.scope.jobs[run.job]
        row = world.db.rows[run.job]
        who = f"n{at} job{run.job}#{run.claim}"

        def step(
            text: str, changed: Run, world: World = world, broken: str = "", kind: str = "quiet"
        ) -> Step:
            runs = (*node.runs[:index], changed, *node.runs[index + 1 :])
            after = with_node(world, at, node._replace(runs=runs))
            if kind != "quiet":
                after = after._replace(faults=after.faults - 1)
            return Step(kind, f"{who} {text}", after, broken)

        def settled(verdict: str) -> Run:
            return run._replace(phase="settled", verdict=verdict)

        if run.phase == "ready":
            yield from self._plan(world, at, node, run)
        elif run.phase == "running":
            if run.stop:  # ctx.check(), or a process that was killed: _decide.decide
                yield step("stops", settled("cancelled" if run.stop == "cancelled" else "interrupted"))
            if spec.body == "plain" or (run.stop and spec.body == "fenced"):
                yield step("returns", settled("cancelled" if run.stop == "cancelled" else "ok"))
            elif not run.stop or spec.body == "fenced":
                # assert_owner.sql, or mark_completed.sql at the end of ctx.transaction(): takes the row's lock
                if not self._owns(row, run) or (spec.body == "transaction" and row.done):
                    yield step("is told by its statement that the claim is lost", run._replace(stop="lost"))
                elif not self._locked(world, run.job):
                    yield step("locks its row", run._replace(phase="locked"))
            if self._may(world, "raise"):
                yield step(
                    "raises", settled("cancelled" if run.stop == "cancelled" else "fail"), kind="raise"
                )
        elif run.phase == "locked":
            if node.cut:
                yield step("loses its transaction's connection", settled("fail"))
                return
            broken = "fenced" if row.claim != run.claim else ""
            db = world.db
            if spec.body == "transaction":
                marked = self.without != "completion mark"
                changed = row._replace(effects=min(row.effects + 1, 2), done=marked)
                db = db._replace(rows=replaced(db.rows, run.job, changed))
                if changed.effects > 1:
                    broken = "effects at most once"
            after = self._commit(world, db)
            stopped = run.stop == "cancelled" and spec.body == "fenced"
            yield step("commits its transaction", settled("cancelled" if stopped else "ok"), after, broken)
            if self._may(world, "loss"):
                text = "commits its transaction, and the answer is lost"
                yield step(
                    text, settled("cancelled" if run.stop == "cancelled" else "fail"), after, broken, "loss"
                )
            if self._may(world, "raise"):
                yield step("raises and rolls back", settled("fail"), kind="raise")

    def _plan(self, world: World, at: int, node: Node, run: Run) -> Iterator[Step]:
        """Runner.plan and _decide.prepare: what needs no user code; else the run begins."""
        spec = self.scope.jobs[run.job]
        if run.stop or (run.age >= self.scope.patience and self.without != "stale claim not begun"):
            verdict = "released"  # told to stop before it started, or too old: Ledger.outlived
        elif run.done:
            verdict = "recorded"
        elif run.cancel:
            verdict = "cancelled"
        elif run.stalls >= spec.max_stalls:
            verdict = "poisoned"
        else:
            # _misfire: who makes up for what was missed says so first; a retry is for the occurrence that was begun.
            last = run.occurrence + 1 >= spec.occurrences
            if spec.missed and not (last or run.failures or run.stalls):
                asked = run._replace(phase="asked")
                sent = Flight("sent", (run._replace(verdict="missed", age=0, excused=0),))
                if self.without == "catch-up written first":
                    sent = sent._replace(stage="answered")
                if node.slot is None:
                    after = with_node(world, at, with_run(node, run, asked)._replace(slot=sent))
                    yield Step("quiet", f"n{at} job{run.job}#{run.claim} skips what it missed", after)
            yield self._begin(world, at, node, run, run)
            return
        settled = run._replace(phase="settled", verdict=verdict)
        after = with_node(world, at, with_run(node, run, settled))
        yield Step("quiet", f"n{at} job{run.job}#{run.claim} is {verdict}", after)

    def _caught_up(self, world: World, at: int, node: Node, flight: Flight) -> Step:
        """Runner._catch_up, once the answer is there."""
        (asked,) = flight.outcomes
        (run,) = [r for r in node.runs if (r.job, r.claim) == (asked.job, asked.claim)]
        node = node._replace(slot=None)
        again = self.without != "asked again" and (run.stop or run.age >= self.scope.patience)
        if flight.refused or again:
            back = with_run(node, run, run._replace(phase="settled", verdict="released"))
            return Step("quiet", f"n{at} job{run.job}#{run.claim} is released", with_node(world, at, back))
        return self._begin(world, at, node, run, run._replace(occurrence=run.occurrence + 1))

    def _begin(self, world: World, at: int, node: Node, before: Run, run: Run) -> Step:
        """Runner.begin: from here on user code runs."""
        spec, row = self.scope.jobs[run.job], world.db.rows[run.job]
        starts, broken = world.starts, ""
        if row.claim == run.claim:
            starts = replaced(starts, run.job, min(starts[run.job] + 1, 9))
            # A claim that a jump of the database undid is counted nowhere.
            if starts[run.job] > spec.retries + spec.max_stalls and not world.jumped:
                broken = "attempts bounded"
        if run.excused < 2 and (row.claim != run.claim or row.age >= self.scope.timeout):
            broken = broken or "no run begins on a lost claim"
        after = with_node(world, at, with_run(node, before, run._replace(phase="running")))
        return Step("quiet", f"n{at} job{run.job}#{run.claim} starts", after._replace(starts=starts), broken)

    # --- what befalls a node, or the server ------------------------------------------------------------------

    def _fate(self, world: World, at: int, node: Node) -> Iterator[Step]:
        def fate(kind: str, text: str, after: Node) -> Step:
            changed = with_node(world, at, after)
            if kind != "quiet":
                changed = changed._replace(faults=world.faults - 1)
            return Step(kind, f"n{at} {text}", changed)

        def unaware(node: Node) -> tuple[Run, ...]:
            return tuple([run._replace(excused=max(run.excused, 1)) for run in node.runs])

        under_way = flights(node)
        over = not node.claiming and not node.runs and not under_way
        if node.state == "dead" or (node.state == "up" and over):
            yield fate("quiet", "is started anew", Node())
            return
        if node.state == "paused":
            yield fate("quiet", "goes on", node._replace(state="up", runs=unaware(node)))
        elif node.state == "up":
            if self._may(world, "pause") and (node.runs or under_way):
                yield fate("pause", "is paused", node._replace(state="paused"))
            if self._may(world, "shutdown") and node.claiming:
                yield fate("shutdown", "is asked to stop", self._stopped(node))
            if self._may(world, "loss") and not node.cut and self._wants_to_beat(world, node):
                yield self._heartbeat(world, at, node, answered=False)
        if self._may(world, "crash"):
            # What it had sent may still be executed; so may nothing of it.
            yield fate("crash", "is killed", Node("dead"))
            sent = [flight for _, flight in under_way if flight.stage == "sent"]
            if sent:
                left = world._replace(late=(*world.late, *sent))
                after = with_node(left, at, Node("dead"))._replace(faults=world.faults - 1)
                yield Step("crash", f"n{at} is killed; the server has what it sent", after)
        if node.cut:
            yield fate("quiet", "reaches the database again", node._replace(cut=False, runs=unaware(node)))
        elif self._may(world, "cut") and (node.runs or under_way):
            yield fate("cut", "is cut off", node._replace(cut=True))

    def _stopped(self, node: Node) -> Node:
        """Node.stop: nothing new, every run is told, what no slot has begun goes back."""
        runs = []
        for run in node.runs:
            if run.held and not run.stop:
                run = run._replace(stop="shutdown")
            if run.phase == "ready":
                run = run._replace(phase="settled", verdict="released")
            runs.append(run)
        return node._replace(claiming=False, runs=tuple(runs))

    def _disasters(self, world: World) -> Iterator[Step]:
        if "failover" in self.scope.kinds and world.faults and world.past is None:
            yield Step("failover", "the standby falls behind from here", world._replace(past=world.db))
        if world.past is not None and "database" in self.scope.kinds:
            yield Step("quiet", "the server flushes its log", world._replace(past=None))
        if self._may(world, "database"):
            yield self._jump(world, "database", "the server crashes", world.past or world.db)
        if self._may(world, "failover") and world.past is not None:
            yield self._jump(world, "failover", "the standby takes over", world.past)

    def _jump(self, world: World, kind: str, text: str, db: Db) -> Step:
        """Every connection breaks, open transactions are rolled back, the database is what `db` says."""
        nodes = []
        for node in world.nodes:
            runs = []
            for run in node.runs:
                if run.phase == "locked":
                    run = run._replace(phase="settled", verdict="fail")
                runs.append(run._replace(excused=2))
            left = node._replace(runs=tuple(runs))
            for line, flight in flights(node):
                left = broken_off(left, line, flight)
            nodes.append(left)
        broken = ""
        if kind == "database":
            for job, row in enumerate(db.rows):
                if row.state == "absent" and (world.acknowledged >> job) & 1:
                    broken = "nothing is lost"
                if row.state != "gone" and (world.final >> job) & 1:
                    broken = "terminal is final"
        final = world.final if kind == "database" else 0
        acknowledged = world.acknowledged if kind == "database" else 0
        after = World(db, None, tuple(nodes), (), world.faults - 1, True, acknowledged, final, world.starts)
        return Step(kind, text, after, broken)


def with_run(node: Node, before: Run, after: Run) -> Node:
    """The node with one of its runs replaced."""
    return node._replace(runs=tuple([after if run is before else run for run in node.runs]))
