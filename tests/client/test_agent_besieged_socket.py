"""The real agent behind its real socket, under whatever anybody who can connect may send."""

from __future__ import annotations

import random
import socket as sockets
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from support.fleet_scene import REPLIES, STAGES, FleetScene
from support.scene import RUN

from penchant.client.agent.agent_pb2 import Envelope
from penchant.client.agent.socket import AgentServer, RemoteAgent
from penchant.common.wire.codec import decode, decode_any, encode
from penchant.common.wire.messages import Abort, Hello, Status

EVERYTHING = ("status", *STAGES)
CLOSED = {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNIMPLEMENTED}


@dataclass
class Besieged:
    """A fleet whose first device is reached through its socket only."""

    scene: FleetScene
    server: AgentServer
    remote: RemoteAgent

    def is_up(self) -> bool:
        return decode(self.remote("status", encode(Hello(RUN, ()))), Status).ready


@pytest.fixture
def besieged(tiny_model: Callable[[str], Path], tmp_path: Path) -> Iterator[Besieged]:
    scene = FleetScene(tiny_model("bert"), tmp_path / "fleet", 4, ahead=True)
    with ExitStack() as stack:
        server = AgentServer(scene.agents[0].answer, tmp_path / "agent.sock", message_most=1 << 20)
        server.start()
        stack.callback(server.stop, 0)
        remote = RemoteAgent(server.socket, seconds=60)
        stack.callback(remote.close)
        yield Besieged(scene, server, remote)


def honest(scene: FleetScene) -> dict[str, bytes]:
    """What an honest server sends to the device in each stage of one attempt."""
    found = {"status": encode(Hello(RUN, ())), "keys": encode(scene.announce())}
    for attempt, stage in enumerate(STAGES[1:], start=1):
        scene.play_to(stage, announce=scene.announce(attempt=attempt))
        found[stage] = scene.requests[0]
    return found


def hurt(draw: random.Random, payload: bytes) -> bytes:
    """A message, damaged in one of the ways that parsers trip over."""
    place = draw.randrange(len(payload))
    return draw.choice(
        [
            payload[:place],
            payload + draw.randbytes(draw.randrange(1, 40)),
            payload[:place] + draw.randbytes(1) + payload[place + 1 :],
            payload[:place] + b"\xff\xff\xff\xff" + payload[place + 4 :],
            payload[:5] + draw.randbytes(len(payload) - 5 if len(payload) > 5 else 0),
            draw.randbytes(draw.randrange(200)),
            b"",
        ]
    )


def test_damaged_and_misplaced_messages_get_a_message_or_one_code(besieged: Besieged) -> None:
    draw, requests = random.Random(11), honest(besieged.scene)
    refused = 0
    for _ in range(300):
        stage = draw.choice(EVERYTHING)
        payload = requests[draw.choice(EVERYTHING)]
        if draw.random() < 0.6:
            payload = hurt(draw, payload)
        reply = decode_any(besieged.remote(stage, payload), REPLIES[stage])
        refused += isinstance(reply, Abort)
    assert refused > 150
    assert besieged.is_up()


def test_what_is_no_call_is_closed_and_the_agent_stays_up(besieged: Besieged) -> None:
    """Broken HTTP/2, calls that do not exist, envelopes that are none, and more than fits."""
    draw, path = random.Random(12), str(besieged.server.socket)
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    for kind in range(0, 14):
        with sockets.socket(sockets.AF_UNIX) as raw:
            raw.connect(path)
            frame = struct.pack(">I", draw.randrange(1 << 24))[1:] + bytes([kind, draw.randrange(256)])
            raw.sendall(preface + frame + draw.randbytes(draw.randrange(300)))
    with grpc.insecure_channel(f"unix:{path}") as channel:
        for method, data in (
            ("Agent/Keys", b"\xff" * 30),
            ("Agent/Keys", b"\x0a\xff\xff\xff\x7f"),
            ("Agent/keys", b""),
            ("Agent/Export", b""),
            ("Owner/Keys", b""),
            ("Agent/Keys", Envelope(payload=bytes(2 << 20)).SerializeToString()),
        ):
            with pytest.raises(grpc.RpcError) as closed:
                channel.unary_unary(f"/penchant.agent.v1.{method}")(data, timeout=30)
            assert closed.value.code() in CLOSED  # type: ignore[attr-defined]
            assert str(besieged.scene.directory) not in str(closed.value)
    assert besieged.is_up()


def test_a_message_as_large_as_the_owner_allows_is_read_and_one_byte_more_is_not(
    besieged: Besieged,
) -> None:
    room = (1 << 20) - len(Envelope(payload=bytes(1 << 19)).SerializeToString()) + (1 << 19)
    with grpc.insecure_channel(f"unix:{besieged.server.socket}") as channel:
        keys = channel.unary_unary(
            "/penchant.agent.v1.Agent/Keys",
            request_serializer=Envelope.SerializeToString,
            response_deserializer=Envelope.FromString,
        )
        decode(keys(Envelope(payload=bytes(room)), timeout=30).payload, Abort)
        with pytest.raises(grpc.RpcError) as closed:
            keys(Envelope(payload=bytes(room + 1)), timeout=30)
        assert closed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # type: ignore[attr-defined]


def test_many_callers_at_once_are_answered_or_sent_away_and_a_round_goes_on(besieged: Besieged) -> None:
    def shout() -> None:
        remote = RemoteAgent(besieged.server.socket, seconds=30)
        for _ in range(5):
            decode_any(remote("status", b"junk"), (Abort,))
        remote.close()

    callers = [threading.Thread(target=shout) for _ in range(12)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(120)
    assert besieged.is_up()
    reply = besieged.remote("keys", encode(besieged.scene.announce()))
    assert not isinstance(decode_any(reply, REPLIES["keys"]), Abort)
    assert stat.S_IMODE(besieged.server.socket.stat().st_mode) == 0o600


def test_a_whole_attempt_passes_over_the_socket_after_all_that(besieged: Besieged) -> None:
    draw, scene = random.Random(13), besieged.scene
    for _ in range(30):
        besieged.remote(draw.choice(EVERYTHING), draw.randbytes(50))
    heard = []
    real = scene.tell

    def over_the_socket(stage: str, i: int, payload: bytes) -> bytes:
        if i != 0:
            return real(stage, i, payload)
        heard.append(stage)
        return besieged.remote(stage, payload)

    scene.tell = over_the_socket  # type: ignore[method-assign]
    run = scene.serve()
    assert [log.survivors for log in run.journal.logs()] == [4, 4, 4]
    assert set(heard) == set(EVERYTHING)
    scene.close()
