"""Base models as GGUF files, and what llama.cpp says with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

_CALLED = {"mistral": "llama", "gemma3_text": "gemma3"}
_ALL = 1 << 20  # tokens


def architecture_of(family: str) -> str:
    """What llama.cpp calls a family of transformers."""
    return _CALLED.get(family, family)


def write_base(causal: Any, path: Path) -> None:
    """A language model of transformers, in float32, as llama.cpp's converter would write it; its words are
    made up, for it is asked by tokens."""
    settings = causal.config
    architecture = architecture_of(settings.model_type)
    width = getattr(settings, "head_dim", None) or settings.hidden_size // settings.num_attention_heads
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(settings.max_position_embeddings)
    writer.add_embedding_length(settings.hidden_size)
    writer.add_block_count(settings.num_hidden_layers)
    writer.add_feed_forward_length(settings.intermediate_size)
    writer.add_head_count(settings.num_attention_heads)
    writer.add_head_count_kv(settings.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_layer_norm_rms_eps(settings.rms_norm_eps)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(_rope_base(settings))
    if architecture == "gemma3":
        writer.add_sliding_window(settings.sliding_window)
    writer.add_vocab_size(settings.vocab_size)
    writer.add_tokenizer_model("llama")
    words = ["<unk>", "<s>", "</s>", *(f"w{number}" for number in range(3, settings.vocab_size))]
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    writer.add_token_list(words)
    writer.add_token_scores([0.0] * len(words))
    writer.add_token_types(kinds + [gguf.TokenType.NORMAL] * (len(words) - len(kinds)))
    names = gguf.get_tensor_name_map(
        next(key for key, known in gguf.MODEL_ARCH_NAMES.items() if known == architecture),
        settings.num_hidden_layers,
    )
    heads = {"attn_q": settings.num_attention_heads, "attn_k": settings.num_key_value_heads}
    for name, tensor in causal.state_dict().items():
        if name == "lm_head.weight" and settings.tie_word_embeddings:
            continue
        rows = tensor.float().numpy()
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        kind = found.split(".")[-2]
        if architecture == "llama" and kind in heads:
            rows = rows[paired(heads[kind], width)]
        if architecture.startswith("gemma") and kind.endswith("norm"):
            rows = rows + 1
        writer.add_tensor(found, np.ascontiguousarray(rows))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def paired(heads: int, width: int) -> list[int]:
    """Which row of a Llama of transformers stands at each place in llama.cpp: a head's row, and beside it the
    one that is half a head further."""
    order = []
    for head in range(heads):
        for row in range(width // 2):
            order += [head * width + row, head * width + width // 2 + row]
    return order


def _rope_base(settings: Any) -> float:
    given = settings.rope_parameters
    return float(given.get("full_attention", given)["rope_theta"])


class LlamaCpp:
    """llama.cpp with a base model, and with an adapter over it where one is given."""

    def __init__(self, base: Path, adapter: Path | None = None, scale: float = 1.0) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(base)
        params.n_ctx, params.n_parallel, params.warmup = 64, 1, False
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.verbosity = 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        if adapter is not None:
            lora = xllamacpp.CommonAdapterLoraInfo()
            lora.path, lora.scale = str(adapter), scale
            params.lora_adapters = [lora]
        self._server = xllamacpp.Server(params)

    def log_probabilities(self, tokens: Sequence[int]) -> dict[int, float]:
        """Of every token, as the next one after some."""
        asked = {"prompt": list(tokens), "n_predict": 1, "n_probs": _ALL, "temperature": 0.0}
        (choice,) = self._server.handle_completions(asked)["choices"]
        (place,) = choice["logprobs"]["content"]
        return {found["id"]: found["logprob"] for found in place["top_logprobs"]}
