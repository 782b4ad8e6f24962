"""What a source declares: `plan` and `apply`."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from datetime import datetime, timedelta
from typing import Any

from pgscheduler import _check as check
from pgscheduler._apply import Apply, MovedError
from pgscheduler._declared import Definitions, Plan
from pgscheduler.clock import monotonic, uniform
from pgscheduler.errors import InvalidCronError, InvalidTypeError, InvalidValueError, JobRunningError, show
from pgscheduler.job import JobConfig

from ._storing import Storing

__all__ = ["Declaring"]


class Declaring(Storing):
    """Makes jobs what somebody declares."""

    def plan(self, definitions: Definitions) -> Plan:
        """See `Scheduler.plan`."""
        return self.store.using(self._apply(definitions, True).plan)

    def apply(
        self,
        definitions: Definitions,
        *,
        retire: bool | Collection[int] = True,
        wait: timedelta | float = 10.0,
    ) -> Plan:
        """See `Scheduler.apply`."""
        deadline = monotonic() + check.duration("wait", wait, zero=True).total_seconds()
        chosen = retire if isinstance(retire, bool) else frozenset(_identifiers("retire", retire))
        while True:
            try:
                done = self._write(self._apply(definitions, chosen).run)
                break
            except (JobRunningError, MovedError) as error:
                if monotonic() >= deadline and isinstance(error, JobRunningError):
                    raise
                time.sleep(0.1 * uniform(0.8, 1.2))
        for change in done.of("retire"):
            self.registry.forget(change.name, change.key)
        if done.changes:
            self.hint("due")
        if any(change.running for change in done.of("retire")):
            self.hint("cancel")
        return done

    def _apply(self, definitions: Definitions, retire: bool | frozenset[int]) -> Apply:
        if not isinstance(definitions, Definitions):
            raise InvalidTypeError("definitions", definitions, "must be Definitions")
        return Apply(self.store.sql, self.names, definitions, self._declared, retire)

    def _declared(self, name: str, config: JobConfig, now: datetime) -> dict[str, Any]:
        """A job's columns. There may be many jobs, so an error says whose field it is."""
        try:
            self.check_fit(name, config.key or name, config.parameters)
            return self._values(name, config, now)
        except InvalidCronError:
            raise  # from a schedule class of the user's own: it has other facts, and says which line it means
        except (InvalidValueError, InvalidTypeError) as error:
            rule = f"{whose(config.key or name)} {error.rule}"
            raise type(error)(error.field, error.value, rule) from None


def whose(key: str) -> str:
    """How an error about a field of one declared job begins to say its rule."""
    return f"of job {show(key)}"


def _identifiers(field: str, given: Collection[int]) -> Iterable[int]:
    if isinstance(given, str | bytes) or not isinstance(given, Collection):
        raise InvalidTypeError(field, given, "must be a bool, or a collection of job ids")
    return [check.integer(field, one, 1, 2**63 - 1) for one in given]
