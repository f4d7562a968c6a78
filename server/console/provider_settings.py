"""`console.toml` in the console's directory: which identity provider lets people in, and what each may do."""

from __future__ import annotations

import hashlib
import re
import ssl
import stat
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from penchant.common.errors import ConfigError
from penchant.common.network import is_loopback
from penchant.common.settings import Section, build_section, setting
from penchant.server.console.rights import ROLES, Rights, Role

__all__ = ["SETTINGS", "Allowed", "ProviderSettings", "TrustedProvider", "VouchedPerson", "trusted_provider"]

SETTINGS = "console.toml"
SETTINGS_MOST = 256 * 1024  # bytes
NAME_MOST = 100  # characters of an account's name
SECRET_MOST = 4096  # bytes of a client's secret
_RULE_KEYS = ("subject", "email", "group")


@dataclass(frozen=True)
class VouchedPerson:
    """Whom a provider vouches for.

    Attributes:
        subject: the provider's own name for them, which never changes.
        email: their address, where the provider says that it has verified it; else empty.
        groups: the groups that the provider has them in.
    """

    subject: str
    email: str = ""
    groups: frozenset[str] = frozenset()

    @property
    def account(self) -> str:
        """What their account is called; the colon keeps it apart from accounts with a password, and what is
        before it names by addresses apart from names by subjects, which may read like addresses."""
        name = f"oidc:{self.email}" if self.email else f"oidc-sub:{self.subject}"
        if len(name) <= NAME_MOST:
            return name
        return f"{name[: NAME_MOST - 17]}~{hashlib.sha256(name.encode()).hexdigest()[:16]}"


@dataclass(frozen=True)
class Allowed:
    """Who has a role, and where: one rule.

    Attributes:
        key: "subject", "email" or "group".
        value: which one.
        role: what they may do.
        fleet: the id of the fleet that it is about; empty for everywhere that no other rule names.
    """

    key: str
    value: str
    role: Role
    fleet: str = ""

    def holds(self, person: VouchedPerson) -> bool:
        """Whether it is about this person."""
        if self.key == "group":
            return self.value in person.groups
        if self.key == "email":
            return bool(person.email) and _plain(self.value) == _plain(person.email)
        return self.value == person.subject


def _plain(address: str) -> bytes:
    """An address without the case of A to Z: that of other letters may make two people one (ß and ss)."""
    return address.encode("utf-8", "surrogatepass").lower()


@dataclass(frozen=True)
class ProviderSettings(Section):
    """The table [oidc] of console.toml, but for its rules."""

    issuer: str = setting("", "The provider's address, exactly as it calls itself.")
    client_id: str = setting("", "What the provider calls this console.")
    client_secret_file: str = setting(
        "", "A file with the secret that the provider gave; empty for a public client."
    )
    ca_file: str = setting(
        "", "Certificates that vouch for the provider, in PEM; empty for those of all the world."
    )
    name: str = setting("your organisation", "What the button says: Log in with NAME.")
    scopes: tuple[str, ...] = setting(("openid", "email"), "What the provider is asked for.")
    groups_claim: str = setting("groups", "Where the provider says somebody's groups.")

    def _check(self) -> None:
        try:
            parts = urlsplit(self.issuer)
            host = parts.hostname or ""
        except ValueError:
            raise ConfigError("oidc.issuer is not a URL") from None
        secure = parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host))
        if not host or not secure or parts.query or parts.fragment or parts.username or parts.password:
            raise ConfigError(
                "oidc.issuer must be an https:// address without a query or a name in it "
                "(http:// on this machine alone)"
            )
        if not self.client_id:
            raise ConfigError("oidc.client_id is missing: it is what the provider calls this console")
        if "openid" not in self.scopes:
            raise ConfigError("oidc.scopes must have openid among them")
        if not re.fullmatch(r"[^\W_][\w .,&'-]{0,39}", self.name):
            raise ConfigError("oidc.name is 1 to 40 letters, digits and spaces")

    @classmethod
    def _title(cls) -> str:
        return "oidc"


@dataclass(frozen=True)
class TrustedProvider:
    """A provider, the secret that we show it, and whom of its people we let in."""

    settings: ProviderSettings
    allowed: tuple[Allowed, ...]
    secret: str = field(default="", repr=False)
    tls: ssl.SSLContext = field(default_factory=ssl.create_default_context, repr=False)

    def rights_of(self, person: VouchedPerson) -> Rights | None:
        """What somebody may do; None where no rule is about them. Of several rules for a place the one that
        allows most counts."""
        found: dict[str, Role] = {}
        for rule in self.allowed:
            if rule.holds(person):
                found[rule.fleet] = max(found.get(rule.fleet, "none"), rule.role, key=ROLES.index)
        rights = Rights(found.pop("", "none"), found)
        return rights if rights.may_anywhere("viewer") else None


def trusted_provider(directory: Path, fleet_id: Callable[[str], str]) -> TrustedProvider | None:
    """What `console.toml` in the console's directory says; None where there is none, or it names no provider.

    Args:
        directory: the console's own.
        fleet_id: makes the console's id of the directory of a fleet's server, or raises ConfigError.

    Raises:
        ConfigError: naming the key that is wrong, never a secret; and where others may write what it says.
    """
    path = directory / SETTINGS
    try:
        _refuse_open(path)
        text = path.read_bytes()
        if len(text) > SETTINGS_MOST:
            raise ConfigError(f"{path} is longer than {SETTINGS_MOST} bytes")
        table = tomllib.loads(text.decode())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"can't read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None
    if set(table) - {"oidc"}:
        raise ConfigError(f"{path} has unknown keys: {', '.join(sorted(set(table) - {'oidc'}))}")
    if "oidc" not in table:
        return None
    return _settings(directory, table["oidc"], fleet_id)


def _settings(directory: Path, table: Any, fleet_id: Callable[[str], str]) -> TrustedProvider:
    if not isinstance(table, dict):
        raise ConfigError("oidc must be a table, [oidc]")
    given = dict(table)
    if "secret" in given or "client_secret" in given:
        raise ConfigError("oidc: the secret belongs into a file of its own; name it with client_secret_file")
    rules = given.pop("allowed", [])
    if not isinstance(rules, list) or not rules:
        raise ConfigError("oidc.allowed is empty: say who may come in, [[oidc.allowed]]")
    secret = _secret(directory, given.get("client_secret_file", ""))
    allowed = tuple(_rule(number, rule, fleet_id) for number, rule in enumerate(rules, 1))
    settings = build_section(ProviderSettings, given, "oidc")
    return TrustedProvider(settings, allowed, secret, _ways(directory, settings.ca_file))


def _ways(directory: Path, ca_file: str) -> ssl.SSLContext:
    """Whose certificates the provider may have."""
    try:
        if ca_file:
            _refuse_open(directory / ca_file)
        return ssl.create_default_context(cafile=str(directory / ca_file) if ca_file else None)
    except (OSError, ssl.SSLError):
        raise ConfigError(f"oidc.ca_file: {directory / ca_file} holds no certificates in PEM") from None


def _rule(number: int, rule: Any, fleet_id: Callable[[str], str]) -> Allowed:
    where = f"oidc.allowed, rule {number}"
    if not isinstance(rule, Mapping) or not all(isinstance(value, str) for value in rule.values()):
        raise ConfigError(f"{where} must be a table of texts")
    keys = [key for key in _RULE_KEYS if rule.get(key)]
    if len(keys) != 1:
        raise ConfigError(f"{where} must have one of {', '.join(_RULE_KEYS)}")
    if set(rule) - {keys[0], "role", "fleet"}:
        raise ConfigError(
            f"{where} has unknown keys: {', '.join(sorted(set(rule) - {keys[0], 'role', 'fleet'}))}"
        )
    role = rule.get("role", "")
    if role not in ROLES:
        raise ConfigError(f"{where}: role is one of {', '.join(ROLES)}")
    return Allowed(keys[0], rule[keys[0]], role, fleet_id(rule["fleet"]) if rule.get("fleet") else "")


def _secret(directory: Path, name: Any) -> str:
    """The client's secret, from a file that its owner and at most its group can read."""
    if not isinstance(name, str) or not name:
        return ""
    path = directory / name
    try:
        _refuse_open(path, secret=True)
        secret = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"oidc.client_secret_file: can't read {path}: {type(error).__name__}") from None
    if not secret or len(secret) > SECRET_MOST or not secret.isprintable():
        raise ConfigError(f"oidc.client_secret_file: {path} holds no secret")
    return secret


def _refuse_open(path: Path, *, secret: bool = False) -> None:
    """ConfigError for a file that anybody but its owner can write, or that lies where everybody can put
    another in its place; and for a secret that can be read by others than its owner and its group."""
    mode, folder = path.stat().st_mode, path.parent.stat().st_mode
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(f"{path} can be written by others; chmod go-w {path}")
    if folder & stat.S_IWOTH and not folder & stat.S_ISVTX:
        raise ConfigError(f"{path.parent} can be written by everybody; chmod o-w {path.parent}")
    if secret and mode & 0o007:  # a group may read it: whoever mounts secrets has them so
        raise ConfigError(f"{path} can be read by others; chmod 600 {path}")
