"""`penchant server …`: an operator prepares a run, starts it on a SuperLink, and sees how far it is."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from penchant.common.errors import RoundFailed, UsageError

__all__ = ["app"]

app = typer.Typer(
    name="server",
    help="The operator of a fleet: prepare a run, start it on Flower's SuperLink, see how far it is.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ADDRESS = "127.0.0.1:8000"

Where = Annotated[Path, typer.Argument(metavar="DIR", help="The run's directory.")]
Debug = Annotated[bool, typer.Option("--debug", help="Tracebacks for errors.")]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable.")]


@app.command()
def init(
    directory: Where,
    config: Annotated[Path, typer.Option("--config", help="TOML configuration of the run.")],
    authority: Annotated[Path, typer.Option("--authority", help="The authority's authority.pub.")],
    members: Annotated[Path, typer.Option("--members", help="The authority's latest member list.")],
    debug: Debug = False,
) -> None:
    """Make the directory of a run that real devices take part in."""

    def work() -> None:
        from penchant.common.config import RunConfig
        from penchant.deploy import served

        served.create(directory, RunConfig.read(config), _read(authority), _read(members))
        print(f"{directory} is ready; start it with `penchant server run {directory}`")

    _guarded(work, debug)


@app.command()
def members(
    directory: Where,
    file: Annotated[Path, typer.Argument(help="A newer member list of the authority.")],
    debug: Debug = False,
) -> None:
    """Take over a newer member list; it holds from the next start of the run."""

    def work() -> None:
        from penchant.deploy import served

        print(f"member list {served.take_members(directory, _read(file))}")

    _guarded(work, debug)


@app.command()
def run(
    directory: Where,
    superlink: Annotated[str, typer.Option("--superlink", help="Its control address, HOST:PORT.")] = ADDRESS,
    detach: Annotated[bool, typer.Option("--detach", help="Start it and don't wait for its end.")] = False,
    debug: Debug = False,
) -> None:
    """Start the run, or go on with it after a crash: finished rounds stand."""

    def work() -> None:
        from penchant.deploy import rundir, served
        from penchant.deploy.superlink import start_run

        config = rundir.read_config(directory)
        flower = start_run(served.flower_app(directory), superlink, directory / "flwr")
        print(f"Flower run {flower}", flush=True)
        if not detach:
            _watch(directory, config.federation.rounds + 1, config.federation.deadline_seconds)

    _guarded(work, debug)


@app.command()
def status(directory: Where, as_json: AsJson = False, debug: Debug = False) -> None:
    """How far a run is: every round and attempt, what each gave, who was lost where."""

    def work() -> None:
        from penchant.deploy import rundir

        config = rundir.read_config(directory)
        rows = _rows(directory)
        if as_json:
            print(json.dumps({"rounds": config.federation.rounds, "attempts": rows}, indent=2))
            return
        _print(rows, config.federation.rounds)

    _guarded(work, debug)


# --- inner parts --------------------------------------------------------------------------------------


def _watch(directory: Path, last: int, deadline: float) -> None:
    """Print rounds as they end, until the closing one; RoundFailed when nothing moves any more."""
    from penchant.server.journal import Journal

    said: set[tuple[int, int]] = set()
    quiet = time.monotonic()
    while True:
        journal = Journal(directory)
        try:
            rows = journal.rows()
        finally:
            journal.close()
        for row in rows:
            if (row.round, row.attempt) in said or row.state in ("started", "unmasking"):
                continue
            said.add((row.round, row.attempt))
            quiet = time.monotonic()
            log = row.log
            what = f"{log.survivors} of {log.cohort} clients, {log.seconds:.0f} s" if log else row.why
            print(f"round {row.round} of {last}: {row.state}, {what}", flush=True)
        if any(row.round == last and row.state in ("finished", "skipped") for row in rows):
            return
        if time.monotonic() - quiet > 6 * deadline + 60:
            raise RoundFailed("the run does not move any more; see the SuperLink's log, then run it again")
        time.sleep(1.0)


def _rows(directory: Path) -> list[dict[str, Any]]:
    from penchant.server.journal import Journal

    journal = Journal(directory)
    try:
        return [
            {
                "round": row.round,
                "attempt": row.attempt,
                "phase": row.phase,
                "state": row.state,
                "cohort": row.log.cohort if row.log else None,
                "survivors": row.log.survivors if row.log else None,
                "dropped": row.log.dropped if row.log else None,
                "aborts": row.log.aborts if row.log else None,
                "named": row.log.named if row.log else None,
                "failed": row.log.failed if row.log else None,
                "train_loss": row.log.train_loss if row.log else None,
                "val_accuracy": row.log.val_accuracy if row.log else None,
                "seconds": row.log.seconds if row.log else None,
                "bytes_up": row.log.bytes_up if row.log else None,
                "bytes_down": row.log.bytes_down if row.log else None,
                "why": row.why,
            }
            for row in journal.rows()
        ]
    finally:
        journal.close()


def _print(rows: list[dict[str, Any]], rounds: int) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{rounds} rounds and a closing one", title_justify="left")
    for column in ("round", "attempt", "phase", "state", "clients", "loss", "validation", "seconds", "why"):
        table.add_column(column)
    for row in rows:
        clients = "" if row["survivors"] is None else f"{row['survivors']}/{row['cohort']}"
        table.add_row(
            str(row["round"]),
            str(row["attempt"]),
            row["phase"],
            row["state"],
            clients,
            "" if row["train_loss"] is None else f"{row['train_loss']:.3f}",
            "" if row["val_accuracy"] is None else f"{row['val_accuracy']:.1%}",
            "" if row["seconds"] is None else f"{row['seconds']:.1f}",
            row["why"] or "",
        )
    Console(highlight=False).print(table)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"can't read {path}: {error.strerror}") from None


def _guarded(work: Callable[[], None], debug: bool) -> None:
    from penchant.deploy.cli import guarded

    guarded(work, debug)
