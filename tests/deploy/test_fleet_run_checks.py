"""What a fleet can run is said before it is started, with the number and the cure."""

from __future__ import annotations

import re

import pytest

from penchant.common.config import RunConfig
from penchant.common.errors import ConfigError
from penchant.deploy.fleet.run_checks import (
    annotated,
    fleet_defaults,
    needed_devices,
    objections,
    refuse_unfit,
)


@pytest.mark.parametrize(
    ("changes", "members", "said"),
    [
        ({"federation.cohort": 20}, 19, "this fleet has 19 members; ask at most 19"),
        ({"federation.cohort": 16}, 20, "that takes 17 devices a round"),
        ({"federation.cohort": 20, "federation.rounds": 0}, 20, "federation.rounds is 0"),
        ({"federation.cohort": 0}, 20, "federation.cohort is 0"),
        ({"federation.cohort": 20, "privacy.group_size": 10}, 20, "a sum over 10 devices is too small"),
        ({"federation.cohort": 2, "privacy.min_honest": 1, "privacy.max_colluders": 0}, 9, "needs 3 devices"),
    ],
)
def test_what_can_not_run_is_refused(changes: dict[str, int], members: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        refuse_unfit(RunConfig().changed(changes), members)


@pytest.mark.parametrize(("honest", "colluders", "devices"), [(10, 2, 17), (1, 0, 3), (3, 2, 7), (11, 2, 18)])
def test_how_many_devices_owners_need(honest: int, colluders: int, devices: int) -> None:
    assert needed_devices(honest, colluders) == devices


@pytest.mark.parametrize("members", [3, 5, 16, 17, 300])
def test_the_file_for_a_fleet_can_run_there_and_explains_every_setting(members: int) -> None:
    text = annotated(fleet_defaults(members), members)
    config = RunConfig.from_toml(text)
    refuse_unfit(config, members)
    assert objections(config) == []
    assert config.federation.cohort == members
    assert ("each owner sets in policy.toml" in text) == (members < 17)
    lines = [line.removeprefix("# ") for line in text.splitlines() if not line.startswith("#   ")]
    bare = "\n".join(line for line in lines if re.match(r"\[|[a-z0-9_]+ = ", line))
    assert RunConfig.from_toml(bare).federation == config.federation  # what is commented out is the default
    assert "data." not in text
    for key in ("max_tokens", "training_seconds", "clip", "group_size", "lr_shared"):
        assert f"{key} = " in text


def test_what_owners_defaults_object_to_is_said() -> None:
    (why,) = objections(RunConfig().changed({"federation.cohort": 20}))
    assert "adds no noise" in why
    many = objections(RunConfig().changed({"federation.cohort": 20, "adapter.rank": 64}))
    assert len(many) > 1
