"""A hostile app bundle meets a device on every documented way to connect: not a line of it runs.

The server is a real SuperLink that hands the bundle out; beside the ways there is Flower's own SuperNode, in
which the same bundle does run, or its silence elsewhere would say nothing.
"""

from __future__ import annotations

import itertools
import json
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from support.open_flower import bundle_project
from support.processes import PROGRAM, free_port, listens, running, wait_for
from system.other_user import User
from system.test_boundary import FILES, DeviceOfTwoUsers, device, own

from penchant.client.device.supernode_files import CA, KEY, SuperNodeFiles
from penchant.common.wire.codec import decode
from penchant.common.wire.messages import Abort, AbortCode, Status
from penchant.deploy.fleet.authority import AuthorityStore
from penchant.deploy.fleet.processes import door
from penchant.deploy.fleet.server_directory import ServerDirectory, ServerSettings
from penchant.deploy.flower.superlink import (
    Control,
    environment,
    executor_command,
    start_run,
    superlink_command,
)

pytestmark = pytest.mark.system

__all__ = ["device"]

FLEET = Path(__file__).resolve().parents[2] / "deploy" / "fleet"
LOOPBACK = "127.0.0.1"
TRAP = """
import os
from pathlib import Path
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

where = Path(SPRUNG) / f"{os.environ.get('WAY', 'none')}-{os.getuid()}-{os.getpid()}"
where.write_text("a line of the server's ran here")  # as soon as it is imported
client = ClientApp()

def loot(message, context):
    found = {}
    for path in PATHS:
        try:
            found[path] = Path(path).read_bytes()[:20].hex()
        except OSError:
            found[path] = ""
    content = RecordDict({"penchant": ConfigRecord({"payload": repr(found).encode()})})
    return Message(content, reply_to=message)

for kind in ("keys", "masked", "status", "loot"):
    client.train(kind)(loot)
client.query()(loot)
"""
ORDERS = """
import json, time
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid, ServerApp
from penchant.common.wire.codec import encode
from penchant.common.wire.messages import Hello

server = ServerApp()

@server.main()
def main(grid, context):
    nodes = set()
    end = time.monotonic() + 150
    while len(nodes) < COUNT and time.monotonic() < end:
        nodes = set(grid.get_node_ids())
        time.sleep(1)
    found = {}
    hello = encode(Hello(bytes(16), ()))
    for kind, payload in (("train.loot", b"x"), ("query", b"x"), ("train.status", hello)):
        content = RecordDict({"penchant": ConfigRecord({"payload": payload})})
        orders = [Message(content, dst_node_id=node, message_type=kind) for node in nodes]
        for reply in grid.send_and_receive(orders, timeout=90):
            said = found.setdefault(str(reply.metadata.src_node_id), {})
            said[kind] = reply.content["penchant"]["payload"].hex() if reply.has_content() else "error"
    with open(OUT + ".new", "w") as file:
        json.dump(found, file)
    import os
    os.rename(OUT + ".new", OUT)
"""


@dataclass
class Way:
    """A way to connect: its name, who goes it, and its words behind `penchant`."""

    name: str
    who: User
    words: list[str]
    node: Path  # the SuperNode's folder


def ways(device: DeviceOfTwoUsers) -> list[Way]:
    """Every documented way: README's, two users', the unit's and the container's own words."""
    unit = (FLEET / "systemd" / "penchant-relay.service").read_text()
    (line,) = re.findall(r"^ExecStart=\S+ (.*)$", unit, re.M)
    text = (FLEET / "containers" / "Containerfile.device").read_text()
    (container,) = re.findall(r"^#     (device connect .*)$", text, re.M)
    plain = ["device", "connect"]
    two = [*plain, "--node", "NODE", "--socket", "SOCKET"]
    found = []
    for name, who, words in (
        ("readme", device.owner, plain),
        ("two-users", device.relay, two),
        ("unit", device.relay, shlex.split(line)),
        ("container", device.relay, shlex.split(container)),
    ):
        node = device.home / "node" if name == "readme" else device.place / f"node-{name}"
        given = dict(itertools.pairwise(words))
        places = {given.get("--node"): str(node), given.get("--socket"): str(device.socket)}
        found.append(Way(name, who, [places.get(word, word) for word in words], node))
    return found


@dataclass
class Server:
    """A hostile operator's: it lets nodes in, and hands its bundle out."""

    server_directory: ServerDirectory
    control: Control

    def let_in(self, folder: Path, socket: Path, who: User) -> int:
        """A SuperNode's folder, as `penchant device join` leaves it; -> its node."""
        folder.mkdir(mode=0o700)
        made = ec.generate_private_key(ec.SECP384R1())
        key = made.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        (folder / KEY).write_bytes(key)
        (folder / CA).write_bytes(self.server_directory.tls.loopback_ca.certificate.read_bytes())
        SuperNodeFiles(folder, self.server_directory.settings.superlink, socket, "token").write()
        own(folder, who)
        public = made.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        return self.control.register(public, folder.name)


@pytest.fixture
def server(device: DeviceOfTwoUsers) -> Iterator[Server]:
    settings = ServerSettings(
        addresses=(LOOPBACK,), listen=LOOPBACK, port=free_port(), superlink_port=free_port()
    )
    place, authority_store = device.place / "server", AuthorityStore.init(device.place / "operator")
    public = (device.place / "operator" / "authority.pub").read_bytes()
    server_directory = ServerDirectory.create(place, settings, public, authority_store.latest())
    tls, port = server_directory.tls, settings.superlink_port
    surroundings = environment(server_directory.flower)
    with ExitStack() as stack:
        superlink = superlink_command(
            port, place / "state.db", tls.loopback_ca.certificate, tls.loopback.certificate, tls.loopback.key,
            server_directory.secret,
        )  # fmt: skip
        stack.enter_context(running(superlink, device.place / "superlink.log", env=surroundings))
        wait_for("the SuperLink", lambda: listens(port), 120)
        executor = executor_command(door(server_directory), server_directory.secret)
        stack.enter_context(running(executor, device.place / "executor.log", env=surroundings))
        yield Server(server_directory, stack.enter_context(Control(door(server_directory))))


def bundle(device: DeviceOfTwoUsers, sprung: Path, out: Path, count: int) -> Path:
    folder = device.place / "bundle"
    folder.mkdir()
    paths = [str(device.home / name) for name in FILES]
    (folder / "pyproject.toml").write_text(bundle_project("orders:server", "trap:client"))
    (folder / "trap.py").write_text(TRAP.replace("SPRUNG", repr(str(sprung))).replace("PATHS", repr(paths)))
    (folder / "orders.py").write_text(ORDERS.replace("COUNT", str(count)).replace("OUT", repr(str(out))))
    return folder


def flowers_own(server: Server, node: Path, socket: Path) -> list[str]:
    return [
        str(Path(sys.executable).with_name("flower-supernode")),
        *("--root-certificates", str(node / CA), "--auth-supernode-private-key", str(node / KEY)),
        *(
            "--superlink",
            server.server_directory.settings.superlink,
            "--host",
            LOOPBACK,
            "--port",
            str(free_port()),
        ),
        *("--node-config", f'agent-socket="{socket}"'),
    ]


def test_not_a_line_of_a_hostile_bundle_runs_on_any_documented_way(
    device: DeviceOfTwoUsers, server: Server
) -> None:
    sprung, out = device.place / "sprung", device.place / "out.json"
    sprung.mkdir()
    sprung.chmod(0o777)
    paths = ways(device)
    assert [way.words[:2] for way in paths] == [["device", "connect"]] * 4
    nodes = {way.name: server.let_in(way.node, device.socket, way.who) for way in paths}
    control = device.place / "node-flower"
    nodes["flower"] = server.let_in(control, device.socket, device.owner)
    with ExitStack() as stack:

        def start(name: str, who: User, words: Sequence[str]) -> None:
            log, home = device.place / f"relay-{name}.log", device.place / f"home-{name}"
            home.mkdir()
            own(home, who)
            own_home = str(device.home if who == device.owner else home)
            env = environment(home) | {"HOME": str(home), "WAY": name, "PENCHANT_HOME": own_home}
            stack.enter_context(running(who.words(words), log, env=env, cwd=device.place))

        for way in paths:
            start(way.name, way.who, [*PROGRAM, *way.words])
        start("flower", device.owner, flowers_own(server, control, device.socket))
        app = bundle(device, sprung, out, len(nodes))
        start_run(app, door(server.server_directory), device.place / "operator")
        try:
            wait_for("the server's run", out.exists, 400)
        except BaseException:
            for log in sorted(device.place.glob("*.log")):
                print(f"--- {log.name}", *log.read_text(errors="replace").splitlines()[-15:], sep="\n")
            raise
    found: dict[str, Any] = json.loads(out.read_text())
    assert {path.name.rsplit("-", 2)[0] for path in sprung.iterdir()} == {"flower"}
    looted = bytes.fromhex(found[str(nodes["flower"])]["train.loot"])
    assert b"vault.root" in looted  # the bundle is a real danger: as the owner's user it reads the key
    assert (device.home / "vault.root").read_bytes()[:20].hex().encode() in looted
    for way in paths:
        said = {kind: bytes.fromhex(text) for kind, text in found[str(nodes[way.name])].items()}
        assert decode(said["train.loot"], Abort).code is AbortCode.STAGE, way.name
        assert decode(said["query"], Abort).code is AbortCode.STAGE, way.name
        served = decode(said["train.status"], Status)
        assert (served.ready, served.member) == (True, 1), way.name
    status = device.answers()
    assert (status.ready, status.member) == (True, 1)


def test_documents_show_no_other_way_than_those() -> None:
    """Flower's own SuperNode, which runs what a server sends, is in no command that anybody is shown."""
    root = FLEET.parents[1]
    pages = [root / "README.md", *(root / "docs").glob("*.md")]
    pages += [*FLEET.rglob("*.service"), *FLEET.rglob("Containerfile*")]
    shown = [path.name for path in pages if re.search(r"flower-supernode|flwr-clientapp", path.read_text())]
    assert shown == []
