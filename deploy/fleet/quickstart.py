"""A fleet on one machine, for real: authority, server behind its gateway, devices that join and learn.

The processes are those of a fleet in the open, and so is every step: tokens, requests, answers, TLS, node
authentication, agents behind sockets. Only the addresses are loopback's, one user runs it all, the authority
grants everything and has a key without a passphrase, since nobody is asked for it, and the owners' policies
are lowered to what so few devices allow, which is said.
"""

from __future__ import annotations

import os
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from penchant.client.agent.policy import OwnerPolicy
from penchant.client.device import joining
from penchant.client.device.device import Device
from penchant.client.device.supernode_files import NODE
from penchant.client.learning.model_cache import ModelCache
from penchant.common.config import RunConfig
from penchant.common.data.preferences import Person, without_ties
from penchant.common.durations import DAY
from penchant.common.errors import ConfigError, EnrolmentPending, GatewayError, UsageError
from penchant.common.wording import percent
from penchant.deploy import datasets
from penchant.deploy.fleet import gateway, processes, run_signature, served_run
from penchant.deploy.fleet.authority import PUBLIC, AuthorityStore
from penchant.deploy.fleet.enrolment import hand_out
from penchant.deploy.fleet.follow import watch
from penchant.deploy.fleet.processes import door, gateway_open
from penchant.deploy.fleet.server_directory import LOOPBACK, ServerDirectory, ServerSettings
from penchant.deploy.fleet.supervisor import ChildProcess, supervise
from penchant.deploy.flower.superlink import free_port
from penchant.deploy.owner_policy import fleet_policy, policy_for
from penchant.deploy.recipes import recipe
from penchant.deploy.run_directory import claim

__all__ = ["RUN", "Quickstart", "live_again", "live_fleet", "next_steps", "quickstart"]

RUN = "quickstart"
JOIN_SECONDS = 120.0
SOCKET = "agent.sock"
RUNS_PAID = 3  # that owners of a quickstart can pay for
LOCK = ".quickstart"  # held by the one who has the fleet up
A_DEVICE = "each an agent with its owner's model and a relay"
LOOK_SECONDS = 1.0  # between two looks of a relay: an exchange waits for the slowest of them
BRISK = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "1"}
"""Flower's own option: how long its executor waits between two looks for a run to start."""
SIDE_BY_SIDE = {"OMP_NUM_THREADS": "1"}
"""Many devices on few cores: a thread each, so that none holds a core while it waits for another's."""


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
        say(
            f"5 of 6: the authority signs what the run may ask; then {plan.rounds} rounds and a closing one, "
            "of five exchanges with all devices each"
        )
        run, at = server_directory.run(RUN), door(server_directory)
        watch(run, at, served_run.start(run, at), say)
        say("6 of 6: all processes are stopped, and the devices judge their models by choices they kept back")
    for line in learned(plan.directory):
        say(line)
    return server_directory.path


@contextmanager
def live_fleet(plan: Quickstart, say: Callable[[str], None]) -> Iterator[ServerDirectory]:
    """A fleet that is up inside the block: its server, whose run `RUN` is made and not yet begun.

    Raises UsageError for a directory in use or too few devices, GatewayError without nginx. Nothing is left
    running in any case.
    """
    gateway.stream_module()
    if plan.directory.exists() and (not plan.directory.is_dir() or any(plan.directory.iterdir())):
        again = "; --again brings its fleet up once more" if _homes(plan.directory) else ""
        raise UsageError(f"{plan.directory} is in use; choose an empty directory{again}")
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
    with ExitStack() as stack:
        plan.directory.mkdir(parents=True, exist_ok=True)
        stack.enter_context(_claimed(plan.directory))
        say(f"1 of 6: an authority, which signs who belongs, and a server are made in {plan.directory}")
        authority_store = AuthorityStore.init(plan.directory / "authority")
        server_directory = _server(plan.directory, authority_store)
        say("2 of 6: the server comes up: SuperLink, executor, enrolment, gateway and the queue of runs")
        _serve(stack, plan.directory, server_directory, say)
        say(f"3 of 6: {plan.devices} devices are invited; each asks, and the authority signs")
        owners = _for_runs(policy_for(config, policy.min_honest, policy.max_colluders))
        _joined(plan.directory, people, server_directory, owners)
        for number, person in enumerate(people, 1):
            say(f"  member {number}: {person.name}, with {len(without_ties(person.train))} choices")
        say(f"4 of 6: {plan.devices} devices start, {A_DEVICE}")
        _connected(stack, _homes(plan.directory))
        served_run.create(
            server_directory.run(RUN),
            config,
            server_directory.authority,
            server_directory.membership().encoded,
        )
        run_signature.ask(server_directory, RUN)
        yield server_directory


@contextmanager
def live_again(directory: Path, say: Callable[[str], None]) -> Iterator[ServerDirectory]:
    """The fleet of an earlier quickstart, up inside the block: server, authority and devices.

    Raises UsageError for a directory without one, or whose fleet is up already; GatewayError where a process
    can't be started.
    """
    homes = _homes(directory)
    if not homes:
        raise UsageError(f"{directory} holds no fleet of a quickstart; leave --again out to make one")
    with ExitStack() as stack:
        stack.enter_context(_claimed(directory))
        server_directory = ServerDirectory(directory / "server")
        processes.refuse_up(server_directory)
        say("1 of 2: the server comes up")
        _serve(stack, directory, server_directory, say)
        say(f"2 of 2: {len(homes)} devices start, {A_DEVICE}")
        _connected(stack, homes)
        yield server_directory


def learned(directory: Path) -> Iterator[str]:
    """How many of the choices that the owners kept back their own models rank right, and the shared one."""
    models = ModelCache()
    known = [Device(home, model_cache=models).report().quality for home in _homes(directory)]
    judged = [quality for quality in known if quality is not None]
    of = sum(quality.personal.total for quality in judged)
    if not of:
        yield "no device kept choices back to judge its model by"
        return
    personal, common = (
        sum(counts.correct for counts in found)
        for found in ([q.personal for q in judged], [q.common for q in judged])
    )
    yield (
        f"accuracy: the devices' own models rank {personal} of {of} choices right that they kept back "
        f"({percent(personal / of, 0)}), the shared one alone {common} ({percent(common / of, 0)})"
    )


def next_steps(directory: Path) -> Iterator[str]:
    """What to try with the fleet of a quickstart, a command a line."""
    server = shlex.quote(str(directory / "server"))
    yield f"look at it:         penchant server status {server}"
    yield "in a browser:       penchant console account add YOU --role operator"
    yield f"                    penchant console {server}"
    yield f"what a device has:  penchant device status --home {shlex.quote(str(directory / 'device-1'))}"
    yield f"up again:           penchant quickstart {shlex.quote(str(directory))} --again"
    yield f"  then another run: penchant server config {server} --like {RUN} > run.toml"
    yield f"                    penchant server run {server} --config run.toml"


@contextmanager
def kept_up(parts: Sequence[ChildProcess], *, together: bool = False) -> Iterator[None]:
    """Processes that are up inside the block, and gone after it. GatewayError when one can't be started.

    together: start and end all at once, because none needs another.
    """
    stop, ready = threading.Event(), threading.Event()
    failed: list[GatewayError] = []

    def work() -> None:
        try:
            supervise(parts, stop=stop, announce=ready.set, together=together)
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


def _claimed(directory: Path) -> AbstractContextManager[None]:
    """Be the only one who has this fleet up: what says that it is ready can't tell two of them apart."""
    taken = UsageError(f"the fleet in {directory} is up already, or just coming up; stop that one first")
    return claim(directory, LOCK, taken)


def _homes(directory: Path) -> list[Path]:
    """The devices' directories of a quickstart, in the order of their numbers."""
    found = [path for path in directory.glob("device-*") if path.name[7:].isdigit() and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name[7:]))


def _serve(
    stack: ExitStack, directory: Path, server_directory: ServerDirectory, say: Callable[[str], None]
) -> None:
    stack.enter_context(kept_up([_up(server_directory)]))
    say(f"  the gateway is open at {server_directory.settings.gateway}")
    stack.enter_context(kept_up([_attending(directory, server_directory)]))


def _connected(stack: ExitStack, homes: Sequence[Path]) -> None:
    """All agents at once, then all relays: each is a process that spends its beginning on imports."""
    stack.enter_context(kept_up([_agent(home) for home in homes], together=True))
    stack.enter_context(kept_up([_relay(home) for home in homes], together=True))


def _config(plan: Quickstart) -> RunConfig:
    """The recipe for Senate, share A, with everybody in every round."""
    changes: dict[str, object] = {
        "data.clients": plan.devices,
        "federation.rounds": plan.rounds,
        "federation.warmup_rounds": min(1, plan.rounds - 1),
        "federation.cohort": plan.devices,
        "federation.deadline_seconds": 300.0,
        "federation.training_seconds": 6.0,
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


def _for_runs(policy: OwnerPolicy) -> OwnerPolicy:
    """Owners with a budget for some runs more, since somebody wants to try another one."""
    return replace(policy, max_epsilon=RUNS_PAID * policy.max_epsilon)


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
        os.environ | BRISK,
        ready=lambda: gateway_open(server_directory),
        stop_seconds=60.0,
    )


def _attending(directory: Path, server_directory: ServerDirectory) -> ChildProcess:
    folders = ["--requests", str(server_directory.requests), "--answers", str(server_directory.answers)]
    words = _penchant("authority", "attend", str(directory / "authority"), *folders, "--yes", "--watch", "1")
    return ChildProcess("the authority", words, server_directory.log("authority"))


def _joined(
    directory: Path,
    people: Sequence[Person],
    server_directory: ServerDirectory,
    policy: OwnerPolicy,
) -> None:
    """Devices with the people's choices become members: first all ask, then all wait for their answers."""
    asking = []
    for number, person in enumerate(people, 1):
        home = directory / f"device-{number}"
        asking.append(_asking(home, person, server_directory, policy))
        with suppress(EnrolmentPending):
            asking[-1]()
    for attempt in asking:
        joining.wait(attempt, JOIN_SECONDS, lambda text: None, poll=0.5)


def _asking(
    folder: Path, person: Person, server_directory: ServerDirectory, policy: OwnerPolicy
) -> Callable[[], int]:
    """A device with the person's choices and a token: what it does to join, as often as it is called."""
    home = Device(folder)
    home.record([*person.train, *person.validation], "quickstart")
    (folder / "policy.toml").write_text(policy.to_toml(), encoding="utf-8")
    token = hand_out(server_directory.path, person.name, time.time() + DAY)
    return partial(joining.join, home, token, folder / NODE, folder / SOCKET)


def _agent(home: Path) -> ChildProcess:
    return ChildProcess(
        f"the agent of {home.name}",
        _penchant("device", "serve", "--home", str(home)),
        home / "agent.log",
        SIDE_BY_SIDE | os.environ,
        ready=(home / SOCKET).exists,
    )


def _relay(home: Path) -> ChildProcess:
    return ChildProcess(
        f"the relay of {home.name}",
        _penchant("device", "connect", "--home", str(home), "--look", f"{LOOK_SECONDS:g}"),
        home / "relay.log",
        stop_seconds=30.0,
    )
