"""Agents in forks of one warm process, to be killed at any instant; used by test_device_kills.py.

Usage: killed_device.py HOME SOCKET NOTES. For each line on standard input it forks a device, which imports,
trains and answers on its socket all at once, and says its process id once it serves. What is durable is noted
in NOTES: "recorded N" after choice N, "trained"; and "overtaken" where a round changed the model meanwhile.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

from penchant.client.agent.socket import AgentServer
from penchant.client.device.device import Device
from penchant.client.learning.model_cache import ModelCache
from penchant.common.data.preferences import Preference
from penchant.common.errors import PenchantError

BATCH = 3
MOST = 240  # choices; training must stay short


def choice(number: int) -> Preference:
    return Preference(f"day {number}: ", f"the motion {number}", "the table")


def note(notes: int, line: str) -> None:
    os.write(notes, f"{line}\n".encode())


def record(home: Device, notes: int, draw: random.Random) -> None:
    """Batches of choices, one after the other."""
    while (count := len(home.store)) < MOST:
        home.record([choice(count + k) for k in range(BATCH)])
        note(notes, f"recorded {count + BATCH}")
        time.sleep(draw.uniform(0, 0.05))


def train(home: Device, notes: int, draw: random.Random) -> None:
    while True:
        try:
            home.train()
            said = "trained"
        except PenchantError:  # a round finished meanwhile, say
            said = "overtaken"
        note(notes, said)
        time.sleep(draw.uniform(0, 0.05))


def live(home: Device, socket: Path, notes: int) -> None:
    """The life of one forked device. It ends by a signal only."""
    draw = random.Random(os.getpid())
    for work in (record, train):
        threading.Thread(
            target=work, args=(Device(home.directory, model_cache=home._model_cache), notes, draw)
        ).start()
    server = AgentServer(home.agent().answer, socket)  # it serves as long as somebody holds it
    server.start()
    print(os.getpid(), flush=True)
    signal.pause()


def main() -> None:
    folder, socket, notes = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
    descriptor = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    model_cache = ModelCache()
    Device(folder, model_cache=model_cache).report()  # loads the base model, once for all forks
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                live(Device(folder, model_cache=model_cache), socket, descriptor)
            finally:
                os._exit(1)
        os.waitpid(child, 0)
        print("dead", flush=True)


if __name__ == "__main__":
    main()
