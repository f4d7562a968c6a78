"""Responses that are written on the device, and the best of n of them by the personal model.

The generator is any causal language model, frozen and the same for everybody, or the person's own policy. The
former makes a policy step without training a policy: what is personal is the reward model that chooses
(Stiennon et al., *Learning to summarize from human feedback*, NeurIPS 2020; Gao et al., *Scaling Laws for
Reward Model Overoptimization*, ICML 2023). All runs on the device: neither prompt nor responses leave it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Self, TypeVar

import torch

from penchant.client.learning.merged_model import MergedModel
from penchant.common.errors import UsageError
from penchant.common.model.backbone import load_generator
from penchant.common.model.prompt_form import Prompt, PromptForm

__all__ = ["Generator", "best_of", "whole_sentences"]

Row = TypeVar("Row")

_END = re.compile(r"[.!?][\"')\]]*(?=\s|$)")  # of a sentence
_TRIES = 3  # times as many responses as asked for, at most, to find distinct ones
_BATCH = 128  # responses generated together


class Generator:
    """Responses of a causal language model, drawn by seed.

    Args:
        name: "smollm2-135m" (the weights come from an installed package), a folder, or a hub id.
        device: "auto", or a torch device.

    Raises:
        BaseModelError: it is missing, damaged, or no causal language model.
    """

    def __init__(self, name: str, *, device: str = "auto") -> None:
        model, tokenizer = load_generator(name, device=device)
        self._begin(model, PromptForm(tokenizer))

    @classmethod
    def of(cls, merged: MergedModel) -> Self:
        """What a policy writes; its base model stays the one in memory.

        UsageError where the model scores by a head, and so writes nothing.
        """
        made = cls.__new__(cls)
        made._begin(merged.model.language_model(merged.weights), merged.model.prompts)
        return made

    @property
    def templated(self) -> bool:
        """Whether prompts are put into a chat template."""
        return self._prompts.templated

    @property
    def most_tokens(self) -> int:
        """How many tokens the model can hold, prompt and response together."""
        return int(getattr(self._model.config, "max_position_embeddings", 0) or 1 << 20)

    def length(self, prompt: Prompt) -> int:
        """How many tokens a prompt has. Errors as `PromptForm.prompt`."""
        return len(self._ids(prompt))

    def responses(
        self,
        prompt: Prompt,
        count: int,
        *,
        seed: int = 0,
        tokens: int = 96,
        temperature: float = 0.8,
        top_k: int = 50,
    ) -> list[str]:
        """`count` distinct responses to a prompt, by top-k sampling (Fan et al., ACL 2018).

        The prompt is read as in training (`PromptForm`): with a chat template as a user's message, or as what
        was said before in a conversation; without one as text to go on from.
        tokens: a response that runs into this limit is cut back to its last whole sentence, if it has one.
        A small model repeats itself: fewer come back if three times as many hold no more that differ. The
        same call gives the same responses on the same machine, and leaves torch's own generator alone.

        Raises:
            UsageError: the prompt is blank, or a number is out of range.
            BaseModelError: the chat template can't hold such a conversation.
        """
        made = self.responses_to_all(
            [prompt], count, seed=seed, tokens=tokens, temperature=temperature, top_k=top_k
        )
        return made[0]

    def responses_to_all(
        self,
        prompts: Sequence[Prompt],
        count: int,
        *,
        seed: int,
        tokens: int,
        temperature: float,
        top_k: int,
    ) -> list[list[str]]:
        """As `responses`, of several prompts together: several times as fast as one by one."""
        _check(prompts, count, tokens, temperature, top_k)
        found: list[dict[str, None]] = [{} for _ in prompts]
        among = (
            0 if top_k >= self._model.config.get_text_config().vocab_size else top_k
        )  # 0: nothing is sorted
        settings = {"temperature": temperature, "top_k": among, "max_new_tokens": tokens}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for _ in range(_TRIES):
                lacking = [place for place, own in enumerate(found) if len(own) < count]
                rows = [place for place in lacking for _ in range(count)]
                for start in range(0, len(rows), _BATCH):
                    batch = rows[start : start + _BATCH]
                    for place, text in zip(
                        batch, self._draw([prompts[p] for p in batch], settings), strict=True
                    ):
                        if text:
                            found[place][text] = None
        return [list(own)[:count] for own in found]

    def speak(
        self,
        prompt: Prompt,
        tell: Callable[[str], None],
        *,
        seed: int = 0,
        tokens: int = 256,
        temperature: float = 0.8,
        top_k: int = 50,
    ) -> str:
        """One response, of which `tell` is given each piece as soon as it is written; -> all of it.

        It may end in the middle of a sentence, where it runs into the limit of tokens. Otherwise as
        `responses`.
        """
        _check([prompt], 1, tokens, temperature, top_k)
        inputs = self._encoded([prompt])
        told = _told(self._tokenizer, tell)
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)
            drawn = self._model.generate(
                **inputs,
                temperature=temperature,
                top_k=top_k,
                max_new_tokens=tokens,
                do_sample=True,
                pad_token_id=self._pad,
                streamer=told,
            )
        start = inputs["input_ids"].shape[1]
        return str(self._tokenizer.decode(drawn[0, start:], skip_special_tokens=True)).strip()

    # --- inner parts ------------------------------------------------------------------------------

    def _begin(self, model: Any, prompts: PromptForm) -> None:
        self._model, self._prompts, self._tokenizer = model, prompts, prompts.tokenizer
        model.get_output_embeddings().register_forward_pre_hook(_in_one_piece)

    def _draw(self, prompts: Sequence[Prompt], settings: dict[str, float]) -> list[str]:
        """One response to each prompt."""
        inputs = self._encoded(prompts)
        start = inputs["input_ids"].shape[1]
        with torch.no_grad():
            drawn = self._model.generate(**inputs, **settings, do_sample=True, pad_token_id=self._pad)
        ends = self._ends
        return [self._text(row[start:].tolist(), ends) for row in drawn]

    def _encoded(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """Token ids and mask, [n, L] each, padded at the left."""
        rows = [self._ids(prompt) for prompt in prompts]
        longest = max(map(len, rows))
        ids = [[self._pad] * (longest - len(row)) + row for row in rows]
        mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
        device = self._model.device
        return {
            "input_ids": torch.tensor(ids, device=device),
            "attention_mask": torch.tensor(mask, device=device),
        }

    def _ids(self, prompt: Prompt) -> list[int]:
        formed = self._prompts.prompt(prompt)
        return list(self._tokenizer(formed.text, add_special_tokens=not formed.complete)["input_ids"])

    @property
    def _ends(self) -> set[int]:
        """Tokens that end a response."""
        own = self._model.generation_config.eos_token_id
        listed = own if isinstance(own, list) else [own]
        return {token for token in (*listed, self._tokenizer.eos_token_id) if token is not None}

    @property
    def _pad(self) -> int:
        pad = self._tokenizer.pad_token_id
        return int(pad) if pad is not None else min(self._ends, default=0)

    def _text(self, ids: Sequence[int], ends: set[int]) -> str:
        place = next((index for index, token in enumerate(ids) if token in ends), None)
        text = str(self._tokenizer.decode(ids[:place], skip_special_tokens=True)).strip()
        return text if place is not None else whole_sentences(text)


def _in_one_piece(_: Any, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """The last states of prompts, cut out of all states: torch multiplies a cut-out text by text, with a copy
    of all words' weights for each, and what lies in one piece at once."""
    return tuple(states.contiguous() for states in given)


def _told(tokenizer: Any, tell: Callable[[str], None]) -> Any:
    """What transformers gives tokens to while it writes, and `tell` is given text by."""
    from transformers import TextStreamer

    class Telling(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            if text:
                tell(text)

    return Telling(tokenizer, skip_prompt=True, skip_special_tokens=True)


def _is_blank(prompt: Prompt) -> bool:
    said = [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt[-1:]]
    return not any(text.strip() for text in said)


def _check(prompts: Sequence[Prompt], count: int, tokens: int, temperature: float, top_k: int) -> None:
    if not prompts or any(map(_is_blank, prompts)):
        raise UsageError("the prompt is empty; say what the responses are to respond to")
    if count < 1 or tokens < 1:
        raise UsageError(f"{count} responses of {tokens} tokens can't be made; both must be at least 1")
    if not (0 < temperature <= 10 and top_k >= 1):
        raise UsageError(
            f"temperature is {temperature:g} and top-k {top_k}; "
            "the temperature must lie in (0, 10], and top-k be 1 or more"
        )


def best_of(
    rank: Callable[[str, Sequence[str]], list[Row]], generator: Generator, prompt: str, count: int, **how: Any
) -> list[Row]:
    """`count` responses of the generator to a prompt as `rank` orders them, the chosen one first.

    rank: `Device.rank`, or anything else from (prompt, responses) to rows, the best first. how: as for
    `Generator.responses`. Errors as both.
    """
    return rank(prompt, generator.responses(prompt, count, **how))


def whole_sentences(text: str) -> str:
    """`text` up to the end of its last whole sentence; all of it when it has none."""
    ends = [found.end() for found in _END.finditer(text)]
    return text[: ends[-1]] if ends else text
