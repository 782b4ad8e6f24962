"""What a check is, and the words in which checks answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

from ._facts import Facts, NothingThereError, Row
from ._findings import Finding, Severity

__all__ = [
    "SHOWN",
    "Check",
    "Verdict",
    "check",
    "examples",
    "graded",
    "length",
    "names",
    "ok",
    "problem",
    "warning",
]

SHOWN = 5  # examples in the evidence; the figures beside them count all


class Verdict(NamedTuple):
    """A finding, but for its name."""

    severity: Severity
    what: str
    evidence: dict[str, Any]
    advice: str


@dataclass(frozen=True)
class Check:
    """A pure function from facts to a verdict, and the statements whose answers it needs."""

    name: str
    needs: tuple[str, ...]
    judge: Callable[[Facts], Verdict]

    def applies(self, facts: Facts) -> bool:
        """Whether its statements were asked: of a schema of another version they are not."""
        return all(need in facts.rows or need in facts.failed for need in self.needs)

    def finding(self, facts: Facts) -> Finding:
        reasons = [facts.failed[need] for need in self.needs if need in facts.failed]
        try:
            verdict = _unseen(reasons[0]) if reasons else self.judge(facts)
        except NothingThereError:
            verdict = _unseen("it is not there")
        return Finding(self.name, verdict.severity, verdict.what, verdict.evidence, verdict.advice)


def check(*needs: str) -> Callable[[Callable[[Facts], Verdict]], Check]:
    """Make the function below a check, named after it."""
    return lambda function: Check(function.__name__, needs, function)


def ok(what: str, **evidence: Any) -> Verdict:
    return Verdict(Severity.OK, what, evidence, "")


def warning(what: str, advice: str, **evidence: Any) -> Verdict:
    return Verdict(Severity.WARNING, what, evidence, advice)


def problem(what: str, advice: str, **evidence: Any) -> Verdict:
    return Verdict(Severity.PROBLEM, what, evidence, advice)


def graded(grave: bool) -> Callable[..., Verdict]:
    """`problem` if it is grave, else `warning`."""
    return problem if grave else warning


def _unseen(reason: str) -> Verdict:
    return warning(
        f"could not be looked at: {reason}",
        "Ask again as a role that may read the tables, or when the server is less busy.",
    )


def length(seconds: float) -> str:
    """`0:12:07`, `3 days, 1:00:00`."""
    return str(timedelta(seconds=round(seconds)))


def examples(rows: Sequence[Row], *columns: str) -> list[dict[str, Any]]:
    """The first rows as evidence."""
    return [
        {c: round(row[c], 3) if isinstance(row[c], float) else row[c] for c in columns}
        for row in rows[:SHOWN]
    ]


def names(rows: Sequence[Row]) -> str:
    """The first names in the rows."""
    shown = list(dict.fromkeys(row["name"] for row in rows))
    return ", ".join(shown[:SHOWN]) + (", …" if len(shown) > SHOWN else "")
