"""What a model scores a response by, and the loss that training makes small: one `Objective` for each way.

To add one, write it and register it, here (`_OWN`) or in a package of one's own (docs/plugins.md). Everything
else, from the split over the round to the report, is the same for all: it sees scores and their differences.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from penchant.common.errors import ConfigError
from penchant.common.registry import Registry

if TYPE_CHECKING:  # configurations are checked without torch
    from torch import Tensor

__all__ = [
    "OBJECTIVES",
    "REWARD",
    "LogProbabilities",
    "Objective",
    "find_objective",
    "objective",
    "objective_names",
    "register_objective",
]


@dataclass(frozen=True)
class LogProbabilities:
    """What a language model says of n responses, each given its prompt; float32 [n] each.

    Attributes:
        policy: log π(response | prompt) of the model with its factors, summed over the response's tokens.
        reference: the same of the base model alone.
        tokens: how many tokens that is, the end of the text included.
    """

    policy: Tensor
    reference: Tensor
    tokens: Tensor


@dataclass(frozen=True)
class Objective:
    """One way to score a response and to learn from pairs of scores.

    Args:
        name: what configurations and flags call it.
        label: what pages call the models that it makes.
        implicit: (log-probabilities, model.beta) -> scores [n], differentiable, for models that write; None
            for models that score by a head over the text's embedding. With a reference in it the base model
            scores 0.
        losses: (margins, model.beta) -> losses [pairs], differentiable; a margin is the score of the chosen
            less that of the rejected response. None stands for -log σ(margin), the negative log-likelihood
            of a choice (Bradley and Terry 1952).
        said: what a score is but for the factor model.beta, in a few words for the cards of exports; "" says
            nothing.
    """

    name: str
    label: str
    implicit: Callable[[LogProbabilities, float], Tensor] | None = None
    losses: Callable[[Tensor, float], Tensor] | None = None
    said: str = ""

    @property
    def has_head(self) -> bool:
        """Whether scores come from a head over the text's embedding, and not from log-probabilities."""
        return self.implicit is None

    @property
    def reads_beta(self) -> bool:
        """Whether model.beta changes anything: either of its parts is given it."""
        return self.implicit is not None or self.losses is not None


OBJECTIVES = Registry("model.objective", "penchant.objectives")


def register_objective(objective: Objective) -> None:
    """Make an objective known by its name, for this process. ConfigError when the name is taken or not valid.

    A package that is installed does the same for every process by an entry point in the group
    "penchant.objectives".
    """
    OBJECTIVES.register(objective, Objective, "an Objective")


def objective(name: str) -> Objective:
    """The objective of a name. ConfigError that lists the choices when there is none."""
    return OBJECTIVES.find(name, Objective, "an Objective")


def find_objective(name: str) -> Objective | None:
    """The objective of a name; None where it is not known here, as in a result from another machine."""
    try:
        return objective(name)
    except ConfigError:
        return None


def objective_names() -> tuple[str, ...]:
    """All names of objectives, penchant's own first."""
    return OBJECTIVES.names()


# --- penchant's own -------------------------------------------------------------------------------

REWARD = "reward"


def _log_ratio(found: LogProbabilities, beta: float) -> Tensor:
    return beta * (found.policy - found.reference)


def _mean_log_ratio(found: LogProbabilities, beta: float) -> Tensor:
    return beta * (found.policy - found.reference) / found.tokens.clamp(min=1)


def _mean_likelihood(found: LogProbabilities, beta: float) -> Tensor:
    return beta * found.policy / found.tokens.clamp(min=1)


def _ahead_by_half(margins: Tensor, beta: float) -> Tensor:
    """-log σ(margin - γ) with γ = β/2: the chosen response is to be so much likelier a token."""
    behind = beta / 2 - margins
    return behind.logaddexp(behind.new_zeros(()))


def _to_a_target(margins: Tensor, beta: float) -> Tensor:
    """(margin/β - 1/2β)²: the log-ratios are to differ by 1/2β, and by no more."""
    return (margins / beta - 1 / (2 * beta)).square()


_OWN = (
    Objective(name=REWARD, label="personal reward models"),  # Bradley and Terry over a score head
    # Rafailov et al., NeurIPS 2023: the same likelihood, of the implicit reward β log π/π_ref
    Objective(
        name="dpo",
        label="personal policies (DPO)",
        implicit=_log_ratio,
        said="its log-probability with the adapter, less that without it",
    ),
    # Azar et al., AISTATS 2024, equation 17, per token as in TRL: the loss then doesn't grow with the length
    Objective(
        name="ipo",
        label="personal policies (IPO)",
        implicit=_mean_log_ratio,
        losses=_to_a_target,
        said="its mean log-probability per token with the adapter, less that without it",
    ),
    # Meng et al., NeurIPS 2024: no reference; γ/β = 1/2, where their search for it begins
    Objective(
        name="simpo",
        label="personal policies (SimPO)",
        implicit=_mean_likelihood,
        losses=_ahead_by_half,
        said="its mean log-probability per token with the adapter",
    ),
)
for _objective in _OWN:
    OBJECTIVES.add(_objective.name, _objective, own=True)
