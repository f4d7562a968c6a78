"""The root key of a device's directory: who may open it, and that a refusal leaves every file as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from penchant.client.vault import sealing
from penchant.client.vault.sealing import CHECK_FILE, OLD_KEY_FILE, OLD_SALT_FILE, ROOT_FILE, SealedStorage
from penchant.common.crypto.passphrase import ScryptCost, stretched
from penchant.common.errors import DeviceError
from penchant.common.storage import write_private

CHEAP = ScryptCost(2**10)
WORDS = "correct horse battery"
OLD_KEY = bytes(range(32))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir(mode=0o700)
    return tmp_path / "home"


def files(home: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in home.iterdir()}


def refuses(home: Path, why: str, passphrase: str | None = None) -> None:
    """It does not open, for this reason, and nothing is written."""
    before = files(home)
    with pytest.raises(DeviceError, match=why):
        SealedStorage.of(home, passphrase, CHEAP)
    assert files(home) == before


def test_a_directory_opens_in_the_way_in_which_it_was_made(home: Path) -> None:
    sealed = SealedStorage.of(home, WORDS, CHEAP).seal(b"mine", "it")
    refuses(home, r"protected by a passphrase: give it \(--passphrase\)")
    refuses(home, "the passphrase is empty", "")
    refuses(home, "wrong passphrase", "a different passphrase")
    assert SealedStorage.of(home, WORDS, CHEAP).open(sealed, "it") == b"mine"
    clear = home / "clear"
    SealedStorage.of(clear)
    refuses(clear, "by a key file, not by a passphrase", WORDS)


def test_a_directory_of_an_earlier_version_asks_for_its_passphrase_before_it_gets_a_new_key(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A root key that was made without it would lock the owner out for good."""
    monkeypatch.setattr(sealing, "OLD", CHEAP)
    write_private(home / OLD_SALT_FILE, bytes(16))
    old = SealedStorage(stretched(WORDS.encode(), bytes(16), CHEAP))
    write_private(home / CHECK_FILE, old.seal(b"penchant vault", "check"))
    refuses(home, r"protected by a passphrase: give it \(--passphrase\)")
    refuses(home, "wrong passphrase", "a different passphrase")
    before = SealedStorage.of(home, WORDS, CHEAP).before
    assert before is not None
    assert before.open(old.seal(b"mine", "it"), "it") == b"mine"


def test_a_key_that_another_process_made_meanwhile_under_a_passphrase_asks_for_it(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def second(path: Path, data: bytes, *, replace: bool = True) -> None:
        monkeypatch.undo()
        SealedStorage.of(home, WORDS, CHEAP)
        write_private(path, data, replace=replace)

    monkeypatch.setattr(sealing, "write_private", second)
    with pytest.raises(DeviceError, match=r"protected by a passphrase: give it \(--passphrase\)"):
        SealedStorage.of(home)
    assert SealedStorage.asks_passphrase(home)


@pytest.mark.parametrize(
    "content",
    [
        b"penchant-key$" + b"00" * 31 + b"\n",
        b"penchant-key$" + b"00" * 33 + b"\n",
        b"00" * 32 + b"\n",
        b"penchant-key$" + b"no" * 32 + b"\n",
        b"",
    ],
    ids=["31 bytes", "33 bytes", "no label", "no digits", "empty"],
)
def test_a_root_file_that_holds_no_key_is_refused(home: Path, content: bytes) -> None:
    """In a directory without a check file too: nothing is sealed under half a key."""
    write_private(home / ROOT_FILE, content)
    refuses(home, "vault.root is damaged: it holds no key")


@pytest.mark.parametrize("size", [0, 31, 33])
def test_an_old_key_file_of_a_different_length_is_refused(home: Path, size: int) -> None:
    write_private(home / OLD_KEY_FILE, bytes(size))
    refuses(home, f"vault.key is damaged: it holds {size} bytes instead of 32")


@pytest.mark.parametrize("name", [ROOT_FILE, OLD_KEY_FILE])
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602])
def test_a_key_that_others_can_reach_is_refused(home: Path, name: str, mode: int) -> None:
    if name == ROOT_FILE:
        SealedStorage.of(home)
    else:
        write_private(home / name, OLD_KEY)
    (home / name).chmod(mode)
    refuses(home, f"{name} can be read by others; chmod 600 it")
    (home / name).chmod(0o600)
    SealedStorage.of(home)


def test_a_check_file_that_says_something_else_is_refused(home: Path) -> None:
    (home / CHECK_FILE).write_bytes(SealedStorage.of(home).seal(b"another text", "check"))
    refuses(home, "is damaged")


def test_another_key_than_the_first_is_refused(home: Path) -> None:
    SealedStorage.of(home)
    write_private(home / ROOT_FILE, b"penchant-key$" + b"07" * 32 + b"\n")
    refuses(home, "wrong passphrase or key")


def test_an_old_key_that_is_not_the_one_that_was_used_gets_no_root_key(home: Path) -> None:
    write_private(home / OLD_KEY_FILE, OLD_KEY)
    write_private(home / CHECK_FILE, SealedStorage(bytes(32)).seal(b"penchant vault", "check"))
    refuses(home, "wrong passphrase or key")
