"""How often one address may be wrong before it is told to wait."""

from __future__ import annotations

import ipaddress
import math
from collections import OrderedDict
from collections.abc import Callable

from pgscheduler.clock import monotonic

__all__ = ["Throttle"]

ADDRESSES = 10_000  # remembered at most; some 2 MB
NETWORK = 64  # bits: whoever has one address of such a network in IPv6 has them all


class Throttle:
    """So many mistakes at once, then one more whenever its share of a minute has passed. Not for several threads.

    An address takes one number, the time at which it is as good as new. Who has been quiet for longest is forgotten
    first, and whoever is as good as new with the next mistake of anybody.
    """

    def __init__(
        self, per_minute: int, *, addresses: int = ADDRESSES, clock: Callable[[], float] = monotonic
    ) -> None:
        self._share = 60.0 / per_minute
        self._addresses = addresses
        self._clock = clock
        self._clear_at: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._clear_at)

    def mistake(self, address: str) -> int | None:
        """Count one. None: it is within the limit; else the whole seconds until the next is, and it is not counted."""
        now = self._clock()
        who = _network(address)
        clear_at = max(self._clear_at.get(who, now), now) + self._share
        if clear_at - now > 60.0 + 1e-6:  # what is left of sixty after so many shares
            return math.ceil(clear_at - now - 60.0)
        self._clear_at[who] = clear_at
        self._clear_at.move_to_end(who)
        self._forget(now)
        return None

    def _forget(self, now: float) -> None:
        # The first has been quiet for longest, so two looks a mistake keep the table as small as it can be.
        for _ in range(2):
            first = next(iter(self._clear_at))
            if self._clear_at[first] > now and len(self._clear_at) <= self._addresses:
                return
            del self._clear_at[first]


def _network(address: str) -> str:
    """Who is counted as one: an address; in IPv6 its network; all that have none together."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(ipaddress.ip_network((int(found), NETWORK), strict=False))
    return str(found)
