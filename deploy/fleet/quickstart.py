"""A fleet on one machine, for real: authority, server behind its gateway, devices that join and learn.

The processes are those of a fleet in the open, and so is every step: tokens, requests, answers, TLS, node
authentication, agents behind sockets. Only the addresses are loopback's, one user runs it all, the authority
grants everything and has a key without a passphrase, since nobody is asked for it, and the owners' policies
are lowered to what so few devices allow, which is said.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from penchant.client.device import joining
from penchant.client.device.device import Device
from penchant.client.device.supernode_files import NODE
from penchant.common.config import RunConfig
from penchant.common.data.preferences import Person, without_ties
from penchant.common.durations import DAY
from penchant.common.errors import ConfigError, GatewayError, UsageError
from penchant.deploy import datasets
from penchant.deploy.fleet import gateway, run_signature, served_run
from penchant.deploy.fleet.authority import PUBLIC, AuthorityStore
from penchant.deploy.fleet.enrolment import hand_out
from penchant.deploy.fleet.follow import watch
from penchant.deploy.fleet.processes import door, gateway_open
from penchant.deploy.fleet.server_directory import LOOPBACK, ServerDirectory, ServerSettings
from penchant.deploy.fleet.supervisor import ChildProcess, supervise
from penchant.deploy.flower.superlink import free_port
from penchant.deploy.owner_policy import fleet_policy, policy_for
from penchant.deploy.recipes import recipe

__all__ = ["RUN", "Quickstart", "live_fleet", "quickstart"]

RUN = "quickstart"
JOIN_SECONDS = 120.0


@dataclass(frozen=True)
class Quickstart:
    """What to bring up, and where; `settings` are dotted keys that override the recipe's."""

    directory: Path
    devices: int = 7
    rounds: int = 5
    settings: tuple[tuple[str, object], ...] = ()


def quickstart(plan: Quickstart, say: Callable[[str], None]) -> Path:
    """Bring a fleet up, run all rounds, take it down; -> the server's directory, which `status` reads.

    Raises as `live_fleet`, and RoundFailed when the run does not come to its end.
    """
    with live_fleet(plan, say) as server_directory:
        say(f"{plan.rounds} rounds and a closing one begin")
        flower = served_run.start(server_directory.run(RUN), door(server_directory))
        watch(server_directory.run(RUN), door(server_directory), flower, say)
    return server_directory.path


@contextmanager
def live_fleet(plan: Quickstart, say: Callable[[str], None]) -> Iterator[ServerDirectory]:
    """A fleet that is up inside the block: its server, whose run `RUN` is made and not yet begun.

    Raises UsageError for a directory in use or too few devices, GatewayError without nginx. Nothing is left
    running in any case.
    """
    gateway.stream_module()
    if plan.directory.exists() and (not plan.directory.is_dir() or any(plan.directory.iterdir())):
        raise UsageError(f"{plan.directory} is in use; choose an empty directory")
    config = _config(plan)
    policy = fleet_policy(config, plan.devices)
    if policy.lowered:
        say(
            f"warning: with {plan.devices} devices every sum holds only {policy.min_honest} honest people "
            f"(owners ask for {policy.asked_honest} and {policy.asked_colluders} colluders at most, "
            f"by default); fine to look at, not for anybody's real choices"
        )
    if config.privacy.dp_epsilon:
        say(
            f"devices add noise for epsilon {config.privacy.dp_epsilon:g}; over {plan.devices} people it "
            "drowns what they learn together, and their personal parts alone get better"
        )
    people = datasets.configured(config.data, config.seed).people
    authority_store = AuthorityStore.init(plan.directory / "authority")
    server_directory = _server(plan.directory, authority_store)
    with ExitStack() as stack:
        stack.enter_context(kept_up([_up(server_directory)]))
        say(
            f"the gateway is open at {server_directory.settings.gateway}; "
            "SuperLink, executor and enrolment are behind it"
        )
        stack.enter_context(kept_up([_attending(plan.directory, server_directory)]))
        homes = []
        for number, person in enumerate(people):
            home = plan.directory / f"device-{number + 1}"
            homes.append(
                _join(home, person, server_directory, config, policy.min_honest, policy.max_colluders)
            )
            say(
                f"{person.name} joined as member {number + 1}, with {len(without_ties(person.train))} choices"
            )
        stack.enter_context(kept_up([part for home in homes for part in _device(home)]))
        served_run.create(
            server_directory.run(RUN),
            config,
            server_directory.authority,
            server_directory.membership().encoded,
        )
        run_signature.ask(server_directory, RUN)
        yield server_directory


@contextmanager
def kept_up(parts: Sequence[ChildProcess]) -> Iterator[None]:
    """Processes that are up inside the block, and gone after it. GatewayError when one can't be started."""
    stop, ready = threading.Event(), threading.Event()
    failed: list[GatewayError] = []

    def work() -> None:
        try:
            supervise(parts, stop=stop, announce=ready.set)
        except GatewayError as error:
            failed.append(error)
            ready.set()

    thread = threading.Thread(target=work, name="supervisor")
    thread.start()
    try:
        ready.wait()
        if failed:
            raise failed[0]
        yield
    finally:
        stop.set()
        thread.join()


# --- inner parts --------------------------------------------------------------------------------------


def _config(plan: Quickstart) -> RunConfig:
    """The recipe for Senate, share A, with everybody in every round."""
    changes: dict[str, object] = {
        "data.clients": plan.devices,
        "federation.rounds": plan.rounds,
        "federation.warmup_rounds": min(1, plan.rounds - 1),
        "federation.cohort": plan.devices,
        "federation.deadline_seconds": 300.0,
        "federation.training_seconds": 10.0,
        "federation.clip": 0.05,
        "privacy.dp_epsilon": 8.0,
    }
    config = RunConfig().changed(recipe("senate", "A")).changed(changes | dict(plan.settings))
    if not 3 <= plan.devices <= 50:
        raise ConfigError(f"{plan.devices} devices; between 3 and 50 make sense on one machine")
    policy = fleet_policy(config, plan.devices)
    return config.changed(
        {"privacy.min_honest": policy.min_honest, "privacy.max_colluders": policy.max_colluders}
    )


def _server(directory: Path, authority_store: AuthorityStore) -> ServerDirectory:
    settings = ServerSettings(
        addresses=(LOOPBACK,), listen=LOOPBACK, port=free_port(), superlink_port=free_port()
    )
    public = (directory / "authority" / PUBLIC).read_bytes()
    return ServerDirectory.create(directory / "server", settings, public, authority_store.latest())


def _penchant(*words: str) -> list[str]:
    return [sys.executable, "-P", "-m", "penchant.deploy.cli.main", *words]


def _up(server_directory: ServerDirectory) -> ChildProcess:
    words = _penchant("server", "up", str(server_directory.path))
    return ChildProcess(
        "the server",
        words,
        server_directory.log("up"),
        ready=lambda: gateway_open(server_directory),
        stop_seconds=60.0,
    )


def _attending(directory: Path, server_directory: ServerDirectory) -> ChildProcess:
    folders = ["--requests", str(server_directory.requests), "--answers", str(server_directory.answers)]
    words = _penchant("authority", "attend", str(directory / "authority"), *folders, "--yes", "--watch", "1")
    return ChildProcess("the authority", words, server_directory.log("authority"))


def _join(
    folder: Path,
    person: Person,
    server_directory: ServerDirectory,
    config: RunConfig,
    honest: int,
    colluders: int,
) -> Path:
    """A device with the person's choices becomes a member."""
    home = Device(folder)
    home.record([*person.train, *person.validation], "quickstart")
    policy = policy_for(config, honest, colluders)
    (folder / "policy.toml").write_text(policy.to_toml(), encoding="utf-8")
    token = hand_out(server_directory.path, person.name, time.time() + DAY)
    joining.wait(
        lambda: joining.join(home, token, folder / NODE, folder / "agent.sock"),
        JOIN_SECONDS,
        lambda text: None,
        poll=1.0,
    )
    return folder


def _device(home: Path) -> list[ChildProcess]:
    socket = home / "agent.sock"
    return [
        ChildProcess(
            f"the agent of {home.name}",
            _penchant("device", "serve", "--home", str(home)),
            home / "agent.log",
            ready=socket.exists,
        ),
        ChildProcess(
            f"the relay of {home.name}",
            _penchant("device", "connect", "--home", str(home)),
            home / "relay.log",
            stop_seconds=30.0,
        ),
    ]
