"""`penchant quickstart` with few devices and a tiny model: it learns, ends, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from penchant.common.errors import GatewayError, UsageError
from penchant.deploy.fleet.quickstart import RUN, Quickstart, quickstart
from penchant.deploy.fleet.server_directory import ServerDirectory
from penchant.server.journal import Journal

pytestmark = pytest.mark.system

DEVICES = 3


def test_a_fleet_in_one_call(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    said: list[str] = []
    settings = (
        ("model.base_model", str(tiny_model("bert"))),
        ("data.pairs", 4),
        ("federation.warmup_rounds", 0),
    )
    server = quickstart(Quickstart(tmp_path / "fleet", DEVICES, 1, settings), said.append)
    with closing(Journal(ServerDirectory(server).run(RUN))) as journal:
        assert [(log.cohort, log.survivors) for log in journal.logs()] == [(DEVICES, DEVICES)] * 2
    assert said[0].startswith("warning: with 3 devices every sum holds only 3 honest people")
    assert "devices add noise for epsilon 8" in said[1]
    left = [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(p.info["cmdline"] or [])]
    assert left == []
    with pytest.raises(UsageError, match="in use"):
        quickstart(Quickstart(tmp_path / "fleet"), said.append)


def test_it_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name, path=None: None)
    with pytest.raises(GatewayError, match="nginx-light"):
        quickstart(Quickstart(tmp_path / "fleet"), print)
    assert not (tmp_path / "fleet").exists()
