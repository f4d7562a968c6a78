"""Another package's share rule, server optimiser and data set: installed, and used by whole runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from safetensors.numpy import load_file

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "plugin"
PROGRAM = [sys.executable, "-c", "from penchant.deploy.cli.main import main; main()"]
GROUPS = {"gain": "penchant.shares", "fedlion": "penchant.server_optimizers", "menus": "penchant.datasets"}


def penchant(folder: Path | None, *words: str) -> subprocess.CompletedProcess[str]:
    """The command line as another process runs it, with the packages of a folder installed."""
    places = [str(folder)] if folder else []
    places += [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places), "COLUMNS": "200"}
    return subprocess.run(
        [*PROGRAM, *words], capture_output=True, text=True, timeout=300, env=environment, check=False
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the example was installed into as pip installs any package."""
    if find_spec("pip") is None or find_spec("setuptools") is None:
        pytest.skip("needs pip and setuptools")
    source, target = tmp_path_factory.mktemp("source") / "plugin", tmp_path_factory.mktemp("site")
    shutil.copytree(EXAMPLE, source)  # building leaves files beside the source
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
         "--disable-pip-version-check", "--target", str(target), str(source)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture(scope="module")
def run(
    installed: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A run with all three, and what the command said. Its base model knows the words of the menus; to a tiny
    one they would all be the same, and nothing would move."""
    out, base = tmp_path_factory.mktemp("runs") / "run", "all-MiniLM-L6-v2"
    done = penchant(
        installed, "simulate", "--dataset", "menus", "--share", "gain", "--server-optimizer", "fedlion",
        "--server-lr", "0.01", "--warmup-rounds", "1", "--base-model", base, "--rounds", "3",
        "--cohort", "12", "--pairs", "6", "--validation-pairs", "2", "--local-epochs", "1",
        "--refit-epochs", "2", "--out", str(out),
    )  # fmt: skip
    return out, done


@pytest.mark.slow
def test_all_three_take_part_in_a_simulation(run: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    out, done = run
    assert done.returncode == 0, done.stderr
    result = json.loads((out / "result.json").read_text())
    assert (result["dataset"], result["share"], result["clients"]) == ("menus", "gain", 12)
    names = [row["name"].rsplit(".", 1)[-1] for row in result["shared_tensors"]]
    assert names == ["lora_A", "lora_B", "weight"]  # the gain stays at home
    before, after = (load_file(out / f"checkpoints/round-{n:06d}.safetensors") for n in (2, 3))
    moves = {round(float(m), 4) for m in abs(after["factors"] - before["factors"])}
    assert moves <= {0.0, 0.01}  # Lion goes by signs
    assert 0.01 in moves
    report = (out / "report.html").read_text()
    assert "one gain for each module" in report
    assert "Menus: guests and dishes are made up." in report


@pytest.mark.slow
def test_the_audit_knows_the_rule(
    installed: Path, run: tuple[Path, subprocess.CompletedProcess[str]]
) -> None:
    done = penchant(installed, "audit", str(run[0]))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "share gain" in done.stdout
    assert "Nothing else left." in done.stdout


@pytest.mark.slow
def test_without_the_package_the_choices_are_named_and_the_run_can_not_go_on(
    installed: Path, run: tuple[Path, subprocess.CompletedProcess[str]]
) -> None:
    done = penchant(None, "simulate", "--resume", str(run[0]))
    assert done.returncode == 2
    assert "'gain'; choose one of B, A, kernel, svd, AB, none, ffa, lore, mixed, common" in done.stderr
    assert done.stderr.count("\n") == 1
    named = penchant(installed, "simulate", "--share", "nothing")
    assert (
        "choose one of B, A, kernel, svd, AB, none, ffa, lore, mixed, common, finetune, meta, shrinkage, gain"
        in named.stderr
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "flag"), [("gain", "--share"), ("fedlion", "--server-optimizer"), ("menus", "--dataset")]
)
def test_a_broken_plugin_is_named_in_one_line(
    installed: Path, tmp_path: Path, tiny_model: Callable[[str], Path], name: str, flag: str
) -> None:
    broken = tmp_path / "site"
    shutil.copytree(installed, broken)
    (broken / "penchant_example_plugin.py").write_text("import no_such_module\n")
    base, out = str(tiny_model("bert")), tmp_path / "run"
    done = penchant(broken, "simulate", flag, name, "--base-model", base, "--out", str(out))
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(
        f'penchant: the plugin "{name}" ({GROUPS[name]} of penchant-example-plugin) can\'t be loaded: '
        "ModuleNotFoundError: No module named 'no_such_module'"
    )
    assert done.stderr.count("\n") == 1
    assert not out.exists()
    assert penchant(broken, "--help").returncode == 0
