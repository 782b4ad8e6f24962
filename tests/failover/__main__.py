"""`python -m tests.failover`: a failover under load, figures, and the question whether all promises held.

Exit status: 0 nothing was found, 1 a promise was broken, 2 the arguments are wrong or something is not installed, 3 the
test itself did not work.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from tests.chaos.checker import check, report
from tests.chaos.history import boottime
from tests.failover import cluster, patroni, scenarios
from tests.failover.losses import losses, stale_writes
from tests.failover.trial import Result

__all__ = ["main"]

#: By name: how it is played, and why it cannot be.
SCENARIOS: dict[str, tuple[Callable[..., Result], Callable[[], str | None]]] = {
    "synchronous": (scenarios.synchronous, cluster.why_not),
    "asynchronous": (scenarios.asynchronous, cluster.why_not),
    "patroni": (partial(scenarios.patroni, planned=False), patroni.why_not),
    "switchover": (partial(scenarios.patroni, planned=True), patroni.why_not),
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.failover", description=__doc__)
    parser.add_argument("scenario", choices=SCENARIOS)
    parser.add_argument("--seed", type=int, default=1, help="of everything that is random in the load")
    parser.add_argument("--keep", type=Path, help="where the history and the nodes' own words stay")
    options = parser.parse_args(arguments)
    play, why_not = SCENARIOS[options.scenario]
    reason = why_not()
    if reason is not None:
        print(reason, file=sys.stderr)
        return 2
    # A pool's words about connections that were cut are no news.
    logging.getLogger("psycopg").setLevel(logging.CRITICAL)
    keep = options.keep or Path(tempfile.mkdtemp(prefix="pgscheduler-failover-"))
    began = boottime()

    def tell(line: str) -> None:
        print(f"{boottime() - began:7.1f} s  {line}", flush=True)

    tell(f"{options.scenario}, seed {options.seed}, files in {keep}")
    result = play(keep, seed=options.seed, tell=tell)
    found = [str(violation) for violation in check(result.history)]
    if options.scenario == "asynchronous":
        # What was acknowledged may be gone; only what is wrong in spite of that counts.
        tell(f"lost: {losses(result)}")
        found = list(stale_writes(result))
    print(report(result.history, []))
    for line in [*found, *(f"surprise: {surprise}" for surprise in result.surprises)]:
        print(f"  {line}")
    if found:
        return 1
    return 3 if result.surprises else 0


if __name__ == "__main__":
    raise SystemExit(main())
