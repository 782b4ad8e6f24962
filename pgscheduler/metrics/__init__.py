"""What a node did and how it is, for Prometheus: counted in memory, read by `GET /metrics`.

::

    with Scheduler(config) as scheduler, serve_metrics(scheduler, port=3000):
        scheduler.start()
        scheduler.wait_for_signal()

Each scheduler has figures and a registry of its own; nothing is in prometheus_client's global one. Needs the extra
`metrics`. `_table` says what there is; `_counts` is told by the node what it committed; `_figures` reads the table of
jobs, at most every 15 s; `_exposition` turns both into Prometheus' families.
"""

from __future__ import annotations

from ._metrics import Metrics
from ._server import DEFAULT_HOST, DEFAULT_PORT, MetricsServer, serve_metrics
from ._table import BUCKETS, METRICS, Metric

__all__ = [
    "BUCKETS",
    "DEFAULT_HOST",
    "DEFAULT_PORT",
    "METRICS",
    "Metric",
    "Metrics",
    "MetricsServer",
    "serve_metrics",
]
