"""The owner's policy: what this device accepts, whatever a server says."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, time
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from penchant.client.secagg import SecAggPolicy
from penchant.client.vault.ownership import read_owned
from penchant.client.vault.run_ledger import RunLimits
from penchant.common.config import (
    LEAST_DELTA,
    MOST_DELTA,
    MOST_EPSILON,
    ModelConfig,
    Plan,
    TrainingConfig,
)
from penchant.common.errors import AgreementError, ConfigError, PolicyRefusal
from penchant.common.model import announced
from penchant.common.model.factors import Split
from penchant.common.secagg.transcript import threshold
from penchant.common.settings import Section, build_section, setting
from penchant.common.shares import BASE, Head
from penchant.common.wire.messages import Announce, Kind

__all__ = ["MOST_COUNTED", "OwnerPolicy", "checked_factors"]

MOST_COUNTED: Final = 1_000_000
"""The largest of the owner's limits on rounds, runs and attempts."""

Vector = NDArray[np.float32]

ANY = "*"  # in a list of names: whatever there is

LINEAR = (
    *("query", "key", "value", "output.dense", "intermediate.dense", "attention.output.dense"),
    *("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "gate_proj", "down_proj"),
    *("c_attn", "c_proj", "c_fc", "fc_in", "fc_out", "fc1", "fc2", "out_proj", "Wqkv", "Wo", "Wi"),
)
"""Linear modules of the usual transformers, which read no word by itself as an embedding does."""


@dataclass(frozen=True)
class OwnerPolicy(Section):
    """Set by the device's owner, never by a message."""

    base_models: tuple[str, ...] = setting(
        ("all-MiniLM-L6-v2",), "The only base models that this device loads."
    )
    min_honest: int = setting(10, "How many honest people every sum must hold.", low=1, high=100_000)
    max_colluders: int = setting(
        2, "How many devices of the whole fleet may work with the server.", low=0, high=100_000
    )
    allow_unmasked: bool = setting(False, "Whether anything may leave without secure aggregation.")
    paused: bool = setting(False, "Whether the device takes part in nothing for now.")
    hours: str = setting(
        "", 'The local times of day between which it takes part, such as "22:00-06:30"; empty for always.'
    )
    max_epochs: int = setting(
        100, "How many passes over the owner's pairs one round may cost.", low=1, high=1_000_000
    )
    max_factor: float = setting(
        announced.LARGEST, "The largest absolute value of any received number.", low=1e-3, high=1e9
    )
    max_message_mb: int = setting(64, "The largest size of one message, in MB.", low=1, high=512)
    runs: Literal["signed", "each"] = setting(
        "signed",
        'The runs that it takes part in: "signed" for all whose manifest the authority signed, "each" for '
        "those alone that the owner has accepted, with `penchant device accept-run`.",
    )
    rounds_a_day: int = setting(
        100,
        "How many rounds a day (UTC) it takes part in, over all runs and fleets.",
        low=1,
        high=MOST_COUNTED,
    )
    runs_a_month: int = setting(
        8, "How many new runs it takes part in within 30 days.", low=1, high=MOST_COUNTED
    )
    attempts_a_round: int = setting(10, "How often it may be asked for one round.", low=1, high=MOST_COUNTED)
    attempts_a_day: int = setting(
        200, "How many times a day it may be asked in total.", low=1, high=MOST_COUNTED
    )
    sums_a_run: int = setting(
        MOST_COUNTED,
        "How many vectors one run may take from it, failed attempts included; its plan may say fewer.",
        low=1,
        high=MOST_COUNTED,
    )
    max_epsilon: float = setting(
        8.0,
        "The budget of differential privacy: the most epsilon that this device spends in total, over all "
        "runs and fleets. A vector that would go beyond it is not sent.",
        low=0,
        high=MOST_EPSILON,
    )
    delta: float = setting(1e-5, "The delta that belongs to max_epsilon.", low=LEAST_DELTA, high=MOST_DELTA)
    allow_exact_sums: bool = setting(
        False,
        "Whether it takes part in runs whose sums carry no noise, so that no epsilon bounds what they tell.",
    )
    shares: tuple[str, ...] = setting(
        ("A", "B", "kernel", "svd", "AB", "none", "ffa", "lore", "mixed", "common"),
        'The share rules that a plan may ask for; in this list and the next two "*" stands for any.',
    )
    modules: tuple[str, ...] = setting(
        LINEAR, "The linear modules that a plan may put factors in, by the end of their names."
    )
    base_parts: tuple[str, ...] = setting(
        (), "The parts of the base model that a plan may have trained and shared as well."
    )
    shared_head: bool = setting(True, "Whether the score head may be shared.")
    warm_up: bool = setting(True, "Whether rounds that share both factors may come first.")
    last_blocks: int = setting(
        1,
        "How many blocks, counted from the last one, may get factors; the first ones see little but words.",
        low=1,
        high=10_000,
    )
    any_block: bool = setting(
        False, "Whether every block may get factors: a plan then names blocks as it likes, or means all."
    )
    max_modules: int = setting(8, "How many modules may get factors.", low=0, high=10_000)
    max_rank: int = setting(16, "The largest rank of the factors.", low=1, high=512)
    max_scale: float = setting(
        8.0,
        "The largest alpha / rank, by which the product of the factors is multiplied.",
        low=1e-3,
        high=4096,
    )
    max_shared: int = setting(100_000, "How many numbers a vector may hold.", low=1, high=1 << 31)
    max_factor_ratio: float = setting(
        1.0,
        "How large an announced factor may be, as a fraction of the weight that it changes (L2 norms).",
        low=1e-6,
        high=1e9,
    )
    max_head_norm: float = setting(
        30.0, "The largest L2 norm of an announced score head, or of a basis for it.", low=1e-3, high=1e9
    )
    min_tokens: int = setting(
        16,
        "How many tokens of a text a plan must read at least; the first two or three name a text.",
        low=2,
        high=8192,
    )
    min_blocks: int = setting(
        3,
        "Through how many blocks of the base model states must have gone, where a plan does not read those "
        "after all of them alone; after the first ones they are hardly more than the words.",
        low=1,
        high=1000,
    )
    poolings: tuple[str, ...] = setting(
        ("auto", "mean"),
        'Which tokens may give a text its embedding; "*" stands for any. auto is the mean for encoders and '
        "the last for causal models.",
    )
    max_normalize: float = setting(
        30.0, "The largest length that embeddings may be scaled to.", low=1e-3, high=1000
    )
    unnormalized: bool = setting(False, "Whether embeddings may keep the length that they have.")
    objectives: tuple[str, ...] = setting(
        ("reward",),
        'What a plan may have learned, by objective; "*" stands for any. What a policy is taught by choices '
        "(dpo, ipo, simpo) reaches every word of their responses, so that is for the owner to allow.",
    )
    max_beta: float = setting(
        1.0, "The largest scale of scores that are made of log-probabilities.", low=1e-3, high=100
    )
    optimizers: tuple[str, ...] = setting(("adamw",), "The optimisers that a plan may ask for.")
    max_rate: float = setting(
        0.1,
        "The largest learning rate, and the most that one step may shrink a number by weight decay or by "
        "the L2 penalty, as a fraction.",
        low=0,
        high=1e9,
    )
    min_batch: int = setting(
        4,
        "The fewest pairs that a step may be made for, where a plan cuts an epoch into steps.",
        low=1,
        high=100_000,
    )
    max_clip: float = setting(
        10.0, "The largest L2 norm of what one round may take from this device.", low=1e-6, high=1e6
    )
    max_weight: int = setting(1024, "The most choices that this device may count for.", low=1, high=1 << 20)
    min_training_seconds: float = setting(
        10.0,
        "How long the training of one round must be given; with less, a sum may hold few people's choices.",
        low=0.1,
        high=3000,
    )
    max_training_seconds: float = setting(
        600.0, "How long the training of one round may take.", low=0.1, high=3000
    )
    max_training_mb: int = setting(
        4096, "How much memory that training may take beyond the loaded model, in MB.", low=16, high=1 << 20
    )
    max_disk_mb: int = setting(
        1024,
        "How much disk the vault may take, in MB; a round that would need more is not begun.",
        low=1,
        high=1_000_000,
    )
    keep_runs: int = setting(
        4, "How many runs' personal factors are kept; older ones are removed.", low=1, high=1000
    )

    def _check(self) -> None:
        if self.hours:
            _span(self.hours)

    @classmethod
    def _title(cls) -> str:
        return "policy"

    @classmethod
    def read(cls, path: Path) -> OwnerPolicy:
        """The policy in a TOML file; ConfigError for an unknown key, a bad value, an unreadable file, or one
        that others can write."""
        try:
            table = tomllib.loads(read_owned(path))
        except (OSError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, or no TOML
            raise ConfigError(f"can't read the owner's policy {path}: {error}") from None
        return build_section(cls, table, "")

    def ready(self, now: datetime) -> bool:
        """Whether the device takes part at `now` (local time)."""
        return not self.paused and self._within(now.time())

    def _within(self, now: time) -> bool:
        if not self.hours:
            return True
        start, end = _span(self.hours)
        return start <= now < end if start <= end else now >= start or now < end

    def limits(self) -> RunLimits:
        """The part of the policy that the vault's ledger of runs enforces."""
        return RunLimits(self.rounds_a_day, self.runs_a_month, self.attempts_a_round, self.attempts_a_day)

    def secagg(self) -> SecAggPolicy:
        """The part of the policy that the role in secure aggregation enforces."""
        return SecAggPolicy(self.min_honest, self.max_colluders, self.allow_unmasked)

    def honest_among(self, n: int) -> int:
        """Honest people that a sum over a group of `n` holds for sure, by this owner's word on colluders."""
        return threshold(n) - self.max_colluders

    def check(self, announce: Announce, plan: Plan) -> None:
        """PolicyRefusal when the owner does not allow what is announced."""
        self.check_time()
        if announce.kind is not Kind.SECAGG and not self.allow_unmasked:
            raise PolicyRefusal("the server asks to send unmasked; only the owner's policy may allow that")
        for allowed, what in self._asked(plan):
            if not allowed:
                raise PolicyRefusal(what)

    def objections(self, plan: Plan) -> list[str]:
        """Everything in a plan that the owner does not allow, in words."""
        return [what for allowed, what in self._asked(plan) if not allowed]

    def check_use(self, plan: Plan) -> None:
        """PolicyRefusal when the owner does not allow a model of this plan on the device: what is loaded, how
        texts are read, what is adapted and how it is trained. Nothing leaves for that, so what bounds sums
        has no say."""
        for allowed, what in self._using(plan):
            if not allowed:
                raise PolicyRefusal(what)

    def _asked(self, plan: Plan) -> Iterator[tuple[bool, str]]:
        """(whether the owner allows it, the refusal if not) for everything that a plan asks for and that
        shapes what a sum says. docs/threat-model.md#what-a-plan-can-ask argues for the rest."""
        yield (
            bool(plan.dp_epsilon) or self.allow_exact_sums,
            "the run adds no noise to its sums; only the owner's policy may allow that (allow_exact_sums)",
        )
        yield from self._using(plan)
        yield self._at_most("clip", plan.clip, "max_clip")
        yield self._at_most("weight a person", plan.max_weight, "max_weight")
        yield self._at_least("seconds for training", plan.training_seconds, "min_training_seconds")
        yield self._at_most("seconds for training", plan.training_seconds, "max_training_seconds")

    def _using(self, plan: Plan) -> Iterator[tuple[bool, str]]:
        """What is asked of a device that only has a model of this plan."""
        yield (
            plan.model.base_model in self.base_models,
            f"base model {plan.model.base_model!r} is not among those the owner allows",
        )
        yield from self._reading(plan.model)
        yield from self._adapting(plan)
        yield from self._training(plan.training)

    def _reading(self, model: ModelConfig) -> Iterator[tuple[bool, str]]:
        """What is asked of how a response becomes a score."""
        yield self._at_least("tokens of a text", model.max_tokens, "min_tokens")
        for blocks in filter(None, (model.blocks, model.beside)):
            yield self._at_least("blocks of the base model", blocks, "min_blocks")
        yield self._among("pooling", model.pooling, "poolings")
        yield self._among("objective", model.objective, "objectives")
        yield self._at_most("beta", model.beta, "max_beta")
        yield self._at_most("length of an embedding", model.normalize, "max_normalize")
        raw = not model.normalize
        yield self.unnormalized or not raw, "the plan does not normalise embeddings (unnormalized)"

    def _adapting(self, plan: Plan) -> Iterator[tuple[bool, str]]:
        """What is asked of factors and head: which there are, where, and which of them are shared."""
        adapter, rule = plan.adapter, plan.adapter.rule
        yield self._among("share", rule.name, "shares")
        for module in adapter.target_modules if rule.adapts_modules else ():
            yield self._among("module", module, "modules")
        from_the_end = adapter.layers and all(-self.last_blocks <= block < 0 for block in adapter.layers)
        yield (
            self.any_block or bool(from_the_end),
            f"the plan puts factors into blocks {', '.join(map(str, adapter.layers)) or 'of any number'}; "
            f"the owner allows {-self.last_blocks} to -1 (last_blocks)",
        )
        for part in adapter.share_base:
            yield self._among("part of the base model", part, "base_parts")
        yield self._at_most("rank", adapter.rank, "max_rank")
        yield self._at_most("alpha / rank", adapter.alpha / adapter.rank, "max_scale")
        shares_head = rule.compose_head is None and plan.head is Head.SHARED
        yield self.shared_head or not shares_head, "the plan shares the score head (shared_head)"
        yield self.warm_up or plan.phase != "warmup", "the plan warms up (warm_up)"

    def _training(self, training: TrainingConfig) -> Iterator[tuple[bool, str]]:
        """What is asked of local training.

        With AdamW these bounds keep every number finite, whatever finite gradients come. A step moves one
        by less than 7.3 learning rates (Cauchy and Schwarz, with torch's β1 = 0.9 and β2 = 0.999:
        (1 - β1) / √((1 - β2)(1 - β1²/β2)) = 7.27), and weight decay only shrinks it. An epoch over P pairs
        has P / min_batch steps at most. By default a round therefore moves a number by less than
        7.3 · 0.1 · 100 · P / 4 < 20 P; for 10,000 pairs 2e5. A product of two such factors, of rank 16,
        scaled by 8, over thousands of inputs stays below 1e18, and its square, in a layer norm, far below
        float32's 3e38. SGD has no such bound; what diverges leaves as zeros (docs/threat-model.md).
        """
        yield self._at_most("epochs in one round", training.epochs, "max_epochs")
        for optimizer in {training.optimizer, training.shared_optimizer} - {"same"}:
            yield self._among("optimiser", optimizer, "optimizers")
        rates = training.lr_shared, training.lr_personal, training.lr_head, training.final_fit_lr
        yield self._at_most("learning rate", max(rates), "max_rate")
        shrinking = max(rates) * (training.weight_decay + training.l2_to_start)
        yield self._at_most("learning rate times weight decay and L2 penalty", shrinking, "max_rate")
        if training.batch_size:  # 0: all pairs at once
            yield self._at_least("pairs a step", training.batch_size, "min_batch")

    def check_size(self, split: Split) -> None:
        """PolicyRefusal when more modules would be adapted, or more numbers shared, than the owner allows."""
        for allowed, what in (
            self._at_most("adapted modules", len(split.adapted_modules), "max_modules"),
            self._at_most("shared numbers", split.shared.size, "max_shared"),
        ):
            if not allowed:
                raise PolicyRefusal(what)

    def check_norms(self, split: Split, shared: Vector, start: Vector, norms: Mapping[str, float]) -> None:
        """PolicyRefusal when an announced factor is out of proportion to the weight that it changes.

        Args:
            split: which tensors there are.
            shared: the announced shared factors, float32 [d_shared].
            start: the common start of the personal part, float32 [d_personal].
            norms: the L2 norms of the base model's weights, by the name of a module or parameter.
        """
        for name, tensor in (split.shared.named(shared) | split.personal.named(start)).items():
            module = name.removeprefix(BASE) if name.startswith(BASE) else name.rpartition(".")[0]
            weight = norms.get(module)
            if weight is not None and name.startswith(BASE):
                weight = max(weight, 1.0)  # a bias may well be 0
            most = self.max_head_norm if weight is None else self.max_factor_ratio * weight
            size = float(np.linalg.norm(tensor.astype(np.float64)))
            if size > most:
                raise PolicyRefusal(
                    f"the announced {name} has the L2 norm {size:.3g}; the owner's bound gives {most:.3g} "
                    f"({'max_head_norm' if weight is None else 'max_factor_ratio'})"
                )

    def _at_most(self, what: str, asked: float, bound: str) -> tuple[bool, str]:
        most = getattr(self, bound)
        return asked <= most, f"the plan asks for {asked:g} {what}; the owner allows {most:g} ({bound})"

    def _at_least(self, what: str, asked: float, bound: str) -> tuple[bool, str]:
        least = getattr(self, bound)
        return asked >= least, f"the plan asks for {asked:g} {what}; the owner wants {least:g} ({bound})"

    def _among(self, what: str, asked: str, bound: str) -> tuple[bool, str]:
        allowed = getattr(self, bound)
        listed = ", ".join(allowed) or "none"
        return (
            asked in allowed or ANY in allowed,
            f"the plan asks for {what} {asked!r}; the owner allows {listed} ({bound})",
        )

    def check_time(self, *, sent: bool = False) -> None:
        """PolicyRefusal while paused, or outside the hours. A round whose vector was `sent` already may be
        finished outside the hours; a pause holds at once."""
        if self.paused:
            raise PolicyRefusal("paused by the owner")
        if not sent and not self._within(datetime.now().time()):
            raise PolicyRefusal(f"outside the hours that the owner allows, {self.hours}")


def _span(hours: str) -> tuple[time, time]:
    """("HH:MM-HH:MM") -> start and end; ConfigError for anything else."""
    try:
        start, end = (time.fromisoformat(part.strip()) for part in hours.split("-"))
        if start.tzinfo or end.tzinfo:
            raise ValueError("hours are local times")
    except ValueError:
        raise ConfigError(f'policy.hours is "{hours}"; write it like "22:00-06:30"') from None
    return start, end


def checked_factors(data: bytes, size: int, largest: float) -> Vector:
    """The announced factors, float32 [size]; AgreementError unless they are that many, finite and bounded.

    They lie in `data`, and can't be written. Checked before anything else is done with them
    (docs/threat-model.md#attack-defence-test).
    """
    if len(data) != 4 * size:
        raise AgreementError(
            f"the announced factors have {len(data)} bytes, expected {size} numbers of 4 bytes"
        )
    factors = np.frombuffer(data, dtype="<f4").astype(np.float32, copy=False)
    announced.check(factors, largest)
    return factors
