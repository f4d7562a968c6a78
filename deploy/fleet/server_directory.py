"""The server's directory: where everything of a fleet's server lies, and its few settings.

server.toml       addresses, ports and limits
authority.pub     the enrolment authority's public key (32 bytes)
members.list      the authority's latest member list
tls/              certificates (`deploy.fleet.certificates`)
enrolment.db      tokens handed out and devices enrolled (`deploy.fleet.enrolment`)
requests/         files for the authority: requests of devices, revocations asked for
answers/          files of the authority: answers, member lists
runs/NAME/        one directory a run (`deploy.fleet.served_run`)
acts/             what was done at the command line, for the console's audit (`deploy.fleet.recorded_acts`)
queue.db          runs that wait for their turn (`deploy.fleet.run_queue`)
devices.db        what the operator calls devices (`deploy.fleet.device_notes`)
notices.json      what people were told, and what is still to be delivered (`deploy.fleet.notifier`)
release.json      which release is in use (`deploy.fleet.fleet_release`)
release/          what devices can fetch of it, signed (`deploy.fleet.release_signature`)
flower/, gateway/, logs/, superexec.secret
"""

from __future__ import annotations

import os
import re
import time
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tomli_w

from penchant.common.errors import ConfigError, RunDirectoryError, UsageError
from penchant.common.membership.identity import Membership, authority_digest
from penchant.common.settings import Section, build_section, section_table, setting
from penchant.common.storage import write_durably, write_private
from penchant.deploy.fleet.certificates import KeyAndCertificate, ca_digest, issue, make_ca
from penchant.deploy.fleet.listen_address import ListenAddress
from penchant.deploy.fleet.log_files import LogKeeping
from penchant.deploy.fleet.notice_settings import NoticeSettings
from penchant.deploy.run_directory import CONFIG, RUN_NAME

__all__ = ["AUTHORITY", "MEMBERS", "SETTINGS", "ServerDirectory", "ServerSettings"]

SETTINGS = "server.toml"
AUTHORITY = "authority.pub"
MEMBERS = "members.list"
SECRET = "superexec.secret"
LOOPBACK = "127.0.0.1"
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|[0-9a-fA-F:]{2,39}")


@dataclass(frozen=True)
class ServerSettings(Section):
    """What `server.toml` says."""

    addresses: tuple[str, ...] = setting(
        (), "Names and IP addresses that devices connect to; the first of them is written into tokens."
    )
    listen: str = setting("0.0.0.0", "The address that the gateway listens on.")
    port: int = setting(8443, "The gateway's port.", low=1, high=65535)
    superlink_port: int = setting(9092, "The SuperLink's port, on loopback.", low=1, high=65535)
    max_body_mb: int = setting(
        64, "The largest message of a device that the gateway passes, in MB.", low=1, high=1024
    )
    max_bodies_mb: int = setting(
        256,
        "How many MB of large messages the gateway sends to the SuperLink at the same time, one message at "
        "least.",
        low=1,
        high=1024 * 1024,
    )
    connections_per_address: int = setting(
        256, "How many connections one address (of IPv6: one /64) may hold open.", low=4, high=100_000
    )
    requests_per_second: int = setting(
        100, "How many requests one address (of IPv6: one /64) may make in a second.", low=1, high=100_000
    )
    enrol_per_minute: int = setting(
        60,
        "How many requests to enrol one address (of IPv6: one /64) may make in a minute.",
        low=1,
        high=100_000,
    )
    user: str = setting("", "The user that nginx's workers run as when it is started by root.")
    log_format: Literal["text", "json"] = setting(
        "text", "How the logs in logs/ are written: as it was said, or an object of JSON a line."
    )
    log_mb: int = setting(32, "MB after which a log is turned over.", low=1, high=10_000)
    log_files: int = setting(3, "How many old logs of each part are kept.", low=1, high=1000)
    resume_runs: bool = setting(
        True,
        "Whether a run that was cut off, by a reboot say, goes on by itself once the server is up.",
    )
    metrics: str = setting("", "HOST:PORT at which /metrics, /healthz and /readyz answer; empty for nowhere.")
    metrics_token: str = setting(
        "", "A file with the token that /metrics and /readyz want; beyond loopback there must be one."
    )

    notices: NoticeSettings = field(default_factory=NoticeSettings)

    def _check(self) -> None:
        if not self.addresses:
            raise ConfigError("server.addresses is empty; name a host or an address that devices reach")
        for host in (*self.addresses, self.listen):
            if not _HOST.fullmatch(host):
                raise ConfigError(f"server: {host!r} is not a host name or IP address")
        if self.user and not re.fullmatch(r"[a-z_][a-z0-9_-]*", self.user):
            raise ConfigError(f"server.user: {self.user!r} is not a user name")
        if self.port == self.superlink_port:
            raise ConfigError("server.port and server.superlink_port are the same")
        if self.metrics:
            where = ListenAddress.parse(self.metrics, "server.metrics")
            if not where.on_loopback and not self.metrics_token:
                raise ConfigError(
                    f"server.metrics: {where} is not loopback; name a file with a token in metrics_token"
                )

    @classmethod
    def _title(cls) -> str:
        return "server"

    @property
    def logs(self) -> LogKeeping:
        """How the supervisor keeps logs."""
        return LogKeeping(self.log_format, self.log_mb * 1024 * 1024, self.log_files)

    @property
    def signals(self) -> bool:
        """Whether anything is to leave the machine, for which a process is needed."""
        return bool(self.metrics) or self.notices.wanted

    @property
    def gateway(self) -> str:
        """HOST:PORT as tokens hold it."""
        return str(ListenAddress(self.addresses[0], self.port))

    @property
    def superlink(self) -> str:
        """HOST:PORT of the SuperLink, for processes on this machine."""
        return f"{LOOPBACK}:{self.superlink_port}"


class ServerDirectory:
    """A server's directory, opened."""

    def __init__(self, directory: Path) -> None:
        """RunDirectoryError when there is no server, ConfigError when its settings are wrong."""
        self.path = directory.absolute()
        path = self.path / SETTINGS
        if not path.is_file():
            raise RunDirectoryError(
                f"{directory} is not a server's directory; make one with `penchant server init`"
            )
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(f"can't read {path}: {error}") from None
        self.settings = build_section(ServerSettings, table, "")

    @classmethod
    def create(
        cls, directory: Path, settings: ServerSettings, authority: bytes, members: bytes
    ) -> ServerDirectory:
        """Make the directory of a server, with its certificates.

        Raises UsageError or MembershipError before anything is written: a directory in use, a key that is
        none, a list that is stale or of another authority.
        """
        cls.refuse_used(directory)
        if len(authority) != 32:
            raise UsageError("this is not an authority's public key, which has 32 bytes (authority.pub)")
        Membership(authority).accept(members, int(time.time()))
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        cls.make_folders(directory)
        (directory / AUTHORITY).write_bytes(authority)
        (directory / MEMBERS).write_bytes(members)
        _make_secret(directory)
        tls = _Tls(directory.absolute() / "tls")
        make_ca(tls.ca, "penchant gateway CA")
        make_ca(tls.loopback_ca, "penchant loopback CA")
        issue(tls.ca, tls.gateway, settings.addresses)
        issue(tls.loopback_ca, tls.loopback, (LOOPBACK, "localhost"))
        # Last: a directory without it is not a server's.
        table = section_table(settings)
        if settings.notices == NoticeSettings():
            del table["notices"]  # a line that somebody adds at the end shall not fall into a table
        write_durably(directory / SETTINGS, tomli_w.dumps(table).encode())
        return cls(directory)

    @staticmethod
    def make_folders(directory: Path) -> None:
        """Make those folders of a server that are missing. UsageError when the disk refuses."""
        try:
            for name in ("tls", "gateway", "logs", "flower", "runs"):
                (directory / name).mkdir(mode=0o700, exist_ok=True)
            for name in ("requests", "answers"):
                (directory / name).mkdir(mode=0o750, exist_ok=True)  # each is written by one side only
        except OSError as error:
            raise UsageError(f"can't make {error.filename}: {error.strerror}") from None

    def complete(self) -> None:
        """Make what a server can make anew, where it is missing: folders, and the executor's secret."""
        self.make_folders(self.path)
        if not self.secret.exists():
            _make_secret(self.path)

    # --- files ---------------------------------------------------------------------------------------

    @property
    def tls(self) -> _Tls:
        """Where the certificates are."""
        return _Tls(self.path / "tls")

    @property
    def ca(self) -> bytes:
        """The gateway's CA certificate, PEM."""
        return self._read(self.tls.ca.certificate)

    @property
    def ca_digest(self) -> bytes:
        """32 bytes, as in tokens."""
        return ca_digest(self.ca)

    @property
    def authority(self) -> bytes:
        """The enrolment authority's public key."""
        return self._read(self.path / AUTHORITY)

    @property
    def authority_digest(self) -> bytes:
        """32 bytes, as in tokens."""
        return authority_digest(self.authority)

    @property
    def secret(self) -> Path:
        """What Flower's executor shows to the SuperLink."""
        return self.path / SECRET

    @property
    def flower(self) -> Path:
        """FLWR_HOME of the server's Flower processes."""
        return self.path / "flower"

    @property
    def flower_state(self) -> Path:
        """The SuperLink's database."""
        return self.flower / "state.db"

    @property
    def requests(self) -> Path:
        """Files for the authority."""
        return self.path / "requests"

    @property
    def answers(self) -> Path:
        """Files of the authority."""
        return self.path / "answers"

    def file(self, name: str) -> Path:
        """A file that settings name: below this directory unless its path begins at the root."""
        return self.path / name

    @property
    def enrol_socket(self) -> Path:
        """Where the enrolment service listens."""
        return self.path / "gateway" / "enrol.sock"

    def log(self, name: str) -> Path:
        """The log of one of the server's processes."""
        return self.path / "logs" / f"{name}.log"

    def run(self, name: str) -> Path:
        """The directory of a run. UsageError for an invalid name."""
        if not RUN_NAME.fullmatch(name):
            raise UsageError(f"{name!r} can't name a run; use up to 64 letters, digits, '-', '_' and '.'")
        return self.path / "runs" / name

    @staticmethod
    def refuse_used(directory: Path) -> None:
        """UsageError unless `directory` is empty, or not there."""
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise UsageError(f"{directory} is in use; choose an empty directory for the server")

    def runs(self) -> list[str]:
        """Names of all runs, the one that was made last at the end."""
        folder = self.path / "runs"
        made = [p for p in folder.iterdir() if RUN_NAME.fullmatch(p.name) and (p / CONFIG).is_file()]
        return [p.name for p in sorted(made, key=lambda p: ((p / CONFIG).stat().st_mtime_ns, p.name))]

    def membership(self) -> Membership:
        """The member list that holds now. MembershipError when it is past its date."""
        members = self._read(self.path / MEMBERS)
        return Membership(self.authority).accept(members, int(time.time()))

    def known_members(self) -> Membership:
        """The member list as it lies there, whatever its date. RunDirectoryError when it can't be read,
        MembershipError when it is not the authority's."""
        return Membership(self.authority).know(self._read(self.path / MEMBERS))

    def take_members(self, members: bytes) -> int:
        """Put a newer member list in place, here and in every run; -> its number.

        A run that goes on looks at it before its next round. MembershipError for an older or foreign list.
        """
        current = self.known_members()
        newer = current.accept(members, int(time.time()))
        if newer is not current:
            write_durably(self.path / MEMBERS, members)
        for name in self.runs():
            write_durably(self.run(name) / MEMBERS, members)
        return newer.number

    def renew(self) -> None:
        """Make new server certificates, with fresh keys, under the same CAs."""
        issue(self.tls.ca, self.tls.gateway, self.settings.addresses)
        issue(self.tls.loopback_ca, self.tls.loopback, (LOOPBACK, "localhost"))

    def _read(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise RunDirectoryError(f"can't read {path}: {error.strerror}") from None


def _make_secret(directory: Path) -> None:
    write_private(directory / SECRET, os.urandom(32).hex().encode(), failure=UsageError)


@dataclass(frozen=True)
class _Tls:
    """The certificates of a server, in one folder."""

    folder: Path

    @property
    def ca(self) -> KeyAndCertificate:
        """The authority that devices know by its digest."""
        return KeyAndCertificate(self.folder / "ca.pem", self.folder / "ca.key")

    @property
    def gateway(self) -> KeyAndCertificate:
        """The gateway's certificate."""
        return KeyAndCertificate(self.folder / "gateway.pem", self.folder / "gateway.key")

    @property
    def loopback_ca(self) -> KeyAndCertificate:
        """The authority of the hop on loopback."""
        return KeyAndCertificate(self.folder / "loopback-ca.pem", self.folder / "loopback-ca.key")

    @property
    def loopback(self) -> KeyAndCertificate:
        """The SuperLink's certificate."""
        return KeyAndCertificate(self.folder / "loopback.pem", self.folder / "loopback.key")
