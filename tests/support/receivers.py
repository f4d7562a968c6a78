"""Whoever gets notices, on this machine: a web server and a mail server that keep what they were sent."""

from __future__ import annotations

import base64
import socketserver
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class WebServer:
    """Answers with `status`; (path, headers in lower case, body) of each POST are in `got`.

    `drips`: "body" or "head": what it sends without end, a byte at a time.
    """

    def __init__(self) -> None:
        self.status = 200
        self.drips = ""
        self.got: list[tuple[str, dict[str, str], bytes]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.got.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                self.send_response(outer.status)
                if outer.drips != "head":
                    self.send_header("Content-Length", "1000000" if outer.drips else "0")
                    self.end_headers()
                self.flush_headers()
                with suppress(OSError):
                    while outer.drips:
                        self.wfile.write(b"x")
                        time.sleep(0.05)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]


class MailServer:
    """Takes mail, by STARTTLS if it has a certificate; `mails` are their texts, `logins` what was shown."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.refuses = False
        self.mails: list[str] = []
        self.logins: list[str] = []
        self.secured = 0
        outer = self

        class Handler(socketserver.StreamRequestHandler):
            def say(self, text: str) -> None:
                self.wfile.write(text.encode() + b"\r\n")

            def handle(self) -> None:
                self.say("220 here")
                while line := self.rfile.readline().decode().strip():
                    word = line.upper().split()[0]
                    if word == "QUIT":
                        self.say("221 bye")
                        return
                    if word == "STARTTLS" and context is not None:
                        self.say("220 go on")
                        self.request = context.wrap_socket(self.request, server_side=True)
                        self.rfile, self.wfile = self.request.makefile("rb"), self.request.makefile("wb", 0)
                        outer.secured += 1
                    elif word == "EHLO":
                        self.say("250-here")
                        self.say("250-AUTH PLAIN" if context is None or outer.secured else "250-STARTTLS")
                        self.say("250 8BITMIME")
                    elif word == "AUTH":
                        outer.logins.append(base64.b64decode(line.split()[2]).decode())
                        self.say("235 yes")
                    elif word == "DATA":
                        self.say("354 go on")
                        lines = iter(lambda: self.rfile.readline().decode().rstrip("\r\n"), ".")
                        outer.mails.append("\n".join(lines))
                        self.say("250 taken")
                    else:
                        self.say("451 not now" if outer.refuses and word == "RCPT" else "250 yes")

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]


@contextmanager
def serving(receiver: WebServer | MailServer) -> Iterator[None]:
    """Let it answer."""
    server = receiver._server
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join(60)
