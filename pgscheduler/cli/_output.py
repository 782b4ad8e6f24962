"""How things are shown: tables, facts and JSON; what is stored reaches a terminal only as harmless text."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pgscheduler._json import printable
from pgscheduler.jobs._secrets import shown
from pgscheduler.records import JobRecord, LogLine, NodeRecord, RunRecord

__all__ = [
    "job_document",
    "job_facts",
    "job_row",
    "line_document",
    "moment",
    "node_row",
    "one_line",
    "printable",
    "run_document",
    "run_facts",
    "run_row",
    "say_facts",
    "say_json",
    "say_table",
    "schedule_text",
    "span",
]

TIME = "%Y-%m-%d %H:%M:%S"

_STATE_STYLES: Mapping[str, str] = {
    **dict.fromkeys(("completed", "alive", "ok"), "green"),
    **dict.fromkeys(("failed", "timed_out", "orphaned", "silent", "problem"), "red"),
    **dict.fromkeys(("stalled", "interrupted", "paused", "skipped", "warning"), "yellow"),
    "running": "cyan",
    **dict.fromkeys(("cancelled", "stopped"), "dim"),
}

_MISSED_LEAST = ("host", "slots", "node", "key", "took", "attempt", "last error", "why", "pid", "running")
_FOLDED = ("name", "key", "schedule", "last error", "why", "jobs that it knows", "the clock that day", "what")


def one_line(text: object) -> str:
    """Text from anywhere, harmless to a terminal: on one line, control characters escaped."""
    return " ".join(printable(str(text)).split())


class _Console(Console):
    """A console that leaves a closed pipe to `main`."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def _is_terminal() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def say_json(value: Any) -> None:
    """The one document of `--json`."""
    encoding = (getattr(sys.stdout, "encoding", None) or "ascii").lower().replace("-", "")
    print(json.dumps(value, indent=2, ensure_ascii=encoding != "utf8", default=str))


def say_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], empty: str) -> None:
    """Rows as a table: in colour on a terminal, else in plain columns."""
    lines = [[one_line("" if cell is None else cell) for cell in row] for row in rows]
    if not lines:
        print(empty)
    elif _is_terminal():
        console = _Console()
        columns, lines, hidden = _fitting(columns, lines, console.width)
        table = Table(
            title=title, title_justify="left", box=box.SIMPLE_HEAD, title_style="bold", pad_edge=False
        )
        for column in columns:
            table.add_column(column, overflow="fold", no_wrap=column not in _FOLDED)
        for line in lines:
            table.add_row(*(Text(cell, style=_STATE_STYLES.get(cell, "")) for cell in line))
        console.print(table)
        if hidden:
            console.print(Text(f"not shown for lack of width: {', '.join(hidden)}", style="dim"))
    else:
        widths = [max(len(cell) for cell in column) for column in zip(columns, *lines, strict=True)]
        for line in (list(columns), *lines):
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _fitting(
    columns: Sequence[str], lines: list[list[str]], width: int
) -> tuple[list[str], list[list[str]], list[str]]:
    """What a terminal of this width can show whole: empty columns go first, then those that are missed least."""
    kept = [i for i in range(len(columns)) if any(line[i] for line in lines)]

    def needed() -> int:
        total = 2
        for i in kept:
            longest = max(len(columns[i]), *(len(line[i]) for line in lines))
            total += 3 + (min(longest, 16) if columns[i] in _FOLDED else longest)
        return total

    hidden = []
    for name in _MISSED_LEAST:
        if needed() <= width:
            break
        for i in [i for i in kept if columns[i] == name]:
            kept.remove(i)
            hidden.append(name)
    return [columns[i] for i in kept], [[line[i] for i in kept] for line in lines], hidden


def say_facts(facts: Mapping[str, object]) -> None:
    """One thing, a fact a line; what is absent is left out."""
    shown = {name: value for name, value in facts.items() if value not in (None, "", {}, [])}
    width = max(map(len, shown), default=0)
    for name, value in shown.items():
        text = printable(str(value)).rstrip().replace("\n", "\n" + " " * (width + 2))
        if _is_terminal():
            line = Text(f"{name:<{width}}  ", style="dim").append(
                text, style=_STATE_STYLES.get(text, "default")
            )
            _Console().print(line, soft_wrap=True)
        else:
            print(f"{name:<{width}}  {text}")


def moment(value: datetime | None) -> str:
    """A time as tables show it: UTC, to the second."""
    return "" if value is None else value.astimezone(UTC).strftime(TIME)


def span(value: timedelta | float | None) -> str:
    """A length of time: `0.4 s`, `12 min`, `3.2 h`."""
    if value is None:
        return ""
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if seconds < 120:
        return f"{seconds:.3f} s" if seconds < 1 else f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} d"


def schedule_text(schedule: Mapping[str, Any] | None) -> str:
    """A stored schedule in a few words."""
    if schedule is None:
        return "once"
    if "cron" in schedule:
        where = "" if schedule["timezone"] == "UTC" else f" {schedule['timezone']}"
        return f"{schedule['cron']}{where}"
    return f"every {span(schedule['every'])}" if "every" in schedule else str(schedule.get("custom", "?"))


def job_document(job: JobRecord) -> dict[str, Any]:
    """A job for `--json`; header values that may be secret are hidden."""
    found = job.to_dict()
    return {**found, **{name: shown(found[name]) for name in ("parameters", "progress", "result")}}


def run_document(run: RunRecord) -> dict[str, Any]:
    """The same for a run."""
    found = run.to_dict()
    return {**found, **{name: shown(found[name]) for name in ("parameters", "progress", "result")}}


def line_document(line: LogLine) -> dict[str, Any]:
    """The same for a line of a log."""
    return {**line.to_dict(), "fields": shown(dict(line.fields))}


def job_row(job: JobRecord) -> list[object]:
    return [
        job.id,
        job.name,
        job.key,
        job.state,
        moment(job.run_at),
        schedule_text(job.schedule),
        job.attempt,
        _last_line(job.last_error),
    ]


def job_facts(job: JobRecord) -> dict[str, object]:
    return {
        "id": job.id, "name": job.name, "key": job.key, "state": job.state,
        "schedule": schedule_text(job.schedule), "due (UTC)": moment(job.run_at),
        "parameters": json.dumps(shown(job.parameters), ensure_ascii=False) if job.parameters else None,
        "priority": None if job.priority == 5 or job.state.final else job.priority,  # history keeps none
        "policies": json.dumps(job.options, ensure_ascii=False) if job.options else None,
        "attempt": job.attempt, "node": job.node_id, "last run": moment(job.last_run),
        "result": json.dumps(shown(job.result), ensure_ascii=False) if job.result is not None else None,
        "last error": job.last_error,
    }  # fmt: skip


def _last_line(error: str | None) -> str | None:
    """What a traceback comes to."""
    return error.strip().splitlines()[-1] if error and error.strip() else None


def run_row(run: RunRecord) -> list[object]:
    why = run.reason or _last_line(run.error)
    node = None if run.node_id is None else run.node_id[:8]
    return [
        run.id,
        run.name,
        run.key,
        run.outcome,
        run.attempt,
        moment(run.finished_at),
        span(run.duration),
        node,
        why,
    ]


def run_facts(run: RunRecord) -> dict[str, object]:
    """All of a run; an error comes with its traceback."""

    def text(value: Any) -> str | None:
        return json.dumps(shown(value), ensure_ascii=False) if value else None

    return {
        "id": run.id, "job": run.job_id, "name": run.name, "key": run.key, "outcome": run.outcome, "why": run.reason,
        "attempt": run.attempt, "scheduled (UTC)": moment(run.scheduled_at), "started (UTC)": moment(run.started_at),
        "ended (UTC)": moment(run.finished_at), "took": span(run.duration), "node": run.node_id,
        "parameters": text(run.parameters), "progress": text(run.progress), "result": text(run.result),
        "error": run.error,
    }  # fmt: skip


def node_row(node: NodeRecord) -> list[object]:
    state = "alive" if node.alive else "stopped" if node.stopped_at else "silent"
    return [
        node.id,
        node.host,
        node.pid,
        state,
        node.running,
        node.slots,
        moment(node.heartbeat_at),
        " ".join(node.names),
    ]
