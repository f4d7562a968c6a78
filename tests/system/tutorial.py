"""Runs docs/tutorial.md as it stands, but for its installation: every block of commands, in one shell.

Usage: tutorial.py BIN [--list]. BIN is the folder of the environment's programs.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tutorial.md"
COMMAND = re.compile(
    r"^(penchant|export|printf|python) "
)  # how a block of commands begins; the others are output
SAID = "Nothing else left."  # by the audit: the last line of its output that the page shows


def blocks() -> list[str]:
    """The page's blocks of commands, in order."""
    fenced = re.findall(r"^```\w*\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    return [block for block in fenced if COMMAND.match(block)]


def main() -> int:
    """Run the tutorial in the current directory; the first command that fails ends it with its exit code."""
    program = "\n".join(["set -euo pipefail", *blocks()])
    if "--list" in sys.argv:
        print(program)
        return 0
    environment = os.environ | {"PATH": f"{sys.argv[1]}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
    shell = ["bash", "-c", program]
    done = subprocess.run(
        shell, env=environment, stdout=subprocess.PIPE, text=True, input="1\n" * 20, timeout=900
    )
    print(done.stdout)
    if done.returncode == 0 and SAID not in done.stdout:
        print(f'the tutorial promises "{SAID}", and the audit does not say so', file=sys.stderr)
        return 1
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
