"""A device whose disk is full: it says so in one line, keeps everything, and goes on once there is room."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from flwr.app import Context
from support.device_kills import DEVICES, RUN, Fleet
from support.killed_device import choice
from system.disks import BALLAST, fill, small_disk

from penchant.client.agent.flower_app import Answer, build_app
from penchant.client.agent.socket import AgentServer, RemoteAgent
from penchant.client.device.device import Device
from penchant.common.errors import DeviceError
from penchant.common.wire.codec import decode
from penchant.common.wire.messages import Abort, AbortCode
from penchant.deploy.flower.in_process_grid import InProcessGrid
from penchant.server.availability import Availability
from penchant.server.round import play_round

pytestmark = pytest.mark.system


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own for the directory of the first device."""
    with small_disk(tmp_path / "device-0") as made:
        yield made


def test_a_full_disk_costs_a_round_and_nothing_else(
    tiny_model: Callable[[str], Path], tmp_path: Path, disk: Path
) -> None:
    fleet = Fleet(tmp_path, tiny_model("bert"))
    agents = [Device(folder, model_cache=fleet.model_cache).agent() for folder in fleet.homes]
    server = AgentServer(agents[0].answer, disk / "agent.sock")
    server.start()
    remote = RemoteAgent(server.socket, seconds=60)
    full_at: list[str] = []
    kept: list[tuple[int, int, bytes]] = []
    replies: list[tuple[str, bytes]] = []
    ballast = disk / BALLAST

    def first(stage: str, payload: bytes) -> bytes:
        if stage in full_at:
            full_at.remove(stage)
            kept.append(state(fleet))
            fill(disk)
        replies.append((stage, remote(stage, payload)))
        return replies[-1][1]

    answers: list[Answer] = [first, *(agent.answer for agent in agents[1:])]

    def answer_of(context: Context) -> Answer:
        return answers[int(context.node_config["partition-id"])]

    run = fleet._run()
    grid = InProcessGrid(build_app(answer_of), DEVICES, workers=DEVICES)
    availability = Availability(run, grid)

    def play(number: int) -> int:
        log = play_round(run, grid, number, availability.wait_for_cohort(), availability=availability)
        assert log is not None
        return log.survivors

    assert play(1) == DEVICES
    for number, stage in ((2, "masked"), (4, "keys")):
        full_at.append(stage)
        assert play(number) == DEVICES - 1
        refused = [decode(reply, Abort).code for at, reply in replies[-3:] if at == stage]
        assert refused == [AbortCode.INTERNAL]
        if stage == "masked":
            check_the_owner_is_told(fleet, disk)
        ballast.unlink()
        assert state(fleet) == kept.pop()
        assert play(number + 1) == DEVICES  # the same agent takes part again
    availability.announce_settled([1000])
    latest = Device(fleet.homes[0], model_cache=fleet.model_cache).vault.latest()
    assert latest is not None
    assert (latest[0], latest[1].round) == (RUN, 5)
    grid.close()
    remote.close()
    server.stop(0)


def state(fleet: Fleet) -> tuple[int, int, bytes]:
    """(choices, round of the personal factor, its numbers) of the first device."""
    home = Device(fleet.homes[0], model_cache=fleet.model_cache)
    latest = home.vault.latest()
    assert latest is not None
    return len(home.store), latest[1].round, latest[1].vector.tobytes()


def check_the_owner_is_told(fleet: Fleet, disk: Path) -> None:
    """Importing and training on a full disk: one clear line each, and nothing is changed."""
    home = Device(fleet.homes[0], model_cache=fleet.model_cache)
    count = len(home.store)
    with pytest.raises(DeviceError, match="nothing was changed"):
        home.record([choice(n) for n in range(1000, 3000)])
    with pytest.raises(DeviceError, match="nothing was changed"):
        home.train()
    assert len(home.store) == count
    (disk.parent / "more.jsonl").write_text(
        "".join(f'{{"prompt": "p{n}", "chosen": "a", "rejected": "b"}}\n' for n in range(3000))
    )
    done = subprocess.run(
        [sys.executable, "-c", "from penchant.deploy.cli.main import main; main()",
         "device", "import", str(disk.parent / "more.jsonl"), "--home", str(fleet.homes[0])],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "full; nothing was changed" in done.stderr
    assert len(home.store) == count
