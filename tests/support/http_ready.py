"""A process of a bench that is to answer HTTP requests. It needs httpx and nothing else of the tests'."""

from __future__ import annotations

import subprocess
import time

import httpx


def wait_until_it_answers(url: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until `url` is answered, whatever with; SystemExit where the process ends before."""
    while process.poll() is None:
        try:
            httpx.get(url)
            return
        except httpx.TransportError:
            time.sleep(0.2)
    raise SystemExit(f"nothing answered at {url}: the process ended with {process.returncode}")
