"""What a fleet can run, said before anything is started: with the number that is wrong, and the cure.

The console and `penchant server run` ask here. What every device's own policy says is not known to the
server: `[privacy]` says what the owners of this fleet ask for, and is their defaults unless it is changed.
"""

from __future__ import annotations

import math
from contextlib import suppress
from itertools import count

from penchant.client.agent.policy import OwnerPolicy
from penchant.common.config import PrivacyConfig, RunConfig
from penchant.common.errors import ConfigError, JournalError, UsageError
from penchant.common.privacy.accounting import epsilon_of, rho_of
from penchant.common.secagg.transcript import threshold
from penchant.common.settings import Setting, as_toml, dotted_table, settings_of
from penchant.deploy import run_directory
from penchant.deploy.fleet.device_notes import DeviceNotes, tagged
from penchant.deploy.fleet.fleet_release import resolved
from penchant.deploy.fleet.server_directory import ServerDirectory
from penchant.deploy.owner_policy import fleet_policy, smallest_group
from penchant.server.journal_reader import JournalReader
from penchant.server.releases import named_round, released
from penchant.server.run import LEAST_COHORT

__all__ = [
    "annotated",
    "fleet_defaults",
    "members_with",
    "needed_devices",
    "objections",
    "refuse_no_rounds",
    "refuse_start",
    "refuse_unfit",
]


def members_with(server_directory: ServerDirectory, tag: str) -> int:
    """How many members a run can ask: all, or those with a tag."""
    listed = server_directory.known_members().current
    members = [member.number for member in listed.members] if listed is not None else []
    return len(tagged(DeviceNotes(server_directory.path).all(), tag, members))


def refuse_unfit(config: RunConfig, members: int, tag: str = "") -> None:
    """ConfigError for what a fleet of so many members can't run. tag: what those are called, if not all."""
    federation, privacy = config.federation, config.privacy
    run_directory.refuse_unservable(config)
    refuse_no_rounds(config)
    if federation.cohort > members:
        whom, more = (
            (f"{members} of them have the tag {tag}", "tag")
            if tag
            else (f"this fleet has {members} members", "invite")
        )
        raise ConfigError(
            f"federation.cohort is {federation.cohort}, but {whom}; ask at most {members} a round, or {more} "
            "more devices",
            about=("federation.cohort",),
        )
    if federation.cohort < LEAST_COHORT:
        raise ConfigError(
            f"federation.cohort is {federation.cohort}; a masked sum needs {LEAST_COHORT} devices at least",
            about=("federation.cohort",),
        )
    group = smallest_group(federation.cohort, privacy.group_size)
    needed = needed_devices(privacy.min_honest, privacy.max_colluders)
    if group < needed:
        raise ConfigError(
            f"a sum over {group} devices is too small for owners who ask for {privacy.min_honest} honest "
            f"people beside {privacy.max_colluders} that work with the server: that takes {needed} devices a "
            "round; raise federation.cohort, or, if the owners of this fleet have lowered min_honest and "
            "max_colluders in their policy.toml, say so in privacy.min_honest and privacy.max_colluders",
            about=("federation.cohort",),
        )


def refuse_no_rounds(config: RunConfig) -> None:
    """ConfigError for a run in which nothing is learned together."""
    if not config.federation.rounds:
        raise ConfigError(
            "federation.rounds is 0, so that nothing is learned together; set it to 1 or more",
            about=("federation.rounds",),
        )


def refuse_start(server_directory: ServerDirectory, begin_with: str) -> None:
    """UsageError for a round or release, as of `--from`, that is of no run of the server. Empty is fine."""
    if not begin_with:
        return
    run, which = named_round(resolved(server_directory, begin_with))
    if run not in server_directory.runs():
        raise UsageError(f"there is no run {run!r} to begin with")
    if not which.isdigit():
        released(server_directory.run(run), which)


def needed_devices(min_honest: int, max_colluders: int) -> int:
    """The fewest devices in a sum of which so many are honest for sure."""
    return next(
        n
        for n in count(LEAST_COHORT)
        if n >= 3 * max_colluders + 1 and threshold(n) - max_colluders >= min_honest
    )


def objections(config: RunConfig, server_directory: ServerDirectory | None = None) -> list[str]:
    """Why devices whose owners changed nothing in their policy would take no part, or not to the end: where a
    server is named, also for what its earlier runs have spent of their budget."""
    plan = config.plan("main", config.federation.cohort)
    spent = 0.0 if server_directory is None else _spent(server_directory)
    return [*OwnerPolicy().objections(plan), *_over_budget(config.privacy, spent)]


def _spent(server_directory: ServerDirectory) -> float:
    """What the runs so far have cost a person who was in all of them, as rho. A run that can't be read counts
    for nothing: its page says so."""
    total = 0.0
    for name in server_directory.runs():
        with suppress(JournalError):
            reader = JournalReader(server_directory.run(name))
            figures = reader.privacy()
            if figures is not None:
                total += figures.rho * min(reader.glance().attempts, figures.participations)
    return total


def _over_budget(privacy: PrivacyConfig, spent: float) -> list[str]:
    """What is said where a run goes beyond the budget of owners' defaults. spent: by earlier runs, as rho."""
    usual = OwnerPolicy()
    budget = rho_of(usual.max_epsilon, usual.delta)
    if not privacy.dp_epsilon or spent + rho_of(privacy.dp_epsilon, privacy.dp_delta) <= budget * (1 + 1e-6):
        return []
    left = epsilon_of(budget - spent, usual.delta) if spent < budget else 0.0
    most = math.floor(100 * left) / 100
    before = f"earlier runs of this fleet have spent up to {epsilon_of(spent, usual.delta):.3g} of it; "
    cure = f"set privacy.dp_epsilon to {most:g} at most, or " if most > 0 else ""
    return [
        f"it may spend an epsilon of {privacy.dp_epsilon:g} of each person's budget, which is "
        f"{usual.max_epsilon:g} for good and over all runs (max_epsilon); {before if spent else ''}a device "
        f"takes part until its budget is spent; {cure}have owners allow more"
    ]


def fleet_defaults(members: int) -> RunConfig:
    """A run that asks everybody of a fleet, with noise as owners' defaults ask for it. Of a small fleet the
    owners have to lower what they ask for: then it says how far."""
    usual = OwnerPolicy()
    wanted = {"federation.cohort": max(members, 1), "privacy.dp_epsilon": usual.max_epsilon}
    config = RunConfig().changed(wanted)  # recipes are made for data sets, which a fleet has none of
    policy = fleet_policy(config, config.federation.cohort)
    return config.changed(
        {"privacy.min_honest": policy.min_honest, "privacy.max_colluders": policy.max_colluders}
    )


def annotated(config: RunConfig, members: int) -> str:
    """A run.toml that says what each setting is; those that one looks at first, or that differ from the
    default, are set, the others stand there as comments."""
    lines, usual = [f"# A run for {members} members. What is not set takes its default."], OwnerPolicy()
    needed = needed_devices(usual.min_honest, usual.max_colluders)
    if config.federation.cohort < needed:
        lines += [
            f"# Owners' defaults need {needed} devices a round. With fewer, each owner sets in policy.toml:",
            f"#   min_honest = {config.privacy.min_honest}",
            f"#   max_colluders = {config.privacy.max_colluders}",
        ]
    section = ""
    own, default = dotted_table(config), dotted_table(RunConfig())
    for one in _settings():
        table, _, name = one.key.rpartition(".")
        if table != section:
            lines += ["", f"[{table}]"]
            section = table
        hidden = "# " if own[one.key] == default[one.key] and not one.declared.usual else ""
        lines += [f"# {one.help} Allowed: {one.allowed}.", f"{hidden}{name} = {as_toml(own[one.key])}"]
    return "\n".join(lines) + "\n"


def _settings() -> list[Setting]:
    found = [one for one in settings_of(RunConfig) if not one.simulated]
    return sorted(found, key=lambda one: "." in one.key)  # TOML: what is in no section comes first
