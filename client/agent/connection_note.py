"""What the relay last heard from the fleet's server, left where the owner's `penchant device status` looks.

The relay may be another user, who sees nothing of the owner's; so this lies in the relay's folder, and says
when the server answered last and, if the server turned the device away, why.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from penchant.common.errors import DeviceError
from penchant.common.foreign_files import read_json
from penchant.common.printable import one_line
from penchant.common.storage import write_private

__all__ = ["NOTE", "QUIET_SECONDS", "ConnectionNote", "leave_note", "read_note"]

NOTE: Final = "connection.json"
QUIET_SECONDS: Final = 120.0  # without an answer of the server, a device is not called connected
NOTE_MOST = 4096  # bytes
LATEST = 32503680000.0  # the year 3000, Unix seconds


@dataclass(frozen=True)
class ConnectionNote:
    """The relay's last word.

    heard: when the server answered last, Unix seconds, 0 for never. refused: why it takes nothing from this
    device any more, empty while it does.
    """

    heard: float
    refused: str = ""


def leave_note(folder: Path, note: ConnectionNote) -> None:
    """Write it down. DeviceError when the disk refuses."""
    write_private(folder / NOTE, json.dumps(asdict(note)).encode())


def read_note(folder: Path) -> ConnectionNote | None:
    """What the relay left; None where there is nothing, or nothing that can be read."""
    try:
        table = read_json(folder / NOTE, DeviceError, NOTE_MOST)
    except (OSError, DeviceError):
        return None
    if not isinstance(table, dict) or set(table) != {"heard", "refused"}:
        return None
    heard, refused = table["heard"], table["refused"]
    if type(heard) not in (int, float) or not 0 <= heard <= LATEST or not isinstance(refused, str):
        return None
    return ConnectionNote(float(heard), one_line(refused))
