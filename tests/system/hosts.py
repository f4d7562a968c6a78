"""Hosts on one machine: network namespaces, and a wire between them that delays, loses and can be cut.

The wire is a router in user space between TUN devices, one a host, not `tc netem`: it needs nothing of
the kernel but TUN and namespaces (many kernels of virtual machines lack netem), and a test can cut and mend
links while it runs. Everything is gone at the end: processes, namespaces, devices.
"""

from __future__ import annotations

import fcntl
import heapq
import itertools
import os
import random
import select
import signal
import struct
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from support.processes import stop

TUNSETIFF = 0x400454CA
TUN_WITHOUT_HEADER = 0x0001 | 0x1000
MTU = 1400
QUEUE_MOST = 4 << 20  # bytes under way to a host; more are lost, as in a router


@dataclass
class Link:
    """A host's line to the router. delay: seconds, one way; loss: share of packets, each way."""

    delay: float = 0.0
    loss: float = 0.0
    up: bool = True
    carried: int = 0  # bytes that came through, both ways
    lost: int = 0  # packets
    queued: int = field(default=0, repr=False)


class Wire:
    """The router. Packets between two hosts are delayed by both links, in order, and lost by either."""

    def __init__(self, seed: int = 0) -> None:
        self._links: dict[bytes, tuple[int, Link]] = {}  # address -> (TUN device, link)
        self._draw = random.Random(seed)
        self._wake, self._waker = os.pipe()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="wire", daemon=True)
        self._thread.start()

    def attach(self, device: int, address: str, link: Link) -> None:
        """Serve one more host. device: the file descriptor of its TUN device, which the wire closes."""
        packed = bytes(int(part) for part in address.split("."))
        self._links = {**self._links, packed: (device, link)}
        os.write(self._waker, b".")

    def close(self) -> None:
        """Stop; what is under way is lost."""
        self._closed = True
        os.write(self._waker, b".")
        self._thread.join(10)
        for device, _ in self._links.values():
            os.close(device)
        os.close(self._wake)
        os.close(self._waker)

    def _work(self) -> None:
        under_way: list[tuple[float, int, int, Link, Link, bytes]] = []
        order = itertools.count()
        while not self._closed:
            links = self._links
            sources = dict(links.values())
            pause = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
            ready, _, _ = select.select([self._wake, *sources], [], [], pause)
            for device in ready:
                if device == self._wake:
                    os.read(self._wake, 4096)
                    continue
                for packet in _packets(device):
                    source, found = sources[device], links.get(packet[16:20])
                    if packet[0] >> 4 != 4 or found is None:
                        continue  # neighbours' noise: IPv6, multicast
                    target, link = found
                    if self._is_lost(source) or self._is_lost(link) or link.queued > QUEUE_MOST:
                        source.lost += 1
                        continue
                    link.queued += len(packet)
                    due = time.monotonic() + source.delay + link.delay
                    heapq.heappush(under_way, (due, next(order), target, source, link, packet))
            while under_way and under_way[0][0] <= time.monotonic():
                _, _, target, source, link, packet = heapq.heappop(under_way)
                link.queued -= len(packet)
                with suppress(OSError):  # its interface is down
                    os.write(target, packet)
                    source.carried += len(packet)
                    link.carried += len(packet)

    def _is_lost(self, link: Link) -> bool:
        return not link.up or self._draw.random() < link.loss


def _packets(device: int) -> Iterator[bytes]:
    """All IP packets that wait at a TUN device."""
    with suppress(OSError):
        while packet := os.read(device, 65536):
            if len(packet) >= 20:
                yield packet


@dataclass
class Host:
    """A network namespace with one address besides its own loopback."""

    name: str
    address: str
    link: Link

    def words(self, command: Sequence[str]) -> list[str]:
        """`command` as it is run on this host."""
        return ["ip", "netns", "exec", self.name, *command]

    def start(
        self, command: Sequence[str], log: Path, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a process; whatever is left of it ends with the host."""
        with log.open("ab") as file:
            return subprocess.Popen(self.words(command), stdout=file, stderr=file, env=env)

    def run(
        self, command: Sequence[str], env: Mapping[str, str] | None = None, timeout: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on this host to its end."""
        return subprocess.run(
            self.words(command), capture_output=True, text=True, timeout=timeout, env=env, check=False
        )

    def processes(self) -> list[int]:
        """Ids of all processes that run on this host."""
        return [int(pid) for pid in _ip("netns", "pids", self.name).split()]

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """kill -9 of a process and of all that it started, at once."""
        stop(process, signal.SIGKILL)


@contextmanager
def network(count: int, *, delay: float = 0.0, loss: float = 0.0) -> Iterator[list[Host]]:
    """`count` hosts that reach each other; delay (seconds, one way) and loss of each one's link.

    At the end every process on them is killed, and namespaces and devices are removed, whatever happened.
    """
    if os.getuid() != 0:
        raise PermissionError("network namespaces need root")
    wire = Wire()
    with ExitStack() as stack:
        stack.callback(wire.close)
        hosts = []
        for number in range(count):
            name = f"penchant-{os.getpid()}-{number}"
            _ip("netns", "add", name)
            stack.callback(_remove, name)
            hosts.append(_connected(wire, name, number, Link(delay, loss)))
        yield hosts


def _connected(wire: Wire, name: str, number: int, link: Link) -> Host:
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    interface = f"pt{os.getpid() % 100000}-{number}"
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH", interface.encode(), TUN_WITHOUT_HEADER))
    address = f"10.83.{number // 250}.{number % 250 + 1}"
    _ip("link", "set", interface, "netns", name)
    for words in (
        ["link", "set", "lo", "up"],
        ["link", "set", interface, "name", "net0"],
        ["addr", "add", f"{address}/16", "dev", "net0"],
        ["link", "set", "net0", "mtu", str(MTU), "up"],
    ):
        _ip("-n", name, *words)
    wire.attach(device, address, link)
    return Host(name, address, link)


def _remove(name: str) -> None:
    """End a namespace and all that runs in it."""
    end = time.monotonic() + 10
    while (pids := _ip("netns", "pids", name).split()) and time.monotonic() < end:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.1)
    _ip("netns", "delete", name)


def _ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout
