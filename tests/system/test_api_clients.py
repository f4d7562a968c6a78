"""The device's API with the clients that people really have, in an environment of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.device_api_scene import TOKEN, ServedApi, motions, new_device, served
from support.upstream import Upstream, upstream_server

from penchant.deploy.device_api.upstream import UpstreamSettings

HERE = Path(__file__).parent
QUERY, DOCUMENTS = "on bill 99: ", ["the table tax", "the motion tax", "cloture"]  # as in api_clients.py
UNSAID = """
# What a schema can't say: a field of a document that another field names, two lists of one length, a row in
# one of many formats. Such a body is refused with 400 or 422, one that is too long with 413.
[checks.negative_data_rejection]
expected-statuses = ["400", "401", "403", "404", "405", "406", "409", "413", "415", "422", "428", "429"]

[[operations]]
include-path-regex = "(rerank|reranking|score|feedback)$"
[operations.checks.positive_data_acceptance]
expected-statuses = ["2xx", "400", "413", "422"]
"""


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an environment's commands that has the clients, and not penchant."""
    home = tmp_path_factory.mktemp("clients")
    subprocess.run([sys.executable, "-m", "venv", home], check=True)
    install = [f"{home}/bin/pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*install, "-r", f"{HERE}/api_clients.txt"], check=True, timeout=600)
    return home / "bin"


@pytest.fixture(scope="module")
def api(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedApi]:
    device = new_device(tmp_path_factory.mktemp("device") / "home", tiny_model("bert"), motions())
    with upstream_server() as upstream, served(device, upstream=UpstreamSettings(upstream.url)) as found:
        yield found
    assert isinstance(upstream, Upstream)
    assert upstream.asked, "the clients' chats came to the upstream"


def test_every_client_gets_the_owner_s_ranking(clients: Path, api: ServedApi) -> None:
    ended = subprocess.run(
        [clients / "python", HERE / "api_clients.py", api.url, TOKEN],
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    own = [score.bounded for score in api.model.scores([(QUERY, text) for text in DOCUMENTS])]
    best_first = sorted(range(len(DOCUMENTS)), key=lambda place: -own[place])
    for client in ("cohere 1", "cohere 2", "langchain", "llama-index"):
        places, scores = zip(*found[client], strict=True)
        assert list(places) == best_first, client
        assert list(scores) == pytest.approx([own[place] for place in best_first], abs=1e-6)
    best = found["openai"]
    assert found["openai, two"][0] == found["openai, streamed"] == best
    assert found["openai, models"] == ["m"]
    assert "the token is missing or wrong" in found["openai, a wrong key"]


def test_schemathesis_finds_nothing(clients: Path, api: ServedApi, tmp_path: Path) -> None:
    """Requests made from the API's own description, right ones and wrong ones: no answer contradicts it."""
    (tmp_path / "schemathesis.toml").write_text(UNSAID, encoding="utf-8")
    told = ["--config-file", f"{tmp_path}/schemathesis.toml", "run", f"{api.url}/openapi.json"]
    limits = ["--max-examples", "15", "--seed", "1", "--workers", "1", "--no-color"]
    ended = subprocess.run(
        [f"{clients}/schemathesis", *told, "-H", f"Authorization: Bearer {TOKEN}", *limits],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=tmp_path,
    )
    assert ended.returncode == 0, ended.stdout[-4000:]
    assert "Tested: 12" in ended.stdout, "every operation was asked"
