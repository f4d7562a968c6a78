"""A run that real devices take part in: the ServerApp that a SuperLink starts, and the directory it opens.

    config.toml      the run's configuration
    start.safetensors  the shared factors that it begins with, where those are an earlier round's
    blueprint.json   adapted modules, width and digest of the base model: the server never loads the model
    authority.pub    the enrolment authority's public key (32 bytes)
    tag              only where the run asks some: the tag of those (`deploy.fleet.device_notes`)
    members.list     the authority's latest member list, which the server replaces between rounds
    queued           only where the queue had it made: its number there
    days             how many days it may take, until its signature is asked for
    manifest         what the run may ask, signed by the authority (`deploy.fleet.run_signature`)
    journal.db, checkpoints/, server.log
    waiting.json     what the next round waits for, while it does

Nothing of Flower's state is needed to go on after a crash: the same command starts a new Flower run, which
continues from the journal.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypedDict

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from penchant.client.learning.model_cache import ModelCache
from penchant.common.config import RunConfig
from penchant.common.errors import PenchantError, RunDirectoryError, UsageError
from penchant.common.membership.identity import Membership
from penchant.common.model.signature import ModelDescription, ModelSignature
from penchant.common.secagg.update_vector import UpdateLayout
from penchant.common.storage import write_durably
from penchant.deploy import run_directory
from penchant.deploy.earlier_round import EarlierRound, begun_with
from penchant.deploy.fleet import run_signature
from penchant.deploy.fleet.device_notes import TAG, DeviceNotes, checked_tag, tag_of, tagged
from penchant.deploy.fleet.release_files import write_release
from penchant.deploy.fleet.run_activity import FLOWER_RUN, LOG, say
from penchant.deploy.fleet.run_queue import MARK, mark
from penchant.deploy.fleet.server_directory import AUTHORITY, MEMBERS
from penchant.deploy.flower.superlink import DIRECTORY, SuperLinkAddress, start_run, write_app
from penchant.deploy.flower.superlink_grid import non_blocking
from penchant.deploy.flower.with_parent import end_with_parent
from penchant.server.combination import check_groups
from penchant.server.journal_reader import JournalReader, open_journal
from penchant.server.noise_terms import figures_of, refuse_drowned, settle_noise
from penchant.server.optimizers import server_optimizer
from penchant.server.privacy_figures import PrivacyFigures
from penchant.server.releases import Release
from penchant.server.round import federate
from penchant.server.run import ServerRun
from penchant.server.secagg.secure import SecureAggregation
from penchant.server.waiting import Waiting, write_waiting

__all__ = ["LOG", "app", "create", "export", "flower_app", "open_served", "start", "with_members"]

FIRST = (AUTHORITY, MEMBERS, TAG, MARK, run_signature.DAYS_FILE, run_directory.MODEL_SIGNATURE)
"""Files that a served run has before it is one."""


def create(
    directory: Path,
    config: RunConfig,
    authority: bytes,
    members: bytes,
    start: EarlierRound | None = None,
    tag: str = "",
    days: int = run_signature.DAYS,
    queued: int = 0,
) -> PrivacyFigures | None:
    """Make the directory of a served run; -> what its noise amounts to, None where sums are exact. The base
    model is loaded here, once, for its blueprint.

    start: the earlier round whose shared factors it begins with.
    tag: which members it asks, as the operator has tagged them; empty: everybody.
    days: how many days it may take, from the day on that its signature is asked for.
    queued: its number in the queue of runs; 0: it was not in there.

    Raises ConfigError, BaseModelError, MembershipError, UsageError or RunDirectoryError before anything is
    written. Killed at any point, it leaves a run with all of that, or none.
    """
    run_directory.refuse_used(directory, FIRST)
    files = {
        AUTHORITY: authority,
        MEMBERS: members,
        TAG: checked_tag(tag).encode() if tag else None,
        run_signature.DAYS_FILE: str(run_signature.checked_days(days)).encode(),
        MARK: mark(queued) if queued else None,
    }
    run_directory.refuse_unservable(config)
    server_optimizer(config.federation.server_optimizer)
    check_groups(config, config.federation.cohort)
    Membership(authority).accept(members, int(time.time()))
    config = settle_noise(config, config.federation.cohort, None)
    plan = config.plan("main", config.federation.cohort)
    planned = ModelCache().of(plan)
    if planned.model.targets:  # by name, whatever stood for them: owners judge modules by their names
        config = config.changed({"adapter.target_modules": list(planned.model.targets)})
    layout = UpdateLayout.of(plan, planned.split)
    refuse_drowned(config, plan.cohort, plan, layout)
    if start is not None:
        first = config.plan("warmup" if config.federation.warmup_rounds else "main", plan.cohort)
        start.check(ModelSignature.of(planned.model).split(first))
    files[run_directory.MODEL_SIGNATURE] = ModelDescription.of(planned.model).encode()
    run_directory.create(directory, config, start.encode() if start else b"", files)
    flower_app(directory)
    return figures_of(config, plan.cohort, plan, layout)


def open_served(directory: Path) -> ServerRun:
    """The run of a directory, for its ServerApp.

    RunDirectoryError when files are missing, or the authority has not signed what the run asks.
    """
    config = run_directory.read_config(directory)
    membership = _membership(directory)
    start = begun_with(directory)
    manifest = run_signature.signed_manifest(directory)
    run = run_signature.request_of(directory).manifest.run
    journal = open_journal(directory)
    if start is not None:
        journal.note("from", f"{start.name} {start.digest}")
    journal.note("run", run.hex())
    return ServerRun(
        config=config,
        id=run,
        model_signature=ModelSignature.read(directory / run_directory.MODEL_SIGNATURE),
        cohort=config.federation.cohort,
        aggregation=SecureAggregation(membership),
        membership=membership.encoded,
        journal=journal,
        tell=partial(say, directory),
        waits=partial(note_wait, directory),
        start=None if start is None else start.factors,
        patience=config.federation.patience_seconds,
        **_asked(directory, membership),
        manifest=manifest,
        latest=lambda run: with_members(run, _membership(directory), directory),
    )


def note_wait(directory: Path, waiting: Waiting | None) -> None:
    """Leave word of what a round waits for, where status and console look, and in the log."""
    write_waiting(directory, waiting)
    if waiting is not None:
        say(
            directory,
            f"round {waiting.round} waits: {len(waiting.ready)} of {waiting.needed} devices are ready, "
            f"{len(waiting.unready)} take no part now, {len(waiting.silent)} give no answer",
        )


class _Asked(TypedDict):
    """What a `ServerRun` knows of those whom it may ask."""

    belongs: Callable[[int], bool]
    members: int


def _asked(directory: Path, membership: Membership) -> _Asked:
    """Everybody, or those with the run's tag as the operator has given it now. Only a fleet's server has
    tags: a run that names one and lies elsewhere asks nobody."""
    tag = tag_of(directory)
    if not tag:
        return _Asked(belongs=membership.holds, members=membership.count)
    listed = membership.current.members if membership.current else ()
    numbers = (member.number for member in listed)
    chosen = tagged(DeviceNotes(directory.parent.parent).all(), tag, numbers)
    return _Asked(belongs=lambda member: member in chosen and membership.holds(member), members=len(chosen))


def with_members(run: ServerRun, membership: Membership, directory: Path) -> ServerRun:
    """The same run under another member list, and with the tags of now; what a round began with holds to its
    end."""
    return replace(
        run,
        aggregation=SecureAggregation(membership),
        membership=membership.encoded,
        **_asked(directory, membership),
    )


def export(directory: Path, out: Path, release: Release | None = None) -> int:
    """Write the shared part of a release, or of the last finished round, as plain files into `out`; -> the
    round.

    No base model is loaded. Raises UsageError as `write_release` does, and when the round of a release is not
    what was promoted.
    """
    if release is not None and JournalReader(directory).digest(release.round) != release.digest:
        raise UsageError(
            f"round {release.round} of {directory} now has a different checkpoint than release "
            f"{release.number} had; promote a round that you know"
        )
    return write_release(directory, None if release is None else release.round, out)


def start(directory: Path, door: SuperLinkAddress) -> str:
    """Begin a run, or go on with it, at the SuperLink behind `door`; -> the id of its new Flower run.

    SuperLinkError when the SuperLink does not take it.
    """
    flower = start_run(flower_app(directory), door, directory / "flwr")
    write_durably(directory / FLOWER_RUN, flower.encode())
    return flower


def flower_app(directory: Path) -> Path:
    """Write the Flower app of the run; -> its folder."""
    return write_app(directory, "penchant.deploy.fleet.served_run:app", "penchant.client.agent.relay:app")


def _membership(directory: Path) -> Membership:
    try:
        authority = (directory / AUTHORITY).read_bytes()
        members = (directory / MEMBERS).read_bytes()
    except OSError as error:
        raise RunDirectoryError(f"{directory} is not the directory of a served run: {error}") from None
    return Membership(authority).accept(members, int(time.time()))


_claims = ExitStack()  # the ServerApp's process works on its directory alone, until it ends


def _open(directory: Path, tell: Callable[[str], None]) -> ServerRun:
    _claims.enter_context(run_directory.claim(directory))
    patience = run_directory.read_config(directory).federation.patience_seconds
    run_signature.await_signature(directory, patience, tell)
    return open_served(directory)


app = ServerApp()


@app.main()
def _serve(grid: Grid, context: Context) -> None:
    named = context.run_config.get(DIRECTORY)
    if not isinstance(named, str):
        raise RunDirectoryError(f"the Flower run's configuration lacks {DIRECTORY}")
    directory = Path(named)
    end_with_parent()
    say(directory, f"Flower run {context.run_id} begins")
    write_waiting(directory, None)  # of a process that was killed meanwhile
    try:
        run = _open(directory, lambda text: say(directory, f"Flower run {context.run_id} {text}"))
        federate(run, non_blocking(grid))
    except Exception as error:  # Flower keeps the traceback to itself; the operator looks here
        what = str(error) if isinstance(error, PenchantError) else type(error).__name__
        say(directory, f"Flower run {context.run_id} ends: {what}")
        raise
    say(directory, f"Flower run {context.run_id} is done")
