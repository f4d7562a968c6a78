"""What the SuperNode of a device needs: a folder with nothing of the owner's, fit to be another user's.

node.toml   where the gateway is, where the agent listens
node.key    the node's private key, P-384, for OpenSSH
ca.pem      the one certificate authority that it believes
connection.json  when the server answered last (`client.agent.connection_note`)
"""

from __future__ import annotations

import shutil
import tomllib
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from penchant.client.agent.connection_note import NOTE
from penchant.common.errors import ConfigError, DeviceError
from penchant.common.storage import erase, write_private

__all__ = ["CA", "KEY", "NODE", "SETTINGS", "SuperNodeFiles"]

NODE = "node"  # the folder in the device's directory, unless another is named
SETTINGS, KEY, CA = "node.toml", "node.key", "ca.pem"
FLOWER = "flower"  # what Flower's processes keep


@dataclass(frozen=True)
class SuperNodeFiles:
    """What the SuperNode needs to know. superlink: HOST:PORT of the gateway; socket: the agent's."""

    folder: Path
    superlink: str
    socket: Path
    token: str  # the name of the token it came by

    @property
    def key(self) -> Path:
        """Its private key."""
        return self.folder / KEY

    @property
    def ca(self) -> Path:
        """The one certificate authority that it believes."""
        return self.folder / CA

    @classmethod
    def read(cls, folder: Path) -> SuperNodeFiles:
        """The node in `folder`. ConfigError when there is none."""
        path = folder / SETTINGS
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
            return cls(folder, str(table["superlink"]), Path(str(table["socket"])), str(table["token"]))
        except FileNotFoundError:
            raise ConfigError(f"there is no {path}; join a fleet with a token first") from None
        except (OSError, ValueError, KeyError, RecursionError) as error:
            raise ConfigError(f"can't read {path}: {type(error).__name__}") from None

    @classmethod
    def remove(cls, folder: Path) -> bool:
        """Leave nothing of the node in `folder`: its key is overwritten, then all goes; -> whether there was
        one. What is not ours stays: a folder that holds no node is not touched. DeviceError when the disk
        refuses."""
        try:
            cls.read(folder)
        except ConfigError:
            return False
        try:
            if (folder / KEY).exists():
                erase(folder / KEY)
            if (folder / FLOWER).is_dir():
                shutil.rmtree(folder / FLOWER)
            for name in (CA, NOTE, SETTINGS):  # last what tells that a node is here: broken off, it goes on
                (folder / name).unlink(missing_ok=True)
            if not any(folder.iterdir()):
                folder.rmdir()
        except OSError as error:
            raise DeviceError(
                f"can't remove the node's files in {folder}: {error.strerror}; remove them by hand"
            ) from None
        return True

    def write(self) -> None:
        """Write `node.toml`."""
        table = {"superlink": self.superlink, "socket": str(self.socket), "token": self.token}
        write_private(self.folder / SETTINGS, tomli_w.dumps(table).encode())
