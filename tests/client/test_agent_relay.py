"""What the relay is: a process next to nothing larger than any Flower ClientApp, that knows no secret."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from penchant.client.agent import relay
from penchant.client.agent.socket import AgentServer
from penchant.common.secagg.stages import STAGES
from penchant.common.wire.codec import MAGIC, decode
from penchant.common.wire.flower import message_type, pack, unpack
from penchant.common.wire.messages import Abort, AbortCode

MOST = 1.2  # times the resident memory of a ClientApp that does nothing

BARE = """
from flwr.app import Message
from flwr.clientapp import ClientApp
app = ClientApp()
for stage in ("keys", "masked"):
    @app.train(stage)
    def echo(message, context):
        return Message(message.content, reply_to=message)
"""
RELAY = "from penchant.client.agent.relay import app\n"
FLOWER = "import flwr.supernode.cli\n"  # what the program flwr-clientapp imports
WORK = """
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from penchant.common.wire.flower import pack
TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
config = {"agent-socket": SOCKET}
context = Context(run_id=1, node_id=1, node_config=config, state=RecordDict(), run_config={})
for turn in range(6):
    stage = ("keys", "masked")[turn % 2]
    asked = Message(content=pack(MAGIC + bytes(400_000)), dst_node_id=1, message_type=f"train.{stage}")
    asked.metadata.__dict__["_message_id"] = "1"
    reply = app(asked, context)
    if len(reply.content["penchant"]["payload"]) < 400_000:
        raise SystemExit("no answer")
"""
MEASURE = """
import sys
rss = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(rss.split()[1])
print(" ".join(sorted(name for name in sys.modules if "." not in name or name.startswith("penchant."))))
"""


def measured(program: str) -> tuple[int, set[str]]:
    """(most resident memory in kB, modules) of a fresh process that runs `program`."""
    done = subprocess.run(
        [sys.executable, "-c", program + MEASURE], capture_output=True, text=True, timeout=300, check=True
    )
    rss, modules = done.stdout.splitlines()
    return int(rss), set(modules.split())


def test_a_relay_at_rest_needs_hardly_more_memory_than_a_bare_client_app() -> None:
    bare = min(measured(BARE)[0] for _ in range(2))
    relay = min(measured(RELAY)[0] for _ in range(2))
    assert relay <= MOST * bare


def test_a_relay_at_work_needs_hardly_more_memory_than_a_bare_client_app(tmp_path: Path) -> None:
    """Both as Flower runs them, with messages of 400 kB that are answered by an agent, or echoed."""
    server = AgentServer(lambda stage, payload: payload, tmp_path / "agent.sock")
    server.start()
    work = WORK.replace("SOCKET", repr(str(server.socket))).replace("MAGIC", repr(MAGIC))
    bare = min(measured(FLOWER + BARE + work)[0] for _ in range(2))
    relay = min(measured(FLOWER + RELAY + work)[0] for _ in range(2))
    server.stop(0)
    assert relay <= MOST * bare


def test_a_relay_imports_no_torch_and_nothing_that_holds_secrets() -> None:
    _, modules = measured(RELAY)
    assert not {"torch", "transformers", "peft", "safetensors", "sqlite3"} & modules
    assert {name for name in modules if name.startswith("penchant.client.")} == {
        "penchant.client.agent",
        "penchant.client.agent.relay",
        "penchant.client.agent.flower_app",
        "penchant.client.agent.socket",
        "penchant.client.agent.agent_pb2",
        "penchant.client.agent.agent_pb2_grpc",
    }


@pytest.mark.parametrize("node_config", [{"agent-socket": "/nowhere/agent.sock"}, {"agent-socket": 3}, {}])
def test_without_an_agent_a_relay_answers_one_code_and_no_text(
    node_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_run_id", "_task_id", "_node_id"):  # as Flower does before it runs an app
        monkeypatch.setattr(TaskIdentity, name, 1)
    context = Context(run_id=1, node_id=1, node_config=node_config, state=RecordDict(), run_config={})
    expected = (
        AbortCode.UNAVAILABLE if isinstance(node_config.get("agent-socket"), str) else AbortCode.INTERNAL
    )
    for stage in STAGES:
        asked = Message(content=pack(b"x"), dst_node_id=1, message_type=message_type(stage))
        asked.metadata.__dict__["_message_id"] = "1"
        reply = relay.app(asked, context)
        assert not reply.has_error()
        assert decode(unpack(reply.content), Abort).code is expected
