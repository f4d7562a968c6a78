"""Best of n: what a generator gives, and that the personal model chooses among it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_models import write_tiny_model

from penchant.client.learning.best_of_n import Generator, best_of, whole_sentences
from penchant.common.errors import BaseModelError, UsageError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny language model whose output weights are its input's."""
    path = tmp_path_factory.mktemp("writer")
    write_tiny_model("llama", path, tie_word_embeddings=True)
    return path


@pytest.fixture(scope="module")
def writer(folder: Path) -> Generator:
    return Generator(str(folder), device="cpu")


def test_the_same_seed_gives_the_same_distinct_responses(writer: Generator) -> None:
    first, again = (writer.responses("the bill ", 5, seed=3, tokens=6) for _ in range(2))
    assert first == again
    assert len(set(first)) == 5
    assert all(first)
    assert writer.responses("the bill ", 5, seed=4, tokens=6) != first


def test_torchs_own_generator_goes_on_as_if_nothing_had_been_drawn(writer: Generator) -> None:
    torch.manual_seed(7)
    undisturbed = torch.rand(3)
    torch.manual_seed(7)
    writer.responses("the bill ", 2, tokens=3)
    assert torch.equal(torch.rand(3), undisturbed)


def test_nothing_is_sorted_where_all_words_may_be_drawn(
    writer: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, real = writer._model.config.vocab_size, writer._model.generate
    asked: list[int] = []

    def generate(**how: Any) -> Any:
        asked.append(how["top_k"])
        return real(**how)

    monkeypatch.setattr(writer._model, "generate", generate)
    for number in (words - 1, words, 1 << 20):
        assert writer.responses("the bill ", 1, tokens=2, top_k=number)
    assert list(dict.fromkeys(asked)) == [words - 1, 0]  # a blank response is drawn again


def test_states_of_prompts_lie_in_one_piece_before_words_are_made_of_them(writer: Generator) -> None:
    """Else torch copies all words' weights for each prompt."""
    seen = []
    hook = writer._model.get_output_embeddings().register_forward_pre_hook(
        lambda module, given: seen.append(given[0].is_contiguous())
    )
    writer.responses_to_all(["the bill ", "the vote on it "], 2, seed=0, tokens=2, temperature=1.0, top_k=9)
    hook.remove()
    assert len(seen) > 1
    assert all(seen)


def test_fewer_come_where_the_model_repeats_itself(writer: Generator) -> None:
    """One token a response: there are not 60 words."""
    found = writer.responses("the bill ", 60, tokens=1, temperature=5.0)
    assert 1 < len(found) < 60
    assert len(set(found)) == len(found)


def test_a_cut_response_ends_with_its_last_whole_sentence() -> None:
    assert whole_sentences("Bake bread. Then call a fri") == "Bake bread."
    assert whole_sentences('Say "Good morning!" and then') == 'Say "Good morning!"'
    assert whole_sentences("Bake bread. Eat it.") == "Bake bread. Eat it."
    assert whole_sentences("no end at al") == "no end at al"
    assert whole_sentences("It costs 3.5 euro or mo") == "It costs 3.5 euro or mo"


def test_the_personal_model_chooses(writer: Generator) -> None:
    asked = []

    def longest_first(prompt: str, responses: Sequence[str]) -> list[str]:
        asked.append(prompt)
        return sorted(responses, key=len, reverse=True)

    chosen = best_of(longest_first, writer, "the bill ", 6, seed=1, tokens=6)
    assert asked == ["the bill "]
    assert chosen == sorted(writer.responses("the bill ", 6, seed=1, tokens=6), key=len, reverse=True)


def test_what_can_not_be_generated_is_refused(writer: Generator) -> None:
    with pytest.raises(UsageError, match="prompt is empty"):
        writer.responses("  ", 2)
    for bad in ({"count": 0}, {"count": 1, "tokens": 0}):
        with pytest.raises(UsageError, match="at least 1"):
            writer.responses("the bill ", **bad)
    for bad in ({"temperature": 0.0}, {"top_k": 0}):
        with pytest.raises(UsageError, match="must lie in"):
            writer.responses("the bill ", 2, **bad)


def test_a_model_that_writes_no_text_is_refused(tiny_model) -> None:
    with pytest.raises(BaseModelError, match="cannot write text"):  # no output weights in the folder
        Generator(str(tiny_model("llama")), device="cpu")
    with pytest.raises(BaseModelError, match="is not a folder"):
        Generator("no such model")
