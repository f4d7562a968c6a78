"""Where a command that serves HTTP listens, and under which names it may be addressed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from penchant.common.errors import UsageError
from penchant.common.network import is_loopback
from penchant.deploy.fleet.listen_address import ListenAddress

__all__ = ["TlsCert", "TlsKey", "reachable_as"]

TlsCert = Annotated[
    Path | None, typer.Option("--tls-cert", help="The TLS certificate, in PEM; needed beyond loopback.")
]
TlsKey = Annotated[Path | None, typer.Option("--tls-key", help="The key of the TLS certificate, in PEM.")]


def reachable_as(
    what: str,
    host: str,
    port: int,
    tls: tuple[Path | None, Path | None],
    *,
    origins: Sequence[str] = (),
    further: Sequence[str] = (),
    otherwise: str = "",
    tunnels: bool = False,
) -> tuple[frozenset[str], bool]:
    """(Host headers that are answered, whether clients come by TLS).

    Args:
        what: is served, as errors name it.
        host: the address to listen on.
        port: the port.
        tls: certificate and key, in PEM.
        origins: addresses that browsers use behind a proxy that does TLS.
        further: names by which it is addressed besides, on the same port.
        otherwise: what else makes it safe beyond loopback, for the error.
        tunnels: whether names of loopback are answered with whatever port: an SSH tunnel has one of its own.

    Raises UsageError where it would be open to others in clear.
    """
    certificate, key = tls
    if (certificate is None) != (key is None):
        raise UsageError("--tls-cert and --tls-key belong together; give both")
    if certificate is None and not is_loopback(host):
        raise UsageError(
            f"{host} is not loopback: {what} listens there only with --tls-cert and --tls-key{otherwise}"
        )
    names = [*further, *(_certified(certificate) if certificate is not None else [])]
    names += [host] if host not in ("0.0.0.0", "::", "") else []
    names += ["127.0.0.1", "localhost", "::1"] if is_loopback(host) else []
    hosts = {str(ListenAddress(name, port)) for name in names}
    hosts |= set(names) if port == (443 if certificate is not None else 80) else set()
    hosts |= {
        str(ListenAddress(name, port)).removesuffix(str(port)) + "*"
        for name in names
        if tunnels and is_loopback(name)
    }
    for origin in origins:
        parts = urlsplit(origin)
        if parts.scheme != "https" or not parts.netloc or parts.path not in ("", "/"):
            raise UsageError(
                f"--origin {origin} is not an origin; expected something like https://console.example.org"
            )
        hosts.add(parts.netloc.lower())
    return frozenset(name.lower() for name in hosts), certificate is not None or bool(origins)


def _certified(path: Path) -> list[str]:
    """The names and addresses that a certificate is for. UsageError when it can't be read."""
    from cryptography import x509

    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, x509.ExtensionNotFound) as error:
        raise UsageError(f"can't take {path} as a certificate with names: {error}") from None
    addresses = [str(address) for address in found.get_values_for_type(x509.IPAddress)]
    return [*found.get_values_for_type(x509.DNSName), *addresses]
