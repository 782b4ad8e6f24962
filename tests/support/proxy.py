"""A TCP proxy before PostgreSQL, in the test's own process: a network that stalls, breaks or is slow.

    with Proxy(dsn) as proxy:
        scheduler = Scheduler(SchedulerConfig(dsn=proxy.dsn))
        proxy.stall()       # nothing arrives any more, in either direction; nobody is told
        proxy.heal()        # and what was held back arrives now

What it cannot play: a peer whose *kernel* is silent. Bytes that the proxy holds back were acknowledged by
this machine's TCP, so `tcp_user_timeout` and keepalives do not fire; only timeouts of the program do.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections.abc import Coroutine
from contextlib import ExitStack, suppress
from typing import Any, Literal, Self, TypeVar

import psycopg
from psycopg import conninfo

from tests.support import reserved_port

__all__ = ["Proxy", "Way"]

Way = Literal["both", "up", "down"]
"""`up` is towards the server: requests. `down` is towards the client: answers."""

T = TypeVar("T")
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER with no time left: closing sends RST
_HELD = 64  # chunks that one direction of a connection may hold back, before the sender blocks


class Proxy:
    """Forwards a free port of 127.0.0.1 to the server of `dsn`. Each mode holds until the next call."""

    def __init__(self, dsn: str) -> None:
        with psycopg.connect(dsn) as connection:
            self._target = (connection.info.host, connection.info.port)
        self._seconds = 0.0  # of delay, each way
        self._jitter = 0.0
        self._pairs: set[asyncio.Task[None]] = set()  # one per connection; only the loop's thread
        self._writers: set[asyncio.StreamWriter] = set()  # both ends of each; only the loop's thread
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._gates: dict[str, asyncio.Event] = {}  # closed: that way is stalled
        self._held = 0  # chunks that stand before a closed gate; only the loop's thread writes
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        # Also while it refuses: nobody else may be given the port to which clients come back.
        self._reserved = ExitStack()
        self.port = self._reserved.enter_context(reserved_port())
        self._do(self._open())
        self.dsn = conninfo.make_conninfo(dsn, host="127.0.0.1", hostaddr="127.0.0.1", port=self.port)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def heal(self) -> None:
        """A good network again: accept, forward what was held back, no delay."""
        self._seconds = self._jitter = 0.0
        self._do(self._open())

    def stall(self, way: Way = "both") -> None:
        """Hold back all bytes of one or both ways, without a word. New connections hang too."""
        self._do(self._close_gates(("up", "down") if way == "both" else (way,)))

    def delay(self, seconds: float, jitter: float = 0.0) -> None:
        """Every byte takes this long each way (plus up to `jitter`), in order, at full bandwidth."""
        self._seconds, self._jitter = seconds, jitter

    def reset(self) -> None:
        """Break all present connections (RST at both ends). New ones are accepted."""
        self._do(self._reset())

    def refuse(self) -> None:
        """Break all connections and refuse new ones, as a host without a server does."""
        self._do(self._refuse())

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._pairs)

    @property
    def held(self) -> int:
        """How many pieces have come in and are held back by a stall."""
        return self._held

    def close(self) -> None:
        """Break everything and free the port. Idempotent."""
        if not self._loop.is_closed():
            self._do(self._refuse())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(5)
            self._loop.close()
            self._reserved.close()

    # What follows runs in the loop's thread.

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    async def _open(self) -> None:
        for way in ("up", "down"):
            self._gates.setdefault(way, asyncio.Event()).set()
        if self._server is None:
            # The same port each time, so that clients can come back.
            self._server = await asyncio.start_server(
                self._accept, "127.0.0.1", self.port, reuse_address=True
            )

    async def _close_gates(self, ways: tuple[str, ...]) -> None:
        for way in ways:
            self._gates[way].clear()

    async def _refuse(self) -> None:
        # A server that is closed between accepting a connection and making its transport leaves that one open.
        while any(
            getattr(task.get_coro(), "__name__", "") == "_accept_connection2" for task in asyncio.all_tasks()
        ):
            await asyncio.sleep(0)
        if self._server is not None:
            self._server.close()
            self._server = None
        await self._reset()

    async def _reset(self) -> None:
        for writer in list(self._writers):
            _reset(writer)
        pairs = list(self._pairs)
        for task in pairs:
            task.cancel()
        await asyncio.gather(*pairs, return_exceptions=True)
        await asyncio.sleep(0)  # transports close in the loop's next turn

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Not a coroutine, so that the task is known to _reset() from its first moment.
        self._writers.add(writer)
        task = asyncio.ensure_future(self._forward(reader, writer))
        self._pairs.add(task)
        task.add_done_callback(self._pairs.discard)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = [writer]
        try:
            await self._gates["up"].wait()
            there_reader, there = await self._connect()
            ends.append(there)
            self._writers.add(there)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump(reader, there, "up"))
                both.create_task(self._pump(there_reader, writer, "down"))
        except* OSError:
            pass  # one end broke: so does the other
        finally:
            for end in ends:
                self._writers.discard(end)
                end.close()

    async def _connect(self) -> Streams:
        host, port = self._target
        if host.startswith("/"):
            return await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        return await asyncio.open_connection(host, port)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str) -> None:
        """One way of one connection: a line of chunks, each with the moment at which it may arrive."""
        line: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_HELD)
        async with asyncio.TaskGroup() as both:
            both.create_task(self._receive(reader, line))
            both.create_task(self._deliver(line, writer, way))

    async def _receive(self, reader: asyncio.StreamReader, line: asyncio.Queue[tuple[float, bytes]]) -> None:
        data = b"first"
        while data:
            data = await reader.read(65536)
            # The end of the stream (no data) travels like any other byte.
            late = self._seconds + random.random() * self._jitter
            await line.put((self._loop.time() + late, data))

    async def _deliver(
        self, line: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter, way: str
    ) -> None:
        while True:
            due, data = await line.get()
            await asyncio.sleep(due - self._loop.time())
            self._held += 1
            try:
                await self._gates[way].wait()
            finally:
                self._held -= 1
            if not data:
                # PostgreSQL's protocol has no half-closed state: the end of one way ends both.
                raise ConnectionResetError
            writer.write(data)
            await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    raw = writer.get_extra_info("socket")
    if raw is not None and raw.family == socket.AF_INET:
        with suppress(OSError):  # it was closed just now
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
