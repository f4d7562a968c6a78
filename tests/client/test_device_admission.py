"""A relay that the server turns away for good ends with the reason; one that may come back goes on."""

from __future__ import annotations

from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path

import httpx
import pytest

from penchant.client.device.admission import REFUSED_SECONDS, Admission
from penchant.client.device.supernode_files import SuperNodeFiles
from penchant.common.errors import DeviceError

Answer = Callable[[], httpx.Response]


def says(code: int, **headers: str) -> Answer:
    return lambda: httpx.Response(code, headers=headers)


def unreachable() -> httpx.Response:
    raise httpx.ConnectError("nobody there")


@pytest.fixture
def node(tmp_path: Path) -> SuperNodeFiles:
    made = SuperNodeFiles(tmp_path / "node", "fleet.example:8443", tmp_path / "agent.sock", "token")
    made.folder.mkdir()
    made.write()
    for path in (made.key, made.ca):
        path.write_bytes(b"a key")
    return made


def asked(node: SuperNodeFiles, *answers: tuple[float, Answer]) -> list[str]:
    """What is said when the server answers so at these seconds; empty: go on."""
    turn = [(0.0, unreachable), *answers]
    admission = Admission(node, lambda _: turn[0][1](), lambda: turn[0][0])
    found = []
    for _ in answers:
        turn.pop(0)
        final = admission.over()
        found.append("" if final is None else str(final))
    return found


def test_a_revoked_device_ends_with_the_reason_after_a_minute(node: SuperNodeFiles) -> None:
    early, late, final = asked(
        node, (0.0, says(401)), (REFUSED_SECONDS / 2, says(401)), (REFUSED_SECONDS + 1, says(401))
    )
    assert (early, late) == ("", "")
    assert "the authority has revoked it" in final
    assert "penchant device leave" in final


@pytest.mark.parametrize("between", [says(200), says(503), says(400)])
def test_a_server_that_is_only_restarted_ends_nothing(node: SuperNodeFiles, between: Answer) -> None:
    assert asked(node, (0.0, says(401)), (50.0, between), (100.0, says(401))) == ["", "", ""]


def test_out_of_reach_is_no_answer(node: SuperNodeFiles) -> None:
    assert asked(node, (0.0, unreachable), (1000.0, unreachable)) == ["", ""]
    assert asked(node, (0.0, says(401)), (50.0, unreachable), (100.0, says(401)))[-1]


@pytest.mark.parametrize(("off", "ends"), [(-3600.0, False), (3600.0, False), (0.0, True)])
def test_a_wrong_clock_is_not_taken_for_a_revocation(
    node: SuperNodeFiles, monkeypatch: pytest.MonkeyPatch, off: float, ends: bool
) -> None:
    there = 1_700_000_000.0
    monkeypatch.setattr("penchant.client.device.admission.time.time", lambda: there + off)
    dated = says(401, date=formatdate(there, usegmt=True))
    assert bool(asked(node, (0.0, dated), (100.0, dated))[-1]) == ends


def test_a_folder_that_holds_no_node_is_left_alone(node: SuperNodeFiles, tmp_path: Path) -> None:
    """Its files have the names of a node's, and are somebody else's."""
    for text in (None, "superlink = 1", "not TOML"):
        (node.folder / "node.toml").unlink(missing_ok=True)
        if text is not None:
            (node.folder / "node.toml").write_text(text, encoding="utf-8")
        before = sorted(node.folder.iterdir())
        assert not SuperNodeFiles.remove(node.folder)
        assert sorted(node.folder.iterdir()) == before
        assert node.key.read_bytes() == b"a key"
    assert not SuperNodeFiles.remove(tmp_path / "nowhere")


def test_a_removal_that_is_broken_off_goes_on(node: SuperNodeFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    (node.folder / "flower").mkdir()

    def full(path: Path) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("penchant.client.device.supernode_files.shutil.rmtree", full)
        with pytest.raises(DeviceError, match="remove them by hand"):
            SuperNodeFiles.remove(node.folder)
    assert SuperNodeFiles.remove(node.folder)
    assert not node.folder.exists()


def test_a_device_that_has_left_ends_at_once_and_leaves_no_key(node: SuperNodeFiles) -> None:
    (node.folder / "flower").mkdir()
    (node.folder / "flower" / "state").write_text("x", encoding="utf-8")
    SuperNodeFiles.remove(node.folder)
    assert not node.folder.exists()
    (said,) = asked(node, (0.0, says(200)))
    assert "has left its fleet" in said
    SuperNodeFiles.remove(node.folder)  # once more is fine
