"""A fleet of four in which one device is killed again and again, while it imports, trains and answers."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tomli_w
from flwr.app import Context
from support.killed_device import BATCH, choice
from support.scene import signed_for

from penchant.client.agent.flower_app import Answer, build_app
from penchant.client.agent.kept_model import model_of
from penchant.client.agent.socket import RemoteAgent
from penchant.client.device.device import Device
from penchant.client.device.home import OfflineConfig
from penchant.client.learning.model_cache import ModelCache
from penchant.common.config import RunConfig
from penchant.common.errors import RoundFailed
from penchant.common.membership.identity import Membership
from penchant.common.settings import section_table
from penchant.common.wire.codec import decode
from penchant.common.wire.messages import Announce
from penchant.deploy.fleet.authority import AuthorityStore
from penchant.deploy.flower.in_process_grid import InProcessGrid
from penchant.deploy.owner_policy import policy_for
from penchant.server.availability import Availability
from penchant.server.journal import Journal
from penchant.server.round import play_round
from penchant.server.run import ServerRun
from penchant.server.secagg.secure import SecureAggregation

DEVICES = 4
PATIENCE = 900.0  # seconds; on a machine that is busy with other things nothing here is soon done
RUN = bytes(range(16))


@dataclass
class Fleet:
    """Three devices that live, and the first, which dies; a server that plays round after round."""

    place: Path
    base: Path
    model_cache: ModelCache = field(default_factory=ModelCache)
    announced: dict[tuple[int, int], bytes] = field(default_factory=dict)  # (round, attempt) -> factors
    finished: dict[int, int] = field(default_factory=dict)  # round -> attempt
    complete: int = 0  # rounds that nobody was missing in
    errors: list[BaseException] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.authority_store = AuthorityStore.init(self.place / "authority")
        self.homes = [self._home(number) for number in range(DEVICES)]
        self.socket = self.place / "agent.sock"
        self.stop = threading.Event()

    def _home(self, number: int) -> Path:
        folder = self.place / f"device-{number}"
        folder.mkdir(exist_ok=True)
        settings = section_table(OfflineConfig())
        settings["model"] |= {"base_model": str(self.base), "max_tokens": 16}
        settings["training"] |= {"local_epochs": 1}
        (folder / "model.toml").write_text(tomli_w.dumps(settings))
        policy = policy_for(self._config(), min_honest=1, max_colluders=0)
        (folder / "policy.toml").write_text(policy.to_toml())
        home = Device(folder, model_cache=self.model_cache)
        home.record([choice(n) for n in range(4 * BATCH)])
        home.join(self.authority_store.issue(home.request()).encode(), self.authority_store.digest)
        return folder

    def _config(self) -> RunConfig:
        return RunConfig().changed(
            {
                "model.base_model": str(self.base),
                "model.max_tokens": 16,
                "training.local_epochs": 1,
                "training.final_fit_epochs": 1,
                "privacy.min_honest": 1,
                "privacy.max_colluders": 0,
                "federation.rounds": 4000,
                "federation.cohort": DEVICES,
                "federation.deadline_seconds": 20.0,
            }
        )

    def _run(self) -> ServerRun:
        config, members = self._config(), self.authority_store.latest()
        known = Membership(self.authority_store.authority.public_key).accept(members, int(time.time()))
        model_signature = self.model_cache.of(config.plan("main", DEVICES)).model_signature
        journal = Journal(self.place / "run")
        aggregation = SecureAggregation(known)
        signed = signed_for(self.authority_store.authority, config, RUN, model_signature.digest, DEVICES)
        return ServerRun(
            config, RUN, model_signature, DEVICES, aggregation, members, journal, manifest=signed
        )

    def _answers(self) -> list[Answer]:
        agents = [Device(folder, model_cache=self.model_cache).agent() for folder in self.homes[1:]]

        def killed(stage: str, payload: bytes) -> bytes:
            remote = RemoteAgent(self.socket, seconds=15)  # as a relay does: anew for each message
            try:
                return remote(stage, payload)
            finally:
                remote.close()

        def watched(stage: str, payload: bytes) -> bytes:
            if stage == "keys":
                seen = decode(payload, Announce)
                self.announced[seen.round, seen.attempt] = bytes(seen.factors)
            return agents[0].answer(stage, payload)

        return [killed, watched, *(agent.answer for agent in agents[1:])]

    def play(self) -> None:
        """Round after round until `stop`; what fails is tried again."""
        answers = self._answers()

        def answer_of(context: Context) -> Answer:
            return answers[int(context.node_config["partition-id"])]

        try:
            run = self._run()
            grid = InProcessGrid(build_app(answer_of), DEVICES, workers=DEVICES)
            availability, number = Availability(run, grid), 1
            while not self.stop.is_set():
                availability.announce_settled([1000])  # whoever was away hears which rounds stand
                try:
                    log = play_round(run, grid, number, availability.poll(), availability=availability)
                except RoundFailed:
                    self.stop.wait(0.05)
                    continue
                if log is not None:
                    self.finished[number] = log.attempt
                    self.complete += log.survivors == DEVICES
                number += 1
            grid.close()
        except BaseException as error:
            self.errors.append(error)
            raise

    def wait_for_a_complete_round(self) -> None:
        """Until one more round is finished with everybody in it."""
        before = self.complete
        self.wait_until(lambda: self.complete > before)

    def wait_for_a_training(self, notes: Path) -> None:
        """Until the device has ended one more training of its own, which a round may have overtaken."""
        before = _trainings(notes)
        self.wait_until(lambda: _trainings(notes) > before)

    def wait_until(self, reached: Callable[[], bool]) -> None:
        """Until `reached()`, as long as the server plays."""
        end = time.monotonic() + PATIENCE
        while not reached():
            assert not self.errors
            assert time.monotonic() < end, (self.finished, self.announced.keys())
            time.sleep(0.01)

    # --- what must be true whenever the device is dead ------------------------------------------------

    def check(self, recorded: int, newest: int) -> int:
        """No choice lost, the personal factor whole and of the shared one's round; -> that round."""
        home = Device(self.homes[0], model_cache=self.model_cache)
        there = sorted([*home.store.train(), *home.store.validation()], key=lambda p: int(p.prompt[4:-2]))
        assert len(there) >= recorded
        assert len(there) % BATCH == 0
        assert there == [choice(n) for n in range(len(there))]
        latest = home.vault.latest()
        if latest is None or latest[0] != RUN:
            assert newest == 0
            return 0
        kept = latest[1]
        model = model_of(kept.context)
        assert np.isfinite(kept.vector).all()
        assert kept.round in self.finished
        assert model.factors == self.announced[kept.round, self.finished[kept.round]]
        assert kept.round >= newest
        assert home.rank("day 1: ", ["the motion", "the table"])
        return kept.round


@contextmanager
def server(fleet: Fleet) -> Iterator[None]:
    thread = threading.Thread(target=fleet.play)
    thread.start()
    try:
        yield
    finally:
        fleet.stop.set()
        thread.join(PATIENCE)
        assert not thread.is_alive()


def _trainings(notes: Path) -> int:
    return sum(line in ("trained", "overtaken") for line in notes.read_text().splitlines())


def kill_again_and_again(
    place: Path, base: Path, kills: int, *, wait: Callable[[random.Random], float]
) -> tuple[Fleet, int, list[str]]:
    """-> (fleet, the round whose factor the device has at the end, what it noted as durable).

    A device dies `wait` seconds after its start; of five, one that long after it was in a whole round, and
    one after a training of its own, however slow the machine is.
    """
    fleet, notes = Fleet(place, base), place / "notes"
    draw, newest = random.Random(5), 0
    words = [sys.executable, str(Path(__file__).with_name("killed_device.py"))]
    with (
        subprocess.Popen(
            [*words, str(fleet.homes[0]), str(fleet.socket), str(notes)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        ) as warm,
        server(fleet),
    ):  # fmt: skip
        assert warm.stdin is not None
        assert warm.stdout is not None
        for turn in range(kills):
            warm.stdin.write("go\n")
            warm.stdin.flush()
            process = int(warm.stdout.readline())
            try:
                if turn % 5 == 4:
                    fleet.wait_for_a_complete_round()
                elif turn % 5 == 2:
                    fleet.wait_for_a_training(notes)
                time.sleep(wait(draw))
            finally:
                os.kill(process, signal.SIGKILL)
            assert warm.stdout.readline() == "dead\n"
            said = notes.read_text().splitlines()
            recorded = max((int(line.split()[1]) for line in said if line.startswith("rec")), default=0)
            newest = fleet.check(recorded, newest)
            assert not fleet.errors
        warm.stdin.close()
    return fleet, newest, notes.read_text().splitlines()
