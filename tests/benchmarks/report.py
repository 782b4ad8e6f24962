"""The table of a results file: medians of runs, and of the ratios pair by pair."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Line = dict[str, Any]
_BASIC = ("per_s", "ideal", "of_bare_threads", "p50_ms", "p95_ms", "p99_ms")
_COST = ("server_cpu_us", "client_cpu_us", "wal_bytes", "commits", "dead_tuples", "client_rss_mb")


def table(path: Path) -> str:
    """Markdown: one table per workload of all its contestants, then the other lines as they stand."""
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    parts = []
    workloads = list(
        dict.fromkeys(
            line["kind"]
            for line in lines
            if "pair" in line and "label" in line and line["kind"] != "cost of a job"
        )
    )
    # Files from before each run had its own ratio have them only here.
    ratios = {(line["workload"], line["label"]): line["ratios"] for line in lines if line["kind"] == "ratio"}
    for workload in workloads:
        runs = [line for line in lines if line["kind"] == workload and "pair" in line]
        parts.append(f"### {workload}\n\n{_runs(workload, runs, ratios)}")
    for kind in ("cost of a job", "ratio", "growth ratio", "endurance", "recurring", "schedules stored", "held claims",
                 "open transaction", "opposite order", "skipped", "failed"):  # fmt: skip
        found = [line for line in lines if line["kind"] == kind]
        if found:
            parts.append(f"### {kind}\n\n{_plain(found)}")
    return "\n\n".join(parts) + "\n"


def _runs(workload: str, runs: list[Line], ratios: dict[tuple[str, str], list[float]]) -> str:
    groups: dict[str, list[Line]] = {}
    for run in runs:
        name = run["label"] + (f", {run['case']}" if "case" in run else "")
        name += f", {run['sleep_ms']:g} ms" if workload == "sleep" else ""
        groups.setdefault(name, []).append(run)
    basic = [name for name in _BASIC if any(name in run for run in runs)]
    cost = [name for name in _COST if any(name in run.get("cost", {}) for run in runs)]
    rows = []
    for name, group in groups.items():
        row = [name, str(len(group)), *(_median(run.get(column) for run in group) for column in basic)]
        row += [_median(run.get("cost", {}).get(column) for run in group) for column in cost]
        found = [run["ratio"] for run in group if "ratio" in run] or ratios.get((workload, name), [])
        row.append(f"{round(statistics.median(found), 3):g} ({min(found):g}-{max(found):g})" if found else "")
        rows.append(row)
    return _markdown(["", "runs", *basic, *cost, "ours / this, median (range)"], rows)


def _plain(lines: list[Line]) -> str:
    columns = list(dict.fromkeys(key for line in lines for key in line if key not in ("kind", "at", "cost")))
    return _markdown(columns, [[str(line.get(column, "")) for column in columns] for line in lines])


def _median(values: Iterable[Any]) -> str:
    numbers = [value for value in values if isinstance(value, int | float)]
    if not numbers:
        return ""
    middle = statistics.median(numbers)
    return f"{middle:,.0f}" if abs(middle) >= 100 else f"{middle:.4g}"


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
