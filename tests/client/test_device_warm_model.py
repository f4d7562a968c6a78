"""The model that stays in memory: the scores of `rank`, however it is asked, and never of yesterday."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
from support.device_api_scene import chats, motions, new_device

from penchant.client.device import warm_model
from penchant.client.device.conversation_form import learned_from_conversations, prompt_of, response_of
from penchant.client.device.device import Device
from penchant.client.device.warm_model import TextScore, WarmModel
from penchant.common.data.preferences import Preference
from penchant.common.data.trl_format import parse_preference
from penchant.common.errors import DataError

PROMPT = "on bill 99: "
RESPONSES = ["the table tax", "the motion tax", "cloture " * 40, "", "the motion vote\nthe table"]


@pytest.fixture
def device(tiny_model: Callable[[str], Path], tmp_path: Path) -> Device:
    return new_device(tmp_path / "device", tiny_model("bert"), motions())


def ranked(device: Device) -> dict[str, float]:
    return {row.response: row.personal for row in device.rank(PROMPT, RESPONSES)}


@pytest.mark.parametrize("tokens", [8192, 1, 20])
def test_scores_are_those_of_rank_however_many_passes_they_take(
    device: Device, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm_model, "PASS_TOKENS", tokens)
    found = WarmModel(device).scores([(PROMPT, response) for response in RESPONSES])
    own = ranked(device)
    assert [score.raw for score in found] == pytest.approx([own[r] for r in RESPONSES], abs=1e-6)
    assert [score.cut for score in found] == [False, False, True, False, False]
    assert found[2].tokens == 16


def test_it_follows_the_device_as_soon_as_its_model_is_another_one(device: Device) -> None:
    model = WarmModel(device)
    assert model.personal
    before = model.scores([(PROMPT, "the motion tax")])[0].raw
    device.record(Preference(f"on vote {n}: ", "the table", "the motion") for n in range(9))
    device.train()
    after = model.scores([(PROMPT, "the motion tax")])[0].raw
    assert after == pytest.approx(ranked(device)["the motion tax"], abs=1e-6)
    assert after != before
    device.forget()
    common = model.scores([(PROMPT, "the motion tax")])[0].raw
    assert not model.personal
    assert common == pytest.approx(device.rank(PROMPT, ["the motion tax"])[0].common, abs=1e-6)


def test_bounded_scores_lie_between_0_and_1_in_the_same_order() -> None:
    raw = [-2000.0, -3.0, 0.0, 0.5, 3.0, 2000.0]
    bounded = [TextScore(one, 1, False).bounded for one in raw]
    assert bounded == sorted(bounded)
    assert (bounded[0], bounded[2], bounded[-1]) == (0.0, 0.5, 1.0)
    assert bounded[3] == pytest.approx(1 / (1 + math.exp(-0.5)))


def test_the_form_is_that_of_most_choices() -> None:
    assert learned_from_conversations(chats(4))
    assert learned_from_conversations([])
    assert not learned_from_conversations(motions(4))
    assert not learned_from_conversations([*motions(5), *chats(4)])
    assert learned_from_conversations([*motions(4), *chats(5)])


def test_a_conversation_is_rendered_as_rows_of_conversations_are() -> None:
    said = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "on tax\nand bill?"}]
    row = {
        "prompt": said,
        "chosen": [{"role": "assistant", "content": "the motion"}],
        "rejected": [{"role": "assistant", "content": "the table"}],
    }
    trained = parse_preference(row)
    assert prompt_of(said, conversation=True) == trained.prompt
    assert response_of({"content": "the motion"}, conversation=True) == trained.chosen
    assert prompt_of(said, conversation=False) == "on tax\nand bill?"
    assert response_of({"role": "model", "content": ": the"}, conversation=False) == ": the"


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [3],
        [{"role": "user"}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}],
        [{"role": 1, "content": "x"}, {"role": "user", "content": "x"}],
    ],
)
@pytest.mark.parametrize("conversation", [True, False])
def test_what_is_no_conversation_of_texts_is_refused(messages: list[object], conversation: bool) -> None:
    with pytest.raises(DataError, match="messages"):
        prompt_of(messages, conversation=conversation)
