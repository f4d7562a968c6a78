"""What the operator's console can have done: runs on this machine, and the fleet's own server.

A run that the console starts is a child process, `penchant simulate`: it is known by its process id and the
moment it began, so that no other process is ever taken for it; it goes on when the console is restarted.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from penchant.common.config import AdapterConfig, DataConfig, RunConfig
from penchant.common.errors import (
    ConfigError,
    ConsoleError,
    JournalError,
    PenchantError,
    RunDirectoryError,
    UsageError,
)
from penchant.common.foreign_files import mark_of
from penchant.common.printable import one_line
from penchant.common.shares import find_share, share_names
from penchant.deploy import process_table, run_directory
from penchant.deploy.configuration import configure
from penchant.deploy.console.fleet import FleetOnThisMachine
from penchant.deploy.console.releases import ReleasesOnThisMachine
from penchant.deploy.datasets import configured, dataset_names
from penchant.deploy.error_report import AS_JSON, ErrorReport
from penchant.deploy.fleet import recorded_acts, run_checks
from penchant.deploy.fleet.device_notes import tag_of, tagged
from penchant.deploy.fleet.log_tail import log_lines, readable
from penchant.deploy.fleet.run_activity import FLOWER_RUN, LOG, activity_of
from penchant.deploy.fleet.server_directory import SETTINGS, ServerDirectory
from penchant.server.console.accounts import Account, ConsoleStore, RunProcess
from penchant.server.console.operations import AT_ONCE, RunTurn, fleet_recipe
from penchant.server.console.provider_settings import Allowed
from penchant.server.journal_reader import JOURNAL, JournalReader
from penchant.server.monitoring.run_history import Activity, Kind, RunLocation, config_text
from penchant.server.noise_terms import as_asked
from penchant.server.releases import RELEASES
from penchant.server.run import checked_cohort
from penchant.server.waiting import WAITING

__all__ = ["OperationsOnThisMachine", "fleet_id", "refuse_strangers", "roles_without_fleet"]

SENATE = "senate"  # the data set that is in the package
STOP_SECONDS = 10.0
_TELLING = (
    run_directory.CONFIG, run_directory.RESULT, RELEASES, WAITING, JOURNAL, f"{JOURNAL}-wal", LOG, FLOWER_RUN,
)  # fmt: skip
PROGRAM = [sys.executable, "-P", "-c", "from penchant.deploy.cli.main import main; main()"]


class OperationsOnThisMachine:
    """The `RunOperations` of everything on this machine. Thread-safe.

    roots: run directories, and folders that hold some. The first folder also takes new runs. data: where data
    sets and base models of new runs may come from, beside those that are known by name.
    """

    def __init__(self, roots: Sequence[Path], store: ConsoleStore, data: Path | None = None) -> None:
        """Raises UsageError when a root is not a directory."""
        self._roots = list(dict.fromkeys(root.resolve() for root in roots))
        self._above = _servers_above(roots)
        self._store = store
        self._data = data.resolve() if data else None
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._servers: dict[Path, FleetOnThisMachine] = {}
        self._lock = threading.RLock()
        self._turn = threading.Lock()
        for root in roots:
            if root.exists() and not root.is_dir():
                raise UsageError(f"{root} is not a directory; name a run, or a folder of runs")
        self._logs = store.directory / "logs"
        self._logs.mkdir(exist_ok=True, mode=0o700)

    def look_ahead(self) -> None:
        """Read a little of every run in another thread: the first page then finds it in memory."""

        def look() -> None:
            for location in self.locations():
                with suppress(JournalError):  # the run's own row says so
                    JournalReader(location.directory).glance()

        threading.Thread(target=look, name="runs", daemon=True).start()

    def record_acts(self) -> None:
        """Take into the audit what was done to fleets at the command line meanwhile."""
        with self._lock:
            for fleet in self.fleets():
                recorded_acts.take(fleet.directory, partial(self._record, fleet.id))

    def _record(self, fleet: str, act: recorded_acts.Act) -> None:
        self._store.note(
            act.account, "", act.action, act.target, act.outcome, act.detail, at=act.at, fleet=fleet
        )

    # --- what is there -------------------------------------------------------------------------------

    def locations(self) -> list[RunLocation]:
        """All runs at, or right below, a root and the fleets' servers there."""
        homes = {
            (server / "runs").resolve(): server
            for server in (*self._above, *(server for root in self._roots for server in _servers_in(root)))
        }
        found = (_in_its_fleet(run, homes) for root in self._roots for run in _runs_in(root))
        return [_location(run) for run in dict.fromkeys(found)]

    def fleets(self) -> list[RunLocation]:
        """The fleets' servers at, or right below, a root."""
        found = [server for root in self._roots for server in _servers_in(root)]
        return [_location(server, "fleet") for server in dict.fromkeys(found)]

    def fleet_of(self, location: RunLocation) -> RunLocation | None:
        """The server whose directory a served run lies in."""
        server = location.directory.parent.parent
        return (
            _location(server, "fleet")
            if location.kind == "served" and (server / SETTINGS).is_file()
            else None
        )

    def fleet(self, fleet: RunLocation | None) -> FleetOnThisMachine:
        """The server of a fleet. ConsoleError where there is none."""
        if fleet is None or fleet.kind != "fleet":
            raise ConsoleError(
                "this run has no server here; name the server's directory when the console starts"
            )
        with self._lock:
            return self._servers.setdefault(fleet.directory, FleetOnThisMachine(fleet, self._store, PROGRAM))

    def releases(self, location: RunLocation) -> ReleasesOnThisMachine:
        """The releases of a run."""
        return ReleasesOnThisMachine(location, self._store.directory)

    def activity(self, locations: Sequence[RunLocation]) -> dict[str, Activity]:
        """Whether a process works on each run: one of ours, or another that holds its lock."""
        held, jobs = run_directory.held_locks(), self._store.jobs()
        return {location.id: self._activity(location, jobs.get(location.id), held) for location in locations}

    def _activity(
        self, location: RunLocation, job: RunProcess | None, held: set[tuple[int, int]]
    ) -> Activity:
        if location.kind == "served":
            activity = activity_of(location.directory, held)
            return replace(activity, ours=activity.running and self.fleet_of(location) is not None)
        busy = run_directory.busy(location.directory, held)
        over = not busy and (location.directory / run_directory.RESULT).is_file()  # its process may still end
        if job is not None and not over and self._alive(location.id, job):
            return Activity(running=not job.stopping, ours=True)
        if busy:
            return Activity(running=True)
        if job is None or job.stopping:
            return Activity(stopped=job is not None)
        return Activity(why=self._last_words(location))

    def _last_words(self, location: RunLocation) -> str:
        """The error that a child of ours ended with; nothing if it ended well."""
        if (location.directory / run_directory.RESULT).is_file():
            return ""
        report = ErrorReport.last_in("\n".join(self._lines(location)[-20:]))
        return report.message if report else "it ended without a word; see its log"

    def _alive(self, location: str, job: RunProcess) -> bool:
        with self._lock:
            child = self._children.get(location)
            if child is not None and child.pid == job.pid:
                return child.poll() is None
        return process_table.began(job.pid) == job.began  # a console before this one started it

    def mark(self, location: RunLocation) -> object:
        """Changes with whatever the run's directory or its log tells."""
        files = [location.directory / name for name in _TELLING]
        return mark_of(*files, self._log_of(location))

    # --- new runs ------------------------------------------------------------------------------------

    def recipes(self) -> dict[str, str]:
        """The recipes of the Senate, and one for each fleet, with all of its members."""
        texts = dict(_senate_recipes(tuple(share_names())))
        for fleet in self.fleets():
            members = len(self.fleet(fleet).enrolment().members)
            texts[fleet_recipe(fleet)] = run_checks.fleet_defaults(members).to_toml()
        return texts

    def simulates(self) -> bool:
        """Whether a root is a folder for simulated runs."""
        return any(self._takes_runs(root) for root in self._roots)

    def _takes_runs(self, root: Path) -> bool:
        return not (root / run_directory.CONFIG).is_file() and not (root / SETTINGS).is_file()

    def check(self, toml: str, fleet: RunLocation | None = None, tag: str = "") -> RunConfig:
        """The configuration, unless it names data or a model that this console may not read."""
        config = RunConfig.from_toml(toml)
        run_checks.refuse_no_rounds(config)
        self._refuse_unfit(config, fleet, tag)
        if config.grid != "local":
            raise ConfigError(
                f'grid is "{config.grid}"; the console starts runs on the local grid only', about=("grid",)
            )
        self._refuse_foreign("data.dataset", config.data.dataset)
        if config.data.test:
            self._refuse_foreign("data.test", config.data.test)
        self._refuse_foreign("model.base_model", config.model.base_model)
        return config

    def _refuse_unfit(self, config: RunConfig, fleet: RunLocation | None, tag: str = "") -> None:
        """ConfigError for what can't work with the people that there are."""
        if fleet is not None:
            known = self.fleet(fleet)
            members = tagged(known.notes(), tag, known.enrolment().members)
            run_checks.refuse_unfit(config, len(members), tag)
            return
        people = _people(config.data, config.seed)
        if people is not None:
            checked_cohort(config, people - config.data.holdout_clients)

    def objections(self, config: RunConfig, fleet: RunLocation | None) -> list[str]:
        """Why devices of a fleet whose owners changed nothing would take no part; simulated ones do."""
        return [] if fleet is None else run_checks.objections(config, ServerDirectory(fleet.directory))

    def copied(self, location: RunLocation) -> str:
        """The configuration of a run for another like it: of a served one as it was asked for."""
        text = config_text(location.directory)
        if self.fleet_of(location) is None:
            return text
        try:
            return as_asked(RunConfig.from_toml(text)).to_toml()
        except ConfigError:  # of another version, or edited by hand
            return text

    def hindrance(self, location: RunLocation, config: RunConfig) -> str:
        """Why a run can't go on as it is configured, however often it is resumed; empty where it can."""
        try:
            self._refuse_unfit(config, self.fleet_of(location), tag_of(location.directory))
        except ConfigError as error:
            return str(error)
        except PenchantError:  # a fleet that can't be read is said where the fleet is shown
            return ""
        return ""

    def _refuse_foreign(self, key: str, source: str) -> None:
        """ConfigError unless `source` is a known name or lies in the data folder: whoever may start runs may
        not have the server read any file."""

        known = dataset_names()
        if key == "data.dataset" and source in known:
            return
        if key == "model.base_model" and source == RunConfig().model.base_model:
            return
        path = Path(source.split(":", 1)[-1] if source.split(":", 1)[0] in known else source)
        if self._data is not None and path.resolve().is_relative_to(self._data) and path.exists():
            return
        where = "name the folder it is in with --data" if self._data is None else f"put it into {self._data}"
        raise ConfigError(f"{key} is {source!r}, which this console may not read; {where}", about=(key,))

    def start(
        self, name: str, toml: str, fleet: RunLocation | None = None, turn: RunTurn = AT_ONCE
    ) -> RunLocation | None:
        """Begin a run, or put it into its fleet's queue. A simulation's directory is made here, so that the
        run is there at once."""
        config = self.check(toml, fleet, turn.tag)
        if fleet is not None and turn.waits and not name:  # the queue gives it one
            self.fleet(fleet).enqueue(name, config, turn)
            return None
        if not run_directory.RUN_NAME.fullmatch(name):
            raise ConfigError(
                "a run's name is 1 to 64 letters, digits, '.', '_' and '-', a letter or digit first",
                about=("name",),
            )
        directory = (self._nursery() if fleet is None else fleet.directory / "runs") / name
        if directory.exists():
            raise ConfigError(f"there is a run {name} already; choose another name", about=("name",))
        if fleet is not None and turn.waits:
            self.fleet(fleet).enqueue(name, config, turn)
            return None
        if fleet is not None:
            location = _location(directory, "served")
            said = partial(self._note_log, location)
            self.fleet(fleet).start(name, config, said, turn.begin_with, turn.tag)
            return location
        run_directory.create(directory, config)
        location = _location(directory)
        self._spawn(location)
        return location

    def _nursery(self) -> Path:
        """The folder that takes new runs."""
        for root in self._roots:
            if self._takes_runs(root):
                return root
        raise ConfigError("this console shows single runs only; start it with a folder to put new ones into")

    def resume(self, location: RunLocation) -> None:
        """Go on with a run."""
        with self._turn:  # two operators at once: the second one is refused
            self._refuse_busy(location)
            if location.kind != "served":
                self._spawn(location)
                return
            server = self.fleet(self.fleet_of(location))
            server.resume(location.directory.name, lambda said: self._note_log(location, said))

    def _spawn(self, location: RunLocation) -> None:
        with self._lock, self._log_of(location).open("ab") as log:
            child = subprocess.Popen(
                [*PROGRAM, "simulate", "--resume", str(location.directory)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C stops the console, not the run
                env=os.environ | AS_JSON | {"PYTHONUNBUFFERED": "1", "COLUMNS": "120", "NO_COLOR": "1"},
            )
            self._children[location.id] = child
            self._store.keep_job(location.id, RunProcess(child.pid, process_table.began(child.pid)))

    def stop(self, location: RunLocation) -> None:
        """Stop a run: with SIGTERM, and SIGKILL for what is still there ten seconds later."""
        if location.kind == "served":
            self.fleet(self.fleet_of(location)).stop(location.directory.name)
            return
        job = self._store.jobs().get(location.id)
        if job is None or not self._alive(location.id, job):
            raise ConsoleError(f"nothing that this console started is running {location.name}")
        self._store.keep_job(location.id, replace(job, stopping=True))
        end = time.monotonic() + STOP_SECONDS
        with suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGTERM)
        while self._alive(location.id, job) or run_directory.busy(location.directory):
            if time.monotonic() > end:
                with suppress(ProcessLookupError):
                    os.killpg(job.pid, signal.SIGKILL)
            time.sleep(0.05)

    def delete(self, location: RunLocation) -> None:
        """Remove a run's directory: out of sight at once, then file by file."""
        self._refuse_busy(location)
        if not any(location.directory.is_relative_to(root) for root in self._roots):
            raise ConsoleError(f"only a link leads to {location.directory}; delete it by hand")
        doomed = location.directory.with_name(f".deleted-{location.id}")
        try:
            with run_directory.claim(location.directory):
                location.directory.rename(doomed)  # at once: half a run is never to be seen
            shutil.rmtree(doomed)
        except OSError as error:
            raise ConsoleError(f"can't delete {location.directory}: {error.strerror}") from None
        self._store.keep_job(location.id, None)
        self._log_of(location).unlink(missing_ok=True)

    def _refuse_busy(self, location: RunLocation) -> None:
        if self.activity([location])[location.id].running:
            raise RunDirectoryError(
                f"a process is at work in {location.name}; stop the run, or wait until it has ended"
            )

    # --- logs ----------------------------------------------------------------------------------------

    def log(self, location: RunLocation, lines: int) -> list[str]:
        """The last lines that a run wrote: of a served run its server's, and Flower's answers to us."""
        return [readable(line) for line in self._lines(location)[-lines:]]

    def _lines(self, location: RunLocation) -> list[str]:
        paths = [self._log_of(location)]
        if location.kind == "served":
            paths.append(location.directory / LOG)
        return [line for path in paths for line in log_lines(path)]

    def _note_log(self, location: RunLocation, said: str) -> None:
        with self._log_of(location).open("a", encoding="utf-8") as log:
            log.write(said)

    def _log_of(self, location: RunLocation) -> Path:
        return self._logs / f"{location.id}.log"


# --- inner parts --------------------------------------------------------------------------------------


def refuse_strangers(roots: Sequence[Path]) -> None:
    """UsageError for a root that is missing, or that holds other things and nothing to show."""
    wanted = "name a run, a fleet's server, or a folder for runs"
    for root in roots:
        if not root.is_dir():
            raise UsageError(f"{root} is not a directory; {wanted}")
        real = root.resolve()
        if _inside(real) and not _runs_in(real) and not _servers_in(real):
            raise UsageError(f"{root} holds other things and no run; {wanted}")


@lru_cache(maxsize=4)
def _senate_recipes(shares: tuple[str, ...]) -> dict[str, str]:
    """Recipes of the Senate, by share rules: the same as long as no other rule is known."""
    usual = AdapterConfig().share
    names = sorted(shares, key=lambda name: name != usual)  # the usual one first
    rules = map(find_share, names)  # a plugin that can't be loaded gives no recipe
    wanted: dict[str, dict[str, Any]] = {
        **{f"Senate, {rule.label}": {"adapter.share": rule.name} for rule in filter(None, rules)},
        "Senate, a quick look": {"federation.rounds": 8},
    }
    return {
        name: configure({"data.dataset": SENATE, **changes}, None).to_toml()
        for name, changes in wanted.items()
    }


@lru_cache(maxsize=16)
def _people(data: DataConfig, seed: int) -> int | None:
    """How many people a simulation of packaged data has; None where that would take reading files."""
    if data.dataset != SENATE:
        return None
    try:
        return len(configured(data, seed).people)
    except PenchantError:  # the run says so itself, with the reason
        return None


def roles_without_fleet(
    operations: OperationsOnThisMachine, accounts: Sequence[Account], rules: Sequence[Allowed]
) -> list[str]:
    """A line about each role on a fleet that isn't served here: if it is one that was moved, the role that
    was meant for it is not in force."""
    served = {fleet.id for fleet in operations.fleets()}
    named = [
        (account.name, fleet) for account in accounts if not account.issuer for fleet in account.rights.fleets
    ]
    named += [(f"a rule about {rule.key} {rule.value}", rule.fleet) for rule in rules if rule.fleet]
    return [
        f"{one_line(who)} has a role on {fleet}, a fleet that is not served here; name it again if it moved"
        for who, fleet in named
        if fleet not in served
    ]


def fleet_id(directory: Path) -> str:
    """What the console calls the fleet whose server has this directory, however its path is written.
    ConfigError where there is none."""
    directory = directory.resolve()
    if not (directory / SETTINGS).is_file():
        raise ConfigError(f"{directory} is not the directory of a fleet's server; it has no {SETTINGS}")
    return _location(directory, "fleet").id


def _runs_in(root: Path) -> list[Path]:
    """Run directories at, or right below, a root; by their real paths, as the root must be."""
    if (root / run_directory.CONFIG).is_file():
        return [root]
    folders = [root, *((server / "runs").resolve() for server in _servers_in(root))]
    return [path for folder in folders for path in _inside(folder) if (path / run_directory.CONFIG).is_file()]


def _servers_in(root: Path) -> list[Path]:
    """Directories of fleets' servers at, or right below, a root; by their real paths."""
    if (root / SETTINGS).is_file():
        return [root]
    return [path for path in _inside(root) if (path / SETTINGS).is_file()]


def _servers_above(roots: Sequence[Path]) -> list[Path]:
    """Real paths of the servers whose `runs`, or a run there, are roots: `runs` may be a link."""
    above = (folder for root in roots for folder in list(root.absolute().parents)[:2])
    return [folder.resolve() for folder in above if (folder / SETTINGS).is_file()]


def _in_its_fleet(run: Path, homes: Mapping[Path, Path]) -> Path:
    """The path of a run that names its fleet. homes: the real path of a fleet's `runs` -> the server."""
    server = homes.get(run.parent)
    return server / "runs" / run.name if server else run


def _inside(root: Path) -> list[Path]:
    """Real paths of what is in a folder: a link is another spelling, and must not be another place."""
    try:
        with os.scandir(root) as entries:
            shown = sorted(
                (entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name
            )
            return list(dict.fromkeys(_real(root, entry) for entry in shown))
    except OSError:
        return []


def _real(root: Path, entry: os.DirEntry[str]) -> Path:
    path = root / entry.name
    return Path(os.path.realpath(path)) if entry.is_symlink() else path  # resolve() raises for a loop


def _location(directory: Path, kind: Kind | None = None) -> RunLocation:
    name = directory.name
    short = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "run"
    own = hashlib.sha256(str(directory).encode("utf-8", "surrogateescape")).hexdigest()[:8]
    if kind is None:
        kind = "served" if run_directory.is_served(directory) else "simulation"
    return RunLocation(f"{short}-{own}", one_line(name), directory, kind)
