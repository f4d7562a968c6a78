"""The program, with traps in its agent: `trapped.py TRAPS device serve …`.

TRAPS is a folder of JSON files, {"round": 2, "attempt": 1, "stage": "masked", "when": "before" or "after",
"act": …}, read before and after every answer. A trap works once: it is renamed to NAME.sprung. Acts:

    die     kill -9 of this process; "after": the answer is made, all that lasts is on disk, and it never left
    hold    wait until NAME.go is there
    fill    write a file into the agent's directory until its disk is full
    note    nothing: who looks knows that the agent is there
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from system.disks import fill

from penchant.client.agent.agent import Agent
from penchant.common.errors import CodecError
from penchant.common.wire.codec import decode
from penchant.common.wire.messages import Announce

HOLD_MOST = 600.0


class Traps:
    """The traps of one agent, and the round that it is in."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._place = (0, 0)  # round, attempt

    def set(self) -> None:
        """From now on this process's agent walks into them."""
        Agent.answer = lambda agent, *message: self.answer(agent, *message)  # type: ignore[method-assign]

    def answer(self, agent: Agent, stage: str, payload: bytes) -> bytes:
        if stage == "keys":
            try:
                announce = decode(payload, Announce)
                self._place = (announce.round, announce.attempt)
            except CodecError:
                self._place = (0, 0)
        self._spring(stage, "before")
        reply = UNTRAPPED(agent, stage, payload)
        self._spring(stage, "after")
        return reply

    def _spring(self, stage: str, when: str) -> None:
        number, attempt = self._place
        here = {"round": number, "attempt": attempt, "stage": stage, "when": when}
        for path in sorted(self._folder.glob("*.json")):
            trap: dict[str, Any] = json.loads(path.read_text())
            act = trap.pop("act")
            if trap == here:
                os.rename(path, path.with_suffix(".sprung"))
                getattr(self, f"_{act}")(path)

    def _die(self, path: Path) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def _hold(self, path: Path) -> None:
        end = time.monotonic() + HOLD_MOST
        while not path.with_suffix(".go").exists() and time.monotonic() < end:
            time.sleep(0.05)

    def _fill(self, path: Path) -> None:
        fill(Path(sys.argv[sys.argv.index("--home") + 1]))

    def _note(self, path: Path) -> None:
        pass


UNTRAPPED = Agent.answer

if __name__ == "__main__":
    Traps(Path(sys.argv.pop(1))).set()
    from penchant.deploy.cli.main import main

    main()
