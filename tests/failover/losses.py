"""What a failover to a standby that lagged has lost, and what it must not have: pure, from a trial's result.

The new primary knows nothing of what the old one did between `lagged` and `blow`. A job is known by its ticket, not by
its id: the new primary gives the ids of lost jobs to others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields

from tests.chaos.history import Began, Run
from tests.failover.trial import Result

__all__ = ["Losses", "losses", "stale_writes"]

#: Seconds that a commit may have needed to the standby, and a claim to its run's first line.
MARGIN = 1.5


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Counts. None of them breaks a promise: replication was asynchronous."""

    acknowledged: int  # jobs that a client was told are stored, and that do not exist
    runs: int  # that began in the lag; their records, or their claims, are gone
    repeated: int  # jobs of which the new primary has begun another run after one that had returned before
    ids: int  # job ids that name another job than they did

    def __str__(self) -> str:
        return ", ".join(f"{getattr(self, item.name)} {item.name}" for item in fields(self))


def losses(result: Result) -> Losses:
    history = result.history
    known = {_ticket(run.parameters) for run in history.runs} | {
        _ticket(row.parameters) for row in history.rows
    }
    stored = [
        call
        for call in history.calls
        if call.verb == "schedule" and call.answer == "ok" and call.committed and call.schedule is None
    ]
    begun = [b for b in history.begans if result.lagged <= b.at < result.blow]
    tickets: dict[int, set[str]] = {}
    for call in stored:
        if call.key is None and call.job_id is not None:
            tickets.setdefault(call.job_id, set()).add(_ticket(call.parameters))
    to_their_end = {ended.run_id for ended in history.endeds if ended.how == "returned"}
    returned = Counter(
        _ticket(b.parameters)
        for b in history.begans
        if b.key is None and _ticket(b.parameters) and b.run_id in to_their_end
    )
    recorded = {(run.job_id, run.token) for run in history.runs}
    return Losses(
        acknowledged=sum(call.key is None and _ticket(call.parameters) not in known for call in stored),
        runs=sum((b.job_id, b.token) not in recorded for b in begun),
        repeated=sum(count > 1 for count in returned.values()),
        ids=sum(len(each) > 1 for each in tickets.values()),
    )


def stale_writes(result: Result) -> Iterator[str]:
    """What the new primary has accepted of claims that it cannot know, and completions without their transaction."""
    history = result.history
    unknown: dict[tuple[int, int], Began] = {
        (b.job_id, b.token): b for b in history.begans if result.lagged + MARGIN < b.at < result.blow
    }
    for run in history.runs:
        if run.token is not None and (run.job_id, run.token) in unknown:
            yield f"{run.name} {run.job_id}: {run.outcome} was recorded for a claim that was lost in the failover"
    for effect in history.effects:
        if (effect.job_id, effect.token) in unknown and effect.kind in ("transaction", "fenced"):
            yield f"job {effect.job_id}: a guarded effect of a claim that was lost in the failover"
    kept = {
        (effect.job_id, effect.scheduled_at) for effect in history.effects if effect.kind == "transaction"
    }
    for run in history.runs:
        if _by_transaction(run) and (run.job_id, run.scheduled_at) not in kept:
            yield f"{run.name} {run.job_id} is recorded as completed, and its transaction is gone"
    done = Counter((e.job_id, e.scheduled_at) for e in history.effects if e.kind == "transaction")
    for (job, _), count in done.items():
        if count > 1:
            yield f"job {job}: its transaction was committed {count} times"


def _by_transaction(run: Run) -> bool:
    return run.name in ("transactional", "pair") and run.outcome == "completed"


def _ticket(parameters: object) -> str:
    """What the clients number their one-time jobs with; empty for the others."""
    return str(parameters.get("ticket", "")) if isinstance(parameters, dict) else ""
