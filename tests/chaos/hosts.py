"""A network of the nodes' own: each node is a host with an address, and its cable can be cut, one way or both.

A proxy cannot play a silent kernel: what it holds back was acknowledged. Here nothing is acknowledged, as when a
switch dies. It needs root, `ip` and `nft`; `why_not()` says what is missing. Each run has addresses of its own, so
several may run side by side.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Literal, Self

__all__ = ["Host", "Network", "enter", "why_not"]

_NAMES = "chaos"  # of namespaces: chaos<pid>n<number>
_SPACES = Path("/run/netns")
_CLONE_NEWNET = 0x40000000

Cut = Literal["both", "in", "out"]
"""`in` is what the node would hear, `out` what it says."""


def why_not() -> str | None:
    """Why there can be no network here, or None."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for program in ("ip", "nft"):
        if shutil.which(program) is None:
            return f"network namespaces need the program {program!r} (iproute2, nftables)"
    try:
        with Network() as network:
            network.host(0).cut()
    except subprocess.CalledProcessError as error:
        return f"network namespaces are not allowed here: {' '.join(error.cmd)}: {error.stderr.strip()}"
    return None


def enter(space: str) -> None:
    """Move this process into a namespace; before it has threads."""
    handle = os.open(_SPACES / space, os.O_RDONLY)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(handle, _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter the network namespace {space}")
    finally:
        os.close(handle)


class Network:
    """Hosts with a cable each to the server's machine. `addresses` is where the server must listen."""

    def __init__(self, hosts: int = 1) -> None:
        _remove_leftovers()
        pid = os.getpid()
        self._net = f"10.{64 + pid % 128}.{pid // 128 % 256}"
        self._hosts: list[Host] = []
        try:
            for number in range(hosts):
                self._hosts.append(Host(f"{_NAMES}{pid}n{number}", self._net, number))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._hosts)

    def host(self, number: int) -> Host:
        return self._hosts[number]

    @property
    def addresses(self) -> list[str]:
        return [host.server for host in self._hosts]

    @property
    def subnet(self) -> str:
        """What a server's host-based authentication may trust."""
        return f"{self._net}.0/24"

    def close(self) -> None:
        """Remove every host. Idempotent."""
        for host in self._hosts:
            host.remove()
        self._hosts.clear()


class Host:
    """A network namespace with one cable: `address` here, `server` at the other end."""

    def __init__(self, space: str, net: str, number: int) -> None:
        self.space = space
        self.server = f"{net}.{4 * number + 1}"
        self.address = f"{net}.{4 * number + 2}"
        self._outer, self._inner = f"ch{os.getpid()}a{number}", f"ch{os.getpid()}b{number}"
        _run("ip", "netns", "add", space)
        _run("ip", "link", "add", self._outer, "type", "veth", "peer", "name", self._inner, "netns", space)
        _run("ip", "addr", "add", f"{self.server}/30", "dev", self._outer)
        _run("ip", "link", "set", self._outer, "up")
        self._inside("ip", "addr", "add", f"{self.address}/30", "dev", self._inner)
        self._inside("ip", "link", "set", self._inner, "up")
        self._inside("ip", "link", "set", "lo", "up")

    def cut(self, way: Cut = "both") -> None:
        """Nothing gets through any more, and nobody is told."""
        chains = {"in": "input", "out": "output"}
        rules = ["table inet cut {"]
        for name, hook in chains.items():
            if way in ("both", name):
                interface = "iif" if name == "in" else "oif"
                rules.append(
                    f"chain {name}_ {{ type filter hook {hook} priority 0; policy drop; {interface} lo accept; }}"
                )
        self._inside("nft", "\n".join([*rules, "}"]))

    def thin(self) -> str:
        """A bad line: late where the kernel can play that, else hardly anything fits through. Says which."""
        device = ("tc", "qdisc", "replace", "dev", self._inner, "root")
        try:
            self._inside(*device, "netem", "delay", "150ms", "100ms")
        except subprocess.CalledProcessError:
            self._inside(*device, "tbf", "rate", "96kbit", "burst", "3kb", "latency", "2s")
            return "96 kbit/s"
        return "150 ± 100 ms"

    def heal(self) -> None:
        """A good cable again."""
        with suppress(subprocess.CalledProcessError):
            self._inside("nft", "delete table inet cut")
        with suppress(subprocess.CalledProcessError):
            self._inside("tc", "qdisc", "del", "dev", self._inner, "root")

    def remove(self) -> None:
        # The server's end of the cable goes with the other; processes inside go on without a network.
        with suppress(subprocess.CalledProcessError):
            _run("ip", "link", "del", self._outer)
        with suppress(subprocess.CalledProcessError):
            _run("ip", "netns", "del", self.space)

    def _inside(self, *command: str) -> None:
        _run("ip", "netns", "exec", self.space, *command)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


def _remove_leftovers() -> None:
    """Of runs that were killed: their process is gone."""
    for space in _SPACES.glob(f"{_NAMES}[0-9]*n[0-9]*"):
        pid = space.name.removeprefix(_NAMES).partition("n")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            subprocess.run(["ip", "netns", "del", space.name], check=False, capture_output=True)
