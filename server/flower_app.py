"""The Flower ServerApp: opens a run and federates it over whatever grid Flower gives it."""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from penchant.server.round import federate
from penchant.server.run import ServerRun

__all__ = ["build_app"]


def build_app(open_run: Callable[[Context], ServerRun]) -> ServerApp:
    """A ServerApp for the run that `open_run` finds for a context."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        federate(open_run(context), grid)

    return app
