"""The script for one GPU: it goes from one end to the other on a CPU too, and says when there is no GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from bench import bench_gpu


def test_a_dry_run_measures_all_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "found.json"
    assert bench_gpu.main(["--dry-run", "--json", str(path)]) == 0
    found = json.loads(path.read_text(encoding="utf-8"))
    assert {row["who"] for row in found["rows"]} == {"peft loop", "one by one", "lockstep"}
    assert not found["left_out"]
    for own, group in zip(
        [row for row in found["rows"] if row["who"] == "one by one"],
        [row for row in found["rows"] if row["who"] == "lockstep"],
        strict=True,
    ):
        assert group["losses"] == pytest.approx(own["losses"], rel=1e-2)
    printed = capsys.readouterr().out
    assert "x one by one" in printed
    assert "dry run" in printed


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_one_line() -> None:
    with pytest.raises(SystemExit, match="no CUDA GPU") as refused:
        bench_gpu.main([])
    assert "\n" not in str(refused.value)


def test_it_takes_ten_minutes_at_most() -> None:
    with pytest.raises(SystemExit, match="10 at most"):
        bench_gpu.main(["--dry-run", "--minutes", "11"])
