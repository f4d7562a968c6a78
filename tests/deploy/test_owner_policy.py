"""The policy of owners who allow what a run asks for: it allows that, and no more than is said."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.scene import announcement

from penchant.client.agent.policy import OwnerPolicy
from penchant.common.config import RunConfig
from penchant.common.errors import PolicyRefusal
from penchant.common.wire.messages import Kind
from penchant.deploy.owner_policy import policy_for

rates = st.floats(0, 1)
ASKED = st.fixed_dictionaries(
    {},
    optional={
        "model.max_tokens": st.integers(2, 8192),
        "model.pooling": st.sampled_from(["auto", "mean", "first", "last"]),
        "model.normalize": st.floats(0, 1000),
        "adapter.share": st.sampled_from(["A", "B", "AB", "kernel", "svd", "ffa", "lore", "mixed", "common"]),
        "adapter.layers": st.lists(st.integers(-40, 40), max_size=3),
        "adapter.target_modules": st.lists(st.sampled_from(["query", "lin2", "q_proj"]), min_size=1),
        "adapter.share_base": st.sampled_from([[], ["norm"]]),
        "adapter.rank": st.integers(1, 512),
        "adapter.alpha": st.floats(1e-3, 4096),
        "training.optimizer": st.sampled_from(["adamw", "sgd"]),
        "training.lr_shared": rates,
        "training.lr_personal": rates,
        "training.lr_head": rates,
        "training.warmup_lr": rates,
        "training.final_fit_lr": rates,
        "training.weight_decay": st.floats(0, 100),
        "training.l2_to_start": st.floats(0, 1e6),
        "training.local_epochs": st.integers(1, 1000),
        "training.final_fit_epochs": st.integers(0, 10_000),
        "training.batch_size": st.integers(0, 100_000),
        "federation.clip": st.floats(1e-6, 1e6),
        "federation.max_weight": st.integers(1, 1 << 20),
        "federation.training_seconds": st.floats(0.1, 3000),
        "privacy.secagg": st.booleans(),
    },
)


@given(ASKED)
@settings(max_examples=150, deadline=None, derandomize=True, database=None)
def test_it_allows_what_the_configuration_asks_for(asked: dict[str, Any]) -> None:
    if asked.get("adapter.share") not in (None, "A", "B"):
        asked.pop("adapter.share_base", None)
    config = RunConfig().changed(asked)
    policy = policy_for(config, 10, 2)
    kind = Kind.SECAGG if config.privacy.secagg else Kind.PLAIN
    for phase in ("warmup", "main", "close"):
        policy.check(announcement(34, kind=kind), config.plan(phase, 34))


def test_it_allows_no_more_of_what_was_not_asked_for() -> None:
    usual, made = OwnerPolicy(), policy_for(RunConfig(), 10, 2)
    for bound in ("last_blocks", "any_block", "min_tokens", "max_normalize", "unnormalized", "min_batch"):
        assert getattr(made, bound) == getattr(usual, bound), bound
    for key, value in {"adapter.layers": [0], "model.max_tokens": 2, "model.pooling": "first"}.items():
        with pytest.raises(PolicyRefusal):
            made.check(announcement(34), RunConfig().changed({key: value}).plan("main", 34))
