"""Contestants' programs as processes: start one with a verb, hear what it says, end it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import threading
import time
from typing import Any, Self


class Program:
    """A contestant's program, running one verb. Everything that it said is in `said`, newest last."""

    def __init__(self, argv: list[str], *verb: object, dsn: str, setting: str, stamp: str = "none") -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  closed by close()
        self.said: list[dict[str, Any]] = []
        self._heard = threading.Condition()
        self._ended = False
        environment = os.environ | {"BENCH_DSN": dsn, "BENCH_SETTING": setting, "BENCH_STAMP": stamp}
        environment.pop("PYTHONPATH", None)
        self._process = subprocess.Popen(
            [*argv, *map(str, verb)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
            start_new_session=True,
            text=True,
        )
        self.pid = self._process.pid
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait_for(self, fact: str, timeout: float, after: int = 0) -> dict[str, Any]:
        """The first object from number `after` on that holds this fact."""
        deadline = time.monotonic() + timeout
        with self._heard:
            while True:
                for said in self.said[after:]:
                    if fact in said:
                        return said
                after = len(self.said)
                left = deadline - time.monotonic()
                if self._ended or left <= 0:
                    break
                self._heard.wait(left)
        raise TimeoutError(f"no {fact!r} from {self._process.args}: {self.errors()}")

    def latest(self, fact: str) -> dict[str, Any] | None:
        with self._heard:
            return next((said for said in reversed(self.said) if fact in said), None)

    def tell(self, line: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def hang_up(self) -> None:
        """End its input, which asks it to stop."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    def finish(self, timeout: float = 600.0) -> list[dict[str, Any]]:
        """Wait until it ends by itself; all that it said. Fails when it fails."""
        self.hang_up()
        status = self._process.wait(timeout)
        self._reader.join(10)
        if status != 0:
            raise RuntimeError(f"{self._process.args} ended with {status}: {self.errors()}")
        return self.said

    def errors(self) -> str:
        size = os.fstat(self._errors.fileno()).st_size
        return os.pread(self._errors.fileno(), size, 0).decode(errors="replace")[-1500:]

    def close(self) -> None:
        """Gone, with all below it."""
        self.hang_up()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, 9)
        self._process.wait()
        self._reader.join(10)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._errors.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                said = json.loads(line)
            except ValueError:
                continue  # a library's own chatter
            if isinstance(said, dict):
                said["heard"] = time.monotonic()
                with self._heard:
                    self.said.append(said)
                    self._heard.notify_all()
        with self._heard:
            self._ended = True
            self._heard.notify_all()
