"""Fixtures of all tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from support.tiny_models import write_tiny_model

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch comes: small work is slower on two threads


@pytest.fixture(scope="session")
def tiny_writer(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """As `tiny_model`, of causal models, with what makes their words and a token that ends a text."""
    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(f"{kind}-writer")
            write_tiny_model(kind, made[kind], writes=True)
        return made[kind]

    return get


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """model type ("bert", "llama", …) -> folder with a randomly initialised model of 3 blocks, width 16."""
    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind)
            write_tiny_model(kind, made[kind])
        return made[kind]

    return get
