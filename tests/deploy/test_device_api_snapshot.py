"""What the API answers with the default base model, kept in a file: scores and forms that change are noticed.

`PENCHANT_WRITE_SNAPSHOTS=1` writes the file anew, where an answer is meant to change.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.device_api_scene import ServedApi, motions, served

from penchant.client.device.device import Device

SNAPSHOT = Path(__file__).parents[1] / "data" / "api-scores.json"
NEAR = 5e-3  # of a score: sums in another order, over a training of some steps
TEXTS = ["the table tax", "the motion tax", "cloture", "", "Let us vote.\nOr not?"]
ASKED: dict[str, Any] = {
    "/rerank": {"query": "on bill 99: ", "texts": TEXTS, "raw_scores": True, "return_text": True},
    "/v1/rerank": {"query": "on bill 99: ", "documents": TEXTS, "top_n": 2},
    "/v2/rerank": {"query": "on bill 99: ", "documents": TEXTS},
    "/v1/score": {"text_1": "on bill 99: ", "text_2": TEXTS},
}
UNLIKE = ("id", "created")  # another one for each answer


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedApi]:
    device = Device(tmp_path_factory.mktemp("snapshot") / "device")
    device.record(motions())
    device.train()
    with served(device) as found:
        yield found


def test_answers_are_those_that_were_kept(api: ServedApi) -> None:
    found = {path: _kept(api.post(path, body).json()) for path, body in ASKED.items()}
    if os.environ.get("PENCHANT_WRITE_SNAPSHOTS"):
        SNAPSHOT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    expected = json.loads(SNAPSHOT.read_text(encoding="utf-8"))
    _same("", found, expected)


def _kept(answer: Any) -> Any:
    return {k: v for k, v in answer.items() if k not in UNLIKE} if isinstance(answer, dict) else answer


def _same(where: str, found: Any, expected: Any) -> None:
    """The same names, texts and places; numbers with a fraction nearly."""
    if isinstance(expected, dict):
        assert isinstance(found, dict), where
        assert list(found) == list(expected), where
        for key, value in expected.items():
            _same(f"{where}/{key}", found[key], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for place, value in enumerate(expected):
            _same(f"{where}/{place}", found[place], value)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=NEAR), where
    else:
        assert found == expected, where
