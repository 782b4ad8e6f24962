"""What jobs wrote into the database: with their completion exactly once, behind `assert_owner` only while they owned."""

from __future__ import annotations

from collections.abc import Hashable, Iterator

from tests.chaos.history import Effect
from tests.chaos.view import CLOCK_ERROR, View, shown

__all__ = ["effects_belong_to_runs", "fenced_effects_are_the_owners", "transactions_happen_exactly_once"]


def transactions_happen_exactly_once(view: View) -> Iterator[str]:
    """`ctx.transaction()` commits its effect and the completion of the run, both or neither, once per occurrence. P16."""
    for job, effects in sorted(view.effects.items()):
        done: dict[Hashable, Effect] = {}
        for effect in effects:
            if effect.kind != "transaction":
                continue
            first = done.setdefault(effect.scheduled_at if view.recurring(job) else job, effect)
            if first is not effect:
                yield f"job {job}: {first.run_id} and {effect.run_id} both committed their transaction"
                continue
            yield from _completed(view, effect)
    for run in view.history.runs:
        by_itself = run.outcome == "completed" and run.started_at is None
        if by_itself and not any(
            e.kind == "transaction" and e.scheduled_at == run.scheduled_at
            for e in view.effects.get(run.job_id, ())
        ):
            yield f"{shown(run)} is recorded as completed by its transaction, and there is no effect of it"
    for ended in view.history.endeds:
        committed = ended.run_id in view.committed
        if ended.transaction == "committed" and not committed:
            yield f"job {ended.job_id}: {ended.run_id} saw its transaction committed, and there is no effect of it"
        if ended.transaction == "lost" and committed:
            yield f"job {ended.job_id}: {ended.run_id} was told that its transaction was rolled back, and its effect is there"


def _completed(view: View, effect: Effect) -> Iterator[str]:
    """With the effect the job, or its occurrence, is completed; and nothing of it begins any more."""
    row = view.row.get(effect.job_id)
    marked = row is not None and row.completed_at is not None
    completed = any(r.outcome == "completed" for r in view.runs_for(effect.job_id, effect.scheduled_at))
    if not completed and not marked:
        yield f"job {effect.job_id}: {effect.run_id} committed its transaction, and its work is not recorded as completed"
    for began in view.begans_for(effect.job_id, effect.scheduled_at):
        if began.run_id != effect.run_id and began.at > view.boot(effect.at) + CLOCK_ERROR:
            yield f"{shown(began)}: {began.run_id} began, and the transaction of {effect.run_id} had completed it"


def fenced_effects_are_the_owners(view: View) -> Iterator[str]:
    """Behind `assert_owner` only the owner writes: after a new owner's first row there is none of the old one. P4."""
    for job, effects in sorted(view.effects.items()):
        order = {began.token: place for place, began in enumerate(view.begans.get(job, ()))}
        latest: Effect | None = None
        for effect in effects:
            if effect.kind == "free":
                continue
            if latest is not None and order.get(effect.token, 0) < order.get(latest.token, 0):
                yield f"job {job}: {effect.run_id} wrote as the owner, after its successor {latest.run_id} had"
            else:
                latest = effect
            run = view.run_of.get((job, effect.token))
            if (
                effect.kind == "fenced"
                and run is not None
                and run.outcome == "stalled"
                and effect.at > run.finished_at + CLOCK_ERROR
            ):
                yield f"job {job}: {effect.run_id} wrote as the owner {effect.at - run.finished_at:.2f} s after its claim was taken"


def effects_belong_to_runs(view: View) -> Iterator[str]:
    """Every effect was written by a run that began, for its own occurrence. P13."""
    for effect in view.history.effects:
        began = view.began.get(effect.run_id)
        if began is None:
            yield f"job {effect.job_id}: an effect of {effect.run_id}, which never began"
        elif began.scheduled_at != effect.scheduled_at:
            yield f"job {effect.job_id}: an effect of {effect.run_id} for another occurrence"
