"""Disable the checks of what must be safe, one at a time: the nearest tests must notice each.

    make mutants                                  # all files, an hour or more
    make mutants ARGS="client/secagg.py"          # one file, or several, or a part of a mutant's name
    make mutants ARGS="--sample 10"               # ten mutants, always the same

Nothing is changed in the working tree: mutants live in a copy of it. One process loads what the tests import
from elsewhere; each mutant gets a fork of it. A mutant dies when a test fails or does not end. nearest.toml
says which tests are asked; survivors.toml, why a survivor may survive. The command fails for a survivor that
nobody argued for, and for an argument whose mutant died or is no more.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ROOMS = ("client", "common", "deploy", "server")
DIED, SURVIVED, LATE = "died", "survived", "no end"

sys.path.insert(0, str(HERE))

from mutations import Mutant, mutants  # noqa: E402


@dataclass
class Table:
    """What became of each mutant."""

    argued: dict[str, str]
    fate: dict[str, str] = field(default_factory=dict)

    def unargued(self) -> list[str]:
        return [key for key, fate in self.fate.items() if fate == SURVIVED and key not in self.argued]

    def stale(self, existing: set[str]) -> list[str]:
        """Arguments for mutants that died, or that are no more."""
        dead = [key for key in self.argued if self.fate.get(key, SURVIVED) != SURVIVED]
        return dead + [key for key in self.argued if key not in existing]

    def text(self) -> str:
        survivors = [key for key, fate in self.fate.items() if fate == SURVIVED]
        count = len(self.fate)
        lines = [f"{count} mutants, {count - len(survivors)} died, {len(survivors)} survived"]
        lines += [f"  {'argued  ' if key in self.argued else 'UNARGUED'}  {key}" for key in survivors]
        return "\n".join(lines)


@dataclass(frozen=True)
class Nearest:
    """The tests for some files. wider: asked only about what survives the quick ones."""

    files: tuple[str, ...]
    quick: tuple[str, ...]
    wider: tuple[str, ...] = ()


def nearest(path: Path = HERE / "nearest.toml") -> list[Nearest]:
    """The table of tests, with each pattern of files spelt out."""
    groups = []
    for group in tomllib.loads(path.read_text(encoding="utf-8"))["group"]:
        found = sorted(
            file.relative_to(ROOT).as_posix()
            for pattern in group["files"]
            for file in ROOT.glob(pattern)
            if not file.name.startswith(("__init__", "agent_pb2"))
        )
        groups.append(Nearest(tuple(found), tuple(group["quick"]), tuple(group.get("wider", ()))))
    return groups


def survivors(path: Path = HERE / "survivors.toml") -> dict[str, str]:
    """Mutant -> why no test has to notice it."""
    return {
        key: entry["why"]
        for entry in tomllib.loads(path.read_text(encoding="utf-8")).get("survivor", ())
        for key in entry["mutants"]
    }


# --- the copy ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Copy:
    """Sources and tests, copied once: what is edited meanwhile does not disturb, nor is it disturbed."""

    root: Path
    path: Path  # what PYTHONPATH names

    @classmethod
    def of(cls, source: Path, scratch: Path) -> Copy:
        """Copy the working tree `source` into the folder `scratch`."""
        root, package = scratch / "tree", scratch / "path" / "penchant"
        for folder in (*ROOMS, "tests", "docs"):  # some tests hold the code to a page
            shutil.copytree(source / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(source / "pyproject.toml", root)
        package.mkdir(parents=True)
        for room in ROOMS:
            (package / room).symlink_to(root / room)
        for file in (root / "deploy" / "api").iterdir():
            (package / file.name).symlink_to(file)
        return cls(root, package.parent)

    @contextlib.contextmanager
    def mutated(self, path: str, mutant: Mutant) -> Iterator[None]:
        """With one change in one file."""
        place = self.root / path
        source = place.read_bytes()
        try:
            place.write_bytes(mutant.of(source))
            _forget_compiled(place)
            yield
        finally:
            place.write_bytes(source)
            _forget_compiled(place)


def _forget_compiled(place: Path) -> None:
    for compiled in place.parent.glob(f"__pycache__/{place.stem}.*.pyc"):
        compiled.unlink()


# --- the tests --------------------------------------------------------------------------------------------


@dataclass
class Workers:
    """Runs tests in forks of this process, which never imports the package itself."""

    copy: Copy
    scratch: Path

    def ask(self, tests: Sequence[str], cpu: float, wall: float) -> tuple[str, float]:
        """DIED, SURVIVED or LATE, and the seconds of processor time that it took."""
        started, before = time.monotonic(), _children()
        child = os.fork()
        if child == 0:
            self._run(tests, cpu)
        try:
            status = self._wait(child, started + wall)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)  # what its tests have left running, if not itself
        if status is None:
            os.waitpid(child, 0)
            return LATE, _children() - before
        late = os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL)
        fate = LATE if late else SURVIVED if status == 0 else DIED
        return fate, _children() - before

    @staticmethod
    def _wait(child: int, until: float) -> int | None:
        """How the child ended; None if it has not."""
        while time.monotonic() < until:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return status
            time.sleep(0.02)
        return None

    def _run(self, tests: Sequence[str], cpu: float) -> None:
        """The child: pytest, and what it imported beside."""
        try:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CPU, (int(cpu) + 1, int(cpu) + 1))
            with open(self.scratch / "output.txt", "wb") as output:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
            sys.path.insert(0, str(self.copy.path))
            import pytest

            code = pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-W", "ignore", *tests])
            (self.scratch / "imported.json").write_text(json.dumps(list(sys.modules)))
            sys.stdout.flush()
            os._exit(int(code))
        finally:
            os._exit(99)

    def said(self) -> str:
        """The end of what the last tests said."""
        return (self.scratch / "output.txt").read_text(errors="replace")[-3000:]

    def preload(self) -> None:
        """Import what the tests imported from elsewhere, so that the next ones needn't."""
        own = {"penchant", "support", "conftest", "__main__", "tests", "mutations"}
        for name in json.loads((self.scratch / "imported.json").read_text()):
            if name.partition(".")[0] not in own and not name.startswith("test_"):
                with contextlib.suppress(Exception):
                    importlib.import_module(name)


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def judge(group: Nearest, chosen: Sequence[tuple[str, Mutant]], workers: Workers, table: Table) -> None:
    """Ask a group's tests about each chosen mutant of its files."""
    limits = []
    for tests in (group.quick, group.wider):
        if not tests:
            continue
        started = time.monotonic()
        fate, cpu = workers.ask(tests, 3600, 3600)
        if fate != SURVIVED:
            raise SystemExit(f"the tests fail as they are:\n{workers.said()}")
        workers.preload()
        wall = time.monotonic() - started
        limits.append((tests, 4 * cpu + 20, 10 * wall + 60))
        print(f"# {' '.join(tests)}: {cpu:.1f} s of processor time", flush=True)
    for path, mutant in chosen:
        fate = SURVIVED
        started = time.monotonic()
        with workers.copy.mutated(path, mutant):
            for tests, cpu_most, wall_most in limits:
                fate, _ = workers.ask(tests, cpu_most, wall_most)
                if fate != SURVIVED:
                    break
        table.fate[mutant.key] = fate
        seconds = time.monotonic() - started
        print(f"{fate:<9}{seconds:6.1f} s  line {mutant.line}  {mutant.key}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """-> 0 if every mutant died or is argued for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("parts", nargs="*", help="only mutants whose names hold one of these")
    parser.add_argument("--sample", type=int, help="so many mutants, drawn alike each time")
    parser.add_argument("--list", action="store_true", help="print the mutants, and run nothing")
    parser.add_argument("--survivors", action="store_true", help="only those that survivors.toml argues for")
    options = parser.parse_args(arguments)
    groups, table = nearest(), Table(survivors())
    every = {path: mutants(path, (ROOT / path).read_bytes()) for group in groups for path in group.files}
    chosen = [
        (path, mutant)
        for path, found in every.items()
        for mutant in found
        if not options.parts or any(part in mutant.key for part in options.parts)
        if not options.survivors or mutant.key in table.argued
    ]
    if options.sample:
        chosen = random.Random(0).sample(chosen, min(options.sample, len(chosen)))
    if options.list:
        print("\n".join(mutant.key for _, mutant in chosen))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the copy goes, and who works on it
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        workers = Workers(Copy.of(ROOT, Path(scratch)), Path(scratch))
        os.chdir(workers.copy.root)
        os.environ["PYTHONPATH"] = str(workers.copy.path)  # for what tests start
        os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(Path(scratch) / "hypothesis")
        for group in groups:
            here = [(path, mutant) for path, mutant in chosen if path in group.files]
            chosen = [one for one in chosen if one not in here]
            if here:
                judge(group, here, workers, table)
    print(table.text())
    stale = table.stale({mutant.key for found in every.values() for mutant in found})
    for key in stale:
        print(f"survivors.toml argues for a mutant that died or is no more: {key}")
    return 1 if table.unargued() or stale else 0


if __name__ == "__main__":
    sys.exit(main())
