"""The network that an address belongs to: what limits against strangers count by; and whether it is our own.

Whoever has an IPv6 address mostly has 2^64 of them, so that a limit an address would be none.
"""

from __future__ import annotations

import ipaddress
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

__all__ = ["Budget", "is_loopback", "network_of"]

PREFIX = 64


def network_of(address: str) -> str:
    """An IPv4 address as it is, an IPv6 address as its /64; any other text unchanged.

    An IPv4 address that is written as an IPv6 one is the IPv4 address.
    """
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(found), PREFIX), strict=False))


def is_loopback(host: str) -> bool:
    """Whether a host name or IP address is this machine's own, which others don't reach."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Budget:
    """A token bucket for each of the networks seen last: `rate` requests a minute, half of that at once.

    Thread-safe.
    """

    NETWORKS = 10_000

    def __init__(self, rate: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate / 60
        self._most = max(rate / 2, 1.0)
        self._clock = clock
        self._lock = threading.Lock()
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # network -> (tokens, when)

    def spend(self, address: str) -> bool:
        """Whether `address` may ask now; if so, it has."""
        with self._lock:
            return self._spend(network_of(address))

    def _spend(self, network: str) -> bool:
        now = self._clock()
        tokens, since = self._left.pop(network, (self._most, now))
        tokens = min(self._most, tokens + (now - since) * self._rate)
        allowed = tokens >= 1
        self._left[network] = (tokens - 1 if allowed else tokens, now)
        while len(self._left) > self.NETWORKS:
            self._left.popitem(last=False)
        return allowed
