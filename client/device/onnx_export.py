"""A personal model as one ONNX file, which a runtime without torch can score with.

The base model's weights are in it, so nothing else is needed but the tokenizer, which lies beside it. Whether
a base model can be written so is found out by doing it: the file is loaded in onnxruntime before the export
ends, and must give the model's own scores.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from penchant.client.device.conversation_form import form_said
from penchant.client.device.export import PERSONAL, export_folder
from penchant.client.learning.merged_model import MergedModel
from penchant.common.errors import BaseModelError, UsageError
from penchant.common.model.factors import MergedWeights
from penchant.common.model.reward import load_reward_model
from penchant.common.model.standalone import StandaloneScorer
from penchant.common.printable import one_line

__all__ = ["MODEL_FILE", "export_onnx"]

MODEL_FILE = "model.onnx"
WEIGHTS_FILE = "model.onnx.data"  # beside a model that is too large for one file
TOKENIZER_FILE = "tokenizer.json"
CARD_FILE = "README.md"

ONE_FILE_MOST = 1 << 30  # bytes of weights; a file of ONNX ends at 2 GiB
NEAR = 1e-4  # of scores, and of their size
_TRIED = ("a", "the motion, on 12 bills", "the table", "He said it. " * 400, "")
_INPUTS, _OUTPUT = ("input_ids", "attention_mask"), "scores"


def export_onnx(merged: MergedModel, directory: Path) -> None:
    """Write the model, its tokenizer and a card into `directory`, which is made and must be empty; all of it,
    or nothing.

    Raises:
        UsageError: the model has no score head, its base has 4-bit weights, the directory is in use, or what
            this needs is not installed.
        BaseModelError: torch can't write the base model as ONNX, or what it wrote scores otherwise.
        DeviceError: it can't be written.
    """
    onnxruntime = _runtime()
    if not merged.settings.rule.has_head:
        raise UsageError("a policy writes and has no score head; ONNX is for models that rank: use peft")
    if merged.settings.quantize != "none":
        raise UsageError("ONNX would hold other weights than the 4-bit ones that this model ranks with")
    own = _in_float32(merged)
    with export_folder(directory) as folder:
        folder.write({TOKENIZER_FILE: own.model.tokenizer_json(), CARD_FILE: _card(own).encode()})
        scorer = own.model.standalone(own.weights)
        large = _bytes_of(scorer) > ONE_FILE_MOST
        folder.write(dict.fromkeys((MODEL_FILE, WEIGHTS_FILE)[: 1 + large], b""))  # for the owner alone
        _write(scorer, own.settings.base_model, directory / MODEL_FILE, large)
        _check(own, directory, onnxruntime)


# --- inner parts --------------------------------------------------------------------------------------


def _runtime() -> Any:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  torch writes with it
    except ModuleNotFoundError as missing:
        raise UsageError(f"ONNX needs {missing.name}; install penchant[onnx]") from None
    found: Any = onnxruntime
    return found


def _in_float32(merged: MergedModel) -> MergedModel:
    """The same model in float32 on the CPU, where it is not there."""
    model = merged.model
    if model.dtype is torch.float32 and model.device.type == "cpu":
        return merged
    settings = replace(merged.settings, dtype="float32")
    weights = merged.weights
    moved = MergedWeights(
        {name: (a.float().cpu(), b.float().cpu()) for name, (a, b) in weights.adapters.items()},
        weights.head.float().cpu(),
        {name: change.float().cpu() for name, change in weights.base.items()},
    )
    loaded = load_reward_model(settings, merged.adapter, device="cpu")
    return replace(merged, model=loaded, weights=moved, settings=settings)


def _bytes_of(scorer: StandaloneScorer) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in scorer.state_dict().values())


def _write(scorer: StandaloneScorer, base_model: str, path: Path, large: bool) -> None:
    try:
        with _quiet():
            _program(scorer).save(str(path), external_data=large)
    except OSError:
        raise
    except Exception as error:  # each family refuses in its own way
        said = one_line(f"{type(error).__name__}: {error}".splitlines()[0])
        raise BaseModelError(
            f'base model "{base_model}" can\'t be written as ONNX ({said}); use peft'
        ) from error


def _program(scorer: StandaloneScorer) -> Any:
    """What torch makes of the model for any number of texts of any length, without its notes on each step,
    which name folders of this machine."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    ids = torch.tensor([[1, 2, 3], [1, 2, 0], [1, 0, 0]])  # [texts, tokens], as `_INPUTS`
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0]])
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    with torch.no_grad():
        program: Any = torch.onnx.export(
            scorer,
            (ids, mask),
            dynamo=True,
            input_names=_INPUTS,
            output_names=[_OUTPUT],
            dynamic_shapes=(free, free),
            verbose=False,
        )
    ClearMetadataAndDocStringPass()(program.model)
    return program


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's notes on how it writes ONNX."""
    log = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)


def _check(merged: MergedModel, directory: Path, onnxruntime: Any) -> None:
    """BaseModelError unless what lies in the folder scores texts as the model does, in a batch and alone."""
    own = merged.scores([("", text) for text in _TRIED])
    try:
        together = _scores(directory, _TRIED, onnxruntime)
        alone = [_scores(directory, [text], onnxruntime)[0] for text in _TRIED[:2]]
    except Exception as error:  # of a file that it can't load, or can't compute with
        said = one_line(f"{type(error).__name__}: {error}".splitlines()[0])
        raise BaseModelError(f"onnxruntime can't use what torch wrote as ONNX ({said}); use peft") from error
    pairs = [*zip(together, own, strict=True), *zip(alone, own, strict=False)]
    off = [abs(found - right) / max(1.0, abs(right)) for found, right in pairs]
    if not all(one <= NEAR for one in off):  # a score that is no number is not near either
        raise BaseModelError(f"as ONNX a score is {max(off):.3g} off, and {NEAR:g} is the most; use peft")


def _scores(directory: Path, texts: Sequence[str], onnxruntime: Any) -> list[float]:
    """What the card's lines give for some texts."""
    from tokenizers import Tokenizer

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(
        str(directory / MODEL_FILE), options, providers=["CPUExecutionProvider"]
    )
    rows = Tokenizer.from_file(str(directory / TOKENIZER_FILE)).encode_batch(list(texts))
    tokens = (np.array([row.ids for row in rows]), np.array([row.attention_mask for row in rows]))
    (found,) = session.run([_OUTPUT], dict(zip(_INPUTS, tokens, strict=True)))
    return [float(score) for score in found]


def _card(merged: MergedModel) -> str:
    base = merged.settings.base_model
    return f"""---
base_model: {merged.model.published}
library_name: onnx
tags: [reward-model, personal, penchant]
---

{PERSONAL}
It is one ONNX file: the base model, low-rank factors and score head together.
It was learned with penchant, share `{merged.adapter.share}`.

Base model: `{base}`, penchant digest `{merged.model.digest}`. Its weights are in the file, under its licence.

```python
import numpy as np, onnxruntime
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file("./{TOKENIZER_FILE}")  # cuts and fills up texts as the model reads them
session = onnxruntime.InferenceSession("./{MODEL_FILE}")
def scores(texts):  # prompt + response of each
    rows = tokenizer.encode_batch(texts)
    ids, mask = np.array([row.ids for row in rows]), np.array([row.attention_mask for row in rows])
    return session.run(["{_OUTPUT}"], {{"{_INPUTS[0]}": ids, "{_INPUTS[1]}": mask}})[0].tolist()
```

Differences of scores are log-odds (Bradley and Terry): the probability that the first of two is preferred is
`1 / (1 + exp(score of the second - score of the first))`.

{form_said(merged.conversations)}
"""
