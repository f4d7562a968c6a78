"""Agents as forks of one process that has imported what they need: a start costs half a second, not ten.

For each line on standard input, {"words": what follows `penchant`, "traps": folder, "host": its network
namespace, "log": file}, it starts an agent and says its process id: a process of its own, killed as such.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import peft  # noqa: F401
import transformers.models.bert.modeling_bert  # noqa: F401
from system.trapped import Traps

import penchant.deploy.cli.device.agent  # noqa: F401
from penchant.deploy.cli.main import main

CLONE_NEWNET = 0x40000000


def become(order: dict[str, Any]) -> None:
    """Be an agent, in a fork, until it ends."""
    os.setsid()
    log = os.open(order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    namespace = os.open(f"/run/netns/{order['host']}", os.O_RDONLY)
    if ctypes.CDLL(None, use_errno=True).setns(namespace, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")
    Traps(Path(order["traps"])).set()
    sys.argv = ["penchant", *order["words"]]
    main()


if __name__ == "__main__":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    print("warm", flush=True)
    for line in sys.stdin:
        process = os.fork()
        if process == 0:
            try:
                become(json.loads(line))
            finally:
                os._exit(1)
        print(process, flush=True)
