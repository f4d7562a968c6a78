"""The frozen backbone: a Hugging Face encoder or causal model with its tokenizer, found, checked and loaded.

A base model is named by the default id (the weights come from an installed package), "smollm2-135m"
(likewise), a folder, or a hub id. Only hub ids may touch the network. Pickled weights are never read, code
that comes with a model is never run, and transformers sees the files that the digest covers and no others.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from penchant.common.config import ModelConfig
from penchant.common.errors import BaseModelError, ConfigError, PenchantError
from penchant.common.model.base_models import (
    HUB_ID,
    PUBLISHED,
    SMOLLM2,
    SMOLLM2_FILE,
    only_model_files,
    package_folder,
    resolve,
    unpacked_smollm2,
)
from penchant.common.model.modules import find_blocks
from penchant.common.printable import one_line


@dataclass(frozen=True)
class Backbone:
    """A loaded base model, in evaluation mode, its parameters frozen.

    `model` maps (input_ids, attention_mask) [b, L] to hidden states [b, L, hidden]; `digest` names
    the base model to others (see `digest_of`).
    """

    name: str
    model: nn.Module
    tokenizer: Any
    digest: str
    causal: bool  # later tokens don't change earlier states
    hidden: int
    pad_id: int
    max_tokens: int  # what the positions of the model allow at most, and the configuration asks for
    device: torch.device
    dtype: torch.dtype

    @property
    def blocks(self) -> tuple[str, nn.ModuleList]:
        """Path and list of the transformer blocks. BaseModelError when there is no such list."""
        return find_blocks(self.model)


def load_backbone(config: ModelConfig, *, device: str = "auto") -> Backbone:
    """Find, check and load a base model.

    Raises:
        BaseModelError: it is missing, its files are not what they should be, or it can't be loaded.
        ConfigError: it can't be quantised here.
    """
    place = _device(device)
    dtype = _dtype(config.dtype, place)
    quantised = config.quantize == "4bit"
    if quantised:
        _check_quantising(place)
    folder, digest = resolve(config.base_model)
    model, tokenizer = _load(config.base_model, folder, dtype, place if quantised else None)
    model.requires_grad_(False).eval()
    if not quantised:  # quantised weights are made where they stay
        model.to(place)
    settings: Any = model.config
    hidden = int(settings.hidden_size)
    pad = getattr(settings, "pad_token_id", None)
    limit = int(getattr(settings, "max_position_embeddings", 0) or config.max_tokens)
    if getattr(settings, "model_type", "") in ("roberta", "xlm-roberta", "camembert", "mpnet"):
        limit -= int(pad or 0) + 1  # their positions start behind the padding index
    return Backbone(
        name=config.base_model,
        model=model,
        tokenizer=tokenizer,
        digest=digest,
        causal=_is_causal(model, place),
        hidden=hidden,
        pad_id=int(pad) if pad is not None else 0,
        max_tokens=min(config.max_tokens, limit),
        device=place,
        dtype=dtype,
    )


def load_generator(name: str, *, device: str = "auto") -> tuple[Any, Any]:
    """A causal language model that writes responses, with its tokenizer; its weights may be a base model's.

    Raises:
        BaseModelError: it is missing, its files are not what they should be, or it can't write text.
    """
    place = _device(device)
    folder, _ = resolve(name)
    with _readable(name, folder, writing=True) as (transformers, _, view):
        tokenizer = _tokenizer(view, transformers)
        model, found = transformers.AutoModelForCausalLM.from_pretrained(
            str(view),
            local_files_only=True,
            trust_remote_code=False,
            dtype=_dtype("auto", place),
            use_safetensors=True,
            output_loading_info=True,
        )
    tied = {"lm_head.weight"} if getattr(model.config, "tie_word_embeddings", False) else set()
    missing = set(found["missing_keys"]) - tied
    if missing or not model.can_generate():
        raise BaseModelError(f'base model "{name}" cannot write text: it has no weights for that')
    return model.eval().requires_grad_(False).to(place), tokenizer


# --- loading --------------------------------------------------------------------------------------


def _check_quantising(place: torch.device) -> None:
    """ConfigError, in one line, unless 4-bit weights can be held and computed with here."""
    if package_folder("bitsandbytes") is None:
        raise ConfigError(
            "model.quantize is 4bit, which needs bitsandbytes: pip install 'penchant[gpu]', or set it to none"
        )
    if place.type != "cuda":
        raise ConfigError(
            f"model.quantize is 4bit, which needs a CUDA GPU, not {place.type}; set it to none here"
        )


def _load(
    name: str, folder: Path, dtype: torch.dtype, quantised_on: torch.device | None = None
) -> tuple[nn.Module, Any]:
    """Model and tokenizer; on `quantised_on` with linear weights in NF4 (QLoRA, Dettmers et al. 2023)."""
    with _readable(name, folder) as (transformers, place, view):
        tokenizer = _tokenizer(view, transformers)
        more: dict[str, Any] = {}
        if quantised_on is not None:
            more["device_map"] = {"": quantised_on}
            more["quantization_config"] = transformers.BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=dtype,
            )
        model = transformers.AutoModel.from_pretrained(
            str(view),
            local_files_only=True,
            trust_remote_code=False,
            dtype=dtype,
            use_safetensors=True,
            **more,
        )
        model.name_or_path = str(place)  # not the view, which is gone after this
    return model, tokenizer


@contextlib.contextmanager
def _readable(name: str, folder: Path, *, writing: bool = False) -> Iterator[tuple[Any, Path, Path]]:
    """(transformers, the folder with the model, what transformers may read of it)."""
    with _quiet_transformers() as transformers, _named(name):
        if name == SMOLLM2:
            folder = unpacked_smollm2(folder / SMOLLM2_FILE, transformers)
        with only_model_files(folder, writing=writing) as view:
            yield transformers, folder, view


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """What goes wrong while a model loads, in one line that names it."""
    try:
        yield
    except PenchantError:
        raise
    except Exception as error:  # a foreign folder can make transformers raise anything
        said = str(error).strip().splitlines()
        reason = one_line(said[0]) if said else type(error).__name__
        raise BaseModelError(f'base model "{name}" can\'t be loaded: {reason}') from error


def _tokenizer(view: Path, transformers: Any) -> Any:
    return transformers.AutoTokenizer.from_pretrained(
        str(view), local_files_only=True, trust_remote_code=False
    )


def _is_causal(model: nn.Module, device: torch.device) -> bool:
    """Ask the model itself: does another second token change the first token's state?"""
    ids = torch.tensor([[5, 6], [5, 7]], device=device)
    with torch.no_grad():
        states = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    return bool(torch.allclose(states[0, 0], states[1, 0], atol=1e-6))


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if fast else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


_loading = threading.Lock()


class _quiet_transformers:  # noqa: N801  a context manager reads like a function
    """Import transformers, without its progress bars and advice while a model loads."""

    def __enter__(self) -> Any:
        _loading.acquire()
        import transformers

        self._logging: Any = transformers.utils.logging
        self._verbosity = self._logging.get_verbosity()
        self._logging.disable_progress_bar()
        self._logging.set_verbosity_error()
        return transformers

    def __exit__(self, *_: object) -> None:
        self._logging.set_verbosity(self._verbosity)
        _loading.release()


def published(backbone: Backbone) -> str:
    """Where transformers finds the same weights: a hub id, or the folder on this machine."""
    if backbone.name in PUBLISHED:
        return PUBLISHED[backbone.name]
    if HUB_ID.fullmatch(backbone.name) and not Path(backbone.name).is_dir():
        return backbone.name
    return str(Path(str(getattr(backbone.model, "name_or_path", "")) or backbone.name).resolve())
