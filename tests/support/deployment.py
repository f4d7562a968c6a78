"""What a test of real processes needs: enrolled devices with choices in their homes, and a served run."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.tiny_models import WORDS

from penchant.client.device.device import Device
from penchant.common.config import RunConfig
from penchant.common.data.preferences import Preference
from penchant.deploy.fleet import run_signature, served_run
from penchant.deploy.fleet.authority import AuthorityStore
from penchant.deploy.owner_policy import policy_for


@dataclass
class Deployment:
    """An authority, devices that are its members 1, 2, … in this order, and the configuration of a run.

    settings: of the run, with dotted names, over those of a small model and careless owners.
    """

    place: Path
    base: Path
    devices: int
    settings: dict[str, Any] = field(default_factory=dict)
    choices: int = 12
    homes: list[Path] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.place.mkdir(parents=True, exist_ok=True)
        self.authority_store = AuthorityStore.init(self.place / "authority")
        self.homes = self.homes or [self.place / f"device-{number}" for number in range(self.devices)]
        self.config = RunConfig().changed(
            {
                "model.base_model": str(self.base),
                "model.max_tokens": 16,
                "training.local_epochs": 2,
                "training.final_fit_epochs": 2,
                "federation.cohort": self.devices,
                "federation.deadline_seconds": 60.0,
                "federation.training_seconds": 6.0,
                "privacy.min_honest": 1,
                "privacy.max_colluders": 0,
                **self.settings,
            }
        )
        self.run = self.place / "run"
        for number, folder in enumerate(self.homes):
            self._enrol(folder, made_up_choices(number, self.choices))

    def _enrol(self, folder: Path, choices: Sequence[Preference]) -> None:
        home = Device(folder)
        home.record(choices)
        policy = policy_for(self.config, min_honest=1, max_colluders=0)
        (folder / "policy.toml").write_text(policy.to_toml())
        home.join(self.authority_store.issue(home.request()).encode(), self.authority_store.digest)

    def init_server(self) -> None:
        """What `penchant server init` does."""
        public = (self.place / "authority" / "authority.pub").read_bytes()
        served_run.create(self.run, self.config, public, self.authority_store.latest())

    def sign_run(self, run: Path | None = None) -> None:
        """What `penchant authority attend` does for the run, or another one."""
        run = run or self.run
        run_signature.take(run, self.authority_store.sign_run(run_signature.request_of(run)).encode())


def made_up_choices(person: int, count: int) -> list[Preference]:
    """Choices of somebody who likes some words better than others; texts of several lengths."""
    draw = random.Random(person)
    liking = {word: draw.random() for word in WORDS}
    chosen = []
    for number in range(count):
        first, second = draw.sample(WORDS, 2)
        better, worse = sorted((first, second), key=lambda word: -liking[word])
        prompt = " ".join(draw.choices(WORDS, k=1 + number % 5)) + " "
        chosen.append(Preference(prompt, better, f"{worse} {draw.choice(WORDS)}"))
    return chosen
