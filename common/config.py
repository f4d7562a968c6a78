"""Configuration: frozen dataclasses that validate themselves, read from and written to TOML.

`RunConfig` is everything a run needs; `Plan` is the part of it that devices receive, are bound to by
the context digest, and check again with the very same bounds (a hostile server sends a hostile plan).
Unknown keys are refused by name. Ranges are those within which the code is meant to work.

A setting is declared here, once: see `penchant.common.settings.setting`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import tomli_w

from penchant.common.durations import DAY
from penchant.common.errors import ConfigError
from penchant.common.objectives import OBJECTIVES, REWARD, Objective, objective
from penchant.common.printable import quoted
from penchant.common.registry import COMBINATIONS, SERVER_OPTIMIZERS
from penchant.common.settings import (
    Section,
    as_in,
    build_section,
    current_keys,
    current_names,
    known_keys,
    section_table,
    setting,
    within,
)
from penchant.common.shares import SHARES, Fitting, Head, ShareRule, share_rule

ObjectiveName = str  # a name of `common.objectives`
ShareName = str  # a name of `common.shares`
HeadName = Literal["auto", "shared", "personal"]
PoolingName = Literal["auto", "mean", "first", "last"]
DtypeName = Literal["auto", "float32", "bfloat16"]
TemplateName = Literal["auto", "none"]
TruncationName = Literal["left", "right"]
QuantizeName = Literal["none", "4bit"]
OrderName = Literal["joint", "personal-first", "alternating"]
OptimizerName = Literal["adamw", "sgd"]
SharedOptimizerName = Literal["same", "adamw", "sgd"]
ServerOptimizerName = str  # a name of `common.registry.SERVER_OPTIMIZERS`
CombinationName = str  # a name of `common.registry.COMBINATIONS`
GridName = Literal["local", "processes", "ray"]
BadRows = Literal["refuse", "skip"]
EvaluateOn = Literal["test", "validation"]
Phase = Literal["warmup", "main", "close"]


_MODEL = "Model and adapter"

PLAN_LIMIT = 64 * 1024  # bytes of an encoded plan

LEAST_EPSILON = 1e-3  # below it, noise is a thousand times what a person can add
MOST_EPSILON = 100.0  # beyond it, a promise says nothing
LEAST_DELTA, MOST_DELTA = 1e-12, 0.01


@dataclass(frozen=True)
class DataConfig(Section):
    """Whose preferences, and how many of them. Counts are preference pairs a person."""

    dataset: str = setting(
        "senate", "The people's preferences: the name of a data set, a FILE, or a HUB_ID.", usual=True
    )
    clients: int = setting(
        0,
        "How many of the data set's people take part; 0 stands for all of them.",
        low=0,
        high=1_000_000,
        usual=True,
    )
    holdout_clients: int = setting(
        0,
        "How many of them are kept out of training as newcomers, who join once the shared part is trained.",
        low=0,
        high=1_000_000,
    )
    pairs: int = setting(20, "Training pairs per person.", low=1, high=100_000)
    validation_pairs: int = setting(
        20,
        "Validation pairs per person; 0 holds nothing out, and the whole training part gives training pairs.",
        low=0,
        high=100_000,
    )
    test_pairs: int = setting(
        60, "Test pairs per person, on which the accuracy is measured.", low=1, high=100_000
    )
    time_cutoff: float = setting(
        1.0,
        "The fraction of all items, oldest first, that a run sees; below 1 to choose settings on past data.",
        low=0.01,
        high=1,
        old=("until",),
        stored="until",
    )
    person_column: str = setting(
        "", "The column of a FILE or HUB_ID that names each row's person; empty for the usual names."
    )
    partition: str = setting(
        "",
        "Deal the choices of a FILE or HUB_ID out to made-up people, whoever made them: iid:PEOPLE, or "
        "dirichlet:PEOPLE:ALPHA:COLUMN by the values of a column.",
        added=True,
    )
    test: str = setting(
        "",
        "The pairs to test on, as a FILE or HUB_ID; what dataset names is then for training and validation.",
        added=True,
    )
    columns: tuple[str, ...] = setting(
        (),
        "Other names of the columns of a FILE or HUB_ID, as prompt=question, chosen=better.",
        added=True,
    )
    bad_rows: BadRows = setting(
        "refuse",
        "Whether a row that can't be read ends the run or is skipped and counted.",
        flag="--skip-bad-rows/--refuse-bad-rows",
        switch=("skip", "refuse"),
    )
    evaluate: EvaluateOn = setting(
        "test",
        "The part that scores are measured on; use validation to choose settings, and test stays untouched.",
    )

    def _check(self) -> None:
        if self.evaluate == "validation" and not self.validation_pairs:
            raise ConfigError(
                "data.evaluate is validation, but data.validation_pairs is 0; ask for some, or score on test",
                about=("data.evaluate", "data.validation_pairs"),
            )

    @classmethod
    def _simulated(cls) -> bool:
        return True  # real devices have their owners' choices


@dataclass(frozen=True)
class ModelConfig(Section):
    """The frozen backbone, and how a response becomes one score."""

    base_model: str = setting("all-MiniLM-L6-v2", "The frozen base model: a Hugging Face id or a folder.")
    pooling: PoolingName = setting(
        "auto",
        "Which tokens give a text's embedding; auto is the mean for encoders and the last for causal models.",
    )
    normalize: float = setting(
        10.0,
        "The length that embeddings are scaled to; 0 leaves them as they are.",
        low=0,
        high=1000,
    )
    max_tokens: int = setting(256, "How many tokens of a text are read.", low=2, high=8192)
    truncation: TruncationName = setting(
        "left", "The side on which a longer text is cut; a response comes last, so left keeps it."
    )
    dtype: DtypeName = setting(
        "auto",
        "The number format of the base model; auto is bfloat16 on a GPU that computes in it, else float32.",
    )
    quantize: QuantizeName = setting(
        "none", "How frozen linear weights are held; 4bit is NF4 and needs CUDA and bitsandbytes."
    )
    objective: ObjectiveName = setting(
        REWARD,
        "What is learned: reward scores texts by a head; dpo, ipo and simpo make the base model itself write "
        "what its person prefers, and score by its log-probabilities.",
        choices=OBJECTIVES.names,
        added=True,
    )
    beta: float = setting(
        0.1,
        "The scale of scores that are made of log-probabilities; the larger, the nearer a policy stays to "
        "the base model.",
        low=1e-3,
        high=100,
        added=True,
    )
    template: TemplateName = setting(
        "auto",
        "How a policy reads prompts; auto puts the base model's chat template around them, where it has one, "
        "and none reads a text as it stands.",
        added=True,
    )
    blocks: int = setting(
        0,
        "How many of the base model's blocks are used, the first ones; 0 stands for all. The embedding is "
        "made of the states after the last one used.",
        low=0,
        high=1000,
        added=True,
    )
    beside: int = setting(
        0,
        "An embedding that is made of the states after so many blocks stands beside that of the last ones; 0 "
        "stands for none. It is for shares that adapt no module.",
        low=0,
        high=1000,
        added=True,
    )

    @property
    def rule(self) -> Objective:
        """The objective that `objective` names."""
        return objective(self.objective)

    def _check(self) -> None:
        usual = {f.name: f.default for f in dataclasses.fields(self)}
        if not self.rule.reads_beta and self.beta != usual["beta"]:
            raise ConfigError(
                f'model.beta is the scale of log-probabilities, and objective "{self.objective}" does not '
                "read it; drop one of them",
                about=("model.beta", "model.objective"),
            )
        if self.blocks and self.beside >= self.blocks:
            raise ConfigError(
                f"model.beside is {self.beside}, and of {self.blocks} blocks (model.blocks) it can be one "
                f"before the last, {self.blocks - 1} at most",
                about=("model.beside", "model.blocks"),
            )
        if self.rule.has_head:
            if self.template != usual["template"]:
                raise ConfigError(
                    f'model.template is about how policies read prompts, and objective "{self.objective}" '
                    "reads every text as it stands; drop one of them",
                    about=("model.template", "model.objective"),
                )
            return
        for name in ("blocks", "beside", "pooling", "normalize"):
            if getattr(self, name) != usual[name]:
                raise ConfigError(
                    f"model.{name} is about the embedding under a score head, and objective "
                    f'"{self.objective}" has none; drop one of them',
                    about=(f"model.{name}", "model.objective"),
                )

    @classmethod
    def _group(cls) -> str:
        return _MODEL


@dataclass(frozen=True)
class AdapterConfig(Section):
    """Where the low-rank factors sit and which of them is shared (docs/architecture.md#the-model)."""

    share: ShareName = setting(
        "A",
        "What is shared of the low-rank factors; the rest is personal.",
        choices=SHARES.names,
        usual=True,
    )
    head: HeadName = setting(
        "auto",
        "Whether the score head is shared; auto is personal where nothing is shared, and shared otherwise.",
    )
    rank: int = setting(2, "The rank r of the low-rank factors.", low=1, high=512)
    alpha: float = setting(
        2.0, "LoRA's alpha; the product of the factors is scaled by alpha/r.", low=1e-3, high=4096
    )
    target_modules: tuple[str, ...] = setting(
        ("output.dense",),
        "The linear modules that get factors, by the end of their names; auto is the base model's usual one.",
    )
    layers: tuple[int, ...] = setting(
        (-1,),
        "The blocks that get factors, by number; -1 is the last one, and an empty list stands for all.",
    )
    share_base: tuple[str, ...] = setting(
        (),
        "Parts of the base model that are trained and shared too: head, norm (in the adapted blocks), or a "
        "module's path with * for anything.",
    )

    @property
    def rule(self) -> ShareRule:
        """The rule that `share` names."""
        return share_rule(self.share)

    def _check(self) -> None:
        rule = self.rule
        if not self.target_modules:
            raise ConfigError(
                "adapter.target_modules is empty; name at least one linear module",
                about=("adapter.target_modules",),
            )
        if rule.shares_nothing and self.head == "shared":
            raise ConfigError(
                f'adapter.head is "shared" although share "{rule.name}" shares nothing; drop one',
                about=("adapter.head", "adapter.share"),
            )
        if self.share_base and not rule.shares_base:
            raise ConfigError(
                f'adapter.share_base is set but share "{self.share}" shares nothing of the base; drop one',
                about=("adapter.share_base", "adapter.share"),
            )
        if "head" in self.share_base and self.head == "personal":
            raise ConfigError(
                'adapter.share_base names the head although adapter.head is "personal"; drop one',
                about=("adapter.share_base", "adapter.head"),
            )

    @classmethod
    def _group(cls) -> str:
        return _MODEL


def head_of(model: ModelConfig, adapter: AdapterConfig) -> Head:
    """Where the score head belongs; NONE where the objective has no use for one.

    Raises:
        ConfigError: the objective has none, and something that is asked for needs one; or modules are adapted
            and a second embedding is to stand beside the last one.
    """
    if model.beside and adapter.rule.adapts_modules:
        raise ConfigError(
            f'model.beside is for shares that adapt no module, such as common, and share "{adapter.share}" '
            "does; name one of those, or drop model.beside",
            about=("model.beside", "adapter.share"),
        )
    if model.rule.has_head:
        return adapter.rule.head(adapter.head)
    asked = {
        "adapter.share": (not adapter.rule.works_without_head, f'share "{adapter.share}" is about'),
        "adapter.head": (adapter.head != "auto", f'adapter.head "{adapter.head}" is about'),
        "adapter.share_base": ("head" in adapter.share_base, "adapter.share_base names"),
    }
    for key, (needs_one, what) in asked.items():
        if needs_one:
            raise ConfigError(
                f'{what} a score head, and objective "{model.objective}" has none; drop one of them',
                about=(key, "model.objective"),
            )
    return Head.NONE


@dataclass(frozen=True)
class TrainingConfig(Section):
    """Local training on one device, once a round. Learning rates are the optimiser's, per part.

    update_order: "joint" updates both parts at once (FedSim); "personal-first" the personal part alone, then
    both; "alternating" the personal part alone, then the shared part alone (FedAlt; both names of Pillutla et
    al., ICML 2022).
    """

    optimizer: OptimizerName = setting(
        "adamw", "The optimiser on devices, which starts afresh in every round."
    )
    shared_optimizer: SharedOptimizerName = setting(
        "same", "The devices' optimiser for the shared part; sgd goes with fedadam on the server."
    )
    lr_shared: float = setting(3e-3, "Learning rate of the shared part.", low=0, high=1)
    lr_personal: float = setting(1e-2, "Learning rate of the personal part.", low=0, high=1)
    lr_head: float = setting(3e-3, "Learning rate of the score head.", low=0, high=1)
    warmup_lr: float = setting(
        0.0,
        "Learning rate of everything in warm-up rounds; 0 takes those of the shared part and of the head.",
        low=0,
        high=1,
    )
    local_epochs: int = setting(6, "How often a device goes through its pairs in a round.", low=1, high=1000)
    batch_size: int = setting(
        0,
        "Pairs that a step is computed on; 0 stands for all of a person's pairs at once.",
        low=0,
        high=100_000,
    )
    micro_batch_size: int = setting(
        0,
        "Pairs whose activations are held in memory at a time at most; 0 for as many as a fixed bound in "
        "bytes has place for.",
        low=0,
        high=100_000,
        old=("chunk",),
        stored="chunk",
    )
    weight_decay: float = setting(0.0, "Weight decay on devices.", low=0, high=100)
    update_order: OrderName = setting(
        "joint",
        "How a round updates the two parts: both at once, the personal part and then both, or one after the "
        "other.",
        old=("order",),
        stored="order",
    )
    personal_epochs: int = setting(
        0,
        "Epochs of the personal part alone, unless updates are joint; 0 takes as many as local_epochs.",
        low=0,
        high=1000,
    )
    l2_to_start: float = setting(
        0.0,
        "Strength of the L2 penalty that pulls the personal part towards the common start.",
        low=0,
        high=1e6,
        old=("pull",),
        stored="pull",
    )
    final_fit_epochs: int = setting(
        30,
        "Epochs in which everyone fits the personal part to the final shared factors, after the last round.",
        low=0,
        high=10_000,
        old=("refit_epochs",),
        stored="refit_epochs",
    )
    final_fit_lr: float = setting(
        1e-2,
        "Learning rate of that final fit.",
        low=0,
        high=1,
        old=("refit_lr",),
        stored="refit_lr",
    )
    prior_spread: float = setting(
        3.0,
        "Standard deviation of margins before any choice, where the personal part is fitted alone.",
        low=1e-3,
        high=1e3,
    )
    prior_head: float = setting(
        1.0, "The spread that a personal head adds, as a fraction of prior_spread.", low=1e-3, high=1e3
    )

    @property
    def alone_epochs(self) -> int:
        """Epochs of the personal part alone, before the shared part is trained."""
        return 0 if self.update_order == "joint" else self.personal_epochs or self.local_epochs

    @property
    def epochs(self) -> int:
        """Most passes over a person's pairs that one round costs."""
        return max(self.alone_epochs + self.local_epochs, self.final_fit_epochs)

    def warming(self) -> Self:
        """The settings of warm-up rounds, in which everything is shared."""
        if not self.warmup_lr:
            return self
        return dataclasses.replace(self, lr_shared=self.warmup_lr, lr_head=self.warmup_lr)


def refuse_unread_head(model: ModelConfig, training: TrainingConfig, *usual: TrainingConfig) -> None:
    """ConfigError where `training` says something of a score head, and the objective has none.

    usual: defaults, which say nothing.
    """
    if model.rule.has_head:
        return
    for name in ("lr_head", "prior_head"):
        if all(getattr(training, name) != getattr(one, name) for one in usual):
            raise ConfigError(
                f'training.{name} is about a score head, and objective "{model.objective}" has none; drop '
                "one of them",
                about=(f"training.{name}", "model.objective"),
            )


@dataclass(frozen=True)
class FederationConfig(Section):
    """Rounds, cohorts and the server's optimiser."""

    rounds: int = setting(30, "How many rounds are trained.", low=0, high=4000, usual=True)
    warmup_rounds: int = setting(
        0, "How many rounds share both factors before the personal part splits off.", low=0, high=4000
    )
    cohort: int = setting(
        0,
        "How many people a round asks; 0 stands for a third of them, at least ten.",
        low=0,
        high=1_000_000,
        usual=True,
    )
    min_survivors: int = setting(
        0,
        "The fewest people a round may end with; 0 stands for what the protocol needs.",
        low=0,
        high=1_000_000,
    )
    deadline_seconds: float = setting(
        600.0,
        "How long the server waits for the answers of one exchange; in a simulation, for the next of them.",
        low=0.1,
        high=7 * DAY,
        usual=True,
    )
    patience_seconds: float = setting(
        3600.0,
        "How long the server waits for enough real devices to be there; simulated ones always are.",
        low=0,
        high=365 * DAY,
        usual=True,
    )
    training_seconds: float = setting(
        30.0,
        "How long a device has for its training in a round, from its reply to the first exchange on; its "
        "vector leaves at the end of that time, whether or not the training was done. Simulated devices "
        "don't wait.",
        low=0.1,
        high=3000,
        added=True,
    )
    dropout: float = setting(
        0.0,
        "The fraction of simulated devices that fall silent in an attempt of a round, in an exchange that is "
        "drawn.",
        low=0,
        high=0.5,
        simulated=True,
        added=True,
    )
    attempts: int = setting(3, "How often a round is tried, each time with fresh keys.", low=1, high=100)
    server_optimizer: ServerOptimizerName = setting(
        "fedavg",
        "How the server moves the shared factors by the mean update of a round.",
        choices=SERVER_OPTIMIZERS.names,
    )
    server_lr: float = setting(1.0, "The server optimiser's learning rate.", low=0, high=100)
    server_beta1: float = setting(0.9, "Decay of the server optimiser's mean of updates.", low=0, high=0.9999)
    server_beta2: float = setting(
        0.99, "Decay of the server optimiser's mean of squared updates.", low=0, high=0.99999
    )
    server_epsilon: float = setting(
        1e-3,
        "What the server optimiser adds to the root of that mean before it divides by it.",
        low=1e-12,
        high=1,
    )
    clip: float = setting(
        10.0, "The largest L2 norm of one person's update; a larger one is scaled down.", low=1e-6, high=1e6
    )
    max_weight: int = setting(
        1024, "The most pairs that one person may count for in a round's mean.", low=1, high=1 << 20
    )
    combine: CombinationName = setting(
        "mean",
        "How the mean updates of a round's groups become one; all but mean withstand some false ones.",
        choices=COMBINATIONS.names,
        added=True,
    )
    false_groups: float = setting(
        0.25,
        "The part of the groups that may be false: trimmed_mean cuts as many off at both ends, multi_krum "
        "leaves as many out.",
        low=0,
        high=0.49,
        added=True,
    )
    stop_after: int = setting(
        0,
        "How many rounds after the best one training ends, with the best one's factors, if held-out choices "
        "are ranked worse since than chance often makes them; 0 trains every round.",
        low=0,
        high=4000,
        added=True,
    )

    def _check(self) -> None:
        if self.warmup_rounds > self.rounds:
            raise ConfigError(
                f"federation.warmup_rounds is {self.warmup_rounds} but there are only {self.rounds} rounds",
                about=("federation.warmup_rounds",),
            )


@dataclass(frozen=True)
class PrivacyConfig(Section):
    """Secure aggregation. `min_honest` and `max_colluders` are the owners' policy, never the server's."""

    secagg: bool = setting(
        True,
        "Secure aggregation: the server sees sums of masked updates, never one person's.",
        simulated=True,  # real devices send nothing without it
    )
    min_honest: int = setting(
        10, "How many honest people every sum must hold, as simulated owners ask for.", low=1, high=100_000
    )
    max_colluders: int = setting(
        2, "How many devices may work with the server, as simulated owners assume.", low=0, high=100_000
    )
    group_size: int = setting(
        256,
        "The most devices that make one masked sum; a larger cohort is cut into groups.",
        low=3,
        high=1000,
    )
    ring_bits: int = setting(32, "Bits of the numbers in which masked updates are summed.", choices=(32, 64))
    dp_epsilon: float = setting(
        0.0,
        "The epsilon of differential privacy that one run may cost a person; devices add noise for it. 0 "
        "adds no noise, so sums are exact.",
        low=0,
        high=MOST_EPSILON,
        added=True,
        usual=True,
    )
    dp_delta: float = setting(
        1e-5, "The delta that belongs to epsilon.", low=LEAST_DELTA, high=MOST_DELTA, added=True
    )
    dp_participations: int = setting(
        0,
        "How often a person takes part in a run at most, failed attempts included, which the noise is made "
        "for; 0 stands for what the size of the cohort needs.",
        low=0,
        high=100_000,
        added=True,
    )
    dp_honest: int = setting(
        0,
        "How many honest people's noise every sum holds, which the noise is made for; 0 stands for what "
        "cohort, group_size and max_colluders give.",
        low=0,
        high=100_000,
        added=True,
    )

    def _check(self) -> None:
        if 0 < self.dp_epsilon < LEAST_EPSILON:
            raise ConfigError(
                f"privacy.dp_epsilon is {self.dp_epsilon:g}; it must be 0, for no noise, or lie in "
                f"{LEAST_EPSILON:g} … {MOST_EPSILON:g}",
                about=("privacy.dp_epsilon",),
            )
        if self.dp_epsilon and not self.secagg:
            raise ConfigError(
                "privacy.dp_epsilon needs privacy.secagg: each device adds a part of the noise only, which "
                "protects nobody whose update is seen alone",
                about=("privacy.dp_epsilon",),
            )


@dataclass(frozen=True)
class RunConfig(Section):
    """Everything a run needs; `penchant simulate` writes it into the run directory first.

    A run's id comes from the TOML of its settings in the order in which they are declared, under their
    `stored` names: a setting that moves, or goes, makes run directories of earlier versions unresumable.
    """

    seed: int = setting(0, "The seed of everything that must repeat.", low=0, high=2**63 - 1)
    grid: GridName = setting(
        "local",
        "Where simulated devices run: in this process, in several of this machine, or in Ray's workers.",
        simulated=True,
    )
    workers: int = setting(
        0,
        "How many people are served at a time, by so many threads or processes; 0 stands for one per core.",
        low=0,
        high=1024,
        simulated=True,
    )
    batch_people: int = setting(
        0,
        "How many people are trained in one batched computation; 1 is one by one, 0 chooses.",
        low=0,
        high=4096,
        added=True,
        simulated=True,
    )
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    federation: FederationConfig = field(default_factory=FederationConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)

    def _check(self) -> None:
        head_of(self.model, self.adapter)
        refuse_unread_head(self.model, self.training, TrainingConfig())
        if self.adapter.rule.fitting is not Fitting.ROUNDS and not self.training.final_fit_epochs:
            raise ConfigError(
                f'share "{self.adapter.share}" gives everybody a personal part by the fit after the last '
                "round alone; set training.final_fit_epochs above 0",
                about=("training.final_fit_epochs", "adapter.share"),
            )
        if self.federation.warmup_rounds and not self.adapter.rule.can_warm_up:
            raise ConfigError(
                f'share "{self.adapter.share}" has no split to warm up for; set federation.warmup_rounds to '
                "0",
                about=("federation.warmup_rounds",),
            )
        if self.federation.dropout and self.grid == "ray":
            raise ConfigError(
                "federation.dropout is for devices in this process; set grid to local, or dropout to 0",
                about=("federation.dropout", "grid"),
            )

    @classmethod
    def _title(cls) -> str:
        return ""  # its own settings have no section in their names

    @property
    def head(self) -> Head:
        """Where the score head belongs."""
        return head_of(self.model, self.adapter)

    # --- TOML ------------------------------------------------------------------------------------

    @classmethod
    def from_toml(cls, text: str) -> Self:
        """Read a TOML document; missing keys take their defaults, unknown keys are refused."""
        return build_section(cls, _parsed(text), "")

    @classmethod
    def keys_in(cls, text: str) -> dict[str, Any]:
        """What a TOML document sets, by dotted keys of today; values are as they stand there, unchecked.

        Raises:
            ConfigError: it is not TOML, or there is no such setting.
        """
        found: dict[str, Any] = {}
        for name, value in _parsed(text).items():
            inner = value if isinstance(value, dict) else None
            found |= {name: value} if inner is None else {f"{name}.{key}": v for key, v in inner.items()}
        return known_keys(cls, current_keys(cls, found, quiet=True))

    @classmethod
    def keys_in_file(cls, path: str | Path) -> dict[str, Any]:
        """As `keys_in`, of a TOML file, with a notice about old names; ConfigError when it can't be read."""
        text = _text_of(path)
        current_names(cls, _parsed(text))  # gives the notice
        try:
            return cls.keys_in(text)
        except ConfigError:
            cls.from_toml(text)  # says better what is wrong with the table that a key stands in
            raise

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a TOML file; ConfigError when it can't be read."""
        return cls.from_toml(_text_of(path))

    def changed(self, changes: Mapping[str, Any]) -> Self:
        """A copy with dotted keys replaced, e.g. ``{"adapter.share": "B", "seed": 3}``."""
        if not isinstance(changes, Mapping) or not all(isinstance(key, str) for key in changes):
            raise ConfigError('changes must be a mapping of names, such as {"adapter.share": "B"}')
        table = section_table(self)
        for key, value in current_keys(type(self), changes).items():
            *path, last = key.split(".")
            target = table
            for name in path:
                target = target.setdefault(name, {})
                if not isinstance(target, dict):
                    raise ConfigError(f'unknown configuration key "{key}": {name} is not a table')
            target[last] = value
        return build_section(type(self), table, "")

    def plan(self, phase: Phase, cohort: int) -> Plan:
        """What devices receive for a round of `phase` with at most `cohort` clients."""
        return Plan(
            phase=phase,
            cohort=cohort,
            start_sent=self.federation.warmup_rounds > 0 and phase != "warmup",
            seed=self.seed,
            model=self.model,
            adapter=self.adapter,
            training=self.training.warming() if phase == "warmup" else self.training,
            clip=self.federation.clip,
            max_weight=self.federation.max_weight,
            ring_bits=self.privacy.ring_bits,
            group_size=self.privacy.group_size,
            training_seconds=self.federation.training_seconds,
            dp_epsilon=self.privacy.dp_epsilon,
            dp_delta=self.privacy.dp_delta,
            dp_participations=self.privacy.dp_participations,
            dp_honest=self.privacy.dp_honest,
        )


def _text_of(path: str | Path) -> str:
    if not isinstance(path, str | os.PathLike) or not str(path):
        raise ConfigError(f"path is {quoted(path)}; give a path, as a text or a pathlib.Path")
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a path with a zero byte
        raise ConfigError(f"can't read configuration {path}: {error}") from None


def _parsed(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: TOMLDecodeError, and too many digits
        raise ConfigError(f"the configuration is not valid TOML: {error}") from None


@dataclass(frozen=True)
class Plan(Section):
    """What a device is asked to do in one round: public, equal for all, bound by the context digest."""

    phase: Phase
    cohort: int = field(metadata=within(1, 1_000_000))  # most clients: with clip, max_weight: the quantiser
    start_sent: bool  # the personal part's common start (from the warm-up) follows the shared factors
    seed: int = field(metadata=as_in(RunConfig, "seed"))  # of the common start; protects nothing
    model: ModelConfig
    adapter: AdapterConfig
    training: TrainingConfig
    clip: float = field(metadata=as_in(FederationConfig, "clip"))
    max_weight: int = field(metadata=as_in(FederationConfig, "max_weight"))
    ring_bits: int = field(metadata=as_in(PrivacyConfig, "ring_bits"))
    group_size: int = field(metadata=as_in(PrivacyConfig, "group_size"))
    training_seconds: float = field(  # from the reply to `keys` until the vector leaves
        default=30.0, metadata=as_in(FederationConfig, "training_seconds")
    )
    dp_epsilon: float = field(default=0.0, metadata=as_in(PrivacyConfig, "dp_epsilon"))  # 0: no noise
    dp_delta: float = field(default=1e-5, metadata=as_in(PrivacyConfig, "dp_delta"))
    dp_participations: int = field(default=0, metadata=as_in(PrivacyConfig, "dp_participations"))
    dp_honest: int = field(default=0, metadata=as_in(PrivacyConfig, "dp_honest"))

    @property
    def head(self) -> Head:
        """Where the score head belongs."""
        return head_of(self.model, self.adapter)

    def _check(self) -> None:
        head_of(self.model, self.adapter)

    def encode(self) -> bytes:
        """Canonical bytes: JSON with sorted keys and no spaces, in UTF-8."""
        table = section_table(self, stored=True)
        return json.dumps(table, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    @classmethod
    def decode(cls, data: bytes, *, canonical: bool = True) -> Self:
        """The inverse of `encode`; ConfigError for anything else, including another spelling of the same.

        canonical: False reads a plan that an earlier version wrote, which knew fewer keys.
        """
        if len(data) > PLAN_LIMIT:
            raise ConfigError(f"a plan of {len(data)} bytes; the limit is {PLAN_LIMIT}")
        try:
            table = json.loads(data)
        except (ValueError, RecursionError):
            raise ConfigError("the plan is not valid JSON") from None
        if not isinstance(table, dict):
            raise ConfigError("the plan is not a table")
        _refuse_unknown_share(table.get("adapter"))
        _refuse_unknown_objective(table.get("model"))
        plan = build_section(cls, table, "plan", stored=True)
        if canonical and plan.encode() != data:
            raise ConfigError("the plan is not in its canonical form")
        return plan


def _refuse_unknown_share(adapter: object) -> None:
    """ConfigError for a plan by a share rule that this device does not have; it says what to do about it."""
    share = adapter.get("share") if isinstance(adapter, dict) else None
    if isinstance(share, str) and share not in SHARES:
        raise ConfigError(
            f"the plan asks for share {share[:40]!r}, which is not known here; install the package that adds "
            "it, or ask the operator for another plan"
        )


def _refuse_unknown_objective(model: object) -> None:
    """ConfigError as `_refuse_unknown_share`, for what is learned."""
    asked = model.get("objective") if isinstance(model, dict) else None
    if isinstance(asked, str) and asked not in OBJECTIVES:
        raise ConfigError(
            f"the plan asks for objective {asked[:40]!r}, which is not known here; install the package that "
            "adds it, or ask the operator for another plan"
        )


def config_digest(config: RunConfig) -> str:
    """SHA-256 (hex) of the configuration's TOML: the same configuration, the same digest."""
    return hashlib.sha256(tomli_w.dumps(section_table(config, stored=True)).encode()).hexdigest()
