"""SmolLM2 behind transformers' own server, which speaks OpenAI's API: an upstream that is no stand-in."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.processes import free_port, listens, running, wait_for

from penchant.common.model.backbone import load_generator

# Of the other environment only what this one lacks is taken: its folder is the last that is looked into.
SERVE = "import sys; sys.path.append(sys.argv.pop(1)); from transformers.cli.transformers import main; main()"


def write_smollm2(folder: Path) -> None:
    """The model as a folder, set to draw its words: otherwise it writes the same answer each time."""
    model, tokenizer = load_generator("smollm2-135m", device="cpu")
    model.generation_config.do_sample = True
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def smollm2_server(folder: Path, packages: Path) -> Iterator[str]:
    """The model of a folder, served until the block ends -> the server's URL.

    packages: a folder of installed packages that has `openai`, which transformers' server asks for.
    """
    port = free_port()
    own = {**os.environ, "HF_HUB_CACHE": str(folder), "HF_HUB_OFFLINE": "1"}
    options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    words = [sys.executable, "-c", SERVE, str(packages), "serve", *options, str(folder)]
    with running(words, folder.parent / "upstream.log", env=own) as process:
        wait_for("the upstream", lambda: listens(port) or process.poll() is not None, 120)
        assert process.poll() is None, (folder.parent / "upstream.log").read_text(encoding="utf-8")
        yield f"http://127.0.0.1:{port}"
