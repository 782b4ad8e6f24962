"""What a node tells of itself to one listener, if there is one."""

from __future__ import annotations

from typing import Any, Protocol

from .states import Claim, Ended

__all__ = ["Observer"]


class Observer(Protocol):
    """Called on the node's own threads, between two steps of its work: be quick, and never raise."""

    def moved(
        self, claims: list[Claim], completed: list[tuple[Claim, float, float]], finished: list[Ended]
    ) -> None:
        """A commit: what was claimed, and what was recorded, as (claim, started, ended) or as an `Ended`."""

    def skipped(self, claim: Claim, lines: int) -> None:
        """A commit: so many occurrences of a claim's job were recorded as skipped before its run."""

    def beaten(self, sent: float) -> None:
        """A heartbeat was written that had been sent at this time of `elapsed()`."""

    def kept(self, chore: str, rows: list[Any]) -> None:
        """A chore touched these rows: (id, name, …) for jobs."""

    def close(self) -> None:
        """The node has ended."""
