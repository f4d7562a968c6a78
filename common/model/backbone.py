"""The frozen backbone: a Hugging Face encoder or causal model with its tokenizer, found, checked and loaded.

A base model is named by the default id (the weights come from an installed package), "smollm2-135m"
(likewise), a folder, or a hub id. Only hub ids may touch the network. Pickled weights are never read, code
that comes with a model is never run, and transformers sees the files that the digest covers and no others.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from penchant.common.config import ModelConfig
from penchant.common.errors import BaseModelError, ConfigError, PenchantError
from penchant.common.model.base_models import HUB_ID, TOKENIZER_FILES, only_model_files, resolve
from penchant.common.model.log_probability import Unembedding
from penchant.common.model.modules import find_blocks
from penchant.common.model.packaged_models import (
    PUBLISHED,
    SMOLLM2,
    SMOLLM2_FILE,
    package_folder,
    unpacked_smollm2,
)
from penchant.common.printable import one_line

ENCODER, LANGUAGE_MODEL = "encoder", "language_model"
_ENDS = ("a", "the motion, on 12 bills", "\u16a0 \u2e2e")  # of a word, of words, of what no word list has
_NO_WRITER = (
    'base model "{}" is no causal language model, and a policy must write; choose one (smollm2-135m, say), '
    "or learn a reward model (objective reward)"
)
_LOOKED_AT = 1 << 20  # values at a time
_UNREAD_WEIGHTS = ("pooler",)  # often not saved, and never read here


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
    part: str = ""  # what is read of the model that the folder holds, where not all: its encoder, say
    classifier: str = ""  # where a transformers classifier of this family keeps the model; "" if none can be
    padding: str = ""  # the token that such a classifier's texts are filled up with: no text ends with it
    unembedding: Unembedding | None = None  # where an objective asks for it: what makes words of states
    language_model: Any = None  # where an objective asks for it: the whole, of which `model` is a part
    writer: str = ""  # where transformers' language model of this family keeps the model, "model" for Llama

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
    writes = not config.rule.has_head
    folder, digest = resolve(config.base_model, templated=writes and config.template == "auto")
    whole, tokenizer, absent = _load(config.base_model, folder, dtype, place if quantised else None, writes)
    whole.requires_grad_(False).eval()
    if not quantised:  # quantised weights are made where they stay
        whole.to(place)
    unembedding, writer = None, ""
    if writes:
        model, writer, unembedding = _writing_part(whole, absent, config)
        part = ""
        _check_weights(model, writer, absent, config.base_model)
    else:
        model, part = _text_part(whole, config.base_model)
        digest = _cut(model, part, config, digest)
        _check_weights(model, part, absent, config.base_model)
    _check_tokenizer(model, tokenizer, config.base_model)
    settings: Any = model.config
    hidden = int(settings.hidden_size)
    pad = _pad_id(settings, rows=_vocabulary(model))
    limit = int(getattr(settings, "max_position_embeddings", 0) or config.max_tokens)
    if getattr(settings, "model_type", "") in ("roberta", "xlm-roberta", "camembert", "mpnet"):
        limit -= int(settings.pad_token_id or 0) + 1  # their positions start behind the padding index
    causal = _is_causal(model, place)
    classifier = _classifier(model) if causal and not part and not writes else ""
    return Backbone(
        name=config.base_model,
        model=model,
        tokenizer=tokenizer,
        digest=digest,
        causal=causal,
        hidden=hidden,
        pad_id=pad,
        max_tokens=min(config.max_tokens, limit),
        device=place,
        dtype=dtype,
        part=part,
        classifier=classifier,
        padding=_padding(model, tokenizer) if classifier else "",
        unembedding=unembedding,
        language_model=whole if writes else None,
        writer=writer,
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


def load_classifier(name: str, dtype: torch.dtype, blocks: int = 0) -> tuple[Any, Any]:
    """A base model as transformers' classifier of one label, with a head that is made up, on the CPU; and its
    tokenizer. blocks: how many of its blocks are used, the first ones; 0 for all.

    BaseModelError: its files are not what they should be, or transformers has no such classifier.
    """
    folder, _ = resolve(name)
    with _readable(name, folder) as (transformers, _, view):
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            str(view),
            num_labels=1,
            local_files_only=True,
            trust_remote_code=False,
            dtype=dtype,
            use_safetensors=True,
            **({"num_hidden_layers": blocks} if blocks else {}),
        )
        return model.eval().requires_grad_(False), _tokenizer(view, transformers)


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
    name: str,
    folder: Path,
    dtype: torch.dtype,
    quantised_on: torch.device | None = None,
    writes: bool = False,
) -> tuple[nn.Module, Any, list[str]]:
    """Model, tokenizer, and the tensors that the folder has no weights for; on `quantised_on` with linear
    weights in NF4 (QLoRA, Dettmers et al. 2023). writes: a language model with what makes its words."""
    with _readable(name, folder, writing=writes) as (transformers, place, view):
        if not any(path.match(pattern) for path in view.iterdir() for pattern in TOKENIZER_FILES):
            raise BaseModelError(
                f'base model "{name}" has no tokenizer files; save its tokenizer into {place} as well'
            )
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
        if writes:
            _check_family(name, view, transformers)
        kind = transformers.AutoModelForCausalLM if writes else transformers.AutoModel
        model, found = kind.from_pretrained(
            str(view),
            local_files_only=True,
            trust_remote_code=False,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            **more,
        )
        model.name_or_path = str(place)  # not the view, which is gone after this
    return model, tokenizer, sorted(found["missing_keys"])


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


def _text_part(whole: nn.Module, name: str) -> tuple[nn.Module, str]:
    """(what reads texts, its name in the model): the encoder where a model can't be read without a decoder's
    input, the language model where it also looks at pictures, else the whole model.

    Raises:
        BaseModelError: the model can't be read by tokens alone.
    """
    settings: Any = whole.config
    if not hasattr(settings, "hidden_size") and isinstance(getattr(whole, LANGUAGE_MODEL, None), nn.Module):
        return _named_part(whole, LANGUAGE_MODEL)
    ids = torch.tensor([[0, 1]], device=next(whole.parameters()).device)
    try:
        with torch.no_grad():
            whole(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state  # noqa: B018
    except Exception as error:  # each family refuses in its own way
        if getattr(settings, "is_encoder_decoder", False) and isinstance(
            getattr(whole, ENCODER, None), nn.Module
        ):
            return _named_part(whole, ENCODER)
        raise BaseModelError(
            f'base model "{name}": {type(whole).__name__} gives no states for tokens alone '
            f"({type(error).__name__}); choose an encoder or a causal language model"
        ) from error
    if not hasattr(settings, "hidden_size"):
        raise BaseModelError(
            f'base model "{name}": {type(whole).__name__} does not say how wide its states are; '
            "choose an encoder or a causal language model"
        )
    return whole, ""


def _cut(model: nn.Module, part: str, config: ModelConfig, digest: str) -> str:
    """Leave the model its first `config.blocks` blocks, where it is to use no more; -> the digest of what is
    left, and of what is read of it.

    A model that is cut, or read in two places, is another model: its digest keeps them apart wherever models
    are held against each other, or their states are kept.

    Raises:
        BaseModelError: it has fewer blocks, or has to be cut inside a larger model.
    """
    if not (config.blocks or config.beside):
        return digest
    blocks = find_blocks(model)[1]
    if config.beside >= len(blocks):
        raise BaseModelError(
            f'base model "{config.base_model}" has {len(blocks)} blocks, and model.beside is '
            f"{config.beside}; it can be one before the last, {len(blocks) - 1} at most"
        )
    if config.beside:
        digest = hashlib.sha256(f"{digest} beside {config.beside}".encode()).hexdigest()
    if not config.blocks:
        return digest
    there = len(blocks)
    if config.blocks > there:
        raise BaseModelError(
            f'base model "{config.base_model}" has {there} blocks, and model.blocks is {config.blocks}; ask '
            f"for {there} at most, or for 0, which stands for all"
        )
    if part == LANGUAGE_MODEL:
        raise BaseModelError(
            f'base model "{config.base_model}" is a part of a model that looks at pictures, and can\'t be '
            "cut; set model.blocks to 0"
        )
    del blocks[config.blocks :]
    settings: Any = model.config
    settings.num_hidden_layers = config.blocks
    return hashlib.sha256(f"{digest} blocks {config.blocks}".encode()).hexdigest()


def _check_family(name: str, view: Path, transformers: Any) -> None:
    """BaseModelError unless transformers knows models of this family that write text."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as NAMES

    settings = transformers.AutoConfig.from_pretrained(
        str(view), local_files_only=True, trust_remote_code=False
    )
    if settings.model_type not in NAMES:
        raise BaseModelError(_NO_WRITER.format(name))


def _writing_part(
    whole: nn.Module, absent: list[str], config: ModelConfig
) -> tuple[nn.Module, str, Unembedding]:
    """(what makes states of tokens, its name in the language model, what makes words of states).

    Raises:
        BaseModelError: the model reads texts in both directions, or can't write, or its words are no linear
            map of its states.
    """
    name, causal = config.base_model, whole
    writer = str(getattr(causal, "base_model_prefix", ""))
    inner: Any = getattr(causal, writer, None) if writer else None
    if not isinstance(inner, nn.Module) or not hasattr(inner.config, "hidden_size"):
        raise BaseModelError(_NO_WRITER.format(name))
    place = next(inner.parameters()).device
    if not _is_causal(inner, place):
        raise BaseModelError(_NO_WRITER.format(name))
    output: Any = causal.get_output_embeddings()  # type: ignore[operator]
    tied = bool(getattr(causal.config, "tie_word_embeddings", False))
    missing = [tensor for tensor in absent if not tensor.startswith(f"{writer}.")]
    if not isinstance(output, nn.Linear) or (missing and not tied):
        raise BaseModelError(
            f'base model "{name}" cannot write text: it has no weights for that; get the whole language '
            "model, or learn a reward model (objective reward)"
        )
    unembedding = Unembedding(output.weight, output.bias)
    ids = torch.tensor([[5, 6, 7]], device=place)
    with torch.no_grad():
        expected = causal(input_ids=ids).logits
        found = unembedding.logits(inner(input_ids=ids).last_hidden_state[0])
    if (found - expected[0]).norm() > 1e-2 * expected.norm():
        raise BaseModelError(
            f'base model "{name}" makes its words in a way that penchant does not know (such as capped or '
            "scaled logits); choose another causal language model"
        )
    read: Any = inner
    read.name_or_path = str(causal.name_or_path)
    return inner, writer, unembedding


def _named_part(whole: nn.Module, name: str) -> tuple[nn.Module, str]:
    part: Any = getattr(whole, name)
    part.name_or_path = str(getattr(whole, "name_or_path", ""))
    return part, name


def _check_weights(model: nn.Module, part: str, absent: list[str], name: str) -> None:
    """BaseModelError unless every weight that is read was in the folder, and is a number."""
    here = {tensor for tensor, _ in model.named_parameters()}
    inside = [tensor.removeprefix(f"{part}.") for tensor in absent]
    missing = [t for t in inside if t in here and not any(word in t for word in _UNREAD_WEIGHTS)]
    if missing:
        raise BaseModelError(
            f'base model "{name}" has no weights for {missing[0]}'
            f"{f' and {len(missing) - 1} more' if len(missing) > 1 else ''}; get the base model again"
        )
    for tensor, weight in model.named_parameters():
        if weight.is_floating_point() and not _finite(weight):
            raise BaseModelError(
                f'base model "{name}": the weights of {tensor} hold values that are no numbers; '
                "get the base model again"
            )


def _finite(weight: torch.Tensor) -> bool:
    """Whether all values are numbers. Looked at in parts: a look takes as much memory as what it looks at."""
    return all(
        bool(torch.isfinite(part).all()) for part in torch.split(weight.detach().flatten(), _LOOKED_AT)
    )


def _check_tokenizer(model: nn.Module, tokenizer: Any, name: str) -> None:
    """BaseModelError for a tokenizer that knows no word at all: transformers makes one out of nothing."""
    special = set(tokenizer.all_special_ids)
    if all(number in special for number in range(len(tokenizer))):
        raise BaseModelError(
            f'base model "{name}" has a tokenizer without a vocabulary; save its tokenizer into the folder'
        )


def _vocabulary(model: nn.Module) -> int:
    """How many tokens a model has an embedding for."""
    embeddings: Any = model.get_input_embeddings()  # type: ignore[operator]
    return int(embeddings.weight.shape[0])


def _pad_id(settings: Any, rows: int) -> int:
    """The token that texts are filled up with, under the mask: any that there is; 0 where none is named."""
    pad = getattr(settings, "pad_token_id", None)
    return int(pad) if isinstance(pad, int) and 0 <= pad < rows else 0


def _classifier(model: nn.Module) -> str:
    """Where `AutoModelForSequenceClassification` keeps a model of this family, "transformer" for GPT-2; empty
    where there is no such class."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as NAMES,
    )

    settings: Any = model.config
    return str(model.base_model_prefix) if settings.model_type in NAMES else ""


def _padding(model: nn.Module, tokenizer: Any) -> str:
    """A special token that a classifier's texts can be filled up with; empty where there is none.

    A classifier reads a text's last token that is no padding. So no text may end with it: not with EOS where
    the tokenizer adds one, nor with the unknown token where there are unknown words.
    """
    settings: Any = model.config
    ends = {token for text in _ENDS for token in tokenizer(text).input_ids[-1:]}
    special = tokenizer.all_special_ids
    own = (tokenizer.pad_token_id, getattr(settings, "pad_token_id", None), tokenizer.eos_token_id)
    rows = _vocabulary(model)
    for token in (*own, *special):
        if token in special and token not in ends and 0 <= token < rows:
            return str(tokenizer.convert_ids_to_tokens(token))
    return ""


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
