"""Where runs happen: worker threads, one asyncio loop, and processes that can be killed.

A slot is a worker thread. It runs a thread job itself, and waits for an async or a process job, so the limit on
concurrent runs is one number whatever their kinds. Threads are made when first needed.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future

from ._context import RunContext
from ._decide import Plan, Verdict
from ._loops import Waker
from ._processes import Processes
from ._runner import Runner, call_hooks_async
from .clock import monotonic
from .states import Claim

__all__ = ["Workers"]

SPAWN_PAUSE = 0.5  # seconds after a thread that could not be had; claims come hundreds of times a second


class _Slot:
    """One worker thread and the flag it sleeps on."""

    __slots__ = ("thread", "waker")

    def __init__(self) -> None:
        self.waker = Waker()
        self.thread: threading.Thread | None = None


class Workers:
    """The slots of one node.

    `ready` is shared: the dispatcher appends, slots pop. Both ends of a deque are atomic under the GIL, so the
    common case takes no lock; `_idle` says whom to wake.
    """

    def __init__(self, slots: int, runner: Runner, processes: Processes, name: str) -> None:
        self.slots = slots
        self.ready: deque[Claim] = deque()
        self.started = 0  # runs begun; written by slots, read by the dispatcher as a sign of life
        self._runner = runner
        self._processes = processes
        self._name = name
        self._idle: list[_Slot] = []  # last in, first out: a warm thread runs next
        self._threads: list[_Slot] = []  # those that run; dispatcher appends
        self._spawn_at = 0.0  # monotonic: before that no thread is asked for; dispatcher only
        self._stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_lock = threading.Lock()

    def submit(self, claims: Sequence[Claim], urgent: Sequence[Claim] = ()) -> None:
        """Hand claims over, the urgent ones to the head of the line; wakes or makes as many slots as there is work for."""
        self.ready.extendleft(reversed(urgent))
        self.ready.extend(claims)
        # Not by how much the line has grown: slots take from it meanwhile.
        fresh = len(claims) + len(urgent)
        while fresh > 0:
            try:
                slot = self._idle.pop()
            except IndexError:
                break
            slot.waker.wake()
            fresh -= 1
        while fresh > 0 and len(self._threads) < self.slots and self.ready and self._spawn():
            fresh -= 1

    def take_back(self) -> list[Claim]:
        """Claims that nobody has started."""
        taken = []
        while True:
            try:
                taken.append(self.ready.popleft())
            except IndexError:
                return taken

    def stop(self) -> None:
        """No more work will come. Slots end when what they run has ended."""
        self._stopping = True
        for slot in list(self._threads):
            slot.waker.wake()

    def join(self, seconds: float) -> bool:
        deadline = monotonic() + seconds
        for slot in list(self._threads):
            if slot.thread is not None and slot.thread is not threading.current_thread():
                slot.thread.join(max(deadline - monotonic(), 0.0))
        ended = not any(slot.thread is not None and slot.thread.is_alive() for slot in self._threads)
        if ended and self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._loop = None
        return ended

    def _spawn(self) -> bool:
        """Make a slot. False if there is no thread for it, as under a container's limit.

        The claims are for the slots that there are, then; or the dispatcher gives them back as hoarded, and the claim
        that follows asks for a thread again.
        """
        if monotonic() < self._spawn_at:
            return False
        slot = _Slot()
        slot.thread = threading.Thread(
            target=self._work, args=(slot,), name=f"{self._name}-worker-{len(self._threads)}", daemon=True
        )
        try:
            slot.thread.start()
        except (RuntimeError, MemoryError) as error:
            self._spawn_at = monotonic() + SPAWN_PAUSE
            self._runner.log.warning(
                "no thread for another slot, will try again",
                slots=len(self._threads),
                wanted=self.slots,
                error=str(error),
            )
            return False
        self._threads.append(slot)
        if self._stopping:
            slot.waker.wake()  # stop() may have looked before it was in the list
        return True

    def _work(self, slot: _Slot) -> None:
        ready, idle = self.ready, self._idle
        while True:
            try:
                claim = ready.popleft()
            except IndexError:
                if self._stopping:
                    return
                idle.append(slot)
                # Look once more: work that came between the two was submitted before we could be woken for it.
                if ready or self._stopping:
                    try:
                        idle.remove(slot)
                    except ValueError:
                        slot.waker.wait(0)  # somebody just popped and woke us
                    continue
                slot.waker.wait(None)
                if slot in idle:  # woken by stop(), or by a wait's hourly end
                    idle.remove(slot)
                continue
            self.started += 1
            self.execute(claim)

    def execute(self, claim: Claim) -> None:
        """Run one claim to its report. Never raises."""
        runner = self._runner
        try:
            plan = runner.plan(claim)
            if plan is None:
                return
            kind = runner.isolation(plan)
            context = runner.begin(plan)
            if kind == "thread":
                runner.run(plan, context)
            elif kind == "async":
                runner.finish(plan, context, self._run_async(plan, context))
            else:
                runner.finish(plan, context, self._processes.run(plan, context))
        except BaseException as error:  # noqa: BLE001 - a bug of ours must not lose the slot or the claim
            runner.fail(claim, error)

    # --- async --------------------------------------------------------------------------------------

    def _run_async(self, plan: Plan, context: RunContext) -> Verdict:
        loop = self._event_loop()
        done: Future[Verdict] = Future()
        tasks: list[asyncio.Task[Verdict]] = []

        async def run() -> Verdict:
            # Asked here again: jobs that hold the GIL may have kept this thread waiting for longer than a claim lasts.
            if self._runner.called_off(plan.claim):
                context._stop("lost")
                raise asyncio.CancelledError
            return await call_hooks_async(plan.entry, context)

        def begin() -> None:
            task = loop.create_task(run())
            tasks.append(task)
            task.add_done_callback(lambda t: done.set_result(_verdict_of(t)))
            if context._reason not in (None, "shutdown"):
                task.cancel()

        def stop(reason: str) -> None:
            # At shutdown a run may use the time that is left; `cut` cancels it at the deadline.
            if reason != "shutdown":
                loop.call_soon_threadsafe(lambda: [t.cancel() for t in tasks])

        context._on_stop = stop
        loop.call_soon_threadsafe(begin)
        try:
            return done.result(context._timeout)
        except TimeoutError:
            # The deadline. A coroutine that swallows its cancel keeps its slot, as a thread would.
            context._stop("timeout")
            return done.result()

    def _event_loop(self) -> asyncio.AbstractEventLoop:
        with self._loop_lock:
            if self._loop is None:
                loop = asyncio.new_event_loop()
                try:
                    threading.Thread(
                        target=_run_loop, args=(loop,), name=f"{self._name}-asyncio", daemon=True
                    ).start()
                except BaseException:
                    loop.close()
                    raise
                self._loop = loop  # only now: without its thread every later async job would wait for ever
            return self._loop


def _verdict_of(task: asyncio.Task[Verdict]) -> Verdict:
    if task.cancelled():
        return Verdict(error=asyncio.CancelledError())
    error = task.exception()
    return task.result() if error is None else Verdict(error=error)


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        loop.close()
