"""What another user of the machine tries against a device's files, its owner's page, and its API.

`python trespasser.py` reads what to aim at from its standard input, as JSON, and writes
{attempt: "denied: why" or "DONE: what it got"}. With "only", a list of names, it makes no other attempts: so
a test shows that they succeed for the owner.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import urllib.request
from collections.abc import Callable, Iterator
from multiprocessing.connection import Client
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from system.hostile import Denied, files, process, replace, signals

Attempt = tuple[str, Callable[[], Any]]
SECRETS = re.compile(rb"/enter/[\w-]{43}|penchant-[\w-]{43}")  # a link, a token
QUESTION = {"prompt": "on bill 1: ", "responses": ["the table tax", "the motion tax"]}
RERANK = {"query": "on bill 1: ", "texts": ["the table tax", "the motion tax"]}
CHOICE = {"prompt": "on bill 1: ", "chosen": "the table", "rejected": "the motion"}


def trespass(aims: dict[str, Any]) -> dict[str, str]:
    """All attempts, or those that are asked for; the destructive ones come last."""
    home, found = Path(aims["home"]), {}
    wanted = aims.get("only")
    attempts = [
        *files(home, aims["files"]),
        *the_page(home, aims["page"]),
        *the_api(home, aims["api"]),
        *the_socket(home / "rank.sock"),
        *the_machine(aims["ports"]),
        *of_each(aims["pids"], process),
        *of_each(aims["pids"], signals),
    ]
    for name, attempt in attempts:
        if wanted is not None and name not in wanted:
            continue
        try:
            found[name] = f"DONE: {attempt()!r}"[:200]
        except (OSError, Denied) as error:
            found[name] = f"denied: {error}"[:200]
    return found


def the_page(home: Path, url: str) -> Iterator[Attempt]:
    yield "follow the link in page.html", lambda: asked(link_in(home / "page.html"))
    yield "ask for the page at its door", lambda: asked(url)
    yield "guess a link", lambda: asked(f"{url}/enter/{'x' * 43}")
    yield "guess where the page is", lambda: asked(f"{url}/{'x' * 22}/")
    yield "send a choice to the page", lambda: asked(f"{url}/{'x' * 22}/choose", b"say=first&turn=1&csrf=x")
    yield "close the page", lambda: asked(f"{url}/{'x' * 22}/close", b"csrf=x")


def the_api(home: Path, url: str) -> Iterator[Attempt]:
    def rank(**headers: str) -> bytes:
        return asked(f"{url}/rerank", json.dumps(RERANK).encode(), headers)

    def by_token() -> bytes:
        return rank(Authorization=f"Bearer {(home / 'api.token').read_text().strip()}")

    yield "rank by the token in api.token", by_token
    yield "rank without a token", rank
    yield "rank by a token of my own", lambda: rank(Authorization=f"Bearer penchant-{'x' * 43}")
    yield "rank by an empty token", lambda: rank(Authorization="Bearer ")
    yield "send a choice to the API", lambda: asked(f"{url}/v1/feedback", json.dumps(CHOICE).encode())


def the_socket(path: Path) -> Iterator[Attempt]:
    def rank() -> bytes:
        with Client(str(path), family="AF_UNIX") as connection:
            connection.send_bytes(json.dumps(QUESTION).encode())
            answer = connection.recv_bytes()
        if answer == b"null":
            raise Denied("it refused")
        return answer

    yield "rank by rank.sock", rank
    yield "open rank.sock to all", lambda: os.chmod(path, 0o777)
    yield "replace rank.sock", lambda: replace(path)
    yield "remove rank.sock", lambda: os.unlink(path)


def the_machine(ports: list[int]) -> Iterator[Attempt]:
    yield "find a link or a token in the list of processes", in_command_lines
    for port in ports:
        yield f"listen beside port {port}", lambda port=port: listen(port)


def of_each(pids: dict[str, int], attempts: Callable[[int], Iterator[Attempt]]) -> Iterator[Attempt]:
    for name, pid in pids.items():
        for what, attempt in attempts(pid):
            yield f"{what} of {name}", attempt


def asked(url: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> bytes:
    """The first bytes of an answer; OSError for one that refuses."""
    kind = "application/json" if body and body.startswith(b"{") else "application/x-www-form-urlencoded"
    request = urllib.request.Request(url, body, {"Content-Type": kind, **(headers or {})})
    with urllib.request.urlopen(request, timeout=60) as answer:
        read: bytes = answer.read(80)
        return read


def link_in(file: Path) -> str:
    found = re.search(r'href="([^"]+)"', file.read_text())
    if found is None:
        raise Denied("no link")
    return found[1]


def in_command_lines() -> bytes:
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if found := SECRETS.search(words):
            return found[0]
    raise Denied("none is there")


def listen(port: int) -> str:
    """Take a part of the connections that are meant for somebody else."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
    return "it listens"


if __name__ == "__main__":
    print(json.dumps(trespass(json.load(sys.stdin))))
