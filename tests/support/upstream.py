"""A server that speaks OpenAI's API and writes what a test tells it to, in whatever manner."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WRITTEN = ["the table tax", "the table", "the motion tax", "cloture"]
CHOICE = b'{"choices": [{"message": {"role": "assistant", "content": "x"}, "logprobs": %s}]}'


@dataclass
class Upstream:
    """A server that speaks OpenAI's API; `manner` says how it takes n, or what it does instead."""

    manner: str = "takes n"
    written: list[Any] = field(default_factory=lambda: list(WRITTEN))
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    url: str = ""
    go: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, body: dict[str, Any], number: int) -> tuple[int, bytes, dict[str, str]]:
        several = body.get("n", 1)
        if self.manner == "refuses n" and "n" in body:
            return 400, b'{"error": "n must be 1"}', {}
        if self.manner == "fails later" and number > 1:
            return 429, b'{"error": "slow down"}', {"retry-after": "7", "x-of-its-own": "1"}
        plain = {
            "fails": (500, b'{"error": {"message": "out of memory"}}', {}),
            "refuses all": (400, b'{"error": "no such model"}', {}),
            "junk": (200, b"<html>", {}),
            "no choices": (200, b'{"choices": []}', {}),
            "odd choices": (200, b'{"choices": [{"text": "x"}]}', {}),
            "a list": (200, b"[]", {}),
            "deep": (200, b"[" * 100_000, {}),
            "rather deep": (200, CHOICE % (b"[" * 70 + b"]" * 70), {}),
            "half a character": (200, CHOICE % b'"\\ud800"', {}),
            "no number": (200, CHOICE % b"-Infinity", {}),
            "a number too large": (200, CHOICE % b"1e999", {}),
            "moved": (302, b"", {"location": "http://127.0.0.1:1/"}),
        }
        if self.manner in plain:
            return plain[self.manner]
        if self.manner in ("slow", "waits"):
            self.go.wait(60)
        count = several if self.manner in ("takes n", "waits") else 1
        start = 0 if self.manner == "takes n" else self._next()
        texts = [self.written[(start + place) % len(self.written)] for place in range(count)]
        choices = [
            {"index": place, "message": one if isinstance(one, dict) else said(one), "finish_reason": "stop"}
            for place, one in enumerate(texts)
        ]
        usage = {"prompt_tokens": 5, "completion_tokens": 2 * count, "total_tokens": 5 + 2 * count}
        found = {"id": "c1", "object": "chat.completion", "created": 1, "model": "m", "choices": choices}
        return 200, json.dumps({**found, "usage": usage, "of_its_own": [1]}).encode(), {}

    _at = -1

    def _next(self) -> int:
        self._at += 1
        return self._at


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


@contextmanager
def upstream_server() -> Iterator[Upstream]:
    """An upstream on a free port of loopback."""
    found = Upstream()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.headers.append({k.lower(): v for k, v in self.headers.items()})
            self._send(200, b'{"object": "list", "data": [{"id": "m"}]}', {})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with found.lock:
                found.asked.append(body)
                found.headers.append({k.lower(): v for k, v in self.headers.items()})
                number = len(found.asked)
                if found.manner not in ("slow", "waits"):
                    answer = found.answer(body, number)
            if found.manner in ("slow", "waits"):
                answer = found.answer(body, number)
            self._send(*answer)

        def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {"content-type": "application/json", **headers}.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield found
    finally:
        found.go.set()
        server.shutdown()
        server.server_close()
