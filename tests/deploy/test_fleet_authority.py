"""The enrolment authority: requests in, certificates and numbered lists out, and nothing else believed."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from penchant.common.crypto.passphrase import RECOMMENDED, ScryptCost
from penchant.common.errors import CertificateError, MembershipError, UsageError
from penchant.common.membership.enrolment import Answer, Request, request
from penchant.common.membership.identity import Identity, MemberList, Membership
from penchant.deploy.fleet.authority import KEY, AuthorityStore

NOW = 1_800_000_000


CHEAP = ScryptCost(2**10)


def device(number: int) -> bytes:
    return bytes([number]) * 32


def test_a_device_is_enrolled_by_two_files(tmp_path: Path) -> None:
    authority_store = AuthorityStore.init(tmp_path / "authority", now=NOW)
    asked = Request.decode(request(device(1)).encode())
    answer = Answer.decode(
        authority_store.issue(asked, "the kitchen", now=NOW).encode(), authority_store.digest
    )
    identity = Identity(device(1), answer.certificate)
    membership = Membership(answer.authority).accept(answer.members, NOW)
    membership.check(identity.certificate)
    assert identity.member == 1
    assert [(m.number, m.name, m.revoked) for m in authority_store.members()] == [(1, "the kitchen", None)]


def test_asking_again_gives_the_same_number_and_a_newer_list(tmp_path: Path) -> None:
    authority_store = AuthorityStore.init(tmp_path / "authority", now=NOW)
    first = authority_store.issue(request(device(1)), now=NOW)
    second = authority_store.issue(request(device(1)), now=NOW)
    assert first.certificate == second.certificate
    assert MemberList.decode(second.members).number > MemberList.decode(first.members).number


def test_a_revoked_member_is_out_for_good(tmp_path: Path) -> None:
    authority_store = AuthorityStore.init(tmp_path / "authority", now=NOW)
    answers = [authority_store.issue(request(device(n)), now=NOW) for n in (1, 2)]
    membership = Membership(authority_store.authority.public_key).accept(authority_store.latest(), NOW)
    newer = membership.accept(authority_store.revoke(2, "lost", now=NOW), NOW)
    newer.check(answers[0].certificate)
    with pytest.raises(MembershipError, match="revoked"):
        newer.check(answers[1].certificate)
    with pytest.raises(MembershipError, match="new key"):
        authority_store.issue(request(device(2)), now=NOW)
    with pytest.raises(UsageError, match="no member 2"):
        authority_store.revoke(2, now=NOW)
    with pytest.raises(MembershipError, match="is behind"):
        newer.accept(answers[1].members, NOW)
    assert (
        authority_store.issue(request(device(3)), now=NOW).certificate.member == 3
    )  # numbers are never given twice


def test_a_list_ends(tmp_path: Path) -> None:
    authority_store = AuthorityStore.init(tmp_path / "authority", now=NOW)
    listed = authority_store.publish(days=2, now=NOW)
    membership = Membership(authority_store.authority.public_key)
    assert membership.accept(listed, NOW + 86400).number == 2
    with pytest.raises(MembershipError, match="past its date"):
        membership.accept(listed, NOW + 2 * 86400)
    with pytest.raises(UsageError, match="days"):
        authority_store.publish(days=0)


def test_a_request_that_its_key_did_not_sign_is_refused() -> None:
    genuine = request(device(1))
    forged = Request(Identity.public_of(device(2)), genuine.signature)
    with pytest.raises(CertificateError, match="not signed"):
        Request.decode(forged.encode())
    with pytest.raises(CertificateError, match="not a device's request"):
        Request.decode(genuine.encode() + b"\0")


def test_an_answer_of_another_authority_is_refused(tmp_path: Path) -> None:
    ours, theirs = AuthorityStore.init(tmp_path / "ours"), AuthorityStore.init(tmp_path / "theirs")
    answer = theirs.issue(request(device(1)))
    with pytest.raises(CertificateError, match="a different authority"):
        Answer.decode(answer.encode(), ours.digest)


def test_the_key_is_kept_for_its_owner_and_never_replaced(tmp_path: Path) -> None:
    AuthorityStore.init(tmp_path, "open sesame, please", cost=CHEAP)
    assert stat.S_IMODE((tmp_path / KEY).stat().st_mode) == 0o600
    assert (tmp_path / KEY).read_bytes().startswith(b"penchant-scrypt$1024$8$1$")
    with pytest.raises(UsageError, match="exists already"):
        AuthorityStore.init(tmp_path)
    with pytest.raises(UsageError, match="passphrase"):
        AuthorityStore(tmp_path, "open barley")
    with pytest.raises(UsageError, match="no authority"):
        AuthorityStore(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    "weak", ["", "open sesame", "a" * 40, "passwordpassword", "1234567890123", "qwertyuiopas"]
)
def test_a_weak_passphrase_is_refused_before_anything_is_made(tmp_path: Path, weak: str) -> None:
    with pytest.raises(UsageError, match="passphrase"):
        AuthorityStore.init(tmp_path / "new", weak, cost=CHEAP)
    assert not (tmp_path / "new").exists()
    authority_store = AuthorityStore.init(tmp_path / "old", "open sesame, please", cost=CHEAP)
    with pytest.raises(UsageError, match="passphrase"):
        authority_store.protect(weak, cost=CHEAP)
    AuthorityStore(tmp_path / "old", "open sesame, please", cost=CHEAP)


def test_an_authority_of_an_earlier_version_is_upgraded_when_it_is_opened(tmp_path: Path) -> None:
    authority_store = AuthorityStore.init(tmp_path, now=NOW)
    key = serialization.load_pem_private_key((tmp_path / KEY).read_bytes(), None)
    (tmp_path / KEY).write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(
                b"old"
            ),  # PBKDF2, 2,048 rounds; nobody asked for more letters
        )
    )
    for wrong in (None, "new"):
        with pytest.raises(UsageError, match="passphrase"):
            AuthorityStore(tmp_path, wrong, cost=CHEAP)
    for _ in range(2):
        opened = AuthorityStore(tmp_path, "old", cost=CHEAP)
        assert opened.digest == authority_store.digest
        assert (tmp_path / KEY).read_bytes().startswith(b"penchant-scrypt$1024$8$1$")
    opened.protect("a passphrase of today", cost=CHEAP)
    with pytest.raises(UsageError, match="passphrase"):
        AuthorityStore(tmp_path, "old", cost=CHEAP)
    assert AuthorityStore(tmp_path, "a passphrase of today", cost=CHEAP).latest() == authority_store.latest()


def command(*words: str, typed: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    program = "from penchant.deploy.cli.main import main; main()"
    return subprocess.run(
        [sys.executable, "-c", program, "authority", *words],
        capture_output=True, text=True, input=typed, env=os.environ | environment, timeout=60,
    )  # fmt: skip


def test_a_key_in_clear_is_made_only_where_it_is_asked_for(tmp_path: Path) -> None:
    home = tmp_path / "authority"
    refused = command("init", str(home))
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert "--passphrase-file" in refused.stderr
    assert "--no-passphrase" in refused.stderr
    assert not home.exists()
    clear = command("init", str(home), "--no-passphrase")
    assert clear.returncode == 0, clear.stderr
    assert "whoever can read it" in clear.stderr
    again = command("init", str(home), "--passphrase-file", "-", typed="open sesame, please\n")
    assert (again.returncode, "exists already" in again.stderr) == (2, True)
    assert command("list", str(home)).returncode == 0  # a key in clear needs nothing typed


def test_a_passphrase_comes_by_file_or_standard_input(tmp_path: Path) -> None:
    home, secret = tmp_path / "authority", tmp_path / "secret"
    secret.write_text("open sesame, please\n")
    made = command("init", str(home), "--passphrase-file", "-", typed="open sesame, please\n")
    assert made.returncode == 0, made.stderr
    assert (home / KEY).read_text().startswith(f"penchant-scrypt${RECOMMENDED}$")
    assert command("list", str(home), "--passphrase-file", str(secret)).returncode == 0
    missing = command("list", str(home))
    assert (missing.returncode, "--passphrase-file" in missing.stderr) == (2, True)
    both = ["--passphrase-file", str(secret), "--new-passphrase-file", "-"]
    assert command("passphrase", str(home), *both, typed="another one, please\n").returncode == 0
    assert command("list", str(home), "--passphrase-file", str(secret)).returncode == 2
    environment = {"PENCHANT_AUTHORITY_PASSPHRASE_FILE": str(secret)}
    secret.write_text("another one, please\n")
    assert command("list", str(home), **environment).returncode == 0


def test_the_command_line(tmp_path: Path) -> None:
    home, secret = tmp_path / "authority", {"PENCHANT_AUTHORITY_PASSPHRASE": "open sesame, please"}
    (tmp_path / "device.request").write_bytes(request(device(7)).encode())
    made = command("init", str(home), **secret)
    assert made.stdout.startswith("authority "), made.stderr
    digest = bytes.fromhex(made.stdout.split()[1])
    files = [str(tmp_path / "device.request"), "--out", str(tmp_path / "device.answer"), "--name", "seven"]
    assert command("issue", str(home), *files, **secret).stdout.startswith("member 1:")
    answer = Answer.decode((tmp_path / "device.answer").read_bytes(), digest)
    assert answer.certificate.public_key == Identity.public_of(device(7))
    again = command("issue", str(home), *files, **secret)
    assert (again.returncode, len(again.stderr.splitlines())) == (2, 1)
    revoked = command("revoke", str(home), "1", "--out", str(tmp_path / "list"), "--why", "lost", **secret)
    assert revoked.returncode == 0, revoked.stderr
    (row,) = json.loads(command("list", str(home), "--json", **secret).stdout)
    assert (row["name"], row["why"]) == ("seven", "lost")
    wrong = command(
        "publish", str(home), "--out", str(tmp_path / "other"), PENCHANT_AUTHORITY_PASSPHRASE="no"
    )
    assert wrong.returncode == 2
    assert not (tmp_path / "other").exists()
