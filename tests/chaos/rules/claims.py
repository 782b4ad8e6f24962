"""Who held a job, and what whoever had lost it could still do: nothing."""

from __future__ import annotations

from collections.abc import Iterator

from tests.chaos.history import Began, Run
from tests.chaos.spans import merged, passed
from tests.chaos.view import BACK_AFTER_AWAY, CLOCK_ERROR, FOUND_SILENT, View, shown

__all__ = [
    "a_lost_claim_writes_nothing",
    "deaths_are_found_in_time",
    "healthy_claims_are_kept",
    "lost_runs_are_told",
    "no_row_is_left_running",
    "one_run_at_a_time",
]


def _was_lost(run: Run | None) -> bool:
    """Whether the database found the run's node silent."""
    return run is not None and run.outcome == "stalled" and (run.reason or "").startswith(FOUND_SILENT)


def one_run_at_a_time(view: View) -> Iterator[str]:
    """A job's code begins only when that of its last run is over, or that run's claim was lost before. P3."""
    for begans in view.begans.values():
        running: list[Began] = []
        for later in begans:
            running = [earlier for earlier in running if view.ran_until(earlier) > later.at]
            for earlier in running:
                if earlier.run_id != later.run_id and not _excused(view, earlier, later):
                    yield (
                        f"{shown(later)}: {later.run_id} on {later.process} began while {earlier.run_id} on "
                        f"{earlier.process} went on for {view.ran_until(earlier) - later.at:.2f} s more"
                    )
            running.append(later)


def _excused(view: View, earlier: Began, later: Began) -> bool:
    if view.asleep(later):
        return True
    run = view.run_of.get((earlier.job_id, earlier.token))
    if run is not None and _was_lost(run):
        return view.boot(run.finished_at) <= later.at + CLOCK_ERROR
    crash = view.forgotten(earlier)
    if run is None and crash is not None:
        return crash <= later.at
    death = view.death(earlier.process)
    # What outlived a shutdown is given back in the instant in which its process ends; the pipe that tells a
    # process of the node's own that its node is gone is read within the same.
    given_back = run is not None and run.outcome == "interrupted" and run.reason == "shutdown"
    if given_back or earlier.isolation == "process":
        return (
            death <= later.at + view.settings.allowance
            and view.ran_until(earlier) <= death + view.settings.allowance
        )
    return False


def a_lost_claim_writes_nothing(view: View) -> Iterator[str]:
    """One outcome per claim; a claim that was lost is not renewed, completes nothing, and does not come back. P4."""
    for job, runs in sorted(view.runs.items()):
        by_token: dict[int, list[Run]] = {}
        for run in runs:
            if run.token is not None:
                by_token.setdefault(run.token, []).append(run)
        for token, written in by_token.items():
            if len(written) > 1:
                yield f"{shown(written[0])}: claim {token:x} wrote {' and '.join(r.outcome for r in written)}"
            committed = [e for e in view.effects.get(job, ()) if e.kind == "transaction" and e.token == token]
            if committed and _was_lost(written[0]) and len(written) == 1:
                yield f"{shown(written[0])}: claim {token:x} was lost, yet its transaction was committed"
    held: dict[int, list[int]] = {}
    for snapshot in sorted(view.history.snapshots, key=lambda s: s.began):
        for claim in snapshot.held:
            tokens = held.setdefault(claim.job_id, [])
            if claim.token in tokens[:-1]:
                yield f"job {claim.job_id}: claim {claim.token:x} was replaced, and came back"
            elif not tokens or tokens[-1] != claim.token:
                tokens.append(claim.token)
            run = view.run_of.get((claim.job_id, claim.token))
            if (
                run is not None
                and _was_lost(run)
                # The line has the time at which its statement began; on a slow disk the commit comes later.
                and view.boot(run.finished_at) + view.settings.allowance < snapshot.began
            ):
                late = snapshot.began - view.boot(run.finished_at)
                yield f"job {claim.job_id}: claim {claim.token:x} was taken back, and held {late:.1f} s later"


def healthy_claims_are_kept(view: View) -> Iterator[str]:
    """No claim is taken, or given up, while its node could say that it lives. P5, P9, P11."""
    for run in view.history.runs:
        if not _was_lost(run) or run.node is None:
            continue
        life = view.life_of_node.get(run.node)
        if life is None:
            continue
        at = view.boot(run.finished_at)
        dead = life.ended is not None and life.ended <= at + CLOCK_ERROR
        if not dead and not view.silent(life.process, at):
            yield f"{shown(run)} was taken from {life.process}, which was well: {run.reason}"
    for run_id, tolds in sorted(view.tolds.items()):
        began = view.began.get(run_id)
        asked = min((told.at for told in tolds if told.reason == "shutdown"), default=float("inf"))
        for told in tolds:
            if told.reason != "lost" or began is None:
                continue
            run = view.run_of.get((told.job_id, told.token))
            taken = _was_lost(run)  # judged above
            if (
                run is not None
                and (run.outcome, run.reason) == ("interrupted", "shutdown")
                and told.at > asked
            ):
                continue  # its process was about to end, and gave back what would not
            if not taken and view.forgotten(began) is None and not view.silent(told.process, told.at):
                yield f"{shown(began)} was told on {told.process} that it had lost its claim, and it had not"


def lost_runs_are_told(view: View) -> Iterator[str]:
    """A run that lost its claim is told before anyone else may take it; a paused one, one heartbeat after its return. P3, P5."""
    settings = view.settings
    for began in view.history.begans:
        run = view.run_of.get((began.job_id, began.token))
        frozen = view.frozen(began.process)
        if run is not None and _was_lost(run):
            lost = view.boot(run.finished_at)
            paused = any(low <= lost and lost - settings.no_heartbeat_timeout < high for low, high in frozen)
            # Cut off, its node has known one heartbeat interval before: that must do for a slow thread.
            bound = settings.heartbeat_interval + settings.allowance if paused else CLOCK_ERROR
            deadline = passed(lost, bound, frozen)
        elif run is None and (crash := view.forgotten(began)) is not None:
            # Its node learns of it by the next heartbeat that is answered.
            lost = max(crash, began.at)
            bound = settings.heartbeat_interval + settings.allowance
            deadline = passed(lost, bound, view.speechless(began.process)) + BACK_AFTER_AWAY
        else:
            continue
        told = any(t.reason == "lost" and t.at <= deadline for t in view.tolds.get(began.run_id, ()))
        # One whose own transaction was committed has no claim any more that it could lose.
        if (
            not told
            and began.looks
            and began.run_id not in view.committed
            and view.ran_until(began) > deadline
        ):
            who = f"{began.run_id} on {began.process}"
            yield f"{shown(began)}: {who} had lost its claim and was not told within {deadline - lost:.2f} s"


def deaths_are_found_in_time(view: View) -> Iterator[str]:
    """The jobs of a dead node are due again within no_heartbeat_timeout and a quarter, while somebody can see to it. P9."""
    bound = view.settings.no_heartbeat_timeout * 1.25 + view.settings.allowance
    for run in view.history.runs:
        life = view.life_of_node.get(run.node or "")
        if not _was_lost(run) or life is None or life.ended is None:
            continue
        found = view.boot(run.finished_at)
        if found > life.ended and found > passed(life.ended, bound, view.unattended):
            yield f"{shown(run)} of {life.process} was found {found - life.ended:.2f} s after its death"


def no_row_is_left_running(view: View) -> Iterator[str]:
    """A row that says running belongs to a living node that beats for it. P2, P9, P10."""
    settings = view.settings
    bound = settings.no_heartbeat_timeout * 1.25 + settings.allowance
    for row in view.history.rows:
        if row.state != "running":
            continue
        life = view.life_of_node.get(row.node or "")
        beaten = max(x for x in (row.claimed_at, row.heartbeat_at, float("-inf")) if x is not None)
        if life is None or (life.ended is not None and life.ended < view.end.rows_read):
            after = "a node that nobody knows" if life is None else f"{life.process}, which is dead"
            if life is None or passed(life.ended or 0.0, bound, view.unattended) < view.end.rows_read:
                yield f"{shown(row)} runs on {after}"
        elif (
            passed(view.boot(beaten), bound, merged([*view.unattended, *view.frozen(life.process)]))
            < view.end.rows_read
        ):
            yield f"{shown(row)} runs on {life.process} without a heartbeat for {view.end.rows_read - view.boot(beaten):.1f} s"
