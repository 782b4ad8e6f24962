"""`pgscheduler stats`."""

from __future__ import annotations

from typing import Any

from ._group import cli
from ._options import client, database_options, debug_option, json_option
from ._output import say_json, say_table, span

__all__ = ["stats"]


@cli.command()
@database_options
@json_option
@debug_option
def stats(where: dict[str, Any], as_json: bool) -> None:
    """Count the live jobs. By name and state, with the age of the oldest due one."""
    with client(where) as scheduler:
        found = scheduler.stats()
        living = [node for node in scheduler.nodes() if node.alive]
    found.pop("node")  # the figures of this very process, which runs nothing
    facts = {
        "nodes": len(living), "slots": sum(node.slots for node in living), "due": found["due"],
        "oldest_due_seconds": found["oldest_due_seconds"], "states": found["states"], "names": found["names"],
    }  # fmt: skip
    if as_json:
        return say_json(facts)
    states = ("pending", "running", "paused")
    rows = [[name, *(counts.get(state, 0) for state in states)] for name, counts in found["names"].items()]
    say_table("Live jobs", ("name", *states), rows, "no live jobs")
    late = (
        "" if found["oldest_due_seconds"] is None else f", the oldest for {span(found['oldest_due_seconds'])}"
    )
    print(f"{found['due']} due{late}; {len(living)} living nodes with {facts['slots']} slots")
    return None
