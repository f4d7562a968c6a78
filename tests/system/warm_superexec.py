"""`flower-superexec` that forks the relay's process for each message, rather than starting Python anew.

A relay's start costs a core most of a second, and a round of seven devices has 35 of them: too much for tests
on two cores. All else is Flower's own: still a process for every message, with its token, gone after it.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress

import grpc  # noqa: F401
from flwr.supercore.superexec.executor import subprocess_executor
from flwr.supercore.superexec.executor.types import ExecutionSpec, LaunchResult
from flwr.supernode.cli import flwr_clientapp

import penchant.client.agent.relay  # noqa: F401


class ForkingExecutor(subprocess_executor.SubprocessExecutor):
    """Runs `flwr-clientapp` in a fork of this process, which has imported all that it needs."""

    def launch(self, spec: ExecutionSpec) -> LaunchResult:
        words = ["flwr-clientapp", "--runtime-api-address", spec.runtime_api_address, "--token", spec.token]
        words += ["--insecure"] if spec.insecure else []
        words += ["--parent-pid", str(os.getpid())]
        if os.fork() == 0:
            sys.argv = words
            code = 1
            try:
                flwr_clientapp()
                code = 0
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 1
            finally:
                os._exit(code)
        return LaunchResult.accepted()

    def reconcile(self) -> None:
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                continue


if __name__ == "__main__":
    from flwr.supercore.superexec.executor import factory

    factory.SubprocessExecutor = ForkingExecutor  # type: ignore[misc, attr-defined]
    from flwr.supercore.cli.flower_superexec import flower_superexec

    flower_superexec()
