"""Figures without a database: what the README, the dashboard and the alert rules say of them, labels, histograms."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgscheduler import (
    InvalidTypeError,
    InvalidValueError,
    Outcome,
    Scheduler,
    SchedulerConfig,
    SchedulerStateError,
    states,
)
from pgscheduler.metrics import BUCKETS, METRICS, Metric, Metrics
from pgscheduler.metrics._counts import Counts, Histogram, Labels
from pgscheduler.states import Claim
from tests.support import ROOT

yaml = pytest.importorskip("yaml")

BY_NAME = {metric.name: metric for metric in METRICS}
#: Added by Prometheus itself.
TARGET = {"instance", "job"}


def scheduler() -> Scheduler:
    """One that never meets its database."""
    return Scheduler(SchedulerConfig(dsn="postgresql://nowhere.invalid/none"))


# --- the table, the registry, the README -------------------------------------------------------------------


def test_the_registry_is_the_table() -> None:
    """Each figure of the table is exposed under its name with its type and meaning, and nothing else is."""
    text = Metrics(scheduler()).text().decode()
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    helps = dict(re.findall(r"^# HELP (\S+) (.*)$", text, re.MULTILINE))
    assert kinds == {metric.name: metric.type for metric in METRICS}
    assert helps == {metric.name: metric.help for metric in METRICS}


def test_the_readme_has_the_table() -> None:
    """The README's table of metrics is the code's: names with labels, types, meanings, in this order."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text[text.index("\n## Metrics\n") :].partition("\n## ")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| `")]

    def name(metric: Metric) -> str:
        return f"`{metric.name}{'{' + ', '.join(metric.labels) + '}' if metric.labels else ''}`"

    assert rows == [[name(metric), metric.type, metric.help] for metric in METRICS]


def test_names_follow_the_custom() -> None:
    """Counters end in _total and nothing else does; ours carry our prefix; no label is taken by Prometheus."""
    assert [m.name for m in METRICS if (m.type == "counter") != m.name.endswith("_total")] == []
    assert [m.name for m in METRICS if not re.match(r"pgscheduler_|scheduler_jobs_|jobs?_", m.name)] == []
    assert [m.name for m in METRICS if TARGET & set(m.labels)] == []
    assert len(BY_NAME) == len(METRICS)


# --- expressions of the dashboard and of the alerts ------------------------------------------------------


def expressions(found: Any) -> Iterator[str]:
    """Every `expr` in a document, however deep."""
    if isinstance(found, dict):
        for key, value in found.items():
            if key == "expr":
                yield value
            else:
                yield from expressions(value)
    elif isinstance(found, list):
        for each in found:
            yield from expressions(each)


DASHBOARD = json.loads((ROOT / "examples/grafana-dashboard.json").read_text(encoding="utf-8"))
ALERTS = yaml.safe_load((ROOT / "examples/alerts.yml").read_text(encoding="utf-8"))
EXPRESSIONS = sorted({*expressions(DASHBOARD), *expressions(ALERTS)})

WORDS = {
    "by",
    "without",
    "on",
    "ignoring",
    "and",
    "or",
    "unless",
    "bool",
    "group_left",
    "group_right",
    "offset",
}


def family(name: str) -> Metric | None:
    """The figure that a sample's name belongs to."""
    if name in BY_NAME:
        return None if BY_NAME[name].type == "histogram" else BY_NAME[name]
    found = BY_NAME.get(re.sub(r"_(bucket|sum|count)$", "", name))
    return found if found is not None and found.type == "histogram" else None


def complaints(expression: str) -> list[str]:
    """What an expression names that does not exist. Knows as much of PromQL as the two files use."""
    text = re.sub(r"\[[^\]]*\]", "", expression)
    wrong, known = [], set(TARGET)
    selected = re.findall(r"([A-Za-z_:][\w:]*)\s*\{([^}]*)\}", text)
    bare = re.sub(r"\b(by|without|on|ignoring)\s*\([^)]*\)", " ", re.sub(r"\{[^}]*\}", " ", text))
    names = [n for n in re.findall(r"([A-Za-z_:][\w:]*)(?!\w|\s*\()", bare) if n not in WORDS]
    if not names:
        wrong.append("no metric")
    for name in names:
        metric = family(name)
        if metric is None:
            wrong.append(f"no such metric: {name}")
        else:
            known |= {*metric.labels, *(["le"] if name.endswith("_bucket") else [])}
    for name, matchers in selected:
        metric = family(name)
        labels = re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", re.sub(r'"[^"]*"', '""', matchers))
        if metric is not None:
            wrong += [f"{name} has no label {x}" for x in labels if x not in {*metric.labels, *TARGET}]
    for group in re.findall(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)", text):
        wrong += [
            f"nothing has the label {label}" for label in re.findall(r"\w+", group) if label not in known
        ]
    return wrong


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_expressions_name_what_exists(expression: str) -> None:
    """Each metric and label in the dashboard and the alert rules exists."""
    assert complaints(expression) == []


@pytest.mark.parametrize(
    ("expression", "complaint"),
    [
        ("rate(job_executions[5m])", "no such metric: job_executions"),
        ("job_duration_seconds", "no such metric: job_duration_seconds"),
        ('jobs_running{state="x"}', "jobs_running has no label state"),
        ("sum by (outcome) (job_failures_total)", "nothing has the label outcome"),
        ("sum by (le) (job_duration_seconds_count)", "nothing has the label le"),
        ("sum(rate(job_executions_total[5m])) / jobs_runing > 0", "no such metric: jobs_runing"),
        ("time() > 5", "no metric"),
    ],
)
def test_the_checker_finds_what_is_wrong(expression: str, complaint: str) -> None:
    """The check above can fail."""
    assert complaint in complaints(expression)


def test_alerts_are_rules() -> None:
    """The file has the form of Prometheus' rules; each alert has a name of its own, a severity and a summary."""
    assert set(ALERTS) == {"groups"}
    names = []
    for group in ALERTS["groups"]:
        assert set(group) == {"name", "rules"}
        for rule in group["rules"]:
            assert {"alert", "expr", "labels", "annotations"} <= set(rule) <= {
                "alert", "expr", "for", "labels", "annotations",
            }  # fmt: skip
            assert re.fullmatch(r"[A-Z]\w+", rule["alert"])
            assert re.fullmatch(r"\d+[smhd]", rule.get("for", "0s"))
            assert rule["labels"]["severity"] in ("critical", "warning", "info")
            assert set(rule["annotations"]) == {"summary"}
            names.append(rule["alert"])
            # What a summary shows is there once the expression has been evaluated.
            shown = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
            grouped = re.findall(r"\bby \(([^)]*)\)", rule["expr"])
            metrics = [
                m for name in re.findall(r"[a-z_]{6,}", rule["expr"]) if (m := family(name)) is not None
            ]
            kept = {x for m in metrics for x in m.labels} | TARGET
            if grouped:
                kept = {label.strip() for label in grouped[0].split(",")}
            assert shown <= kept, rule["alert"]
    assert len(names) == len(set(names))


def test_the_dashboard_is_one() -> None:
    """What Grafana needs is there: ids that differ, places that do not overlap, a data source to choose."""
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 10
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert [v["name"] for v in DASHBOARD["templating"]["list"]] == ["datasource", "job_name"]
    name, label = re.fullmatch(
        r"label_values\((\w+), (\w+)\)", DASHBOARD["templating"]["list"][1]["query"]
    ).groups()  # type: ignore[union-attr]
    assert label in BY_NAME[name].labels
    assert {panel["datasource"]["uid"] for panel in panels} == {"${datasource}"}


# --- counting ----------------------------------------------------------------------------------------------


def test_labels_are_bounded() -> None:
    """A name that has a series keeps it; beyond the limit all share one; strangers take nothing from our own."""
    labels = Labels(2)
    assert [labels.seen(f"stranger-{n}") for n in range(3)] == ["stranger-0", "stranger-1", "other"]
    assert [labels.own(name) for name in ("a", "b", "c", "a")] == ["a", "b", "other", "a"]
    assert labels.seen("a") == "a"
    assert labels.seen("stranger-0") == "stranger-0"


def test_histogram_places() -> None:
    """A value counts in the first bucket that is not smaller; what is beyond the last counts too."""
    histogram = Histogram()
    for value in (0.0, BUCKETS[0], BUCKETS[0] + 1e-9, BUCKETS[-1], BUCKETS[-1] + 1):
        histogram.observe(value)
    assert histogram.counts[:2] == [2, 1]
    assert histogram.counts[-2:] == [1, 1]
    assert histogram.count == 5
    assert list(BUCKETS) == sorted(set(BUCKETS))


@given(st.lists(st.floats(0, 20_000) | st.sampled_from(BUCKETS), min_size=1))
def test_a_batch_counts_as_its_values_would(values: list[float]) -> None:
    """Many values at once fall into the same buckets as one by one."""
    one_by_one, batch = Histogram(), Histogram()
    for value in values:
        one_by_one.observe(value)
    batch.observe_all(values)
    assert batch.counts == one_by_one.counts
    assert batch.sum == pytest.approx(one_by_one.sum)


def test_a_batch_of_several_names() -> None:
    """Each name gets its own durations and latenesses."""
    metrics = Metrics(scheduler())
    a, b = claim("a"), claim("b")
    metrics.moved([a, b, a], [(a, 1.0, 2.0), (b, 1.0, 4.0), (a, 1.0, 11.0)], [])
    assert lines(metrics, "job_duration_seconds_sum") == {'job_name="a"': 11.0, 'job_name="b"': 3.0}
    assert lines(metrics, "job_duration_seconds_count") == {'job_name="a"': 2, 'job_name="b"': 1}
    assert lines(metrics, "pgscheduler_schedule_lateness_seconds_sum") == {
        'job_name="a"': 120,
        'job_name="b"': 60,
    }
    assert lines(metrics, "pgscheduler_claims_total") == {"": 3}


def claim(name: str = "job") -> Claim:
    """A job that was due a minute before it was claimed."""
    return Claim((1, name, None, 5, 0, 0, 0, 0, None, None, None, False, False, 60_000_000), 7, 0.0, 0.0)


def lines(metrics: Metrics, name: str) -> dict[str, float]:
    """Samples of a name, by their labels as they are written."""
    text = metrics.text().decode()
    return {labels: float(v) for labels, v in re.findall(rf"^{name}(?:{{(.*)}})? (\S+)$", text, re.MULTILINE)}


@pytest.mark.parametrize(
    ("outcome", "failures"),
    [
        (Outcome.COMPLETED, 0), (Outcome.FAILED, 1), (Outcome.TIMED_OUT, 1), (Outcome.STALLED, 1),
        (Outcome.CANCELLED, 0), (Outcome.INTERRUPTED, 0),
    ],
)  # fmt: skip
def test_what_is_a_failure(outcome: Outcome, failures: int) -> None:
    """Attempts that failed, timed out or died count as failed, once; what was cancelled or interrupted does not."""
    metrics = Metrics(scheduler())
    metrics.moved([], [], [states.ended(claim(), outcome, 1.0, 3.5)])
    assert lines(metrics, "job_failures_total") == {'job_name="job"': failures}
    assert lines(metrics, "job_executions_total") == {'job_name="job"': 1}
    assert lines(metrics, "job_duration_seconds_sum") == {'job_name="job"': 2.5}
    assert lines(metrics, "scheduler_jobs_failed") == {"": failures}
    assert lines(metrics, "scheduler_jobs_success") == {"": outcome is Outcome.COMPLETED}
    assert sum(lines(metrics, "pgscheduler_runs_total").values()) == 1


def test_what_was_not_started_is_no_attempt() -> None:
    """A job that expired is a failed line of history without a duration; what was given back is nothing at all."""
    metrics = Metrics(scheduler())
    metrics.moved([claim()], [], [states.ended(claim(), Outcome.FAILED, None, 0.0), states.released(claim())])
    assert (
        lines(metrics, "job_executions_total")
        == lines(metrics, "job_failures_total")
        == {'job_name="job"': 0}
    )
    runs = lines(metrics, "pgscheduler_runs_total")
    assert {labels: n for labels, n in runs.items() if n} == {'job_name="job",outcome="failed"': 1}
    assert lines(metrics, "pgscheduler_schedule_lateness_seconds_sum") == {'job_name="job"': 60.0}


def test_what_waits_for_a_slot_does_not_run() -> None:
    """A claim is held until its outcome is written; it runs from its first hook to its last."""
    one = scheduler()
    metrics, held = Metrics(one), claim()
    one._node.ledger.hold([held])
    assert (lines(metrics, "pgscheduler_claims_held"), lines(metrics, "jobs_running")) == ({"": 1}, {"": 0})
    held.context = object()
    assert (lines(metrics, "pgscheduler_claims_held"), lines(metrics, "jobs_running")) == ({"": 1}, {"": 1})


def test_lateness_of_heartbeats() -> None:
    """The first one is not late; one that comes early is not either; the others are by what is beyond the interval."""
    counts = Counts(Labels(10), 30.0)
    for moment in (100.0, 130.0, 135.0, 172.0):
        counts.beaten(moment)
    _, _, heartbeats = counts.rest()
    assert heartbeats.count == 3
    assert heartbeats.sum == pytest.approx(7.0)


# --- the door ----------------------------------------------------------------------------------------------


def test_one_set_of_figures_for_each_scheduler() -> None:
    """Whoever asks for a scheduler's figures gets the same ones; a second set would count only half."""
    one, other = scheduler(), scheduler()
    metrics = Metrics.of(one)
    assert Metrics.of(one) is metrics
    assert Metrics.of(other) is not metrics
    assert Metrics.of(other).registry is not metrics.registry
    with pytest.raises(SchedulerStateError, match=r"Metrics\.of"):
        Metrics(one)


def test_bad_arguments() -> None:
    """Each is refused by name, and leaves the scheduler as it was."""
    one = scheduler()
    with pytest.raises(InvalidTypeError, match="scheduler must be a Scheduler"):
        Metrics("postgresql://localhost")  # type: ignore[arg-type]
    with pytest.raises(InvalidTypeError, match="scheduler must be a Scheduler"):
        Metrics.of(None)  # type: ignore[arg-type]
    with pytest.raises(InvalidValueError, match="interval"):
        Metrics(one, interval=0)
    with pytest.raises(InvalidValueError, match="max_names"):
        Metrics(one, max_names=0)
    assert one._node.observer is None


def test_the_extra_is_named_when_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without prometheus_client there is an error that says what to install."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InvalidValueError, match=r'pip install "pgscheduler\[metrics\]"'):
        Metrics(scheduler())


def test_nothing_is_loaded_unasked() -> None:
    """The package, and even this part of it, can be imported without prometheus_client."""
    program = "import pgscheduler, pgscheduler.metrics, sys; sys.exit('prometheus_client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0
