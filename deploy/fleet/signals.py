"""The part of a server that speaks to the world outside: figures for monitoring.

It reads what the others record and is needed by none: where it fails, the fleet goes on.
"""

from __future__ import annotations

from penchant.common.errors import UsageError
from penchant.deploy.fleet.fleet_watch import FleetWatch
from penchant.deploy.fleet.listen_address import ListenAddress
from penchant.deploy.fleet.server_directory import SETTINGS, ServerDirectory
from penchant.deploy.fleet.signals_service import serve_signals, token_in

__all__ = ["run"]


def run(server_directory: ServerDirectory) -> None:
    """Do what server.toml says of signals, until SIGTERM. UsageError where it says nothing."""
    settings = server_directory.settings
    if not settings.signals:
        raise UsageError(f"{server_directory.path / SETTINGS} asks for no signals; set metrics there")
    token = token_in(server_directory.file(settings.metrics_token)) if settings.metrics_token else ""
    serve_signals(
        FleetWatch(server_directory), ListenAddress.parse(settings.metrics, "server.metrics"), token
    )
