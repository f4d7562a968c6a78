"""The agent of a device that stays up while its owner leaves a fleet and joins one."""

from __future__ import annotations

import logging
from collections.abc import Callable

from penchant.client.device.home import DeviceHome
from penchant.common.errors import PenchantError
from penchant.common.printable import one_line

__all__ = ["CurrentAgent"]

log = logging.getLogger(__name__)


class CurrentAgent:
    """Answers as the member that the device is now.

    An agent answers as the member that it was made as, and refuses once the owner has left or joined anew,
    which ends all that it had begun. The one after it answers from the next message on.

    Args:
        device: the device, which is in a fleet. UsageError where it is in none.
        joined: called with the number of a new member, once it answers.
    """

    def __init__(self, device: DeviceHome, joined: Callable[[int], None] = lambda member: None) -> None:
        self._device = device
        self._joined = joined
        self._agent, self._certificate = device.agent(), _certificate(device)

    def answer(self, stage: str, payload: bytes) -> bytes:
        """As `Agent.answer`. For one message at a time."""
        reply = self._agent.answer(stage, payload)
        try:
            self._renew()
        except (PenchantError, OSError) as error:  # tried again with the next message
            log.warning("can't answer as another member yet: %s", one_line(str(error)))
        return reply

    def _renew(self) -> None:
        """Take another agent where the owner has joined anew."""
        found = _certificate(self._device)
        if found is None or found == self._certificate:
            return
        self._agent, self._certificate = self._device.agent(), found
        self._joined(self._device.member or 0)


def _certificate(device: DeviceHome) -> object:
    """By what the device is known in its fleet; None where it is in none."""
    identity = device.identity()
    return None if identity is None else identity.certificate
