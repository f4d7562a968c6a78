"""A run that real devices take part in: the ServerApp that a SuperLink starts, and the directory it opens.

    config.toml      the run's configuration
    blueprint.json   adapted modules, width and digest of the base model: the server never loads the model
    authority.pub    the enrolment authority's public key (32 bytes)
    members.list     the authority's latest member list; a newer one may replace it between rounds
    journal.db, checkpoints/

Nothing of Flower's state is needed to go on after a crash: the same command starts a new Flower run, which
continues from the journal.
"""

from __future__ import annotations

import json
import secrets
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from flwr.app import Context

from penchant.client.bench import Benches
from penchant.common.adapters import BaseTensor, Slot
from penchant.common.blueprint import Blueprint
from penchant.common.config import RunConfig
from penchant.common.contribution import Form
from penchant.common.errors import ConfigError, RunDirectoryError
from penchant.common.identity import Membership
from penchant.deploy import rundir
from penchant.deploy.superlink import DIRECTORY, write_app
from penchant.server.app import build_app
from penchant.server.journal import Journal, write_durably
from penchant.server.round import Run
from penchant.server.secagg import SecureAggregation

__all__ = ["app", "create", "flower_app", "open_served", "take_members"]

BLUEPRINT = "blueprint.json"
AUTHORITY = "authority.pub"
MEMBERS = "members.list"


def create(directory: Path, config: RunConfig, authority: bytes, members: bytes) -> None:
    """Make the directory of a served run. The base model is loaded here, once, for its blueprint.

    Raises ConfigError, BaseModelError, MembershipError or RunDirectoryError before anything is written.
    """
    rundir.refuse_used(directory)
    if not config.federation.cohort:
        raise ConfigError("federation.cohort is 0; a served run needs to know how many devices to ask")
    if not config.privacy.secagg:
        raise ConfigError("a served run is with secure aggregation; set privacy.secagg to true")
    Membership(authority).accept(members, int(time.time()))
    plan = config.plan("main", config.federation.cohort)
    bench = Benches().of(plan)
    Form.of(plan, bench.split)
    blueprint = bench.blueprint
    described = {
        "slots": [asdict(slot) for slot in blueprint.slots],
        "base": [asdict(tensor) for tensor in blueprint.base],
        "embedding": blueprint.embedding,
        "digest": blueprint.digest.hex(),
    }
    rundir.create(directory, config)
    write_durably(directory / BLUEPRINT, json.dumps(described, indent=2).encode())
    write_durably(directory / AUTHORITY, authority)
    write_durably(directory / MEMBERS, members)
    flower_app(directory)


def take_members(directory: Path, members: bytes) -> int:
    """Put a newer member list in place; -> its number. MembershipError for an older or foreign one."""
    newer = _membership(directory).accept(members, int(time.time()))
    write_durably(directory / MEMBERS, members)
    return newer.number


def open_served(directory: Path) -> Run:
    """The run of a directory, for its ServerApp. RunDirectoryError when files are missing."""
    config = rundir.read_config(directory)
    membership = _membership(directory)
    journal = Journal(directory)
    run = journal.fact("run")
    if run is None:
        run = secrets.token_hex(16)
        journal.note("run", run)
    return Run(
        config=config,
        run=bytes.fromhex(run),
        blueprint=_blueprint(directory),
        cohort=config.federation.cohort,
        aggregation=SecureAggregation(membership),
        membership=membership.encoded,
        journal=journal,
        patience=config.federation.patience_seconds,
    )


def flower_app(directory: Path) -> Path:
    """Write the Flower app of the run; -> its folder."""
    return write_app(directory, "penchant.deploy.served:app", "penchant.client.relay:app")


def _membership(directory: Path) -> Membership:
    try:
        authority = (directory / AUTHORITY).read_bytes()
        members = (directory / MEMBERS).read_bytes()
    except OSError as error:
        raise RunDirectoryError(f"{directory} is no directory of a served run: {error}") from None
    return Membership(authority).accept(members, int(time.time()))


def _blueprint(directory: Path) -> Blueprint:
    try:
        table = json.loads((directory / BLUEPRINT).read_text(encoding="utf-8"))
        slots = tuple(Slot(**slot) for slot in table["slots"])
        base = tuple(BaseTensor(tensor["name"], tuple(tensor["shape"])) for tensor in table["base"])
        return Blueprint(slots, int(table["embedding"]), bytes.fromhex(table["digest"]), base)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunDirectoryError(f"can't read {directory / BLUEPRINT}: {error}") from None


_claims = ExitStack()  # the ServerApp's process works on its directory alone, until it ends


def _open(context: Context) -> Run:
    directory = context.run_config.get(DIRECTORY)
    if not isinstance(directory, str):
        raise RunDirectoryError(f"the Flower run's configuration lacks {DIRECTORY}")
    _claims.enter_context(rundir.claim(Path(directory)))
    return open_served(Path(directory))


app = build_app(_open)
