"""What a device remembers between two messages: in memory or sealed in a file, it is taken once."""

from __future__ import annotations

import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.scene import Scene

from penchant.client.agent.open_attempt import AttemptsInMemory, OpenAttempts, SealedAttempts
from penchant.client.secagg import (
    AttemptInfo,
    Confirmed,
    Keyed,
    Masking,
    SharesDealt,
    State,
    Unmasked,
    encode_state,
)
from penchant.common.errors import CodecError, DeviceError, StageError
from penchant.common.wire.codec import encode
from penchant.common.wire.messages import Announce

SECRET = b"the secret of one device, 32 byt"

Kind = Callable[[Path], OpenAttempts]
KINDS: dict[str, Kind] = {
    "memory": lambda home: AttemptsInMemory(),
    "sealed": lambda home: SealedAttempts(home, SECRET),
}


@pytest.fixture(params=list(KINDS))
def open_attempts(request: pytest.FixtureRequest, tmp_path: Path) -> OpenAttempts:
    return KINDS[request.param](tmp_path)


def attempt(stage: str = "masked") -> tuple[Announce, State]:
    """What a device of five keeps when an honest attempt has come to `stage`."""
    scene = Scene(5).play_to(stage)
    return scene.announce, scene.states[2]


STATES: dict[str, type] = {"shares": Keyed, "masked": SharesDealt, "confirm": Masking, "unmask": Confirmed}


# --- both alike -----------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", list(STATES))
def test_every_state_comes_back_as_it_was(open_attempts: OpenAttempts, stage: str) -> None:
    announce, state = attempt(stage)
    assert isinstance(state, STATES[stage])
    open_attempts.keep(announce, state)
    assert open_attempts.take() == (announce, state)


def test_a_plain_rounds_state_comes_back_as_well(open_attempts: OpenAttempts) -> None:
    announce, _ = attempt()
    plain = Unmasked(AttemptInfo(announce.run, 1, 1, bytes(32), 5, 32, 3))
    open_attempts.keep(announce, plain)
    assert open_attempts.take() == (announce, plain)


def test_nothing_is_taken_twice(open_attempts: OpenAttempts) -> None:
    open_attempts.keep(*attempt())
    open_attempts.take()
    for _ in range(2):
        with pytest.raises(StageError, match="no attempt is open on this device"):
            open_attempts.take()


def test_nothing_is_there_before_an_attempt_and_after_it_was_dropped(open_attempts: OpenAttempts) -> None:
    with pytest.raises(StageError, match="a stage was skipped or repeated"):
        open_attempts.take()
    open_attempts.drop()  # nothing to forget
    open_attempts.keep(*attempt())
    open_attempts.drop()
    with pytest.raises(StageError, match="no attempt is open"):
        open_attempts.take()


def test_at_most_one_attempt_is_open(open_attempts: OpenAttempts) -> None:
    announce, state = attempt("shares")
    _, later = attempt("confirm")
    open_attempts.keep(announce, state)
    open_attempts.keep(announce, later)
    assert open_attempts.take() == (announce, later)
    with pytest.raises(StageError):
        open_attempts.take()


# --- sealed in a file -----------------------------------------------------------------------------


def sealed_file(home: Path) -> Path:
    (path,) = home.iterdir()
    return path


def secrets_of(state: State) -> list[bytes]:
    """The 32-byte secrets and 33-byte shares in a state, wherever they are."""
    private = ["mask_private", "channel_private", "seed", "openers"]
    shares = ["own_seed_share", "own_key_share", "seed_shares", "key_shares"]
    found: list[bytes] = []
    for name in private + shares:
        value = getattr(state, name, ())
        found += [value] if isinstance(value, bytes) else value
    return [secret for secret in found if any(secret)]


@pytest.mark.parametrize("stage", list(STATES))
def test_no_secret_lies_in_the_file_in_clear(tmp_path: Path, stage: str) -> None:
    announce, state = attempt(stage)
    SealedAttempts(tmp_path, SECRET).keep(announce, state)
    data = sealed_file(tmp_path).read_bytes()
    assert len(secrets_of(state)) >= 3
    for secret in [*secrets_of(state), announce.factors, announce.run]:
        assert secret not in data
    assert stat.S_IMODE(sealed_file(tmp_path).stat().st_mode) == 0o600


def test_the_file_is_gone_once_it_was_taken_and_its_bytes_were_overwritten(tmp_path: Path) -> None:
    open_attempts = SealedAttempts(tmp_path, SECRET)
    open_attempts.keep(*attempt())
    path = sealed_file(tmp_path)
    size = path.stat().st_size
    with path.open("rb") as still_open:  # what the disk held when the name was already gone
        open_attempts.take()
        assert list(tmp_path.iterdir()) == []
        assert still_open.read() == bytes(size)


def test_two_files_of_one_state_have_nothing_in_common(tmp_path: Path) -> None:
    open_attempts, kept = SealedAttempts(tmp_path, SECRET), attempt()
    open_attempts.keep(*kept)
    first = sealed_file(tmp_path).read_bytes()
    open_attempts.keep(*kept)
    second = sealed_file(tmp_path).read_bytes()
    assert first[:12] != second[:12]
    assert not any(first[at : at + 16] in second for at in range(0, len(first), 16))


def tampered(data: bytes) -> dict[str, bytes]:
    middle = len(data) // 2
    return {
        "a bit of the nonce": bytes([data[0] ^ 1]) + data[1:],
        "a bit in the middle": data[:middle] + bytes([data[middle] ^ 0x80]) + data[middle + 1 :],
        "a bit of the tag": data[:-1] + bytes([data[-1] ^ 1]),
        "one byte short": data[:-1],
        "one byte long": data + b"\0",
        "the nonce alone": data[:12],
        "less than a nonce": data[:5],
        "nothing": b"",
        "zeros, as after an erasure": bytes(len(data)),
    }


@pytest.mark.parametrize("how", list(tampered(bytes(64))))
def test_a_tampered_file_is_refused_and_gone(tmp_path: Path, how: str) -> None:
    open_attempts = SealedAttempts(tmp_path, SECRET)
    open_attempts.keep(*attempt())
    path = sealed_file(tmp_path)
    path.write_bytes(tampered(path.read_bytes())[how])
    with pytest.raises(StageError, match="the open attempt's file is damaged; this attempt is sat out"):
        open_attempts.take()
    with pytest.raises(StageError, match="no attempt is open"):
        open_attempts.take()


def test_another_devices_file_does_not_open(tmp_path: Path) -> None:
    SealedAttempts(tmp_path, SECRET).keep(*attempt())
    with pytest.raises(StageError, match="is damaged"):
        SealedAttempts(tmp_path, SECRET[::-1]).take()


def test_a_file_that_opens_but_holds_no_attempt_is_refused(tmp_path: Path) -> None:
    """Only a device with this very secret could have written it: still no crash of another kind."""
    open_attempts = SealedAttempts(tmp_path, SECRET)
    (tmp_path / "attempt.sealed").write_bytes(open_attempts._storage.seal(b"no record", ""))
    with pytest.raises(CodecError):
        open_attempts.take()


def test_a_directory_that_is_gone_is_one_typed_line(tmp_path: Path) -> None:
    open_attempts = SealedAttempts(tmp_path / "never made", SECRET)
    with pytest.raises(DeviceError, match="can't keep the open attempt"):
        open_attempts.keep(*attempt())
    (tmp_path / "attempt.sealed").mkdir()
    with pytest.raises(DeviceError, match="can't erase the open attempt"):
        SealedAttempts(tmp_path, SECRET).drop()


TAKER = """
import sys
from pathlib import Path
from penchant.client.secagg import encode_state
from penchant.client.agent.open_attempt import SealedAttempts
from penchant.common.wire.codec import encode

announce, state = SealedAttempts(Path(sys.argv[1]), sys.argv[2].encode()).take()
print(encode(announce).hex(), encode_state(state).hex())
"""


def test_another_process_takes_what_this_one_kept(tmp_path: Path) -> None:
    announce, state = attempt("unmask")
    mine = SealedAttempts(tmp_path, SECRET)
    mine.keep(announce, state)
    done = subprocess.run(
        [sys.executable, "-c", TAKER, str(tmp_path), SECRET.decode()],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.split() == [encode(announce).hex(), encode_state(state).hex()]
    with pytest.raises(StageError, match="no attempt is open"):
        mine.take()
