"""What a check says: how bad, what, the figures, and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

__all__ = ["Finding", "Severity"]


class Severity(StrEnum):
    """`problem`: a promise is broken or will be. `warning`: somebody should look. `ok`: nothing to see."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """The answer of one check."""

    check: str
    severity: Severity
    what: str
    #: The figures behind it, JSON-ready.
    evidence: Mapping[str, Any] = field(default_factory=dict)
    #: What to do; empty when all is well.
    advice: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "check": self.check,
            "severity": self.severity.value,
            "what": self.what,
            "evidence": dict(self.evidence),
            "advice": self.advice,
        }
