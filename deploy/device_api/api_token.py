"""The token that programs show to the device's API: made at the first start, for the owner's eyes alone.

It is what lies in the device's directory at the moment of a request, so that another one counts at once.
"""

from __future__ import annotations

import re
import secrets
import stat
from pathlib import Path

from penchant.client.vault.ownership import read_owned
from penchant.common.errors import ConfigError, DeviceError
from penchant.common.storage import replace_erasing, write_private

__all__ = ["TOKEN_FILE", "api_token", "has_token_form", "new_api_token", "token_now"]

TOKEN_FILE = "api.token"
_FORM = re.compile(r"penchant-[\w-]{43}", re.ASCII)


def api_token(home: Path) -> str:
    """The token of the device in `home`; it is made when there is none. Errors as of `token_now`."""
    path = home / TOKEN_FILE
    if not path.exists():
        write_private(path, _made(), replace=False)
    return token_now(home)


def token_now(home: Path) -> str:
    """The token that lies in `home` at this moment.

    DeviceError when there is none, when others can read it, or when it is none; ConfigError when others can
    write it.
    """
    path = home / TOKEN_FILE
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise DeviceError(
                f"others can read {path}: `penchant device api-token --new` makes another token"
            )
        text = read_owned(path).removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DeviceError(f"can't read {path}: {error}") from None
    if not has_token_form(text):
        raise DeviceError(f"{path} holds no token; `penchant device api-token --new` makes another one")
    return text


def new_api_token(home: Path) -> str:
    """Another token in the place of the one that was there, which no program is let in with from now on."""
    path = home / TOKEN_FILE
    if path.is_symlink():
        raise ConfigError(f"{path} is a link; remove it")
    if path.exists():
        replace_erasing(path, _made(), failure=DeviceError)
    return api_token(home)


def has_token_form(text: str) -> bool:
    """Whether a text is written as tokens are, be it one that counts, one that did, or none."""
    return _FORM.fullmatch(text) is not None


def _made() -> bytes:
    return f"penchant-{secrets.token_urlsafe(32)}\n".encode()
