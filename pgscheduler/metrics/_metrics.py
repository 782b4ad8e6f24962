"""The figures of one scheduler, and its registry."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from pgscheduler import _check as check
from pgscheduler.errors import InvalidTypeError, InvalidValueError, PgSchedulerError, SchedulerStateError
from pgscheduler.scheduler import Scheduler

from ._counts import Counts, Labels
from ._figures import Figures

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

    from prometheus_client import CollectorRegistry

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"  # what `text()` is


class Metrics:
    """Counts what a scheduler does from now on: make it before `start()`. One for each scheduler; see `of`.

    `registry` is a CollectorRegistry of prometheus_client, of its own; other collectors may be added to it. `interval`
    is how old figures from the table of jobs may be (15 s: Prometheus rarely asks more often). `max_names` names of jobs
    have series of their own (100: a histogram is 18 series); the others share the label `other`.

    It needs the extra `metrics`; InvalidValueError without it. Ends with the scheduler's `shutdown()`.
    """

    def __init__(
        self, scheduler: Scheduler, *, interval: timedelta | float = 15.0, max_names: int = 100
    ) -> None:
        if not isinstance(scheduler, Scheduler):
            raise InvalidTypeError("scheduler", scheduler, "must be a Scheduler")
        if importlib.util.find_spec("prometheus_client") is None:
            raise InvalidValueError(
                "metrics",
                "no prometheus_client",
                'need prometheus_client: pip install "pgscheduler[metrics]"',
            )
        from prometheus_client import CollectorRegistry

        from ._exposition import Exposition

        self.scheduler = scheduler
        self.name = scheduler._name
        seconds = check.duration("interval", interval).total_seconds()
        labels = Labels(check.integer("max_names", max_names, 1, 10_000))
        self.counts = Counts(labels, scheduler.config.heartbeat_interval.total_seconds())
        self.figures = Figures(scheduler._store, seconds, self.name, scheduler.log)
        self.closed = False
        self.on_close: list[Callable[[], None]] = []
        self.registry: CollectorRegistry = CollectorRegistry()
        self.registry.register(Exposition(self))
        # The node's own words, to which prometheus_client is nothing.
        self.moved, self.skipped = self.counts.moved, self.counts.skipped
        self.beaten, self.kept = self.counts.beaten, self.counts.kept
        with scheduler._state_lock:
            if scheduler._node.observer is not None:
                raise SchedulerStateError("this scheduler has its metrics already: Metrics.of(scheduler)")
            scheduler._node.observe(self)

    @classmethod
    def of(cls, scheduler: Scheduler) -> Metrics:
        """Those that the scheduler has, or new ones: for whoever serves figures that another may serve too."""
        if not isinstance(scheduler, Scheduler):
            raise InvalidTypeError("scheduler", scheduler, "must be a Scheduler")
        with scheduler._state_lock:
            found = scheduler._node.observer
            return found if isinstance(found, Metrics) else cls(scheduler)

    def text(self) -> bytes:
        """What `GET /metrics` answers, as `CONTENT_TYPE`. Waits up to a second for the database: not for an event loop."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry)

    def wsgi(self) -> WSGIApplication:
        """The same as a WSGI application, which also speaks OpenMetrics and gzip."""
        from prometheus_client import make_wsgi_app

        return make_wsgi_app(self.registry)

    def close(self) -> None:
        """The scheduler has ended: read no more, and stop the servers. What was counted can still be read."""
        self.closed = True
        self.figures.close()
        while self.on_close:
            self.on_close.pop()()

    # --- for the exposition ---------------------------------------------------------------------------

    def names(self) -> list[str]:
        """The names that this node has registered."""
        return self.scheduler._registry.names()

    def running(self) -> int:
        """Attempts in progress: counted, not added up, so it cannot drift or fall below zero."""
        return sum(claim.context is not None for claim in self.scheduler._node.ledger.all())

    def pool(self) -> dict[str, Any] | None:
        """The pool's own figures; None while it is not open."""
        try:
            return dict(self.scheduler._store.pool.get_stats())
        except PgSchedulerError:
            return None
