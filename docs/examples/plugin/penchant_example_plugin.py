"""A share rule, a server optimiser and a data set for penchant, each as short as it gets."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from penchant import (
    DataRequest,
    DatasetLoader,
    Factor,
    Part,
    Preference,
    Prepared,
    ServerState,
    ShareRule,
    Side,
    Start,
    people_from_pairs,
)
from penchant.common.config import FederationConfig
from penchant.server.optimizers import added

# --- a share rule: one model for all, and a personal number for each module: how much of it is mine ------


def scaled(factors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The low-rank pair that a module runs with: B (g A)."""
    return factors["g"] * factors["A"], factors["B"]


GAIN = ShareRule(
    name="gain",
    label="A, B shared, gain personal",
    shared="factors A and B",
    personal="one gain for each module",
    factors=(
        Factor("A", Part.SHARED, (Side.RANK, Side.IN), Start.UNIFORM),
        Factor("B", Part.SHARED, (Side.OUT, Side.RANK), Start.ZEROS),
        Factor("g", Part.PERSONAL, (1,), Start.ONES, warmup=Part.FROZEN),
    ),
    can_warm_up=True,
    compose=scaled,
)


# --- a server optimiser: Lion (Chen et al. 2023), which goes by the sign of the momentum -----------------


class FedLion:
    """x ← x + η sign(β1 m + (1 - β1) Δ); m ← β2 m + (1 - β2) Δ."""

    name = "fedlion"

    def init(
        self, factors: NDArray[np.float32], start: NDArray[np.float32], settings: FederationConfig
    ) -> ServerState:
        """The state before the first round."""
        return ServerState.begin(factors, start)

    def step(
        self, state: ServerState, mean_update: NDArray[np.float64], settings: FederationConfig
    ) -> ServerState:
        """The state after a round."""
        beta1, beta2 = settings.server_beta1, settings.server_beta2
        direction = np.sign(beta1 * state.first + (1 - beta1) * mean_update)
        momentum = beta2 * state.first + (1 - beta2) * mean_update
        return replace(
            state,
            factors=added(state.factors, settings.server_lr * direction),
            first=momentum.astype(np.float32),
            steps=state.steps + 1,
        )


FED_LION = FedLion()


# --- a data set: guests who like either the sweet or the hot dish, made up from the seed -----------------

SWEET = ("honey cake", "plum jam", "vanilla ice", "apple pie", "caramel toast")
HOT = ("chilli stew", "pepper soup", "mustard eggs", "ginger rice", "curry noodles")
GUESTS = 12


def menus(request: DataRequest) -> Prepared:
    """Everybody's choices between a sweet and a hot dish, one for each day."""
    pairs: dict[str, list[Preference]] = {}
    for number in range(GUESTS):
        draw = random.Random(f"{request.seed} {number}")
        sweet_tooth = number % 2 == 0
        pairs[f"guest-{number:02d}"] = [
            Preference(f"Dinner on day {day}: ", *_choice(draw, sweet_tooth)) for day in range(40)
        ]
    people, shortfalls, _ = people_from_pairs(pairs, request.sizes, request.seed)
    return Prepared("menus", people, shortfalls, caveats=("Menus: guests and dishes are made up.",))


def _choice(draw: random.Random, sweet_tooth: bool) -> tuple[str, str]:
    """(chosen, rejected)."""
    sweet, hot = draw.choice(SWEET), draw.choice(HOT)
    return (sweet, hot) if sweet_tooth else (hot, sweet)


MENUS = DatasetLoader(
    name="menus",
    about="Twelve guests who like either sweet or hot dishes; made up.",
    prepare=menus,
    takes_folder=False,
)
