"""Run inside the clean environment: every module imports, and every file of the sources is there.

Usage: wheel_contents.py WHEEL ROOT
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import zipfile
from pathlib import Path

ROOMS = ("client", "common", "deploy", "server")
FACE = "deploy/api/"  # the package `penchant` itself


def source_files(root: Path) -> set[str]:
    """The rooms' tracked files under `root`, as paths inside the wheel."""
    listing = subprocess.run(
        ["git", "-C", str(root), "ls-files", *ROOMS], check=True, capture_output=True, text=True
    )
    return {f"penchant/{name.removeprefix(FACE)}" for name in listing.stdout.splitlines()}


def main() -> int:
    """Print what is missing; 1 when something is."""
    wheel, root = Path(sys.argv[1]), Path(sys.argv[2])
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("penchant/")}
    missing = source_files(root) - inside
    for name in sorted(missing):
        print(f"not in the wheel: {name}", file=sys.stderr)

    modules = sorted(
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in inside
        if name.endswith(".py")
    )
    for module in modules:
        where = importlib.import_module(module).__file__
        if where is None or Path(where).is_relative_to(root):
            print(f"{module} comes from {where}, not from the wheel", file=sys.stderr)
            missing.add(module)
    print(f"{len(inside)} files in the wheel, {len(modules)} modules import")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
