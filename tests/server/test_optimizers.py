"""How the mean update moves the shared factors: FedAvg by hand, FedAdam against the paper, written out."""

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
from penchant.server.journal import Journal, RoundLog
from penchant.server.optimizers import ServerState

START = np.float32([0.5])


def begin(*factors: float) -> ServerState:
    return ServerState.begin(np.float32(factors), START)


def adam(**changes: Any) -> FederationConfig:
    usual = {"server_lr": 0.1, "server_beta1": 0.9, "server_beta2": 0.99, "server_epsilon": 1e-3}
    return FederationConfig(server_optimizer="fedadam", **{**usual, **changes})


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


# --- through the checkpoint -----------------------------------------------------------------------


@pytest.mark.parametrize("config", [FederationConfig(server_lr=0.7), adam()], ids=["fedavg", "fedadam"])
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
