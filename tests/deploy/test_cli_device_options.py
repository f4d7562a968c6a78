"""A device parts from its fleet: nothing of the node stays, nothing else goes, and the number is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from penchant.client.device.device import Device
from penchant.client.device.home import DeviceHome
from penchant.client.device.supernode_files import SuperNodeFiles
from penchant.common.errors import EnrolmentError
from penchant.common.membership.identity import authority_digest
from penchant.deploy.cli.device import app
from penchant.deploy.fleet.authority import AuthorityStore

TELL = "penchant.client.device.joining.tell_server"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Member 1 of a fleet, whose node is in its directory."""
    device = Device(tmp_path / "home")
    store = AuthorityStore.init(tmp_path / "authority")
    answer = store.issue(device.request(), "mine")
    device.join(answer.encode(), authority_digest(store.authority.public_key))
    make_node(device.directory / "node")
    return device.directory


def make_node(folder: Path) -> None:
    folder.mkdir()
    node = SuperNodeFiles(folder, "fleet.example:8443", folder / "agent.sock", "token")
    for path in (node.key, node.ca):
        path.write_bytes(b"a key")
    node.write()


def parted(word: str, home: Path, *options: str) -> Result:
    return CliRunner().invoke(app, [word, "--yes", "--home", str(home), *options])


def ends_with(error: BaseException) -> Callable[..., None]:
    def tell(*_: object) -> None:
        raise error

    return tell


def told(result: Result) -> str:
    return " ".join(result.output.split())


@pytest.mark.parametrize("word", ["leave", "forget"])
def test_the_server_is_told_and_the_node_goes(home: Path, word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TELL, lambda *_: None)
    result = parted(word, home)
    assert result.exit_code == 0, result.output
    assert "this device was member 1 its server knows" in told(result)
    assert not (home / "node").exists()
    assert "note:" not in result.output


@pytest.mark.parametrize("word", ["leave", "forget"])
@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (EnrolmentError("no route"), 0, "tell the authority to revoke that number"),
        (KeyboardInterrupt(), 130, "this device has left; tell the authority to revoke member 1"),
        (RuntimeError("a defect"), 1, ""),
        (OSError(5, "Input/output error"), 1, ""),
    ],
)
def test_the_number_is_told_and_the_node_goes_whatever_fails(
    home: Path, word: str, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, said: str
) -> None:
    monkeypatch.setattr(TELL, ends_with(error))
    result = parted(word, home)
    assert result.exit_code == code
    assert "this device was member 1" in told(result)
    assert said in told(result)
    assert not (home / "node").exists()
    assert Device(home).member is None


def test_a_device_that_could_not_leave_keeps_its_node(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a member still, and tries again."""
    monkeypatch.setattr(DeviceHome, "leave", ends_with(KeyboardInterrupt()))
    assert parted("leave", home).exit_code == 130
    assert (home / "node" / "node.key").exists()


@pytest.mark.parametrize("named", [False, True])
def test_who_is_in_no_fleet_has_no_node_either(home: Path, tmp_path: Path, named: bool) -> None:
    """As after a command that was broken off between the two."""
    Device(home).leave()
    folder = tmp_path / "relay" if named else home / "node"
    if named:
        make_node(folder)
    result = parted("leave", home, *(["--node", str(folder)] if named else []))
    assert result.exit_code == 2
    assert "this device is in no fleet" in told(result)
    assert not folder.exists()


@pytest.mark.parametrize("word", ["leave", "forget"])
def test_a_folder_that_is_no_node_is_left_alone(home: Path, tmp_path: Path, word: str) -> None:
    mine = tmp_path / "mine"
    (mine / "flower").mkdir(parents=True)
    names = ("ca.pem", "node.key", "connection.json", "flower/rose")
    for name in names:
        (mine / name).write_text("mine", encoding="utf-8")
    result = parted(word, home, "--node", str(mine))
    assert result.exit_code == 0, result.output
    assert all((mine / name).read_text(encoding="utf-8") == "mine" for name in names)
    assert "nothing was removed from" in told(result)
    assert "holds no node.toml that can be read" in told(result)


def test_a_key_that_is_left_without_its_settings_is_named(home: Path) -> None:
    (home / "node" / "node.toml").unlink()
    assert "nothing was removed from" in told(parted("leave", home))
    assert (home / "node" / "node.key").exists()
