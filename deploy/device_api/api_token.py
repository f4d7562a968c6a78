"""The token that programs show to the device's API: made at the first start, for the owner's eyes alone."""

from __future__ import annotations

import re
import secrets
import stat
from pathlib import Path

from penchant.client.vault.ownership import read_owned
from penchant.common.errors import ConfigError, DeviceError
from penchant.common.storage import replace_erasing, write_private

__all__ = ["TOKEN_FILE", "api_token", "new_api_token"]

TOKEN_FILE = "api.token"
_FORM = re.compile(r"penchant-[\w-]{43}\n?", re.ASCII)


def api_token(home: Path) -> str:
    """The token of the device in `home`; it is made when there is none.

    DeviceError when others can read it, or when it is none; ConfigError when others can write it.
    """
    path = home / TOKEN_FILE
    if not path.exists():
        write_private(path, _made(), replace=False)
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise DeviceError(
                f"others can read {path}: `penchant device api-token --new` makes another token"
            )
        text = read_owned(path)
    except (OSError, UnicodeDecodeError) as error:
        raise DeviceError(f"can't read {path}: {error}") from None
    if not _FORM.fullmatch(text):
        raise DeviceError(f"{path} holds no token; `penchant device api-token --new` makes another one")
    return text.strip()


def new_api_token(home: Path) -> str:
    """Another token in the place of the one that was there, which is of no use from the next start on."""
    path = home / TOKEN_FILE
    if path.is_symlink():
        raise ConfigError(f"{path} is a link; remove it")
    if path.exists():
        replace_erasing(path, _made(), failure=DeviceError)
    return api_token(home)


def _made() -> bytes:
    return f"penchant-{secrets.token_urlsafe(32)}\n".encode()
