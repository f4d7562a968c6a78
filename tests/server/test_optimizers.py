"""How the mean update moves the shared factors: FedAvg by hand, the others as their papers write them out."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penchant.common.config import FederationConfig
from penchant.common.errors import ConfigError
from penchant.server.journal import Journal, RoundLog
from penchant.server.optimizers import (
    FedAvg,
    ServerState,
    register_server_optimizer,
    server_optimizer,
    server_optimizer_names,
)

START = np.float32([0.5])


def begin(*factors: float) -> ServerState:
    return ServerState.begin(np.float32(factors), START)


def adam(**changes: Any) -> FederationConfig:
    usual = {"server_lr": 0.1, "server_beta1": 0.9, "server_beta2": 0.99, "server_epsilon": 1e-3}
    return FederationConfig(server_optimizer="fedadam", **{**usual, **changes})


def named(name: str, **changes: Any) -> FederationConfig:
    return replace(adam(**changes), server_optimizer=name)


def updates(count: int, size: int = 3, seed: int = 0) -> list[np.ndarray]:
    """Mean updates of several rounds, float64 [size], of very different sizes."""
    draw = np.random.default_rng(seed)
    return [draw.normal(size=size) * 10.0 ** draw.integers(-5, 1, size) for _ in range(count)]


# --- FedAvg ---------------------------------------------------------------------------------------


def test_fedavg_adds_the_mean() -> None:
    after = begin(1.0, -2.0, 0.0).moved(np.array([0.5, 0.25, -1.0]), FederationConfig())
    assert after.factors.tolist() == [1.5, -1.75, -1.0]
    assert after.factors.dtype == np.float32
    assert after.steps == 1


def test_the_servers_rate_scales_the_mean() -> None:
    half = begin(1.0).moved(np.array([0.5]), FederationConfig(server_lr=0.5))
    assert half.factors.tolist() == [1.25]
    still = begin(1.0).moved(np.array([0.5]), FederationConfig(server_lr=0.0))
    assert still.factors.tolist() == [1.0]


def test_a_round_leaves_the_state_before_it_as_it_was() -> None:
    for config in (FederationConfig(), adam()):
        before = begin(1.0, 2.0)
        before.moved(np.array([1.0, 1.0]), config).moved(np.array([1.0, 1.0]), config)
        assert before.factors.tolist() == [1.0, 2.0]
        assert (before.first.tolist(), before.second.tolist(), before.steps) == ([0, 0], [0, 0], 0)


def test_the_personal_start_stays() -> None:
    for config in (FederationConfig(), adam()):
        assert begin(1.0).moved(np.array([1.0]), config).start.tolist() == START.tolist()


# --- FedAdam --------------------------------------------------------------------------------------


def reddi(start: float, means: list[float], c: FederationConfig) -> list[float]:
    """One element through Algorithm 2 of Reddi et al. (ICLR 2021), the FedAdam line, as it is printed:

    initialise m = 0 and v = τ²; for each round, with Δ the mean of the clients' changes:
    m ← β1 m + (1 - β1) Δ;  v ← β2 v + (1 - β2) Δ²;  x ← x + η m / (√v + τ).
    """
    x, m, v = start, 0.0, c.server_epsilon * c.server_epsilon
    path = []
    for mean in means:
        m = c.server_beta1 * m + (1 - c.server_beta1) * mean
        v = c.server_beta2 * v + (1 - c.server_beta2) * mean * mean
        x = x + c.server_lr * m / (math.sqrt(v) + c.server_epsilon)
        path.append(x)
    return path


@given(
    beta1=st.floats(0, 0.9999),
    beta2=st.floats(0, 0.99999),
    epsilon=st.floats(1e-6, 1),
    rate=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_fedadam_is_the_papers_algorithm(
    beta1: float, beta2: float, epsilon: float, rate: float, seed: int
) -> None:
    config = adam(server_beta1=beta1, server_beta2=beta2, server_epsilon=epsilon, server_lr=rate)
    rounds = updates(8, seed=seed)
    state = begin(0.5, -0.25, 0.0)
    expected = [reddi(float(x), [float(u[i]) for u in rounds], config) for i, x in enumerate(state.factors)]
    for number, update in enumerate(rounds):
        state = state.moved(update, config)
        want = np.array([path[number] for path in expected])
        scale = 1 + np.abs(want).max()
        assert state.factors == pytest.approx(want, abs=2e-5 * scale)
    assert state.steps == len(rounds)


def test_the_first_step_by_hand() -> None:
    """β1 = .9, β2 = .99, τ = .001, Δ = .02: m = .002; v = .99·10⁻⁶ + .01·4·10⁻⁴ = 4.99·10⁻⁶."""
    after = begin(1.0).moved(np.array([0.02]), adam())
    assert after.first.tolist() == pytest.approx([0.002])
    assert after.second.tolist() == pytest.approx([4.99e-6])
    assert after.factors.tolist() == pytest.approx([1.0 + 0.1 * 0.002 / (math.sqrt(4.99e-6) + 0.001)])


def test_where_nothing_changed_nothing_moves() -> None:
    after = begin(1.0, 1.0).moved(np.array([0.0, 0.1]), adam())
    assert after.factors[0] == 1.0
    assert after.factors[1] > 1.0


# --- the others of the paper, and momentum --------------------------------------------------------


def written_out(name: str, start: float, means: list[float], c: FederationConfig) -> list[float]:
    """One element through the papers' lines as they are printed.

    FedAvgM (Hsu et al. 2019, section 4.3): v ← β v + Δ; x ← x + η v, with v = 0 before.
    FedAdagrad and FedYogi (Reddi et al. 2021, Algorithm 2): m ← β1 m + (1 - β1) Δ, then
    v ← v + Δ², or v ← v - (1 - β2) Δ² sign(v - Δ²), then x ← x + η m / (√v + τ), with m = 0, v = τ² before.
    """
    x, m, v = start, 0.0, c.server_epsilon * c.server_epsilon
    path = []
    for mean in means:
        square = mean * mean
        if name == "fedavgm":
            m = c.server_beta1 * m + mean
            x = x + c.server_lr * m
        else:
            m = c.server_beta1 * m + (1 - c.server_beta1) * mean
            if name == "fedadagrad":
                v = v + square
            elif v > square:
                v = v - (1 - c.server_beta2) * square
            elif v < square:
                v = v + (1 - c.server_beta2) * square
            x = x + c.server_lr * m / (math.sqrt(v) + c.server_epsilon)
        path.append(x)
    return path


@pytest.mark.parametrize("name", ["fedavgm", "fedadagrad", "fedyogi"])
@given(
    beta1=st.floats(0, 0.99),
    beta2=st.floats(0, 0.99999),
    epsilon=st.floats(1e-6, 1),
    rate=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_the_others_are_their_papers_algorithms(
    name: str, beta1: float, beta2: float, epsilon: float, rate: float, seed: int
) -> None:
    config = named(name, server_beta1=beta1, server_beta2=beta2, server_epsilon=epsilon, server_lr=rate)
    rounds = updates(8, seed=seed)
    state = begin(0.5, -0.25, 0.0)
    expected = [
        written_out(name, float(x), [float(u[i]) for u in rounds], config)
        for i, x in enumerate(state.factors)
    ]
    for number, update in enumerate(rounds):
        state = state.moved(update, config)
        want = np.array([path[number] for path in expected])
        assert state.factors == pytest.approx(want, abs=2e-5 * (1 + np.abs(want).max()))
    assert state.steps == len(rounds)


@pytest.mark.parametrize(
    ("name", "first", "second", "moved"),
    [
        # β1 = .9, β2 = .99, τ = .001, Δ = .02, so Δ² = 4·10⁻⁴ and v = 10⁻⁶ before.
        ("fedavgm", 0.02, 0.0, 0.1 * 0.02),
        ("fedadagrad", 0.002, 4.01e-4, 0.1 * 0.002 / (math.sqrt(4.01e-4) + 0.001)),
        ("fedyogi", 0.002, 5e-6, 0.1 * 0.002 / (math.sqrt(5e-6) + 0.001)),
    ],
)
def test_their_first_steps_by_hand(name: str, first: float, second: float, moved: float) -> None:
    after = begin(1.0).moved(np.array([0.02]), named(name))
    assert after.first.tolist() == pytest.approx([first])
    assert after.second.tolist() == pytest.approx([second])
    assert after.factors.tolist() == pytest.approx([1.0 + moved])
    assert after.factors.dtype == after.first.dtype == after.second.dtype == np.float32


def test_momentum_goes_on_where_nothing_changes_any_more() -> None:
    state = begin(0.0).moved(np.array([1.0]), named("fedavgm", server_lr=1.0))
    state = state.moved(np.array([0.0]), named("fedavgm", server_lr=1.0))
    assert state.factors.tolist() == pytest.approx([1.9])


# --- by name --------------------------------------------------------------------------------------

ALL = ("fedavg", "fedadam", "fedavgm", "fedadagrad", "fedyogi")


def test_every_name_that_a_configuration_may_use_has_an_optimiser() -> None:
    assert server_optimizer_names()[: len(ALL)] == ALL
    for name in ALL:
        state = server_optimizer(name).init(np.float32([1.0]), START, named(name))
        assert (state.factors.tolist(), state.start.tolist(), state.steps) == ([1.0], START.tolist(), 0)


def test_an_unknown_optimiser_is_refused_with_the_choices() -> None:
    line = rf"^federation\.server_optimizer is 'sgd'; choose one of {', '.join(ALL)}$"
    with pytest.raises(ConfigError, match=line):
        FederationConfig(server_optimizer="sgd")
    with pytest.raises(ConfigError, match=line):
        server_optimizer("sgd")


def test_only_optimisers_under_free_names_are_taken() -> None:
    with pytest.raises(ConfigError, match="fedavg is part of penchant and can't be replaced"):
        register_server_optimizer(FedAvg())
    with pytest.raises(ConfigError, match="must be a ServerOptimizer, which has name, init and step"):
        register_server_optimizer(object())  # type: ignore[arg-type]


# --- through the checkpoint -----------------------------------------------------------------------


@pytest.mark.parametrize("config", [named(name, server_lr=0.07) for name in ALL], ids=ALL)
def test_a_restart_after_every_round_changes_nothing(tmp_path: Path, config: FederationConfig) -> None:
    """Written to a checkpoint and read back between any two rounds, the path is the same bit for bit."""
    straight = broken = begin(0.5, -0.25, 0.0)
    log = RoundLog(1, 1, "main", 3, 3, {}, 0.0, 0, 0, 3, None, None, None, 0.0)
    for number, update in enumerate(updates(6), 1):
        straight = straight.moved(update, config)
        journal = Journal(tmp_path)
        journal.begin(number, "main")
        journal.finish(replace(log, round=number), broken.moved(update, config))
        journal.close()
        found = Journal(tmp_path).load()
        assert found is not None
        broken = found[1]
        for name in ("factors", "first", "second", "start"):
            one, other = getattr(straight, name), getattr(broken, name)
            assert one.dtype == other.dtype == np.float32
            assert one.tobytes() == other.tobytes()
        assert broken.steps == straight.steps == number
