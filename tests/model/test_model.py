"""The protocol keeps its promises in every world that the model can reach; and each guard is there for a reason."""

from __future__ import annotations

import pytest

from tests.model.protocol import FAULTS, GUARDS, Protocol
from tests.model.scopes import DEFAULT, GUARDED
from tests.model.search import search
from tests.model.world import JobSpec, Scope, canonical, initial

ENOUGH = 100  # states; a search that sees fewer has looked at nothing


@pytest.mark.parametrize("scope", DEFAULT, ids=[scope.name for scope in DEFAULT])
def test_every_promise_is_kept(scope: Scope) -> None:
    """No reachable world breaks a promise, and from each of them all jobs end once the faults are over."""
    result = search(scope)
    print(result)

    assert (result.broken, result.trace) == ("", []), "\n".join([result.broken, *result.trace])
    assert result.states > ENOUGH


@pytest.mark.parametrize("guard", sorted(GUARDED))
def test_no_guard_is_in_vain(guard: str) -> None:
    """With a guard taken out, the promise that it is for breaks, within a scope that is sound with it."""
    scope, promise = GUARDED[guard]
    result = search(scope, without=guard, promise=promise)
    print(guard, result, sep=": ")

    assert promise == result.broken
    assert guard == "stalled scan" or promise.upper() in result.trace[-1]
    assert search(scope).broken == ""


def test_every_guard_and_every_fault_is_looked_at() -> None:
    """The lists of guards and faults and the lists of what is searched do not drift apart."""
    assert set(GUARDED) == GUARDS
    assert set().union(*(scope.kinds for scope in DEFAULT)) == FAULTS


def test_the_names_of_tokens_and_nodes_do_not_matter() -> None:
    """Worlds that differ in nothing else are one: the same job claimed by either node, under any token."""
    scope = Scope("two ways", frozenset(), 0, (JobSpec(),))
    protocol = Protocol(scope)
    (world,) = [step.world for step in protocol.steps(initial(scope)) if "scheduled" in step.text]
    claimed = [step.world for step in protocol.steps(world) if "claim" in step.text]
    other = claimed[0].nodes[0]
    assert other.dispatcher is not None
    renamed = claimed[0]._replace(
        nodes=(claimed[0].nodes[1], other._replace(dispatcher=other.dispatcher._replace(claim=77)))
    )

    assert 2 == len(claimed) == len(set(claimed))
    assert len({canonical(found) for found in [*claimed, renamed]}) == 1


def test_the_counterexample_is_a_shortest_one() -> None:
    """Two claims that read before they write: schedule, two claims sent, read, written, answered; the first begins."""
    scope, promise = GUARDED["row lock"]
    result = search(scope, without="row lock")

    assert (promise, 9) == (result.broken, len(result.trace))
