"""The server's TLS certificates, made here: no public authority is asked, devices know ours by its digest.

Two authorities, because they vouch for two things. The *gateway's* is the one whose digest is in join tokens;
its leaf carries the names and addresses that devices connect to. The *loopback's* vouches for the SuperLink
towards the gateway in front of it and towards Flower's own processes, all on this machine.

ECDSA over P-256 (RFC 8422, and what every TLS library takes); leaves are made anew long before they end.
"""

from __future__ import annotations

import hashlib
import ipaddress
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from penchant.common.errors import UsageError
from penchant.common.storage import write_durably, write_private

__all__ = ["CA_DAYS", "LEAF_DAYS", "KeyAndCertificate", "ca_digest", "days_left", "issue", "make_ca", "valid"]

CA_DAYS = 3650
LEAF_DAYS = 397  # as long as browsers still take one
_SKEW = timedelta(hours=1)  # by which a device's clock may be behind


@dataclass(frozen=True)
class KeyAndCertificate:
    """A certificate and its private key, both PEM files; the key's is for its owner alone."""

    certificate: Path
    key: Path

    def exists(self) -> bool:
        """Whether both files are there."""
        return self.certificate.is_file() and self.key.is_file()


def make_ca(pair: KeyAndCertificate, name: str, *, now: datetime | None = None) -> None:
    """A new certificate authority, which signs nothing but leaves. An existing one is never replaced."""
    if pair.certificate.exists() or pair.key.exists():
        raise UsageError(f"{pair.certificate} exists already: devices know it by its digest")
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    usage = x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    certificate = (
        _builder(subject, subject, key.public_key(), CA_DAYS, now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write(pair, certificate, key)


def issue(
    ca: KeyAndCertificate,
    pair: KeyAndCertificate,
    names: tuple[str, ...],
    *,
    days: int = LEAF_DAYS,
    now: datetime | None = None,
) -> None:
    """A server certificate for `names` (host names and IP addresses), in the place of the one before.

    Raises UsageError when the authority's key can't be read, or without a name.
    """
    if not names:
        raise UsageError("a server certificate needs a name or an address")
    issuer, signer = _load(ca)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    usage = x509.KeyUsage(
        digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=False, crl_sign=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    certificate = (
        _builder(subject, issuer.subject, key.public_key(), days, now)
        .add_extension(x509.SubjectAlternativeName([_general(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
        .sign(signer, hashes.SHA256())
    )
    _write(pair, certificate, key)


def ca_digest(pem: bytes) -> bytes:
    """SHA-256 of the DER of the first certificate in `pem`: what join tokens hold."""
    try:
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem.decode("ascii"))).digest()
    except ValueError:
        raise UsageError("this is not a certificate in PEM") from None


def days_left(certificate: Path, *, now: datetime | None = None) -> float:
    """Days until a certificate ends; negative after. UsageError when it can't be read."""
    _, end = valid(certificate)
    return (datetime.fromtimestamp(end, UTC) - (now or datetime.now(UTC))) / timedelta(days=1)


def valid(certificate: Path) -> tuple[float, float]:
    """(since when, until when) a certificate holds, Unix seconds. UsageError when it can't be read."""
    try:
        found = x509.load_pem_x509_certificate(certificate.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(f"can't read the certificate {certificate}: {error}") from None
    return found.not_valid_before_utc.timestamp(), found.not_valid_after_utc.timestamp()


# --- inner parts --------------------------------------------------------------------------------------


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int, now: datetime | None
) -> x509.CertificateBuilder:
    moment = now or datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(moment - _SKEW)
        .not_valid_after(moment + timedelta(days=days))
    )


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _load(ca: KeyAndCertificate) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    try:
        certificate = x509.load_pem_x509_certificate(ca.certificate.read_bytes())
        key = serialization.load_pem_private_key(ca.key.read_bytes(), None)
    except OSError as error:
        raise UsageError(f"can't read {error.filename}: {error.strerror}; bring the CA's key back") from None
    except (TypeError, ValueError):
        raise UsageError(f"{ca.certificate} or {ca.key} is damaged") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise UsageError(f"{ca.key} is not the key of {ca.certificate}")
    return certificate, key


def _write(pair: KeyAndCertificate, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    """The key first: a certificate whose key is not there yet is the worse half."""
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_private(pair.key, pem, failure=UsageError)
    write_durably(pair.certificate, certificate.public_bytes(serialization.Encoding.PEM))
