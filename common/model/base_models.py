"""Base models by name: where their weights are, their digests, and what a folder of weights must hold."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from penchant.common.errors import BaseModelError
from penchant.common.model.packaged_models import (
    DEFAULT_MODEL,
    DIGESTS,
    MPNET,
    PACKAGED,
    PUBLISHED,
    SMOLLM2,
    check_weights,
    file_digest,
    smollm2,
)

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "*.model",
    # what single tokenizers of transformers read besides
    "*.spm",
    "bpe.codes",
    "byte_maps.json",
    "dict.txt",
    "emoji.json",
    "entity_vocab.json",
    "normalizer.json",
    "prophetnet.tokenizer",
    "target_vocab.json",
    "vocab-src.json",
    "vocab-tgt.json",
    "word_pronunciation.json",
    "word_shape.json",
)
_MODEL_FILES = ("config.json", *_WEIGHTS, *TOKENIZER_FILES)
CHAT_TEMPLATE = "chat_template.jinja"
_WRITING = ("generation_config.json", CHAT_TEMPLATE)  # read where a model writes text, and only there
_CONFIGURATIONS = ("config.json", "tokenizer_config.json", "generation_config.json")
CODE = "auto_map"  # the key under which a configuration names Python that transformers should run
CODE_BY_NAME = "_implementation"  # how the keys end whose values may name a kernel that comes from the hub


def base_digest(name: str) -> str:
    """`digest_of` the base model called so, without loading it."""
    return resolve(name)[1]


def resolve(name: str, *, templated: bool = False) -> tuple[Path, str]:
    """Name of a base model -> (its folder, its digest). BaseModelError when it is missing or wrong.

    templated: as for `digest_of`.
    """
    if name in PUBLISHED:
        packaged = PACKAGED[name]()
        folder = packaged or _download(PUBLISHED[name])
        check_weights(folder, name)
        digest = digest_of(folder)
        if packaged and digest != DIGESTS[name]:
            raise BaseModelError(
                f'base model "{name}": files in {folder} were changed; remove that folder and install its '
                "packages again"
            )
        return folder, digest
    if name == SMOLLM2:
        folder = smollm2()
        return folder, digest_of(folder)
    if Path(name).is_dir():
        folder = Path(name).resolve()
        return folder, digest_of(folder, templated=templated)
    if not HUB_ID.fullmatch(name):
        raise BaseModelError(
            f'base model "{name}" is not a folder, a hub id (owner/name), '
            f"{DEFAULT_MODEL}, {MPNET} or {SMOLLM2}"
        )
    folder = _download(name)
    return folder, digest_of(folder, templated=templated)


def digest_of(folder: Path, *, templated: bool = False) -> str:
    """sha256, in hex, over the files that make the model: for config, weights and tokenizer files sorted
    by name, `name NUL sha256-of-content-in-hex LF`. GGUF files hold all three and count as weights.

    These are all that `only_model_files` lets transformers see. templated: what is made of texts depends on
    the chat template too; where that is a file of its own, it counts as one of the tokenizer's.

    Raises:
        BaseModelError: the folder has no config or no safetensors (or GGUF) weights.
    """
    files = _files(folder, (*_MODEL_FILES, "*.gguf", *([CHAT_TEMPLATE] if templated else [])))
    names = {path.name for path in files}
    has_weights = any(name.endswith((".safetensors", ".gguf")) for name in names)
    if not has_weights or not ("config.json" in names or any(n.endswith(".gguf") for n in names)):
        raise BaseModelError(
            f"{folder} holds no base model: it needs config.json and *.safetensors; pickled weights "
            "(pytorch_model.bin) are never read, since reading them can run code"
        )
    total = hashlib.sha256()
    for path in files:
        total.update(f"{path.name}\0{file_digest(path)}\n".encode())
    return total.hexdigest()


@contextlib.contextmanager
def only_model_files(folder: Path, *, writing: bool = False) -> Iterator[Path]:
    """A folder for transformers to load from that holds the files of `digest_of` and nothing else.

    So no other file can change what is loaded: code, an adapter, files for other versions. For a model that
    writes text (`writing`), its chat template and settings of generation are there too; the latter change
    nothing but what it writes.

    Raises:
        BaseModelError: the folder's configuration asks for code, or for files outside of the folder.
    """
    files = _files(folder, (*_MODEL_FILES, *_WRITING) if writing else _MODEL_FILES)
    for path in files:
        if path.name in _CONFIGURATIONS:
            _refuse_code(path)
        if path.name.endswith(".index.json"):
            _refuse_other_weights(path, {file.name for file in files})
    with tempfile.TemporaryDirectory(prefix="penchant-model-") as view:
        for path in files:
            (Path(view) / path.name).symlink_to(path.resolve())
        yield Path(view)


def tokenizer_files(folder: Path) -> dict[str, bytes]:
    """The files of a base model's tokenizer, its chat template among them, by name."""
    return {path.name: path.read_bytes() for path in _files(folder, (*TOKENIZER_FILES, CHAT_TEMPLATE))}


def _download(hub_id: str) -> Path:
    """Fetch (or find in the hub's own cache) the files of a model. BaseModelError when that fails."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    try:
        wanted = [*_MODEL_FILES, *_WRITING]
        path = snapshot_download(hub_id, allow_patterns=wanted, ignore_patterns=["*/*"])
    except Exception as error:  # the hub client raises a dozen unrelated types
        reason = type(error).__name__
        raise BaseModelError(
            f'base model "{hub_id}" is not here and can\'t be fetched ({reason}); '
            "check the id and the network, or give a folder"
        ) from None
    return Path(path)


def _files(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    """The files of a folder that match, by name. A link to a file is one: the hub's cache is made of them."""
    return sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})


def _refuse_code(path: Path) -> None:
    """BaseModelError when a configuration asks for its own Python code, in any depth."""
    waiting: list[Any] = [_table(path)]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            if CODE in item:
                raise BaseModelError(
                    f"{path} brings its own code ({CODE}), which penchant never runs; "
                    "choose a base model that transformers knows by itself"
                )
            for key, value in item.items():
                if key.endswith(CODE_BY_NAME) and "/" in json.dumps(value):
                    raise BaseModelError(
                        f"{path} asks for code from elsewhere ({key}), which penchant never runs; "
                        "remove that line, or choose another base model"
                    )
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item


def _refuse_other_weights(path: Path, names: set[str]) -> None:
    """BaseModelError when an index names weights that are not among the model's files."""
    parts = _table(path).get("weight_map")
    if not isinstance(parts, dict) or not all(isinstance(p, str) and p in names for p in parts.values()):
        raise BaseModelError(f"{path} names weights that are not in this folder; get the base model again")


def _table(path: Path) -> dict[str, Any]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BaseModelError(f"can't read {path}: {type(error).__name__}; get the base model again") from None
    if not isinstance(table, dict):
        raise BaseModelError(f"{path} must hold a JSON object; get the base model again")
    return table
