"""systemd units and container files, as far as they can be judged where neither is run."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

import penchant.deploy.cli.main as cli

pytestmark = pytest.mark.system

ROOT = Path(__file__).resolve().parents[2]
FLEET = ROOT / "deploy" / "fleet"
UNITS = sorted((FLEET / "systemd").glob("*.service"))
OTHERS = [FLEET / "systemd" / name for name in ("penchant-server.target", "penchant-health.timer")]
CONTAINERS = sorted((FLEET / "containers").iterdir())
MOST = 15  # tenths of exposure, of 100; 1.5 is well inside what systemd calls OK


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.stem)
def test_a_unit_is_hardened(unit: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", f"--threshold={MOST}", str(unit)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "unit",
    [*UNITS, *(FLEET / "systemd" / f"penchant-{name}" for name in ("server.target", "health.timer"))],
    ids=lambda p: p.stem,
)
def test_systemd_takes_a_unit(unit: Path, tmp_path: Path) -> None:
    """All of it but the program, which is put where this machine has one."""
    for path in (FLEET / "systemd").iterdir():
        text = path.read_text().replace("/opt/penchant/bin/penchant", shutil.which("true") or "")
        (tmp_path / path.name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / unit.name)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    said = [line for line in done.stderr.splitlines() if str(tmp_path) in line or "penchant" in line]
    assert (done.returncode, said) == (0, [])


def commands() -> list[list[str]]:
    found = []
    for unit in UNITS:
        (line,) = re.findall(r"^ExecStart=(.*)$", unit.read_text(), re.M)
        found.append(shlex.split(line)[1:])
    for file in CONTAINERS:
        (line,) = re.findall(r"^CMD (.*)$", file.read_text(), re.M)
        found.append([word.strip('" ') for word in line.strip("[]").split(",")])
    return found


def refuse_unknown_command(words: list[str]) -> None:
    """What click raises for words that penchant has no command, option or argument for."""
    command = typer.main.get_command(cli.app).commands[words[0]]  # type: ignore[attr-defined]
    within = getattr(command, "commands", {})
    if words[1] in within:
        command, words = within[words[1]], words[1:]
    command.make_context("x", words[1:])  # parses, or raises


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_what_units_and_containers_start_exists(words: list[str]) -> None:
    refuse_unknown_command(words)


@pytest.mark.parametrize("file", CONTAINERS, ids=lambda path: path.suffix)
def test_container_files_are_linted(file: Path) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([str(hadolint), str(file)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
    text = file.read_text()
    assert re.search(r"^USER 10001$", text, re.M)
    assert "ADD " not in text
    for source in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.M):
        for name in source.split():
            assert (ROOT / name).exists(), name
