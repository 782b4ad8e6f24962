"""How the demo looks: live on a terminal, plain lines elsewhere, silent for `--json`."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

__all__ = ["Check", "NodeView", "Plain", "Silent", "Snapshot", "Stage", "Theatre", "stage_for"]

EVENTS = 9  # lines of the recent past that the live view shows
NARROW, ROOMY, WIDE = 40, 78, 92  # columns


@dataclass(frozen=True)
class NodeView:
    """A node as the audience sees it."""

    label: str
    pid: int
    state: str  # starting, alive, silent, killed (nobody knows it yet), dead, stopped
    heartbeat: float | None  # seconds since the last one
    running: int
    slots: int
    completed: int


@dataclass(frozen=True)
class Snapshot:
    """One look at the database."""

    total: int = 0
    completed: int = 0
    running: int = 0
    retrying: int = 0
    waiting: int = 0
    nodes: tuple[NodeView, ...] = ()
    counts: tuple[tuple[str, int], ...] = field(default=())  # (time, files) of the recurring job


@dataclass(frozen=True)
class Check:
    """One line of the summary."""

    good: bool
    label: str
    value: str
    note: str = ""


class Stage(Protocol):
    """Where the demo is shown."""

    def event(self, at: float, style: str, text: str) -> None: ...
    def show(self, at: float, snapshot: Snapshot) -> None: ...
    def end(self, ok: bool, checks: Sequence[Check], after: Sequence[str]) -> None: ...
    def close(self) -> None: ...


class Silent:
    """For `--json`."""

    def event(self, at: float, style: str, text: str) -> None:
        pass

    def show(self, at: float, snapshot: Snapshot) -> None:
        pass

    def end(self, ok: bool, checks: Sequence[Check], after: Sequence[str]) -> None:
        pass

    def close(self) -> None:
        pass


class Plain:
    """For a file, a pipe or a log: one line per event."""

    def __init__(self) -> None:
        self._tenths = 0

    def event(self, at: float, style: str, text: str) -> None:  # noqa: ARG002 - a line has no colour
        print(f"{at:5.1f} s  {text}", flush=True)

    def show(self, at: float, snapshot: Snapshot) -> None:
        tenths = snapshot.completed * 10 // max(snapshot.total, 1)
        if tenths > self._tenths:
            self._tenths = tenths
            self.event(at, "", f"{snapshot.completed} of {snapshot.total} jobs completed")

    def end(self, ok: bool, checks: Sequence[Check], after: Sequence[str]) -> None:
        print()
        width = max(len(check.label) for check in checks)
        for check in checks:
            note = f"  {check.note}" if check.note else ""
            print(f"{'ok ' if check.good else 'BAD'}  {check.label:<{width}}  {check.value}{note}")
        print()
        print(VERDICT if ok else FAILURE)
        for line in after:
            print(line)

    def close(self) -> None:
        pass


PLOT = "a hundred files to digest, two nodes, one PostgreSQL, and a kill -9 half-way"
VERDICT = "Nothing was lost, nothing was done twice."
FAILURE = "This is not as it should be: see the lines marked above."

_STATES = {
    "alive": ("●", "green"),
    "starting": ("○", "dim"),
    "silent": ("◌", "yellow"),
    "killed": ("✗", "yellow"),
    "dead": ("✗", "red"),
    "stopped": ("■", "dim"),
}


class Theatre:
    """For a terminal: one picture that changes."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._events: deque[tuple[float, str, str]] = deque(maxlen=EVENTS)
        self._snapshot = Snapshot()
        self._at = 0.0
        self._live = Live(
            get_renderable=self._picture,
            console=self._console,
            refresh_per_second=12,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start()

    def event(self, at: float, style: str, text: str) -> None:
        self._at = max(self._at, at)
        self._events.append((at, style, text))

    def show(self, at: float, snapshot: Snapshot) -> None:
        self._at, self._snapshot = at, snapshot

    def end(self, ok: bool, checks: Sequence[Check], after: Sequence[str]) -> None:
        self.close()
        table = Table.grid(padding=(0, 2))
        for check in checks:
            mark = Text("✓", style="bold green") if check.good else Text("✗", style="bold red")
            value = Text(check.value, style="bold" if check.good else "bold red")
            table.add_row(mark, Text(check.label), value, Text(check.note, style="dim"))
        colour = "green" if ok else "red"
        verdict = Text(VERDICT if ok else FAILURE, style=f"bold {colour}")
        body = Group(table, Text(" "), verdict)
        self._console.print(Panel(body, border_style=colour, padding=(1, 2), width=self._width()))
        for line in after:
            self._console.print(Text(line, style="dim"), soft_wrap=True)

    def close(self) -> None:
        if self._live.is_started:
            self._live.stop()

    # The picture.

    def _width(self) -> int:
        return max(min(self._console.width, WIDE), NARROW)

    def _picture(self) -> Group:
        width = self._width()
        title = Text.assemble(("pgscheduler demo", "bold"), (f"  {self._at:4.1f} s", "dim"))
        parts: list[RenderableType] = [
            Rule(title, style="dim", align="left"),
            Text(PLOT, style="dim", no_wrap=True, overflow="ellipsis"),
            Text(" "),
            self._bar(width - 4),
            self._legend(),
            Text(" "),
            self._nodes(),
            Text(" "),
            self._counts(width - 4),
            Text(" "),
            *self._past(),
        ]
        return Group(
            *(Padding(part, (0, 2), expand=False) if part is not parts[0] else part for part in parts)
        )

    def _parts(self) -> list[tuple[str, int, str]]:
        shot = self._snapshot
        return [
            ("completed", shot.completed, "green"),
            ("running", shot.running, "cyan"),
            ("to be retried", shot.retrying, "magenta"),
            ("waiting", shot.waiting, "bright_black"),
        ]

    def _bar(self, width: int) -> Text:
        """As many cells as there is room for, in the proportion of the states; no state is rounded away."""
        bar, total = Text(no_wrap=True), max(self._snapshot.total, 1)
        done = cells = 0
        for name, count, colour in self._parts():
            done += count
            until = round(done * width / total)
            bar.append(("━" if name != "waiting" else "─") * (until - cells), style=colour)
            cells = until
        return bar.append("─" * (width - cells), style="bright_black")

    def _legend(self) -> Text:
        line = Text()
        for name, count, colour in self._parts():
            line.append(f"{count:>3} ", style=f"bold {colour}").append(f"{name}   ", style="dim")
        return line

    def _nodes(self) -> Table:
        table = Table.grid(padding=(0, 3))
        for node in self._snapshot.nodes:
            mark, colour = _STATES[node.state]
            beat = "no heartbeat yet" if node.heartbeat is None else f"heartbeat {node.heartbeat:4.1f} s ago"
            ahead = max(node.running - node.slots, 0)  # claimed while their slots are about to be free
            slots = Text("▮" * (node.running - ahead), style=colour)
            slots.append("▯" * max(node.slots - node.running, 0), style="dim")
            slots.append(f"+{ahead}" if ahead else "  ", style="dim")
            table.add_row(
                Text(f"{mark} node {node.label}", style=f"bold {colour}"),
                *([Text(f"pid {node.pid}", style="dim")] if self._width() >= ROOMY else []),
                Text(f"{node.state:<8}", style=colour),
                Text(beat, style="yellow" if node.state in ("silent", "killed", "dead") else "dim"),
                slots,
                Text(f"{node.completed:>3} done"),
            )
        return table

    def _counts(self, width: int) -> Text:
        line = Text("count_results  ", style="dim", no_wrap=True, overflow="crop")
        room = (width - 15) // 15
        for at, files in self._snapshot.counts[-room:]:
            line.append(f"{at} ", style="dim").append(f"{files:<4}", style="bold").append("  ")
        return line

    def _past(self) -> list[Text]:
        lines = [
            Text.assemble((f"{at:5.1f} s  ", "dim"), (text, style), no_wrap=True, overflow="ellipsis")
            for at, style, text in self._events
        ]
        return lines + [Text(" ") for _ in range(EVENTS - len(lines))]


def stage_for(as_json: bool) -> Stage:
    """The right stage for this output."""
    if as_json:
        return Silent()
    if sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb" and _can_draw():
        return Theatre()
    return Plain()


def _can_draw() -> bool:
    try:
        "●━▮✓".encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True
