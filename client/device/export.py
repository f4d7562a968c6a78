"""A personal model as plain files: one LoRA adapter in peft's format, the score head, and a model card.

Shared and personal part become one adapter over `AutoModel`; a kernel or a diagonal is folded in. Whoever
has torch, transformers and peft can run it: the card holds the few lines that do. Where a causal model is
pooled at its last token and not normalised, the same adapter with its head also loads as
`AutoModelForSequenceClassification`, which is tried before the export ends. LoRe has no adapter: its head on
the frozen embedding is all there is.
A model without a head (objectives such as dpo) is a policy: one adapter over `AutoModelForCausalLM`, which
writes and by whose log-probabilities responses are scored; where it is asked for, also as a GGUF file.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from safetensors.torch import save as save_tensors
from torch import Tensor

from penchant.client.device.classifier import disagreement, unfit
from penchant.client.device.conversation_form import form_said
from penchant.client.device.gguf_adapter import GGUF_FILE, GgufAdapter
from penchant.client.learning.merged_model import MergedModel
from penchant.common.config import AdapterConfig, ModelConfig
from penchant.common.errors import DeviceError, UsageError
from penchant.common.model.factors import MergedWeights
from penchant.common.objectives import Objective
from penchant.common.settings import section_table
from penchant.common.storage import erase

__all__ = ["PERSONAL", "Export", "ExportFolder", "export_folder", "export_peft", "snippet"]

ADAPTER_FILE = "adapter_model.safetensors"
HEAD_FILE = "head.safetensors"
SETTINGS_FILE = "penchant.json"
CARD_FILE = "README.md"
CLASSIFIER = "sequence-classification"

PERSONAL = """# A personal reward model

It ranks responses as one person would: the higher the score, the more that person would like the response.
The choices it was learned from are not in here, but a personal model's scores reveal things about its person:
share it as you would share their choices.
"""
POLICY = """# A personal language model

It writes what one person would rather read, as far as their choices say.
The choices it was learned from are not in here, but what it writes reveals things about its person:
share it as you would share their choices.
"""
SHARED = """# The shared part of a fleet's reward models

It is what everybody's model starts from; personal factors are at their common start.
A person's own model is made from it by fitting the personal part to their choices.
"""
RELEASE = """
`shared.safetensors` holds the shared tensors alone.

What people contributed to its rounds can't be taken out again, nor that of people who have left or were
revoked since. `release.json` says how many of the latter the server knows of (`revoked`), and all figures of
what it may tell of one person (`dp`; null where sums were exact).
"""


@dataclass(frozen=True)
class Export:
    """What is exported.

    Attributes:
        effective: the factors and head of one person, merged.
        base: where whoever loads the export finds the base model (hub id or folder).
        pooling: how tokens become an embedding: "mean", "first" or "last".
        max_tokens: how many tokens of a text the model reads.
        digest: the digest of the base model, in hex.
        personal: whether this is one person's model, and not the part that a fleet shares.
        release: whether a fleet's server writes it, with `release.json` and `shared.safetensors` beside it.
        cost: of a release: what it may tell of one person, in a sentence or two.
        part: what is read of the base model, as in `Backbone`.
        classifier: where a classifier of transformers keeps the model, as in `Backbone`.
        padding: what a classifier's texts are filled up with, as in `Backbone`.
        writer: where a language model of transformers keeps it, as in `Backbone`; "" unless it is a policy.
        templated: whether its prompts were put into the base model's chat template.
        conversations: as of `MergedModel`; None where nobody knows, as at a server.
        tokenizer: files by name that go with it: those of the tokenizer, where its template is a part of the
            model; none where the server writes, which has no base model.
        gguf: the same adapter for llama.cpp, where it is asked for.
    """

    effective: MergedWeights
    model: ModelConfig
    adapter: AdapterConfig
    base: str
    digest: str
    pooling: str
    max_tokens: int
    personal: bool = True
    release: bool = False
    cost: str = ""
    part: str = ""
    classifier: str = ""
    padding: str = ""
    writer: str = ""
    templated: bool = False
    conversations: bool | None = None
    tokenizer: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    gguf: GgufAdapter | None = field(default=None, repr=False)

    @property
    def objective(self) -> Objective:
        """What the model was learned by."""
        return self.model.rule

    @classmethod
    def of(
        cls, merged: MergedModel, base: str | None = None, *, personal: bool = True, gguf: bool = False
    ) -> Self:
        """The export of a model; `base`: where its loader finds the base model, if not where it was
        published; `gguf`: with an adapter for llama.cpp, whose errors are those of `GgufAdapter.of`."""
        model = merged.model
        return cls(
            effective=merged.weights,
            model=merged.settings,
            adapter=merged.adapter,
            base=base or model.published,
            digest=model.digest,
            pooling=model.pooling,
            max_tokens=model.max_tokens,
            personal=personal,
            part=model.part,
            classifier=model.classifier,
            padding=model.padding,
            writer=model.writer,
            templated=model.prompts.templated,
            conversations=merged.conversations,
            tokenizer=model.tokenizer_files() if model.prompts.templated else {},
            gguf=GgufAdapter.of(merged) if gguf else None,
        )

    @property
    def unclassified(self) -> str:
        """Why it holds nothing for transformers' classifiers; empty when it does."""
        return unfit(
            family=self.classifier,
            padding=self.padding,
            pooling=self.pooling,
            normalize=self.model.normalize,
            adapted=bool(self.effective.adapters),
        )


def export_peft(export: Export, directory: Path, *, tried: MergedModel | None = None) -> str:
    """Write the export into `directory`, which is made and must be empty; all of it, or nothing.

    tried: the model that it is made of. Its classifier is loaded, from the files that were written, and left
    out if it scores a batch of texts otherwise. Without `tried` it is not loaded.

    -> why there is no classifier, empty when there is one, and for a policy.

    Raises UsageError when the directory is in use or the model is not an adapter, DeviceError when it can't
    be written.
    """
    if export.effective.base:
        raise UsageError(
            "this run shares parts of the base model too (adapter.share_base); "
            "a peft adapter can't hold them, so there is no export of it"
        )
    with export_folder(directory) as folder:
        if export.objective.has_head:
            return _write_reward_model(export, folder, tried)
        files = {SETTINGS_FILE: _settings(export), CARD_FILE: _policy_card(export).encode()}
        files |= export.tokenizer
        folder.write(files | _adapter(export, prefix=writer_prefix(export.writer), extra={}))
        if export.gguf is not None:
            folder.write({GGUF_FILE: b""})  # for the owner alone
            export.gguf.write(directory / GGUF_FILE)
    return ""


class ExportFolder:
    """A folder that an export is written into, each file for its owner alone: a personal model reveals things
    about its person."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._written: list[Path] = []

    def write(self, files: Mapping[str, bytes]) -> None:
        """New files, by name below the folder."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name, data in files.items():
            path = self.path / name
            path.parent.mkdir(exist_ok=True, mode=0o700)
            self._written.append(path)  # before there is anything in it
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(data)

    def erase(self) -> None:
        """Erase what was written: of a personal model not only the name is to be gone."""
        for path in self._written:
            if path.exists():
                erase(path)
        for folder in {path.parent for path in self._written} - {self.path}:
            folder.rmdir()
        self._written.clear()


@contextlib.contextmanager
def export_folder(directory: Path) -> Iterator[ExportFolder]:
    """A folder for an export, made where it is not there; what was written is erased where the block fails.

    UsageError when it is in use, DeviceError when it can't be written.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UsageError(f"{directory} is in use; choose an empty directory for the export")
    folder = ExportFolder(directory)
    try:
        yield folder
    except BaseException as error:
        folder.erase()
        if isinstance(error, OSError):
            raise DeviceError(f"can't write the export into {directory}: {error.strerror}") from None
        raise


def _write_reward_model(export: Export, folder: ExportFolder, tried: MergedModel | None) -> str:
    head = export.effective.head.detach().float().cpu().contiguous()
    why = export.unclassified
    if not why:
        inner = _adapter(
            export, prefix=f"{export.classifier}.", extra={"base_model.model.score.weight": head}
        )
        folder.write({f"{CLASSIFIER}/{name}": data for name, data in inner.items()})
        why = disagreement(tried, folder.path / CLASSIFIER, export.padding) if tried else ""
        if why:
            folder.erase()
            export = replace(export, classifier="")
    files = {
        HEAD_FILE: save_tensors({"weight": head}),
        SETTINGS_FILE: _settings(export),
        CARD_FILE: _card(export, why).encode(),
    }
    adapter = _adapter(export, prefix="", extra={}) if export.effective.adapters else {}
    folder.write(files | adapter)
    return why


def _settings(export: Export) -> bytes:
    """What penchant needs to make the same model again."""
    table: dict[str, Any] = {
        "model": section_table(export.model),
        "adapter": section_table(export.adapter),
        "digest": export.digest,
    }
    if export.conversations is not None:
        table["conversations"] = export.conversations
    return json.dumps(table, indent=2).encode()


def writer_prefix(writer: str) -> str:
    """What stands before a module's path in a whole language model."""
    return f"{writer}." if writer else ""


def snippet(export: Export, directory: str) -> str:
    """Python that scores a response with the export, or writes one where it is a policy, needing only torch,
    transformers and peft."""
    if not export.objective.has_head:
        return _writing(export, directory)
    adapted = bool(export.effective.adapters)
    base = f"AutoModel.from_pretrained({export.base!r}, "
    base += f"{_cut(export)}dtype='float32', trust_remote_code=False)"
    base += f".{export.part}" if export.part else ""
    model = f"PeftModel.from_pretrained({base}, {directory!r})" if adapted else base
    pooled = {"mean": "h.mean(0)", "first": "h[0]", "last": "h[-1]"}[export.pooling]
    unit = "F.normalize(e, dim=0)"
    tokens = f"**tokenizer(prompt + response, truncation=True, max_length={export.max_tokens}, "
    tokens += "return_tensors='pt')"
    reading = [f"    h = model({tokens}).last_hidden_state[0]"]
    if export.model.beside:
        between = f"found.hidden_states[{export.model.beside}][0]"
        reading = [
            f"    found = model({tokens}, output_hidden_states=True)",
            f"    h = torch.cat([{between}, found.last_hidden_state[0]], 1)",
        ]
        unit = "F.normalize(e.view(2, -1), dim=1).flatten() / 2**.5"
    scaled = f"{unit} * {export.model.normalize:g}" if export.model.normalize else "e"
    peft = "\nfrom peft import PeftModel" if adapted else ""
    lines = [
        *(["import torch"] if export.model.beside else []),
        "import torch.nn.functional as F",
        "from safetensors.torch import load_file",
        f"from transformers import AutoModel, AutoTokenizer{peft}",
        f"tokenizer = AutoTokenizer.from_pretrained({export.base!r}, "
        f"truncation_side={export.model.truncation!r}, trust_remote_code=False)",
        f"model, head = {model}.eval(), load_file({directory + '/' + HEAD_FILE!r})['weight'][0]",
        "def score(prompt, response):",
        *reading,
        f"    e = {pooled}; return ({scaled} @ head).item()",
    ]
    return "\n".join(lines) + "\n"


def _cut(export: Export) -> str:
    """How many blocks of the base model are loaded, as an argument, where not all are."""
    return f"num_hidden_layers={export.model.blocks}, " if export.model.blocks else ""


def _writing(export: Export, directory: str) -> str:
    tokenizer = directory if export.tokenizer else export.base
    asked = "tokenizer(prompt, return_tensors='pt')"
    if export.templated:
        asked = (
            "tokenizer.apply_chat_template([{'role': 'user', 'content': prompt}],\n"
            "        add_generation_prompt=True, return_dict=True, return_tensors='pt')"
        )
    lines = [
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        f"tokenizer = AutoTokenizer.from_pretrained({tokenizer!r}, trust_remote_code=False)",
        f"base = AutoModelForCausalLM.from_pretrained({export.base!r}, dtype='float32', "
        "trust_remote_code=False)",
        f"model = PeftModel.from_pretrained(base, {directory!r}).eval()",
        "def write(prompt, tokens=100):",
        f"    asked = {asked}",
        "    made = model.generate(**asked, max_new_tokens=tokens, do_sample=True)",
        "    return tokenizer.decode(made[0, asked['input_ids'].shape[1]:], skip_special_tokens=True)",
    ]
    return "\n".join(lines) + "\n"


def _adapter(export: Export, prefix: str, extra: dict[str, Tensor]) -> dict[str, bytes]:
    """peft's two files for the factors, their modules' paths behind `prefix`."""
    tensors: dict[str, Tensor] = dict(extra)
    for module, (a, b) in export.effective.adapters.items():
        path = f"base_model.model.{prefix}{module}"
        tensors[f"{path}.lora_A.weight"] = a.detach().float().cpu().contiguous()
        tensors[f"{path}.lora_B.weight"] = b.detach().float().cpu().contiguous()
    settings = _lora_config(export, prefix, classifier=bool(extra))
    return {
        ADAPTER_FILE: save_tensors(tensors, metadata={"format": "pt"}),
        "adapter_config.json": json.dumps(settings, indent=2, sort_keys=True).encode(),
    }


def _lora_config(export: Export, prefix: str, *, classifier: bool) -> dict[str, Any]:
    from peft import LoraConfig, TaskType

    config = LoraConfig(
        r=export.adapter.rank,
        lora_alpha=export.adapter.alpha,  # type: ignore[arg-type]
        lora_dropout=0.0,
        bias="none",
        target_modules=[prefix + module for module in export.effective.adapters],
        task_type=_task(export, TaskType, classifier),
        modules_to_save=["score"] if classifier else None,
        base_model_name_or_path=export.base,
        inference_mode=True,
    )
    settings = {
        key: sorted(v) if isinstance(v, set) else v
        for key, v in config.to_dict().items()  # type: ignore[no-untyped-call]
    }
    return {key: getattr(v, "value", v) for key, v in settings.items()}


def _task(export: Export, kinds: Any, classifier: bool) -> Any:
    """What peft calls the use of an adapter."""
    if not export.objective.has_head:
        return kinds.CAUSAL_LM
    return kinds.SEQ_CLS if classifier else None


def _card(export: Export, why: str) -> str:
    """The model card; `why` there is no classifier, if there is none."""
    adapter = export.adapter
    what = (
        f"a LoRA adapter of rank {adapter.rank} (alpha {adapter.alpha:g}) on "
        f"{', '.join(export.effective.adapters)}, and a score head"
        if export.effective.adapters
        else "a score head on the base model's frozen embedding"
    )
    also = f"\nIt holds no classifier of transformers: {why}.\n" if why else _classifier(export)
    return f"""---
base_model: {export.base}
library_name: peft
tags: [{", ".join(_tags(export))}]
---

{PERSONAL if export.personal else SHARED}{_release(export)}
It is {what}. It was learned with penchant, share `{adapter.share}`.

Base model: `{export.base}`, penchant digest `{export.digest}`.

```python
{snippet(export, ".")}```

Differences of scores are log-odds (Bradley and Terry): the probability that the first of two is preferred is
`1 / (1 + exp(score of the second - score of the first))`.
{_form(export)}{also}"""


def _form(export: Export) -> str:
    """How it is asked about conversations, where that is known."""
    return "" if export.conversations is None else f"\n{form_said(export.conversations)}\n"


def _policy_card(export: Export) -> str:
    adapter, beta = export.adapter, export.model.beta
    about = POLICY if export.personal else SHARED.replace("reward models", "policies")
    return f"""---
base_model: {export.base}
library_name: peft
pipeline_tag: text-generation
tags: [{", ".join(_tags(export))}]
---

{about}{_release(export)}
It is a LoRA adapter of rank {adapter.rank} (alpha {adapter.alpha:g}) on
{", ".join(export.effective.adapters)}.
It was learned with penchant, objective `{export.model.objective}` (beta {beta:g}), share `{adapter.share}`,
{_prompts(export)}

Base model: `{export.base}`, penchant digest `{export.digest}`.

```python
{snippet(export, ".")}```
{_score_said(export)}{_gguf(export)}"""


def _score_said(export: Export) -> str:
    """What a policy's score is, where its objective says so."""
    said = export.objective.said
    return f"\nA response's score is {said}, times {export.model.beta:g}.\n" if said else ""


def _gguf(export: Export) -> str:
    """What the card says of the file for llama.cpp; nothing where there is none."""
    if export.gguf is None:
        return ""
    return f"""
`{GGUF_FILE}` is the same adapter for llama.cpp, over a GGUF file of the base model, quantised or not:

```
llama-server -m BASE.gguf --lora {GGUF_FILE}
```
"""


def _release(export: Export) -> str:
    """What the card says of a fleet's release; nothing elsewhere."""
    return f"{RELEASE}\n{export.cost}\n" if export.release else ""


def _prompts(export: Export) -> str:
    """How its prompts were read."""
    if not export.templated:
        return "from prompts as they stand: no chat template was put around them."
    also = ", which is in this folder" if export.tokenizer else ""
    return f"from prompts in the chat template of the base model's tokenizer{also}: ask it in that form."


def _tags(export: Export) -> list[str]:
    """The card's: who searches for what a person likes must not find what a fleet shares."""
    kind = "reward-model" if export.objective.has_head else "policy"
    return [kind, "personal" if export.personal else "shared", "penchant"]


def _classifier(export: Export) -> str:
    return f"""
The folder `{CLASSIFIER}` holds the same for `AutoModelForSequenceClassification`, one label:

```python
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained({export.base!r}, pad_token={export.padding!r},
    padding_side='right', truncation_side={export.model.truncation!r}, trust_remote_code=False)
base = AutoModelForSequenceClassification.from_pretrained({export.base!r},
    num_labels=1, {_cut(export)}dtype='float32', trust_remote_code=False)
base.config.pad_token_id = tokenizer.pad_token_id
model = PeftModel.from_pretrained(base, './{CLASSIFIER}').eval()
def scores(texts):
    tokens = tokenizer(
        texts, padding=True, truncation=True, max_length={export.max_tokens}, return_tensors='pt')
    return model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).logits[:, 0].tolist()
```

The padding matters: a classifier reads a text's last token that is no padding, so no text may end with it,
and it stands at the right. Set both wherever the folder is loaded, also in a server.
"""
