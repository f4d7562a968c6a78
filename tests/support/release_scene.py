"""A fleet with a finished run, an authority and devices, on one disk and in one process: to release."""

from __future__ import annotations

import ssl
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from starlette.testclient import TestClient
from support.deployment import made_up_choices

from penchant.client.agent.flower_app import build_app
from penchant.client.device.device import Device
from penchant.client.device.fetching import Fetched, fetch_release
from penchant.client.device.joining import KnownServer
from penchant.client.learning.model_cache import ModelCache
from penchant.common.config import RunConfig
from penchant.common.membership.release_manifest import ReleaseManifest, ReleaseOffer, SignedRelease
from penchant.deploy.console.releases import ReleasesOnThisMachine
from penchant.deploy.earlier_round import begin_from
from penchant.deploy.fleet import release_signature, run_signature, served_run
from penchant.deploy.fleet.authority import AuthorityStore
from penchant.deploy.fleet.authority_inbox import attend
from penchant.deploy.fleet.enrolment import EnrolmentRegistry
from penchant.deploy.fleet.enrolment_service import build_service
from penchant.deploy.fleet.server_directory import ServerDirectory, ServerSettings
from penchant.deploy.flower.in_process_grid import InProcessGrid
from penchant.deploy.owner_policy import policy_for
from penchant.server.monitoring.run_history import RunLocation
from penchant.server.round import federate

RUN = "spring"
TOOK_PART = 3  # members 1 to 3 are in every round


class NoNodes:
    """A SuperLink without any."""

    def register(self, public_key: bytes, name: str) -> int:
        raise NotImplementedError

    def unregister(self, node: int) -> None:
        raise NotImplementedError


@dataclass
class ReleaseScene:
    """The fleet. Its members 1 to 3 were in all rounds of its one run."""

    place: Path
    server_directory: ServerDirectory
    authority_store: AuthorityStore
    config: RunConfig
    model_cache: ModelCache
    members: int = 0
    took_part: list[Device] = field(default_factory=list)

    @classmethod
    def made(cls, place: Path, base: Path, **settings: Any) -> ReleaseScene:
        """With a run of these settings, played to its end."""
        authority_store = AuthorityStore.init(place / "authority")
        server_directory = ServerDirectory.create(
            place / "server",
            ServerSettings(**{"addresses": ("fleet.example",), **settings.pop("server", {})}),
            authority_store.authority.public_key,
            authority_store.latest(),
        )
        config = RunConfig().changed(
            {
                "model.base_model": str(base),
                "model.max_tokens": 16,
                "training.local_epochs": 2,
                "training.final_fit_epochs": 2,
                "federation.cohort": TOOK_PART,
                "federation.rounds": 2,
                "federation.deadline_seconds": 60.0,
                "federation.training_seconds": 6.0,
                "privacy.min_honest": 1,
                "privacy.max_colluders": 0,
                **settings,
            }
        )
        scene = cls(place, server_directory, authority_store, config, ModelCache())
        scene.took_part = [scene.device() for _ in range(TOOK_PART)]
        scene.play(RUN, scene.config)
        return scene

    def play(self, name: str, config: RunConfig, begin_with: str = "", tag: str = "") -> None:
        """Play a run with members 1 to 3 to its end. begin_with, tag: as of `penchant server run`."""
        directory = self.server_directory.run(name)
        members, authority = self.authority_store.latest(), self.server_directory.authority
        start = begin_from(begin_with, self.server_directory.run, config) if begin_with else None
        served_run.create(directory, config, authority, members, start, tag)
        run_signature.ask(self.server_directory, name)
        self.sign()
        agents = [device.agent() for device in self.took_part]
        app = build_app(lambda context: agents[int(context.node_config["partition-id"])].answer)
        grid = InProcessGrid(app, TOOK_PART, workers=1)
        run = served_run.open_served(directory)
        try:
            federate(run, grid)
        finally:
            grid.close()
            run.journal.close()

    # --- devices ---------------------------------------------------------------------------------

    def device(self, choices: int = 12) -> Device:
        """A new member, with choices of its own, whose owner allows what the run asks."""
        self.members += 1
        made = Device(self.place / f"device-{self.members}", model_cache=self.model_cache)
        made.record(made_up_choices(self.members, choices))
        policy = policy_for(self.config, min_honest=1, max_colluders=0)
        (made.directory / "policy.toml").write_text(policy.to_toml())
        made.join(self.authority_store.issue(made.request()).encode(), self.authority_store.digest)
        self.server_directory.take_members(self.authority_store.latest())
        return made

    @property
    def server(self) -> KnownServer:
        return KnownServer("fleet.example:8443", self.server_directory.ca.decode("ascii"))

    def connect(self, address: str, context: ssl.SSLContext | None) -> httpx.Client:
        """As `joining.https`, straight into the enrolment service."""
        service = build_service(self.server_directory, NoNodes(), collect=False)
        return TestClient(service, base_url=f"http://{address}", raise_server_exceptions=False)

    def fetch(self, device: Device, *, use: bool = False) -> Fetched:
        return fetch_release(device, self.server, self.connect, use=use)

    # --- the operator and the authority ----------------------------------------------------------

    @property
    def releases(self) -> ReleasesOnThisMachine:
        location = RunLocation(RUN, RUN, self.server_directory.run(RUN), "served")
        return ReleasesOnThisMachine(location, self.place)

    def sign(self, *, grant: bool = True) -> list[str]:
        """The authority decides on what lies there, and the server takes its answers over."""
        folders = self.server_directory.requests, self.server_directory.answers
        done = attend(self.authority_store, *folders, lambda decision: grant)
        self.collect()
        return done

    def collect(self) -> None:
        """The server takes over what lies in its answers."""
        EnrolmentRegistry(self.server_directory).collect(NoNodes())

    def promote(self, round: int, **more: Any) -> int:
        """Promote a round and have it signed; -> the release's number."""
        made = self.releases.promote(round, "olga", **more)
        self.sign()
        return made.number

    def roll_back(self, number: int) -> None:
        """Roll back, and have it signed."""
        self.releases.roll_back(number, "olga")
        self.sign()

    def offer(self) -> ReleaseOffer:
        return release_signature.offer(self.server_directory)

    def offered(self) -> list[ReleaseManifest]:
        """The manifests that devices can fetch now."""
        authority = self.server_directory.authority
        return [SignedRelease.read(signed, authority) for signed in self.offer().signed]

    def numbers(self, manifest: ReleaseManifest) -> bytes:
        """What devices fetch of a release that is offered."""
        path = release_signature.factors_file(self.server_directory, manifest.contents.factors)
        if path is None:
            raise LookupError("it is not offered")
        return path.read_bytes()


def now() -> int:
    return int(time.time())
