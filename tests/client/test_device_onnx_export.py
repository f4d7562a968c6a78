"""An ONNX file scores as the product does, in a runtime that knows neither torch nor penchant."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from support.device_api_scene import motions, new_device
from support.random_model import a_model
from typer.testing import CliRunner

from penchant.client.device import onnx_export
from penchant.client.device.onnx_export import export_onnx
from penchant.client.learning.merged_model import MergedModel
from penchant.common.config import AdapterConfig, ModelConfig
from penchant.common.errors import BaseModelError, DeviceError, UsageError
from penchant.deploy.cli.device import app as device_app

TEXTS = [
    ("the motion ", "on the bill"),
    ("", "a vote to table the tax"),
    ("cloture", " and the judge of the budget" * 4),  # cut
    ("the ", "tax"),
]
FILES = ["README.md", "model.onnx", "tokenizer.json"]


def card_lines(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]


@pytest.mark.parametrize(
    ("kind", "normalize", "more"),
    [
        ("bert", 10.0, {}),
        ("bert", 10.0, {"share": "common", "beside": 2}),
        ("llama", 0.0, {}),
        ("llama", 0.0, {"share": "common", "beside": 1}),
        ("gpt2", 0.0, {}),
        pytest.param("t5", 10.0, {}, marks=pytest.mark.slow),
    ],
)
def test_the_card_s_lines_give_the_model_s_scores(
    tiny_model: Callable[[str], Path], tmp_path: Path, kind: str, normalize: float, more: dict[str, Any]
) -> None:
    """In a process without torch: a batch of texts of several lengths, one of them cut, and each alone."""
    merged = a_model(tiny_model(kind), normalize, **more)
    folder = tmp_path / "mine"
    export_onnx(merged, folder)
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert {path.stat().st_mode & 0o077 for path in [folder, *folder.iterdir()]} == {0}
    held = (folder / "model.onnx").read_bytes()
    assert not [
        path
        for path in (sys.prefix, str(tmp_path.parents[1]), "site-packages", ".py")
        if path.encode() in held
    ]
    texts = [prompt + response for prompt, response in TEXTS]
    program = f"{card_lines(folder)}\nfor found in (scores({texts!r}), *(scores([t]) for t in {texts!r})):\n"
    program += (
        "    print(*found)\nimport sys\nassert not {'torch', 'transformers', 'penchant'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    together, *alone = ([float(score) for score in line.split()] for line in done.stdout.splitlines())
    expected = merged.scores(TEXTS)
    assert len({round(score, 3) for score in expected}) == len(TEXTS)
    assert together == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert [one for (one,) in alone] == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_the_command_writes_the_owner_s_model(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    """As a trained device has it; what base there is can't be named, since it is in the file."""
    device = new_device(tmp_path / "device", tiny_model("bert"), motions())
    words = ["export", str(tmp_path / "mine"), "--home", str(tmp_path / "device"), "--format", "onnx"]
    refused = CliRunner().invoke(device_app, [*words, "--base", "x"])
    assert (refused.exit_code, "--base is for peft" in refused.output) == (2, True)
    assert CliRunner().invoke(device_app, words).exit_code == 0
    again = CliRunner().invoke(device_app, words)
    assert (again.exit_code, "in use" in again.output) == (2, True)
    texts = ["on bill 1: the motion tax", "on bill 1: the table tax"]
    found = onnx_export._scores(tmp_path / "mine", texts, onnxruntime)
    own = {
        row.response: row.personal for row in device.rank("on bill 1: ", ["the motion tax", "the table tax"])
    }
    expected = [own["the motion tax"], own["the table tax"]]
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)


def refusal(merged: MergedModel, folder: Path, kind: type[Exception]) -> str:
    with pytest.raises(kind) as raised:
        export_onnx(merged, folder)
    assert not list(folder.iterdir()) if folder.exists() else True
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_what_scores_otherwise_or_can_not_be_loaded_is_refused_and_erased(
    tiny_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merged = a_model(tiny_model("bert"), 0.0)
    real = onnx_export._program

    def doubled(scorer: Any) -> Any:
        scorer.head = scorer.head * 1.01
        return real(scorer)

    def refuses(scorer: Any) -> Any:
        raise torch.onnx.OnnxExporterError("no way\nto do it")

    class Broken:
        def save(self, path: str, **_: Any) -> None:
            Path(path).write_bytes(b"no ONNX")

    monkeypatch.setattr(onnx_export, "_program", doubled)
    assert "off, and 0.0001 is the most; use peft" in refusal(merged, tmp_path / "a", BaseModelError)
    monkeypatch.setattr(onnx_export, "_program", refuses)
    why = refusal(merged, tmp_path / "b", BaseModelError)
    assert "can't be written as ONNX (OnnxExporterError: no way); use peft" in why
    monkeypatch.setattr(onnx_export, "_program", lambda scorer: Broken())
    assert "onnxruntime can't use what torch wrote" in refusal(merged, tmp_path / "c", BaseModelError)
    monkeypatch.setattr(Broken, "save", full_disk)
    assert "can't write the export" in refusal(merged, tmp_path / "d", DeviceError)


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(28, "No space left on device")


def test_a_large_model_has_its_weights_beside_it(
    tiny_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "ONE_FILE_MOST", 1000)
    merged = a_model(tiny_model("bert"), 0.0)
    export_onnx(merged, tmp_path / "mine")
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "mine").iterdir()}
    assert sorted(sizes) == [*FILES[:2], "model.onnx.data", FILES[2]]
    assert sizes["model.onnx.data"] > 20_000
    assert {path.stat().st_mode & 0o077 for path in (tmp_path / "mine").iterdir()} == {0}


def test_what_has_no_scores_or_no_whole_weights_is_refused_first(
    tiny_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = MergedModel(None, None, ModelConfig(objective="dpo"), AdapterConfig())  # type: ignore[arg-type]
    assert "a policy writes" in refusal(policy, tmp_path / "a", UsageError)
    quantised = MergedModel(None, None, ModelConfig(quantize="4bit"), AdapterConfig())  # type: ignore[arg-type]
    assert "4-bit" in refusal(quantised, tmp_path / "b", UsageError)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert "install penchant[onnx]" in refusal(policy, tmp_path / "c", UsageError)
    assert list(tmp_path.iterdir()) == []


def test_a_model_in_bfloat16_is_written_in_float32(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    merged = a_model(tiny_model("llama"), 0.0, dtype="bfloat16")
    export_onnx(merged, tmp_path / "mine")
    texts = [prompt + response for prompt, response in TEXTS]
    found = onnx_export._scores(tmp_path / "mine", texts, onnxruntime)
    assert found == pytest.approx(a_model(tiny_model("llama"), 0.0, dtype="float32").scores(TEXTS), abs=1e-4)
    assert found == pytest.approx(merged.scores(TEXTS), abs=0.1)
