"""Breadth-first through every world that a scope can reach, and back from the good endings.

Breadth-first, so the first counterexample is one of the shortest. Two worlds that differ only in the names of
tokens and nodes are one (`world.canonical`).
"""

from __future__ import annotations

import gc
import time
from collections import deque
from dataclasses import dataclass, field

from .protocol import Protocol
from .world import Scope, World, canonical, initial, show

__all__ = ["Result", "search"]


@dataclass
class Result:
    """What a search found."""

    scope: Scope
    states: int
    steps: int
    depth: int
    seconds: float
    broken: str = ""  # the promise that breaks; '' if none does
    trace: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        verdict = f"BROKEN: {self.broken}" if self.broken else "all kept"
        return (
            f"{self.scope.name:<28} {self.states:>9,} states {self.steps:>10,} steps  depth {self.depth:>3}"
            f"  {self.seconds:6.1f} s  {verdict}"
        )


def search(scope: Scope, without: str = "", promise: str = "") -> Result:
    """Look at everything; stop at the first broken promise, or at the first breach of this one."""
    collecting = gc.isenabled()
    gc.disable()  # there are no cycles here, and millions of tuples to look through in vain
    try:
        return _search(scope, without, promise)
    finally:
        if collecting:
            gc.enable()


def _search(scope: Scope, without: str, promise: str) -> Result:
    began = time.monotonic()
    protocol = Protocol(scope, without)
    first = canonical(initial(scope))
    number: dict[World, int] = {first: 0}
    parent = [-1]
    before: list[list[int]] = [[]]  # by which quiet steps one gets here
    good: list[int] = []
    queue = deque([(first, 0, 0)])
    steps = depth = 0

    def result(broken: str = "", trace: list[str] | None = None) -> Result:
        return Result(scope, len(parent), steps, depth, time.monotonic() - began, broken, trace or [])

    while queue:
        world, here, depth = queue.popleft()
        if protocol.ended(world):
            good.append(here)
        for step in protocol.steps(world):
            steps += 1
            if step.broken and promise in ("", step.broken):
                return result(step.broken, _trace(protocol, number, parent, here, step.broken))
            after = canonical(step.world)
            there = number.get(after)
            if there is None:
                there = number[after] = len(parent)
                parent.append(here)
                before.append([])
                queue.append((after, there, depth + 1))
            if step.kind == "quiet":
                before[there].append(here)
    stuck = _stuck(before, good)
    if stuck is not None:
        return result("every job ends", _trace(protocol, number, parent, stuck))
    return result()


def _stuck(before: list[list[int]], good: list[int]) -> int | None:
    """The first world from which no quiet way leads to the end of all jobs; None when there is none."""
    reached = bytearray(len(before))
    todo = list(good)
    for at in todo:
        reached[at] = 1
    while todo:
        for at in before[todo.pop()]:
            if not reached[at]:
                reached[at] = 1
                todo.append(at)
    missing = reached.find(0)
    return None if missing < 0 else missing


def _trace(
    protocol: Protocol, number: dict[World, int], parent: list[int], last: int, broken: str = ""
) -> list[str]:
    """How one gets to a world, and what is wrong there. Replayed with names that stay the same from line to line."""
    path = [last]
    while parent[path[-1]] >= 0:
        path.append(parent[path[-1]])
    path.reverse()
    world = initial(protocol.scope)
    lines = []
    for target in path[1:]:
        step = next(s for s in protocol.steps(world) if number.get(canonical(s.world)) == target)
        world = step.world
        lines.append(f"{step.text:<70} {show(world)}")
    if broken:
        step = next(s for s in protocol.steps(world) if s.broken == broken)
        lines.append(f"{step.text:<70} {broken.upper()}")
    return lines
