"""The failovers that are played, each a server arrangement, a blow and a trial."""

from __future__ import annotations

from pathlib import Path

from tests.failover.cluster import Cluster
from tests.failover.patroni import Patroni
from tests.failover.trial import Plan, Result, Tell, prepare, run

__all__ = ["asynchronous", "patroni", "synchronous"]

#: Seconds of lag before the blow; longer than `no_heartbeat_timeout`, so that also heartbeats are forgotten.
LAG = 3.0


def synchronous(keep: Path, *, seed: int, tell: Tell) -> Result:
    """Commits wait for `near`, which takes over; `far` only follows."""
    with Cluster({"near": False, "far": True}) as cluster:
        prepare(cluster.dsn)
        cluster.wait_for("near")

        def strike() -> None:
            cluster.kill()
            cluster.promote("near")

        return run(Plan(keep=keep, seed=seed), cluster.dsn, strike, tell)


def asynchronous(keep: Path, *, seed: int, tell: Tell) -> Result:
    """Nothing has reached `far` for a while when the primary dies, and it takes over all the same."""
    with Cluster({"far": True}) as cluster:
        prepare(cluster.dsn)

        def strike() -> None:
            tell(f"the standby is {cluster.behind('far'):,} bytes behind")
            cluster.kill()
            cluster.promote("far")

        plan = Plan(keep=keep, seed=seed, lag=LAG)
        return run(plan, cluster.dsn, strike, tell, lag=lambda: cluster.lag("far"))


def patroni(keep: Path, *, seed: int, planned: bool, tell: Tell, direct: bool = False) -> Result:
    """By way of HAProxy, or with `direct` by the members' names."""
    with Patroni() as cluster:
        dsn = cluster.direct_dsn if direct else cluster.dsn
        prepare(dsn)
        leader = cluster.leader()
        tell(f"{leader} leads")
        plan = Plan(keep=keep, seed=seed, crashed=not planned)
        result = run(plan, dsn, cluster.switchover if planned else lambda: cluster.kill(leader), tell)
        tell(f"{cluster.leader()} leads")
        assert cluster.leader() != leader
        if not planned:
            assert leader is not None
            cluster.rejoin(leader)
            tell(f"{leader} follows")
        return result
