"""The newest member list that an agent knows: kept in its vault, or once for all agents of a simulation."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from penchant.client.agent import known_lists
from penchant.client.agent.known_lists import MEMBERS, KnownList, ListByDigest, ListInVault
from penchant.client.vault.vault import Vault
from penchant.common.errors import DeviceError

LIST = b"a member list, with its signature" * 9
NEWER = b"the next member list, with its signature" * 9


def in_vault(folder: Path) -> KnownList:
    return ListInVault(Vault(folder / "device"))


def by_digest(folder: Path) -> KnownList:
    return ListByDigest(Vault(folder / "device"), folder / "lists")


@pytest.mark.parametrize("kept", [in_vault, by_digest])
def test_the_newest_list_outlives_the_agent(kept: Callable[[Path], KnownList], tmp_path: Path) -> None:
    assert kept(tmp_path).read() == b""
    for encoded in (LIST, NEWER):
        kept(tmp_path).keep(encoded)
        assert kept(tmp_path).read() == encoded


def test_agents_of_one_simulation_keep_one_file_of_a_list_and_its_digest_each(tmp_path: Path) -> None:
    vaults = [Vault(tmp_path / str(number)) for number in range(3)]
    for vault in vaults:
        ListByDigest(vault, tmp_path / "lists").keep(LIST)
    assert [path.read_bytes() for path in (tmp_path / "lists").iterdir()] == [LIST]
    assert {len(vault.blob(MEMBERS)) for vault in vaults} == {32}


def test_a_list_is_hashed_once_for_all_agents_of_a_simulation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is as long as the fleet is large: once for each agent would be the square of the people."""
    hashed: list[bytes] = []
    known_lists._digest.cache_clear()

    def counted(data: bytes = b"", **more: Any) -> Any:
        hashed.append(data)
        return sha256(data, **more)

    monkeypatch.setattr("hashlib.sha256", counted)
    for number in range(3):
        by_digest(tmp_path / str(number)).keep(LIST)
    assert hashed.count(LIST) == 1


def test_a_list_that_an_earlier_version_kept_whole_is_read(tmp_path: Path) -> None:
    Vault(tmp_path / "device").keep_blob(MEMBERS, LIST)
    assert by_digest(tmp_path).read() == LIST


def test_a_lost_or_changed_file_is_no_older_list(tmp_path: Path) -> None:
    by_digest(tmp_path).keep(LIST)
    (path,) = (tmp_path / "lists").iterdir()
    path.write_bytes(NEWER)
    with pytest.raises(DeviceError, match="was changed"):
        by_digest(tmp_path).read()
    path.unlink()
    with pytest.raises(DeviceError, match="put it back"):
        by_digest(tmp_path).read()
