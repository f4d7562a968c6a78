"""Two stories of a fleet in which everything fails once: devices and the way to them, then the server.

Eight hosts on a network with delay and loss: a server and seven devices, each with an agent and a SuperNode.
Of seven, two may be lost in a round. Agents carry traps (`system.trapped`), so that each fault comes at its
stage; one device is held back at each round's end until all is mended and the next round's traps are set.
What the fleet comes to is held against its shadow (`system.shadow`).
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from support.deployment import Deployment
from support.twin import journal
from system.disks import BALLAST, small_disk
from system.hosts import Host, network
from system.live_fleet import LiveFleet, Trap
from system.shadow import Loss, Shadow, choices_of

from penchant.client.device.device import Device
from penchant.deploy.run_directory import busy

pytestmark = pytest.mark.system

DEVICES = 7
SETTINGS = {"federation.deadline_seconds": 240.0, "federation.patience_seconds": 240.0}
THOUSAND_DAYS = ["faketime", "-f", "+1000d"]
AWAY_SECONDS = 120.0


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

    def held(self, device: int, round: int, stage: str, attempt: int = 1, when: str = "before") -> Trap:
        return self.fleet.trap(device, round, stage, when, "hold", attempt)

    def lost(self, device: int, round: int, stage: str, when: str = "before") -> None:
        self.losses.append(Loss(round, device, stage, when))  # type: ignore[arg-type]

    def finished_rounds_stand(self) -> None:
        """No checkpoint that was ever there has changed."""
        for path in sorted((self.fleet.deployment.run / "checkpoints").glob("*.safetensors")):
            assert self.checkpoints.setdefault(path.name, path.read_bytes()) == path.read_bytes()

    def opened(self, gate: Trap, replies: int) -> None:
        """Wait until nothing is left of the gate's round but the gate's own reply."""
        self.fleet.wait_sprung([gate])
        self.fleet.wait(
            "replies to unmasking", lambda: self.fleet.replies(gate.round, gate.attempt) >= replies
        )
        self.finished_rounds_stand()

    def end_of(self, gate: Trap, *before: Trap, replies: int) -> None:
        """Mend what dies in the gate's round, and wait for its end."""
        self.fleet.wait_sprung(before)
        self.fleet.revive()
        self.opened(gate, replies)

    def server_dies(self, *held: Trap) -> None:
        """kill -9 of the whole server while it waits for those who are held; they then answer nobody."""
        self.fleet.wait_sprung(held)
        self.fleet.kill_server()
        for trap in held:
            trap.release()
        self.fleet.revive()
        self.finished_rounds_stand()

    def server_burns(self, *held: Trap) -> None:
        """A back-up is made while the server waits; then it dies, and its disk is empty. The back-up
        is restored where there is nothing."""
        fleet, file = self.fleet, self.fleet.place / "server.backup"
        directory = fleet.server_directory.path
        fleet.wait_sprung(held)
        done = fleet.penchant("backup", str(directory), str(file))
        assert done.returncode == 0, done.stderr
        self.server_dies(*held)
        shutil.rmtree(directory)
        done = fleet.penchant("restore", str(file), str(directory))
        assert done.returncode == 0, done.stderr
        self.finished_rounds_stand()

    def nodes_are_back(self) -> None:
        """A SuperLink that has lost its memory turns the SuperNodes of before away, and they end. What
        `penchant device connect` does then, the test does: it starts them again."""
        nodes = self.fleet.nodes
        self.fleet.wait("their end", lambda: all(node and node.poll() is not None for node in nodes))
        self.fleet.revive()

    def server_is_back(self) -> None:
        self.fleet.start_server()
        self.fleet.play()


# --- devices, and the way to them -----------------------------------------------------------------


def test_devices_fail_and_the_way_to_them(
    tiny_model: Callable[[str], Path], tmp_path: Path, hosts: list[Host]
) -> None:
    with small_disk(tmp_path / "device-5"):
        deployment = Deployment(tmp_path, tiny_model("bert"), DEVICES, SETTINGS | {"federation.rounds": 3})
        deployment.init_server()
        shadow = Shadow(deployment)
        recorded = [choices_of(folder) for folder in deployment.homes]
        with closing(LiveFleet(deployment, hosts)) as fleet:
            story = Story(fleet)
            break_devices(story)
            fleet.wait("the last word", lambda: all(at(folder) == 4 for folder in deployment.homes))
            story.finished_rounds_stand()
            assert fleet.died == {1: 2, 3: 1, 4: 2}
            check_states(fleet, [(n, 1, "finished") for n in (1, 2, 3, 4)], [5, 6, 5, 7])
        assert [choices_of(folder) for folder in deployment.homes] == recorded
        for folder in deployment.homes:
            check_once(folder, 4)
        shadow.play(story.losses)
        shadow.check()


def refusals(home: Path) -> list[tuple[str, str]]:
    """What a device's owner is told: stage and code of each."""
    return [(stage, code) for stage, code, _ in Device(home).vault.refusals()]


def break_devices(story: Story) -> None:
    """Three rounds and the closing one."""
    fleet, homes = story.fleet, story.fleet.deployment.homes
    fleet.start_server()
    fleet.register_nodes()
    fleet.start_devices({4: THOUSAND_DAYS})

    # Round 1: a clock that is years ahead and an agent killed before it has answered: five of seven begin,
    # the fewest that the manifest allows in a sum.
    story.lost(4, 1, "keys")
    gate = story.held(0, 1, "unmask")
    killed = story.dies(1, 1, "keys")
    fleet.play()
    fleet.wait("the refusal", lambda: ("keys", "MEMBERSHIP") in refusals(homes[4]))
    # Where it did not know the newest list yet, it refused that one before.
    assert set(refusals(homes[4])) <= {("status", "MEMBERSHIP"), ("keys", "MEMBERSHIP")}
    fleet.stop_agent(4)  # its clock is set right
    story.end_of(gate, killed, replies=4)

    # Round 2: a disk is full before what was trained could be kept, and an agent is killed before it has
    # confirmed; its vector is in the sum.
    last, gate = gate, story.held(0, 2, "unmask")
    full = fleet.trap(5, 2, "masked", "before", "fill")
    story.lost(5, 2, "masked")
    killed_later = story.dies(3, 2, "confirm")
    last.release()
    story.end_of(gate, full, killed_later, replies=4)
    (homes[5] / BALLAST).unlink()  # its owner makes room; the same agent goes on
    assert at(homes[5]) == 1

    # Round 3: the gateway is killed before the last device has sent its shares. (A reply under way may get
    # lost: it is sent again, but not its content.) Later one device is cut off for two minutes, and another's
    # SuperNode is gone for as long; what their agents answer reaches nobody.
    last, gate = gate, story.held(0, 3, "unmask")
    slow = story.held(0, 3, "shares")
    away = story.held(2, 3, "masked"), story.held(6, 3, "masked")
    last.release()
    fleet.wait_sprung([slow])
    fleet.wait("the others", lambda: all(fleet.sent(device, 3, "shares") for device in range(1, DEVICES)))
    killed_gateway = fleet.kill_gateway()
    slow.release()
    fleet.wait_gateway(killed_gateway)
    fleet.wait_sprung(away)
    since = time.monotonic()
    fleet.devices[2].link.up = False
    fleet.kill_node(6)
    for device, trap in zip((2, 6), away, strict=True):
        story.lost(device, 3, "masked", "after")
        trap.release()
    story.opened(gate, replies=4)
    fleet.wait("two minutes", lambda: time.monotonic() - since > AWAY_SECONDS)
    fleet.devices[2].link.up = True
    fleet.revive()
    fleet.wait("the node", lambda: fleet.node_came(6, times=2))

    # The closing round is everybody's again; two agents are killed at its very end.
    last, gate = gate, story.held(0, 4, "unmask")
    killed = story.dies(1, 4, "unmask"), story.dies(4, 4, "unmask", "after")
    last.release()
    story.end_of(gate, *killed, replies=4)
    gate.release()
    fleet.wait_state(4, 1, "finished")


# --- the server -----------------------------------------------------------------------------------


def test_the_server_is_killed_at_every_stage(
    tiny_model: Callable[[str], Path], tmp_path: Path, hosts: list[Host]
) -> None:
    settings = SETTINGS | {"federation.rounds": 2, "federation.attempts": 2}
    deployment = Deployment(tmp_path, tiny_model("bert"), DEVICES, settings)
    deployment.init_server()
    shadow = Shadow(deployment)
    with closing(LiveFleet(deployment, hosts)) as fleet:
        story = Story(fleet)
        fleet.start_server()
        fleet.register_nodes()
        fleet.start_devices({})
        kill_before_unmasking(story)
        kill_past_unmasking(story)
        newer = revoke_the_last(story)
        *members, revoked = deployment.homes
        fleet.wait("the last word", lambda: all(at(folder) == 3 for folder in members))
        assert at(revoked) == 1  # round 2 was skipped, and it was in no other
        story.finished_rounds_stand()
        tried = [(1, 1), (1, 2), (1, 3), (3, 1), (3, 2)]
        states = [(*place, "failed") for place in tried]
        states += [(1, 4, "finished"), (2, 1, "skipped"), (3, 3, "finished")]
        check_states(fleet, sorted(states), [6, 6])
    for folder in members:
        check_once(folder, 3)
    shadow.play(story.losses, skipped=[2], lists={3: newer})
    shadow.check(completed=[1])


def kill_before_unmasking(story: Story) -> None:
    """The server dies while it waits for shares, for masked vectors, for confirmations: another attempt each
    time. The third time its disk is lost too, and comes back from a back-up of that moment. Of the fourth it
    has asked for unmasking, and enough have answered: that one is completed."""
    fleet = story.fleet
    held = story.held(0, 1, "shares")
    fleet.play()
    fleet.wait_sprung([held])
    check_refused(fleet)
    story.server_dies(held)
    held, dead = story.held(0, 1, "masked", 2), fleet.trap(3, 1, "masked", "before", "die", 2)
    story.server_is_back()
    fleet.wait_sprung([dead])
    story.server_dies(held)
    held = story.held(0, 1, "confirm", 3)
    story.server_is_back()
    story.server_burns(held)
    held, dead = story.held(0, 1, "unmask", 4), story.dies(4, 1, "masked", "after", 4)
    story.server_is_back()
    story.nodes_are_back()
    story.end_of(held, dead, replies=5)
    assert fleet.rows()[-1].state == "unmasking"
    story.server_dies(held)


def kill_past_unmasking(story: Story) -> None:
    """Of round 2 too few answers have come: it is skipped."""
    fleet = story.fleet
    gate, *held = (story.held(device, 2, "unmask") for device in (0, 5, 6))
    story.server_is_back()
    fleet.wait_state(1, 4, "finished")
    fleet.wait_sprung(held)
    story.opened(gate, replies=4)
    story.server_dies(gate, *held)


def revoke_the_last(story: Story) -> bytes:
    """The last device is revoked; -> the list that says so. The closing round begins without it, and the
    server dies while it waits for keys. A server that then brings the older list back is refused by every
    device that has seen the newer one, and by those alone."""
    fleet, homes = story.fleet, story.fleet.deployment.homes
    run = fleet.deployment.run
    older = (run / "members.list").read_bytes()
    newer = fleet.deployment.authority_store.revoke(DEVICES, "lost")
    fleet.take_members(newer)
    held = story.held(0, 3, "keys", when="after")
    told = [fleet.trap(device, 3, "keys", "after", "note") for device in range(1, DEVICES - 1)]
    story.server_is_back()
    fleet.wait_state(2, 1, "skipped")
    fleet.wait_sprung(told)
    story.server_dies(held)

    for path in (run, fleet.server_directory.path):
        (path / "members.list").write_bytes(older)
    story.server_is_back()
    fleet.wait_state(3, 2, "failed")
    fleet.wait("the end of Flower's run", lambda: not busy(run))
    both = [("status", "MEMBERSHIP"), ("keys", "MEMBERSHIP")]  # the older list, then a round by it
    assert [refusals(folder) for folder in homes] == [both] * (DEVICES - 1) + [[]]

    fleet.take_members(newer)
    fleet.play()
    fleet.wait_state(3, 3, "finished")
    return newer


def check_refused(fleet: LiveFleet) -> None:
    """A run that goes on can't be started once more."""
    done = fleet.penchant("resume", str(fleet.server_directory.path))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "is still running" in done.stderr
    assert (fleet.deployment.run / "server.log").read_text().count("begins") == 1


# --- what holds in the end ------------------------------------------------------------------------


def check_states(fleet: LiveFleet, states: list[tuple[int, int, str]], survivors: list[int]) -> None:
    assert [(row.round, row.attempt, row.state) for row in fleet.rows()] == states
    with journal(fleet.deployment.run) as opened:
        assert [log.survivors for log in opened.logs()] == survivors


def at(folder: Path) -> int:
    latest = Device(folder).vault.latest()
    return 0 if latest is None else latest[1].round


def check_once(folder: Path, last: int) -> None:
    """No round was unmasked in two attempts, and the factor goes with the shared ones of the same round."""
    home = Device(folder)
    opened = [(run, number) for run, number, unmasked in home.vault.rounds() if unmasked]
    assert len(set(opened)) == len(opened)
    _, _, number, _, kept = home._model()
    assert number == last
    assert kept is not None
    assert home.rank("the motion ", ["bill", "tax"])
