"""Whose files these are: what somebody else could have written does not count."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from penchant.client.vault.ownership import check_directory, read_owned
from penchant.client.vault.sealing import SealedStorage
from penchant.common.errors import ConfigError, DeviceError


@pytest.fixture
def home(tmp_path: Path) -> Path:
    tmp_path.chmod(0o755)
    (tmp_path / "policy.toml").write_text("paused = true\n")
    (tmp_path / "policy.toml").chmod(0o644)
    return tmp_path


def test_what_is_ones_own_is_read(home: Path) -> None:
    check_directory(home)
    assert read_owned(home / "policy.toml") == "paused = true\n"


@pytest.mark.parametrize("mode", [0o775, 0o757])
def test_what_others_can_write_is_refused(home: Path, mode: int) -> None:
    home.chmod(mode)
    with pytest.raises(DeviceError, match="others can write in"):
        check_directory(home)
    (home / "policy.toml").chmod(mode & 0o666)
    with pytest.raises(ConfigError, match="others can write"):
        read_owned(home / "policy.toml")


def test_what_belongs_to_another_user_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stranger = os.stat(home).st_uid + 1
    monkeypatch.setattr(os, "geteuid", lambda: stranger)
    with pytest.raises(DeviceError, match="belongs to"):
        check_directory(home)
    with pytest.raises(DeviceError, match="belongs to"):
        SealedStorage.of(home)


def test_a_file_of_another_user_does_not_count_and_one_of_root_does(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, owner = os.fstat, 0

    def found(descriptor: int) -> os.stat_result:
        fields = list(real(descriptor))
        fields[stat.ST_UID] = owner
        return os.stat_result(fields)

    monkeypatch.setattr(os, "fstat", found)
    assert read_owned(home / "policy.toml")
    owner = os.geteuid() + 1
    with pytest.raises(ConfigError, match="only its owner's word counts"):
        read_owned(home / "policy.toml")
