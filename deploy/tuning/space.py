"""What a search draws from: those settings that bear on a share, the same ranges for every share.

A place is what Optuna draws, a flat table of numbers and names; `drawn` makes dotted configuration keys of
one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

from penchant.common.config import RunConfig
from penchant.common.shares import COMMON_HEAD, Fitting, Part, share_rule

if TYPE_CHECKING:
    import optuna

__all__ = ["OPTIMIZERS", "SECTIONS", "Changes", "Space", "begun", "drawn", "there"]

Changes = dict[str, Any]

SECTIONS: Final = ("model", "adapter", "training", "federation")
LEAST: Final = {
    "training.weight_decay": 1e-5,
    "training.lr_head": 1e-4,
    "training.lr_personal": 1e-3,
    "training.l2_to_start": 1e-4,
}
AS_THEY_ARE: Final = (
    "model.pooling",
    "model.max_tokens",
    "model.normalize",
    "adapter.rank",
    "adapter.head",
    "training.local_epochs",
    "training.final_fit_epochs",
    "federation.rounds",
    "federation.cohort",
    "federation.warmup_rounds",
)

OPTIMIZERS: Final[Mapping[str, Changes]] = {
    "adam": {"training.lr_shared": (1e-3, 3e-2)},
    "adam twice": {"training.lr_shared": (1e-3, 3e-2), "federation.server_lr": (1e-3, 0.1)},
    "plain": {"training.lr_shared": (0.03, 1.0), "federation.server_lr": (1.0, 10.0)},
}
"""Of the shared part, with the ranges of its rates: AdamW on the devices; with Adam on the server as well;
plain gradients on the devices, long steps of the server."""


_WHOLE: Final = {"training.local_epochs": (1, 12), "adapter.rank": (1, 4)}
DEPTH: Final = "depth"
_HEADS: Final = ("shared", "personal")
_WARMUPS: Final = (0, 5)


@dataclass(frozen=True)
class Space:
    """What is searched beside rates, passes, rounds, rank and the prior of the personal part; an empty tuple
    leaves a setting as it is asked for.

    Attributes:
        poolings, max_tokens: of the embedding.
        depths: how deep the base model may be read, the usual way last: what each is called, and its
            settings.
        lengths: the least and the most that an embedding is scaled to.
        cohorts: people a round.
        final_fits: passes after the last round.
        work: most passes over the pairs of a person who is in every round: no share gets more than another.
        rounds: least and most.
    """

    poolings: Sequence[str] = ()
    max_tokens: Sequence[int] = ()
    lengths: Sequence[float] = ()
    cohorts: Sequence[int] = ()
    final_fits: Sequence[int] = (0, 30)
    work: int = 180
    rounds: tuple[int, int] = (6, 60)
    depths: Mapping[str, Changes] = field(default_factory=dict)


def drawn(trial: optuna.Trial, share: str, space: Space) -> Changes:
    """A configuration, from those settings that bear on `share`."""
    rule = share_rule(share)
    epochs = trial.suggest_int("training.local_epochs", *_WHOLE["training.local_epochs"], log=True)
    rounds = trial.suggest_int("federation.rounds", *space.rounds, log=True)
    rank = trial.suggest_int("adapter.rank", *_WHOLE["adapter.rank"])
    # Of what shares nothing, everybody is in every round.
    most = space.work // 3 if rule.shares_nothing else space.work
    changes: Changes = {
        **_named(trial, "model.pooling", space.poolings),
        **_named(trial, "model.max_tokens", space.max_tokens),
        **_deep(trial, share, space),
        "adapter.rank": rank,
        "adapter.alpha": float(rank),
        "training.local_epochs": epochs,
        **_named(trial, "training.final_fit_epochs", _fits(share, space)),
        "training.weight_decay": rate(trial, "training.weight_decay", 1e-5, 1),
        "federation.rounds": min(rounds, max(1, most // epochs)),
    }
    if space.lengths:
        changes["model.normalize"] = rate(trial, "model.normalize", *space.lengths)
    if _is_headed(share):
        changes["training.lr_head"] = rate(trial, "training.lr_head", 1e-4, 1)
    if any(factor.part is Part.PERSONAL for factor in rule.factors):
        changes["training.lr_personal"] = rate(trial, "training.lr_personal", 1e-3, 0.1)
        changes["training.l2_to_start"] = rate(trial, "training.l2_to_start", 1e-4, 1)
    if rule.can_warm_up:
        changes |= _named(trial, "adapter.head", _HEADS)
        changes |= _named(trial, "federation.warmup_rounds", _WARMUPS)
    if not rule.shares_nothing:
        changes |= _named(trial, "federation.cohort", space.cohorts)
        changes |= _optimizer(trial)
    return changes


def begun(share: str, space: Space) -> list[Changes]:
    """Where every search starts: a setting of each optimiser, with each pooling that is searched."""
    depths = list(_depths(share, space))
    common: Changes = {
        "training.local_epochs": 4,
        "federation.rounds": 40,
        "adapter.rank": 2,
        "model.max_tokens": 24,
        "model.normalize": 10.0,
        "training.weight_decay": 1e-3,
        "training.lr_personal": 0.01,
        "training.l2_to_start": 0.01,
        "training.final_fit_epochs": max(_fits(share, space), default=0),
        **({DEPTH: depths[-1]} if depths else {}),
        "adapter.head": "shared",
        "federation.warmup_rounds": 0,
        "federation.cohort": 34,
    }
    adam = {"training.lr_head": 3e-3, "optimizer": "adam", "adam.training.lr_shared": 3e-3}
    if share_rule(share).shares_nothing:
        return _pooled(space, common | adam)
    twice = {
        "training.lr_head": 3e-3,
        "optimizer": "adam twice",
        "adam twice.training.lr_shared": 3e-3,
        "adam twice.federation.server_lr": 0.01,
    }
    plain = {
        "training.lr_head": 0.1,
        "optimizer": "plain",
        "plain.training.lr_shared": 1.0,
        "plain.federation.server_lr": 3.0,
    }
    return _pooled(space, common | adam, common | twice, common | plain)


def there(config: RunConfig, space: Space) -> Changes:
    """Settings that are there as a place of the space: numbers become the nearest that is drawn, and what is
    chosen by name is left to be drawn where it is none of those there are."""
    known = asdict(config)
    found = {f"{table}.{key}": value for table in SECTIONS for key, value in known[table].items()}
    sgd, adam = found["training.shared_optimizer"] == "sgd", found["federation.server_optimizer"] == "fedadam"
    chosen = "plain" if sgd else "adam twice" if adam else "adam"
    place: Changes = {name: max(found[name], low) for name, low in LEAST.items()}
    place |= {name: found[name] for name in AS_THEY_ARE}
    depths = _depths(config.adapter.share, space)
    deep = [name for name, own in depths.items() if own.items() <= found.items()]
    if deep:
        place[DEPTH] = deep[0]
    if place["model.pooling"] == "auto":
        place["model.pooling"] = "mean"  # MiniLM is an encoder
    if place["adapter.head"] == "auto":
        place["adapter.head"] = config.head.value
    rates = {f"{chosen}.{name}": found[name] for name in OPTIMIZERS[chosen]}
    for name, (low, high) in {**_WHOLE, "federation.rounds": space.rounds}.items():
        place[name] = min(max(place[name], low), high)
    choices: Mapping[str, Sequence[Any]] = {
        "model.pooling": space.poolings,
        "model.max_tokens": space.max_tokens,
        "training.final_fit_epochs": _fits(config.adapter.share, space),
        "federation.cohort": space.cohorts,
        "federation.warmup_rounds": _WARMUPS,
        "adapter.head": _HEADS,
    }
    place = {name: value for name, value in place.items() if value in choices.get(name, (value,))}
    return place | {"optimizer": chosen} | rates


# --- inner parts ----------------------------------------------------------------------------------


def rate(trial: optuna.Trial, name: str, low: float, high: float) -> float:
    """Two digits, so that a recipe can be read."""
    return float(f"{trial.suggest_float(name, low, high, log=True):.1e}")


def _named(trial: optuna.Trial, name: str, choices: Sequence[Any]) -> Changes:
    return {name: trial.suggest_categorical(name, choices)} if choices else {}


def _depths(share: str, space: Space) -> Mapping[str, Changes]:
    """The depths that a share can be read at: two side by side are for those that adapt no module."""
    adapts = share_rule(share).adapts_modules
    return {name: own for name, own in space.depths.items() if not (adapts and own.get("model.beside"))}


def _deep(trial: optuna.Trial, share: str, space: Space) -> Changes:
    depths = _depths(share, space)
    found = _named(trial, DEPTH, tuple(depths))
    return dict(depths[found[DEPTH]]) if found else {}


def _fits(share: str, space: Space) -> Sequence[int]:
    """The final fits that a share can end with: some are nothing without one."""
    needed = share_rule(share).fitting is not Fitting.ROUNDS
    return tuple(epochs for epochs in space.final_fits if epochs or not needed)


def _is_headed(share: str) -> bool:
    """Whether the rate of a head is read."""
    rule = share_rule(share)
    return rule.compose_head is None or any(factor.tensor == COMMON_HEAD for factor in rule.factors)


def _optimizer(trial: optuna.Trial) -> Changes:
    chosen = trial.suggest_categorical("optimizer", tuple(OPTIMIZERS))
    rates = {
        name: rate(trial, f"{chosen}.{name}", low, high) for name, (low, high) in OPTIMIZERS[chosen].items()
    }
    kinds: dict[str, Changes] = {
        "adam": {},
        "adam twice": {"federation.server_optimizer": "fedadam"},
        "plain": {"training.shared_optimizer": "sgd"},
    }
    return kinds[chosen] | rates


def _pooled(space: Space, *settings: Changes) -> list[Changes]:
    """Each with every pooling that is searched."""
    poolings = [{"model.pooling": pooling} for pooling in space.poolings] or [{}]
    return [setting | pooling for setting in settings for pooling in poolings]
