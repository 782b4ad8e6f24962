"""Whether a history keeps the promises: `check(history)`, or `python -m tests.chaos.checker FILE`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.history import History
from tests.chaos.rules import RULES
from tests.chaos.view import View

__all__ = ["Violation", "check", "main", "report"]


@dataclass(frozen=True)
class Violation:
    """Something that must not be."""

    rule: str  # the rule's name
    text: str  # what was seen

    def __str__(self) -> str:
        return f"{self.rule}: {self.text}"


def check(history: History) -> list[Violation]:
    """Everything in a history that breaks a rule; an empty list is what we are after."""
    view = View(history)
    return [Violation(rule.__name__, text) for rule in RULES for text in rule(view)]


def report(history: History, violations: Sequence[Violation]) -> str:
    """What was looked at, and what was found."""
    outcomes = Counter(r.outcome for r in history.runs)
    answers = Counter(f"{c.verb} {c.answer}" for c in history.calls)
    lines = [
        f"calls     {_counted(answers)}",
        f"runs      {len(history.begans)} begun, {_counted(outcomes)}",
        f"effects   {_counted(Counter(e.kind for e in history.effects))}",
        f"faults    {_counted(Counter(f.kind for f in history.faults))}",
        f"nodes     {len(history.lives)} processes, {len(history.snapshots)} snapshots, database away {len(history.aways)} times",
        f"rules     {len(RULES)}, violations {len(violations)}",
    ]
    return "\n".join([*lines, *(f"  {violation}" for violation in violations)])


def _counted(counter: Counter[str]) -> str:
    return ", ".join(f"{count} {what}" for what, count in sorted(counter.items())) or "none"


def main(arguments: Sequence[str] | None = None) -> int:
    """Check a saved history; 1 if a rule is broken, 2 for bad arguments."""
    given = sys.argv[1:] if arguments is None else arguments
    if not given:
        print("usage: python -m tests.chaos.checker FILE…", file=sys.stderr)
        return 2
    history = History.load(*map(Path, given))
    violations = check(history)
    print(report(history, violations))
    return 1 if violations else 0


if __name__ == "__main__":
    raise SystemExit(main())
