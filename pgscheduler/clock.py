"""Time as a node may use it: to measure intervals, never to decide.

Which job is due, stalled or expired is decided by the database's clock (SQL function ``<prefix>now()``).
A node's own clocks only measure how long something took or how long to wait.
"""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable

__all__ = ["elapsed", "monotonic", "uniform"]

#: Seconds on a clock that never steps; for deadlines and durations.
monotonic: Callable[[], float] = time.monotonic


#: Random delays, from a generator of our own: a program, or its tests, may count on the module's global one.
uniform: Callable[[float, float], float] = random.Random().uniform  # noqa: S311 - jitter, not a secret


#: Seconds that passed in the world, suspended time included. A laptop's lid or a paused virtual machine stops
#: CLOCK_MONOTONIC, and a node that wakes up must know that its claims are old.
elapsed: Callable[[], float] = (
    functools.partial(time.clock_gettime, time.CLOCK_BOOTTIME)
    if hasattr(time, "CLOCK_BOOTTIME")
    else time.monotonic
)
