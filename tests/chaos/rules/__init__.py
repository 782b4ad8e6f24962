"""The rules: one small function each, pure, from a view of the history to what contradicts its first line."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.chaos.rules.asks import cancels_are_kept, pauses_and_deletes_are_kept, requests_reach_the_run
from tests.chaos.rules.attempts import (
    attempts_are_bounded,
    attempts_are_counted,
    each_run_has_its_line,
    lines_say_what_happened,
)
from tests.chaos.rules.claims import (
    a_lost_claim_writes_nothing,
    deaths_are_found_in_time,
    healthy_claims_are_kept,
    lost_runs_are_told,
    no_row_is_left_running,
    one_run_at_a_time,
)
from tests.chaos.rules.effects import (
    effects_belong_to_runs,
    fenced_effects_are_the_owners,
    transactions_happen_exactly_once,
)
from tests.chaos.rules.jobs import (
    every_job_was_asked_for,
    finished_is_final,
    nothing_is_left_undone,
    nothing_lost,
    one_job_per_key,
    parameters_arrive,
)
from tests.chaos.rules.nodes import code_runs_in_its_process, shutdown_is_bounded, slots_are_kept
from tests.chaos.rules.occurrences import (
    each_occurrence_once,
    every_occurrence_is_accounted_for,
    nothing_runs_early,
)
from tests.chaos.view import View

__all__ = ["RULES", "Rule"]

Rule = Callable[[View], Iterator[str]]

RULES: tuple[Rule, ...] = (
    nothing_lost,
    every_job_was_asked_for,
    finished_is_final,
    nothing_is_left_undone,
    one_job_per_key,
    parameters_arrive,
    one_run_at_a_time,
    a_lost_claim_writes_nothing,
    healthy_claims_are_kept,
    lost_runs_are_told,
    deaths_are_found_in_time,
    no_row_is_left_running,
    each_occurrence_once,
    every_occurrence_is_accounted_for,
    nothing_runs_early,
    attempts_are_bounded,
    attempts_are_counted,
    each_run_has_its_line,
    lines_say_what_happened,
    transactions_happen_exactly_once,
    fenced_effects_are_the_owners,
    effects_belong_to_runs,
    cancels_are_kept,
    requests_reach_the_run,
    pauses_and_deletes_are_kept,
    slots_are_kept,
    code_runs_in_its_process,
    shutdown_is_bounded,
)
