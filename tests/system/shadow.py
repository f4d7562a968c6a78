"""What a fleet that lost devices and servers should have come to: the same losses, played in one process.

The shadow starts from copies of the devices' directories and of the run's, before anything happened. A device
that dies there is silent from that instant to the end of its round; a round that was lost past unmasking is
skipped. Training and rounding repeat themselves, so shared and personal factors must come out bit for bit:
each round's sum is then exactly that of its survivors, and nothing was added twice.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from flwr.app import Context
from support.deployment import Deployment
from support.twin import journal, known

from penchant.client.agent.flower_app import Answer, build_app
from penchant.client.device.device import Device
from penchant.client.learning.model_cache import ModelCache
from penchant.common.errors import DeviceError
from penchant.common.wire.codec import decode
from penchant.common.wire.messages import Announce
from penchant.deploy.fleet.served_run import open_served
from penchant.deploy.fleet.server_directory import MEMBERS
from penchant.deploy.flower.in_process_grid import InProcessGrid
from penchant.server.availability import Availability
from penchant.server.journal import RoundLog
from penchant.server.round import play_round


@dataclass(frozen=True)
class Loss:
    """A device falls silent in a round: before it has answered in a stage, or after, its answer lost."""

    round: int
    device: int
    stage: str
    when: Literal["before", "after"] = "before"


class Shadow:
    """Take it before the fleet starts; play it when the losses are known."""

    def __init__(self, deployment: Deployment) -> None:
        self._real = deployment
        self._place = deployment.place / "shadow"
        self._run = self._place / "run"
        deployment.sign_run()  # draws the run's id, if there is none yet
        shutil.copytree(deployment.run, self._run)
        self._homes = [self._place / folder.name for folder in deployment.homes]
        for folder, copy in zip(deployment.homes, self._homes, strict=True):
            Device(folder).agent()  # makes the device's secret, if there is none yet
            shutil.copytree(folder, copy)
            Device(copy).vault.privacy.give_up(0.0)  # a copied ledger is noticed; this one is meant to be

    def play(
        self,
        losses: Iterable[Loss],
        skipped: Collection[int] = (),
        lists: Mapping[int, bytes] | None = None,
    ) -> None:
        """Play the whole run with these losses. lists: a round -> the member list from then on."""
        model_cache = ModelCache()
        agents = [Device(folder, model_cache=model_cache).agent() for folder in self._homes]
        pending = {(loss.round, loss.device, loss.stage): loss.when for loss in losses}
        silent: set[int] = set()
        number = 0

        def answer_of(context: Context) -> Answer:
            device = int(context.node_config["partition-id"])

            def answer(stage: str, payload: bytes) -> bytes:
                if stage == "keys":
                    assert decode(payload, Announce).round == number
                when = pending.pop((number, device, stage), None)
                if stage != "status" and (device in silent or when == "before"):
                    silent.add(device)
                    raise DeviceError("it is gone")
                reply = agents[device].answer(stage, payload)
                if when == "after":
                    silent.add(device)
                    raise DeviceError("it is gone")
                return reply

            return answer

        run = open_served(self._run)
        grid = InProcessGrid(build_app(answer_of), len(agents), workers=1)
        availability = Availability(run, grid)
        try:
            for number in range(1, run.last + 1):
                silent.clear()
                if lists and number in lists:
                    (self._run / MEMBERS).write_bytes(lists[number])
                run = availability.run = run.latest(run)
                if number in skipped:  # it was announced, and with it which rounds stand
                    availability.announce_settled(availability.wait_for_cohort().values())
                    run.journal.skip(number, run.journal.begin(number, "main"), "as it was")
                else:
                    play_round(run, grid, number, availability.wait_for_cohort(), availability=availability)
            availability.announce_settled(availability.wait_for_cohort().values())
        finally:
            grid.close()
            run.journal.close()
        assert not pending, f"these losses did not come about: {pending}"

    def check(self, completed: Collection[int] = ()) -> None:
        """The real fleet came to the same. completed: rounds of which the server forgot who was lost."""

        def told(log: RoundLog) -> tuple[object, ...]:
            return known(replace(log, dropped={}) if log.round in completed else log)

        with journal(self._real.run) as real, journal(self._run) as shadow:
            found, expected = real.load(), shadow.load()
            run = real.fact("run")
            assert [told(log) for log in real.logs()] == [told(log) for log in shadow.logs()]
        assert found is not None
        assert expected is not None
        assert run is not None
        assert found[0] == expected[0]
        assert found[1].steps == expected[1].steps
        assert np.array_equal(found[1].factors, expected[1].factors)
        for folder, copy in zip(self._real.homes, self._homes, strict=True):
            own, other = (
                Device(folder).vault.personal(bytes.fromhex(run)),
                Device(copy).vault.personal(bytes.fromhex(run)),
            )
            assert own is not None
            assert other is not None
            assert own.round == other.round, folder
            assert np.array_equal(own.vector, other.vector), folder


def choices_of(folder: Path) -> list[tuple[str, str, str]]:
    """All that is recorded on a device."""
    choices = Device(folder).choices()
    return [(p.prompt, p.chosen, p.rejected) for p in (*choices.train, *choices.validation)]
