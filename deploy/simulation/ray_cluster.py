"""A Ray cluster that is already there, named by RAY_ADDRESS, and what does not go with one."""

from __future__ import annotations

import os
from collections.abc import Mapping

from penchant.common.config import RunConfig
from penchant.common.errors import ConfigError

__all__ = ["NO_CLUSTER", "RAY_ADDRESS", "cluster_address", "refuse_unfit"]

RAY_ADDRESS = "RAY_ADDRESS"
NO_CLUSTER = "local"  # what Ray calls one of its own, whatever else runs on this machine
CLIENT = "ray://"


def cluster_address(environment: Mapping[str, str] = os.environ) -> str | None:
    """The cluster that RAY_ADDRESS names; None where Ray is to be started for the run alone."""
    named = environment.get(RAY_ADDRESS, "").strip()
    return None if named in ("", NO_CLUSTER) else named


def refuse_unfit(config: RunConfig) -> None:
    """Raise ConfigError for what does not go with the cluster that RAY_ADDRESS names, if it names one."""
    address = cluster_address()
    if address is None:
        return
    if address.startswith(CLIENT):
        raise ConfigError(
            f"{RAY_ADDRESS} names a Ray Client ({CLIENT}), through which Flower can't run; name the head's "
            "own address, HOST:PORT, on a machine of the cluster"
        )
    if config.workers:
        raise ConfigError(
            f"{RAY_ADDRESS} names a cluster, whose nodes say how many people each serves at a time "
            f"(ray start --num-cpus); set workers to 0, or unset {RAY_ADDRESS}",
            about=("workers", "grid"),
        )
