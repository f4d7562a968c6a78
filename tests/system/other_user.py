"""Commands as users of the operating system that a test makes, wherever this Python lives.

Python may be installed where others can't go (a home directory with mode 0700). Each command therefore gets
mounts of its own, in which what it needs can be reached and nothing else of a closed directory can.
"""

from __future__ import annotations

import os
import pwd
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class User:
    """A user with a group of the same name."""

    name: str

    @property
    def uid(self) -> int:
        return pwd.getpwnam(self.name).pw_uid

    @property
    def gid(self) -> int:
        return pwd.getpwnam(self.name).pw_gid

    def words(self, command: Sequence[str]) -> list[str]:
        """`command` as this user, in a mount namespace of its own. Root alone can run it."""
        become = f"exec setpriv --reuid={self.uid} --regid={self.gid} --clear-groups --no-new-privs -- "
        script = "\n".join(["set -e", *_mounts(), become + shlex.join(command)])
        return ["unshare", "--mount", "--propagation", "private", "bash", "-c", script]


@contextmanager
def user(name: str) -> Iterator[User]:
    """A new user without a home or a login, gone at the end."""
    alone = ["flock", "/run/lock/penchant-tests-users"]  # two at a time would refuse one another
    subprocess.run([*alone, "useradd", "--system", "--user-group", "--no-create-home", name], check=True)
    try:
        yield User(name)
    finally:
        subprocess.run([*alone, "userdel", name], check=True)


def _mounts() -> list[str]:
    """Shell lines that open the way to Python, its packages and this project."""
    needed = {
        Path(p).resolve() for p in (sys.base_prefix, sys.prefix, ROOT, *sys.path) if p and Path(p).is_dir()
    }
    for path in list(needed):  # what links inside a package path point to
        needed |= {p.resolve() for p in path.glob("penchant/*") if p.is_symlink()}
    beneath: dict[Path, set[Path]] = {}
    for path in needed:
        closed = [folder for folder in reversed(path.parents) if not os.stat(folder).st_mode & 0o001]
        if closed:
            beneath.setdefault(closed[0], set()).add(path)
    lines = []
    for folder, paths in beneath.items():
        tops = sorted(p for p in paths if not any(other in p.parents for other in paths))
        lines += ["stash=$(mktemp -d)", 'mount -t tmpfs -o mode=755 tmpfs "$stash"']
        for number, path in enumerate(tops):
            lines += [f'mkdir "$stash/{number}"', f'mount --bind {shlex.quote(str(path))} "$stash/{number}"']
        lines.append(f"mount -t tmpfs -o mode=755 tmpfs {shlex.quote(str(folder))}")
        for number, path in enumerate(tops):
            at = shlex.quote(str(path))
            lines += [f"mkdir -p {at}", f'mount --move "$stash/{number}" {at}']
        lines += ['umount "$stash"', 'rmdir "$stash"']
    return lines
