"""Faults of nodes: killed, stopped, ended and replaced; and the jobs that do harm to the process they run in."""

from __future__ import annotations

import random
import signal

from tests.chaos.fleet import Node
from tests.chaos.nemesis.ground import Ground

__all__ = ["clock", "deploy", "exit_", "gil", "kill", "memory", "no_clock", "no_limit", "pause", "term"]


def kill(ground: Ground, chance: random.Random) -> None:
    """kill -9, and another process in its place, at once or a little later."""
    node = chance.choice(ground.fleet.nodes)
    with node.lock, ground.fault("kill", node.process.name):
        if node.process.alive:
            node.process.signal(signal.SIGKILL)
        node.process.over.wait()
        ground.sleep(chance.choice([0.0, 0.5, 4.0]))
        node.start()


def pause(ground: Ground, chance: random.Random) -> None:
    """SIGSTOP and SIGCONT: beyond the timeout, so that its jobs are taken; sometimes short of it."""
    node = chance.choice(ground.fleet.nodes)
    timeout = ground.settings.no_heartbeat_timeout
    short = timeout - 2 * ground.settings.heartbeat_interval
    seconds = short * chance.random() if chance.random() < 0.25 else timeout * (1.1 + 1.5 * chance.random())
    with node.lock, ground.fault("pause", node.process.name), node.during("stopped"):
        node.process.signal(signal.SIGSTOP)
        try:
            ground.sleep(seconds)
        finally:
            node.process.signal(signal.SIGCONT)


def _replace(node: Node, chance: random.Random) -> None:
    """SIGTERM; the next one starts beside it, or after it."""
    old = node.process
    old.signal(signal.SIGTERM)
    if chance.random() < 0.5:
        old.over.wait()
    node.start()


def term(ground: Ground, chance: random.Random) -> None:
    """One node is asked to stop, and replaced."""
    node = chance.choice(ground.fleet.nodes)
    with node.lock, ground.fault("term", node.process.name):
        old = node.process
        _replace(node, chance)
        old.over.wait()


def deploy(ground: Ground, chance: random.Random) -> None:
    """All nodes are replaced, one after the other, as by a rolling deploy."""
    with ground.fault("deploy", "all"):
        for node in ground.fleet.nodes:
            with node.lock:
                _replace(node, chance)
        for node in ground.fleet.nodes:
            for process in node.processes[:-1]:
                process.over.wait()


def clock(ground: Ground, chance: random.Random) -> None:
    """A node's wall clock is stepped, by up to an hour in either direction."""
    node = chance.choice([node for node in ground.fleet.nodes if node.clock is not None])
    with node.lock, ground.fault("clock", node.process.name):
        node.step_clock(chance.choice([-3600.0, -30.0, 0.0, 5.0, 90.0, 3600.0]))


def no_clock(ground: Ground) -> str | None:
    if any(node.clock is not None for node in ground.fleet.nodes):
        return None
    return "no clock can be skewed here (Linux and a C compiler are needed)"


def exit_(ground: Ground, chance: random.Random) -> None:
    """A job ends its process: once, or each time until it has stalled too often."""
    exits = chance.choice([1, 1, 99])
    with ground.fault("exit", "a job"):
        ground.client.store("exits", {"exits": exits}, max_stalls=chance.choice([2, 3]))


def gil(ground: Ground, chance: random.Random) -> None:
    """A job holds the GIL: within the timeout, or far beyond it."""
    seconds = chance.choice([1.0, 4.0, 10.0])
    with ground.fault("gil", "a job"):
        ground.client.store("grips", {"seconds": seconds}, max_stalls=2)
        ground.sleep(seconds)


def memory(ground: Ground, chance: random.Random) -> None:
    """A job takes more memory than its node may have: the kernel kills the process."""
    with ground.fault("memory", "a job"):
        ground.client.store("hogs", {"chunks": 40}, max_stalls=3)


def no_limit(ground: Ground) -> str | None:
    return None if ground.limits else "no memory cgroup can be made here"
