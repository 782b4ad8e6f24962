"""Faults of the way between a node and the database; the node itself and everybody else are well."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

from tests.chaos.fleet import Node
from tests.chaos.nemesis.ground import Ground

__all__ = ["delay", "no_hosts", "no_proxies", "partition", "reset", "stall", "thin"]


def _beyond(ground: Ground, chance: random.Random) -> float:
    """Longer than the timeout, mostly: long enough for its jobs to be taken and begun elsewhere."""
    timeout = ground.settings.no_heartbeat_timeout
    return timeout * (chance.random() if chance.random() < 0.2 else 1.5 + 2 * chance.random())


def _hosts(ground: Ground) -> list[Node]:
    return [node for node in ground.fleet.nodes if node.host is not None]


def _proxied(ground: Ground) -> list[Node]:
    return [node for node in ground.fleet.nodes if node.proxy is not None]


def no_hosts(ground: Ground) -> str | None:
    return None if _hosts(ground) else "no node has a network of its own"


def no_proxies(ground: Ground) -> str | None:
    return None if _proxied(ground) else "no node is behind a proxy"


@contextmanager
def _cut_off(ground: Ground, node: Node, kind: str) -> Iterator[None]:
    with node.lock, ground.fault(kind, node.process.name), node.during("cut_off"):
        yield


def partition(ground: Ground, chance: random.Random) -> None:
    """Packets are dropped, both ways or one: neither side is told."""
    node = chance.choice(_hosts(ground))
    assert node.host is not None
    with _cut_off(ground, node, "partition"):
        node.host.cut(chance.choice(["both", "both", "in", "out"]))
        try:
            ground.sleep(_beyond(ground, chance))
        finally:
            node.host.heal()


def thin(ground: Ground, chance: random.Random) -> None:
    """A late or narrow line."""
    node = chance.choice(_hosts(ground))
    assert node.host is not None
    with _cut_off(ground, node, "thin"):
        node.host.thin()
        try:
            ground.sleep(_beyond(ground, chance))
        finally:
            node.host.heal()


def stall(ground: Ground, chance: random.Random) -> None:
    """Half-open: bytes are acknowledged and not delivered, and all arrive in the end."""
    node = chance.choice(_proxied(ground))
    assert node.proxy is not None
    with _cut_off(ground, node, "stall"):
        node.proxy.stall(chance.choice(["both", "up", "down"]))
        try:
            ground.sleep(_beyond(ground, chance))
        finally:
            node.proxy.heal()


def reset(ground: Ground, chance: random.Random) -> None:
    """Connections break, a few times; new ones are accepted, or refused for a while."""
    node = chance.choice(_proxied(ground))
    assert node.proxy is not None
    with _cut_off(ground, node, "reset"):
        try:
            for _ in range(chance.randrange(1, 5)):
                node.proxy.reset()
                ground.sleep(0.3 * chance.random())
            if chance.random() < 0.5:
                node.proxy.refuse()
                ground.sleep(_beyond(ground, chance) / 2)
        finally:
            node.proxy.heal()


def delay(ground: Ground, chance: random.Random) -> None:
    """Every answer is late."""
    node = chance.choice(_proxied(ground))
    assert node.proxy is not None
    with _cut_off(ground, node, "delay"):
        node.proxy.delay(0.05 + 0.3 * chance.random(), 0.2)
        try:
            ground.sleep(_beyond(ground, chance))
        finally:
            node.proxy.heal()
