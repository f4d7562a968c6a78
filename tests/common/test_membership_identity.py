"""Authority, certificates, member lists: what a device accepts, and what it refuses whoever says it."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from support.scene import NOW, SEED, authority, identity

from penchant.common.crypto.entropy import SeededEntropy
from penchant.common.crypto.keys import (
    AgreementKey,
    SignatureCache,
    check_point,
    derive,
    open_sealed,
    seal,
    verify,
)
from penchant.common.crypto.passphrase import ScryptCost
from penchant.common.errors import (
    CertificateError,
    CodecError,
    MembershipError,
    SecretSharingError,
    UsageError,
)
from penchant.common.membership.identity import (
    CLOCK_SKEW,
    Authority,
    Identity,
    MemberList,
    Membership,
    authority_digest,
)


def published(number: int = 1, **changes: object) -> MemberList:
    settings = {"revoked": (), "issued": NOW - 10, "expires": NOW + 10, **changes}
    certificates = [identity(i).certificate for i in (3, 1, 2)]
    return authority().publish(number, certificates, **settings)  # type: ignore[arg-type]


def knowing(*lists: MemberList) -> Membership:
    membership = Membership(authority().public_key)
    for listed in lists:
        membership = membership.accept(listed.encode(), NOW)
    return membership


# --- the authority --------------------------------------------------------------------------------


CHEAP = ScryptCost(2**10)


@pytest.mark.parametrize("passphrase", [None, "correct horse"])
def test_the_authoritys_key_survives_its_file(tmp_path: Path, passphrase: str | None) -> None:
    path = tmp_path / "authority.pem"
    authority().save(path, passphrase, CHEAP)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Authority.load(path, passphrase).public_key == authority().public_key
    with pytest.raises(UsageError, match="exists already"):
        authority().save(path)
    if passphrase:
        for wrong in (None, "battery staple"):
            with pytest.raises(UsageError, match="passphrase"):
                Authority.load(path, wrong)


def test_files_that_are_no_authoritys_key_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="can't read"):
        Authority.load(tmp_path / "nowhere")
    (tmp_path / "text").write_text("hello")
    (tmp_path / "text").chmod(0o600)
    with pytest.raises(UsageError, match="not an authority's key"):
        Authority.load(tmp_path / "text")
    other = X25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (tmp_path / "other").write_bytes(other)
    (tmp_path / "other").chmod(0o600)
    with pytest.raises(UsageError, match="a key that is not an authority's"):
        Authority.load(tmp_path / "other")


def written_by_an_earlier_version(path: Path, passphrase: bytes) -> None:
    key = Ed25519PrivateKey.from_private_bytes(bytes([7]) * 32)
    protection = serialization.BestAvailableEncryption(passphrase)
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)
    )
    path.chmod(0o600)


def test_a_key_under_2048_rounds_opens_and_is_sealed_anew(tmp_path: Path) -> None:
    path = tmp_path / "authority.pem"
    written_by_an_earlier_version(path, b"short")
    old = path.read_bytes()
    with path.open("rb") as kept:  # whoever could still reach the old file's blocks
        assert Authority.asks_passphrase(path)
        assert Authority.is_old(path)
        Authority.load(path, "short").reseal(path, "short", CHEAP)
        assert kept.read() == bytes(len(old))
    assert not Authority.is_old(path, CHEAP)
    assert Authority.is_old(path)  # of another cost than today's
    assert Authority.load(path, "short").public_key == Authority(bytes([7]) * 32).public_key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["authority.pem"]


def test_a_key_in_clear_that_others_could_read_is_refused(tmp_path: Path) -> None:
    authority().save(tmp_path / "clear")
    authority().save(tmp_path / "sealed", "correct horse", CHEAP)
    for name in ("clear", "sealed"):
        (tmp_path / name).chmod(0o644)
    with pytest.raises(UsageError, match="can be read by others"):
        Authority.load(tmp_path / "clear")
    assert Authority.load(tmp_path / "sealed", "correct horse").public_key == authority().public_key


def test_authorities_and_identities_differ_and_show_nothing() -> None:
    one, other = Authority.create(), Authority.create()
    assert one.public_key != other.public_key
    assert authority_digest(one.public_key) != authority_digest(other.public_key)
    assert len(authority_digest(one.public_key)) == 32
    device = identity(1)
    for shown in (repr(device), repr(one)):
        assert device.private.hex() not in shown
        assert repr(device.private)[2:-1] not in shown


# --- certificates and identities ------------------------------------------------------------------


def test_an_identity_survives_its_file() -> None:
    again = Identity.decode(identity(2).encode())
    assert again == identity(2)
    assert verify(again.certificate.public_key, b"text", again.sign(b"text"))
    with pytest.raises(CodecError):
        Identity.decode(identity(2).encode()[:-1])


def test_a_certificate_of_another_key_is_refused() -> None:
    with pytest.raises(CertificateError, match="another key"):
        Identity(identity(1).private, identity(2).certificate)


def test_members_on_the_list_are_accepted() -> None:
    membership = knowing(published())
    for number in (1, 2, 3):
        membership.check(identity(number).certificate)
    assert [member.number for member in membership.current.members] == [1, 2, 3]  # type: ignore[union-attr]


@pytest.mark.parametrize("change", [{"member": 2}, {"public_key": bytes(32)}, {"signature": bytes(64)}])
def test_changed_certificates_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(CertificateError):
        knowing(published()).check(replace(identity(1).certificate, **change))  # type: ignore[arg-type]


def test_another_authoritys_certificate_is_refused() -> None:
    stranger = Authority.create().issue(1, identity(1).certificate.public_key)
    with pytest.raises(CertificateError, match="not signed by this fleet's authority"):
        knowing(published()).check(stranger)


def test_who_is_not_on_the_list_is_refused() -> None:
    with pytest.raises(MembershipError, match="not on member list 1"):
        knowing(published()).check(identity(4).certificate)


def test_a_replaced_key_is_refused() -> None:
    """Member 1 was enrolled anew: the certificate of its old key is genuine, but no longer listed."""
    private = SeededEntropy(SEED, "new key").draw(32)
    new = authority().issue(1, Identity.public_of(private))
    membership = knowing(authority().publish(1, [new], issued=NOW, expires=NOW + 1))
    membership.check(new)
    with pytest.raises(MembershipError):
        membership.check(identity(1).certificate)


# --- member lists ---------------------------------------------------------------------------------


def test_a_list_survives_its_file_and_says_who_is_revoked() -> None:
    listed = published(revoked=(2, 2))
    assert MemberList.decode(listed.encode()) == listed
    membership = knowing(listed)
    assert membership.encoded == listed.encode()
    with pytest.raises(MembershipError, match="member 2 is revoked by list 1"):
        membership.check(identity(2).certificate)


def test_who_is_held_is_listed_and_not_revoked() -> None:
    membership = knowing(published(revoked=(2,)))
    assert [number for number in range(6) if membership.holds(number)] == [1, 3]
    assert membership.count == 2


def test_newer_lists_replace_older_ones_and_never_the_other_way() -> None:
    membership = knowing(published(1), published(5, revoked=(1,)))
    assert membership.number == 5
    for old in (published(1), published(4), published(5)):
        with pytest.raises(MembershipError, match="the server is behind"):
            membership.accept(old.encode(), NOW)
    assert membership.accept(published(5, revoked=(1,)).encode(), NOW) is membership


def test_two_lists_of_one_number_are_refused() -> None:
    """An authority, or whoever has its key, can't tell two devices different things under one number."""
    with pytest.raises(MembershipError):
        knowing(published(1), published(1, revoked=(2,)))


@pytest.mark.parametrize(
    "change",
    [
        {"number": 2},
        {"expires": NOW + 99},
        {"issued": 0},
        {"revoked": (1,)},
        {"members": ()},
        {"signature": bytes(64)},
    ],
)
def test_changed_lists_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(MembershipError, match="not signed"):
        knowing().accept(replace(published(), **change).encode(), NOW)  # type: ignore[arg-type]


def test_lists_that_are_no_lists_are_refused() -> None:
    with pytest.raises(MembershipError, match="can't be read"):
        knowing().accept(b"junk", NOW)


def test_lists_have_their_time() -> None:
    with pytest.raises(MembershipError, match="past its date"):
        knowing().accept(published().encode(), NOW + 10)
    with pytest.raises(MembershipError, match="not valid yet"):
        knowing().accept(published().encode(), NOW - 11 - CLOCK_SKEW)
    knowing().accept(published().encode(), NOW - 10 - CLOCK_SKEW)
    accepted = knowing(published())
    with pytest.raises(MembershipError, match="past its date"):
        accepted.accept(published().encode(), NOW + 10)
    with pytest.raises(MembershipError, match="no member list is known"):
        knowing().refuse_stale(NOW)


# --- keys -----------------------------------------------------------------------------------------


def test_rfc_7748_agreement() -> None:
    """RFC 7748, section 6.1."""
    alice = AgreementKey(bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a"))
    bob = AgreementKey(bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"))
    shared = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
    assert alice.agree(bob.public()).hex() == bob.agree(alice.public()).hex() == shared


def test_rfc_5869_derivation() -> None:
    """RFC 5869, appendix A.3 (no salt, no info): 42 bytes."""
    derived = derive(b"\x0b" * 22, b"", 42).hex()
    assert derived == "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"


def test_every_listed_low_order_point_agrees_on_nothing() -> None:
    from penchant.common.crypto import keys

    for u in keys._LOW_ORDER:
        point = u.to_bytes(32, "little")
        with pytest.raises(SecretSharingError):
            AgreementKey(b"\x55" * 32).agree(point)
        with pytest.raises(SecretSharingError):
            check_point(point)
    for malformed in (bytes(31), (2**255 - 19 + 9).to_bytes(32, "little"), b"\xff" * 32):
        with pytest.raises(SecretSharingError):
            check_point(malformed)
    check_point(AgreementKey(b"\x55" * 32).public())


def test_sealing_binds_key_text_and_purpose() -> None:
    key = bytes(range(32))
    sealed = seal(key, b"share", b"for you")
    assert open_sealed(key, sealed, b"for you") == b"share"
    for wrong in (
        (bytes(32), sealed, b"for you"),
        (key, sealed[:-1], b"for you"),
        (key, sealed, b"for me"),
        (key, b"", b""),
    ):
        with pytest.raises(SecretSharingError, match="does not open"):
            open_sealed(*wrong)


def test_the_cache_remembers_only_what_held() -> None:
    cache = SignatureCache(limit=2)
    device = identity(1)
    key = device.certificate.public_key
    for text in (b"a", b"a", b"b", b"c"):
        assert cache(key, text, device.sign(text))
    assert not cache(key, b"a", device.sign(b"b"))
    assert not cache(key, b"a", b"")
    assert not cache(bytes(31), b"a", device.sign(b"a"))
