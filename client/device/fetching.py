"""A device fetches its fleet's release from its server, which it does not believe.

The server says what it offers and gives the numbers; which of it is the fleet's release the authority's
signature says, and what may be used here the owner's policy. Where anything is not as it should be, the
device keeps what it has.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from penchant.client.device.device import Device
from penchant.client.device.joining import Connect, KnownServer, https, said_by
from penchant.common.membership.release_manifest import MAX_OFFER, ReleaseManifest

__all__ = ["Fetched", "fetch_release"]

_PATH = "/enrol/release"


@dataclass(frozen=True)
class Fetched:
    """What fetching came to.

    Attributes:
        outcome: "none" where no release is offered to this device, "canary" where none is that is newer than
            the canary that it knows, "same" where it uses the newest already, "taken" where it uses another
            one from now on, "kept" where it stays with what its rounds made.
        manifest: of the newest release for this device; None for none.
    """

    outcome: Literal["none", "canary", "same", "taken", "kept"]
    manifest: ReleaseManifest | None = None


def fetch_release(
    device: Device,
    server: KnownServer,
    connect: Connect = https,
    *,
    use: bool = False,
    clock: Callable[[], float] = time.time,
) -> Fetched:
    """Ask the server for the fleet's release, and use it from now on.

    use: also where the model in use was made by rounds that this device was in: otherwise it stays.

    Raises EnrolmentError when the server can't be reached or refuses; else as `Device.offered_release` and
    `Device.take_release`. Nothing is changed then.
    """
    offer = said_by(server, _PATH, device.release_ask(int(clock())).encode(), MAX_OFFER, connect)
    found = device.offered_release(offer)
    if found is None:
        canary = device.known_canary()
        return Fetched("none") if canary is None else Fetched("canary", canary)
    signed, manifest = found
    known = device.release()
    if known is not None and known.in_use and known.manifest.contents.is_same_model(manifest.contents):
        device.note_release(signed, int(clock()))
        return Fetched("same", manifest)
    if device.uses_rounds() and not use:
        device.note_release(signed, int(clock()))
        return Fetched("kept", manifest)
    ask = device.release_ask(int(clock()), manifest.contents.factors)
    data = said_by(server, _PATH, ask.encode(), manifest.contents.size, connect)
    device.take_release(signed, data, int(clock()), use=use)
    return Fetched("taken", manifest)
