"""Configuration: frozen dataclasses that validate themselves, read from and written to TOML.

`RunConfig` is everything a run needs; `Plan` is the part of it that devices receive, are bound to by
the context digest, and check again with the very same bounds (a hostile server sends a hostile plan).
Unknown keys are refused by name. Ranges are those within which the code is meant to work.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import tomli_w

from penchant.common.errors import ConfigError
from penchant.common.model.shares import SHARES, ShareRule, share_rule
from penchant.common.registry import SERVER_OPTIMIZERS
from penchant.common.settings import Section, build_section, section_table

ShareName = str  # a name of `common.model.shares`
HeadName = Literal["auto", "shared", "personal"]
PoolingName = Literal["auto", "mean", "first", "last"]
DtypeName = Literal["auto", "float32", "bfloat16"]
TruncationName = Literal["left", "right"]
QuantizeName = Literal["none", "4bit"]
OrderName = Literal["joint", "personal-first", "alternating"]
OptimizerName = Literal["adamw", "sgd"]
SharedOptimizerName = Literal["same", "adamw", "sgd"]
ServerOptimizerName = str  # a name of `common.registry.SERVER_OPTIMIZERS`
GridName = Literal["local", "ray"]
BadRows = Literal["refuse", "skip"]
EvaluateOn = Literal["test", "validation"]
Phase = Literal["warmup", "main", "close"]

PLAN_LIMIT = 64 * 1024  # bytes of an encoded plan


@dataclass(frozen=True)
class DataConfig(Section):
    """Whose preferences, and how many of them. Counts are preference pairs a person."""

    dataset: str = "senate"
    clients: int = 0  # 0: all people of the data set
    holdout_clients: int = 0  # of them, kept out of the federation: newcomers, who come when it is trained
    pairs: int = 20
    validation_pairs: int = 20  # 0: nothing is held out, the whole training part gives training pairs
    test_pairs: int = 60
    until: float = 1.0  # of all items, in order of time, those that are there yet; less: to tune in the past
    person_column: str = ""  # "": the usual names
    bad_rows: BadRows = "refuse"
    evaluate: EvaluateOn = "test"  # "validation" while tuning, so that the test part stays untouched

    def _check(self) -> None:
        self._range("clients", 0, 1_000_000)
        self._range("holdout_clients", 0, 1_000_000)
        self._range("pairs", 1, 100_000)
        self._range("validation_pairs", 0, 100_000)
        self._range("test_pairs", 1, 100_000)
        self._range("until", 0.01, 1)
        if self.evaluate == "validation" and not self.validation_pairs:
            raise ConfigError(
                "data.evaluate is validation, but data.validation_pairs is 0; ask for some, or score on test"
            )


@dataclass(frozen=True)
class ModelConfig(Section):
    """The frozen backbone and how a text becomes one embedding."""

    base_model: str = "all-MiniLM-L6-v2"
    pooling: PoolingName = "auto"  # auto: mean for encoders, last for causal models; first: BERT's [CLS]
    normalize: float = 10.0  # L2-normalise the pooled embedding and multiply; 0: leave it
    max_tokens: int = 256
    truncation: TruncationName = "left"  # the side a longer text loses: a response comes last
    dtype: DtypeName = "auto"
    quantize: QuantizeName = "none"  # 4bit: the frozen linear weights in NF4; needs CUDA and bitsandbytes

    def _check(self) -> None:
        self._range("normalize", 0, 1000)
        self._range("max_tokens", 2, 8192)


@dataclass(frozen=True)
class AdapterConfig(Section):
    """Where the low-rank factors sit and which of them is shared (DESIGN section 4)."""

    share: ShareName = "A"
    head: HeadName = "auto"  # auto: personal for share "none", shared otherwise
    rank: int = 2
    alpha: float = 2.0
    target_modules: tuple[str, ...] = ("output.dense",)
    layers: tuple[int, ...] = (-1,)  # block indices, negative from the end; (): all
    share_base: tuple[str, ...] = ()
    """Parts of the base that are trained and shared as well: "head" (the score head, which then can't be
    personal), "norm" (weights and biases of the norms in the adapted blocks), or the path of a module from
    the backbone's root, where * stands for anything ("encoder.layer.*.intermediate")."""

    @property
    def rule(self) -> ShareRule:
        """The rule that `share` names."""
        return share_rule(self.share)

    def __post_init__(self) -> None:
        SHARES.check(self.share)
        super().__post_init__()

    def _check(self) -> None:
        rule = self.rule
        self._range("rank", 1, 512)
        self._range("alpha", 1e-3, 4096)
        if not self.target_modules:
            raise ConfigError("adapter.target_modules is empty; name at least one linear module")
        if rule.shares_nothing and self.head == "shared":
            raise ConfigError(
                f'adapter.head is "shared" although share "{rule.name}" shares nothing; drop one'
            )
        if self.share_base and not rule.shares_base:
            raise ConfigError(
                f'adapter.share_base is set but share "{self.share}" shares nothing of the base; drop one'
            )
        if "head" in self.share_base and self.head == "personal":
            raise ConfigError(
                'adapter.share_base names the head although adapter.head is "personal"; drop one'
            )


@dataclass(frozen=True)
class TrainingConfig(Section):
    """Local training on one device, once a round. Learning rates are the optimiser's, per part.

    order: of the two parts within a round. "joint": both at once (FedSim); "personal-first": the personal
    part alone, then both; "alternating": the personal part alone, then the shared part alone (FedAlt; both
    names of Pillutla et al., ICML 2022).
    """

    optimizer: OptimizerName = "adamw"  # starts afresh on a device in every round
    shared_optimizer: SharedOptimizerName = "same"  # of the shared part: sgd goes with fedadam on the server
    lr_shared: float = 3e-3
    lr_personal: float = 1e-2
    lr_head: float = 3e-3
    warmup_lr: float = 0.0  # of everything in warm-up rounds; 0: lr_shared, and lr_head for the head
    local_epochs: int = 6
    batch_size: int = 0  # pairs a step; 0: all of a person's pairs at once
    chunk: int = 0  # pairs whose activations are held at a time, to spare memory; 0: a whole batch's
    weight_decay: float = 0.0
    order: OrderName = "joint"
    personal_epochs: int = 0  # of the personal part alone, unless joint; 0: as many as local_epochs
    pull: float = 0.0  # L2 pull of the personal part towards the common start
    refit_epochs: int = 30  # personal part on the final shared factors, after the last round
    refit_lr: float = 1e-2
    prior_spread: float = 3.0  # of margins before any choice, where the personal part is fitted alone
    prior_head: float = 1.0  # the spread that a personal head adds, as a part of prior_spread

    def _check(self) -> None:
        for name in ("lr_shared", "lr_personal", "lr_head", "warmup_lr", "refit_lr"):
            self._range(name, 0, 1)
        self._range("local_epochs", 1, 1000)
        self._range("batch_size", 0, 100_000)
        self._range("chunk", 0, 100_000)
        self._range("weight_decay", 0, 100)
        self._range("personal_epochs", 0, 1000)
        self._range("pull", 0, 1e6)
        self._range("refit_epochs", 0, 10_000)
        self._range("prior_spread", 1e-3, 1e3)
        self._range("prior_head", 1e-3, 1e3)

    @property
    def alone_epochs(self) -> int:
        """Epochs of the personal part alone, before the shared part is trained."""
        return 0 if self.order == "joint" else self.personal_epochs or self.local_epochs

    @property
    def epochs(self) -> int:
        """Most passes over a person's pairs that one round costs."""
        return max(self.alone_epochs + self.local_epochs, self.refit_epochs)

    def warming(self) -> Self:
        """The settings of warm-up rounds, in which everything is shared."""
        if not self.warmup_lr:
            return self
        return dataclasses.replace(self, lr_shared=self.warmup_lr, lr_head=self.warmup_lr)


@dataclass(frozen=True)
class FederationConfig(Section):
    """Rounds, cohorts and the server's optimiser."""

    rounds: int = 30
    warmup_rounds: int = 0  # rounds of share "AB" before the personal part splits off
    cohort: int = 0  # clients a round; 0: a third of the people, at least ten
    min_survivors: int = 0  # 0: what the protocol needs
    deadline_seconds: float = 600.0  # of one exchange
    patience_seconds: float = 3600.0  # for a cohort of real devices to be there; simulated ones always are
    attempts: int = 3  # of one round, each with fresh keys
    server_optimizer: ServerOptimizerName = "fedavg"
    server_lr: float = 1.0
    server_beta1: float = 0.9
    server_beta2: float = 0.99
    server_epsilon: float = 1e-3
    clip: float = 10.0  # L2 norm of one client's update
    max_weight: int = 1024  # most examples one client may count for

    def __post_init__(self) -> None:
        SERVER_OPTIMIZERS.check(self.server_optimizer)
        super().__post_init__()

    def _check(self) -> None:
        self._range("rounds", 0, 4000)
        self._range("warmup_rounds", 0, 4000)
        if self.warmup_rounds > self.rounds:
            raise ConfigError(
                f"federation.warmup_rounds is {self.warmup_rounds} but there are only {self.rounds} rounds"
            )
        self._range("cohort", 0, 1_000_000)
        self._range("min_survivors", 0, 1_000_000)
        self._range("deadline_seconds", 0.1, 7 * 86400)
        self._range("patience_seconds", 0, 365 * 86400)
        self._range("attempts", 1, 100)
        self._range("server_lr", 0, 100)
        self._range("server_beta1", 0, 0.9999)
        self._range("server_beta2", 0, 0.99999)
        self._range("server_epsilon", 1e-12, 1)
        self._range("clip", 1e-6, 1e6)
        self._range("max_weight", 1, 1 << 20)


@dataclass(frozen=True)
class PrivacyConfig(Section):
    """Secure aggregation. `min_honest` and `max_colluders` are the owners' policy, never the server's."""

    secagg: bool = True
    min_honest: int = 10
    max_colluders: int = 2
    group_size: int = 256
    ring_bits: int = 32

    def _check(self) -> None:
        self._range("min_honest", 1, 100_000)
        self._range("max_colluders", 0, 100_000)
        self._range("group_size", 3, 1000)
        if self.ring_bits not in (32, 64):
            raise ConfigError(f"privacy.ring_bits is {self.ring_bits}; it must be 32 or 64")


@dataclass(frozen=True)
class RunConfig(Section):
    """Everything a run needs; `penchant simulate` writes it into the run directory first."""

    seed: int = 0
    grid: GridName = "local"
    workers: int = 0  # clients served at a time; 0: one per core
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    federation: FederationConfig = field(default_factory=FederationConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)

    def _check(self) -> None:
        self._range("seed", 0, 2**63 - 1)
        self._range("workers", 0, 1024)
        if self.federation.warmup_rounds and not self.adapter.rule.can_warm_up:
            raise ConfigError(
                f'share "{self.adapter.share}" has no split to warm up for; set federation.warmup_rounds to 0'
            )

    @classmethod
    def _title(cls) -> str:
        return "run"

    # --- TOML ------------------------------------------------------------------------------------

    @classmethod
    def from_toml(cls, text: str) -> Self:
        """Read a TOML document; missing keys take their defaults, unknown keys are refused."""
        try:
            table = tomllib.loads(text)
        except (ValueError, RecursionError) as error:  # ValueError: TOMLDecodeError, and too many digits
            raise ConfigError(f"the configuration is not valid TOML: {error}") from None
        return build_section(cls, table, "")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a TOML file; ConfigError when it can't be read."""
        try:
            return cls.from_toml(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"can't read configuration {path}: {error}") from None

    def to_toml(self) -> str:
        """The whole configuration, defaults included, so that a run directory explains itself."""
        return tomli_w.dumps(section_table(self))

    def changed(self, changes: Mapping[str, Any]) -> Self:
        """A copy with dotted keys replaced, e.g. ``{"adapter.share": "B", "seed": 3}``."""
        table = section_table(self)
        for key, value in changes.items():
            *path, last = key.split(".")
            target = table
            for name in path:
                target = target.setdefault(name, {})
                if not isinstance(target, dict):
                    raise ConfigError(f'unknown configuration key "{key}": {name} is no table')
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
        )


@dataclass(frozen=True)
class Plan(Section):
    """What a device is asked to do in one round: public, equal for all, bound by the context digest."""

    phase: Phase
    cohort: int  # most clients in the round: with clip and max_weight it fixes the quantiser
    start_sent: bool  # the personal part's common start (from the warm-up) follows the shared factors
    seed: int  # of the common start; protects nothing
    model: ModelConfig
    adapter: AdapterConfig
    training: TrainingConfig
    clip: float
    max_weight: int
    ring_bits: int
    group_size: int

    def _check(self) -> None:
        self._range("cohort", 1, 1_000_000)
        self._range("seed", 0, 2**63 - 1)
        self._range("clip", 1e-6, 1e6)
        self._range("max_weight", 1, 1 << 20)
        self._range("group_size", 3, 1000)
        if self.ring_bits not in (32, 64):
            raise ConfigError(f"plan.ring_bits is {self.ring_bits}; it must be 32 or 64")

    def encode(self) -> bytes:
        """Canonical bytes: JSON with sorted keys and no spaces, in UTF-8."""
        table = section_table(self)
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
        plan = build_section(cls, table, "plan")
        if canonical and plan.encode() != data:
            raise ConfigError("the plan is not in its canonical form")
        return plan


def _refuse_unknown_share(adapter: object) -> None:
    """ConfigError for a plan by a share rule that this device does not have: its owner is told what to do."""
    share = adapter.get("share") if isinstance(adapter, dict) else None
    if isinstance(share, str) and share not in SHARES:
        raise ConfigError(
            f"the plan asks for share {share[:40]!r}, which is not known here; install the package that adds "
            "it, or ask the operator for another plan"
        )


def config_digest(config: RunConfig) -> str:
    """SHA-256 (hex) of the configuration's TOML: the same configuration, the same digest."""
    return hashlib.sha256(config.to_toml().encode()).hexdigest()


# --- reading and writing, for all sections --------------------------------------------------------
