"""What the tests stand on: servers, node processes, skewed clocks, a bad network, and one way to wait.

Node scripts import from here too, so nothing in this package imports pytest at module level.
"""

from __future__ import annotations

import io
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

__all__ = ["ROOT", "Terminal", "eventually", "reserved_port"]

ROOT = Path(__file__).resolve().parents[2]  # of the checkout

T = TypeVar("T")


class Terminal(io.StringIO):
    """Standard input with somebody before it, who types this: `monkeypatch.setattr("sys.stdin", Terminal("y\\n"))`."""

    def isatty(self) -> bool:
        return True


def eventually(predicate: Callable[[], T], timeout: float = 20.0, describe: object = "") -> T:
    """Wait until `predicate()` is truthy and return its value; fail when it is not in time.

    The only polling in the tests, for facts that live in another process and send no event. `describe`
    says what was awaited; a callable is asked only on failure, so it can show the state that was found.
    """
    deadline = time.monotonic() + timeout
    pause = 0.002
    while not (value := predicate()):
        if time.monotonic() > deadline:
            text = describe() if callable(describe) else describe
            raise AssertionError(f"not within {timeout:g} s: {text or predicate}; last value {value!r}")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.05)
    return value


@contextmanager
def reserved_port() -> Iterator[int]:
    """A port of 127.0.0.1 that nobody else is given in this block; connections to it are refused.

    Bound, and listened at by nobody: a server that sets SO_REUSEADDR, as they all do, can have it meanwhile.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]
