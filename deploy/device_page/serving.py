"""The owner's page on a port of loopback, until it is closed."""

from __future__ import annotations

from collections.abc import Sequence

import uvicorn

from penchant.client.device.device import Device
from penchant.common.data.preferences import Preference
from penchant.deploy.console.connections import bounded_server
from penchant.deploy.device_page.app import build_page
from penchant.deploy.device_page.entrance import Entrance
from penchant.deploy.device_page.writers import ResponseWriter

__all__ = ["page_server"]

CONNECTIONS = 64  # at the same time: one browser holds a few


def page_server(
    device: Device,
    comparisons: Sequence[Preference],
    entrance: Entrance,
    hosts: frozenset[str],
    writer: ResponseWriter | None = None,
) -> uvicorn.Server:
    """A server that is ready to run on a socket; the arguments are those of `build_page`."""

    def close() -> None:
        server.should_exit = True

    app = build_page(device, comparisons, entrance, hosts=hosts, close=close, writer=writer)
    server = bounded_server(app, (None, None), CONNECTIONS)
    return server
