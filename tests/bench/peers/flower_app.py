"""The algorithm as a plain Flower app on Ray: `python -m bench.peers.flower_app TASK RESULT [CPUS]`.

A person is a ClientApp's node: the personal factor lies in the node's context, the shared one travels. Each
actor of Ray loads the base model once, and tokenises each person's texts once.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from bench.peers.plain import FedAdam, Parts, PlainModel, mean_of, shared_names, some, start_of
from bench.peers.task import HEAD, B, Result, Task
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

TASK, RESULT = "PEERS_TASK", "PEERS_RESULT"  # environment: Ray's workers inherit it
PERSONAL = (B, HEAD)
START_SECONDS = 120

client_app = ClientApp()
server_app = ServerApp()


# --- a person -------------------------------------------------------------------------------------


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """One round: from the shared parts and this node's own, one round's training."""
    worker = worker_of(os.environ[TASK])
    warm = bool(message.content["round"]["warm"])
    received = message.content["shared"].to_torch_state_dict()
    worker.model.load(received if warm else received | worker.personal(message, context))
    batch = worker.training(person_of(context))
    worker.model.train(batch, warm)
    after = worker.model.parts()
    if not warm:
        context.state["personal"] = ArrayRecord(some(after, PERSONAL))
    update = {name: after[name] - received[name] for name in received}
    pairs = len(batch["input_ids"]) // 2
    content = RecordDict({"update": ArrayRecord(update), "counts": MetricRecord({"pairs": pairs})})
    return Message(content, reply_to=message)


@client_app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """This node's model on its test pairs."""
    worker = worker_of(os.environ[TASK])
    received = message.content["shared"].to_torch_state_dict()
    worker.model.load(received | worker.personal(message, context))
    accuracy = worker.model.accuracy(worker.testing(person_of(context)))
    return Message(RecordDict({"counts": MetricRecord({"accuracy": accuracy})}), reply_to=message)


@client_app.query()
def who(message: Message, context: Context) -> Message:
    """Whose node this is."""
    return Message(RecordDict({"who": MetricRecord({"person": person_of(context)})}), reply_to=message)


class Worker:
    """What an actor of Ray keeps from message to message."""

    def __init__(self, task: Task) -> None:
        torch.set_num_threads(1)
        self.model = PlainModel(task)
        self.training = lru_cache(maxsize=None)(lambda i: self.model.tokenised(task.people[i].train))
        self.testing = lru_cache(maxsize=None)(lambda i: self.model.tokenised(task.people[i].test))

    def personal(self, message: Message, context: Context) -> Mapping[str, Any]:
        """The node's own part; the common start where it has none yet."""
        own = context.state.get("personal") or message.content["start"]
        return own.to_torch_state_dict()  # type: ignore[union-attr, no-any-return]


@lru_cache(maxsize=1)
def worker_of(path: str) -> Worker:
    """This process's own."""
    return Worker(Task.read(Path(path)))


def person_of(context: Context) -> int:
    """The number of a node's person."""
    return int(context.node_config["partition-id"])


# --- the server -----------------------------------------------------------------------------------


@server_app.main()
def federate(grid: Grid, context: Context) -> None:
    """All rounds, then everybody's accuracy."""
    task = Task.read(Path(os.environ[TASK]))
    nodes = nodes_by_person(grid, len(task.people))
    parts, optimizer = start_of(task), FedAdam(task.server)
    for number, cohort in enumerate(task.cohorts, start=1):
        names = shared_names(task.warms(number))
        content = announced(parts, task.warms(number))
        replies = asked(grid, content, [nodes[person] for person in cohort], "train")
        updates: list[Parts] = [reply["update"].to_torch_state_dict() for reply in replies]
        weights = [int(reply["counts"]["pairs"]) for reply in replies]
        parts |= optimizer.step(some(parts, names), mean_of(updates, weights))
    replies = asked(grid, announced(parts, False), list(nodes.values()), "evaluate")
    accuracies = [float(reply["counts"]["accuracy"]) for reply in replies]
    shared = some(parts, shared_names(task.warms(task.rounds)))
    Result.of(accuracies, shared).write(Path(os.environ[RESULT]))


def nodes_by_person(grid: Grid, people: int) -> dict[int, int]:
    """Person -> node. Cohorts are those of the task, so the server must know; one small message a node."""
    until = time.monotonic() + START_SECONDS
    while len(nodes := list(grid.get_node_ids())) < people:  # they are still being made
        if time.monotonic() > until:
            raise RuntimeError(f"{len(nodes)} nodes for {people} people after {START_SECONDS} s")
        time.sleep(0.1)
    messages = [Message(RecordDict({}), node, "query") for node in nodes]
    return {
        int(reply.content["who"]["person"]): reply.metadata.src_node_id
        for reply in grid.send_and_receive(messages)
    }


def announced(parts: Parts, warm: bool) -> RecordDict:
    """What a node is sent: the shared parts, and where personal ones start."""
    records = {
        "shared": ArrayRecord(some(parts, shared_names(warm))),
        "round": ConfigRecord({"warm": warm}),
    }
    return RecordDict(records if warm else records | {"start": ArrayRecord(some(parts, PERSONAL))})


def asked(grid: Grid, content: RecordDict, nodes: Sequence[int], kind: str) -> list[Any]:
    """Everybody's reply. RuntimeError when somebody fails."""
    replies = list(grid.send_and_receive([Message(content, node, kind) for node in nodes]))
    failed = [reply.error for reply in replies if reply.has_error()]
    if failed or len(replies) != len(nodes):
        raise RuntimeError(f"{len(nodes)} nodes were asked, {len(replies)} replied: {failed[:1]}")
    return [reply.content for reply in replies]


def main() -> None:
    """Simulate on Ray."""
    task, result, *cpus = sys.argv[1:]
    os.environ |= {TASK: str(Path(task).absolute()), RESULT: str(Path(result).absolute())}
    people = len(Task.read(Path(task)).people)
    resources = {"client_resources": {"num_cpus": 1}, "init_args": {"num_cpus": int((cpus or ["1"])[0])}}
    try:
        run_simulation(server_app, client_app, num_supernodes=people, backend_config=resources)
    except Exception:  # whatever failed: the ServerApp's thread waits for replies for ever
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


if __name__ == "__main__":
    from bench.peers import flower_app  # by its name, so that Ray's workers import it and keep what they load

    flower_app.main()
