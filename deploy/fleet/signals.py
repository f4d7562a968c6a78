"""The part of a server that speaks to the world outside: figures for monitoring, and notices.

It reads what the others record and is needed by none: where it fails, the fleet goes on. Nor do its two
halves need each other: while the port for figures can't be had, notices are sent.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import NoReturn

from penchant.common.errors import ConfigError, GatewayError, UsageError
from penchant.deploy.fleet.fleet_watch import FleetWatch
from penchant.deploy.fleet.heartbeat import Heartbeat
from penchant.deploy.fleet.listen_address import ListenAddress
from penchant.deploy.fleet.notice_channels import channels_of
from penchant.deploy.fleet.notifier import Notifier
from penchant.deploy.fleet.processes import METRICS_BEAT, METRICS_LOCK, NOTICES_BEAT, SIGNALS_LOCK
from penchant.deploy.fleet.server_directory import SETTINGS, ServerDirectory
from penchant.deploy.fleet.signals_service import serve_signals, token_in
from penchant.deploy.run_directory import claim

__all__ = ["run"]

log = logging.getLogger(__name__)

RETRY_SECONDS = 5.0  # between tries to have the port
SIGN_SECONDS = 60.0  # between two signs of life, at most: a delivery takes a while
LAST_SECONDS = 7.0  # that a delivery under way may take at the end: the supervisor waits for ten in all


def run(server_directory: ServerDirectory) -> None:
    """Do what server.toml says of signals, until SIGTERM.

    UsageError where it says nothing, ConfigError when a file that notices need can't be read. What keeps
    figures from being served ends it with an error only where there are no notices.
    """
    settings = server_directory.settings
    if not settings.signals:
        raise UsageError(
            f"{server_directory.path / SETTINGS} asks for no signals; set metrics or [notices] there"
        )
    with claim(server_directory.path, SIGNALS_LOCK):
        watch, channels = FleetWatch(server_directory), channels_of(server_directory)
        notifier = Notifier(server_directory, watch, channels, beat=_beats(server_directory, NOTICES_BEAT))
        if not settings.metrics:
            _notify(notifier)
        elif not channels:
            _serve(server_directory, watch)
        else:
            _notify_and_serve(notifier, server_directory, watch)


def _notify(notifier: Notifier) -> None:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    notifier.run(stop)


def _notify_and_serve(notifier: Notifier, server_directory: ServerDirectory, watch: FleetWatch) -> None:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)  # uvicorn, once it has ended, raises what it was ended by
    notices = threading.Thread(target=notifier.run, args=(stop,), name="notices", daemon=True)
    notices.start()
    try:
        _serve_at_last(server_directory, watch)
    finally:
        stop.set()
        notices.join(LAST_SECONDS)


def _leave(*_: object) -> NoReturn:
    raise SystemExit(0)


def _serve_at_last(server_directory: ServerDirectory, watch: FleetWatch) -> None:
    """Serve figures as soon as that can be done; why it can't is logged once."""
    said = ""
    while True:
        try:
            return _serve(server_directory, watch)
        except (ConfigError, GatewayError) as error:
            if str(error) != said:
                said = str(error)
                log.warning("no figures, but notices go on: %s; tried every %.0f s", said, RETRY_SECONDS)
        time.sleep(RETRY_SECONDS)


def _serve(server_directory: ServerDirectory, watch: FleetWatch) -> None:
    """Serve figures until SIGTERM. ConfigError without the wanted token, GatewayError without the port."""
    settings = server_directory.settings
    where = ListenAddress.parse(settings.metrics, "server.metrics")
    token = token_in(server_directory.file(settings.metrics_token)) if settings.metrics_token else ""
    with ExitStack() as served:

        def announce() -> None:
            served.enter_context(claim(server_directory.path, METRICS_LOCK))
            log.info("figures are at http://%s/metrics", where)

        serve_signals(watch, where, token, announce, _beats(server_directory, METRICS_BEAT))


def _beats(server_directory: ServerDirectory, name: str) -> Callable[[], None]:
    """What gives a sign of life, of which another comes in a minute. One that can't be written stops nothing:
    it is missed, and then this part is said to hang."""
    heartbeat = Heartbeat(server_directory.path / name)

    def beat() -> None:
        with suppress(OSError):
            heartbeat.beat(SIGN_SECONDS)

    return beat
