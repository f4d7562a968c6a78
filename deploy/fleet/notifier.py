"""Tells people beyond this machine what needs attention: each notice once when it begins, once when it ends.

What was told, and what could not be delivered yet, is in DIR/notices.json, so that a restart repeats nothing
and loses nothing. Each way out is tried again, after longer and longer pauses; one that fails holds no other
up for longer than a try takes.
"""

from __future__ import annotations

import json
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from penchant.common.durations import DAY
from penchant.common.errors import DeliveryError, JournalError, PenchantError
from penchant.common.foreign_files import read_json
from penchant.common.printable import one_line
from penchant.common.storage import write_durably
from penchant.deploy.fleet.fleet_watch import FleetWatch
from penchant.deploy.fleet.notice_channels import TEXT_MOST, NoticeChannel, NoticeEvent
from penchant.deploy.fleet.server_directory import ServerDirectory
from penchant.server.monitoring.alerts import Notice

__all__ = ["NOTICES", "Notifier", "event_of"]

log = logging.getLogger(__name__)

NOTICES: Final = "notices.json"
POLL_SECONDS = 10.0
FIRST_PAUSE, LONGEST_PAUSE = 15.0, 3600.0  # between tries
GIVE_UP_SECONDS = 3 * DAY
WAITING_MOST = 1000  # deliveries


@dataclass
class _Delivery:
    """An event on its way out by one channel. due: not before, Unix seconds."""

    channel: str
    event: NoticeEvent
    tries: int = 0
    due: float = 0.0


@dataclass
class _Told:
    """What the file keeps: topic -> what was told of it, and what is still to be delivered."""

    open: dict[str, NoticeEvent] = field(default_factory=dict)
    waiting: list[_Delivery] = field(default_factory=list)


class Notifier:
    """Looks, decides what is to be told, and delivers it: `step` does each once. For one thread."""

    def __init__(
        self,
        server_directory: ServerDirectory,
        watch: FleetWatch,
        channels: Sequence[NoticeChannel],
        *,
        clock: Callable[[], float] = time.time,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        """clock: the time, Unix seconds. beat: called before each look and each delivery."""
        self._beat = beat
        self._server = server_directory
        self._watch = watch
        self._channels = {channel.name: channel for channel in channels}
        self._clock = clock
        self._path = server_directory.path / NOTICES
        self._told = _read(self._path)
        self._changing: dict[str, float] = {}  # topic -> since when it is otherwise than was told

    def run(self, stop: threading.Event) -> None:
        """Go on until `stop`. Whatever goes wrong is logged, and tried again."""
        while not stop.is_set():
            try:
                self.step(stop)
            except Exception:
                log.exception("notices could not be looked at")
            stop.wait(POLL_SECONDS)

    def step(self, stop: threading.Event | None = None) -> None:
        """Look once, and try once to deliver what is due, of which `stop` leaves the rest."""
        now = self._clock()
        self._beat()
        with self._kept():
            self._compare(self._current(), now)
        self._deliver(now, stop or threading.Event())
        with self._kept():
            self._give_up(now)

    @contextmanager
    def _kept(self) -> Iterator[None]:
        """Write the file where what is told changes within."""
        before = _table(self._told)
        yield
        if _table(self._told) != before:
            self._write()

    def _write(self) -> None:
        write_durably(self._path, json.dumps(_table(self._told)).encode())

    def _current(self) -> dict[str, Notice]:
        """topic -> what there is now; of what can't be seen just now, nothing is over."""
        try:
            found = self._watch.look().notices
        except (PenchantError, OSError) as error:
            text = one_line(str(error))
            blind = Notice("bad", "The server's directory can't be read", text, "", "reading")
            known = (Notice(e.kind, e.title, e.text, "", e.topic) for e in self._told.open.values())
            found = (blind, *known)
        return {notice.topic: notice for notice in reversed(found) if notice.topic}

    def _compare(self, current: dict[str, Notice], now: float) -> None:
        """Tell what has been otherwise than was told for long enough."""
        told = self._told.open
        otherwise = [topic for topic in {**current, **told} if _kind(current, topic) != _kind(told, topic)]
        self._changing = {topic: self._changing.get(topic, now) for topic in otherwise}
        for topic, since in list(self._changing.items()):
            if now - since >= self._server.settings.notices.after_seconds:
                del self._changing[topic]
                self._tell(topic, current.get(topic), now)

    def _tell(self, topic: str, notice: Notice | None, now: float) -> None:
        before = self._told.open.pop(topic, None)
        if notice is not None:
            event = event_of("begins" if before is None else "changes", notice, self._server, now)
            self._told.open[topic] = event
        elif before is not None:
            event = NoticeEvent(**{**asdict(before), "id": _new_id(), "event": "ends", "at": now})
        else:
            return
        self._told.waiting += [_Delivery(name, event) for name in self._channels]
        del self._told.waiting[:-WAITING_MOST]

    def _deliver(self, now: float, stop: threading.Event) -> None:
        """Try what is due. Each try is written down before the next, so that no end of ours repeats them."""
        held: set[str] = set()  # channels whose turn it is not: what was first stays first
        for one in list(self._told.waiting):
            channel = self._channels.get(one.channel)
            if channel is None or one.channel in held:
                continue
            if stop.is_set():
                return
            if now < one.due:
                held.add(one.channel)
                continue
            self._beat()
            if self._sent(channel, one, now):
                self._told.waiting.remove(one)
            else:
                held.add(one.channel)
            self._write()

    def _sent(self, channel: NoticeChannel, one: _Delivery, now: float) -> bool:
        try:
            channel.send(one.event)
        except Exception as error:  # whatever it is, no other channel and no later try pays for it
            told = isinstance(error, DeliveryError)  # another's text may hold a secret
            why = str(error) if told else f"{channel.name} fails: {type(error).__name__}"
            pause = min(FIRST_PAUSE * 2.0 ** min(one.tries, 20), LONGEST_PAUSE)
            one.tries, one.due = one.tries + 1, now + pause
            log.warning("%s; tried again in %.0f s", why, pause)
            return False
        return True

    def _give_up(self, now: float) -> None:
        """Forget what nobody took for too long, and what was for channels no longer in server.toml."""
        wanted = [one for one in self._told.waiting if one.channel in self._channels]
        self._told.waiting = [one for one in wanted if now - one.event.at < GIVE_UP_SECONDS]
        if len(self._told.waiting) < len(wanted):
            log.warning("%d notices are given up after three days", len(wanted) - len(self._told.waiting))


def event_of(
    event: Literal["begins", "changes", "test"], notice: Notice, server_directory: ServerDirectory, now: float
) -> NoticeEvent:
    """What is told of a notice, without names."""
    text, server = one_line(notice.outward, TEXT_MOST), server_directory.settings.gateway
    return NoticeEvent(_new_id(), event, notice.topic, notice.kind, one_line(notice.title), text, server, now)


# --- inner parts --------------------------------------------------------------------------------------


def _kind(of: Mapping[str, Notice | NoticeEvent], topic: str) -> str:
    """ "bad", "warn", or nothing where there is no such notice."""
    return of[topic].kind if topic in of else ""


def _new_id() -> str:
    return secrets.token_hex(8)


def _table(told: _Told) -> dict[str, Any]:
    return {"version": 1, **asdict(told)}


def _read(path: Path) -> _Told:
    """What was told before. A file that can't be read is begun anew: at worst something is told twice."""
    try:
        table = read_json(path, JournalError)
        opened = {topic: NoticeEvent(**event) for topic, event in table["open"].items()}
        waiting = [_Delivery(**{**one, "event": NoticeEvent(**one["event"])}) for one in table["waiting"]]
        return _Told(opened, waiting)
    except FileNotFoundError:
        return _Told()
    except (JournalError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s is begun anew: %s", path, one_line(str(error)))
        return _Told()
