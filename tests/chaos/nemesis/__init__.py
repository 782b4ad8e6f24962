"""The seeded faults: a few lanes of them run side by side, each with a random generator of its own.

A fault is a function of the `Ground` that returns when it is over and everything is whole again; its row in
`FAULTS` says in which lane it runs, how often, and what it needs.
"""

from __future__ import annotations

import random
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from tests.chaos.history import boottime
from tests.chaos.nemesis import database, network, processes
from tests.chaos.nemesis.ground import Ground

__all__ = ["FAULTS", "Attack", "Ground", "Nemesis"]


@dataclass(frozen=True)
class Attack:
    """One kind of fault."""

    lane: str
    weight: int
    do: Callable[[Ground, random.Random], None]
    #: Why this ground does not allow it, or None.
    why_not: Callable[[Ground], str | None] = lambda _: None
    longest: float = 15.0  # seconds; a run with less left does not begin it


FAULTS: dict[str, Attack] = {
    "kill": Attack("processes", 4, processes.kill),
    "pause": Attack("processes", 4, processes.pause),
    "term": Attack("processes", 3, processes.term),
    "deploy": Attack("processes", 2, processes.deploy, longest=20),
    "clock": Attack("jobs", 3, processes.clock, processes.no_clock),
    "exit": Attack("jobs", 3, processes.exit_),
    "gil": Attack("jobs", 2, processes.gil, longest=20),
    "memory": Attack("jobs", 2, processes.memory, processes.no_limit),
    "terminate": Attack("database", 4, database.terminate),
    "restart": Attack("database", 2, database.restart, longest=20),
    "crash": Attack("database", 3, database.crash, longest=20),
    "outage6": Attack("database", 2, database.outage(6), longest=30),
    "outage45": Attack("database", 1, database.outage(45), longest=75),
    "outage120": Attack("database", 1, database.outage(120), longest=160),
    "freeze": Attack("database", 2, database.freeze),
    "stutter": Attack("database", 2, database.stutter),
    "connections": Attack("database", 2, database.connections),
    "lock": Attack("database", 2, database.lock),
    "rows": Attack("database", 2, database.rows),
    "disk": Attack("database", 2, database.disk, database.no_disk, longest=30),
    "partition": Attack("network", 3, network.partition, network.no_hosts),
    "thin": Attack("network", 2, network.thin, network.no_hosts),
    "stall": Attack("network", 3, network.stall, network.no_proxies),
    "reset": Attack("network", 2, network.reset, network.no_proxies),
    "delay": Attack("network", 2, network.delay, network.no_proxies),
}


class Nemesis:
    """Runs the chosen faults for a time. `tell` receives a line for each, and for each that was skipped."""

    def __init__(
        self, ground: Ground, chosen: list[str], seed: int, gap: float, tell: Callable[[str], None]
    ) -> None:
        self._ground = ground
        self._gap = gap
        self._tell = tell
        self.failures: list[str] = []  # of the nemesis itself
        self.done: dict[str, int] = {}
        self.skipped: set[str] = set()  # as too long; the lanes add
        lanes: dict[str, list[str]] = {}
        for name in chosen:
            reason = FAULTS[name].why_not(ground)
            if reason is not None:
                tell(f"skipped {name}: {reason}")
                continue
            lanes.setdefault(FAULTS[name].lane, []).append(name)
        self._threads = [
            threading.Thread(
                target=self._attack, args=[names, random.Random(f"{seed}-{lane}")], name=f"nemesis-{lane}"
            )
            for lane, names in sorted(lanes.items())
        ]

    def run(self, seconds: float) -> None:
        """All lanes, to their end; the ground is whole again when this returns."""
        self._until = boottime() + seconds
        self._longest = max(seconds / 2, 30.0)  # what would be most of the run is left to longer ones
        for thread in self._threads:
            thread.start()
        for thread in self._threads:
            thread.join()
        if not self._threads:
            self._ground.stopping.wait(seconds)

    def _attack(self, names: list[str], chance: random.Random) -> None:
        # Every kind is tried before one comes again more often than its weight says.
        deck: list[str] = []
        while not self._ground.stopping.wait(self._gap * (0.5 + chance.random())):
            left = self._until - boottime()
            if left <= 0:
                return
            if not deck:
                deck = [name for name in names for _ in range(FAULTS[name].weight)]
                chance.shuffle(deck)
                # The long ones first, for they may not fit later.
                deck.sort(key=lambda name: FAULTS[name].longest > 60)
            name = deck.pop()
            if FAULTS[name].longest > self._longest:
                if name not in self.skipped:
                    self._tell(f"skipped {name}: the run is too short for it")
                self.skipped.add(name)
                continue
            if FAULTS[name].longest > left:
                continue
            began = boottime()
            try:
                FAULTS[name].do(self._ground, chance)
            except Exception:
                self.failures.append(f"{name}: {traceback.format_exc()}")
            self.done[name] = self.done.get(name, 0) + 1
            self._tell(f"{name} {boottime() - began:.1f} s")
