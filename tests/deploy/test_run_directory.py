"""A run directory: its configuration first, one process at a time, a result that is whole or not there."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from penchant.common.config import RunConfig
from penchant.common.errors import ConfigError, RunDirectoryError
from penchant.deploy import run_directory

CONFIG = RunConfig().changed({"seed": 7, "adapter.share": "B"})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- making one -----------------------------------------------------------------------------------


def test_the_configuration_is_the_first_thing_in_it(tmp_path: Path) -> None:
    run = tmp_path / "deep" / "below" / "run"
    run_directory.create(run, CONFIG)
    assert [name for name in names(run) if name != ".lock"] == ["config.toml"]
    assert run_directory.read_config(run) == CONFIG
    assert (run / "config.toml").read_text(encoding="utf-8") == CONFIG.to_toml()


def test_an_empty_folder_becomes_one(tmp_path: Path) -> None:
    run_directory.refuse_used(tmp_path)
    run_directory.create(tmp_path, CONFIG)
    assert run_directory.read_config(tmp_path) == CONFIG


@pytest.mark.parametrize(
    "there", ["a run", "a file in it", "a hidden file in it", "a folder in it", "a file"]
)
def test_nothing_that_is_there_is_touched(tmp_path: Path, there: str) -> None:
    run = tmp_path / "run"
    if there == "a run":
        run_directory.create(run, CONFIG)
    elif there == "a file":
        run.write_text("mine")
    else:
        run.mkdir()
        inside = run / {"a hidden file in it": ".mine"}.get(there, "mine")
        inside.mkdir() if "folder" in there else inside.write_text("mine")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for refusing in (lambda: run_directory.refuse_used(run), lambda: run_directory.create(run, RunConfig())):
        with pytest.raises(
            RunDirectoryError, match=r"run is in use; choose another directory, or go on with the run"
        ):
            refusing()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_place_where_nothing_can_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunDirectoryError, match=r"can't write into .*below: Not a directory"):
        run_directory.create(tmp_path / "file" / "below", CONFIG)


# --- reading one ----------------------------------------------------------------------------------


def test_a_folder_without_a_configuration_is_no_run(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(RunDirectoryError, match=r"is not a run directory: it has no config\.toml"):
            run_directory.read_config(folder)
    (tmp_path / "config.toml").mkdir()
    with pytest.raises(RunDirectoryError, match="is not a run directory"):
        run_directory.read_config(tmp_path)


def test_a_damaged_configuration_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="can't read configuration"):
        run_directory.read_config(tmp_path)


def test_an_unfinished_run_has_no_result(tmp_path: Path) -> None:
    run_directory.create(tmp_path, CONFIG)
    assert run_directory.read_result(tmp_path) is None
    run_directory.write_json(tmp_path / "result.json", {"accuracy": {"personal": 0.7, "cold_start": None}})
    assert run_directory.read_result(tmp_path) == {"accuracy": {"personal": 0.7, "cold_start": None}}


@pytest.mark.parametrize("text", ["{", "", "[]", "null", "3"])
def test_a_damaged_result_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "result.json").write_text(text, encoding="utf-8")
    with pytest.raises(RunDirectoryError, match=r"result\.json"):
        run_directory.read_result(tmp_path)


# --- writing --------------------------------------------------------------------------------------


def test_json_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    run_directory.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        run_directory.write_json(path, {"a": object()})
    with pytest.raises(ValueError, match="not JSON compliant"):
        run_directory.write_json(path, {"a": math.nan})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": 1}
    assert names(tmp_path) == ["result.json"]


def test_versions_name_what_decides_the_numbers() -> None:
    found = run_directory.versions()
    assert {"python", "machine", "torch", "numpy", "cryptography"} <= set(found)
    assert all(isinstance(value, str) and value for value in found.values())


# --- one process at a time ------------------------------------------------------------------------

HOLDER = """
import sys
from pathlib import Path
from penchant.deploy import run_directory

with run_directory.claim(Path(sys.argv[1])):
    print("mine", flush=True)
    sys.stdin.read()
"""


def test_a_claim_ends_with_its_process_however_it_ends(tmp_path: Path) -> None:
    for end in (signal.SIGKILL, None):
        with subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as holder:
            assert holder.stdout is not None
            assert holder.stdin is not None
            assert holder.stdout.readline() == "mine\n"
            assert (tmp_path / ".lock").read_text() == f"{holder.pid}\n"
            with (
                pytest.raises(RunDirectoryError, match="another process works in"),
                run_directory.claim(tmp_path),
            ):
                pass
            assert (tmp_path / ".lock").read_text() == f"{holder.pid}\n"  # still says who
            if end is None:
                holder.stdin.close()
            else:
                os.kill(holder.pid, end)
            holder.wait(60)
        with run_directory.claim(tmp_path):
            assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"


def test_a_claim_ends_with_an_error_too(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), run_directory.claim(tmp_path):
        raise ZeroDivisionError
    with run_directory.claim(tmp_path):
        pass


def test_a_directory_that_is_not_there_cannot_be_claimed(tmp_path: Path) -> None:
    with (
        pytest.raises(RunDirectoryError, match=r"can't work in .*absent: No such file"),
        run_directory.claim(tmp_path / "absent"),
    ):
        pass
