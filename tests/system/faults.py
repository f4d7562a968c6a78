"""Agents, a clock and the server fail, one after the other, in one run of real processes.

Eight hosts on a network with delay and loss: a server and seven devices, each with an agent and a SuperNode.
Of seven, two may be lost in a round. Agents carry traps (`system.trapped`), so that each fault comes at its
stage; one device is held back at each round's end until all is mended and the next round's traps are set.
What the fleet comes to is held against its shadow (`system.shadow`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from deployment import Deployment
from system.hosts import Host, network
from system.live_fleet import LiveFleet, Trap
from system.shadow import Loss, Shadow, choices_of
from twin import journal

from penchant.client.home import Home

pytestmark = pytest.mark.system

DEVICES = 7
LAST = 3  # two rounds and the closing one
SETTINGS = {
    "federation.rounds": LAST - 1,
    "federation.deadline_seconds": 240.0,
    "federation.patience_seconds": 240.0,
}
THOUSAND_DAYS = ["faketime", "-f", "+1000d"]


@pytest.fixture
def hosts() -> Iterator[list[Host]]:
    with network(DEVICES + 1, delay=0.01, loss=0.005) as made:
        yield made


class Story:
    """The run, round by round, and what was lost in it."""

    def __init__(self, fleet: LiveFleet) -> None:
        self.fleet = fleet
        self.losses: list[Loss] = []
        self.checkpoints: dict[str, bytes] = {}

    def dies(self, device: int, round: int, stage: str, when: str = "before", attempt: int = 1) -> Trap:
        """This agent will be killed there, and its part of the round is lost."""
        self.lost(device, round, stage, when)
        return self.fleet.trap(device, round, stage, when, "die", attempt)

    def held(self, device: int, round: int, stage: str, attempt: int = 1) -> Trap:
        return self.fleet.trap(device, round, stage, "before", "hold", attempt)

    def lost(self, device: int, round: int, stage: str, when: str = "before") -> None:
        self.losses.append(Loss(round, device, stage, when))  # type: ignore[arg-type]

    def finished_rounds_stand(self) -> None:
        """No checkpoint that was ever there has changed."""
        for path in sorted((self.fleet.deployment.run / "checkpoints").glob("*.safetensors")):
            assert self.checkpoints.setdefault(path.name, path.read_bytes()) == path.read_bytes()

    def end_of(self, gate: Trap, *before: Trap, replies: int) -> None:
        """Mend what dies in the gate's round, until nothing is left of it but the gate's own reply."""
        self.fleet.wait_sprung(before, 180)
        self.fleet.revive()
        self.fleet.wait_sprung([gate], 180)
        self.fleet.wait(
            "replies to unmasking", lambda: self.fleet.replies(gate.round, gate.attempt) >= replies
        )
        self.finished_rounds_stand()


def test_a_fleet_survives(tiny_model: Callable[[str], Path], tmp_path: Path, hosts: list[Host]) -> None:
    deployment = Deployment(tmp_path, tiny_model("bert"), DEVICES, SETTINGS)
    deployment.init_server()
    shadow = Shadow(deployment)
    recorded = [choices_of(folder) for folder in deployment.homes]
    with closing(LiveFleet(deployment, hosts)) as fleet:
        losses = break_and_mend(Story(fleet))
        check_states(fleet)
    assert [choices_of(folder) for folder in deployment.homes] == recorded
    for folder in deployment.homes:
        check_once(folder)
    shadow.play(losses)
    shadow.check()


def break_and_mend(story: Story) -> list[Loss]:
    """Two rounds and the closing one; -> what was lost where."""
    fleet, homes = story.fleet, story.fleet.deployment.homes
    fleet.start_server()
    fleet.register_nodes()
    fleet.start_devices({4: THOUSAND_DAYS})

    # Round 1: a clock that is years ahead and an agent killed before it has answered: five of seven begin,
    # and one of five is killed when its shares are made.
    story.lost(4, 1, "keys")
    gate = story.held(0, 1, "unmask")
    killed = story.dies(1, 1, "keys"), story.dies(2, 1, "shares", "after")
    fleet.play()
    fleet.wait("the refusal", lambda: bool(Home(homes[4]).vault.told()))
    assert [told[:2] for told in Home(homes[4]).vault.told()] == [("keys", "MEMBERSHIP")]
    fleet.stop_agent(4)  # its clock is set right
    story.end_of(gate, *killed, replies=3)

    # Round 2: an agent dies before it trained, then the server with the SuperLink; tried again, another dies
    # when its masked vector is made.
    first, held = fleet.trap(3, 2, "masked", "before", "die"), story.held(0, 2, "masked")
    gate.release()
    fleet.wait_sprung([first, held])
    fleet.kill_server()
    held.release()
    fleet.revive()
    gate = story.held(0, 2, "unmask", attempt=2)
    killed = (story.dies(4, 2, "masked", "after", attempt=2),)
    fleet.start_server()
    fleet.play()
    story.end_of(gate, *killed, replies=5)

    gate.release()
    # The closing round is everybody's again.
    fleet.wait_state(LAST, 1, "finished", 240)
    assert fleet.died == {1: 1, 2: 1, 3: 1, 4: 2}
    fleet.wait("the last word", lambda: all(at(folder) == LAST for folder in homes))
    story.finished_rounds_stand()

    return story.losses


def check_states(fleet: LiveFleet) -> None:
    assert [(row.round, row.attempt, row.state) for row in fleet.rows()] == [
        (1, 1, "finished"),
        (2, 1, "failed"),
        (2, 2, "finished"),
        (3, 1, "finished"),
    ]
    with journal(fleet.deployment.run) as opened:
        assert [log.survivors for log in opened.logs()] == [4, 6, 7]


def at(folder: Path) -> int:
    latest = Home(folder).vault.latest()
    return 0 if latest is None else latest[1].round


def check_once(folder: Path) -> None:
    """No round was unmasked in two attempts, and the factor goes with the shared ones of the same round."""
    home = Home(folder)
    opened = [(run, number) for run, number, unmasked in home.vault.rounds() if unmasked]
    assert len(set(opened)) == len(opened)
    _, _, number, _, kept = home._model()
    assert number == LAST
    assert kept is not None
    assert home.rank("the motion ", ["bill", "tax"])
