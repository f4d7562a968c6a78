"""The API on a port of this machine, until it is told to stop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import uvicorn

from penchant.client.device.device import Device
from penchant.client.device.warm_model import WarmModel
from penchant.deploy.console.connections import bounded_server
from penchant.deploy.device_api.app import build_api
from penchant.deploy.device_api.bodies import ApiLimits
from penchant.deploy.device_api.upstream import UpstreamSettings

__all__ = ["server_for"]

CONNECTIONS = 256  # at the same time, of everybody


def server_for(
    device: Device,
    model: WarmModel,
    *,
    token: Callable[[], str],
    hosts: frozenset[str],
    tls: tuple[Path | None, Path | None] = (None, None),
    limits: ApiLimits | None = None,
    upstream: UpstreamSettings | None = None,
) -> uvicorn.Server:
    """A server that is ready to run on a socket; the arguments are those of `build_api`, and certificate and
    key, in PEM."""
    https = tls[0] is not None
    app = build_api(device, model, token=token, hosts=hosts, https=https, limits=limits, upstream=upstream)
    return bounded_server(app, tls, CONNECTIONS)
