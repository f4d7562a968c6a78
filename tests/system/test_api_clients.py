"""The device's API with the clients that people really have, in an environment of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.device_api_scene import TOKEN, ServedApi, chats, motions, new_device, served
from support.processes import PROGRAM, free_port, listens, running, wait_for
from support.upstream import Upstream, upstream_server
from system.smollm2_server import smollm2_server, write_smollm2

from penchant.client.device.device import Device
from penchant.client.device.warm_model import WarmModel
from penchant.deploy.device_api.api_token import api_token
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
    install = [f"{home}/bin/pip", "install", "-q", "--no-compile", "--disable-pip-version-check"]
    subprocess.run([*install, "-r", f"{HERE}/api_clients.txt"], check=True, timeout=600)
    return home / "bin"


@pytest.fixture(scope="module")
def npm_clients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the clients that npm has, and the script that uses them."""
    home = tmp_path_factory.mktemp("npm")
    shutil.copy(HERE / "api_clients.json", home / "package.json")
    shutil.copy(HERE / "api_clients.mjs", home)
    subprocess.run(["npm", "install", "--no-audit", "--no-fund"], cwd=home, check=True, timeout=600)
    return home


@pytest.fixture(scope="module")
def api(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedApi]:
    device = new_device(tmp_path_factory.mktemp("device") / "home", tiny_model("bert"), motions())
    with upstream_server() as upstream, served(device, upstream=UpstreamSettings(upstream.url)) as found:
        yield found
    assert isinstance(upstream, Upstream)
    assert upstream.asked, "the clients' chats came to the upstream"


def best_first(api: ServedApi) -> tuple[list[int], list[float]]:
    """The places of the documents, the owner's best first, and their scores."""
    own = [score.bounded for score in api.model.scores([(QUERY, text) for text in DOCUMENTS])]
    places = sorted(range(len(DOCUMENTS)), key=lambda place: -own[place])
    return places, [own[place] for place in places]


def test_every_client_gets_the_owner_s_ranking(clients: Path, api: ServedApi) -> None:
    ended = subprocess.run(
        [clients / "python", HERE / "api_clients.py", api.url, TOKEN],
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    places, scores = best_first(api)
    llama_index = [name for name in found if name.startswith("llama-index")]
    assert len(llama_index) == 3
    for client in ("cohere 1", "cohere 2", "langchain", *llama_index):
        assert [place for place, _ in found[client]] == places, client
        assert [score for _, score in found[client]] == pytest.approx(scores, abs=1e-6)
    best = found["openai"]
    assert found["openai, two"][0] == found["openai, streamed"] == best
    assert found["openai, models"] == ["m"]
    assert "the token is missing or wrong" in found["openai, a wrong key"]


def test_clients_from_npm_get_the_same(npm_clients: Path, api: ServedApi) -> None:
    ended = subprocess.run(
        ["node", "api_clients.mjs", api.url, TOKEN],
        cwd=npm_clients,
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    found: dict[str, Any] = json.loads(ended.stdout)
    places, scores = best_first(api)
    for client, most in (("cohere 1", 3), ("cohere 2", 3), ("cohere 2, the first two", 2), ("langchain", 3)):
        assert [place for place, _ in found[client]] == places[:most], client
        assert [score for _, score in found[client]] == pytest.approx(scores[:most], abs=1e-6)
    assert found["openai, streamed"] == found["openai"]
    assert found["openai, field"]["asked"] == 4
    told = [float(score) for score in found["openai, header"].split(",")]
    assert told == pytest.approx(found["openai, field"]["scores"], abs=1e-6)
    assert found["openai, models"] == ["m"]
    for client, kind in (("openai", "AuthenticationError"), ("cohere", "UnauthorizedError")):
        raised, why = found[f"{client}, a wrong key"]
        assert raised == kind
        assert "the token is missing or wrong" in why


def test_schemathesis_finds_nothing(clients: Path, api: ServedApi, tmp_path: Path) -> None:
    """Requests made from the API's own description, right ones and wrong ones: no answer contradicts it."""
    (tmp_path / "schemathesis.toml").write_text(UNSAID, encoding="utf-8")
    told = ["--config-file", f"{tmp_path}/schemathesis.toml", "run", f"{api.url}/openapi.json"]
    limits = ["--max-examples", "15", "--seed", "1", "--workers", "1", "--no-color"]
    limits.append("--suppress-health-check=too_slow")  # of a machine that is busy
    ended = subprocess.run(
        [f"{clients}/schemathesis", *told, "-H", f"Authorization: Bearer {TOKEN}", *limits],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=tmp_path,
    )
    assert ended.returncode == 0, ended.stdout[-4000:]
    assert "Tested: 12" in ended.stdout, "every operation was asked"


def test_a_real_model_writes_and_the_owner_s_picks(clients: Path, tmp_path: Path) -> None:
    """SmolLM2 behind a server of others, the commands, and OpenAI's client at the other end."""
    model, home, log = tmp_path / "smollm2", tmp_path / "device", tmp_path / "api.log"
    write_smollm2(model)
    device = Device(home)
    device.record(chats())
    device.train()
    question = "Name some animals of the woods."
    (packages,) = (clients.parent / "lib").glob("python3*/site-packages")
    port = free_port()
    with smollm2_server(model, packages) as upstream:
        serve = ["device", "serve-api", "--port", str(port), "--upstream", f"{upstream}/v1"]
        with running([*PROGRAM, *serve], log, env={**os.environ, "PENCHANT_HOME": str(home)}):
            wait_for("the API", lambda: listens(port), 180)
            url, token = f"http://127.0.0.1:{port}", api_token(home)
            ended = subprocess.run(
                [clients / "python", HERE / "best_of_client.py", url, token, model, question],
                check=True,
                capture_output=True,
                text=True,
                timeout=300,
            )
    found: dict[str, Any] = json.loads(ended.stdout)

    def own(answers: list[str]) -> list[float]:
        """What the owner's model says of answers."""
        texts = [(f"user: {question}\n", f"assistant: {answer}") for answer in answers]
        return [score.bounded for score in WarmModel(device).scores(texts)]

    assert len(set(found["four"])) > 1, "there was something to choose from"
    assert own(found["four"]) == sorted(own(found["four"]), reverse=True)
    assert own(found["four"]) == pytest.approx(found["four, field"]["scores"], abs=1e-5)
    assert found["header"] == pytest.approx(found["field"]["scores"], abs=1e-5)
    assert (found["field"]["asked"], len(found["header"])) == (4, 4)
    assert own([found["answer"]]) == pytest.approx([max(found["header"])], abs=1e-5)
    assert found["completion tokens"] > 12, "all four are counted"
    assert found["streamed"]
    assert len(found["streamed, ends"]) == 1
    status, why = found["refused"]
    assert status == 400
    assert "requested 'another'" in why, "as the upstream said it"
    written = [question, found["answer"], found["streamed"], *found["four"]]
    for path in [log, *(one for one in home.rglob("*") if one.is_file())]:
        assert not [text for text in written if text.encode() in path.read_bytes()], path
