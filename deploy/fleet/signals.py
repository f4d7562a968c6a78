"""The part of a server that speaks to the world outside: figures for monitoring, and notices.

It reads what the others record and is needed by none: where it fails, the fleet goes on.
"""

from __future__ import annotations

import signal
import threading

from penchant.common.errors import UsageError
from penchant.deploy.fleet.fleet_watch import FleetWatch
from penchant.deploy.fleet.listen_address import ListenAddress
from penchant.deploy.fleet.notice_channels import channels_of
from penchant.deploy.fleet.notifier import Notifier
from penchant.deploy.fleet.server_directory import SETTINGS, ServerDirectory
from penchant.deploy.fleet.signals_service import serve_signals, token_in

__all__ = ["run"]


def run(server_directory: ServerDirectory) -> None:
    """Do what server.toml says of signals, until SIGTERM. UsageError where it says nothing, ConfigError when
    a file that it names can't be read."""
    settings, stop = server_directory.settings, threading.Event()
    if not settings.signals:
        raise UsageError(
            f"{server_directory.path / SETTINGS} asks for no signals; set metrics or [notices] there"
        )
    watch, channels = FleetWatch(server_directory), channels_of(server_directory)
    token = token_in(server_directory.file(settings.metrics_token)) if settings.metrics_token else ""
    notifier = Notifier(server_directory, watch, channels)
    if not settings.metrics:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        notifier.run(stop)
        return
    if channels:
        threading.Thread(target=notifier.run, args=(stop,), name="notices", daemon=True).start()
    serve_signals(watch, ListenAddress.parse(settings.metrics, "server.metrics"), token)
