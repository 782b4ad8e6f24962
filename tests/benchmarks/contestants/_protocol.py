"""What the Python programs of the benchmark share: settings, what they say, the count of jobs, the end of work, the verbs.

A program runs in its library's environment, so only the standard library is used here. It puts this directory at the
end of `sys.path`, where none of the files in it hides a package of the same name. See `contestant.py` for the protocol.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

DSN = os.environ["BENCH_DSN"]
SETTING = os.environ["BENCH_SETTING"]
STAMP = os.environ.get("BENCH_STAMP", "none")
REPORT = 0.02  # seconds between two looks at the count


def say(**facts: Any) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


class Tally:
    """The jobs that this process ran. Only `tell` is for another thread than the one that counts."""

    def __init__(self) -> None:
        self.ran = 0
        self.first = 0  # ns
        self.latencies: list[int] = []  # µs
        self._told = 0

    def count(self, start: int, n: int, at: int) -> None:
        if not self.first:
            self.first = start
        self.ran += 1

    def count_each(self, start: int, n: int, at: int) -> None:
        say(start=start, n=n)
        self.count(start, n, at)

    def count_latency(self, start: int, n: int, at: int) -> None:
        self.latencies.append((start - at) // 1000)
        self.count(start, n, at)

    def tell(self) -> None:
        """Say how many ran, if that changed since it was said."""
        ran = self.ran
        if self._told != ran:
            self._told = ran
            say(ran=ran, first=self.first)


tally = Tally()
# What a job calls at its end with its start, its number and its `at`. Jobs on several threads take turns with a lock.
# Reading the clock and sleeping stay in each program: one more call around a job would be measured with it.
count = {"none": tally.count, "each": tally.count_each, "latency": tally.count_latency}[STAMP]


def parameters(n: int, sleep_ms: float) -> dict[str, Any]:
    return {"n": n, "sleep_ms": sleep_ms, "at": time.monotonic_ns()}


@contextlib.contextmanager
def enqueued(jobs: int) -> Iterator[None]:
    """Around the calls of `enqueue`: says how long they took."""
    begin = time.perf_counter()
    yield
    say(enqueued=jobs, seconds=time.perf_counter() - begin)


def orders() -> Iterator[tuple[int, int]]:
    """The number of the first job and how many, for each line that `produce` reads.

    Says that it is ready before the first, and that an order is committed when the next one is asked for.
    """
    say(ready=time.monotonic_ns())
    n = 0
    for line in sys.stdin:
        jobs = int(line)
        yield n, jobs
        say(committed=time.monotonic_ns())
        n += jobs


def end_of_work(end: asyncio.Event | None = None) -> asyncio.Event:
    """An event of the running loop, new or the library's own, set at the end of the input or by SIGTERM."""
    event, loop = end or asyncio.Event(), asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, event.set)
    _at_end_of_input(lambda: loop.call_soon_threadsafe(event.set))
    return event


async def report() -> None:
    """A task beside the jobs: tells the count until it is cancelled."""
    while True:
        await asyncio.sleep(REPORT)
        tally.tell()


def report_until_end() -> None:
    """For libraries without an event loop: tell the count until the end of the input or SIGTERM."""
    end = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: end.set())
    _at_end_of_input(end.set)
    while not end.wait(REPORT):
        tally.tell()


def _at_end_of_input(stop: Callable[[], object]) -> None:
    def wait() -> None:
        while os.read(0, 4096):
            pass
        stop()

    threading.Thread(target=wait, daemon=True).start()


def stopped() -> None:
    """The last words of `work`."""
    tally.tell()
    if STAMP == "latency":
        say(latencies_us=tally.latencies)
    say(stopped=time.monotonic_ns())


def main(
    prepare: Callable[[], Any],
    enqueue: Callable[[str, int, float], Any],
    produce: Callable[[], Any],
    work: Callable[[], Any],
    run: Callable[[Any], object] | None = None,
) -> None:
    """Do the verb of the command line. Verbs that are coroutines need `run`, which is `asyncio.run` or another loop's."""
    verb, *arguments = sys.argv[1:]
    match verb:
        case "prepare":
            done = prepare()
        case "enqueue":
            done = enqueue(arguments[0], int(arguments[1]), float(arguments[2]))
        case "produce":
            done = produce()
        case "work":
            done = work()
        case _:
            sys.exit(f"unknown verb {verb!r}")
    if run is not None:
        run(done)
