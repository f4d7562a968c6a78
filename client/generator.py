"""A policy step without training a policy: generate n responses, let the personal model choose (best-of-n).

The generator is any causal language model, frozen and the same for everybody; what makes the choice
personal is the reward model that ranks its responses (Stiennon et al., *Learning to summarize from human
feedback*, NeurIPS 2020; Gao et al., *Scaling Laws for Reward Model Overoptimization*, ICML 2023). Both run on
the device: neither prompt nor responses leave it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from penchant.common.backbone import load_generator
from penchant.common.errors import UsageError

__all__ = ["Generator", "best_of", "whole_sentences"]

Row = TypeVar("Row")

_END = re.compile(r"[.!?][\"')\]]*(?=\s|$)")  # of a sentence
_TRIES = 3  # times as many responses as asked for, at most, to find distinct ones
_BATCH = 32  # responses generated together


class Generator:
    """Responses of a causal language model, drawn by seed.

    Args:
        name: "smollm2-135m" (the weights come from an installed package), a folder, or a hub id.
        device: "auto", or a torch device.

    Raises:
        BaseModelError: it is missing, damaged, or no causal language model.
    """

    def __init__(self, name: str, *, device: str = "auto") -> None:
        self._model, self._tokenizer = load_generator(name, device=device)

    def responses(
        self,
        prompt: str,
        count: int,
        *,
        seed: int = 0,
        tokens: int = 96,
        temperature: float = 0.8,
        top_p: float = 0.9,
    ) -> list[str]:
        """`count` distinct responses to a prompt, by nucleus sampling (Holtzman et al., ICLR 2020).

        A model with a chat template gets the prompt as a user's message, another one as text to go on from.
        tokens: a response that runs into this limit is cut back to its last whole sentence, if it has one.
        A small model repeats itself: fewer come back if three times as many hold no more that differ. The
        same seed gives the same responses on the same machine, and leaves torch's own generator alone.

        Raises:
            UsageError: the prompt is blank, or a number is out of range.
        """
        self._check(prompt, count, tokens, temperature, top_p)
        found: dict[str, None] = {}
        batch = min(count, _BATCH)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for _ in range(-(-_TRIES * count // batch)):
                settings = {"temperature": temperature, "top_p": top_p, "max_new_tokens": tokens}
                found.update(dict.fromkeys(text for text in self._draw(prompt, batch, settings) if text))
                if len(found) >= count:
                    break
        return list(found)[:count]

    # --- inner parts ------------------------------------------------------------------------------

    def _check(self, prompt: str, count: int, tokens: int, temperature: float, top_p: float) -> None:
        if not prompt.strip():
            raise UsageError("the prompt is empty; say what the responses are to respond to")
        if count < 1 or tokens < 1:
            raise UsageError(f"{count} responses of {tokens} tokens can't be made; both must be at least 1")
        if not (0 < temperature <= 10 and 0 < top_p <= 1):
            raise UsageError(
                f"temperature is {temperature:g} and top-p {top_p:g}; "
                "the one must lie in (0, 10], the other in (0, 1]"
            )

    def _draw(self, prompt: str, count: int, settings: dict[str, float]) -> list[str]:
        inputs = self._encoded(prompt)
        start = inputs["input_ids"].shape[1]
        with torch.no_grad():
            drawn = self._model.generate(
                **inputs,
                **settings,
                do_sample=True,
                top_k=0,
                num_return_sequences=count,
                pad_token_id=self._pad,
            )
        ends = self._ends
        return [self._text(row[start:].tolist(), ends) for row in drawn]

    def _encoded(self, prompt: str) -> dict[str, Any]:
        """Token ids and mask, [1, L] each."""
        tokenizer = self._tokenizer
        if tokenizer.chat_template:
            message = [{"role": "user", "content": prompt.strip()}]
            encoded = tokenizer.apply_chat_template(
                message, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
        else:
            encoded = tokenizer(prompt, return_tensors="pt")
        return {name: encoded[name].to(self._model.device) for name in ("input_ids", "attention_mask")}

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


def best_of(
    rank: Callable[[str, Sequence[str]], list[Row]], generator: Generator, prompt: str, count: int, **how: Any
) -> list[Row]:
    """`count` responses of the generator to a prompt as `rank` orders them, the chosen one first.

    rank: `Home.rank`, or anything else from (prompt, responses) to rows, the best first. how: as for
    `Generator.responses`. Errors as both.
    """
    return rank(prompt, generator.responses(prompt, count, **how))


def whole_sentences(text: str) -> str:
    """`text` up to the end of its last whole sentence; all of it when it has none."""
    ends = [found.end() for found in _END.finditer(text)]
    return text[: ends[-1]] if ends else text
