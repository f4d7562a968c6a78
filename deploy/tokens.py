"""Join tokens at the server: one is handed out to one device, once."""

from __future__ import annotations

import time
from pathlib import Path

from penchant.common.errors import UsageError
from penchant.common.tokens import JoinToken, Terms
from penchant.deploy.desk import Desk
from penchant.deploy.site import Site

__all__ = ["DAYS", "hand_out"]

DAYS = 7
LONGEST = 90 * 86400


def hand_out(directory: Path, name: str, expires: float) -> JoinToken:
    """A new token for a device that the operator calls `name`, good until `expires` (Unix seconds).

    Give `JoinToken.text()` to the device's owner by a way that nobody else can change; it is shown this once.
    UsageError when `expires` is in the past or more than 90 days off.
    """
    now = time.time()
    if not now < expires <= now + LONGEST:
        raise UsageError("a token is good for some time between now and 90 days")
    site = Site(directory)
    terms = Terms(site.settings.gateway, site.ca_digest, site.authority_digest, int(expires))
    token = JoinToken.create(terms)
    Desk(site).hand_out(token.public_key, terms, name, now=now)
    return token
