"""`penchant device train`, `rank`, `best-of`, `status`, `export` and `forget`: the owner's own model."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penchant.client.agent.connection_note import QUIET_SECONDS
from penchant.common.errors import UsageError
from penchant.common.printable import one_line
from penchant.common.terminal import say, say_json
from penchant.common.wording import duration, percent
from penchant.deploy.cli.device.options import (
    HERE,
    AsJson,
    Ask,
    HomeOption,
    NodeOption,
    lines_of,
    make_sure,
    open_device,
    print_table,
    remove_node,
    run_row,
    tell_of_revocation,
)
from penchant.deploy.cli.drawing import working
from penchant.deploy.cli.errors import command

if TYPE_CHECKING:
    from penchant.client.agent.connection_note import ConnectionNote
    from penchant.client.device.device import Ranked, Report
    from penchant.client.learning.trainer import Counts

__all__ = ["app"]

app = typer.Typer()


@command(app)
def train(home: HomeOption = HERE, passphrase: Ask = False) -> None:
    """Fit the personal part of the model to the recorded choices. Works offline; nothing leaves."""
    device = open_device(home, passphrase)
    with working(f"training on {len(device.store)} choices"):
        report = device.train()
    _print_quality(report)


@command(app)
def rank(
    file: Annotated[str, typer.Argument(help="Responses, one a line; - for standard input.")],
    prompt: Annotated[str, typer.Option("--prompt", help="The prompt that they respond to.")] = "",
    home: HomeOption = HERE,
    passphrase: Ask = False,
    as_json: AsJson = False,
) -> None:
    """Rank responses as the owner would: scores with standard errors, how likely each one is preferred to the
    next, and the score of the global model, which knows nobody."""
    responses = lines_of(file)
    device = open_device(home, passphrase)
    with working(f"ranking {len(responses)} responses"):
        ranked = device.rank(prompt, responses)
    show_ranked(ranked, as_json)


@command(app, "best-of")
def best_of_n(
    prompt: Annotated[str, typer.Argument(help="The prompt that the responses respond to.")],
    count: Annotated[int, typer.Option("-n", help="How many responses to choose from.")] = 8,
    generator: Annotated[
        str, typer.Option("--generator", help="A causal model: smollm2-135m, a folder, or a hub id.")
    ] = "smollm2-135m",
    tokens: Annotated[int, typer.Option("--tokens", help="The most tokens that a response may have.")] = 96,
    temperature: Annotated[
        float, typer.Option("--temperature", help="The sampling temperature; a higher one draws more freely.")
    ] = 0.8,
    seed: Annotated[int, typer.Option("--seed", help="The same seed gives the same responses.")] = 0,
    home: HomeOption = HERE,
    passphrase: Ask = False,
    as_json: AsJson = False,
) -> None:
    """Let a model on this device write n responses, and rank them as the owner would. Nothing leaves."""
    from penchant.client.learning.best_of_n import Generator, best_of

    device = open_device(home, passphrase)
    how = {"seed": seed, "tokens": tokens, "temperature": temperature}
    with working(f"writing {count} responses and ranking them"):
        ranked = best_of(device.rank, Generator(generator), prompt, count, **how)
    show_ranked(ranked, as_json)


@command(app)
def status(
    home: HomeOption = HERE, passphrase: Ask = False, as_json: AsJson = False, node: NodeOption = None
) -> None:
    """What is recorded here, which rounds were joined, what left, and how good the model is."""
    from penchant.client.agent.connection_note import read_note
    from penchant.client.agent.socket import at_work
    from penchant.client.device.supernode_files import NODE

    with working("looking at what is recorded, and judging the model"):
        report = open_device(home, passphrase).report()
    note = read_note(node or home.expanduser() / NODE)
    part = _taking_part(report, at_work(home.expanduser()), note, time.time())
    if as_json:
        say_json(_as_table(report, part))
        return
    _print_status(report, part)


@command(app)
def export(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="An empty directory to write into.")],
    format: Annotated[str, typer.Option("--format", help="peft is the one format.")] = "peft",
    base: Annotated[
        str | None, typer.Option("--base", help="Where the base model will be found: hub id or folder.")
    ] = None,
    home: HomeOption = HERE,
    passphrase: Ask = False,
) -> None:
    """Write the personal model as a plain LoRA adapter with its score head and a model card."""
    if format != "peft":
        raise UsageError(f"there is no export format {format!r}; peft is the one")
    open_device(home, passphrase).export(directory, base)
    say(f"{directory}: see its README.md")


@command(app)
def forget(
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask for confirmation.")] = False,
    home: HomeOption = HERE,
    passphrase: Ask = False,
) -> None:
    """Delete all that this device knows of its owner: choices, personal model, and its membership."""
    make_sure(yes, "Delete all choices, the personal model and the membership?")
    device = open_device(home, passphrase)
    member, count = device.member, device.forget()
    remove_node(home)
    say(f"{count} choices and the personal model are deleted; files that you imported or exported are yours")
    if member is not None:
        tell_of_revocation(member)


# --- inner parts --------------------------------------------------------------------------------------


def show_ranked(ranked: Sequence[Ranked], as_json: bool) -> None:
    """The best first, as a table or as JSON."""
    if as_json:
        table = [dataclasses.asdict(row) for row in ranked]
        renamed = [{"global" if key == "common" else key: part for key, part in row.items()} for row in table]
        say_json(renamed)
        return
    rows = [
        (
            f"{row.personal:.3f}" if row.error is None else f"{row.personal:.3f} ± {row.error:.3f}",
            "" if row.over_next is None else percent(row.over_next, 0),
            f"{row.common:.3f}",
            row.response,
        )
        for row in ranked
    ]
    print_table("", ("personal", "over next", "global", "response"), rows)


@dataclasses.dataclass(frozen=True)
class _TakingPart:
    """Whether the device can be asked to take part, and if not, why. heard: when its server answered last,
    Unix seconds, 0 for never."""

    agent: bool
    heard: float
    refused: str
    why_not: str


def _taking_part(report: Report, agent: bool, note: ConnectionNote | None, now: float) -> _TakingPart:
    heard, refused = (note.heard, note.refused) if note is not None else (0.0, "")
    why = report.absent or refused
    if not why and not agent:
        why = "the agent is not running (penchant device serve)"
    if not why and now - heard > QUIET_SECONDS:
        ago = (
            f"no word from the server for {duration(now - heard)}" if heard else "no word from the server yet"
        )
        why = f"{ago}: nothing connects this device (penchant device connect)"
    return _TakingPart(agent, heard, refused, why)


def _last_day(report: Report) -> str:
    """The day on which it last took part; empty before the first."""
    from penchant.common.membership.manifest import shown_day

    return "" if report.last_taken is None else shown_day(report.last_taken)


def _as_table(report: Report, part: _TakingPart) -> dict[str, Any]:
    def right(counts: Counts) -> dict[str, Any]:
        return {"correct": counts.correct, "of": counts.total}

    quality = report.quality
    return {
        "choices": report.choices,
        "held_out": report.held_out,
        "sources": report.sources,
        "member": report.member,
        "agent_runs": part.agent,
        "takes_part": not part.why_not,
        "why_not": part.why_not or None,
        "server_heard": part.heard or None,
        "turned_away": part.refused or None,
        "last_taken": _last_day(report) or None,
        "run": report.run or None,
        "round": report.round,
        "rounds_joined": report.rounds_joined,
        "runs": [run_row(run, report.each_run) for run in report.runs],
        "held_out_right": quality and {"personal": right(quality.personal), "global": right(quality.common)},
        "why_unknown": report.unknown or None,
        "left": [{"name": name, "times": times, "bytes": size} for name, times, size in report.left],
        "refused": [{"stage": s, "code": c, "why": w} for s, c, w in report.refused],
        "disk": dataclasses.asdict(report.disk) | {"vault_most": report.disk_most},
        "privacy": report.privacy and dataclasses.asdict(report.privacy),
    }


def _print_status(report: Report, part: _TakingPart) -> None:
    sources = ", ".join(f"{count} from {name}" for name, count in report.sources.items()) or "none yet"
    member = "no" if report.member is None else f"yes, number {report.member}"
    if part.refused and report.member is not None:
        member = f"no longer, as the server says; it was number {report.member}"
    day = f", last on {_last_day(report)}" if report.last_taken is not None else ""
    rows = [
        ("choices recorded", f"{report.choices} ({sources})" if report.choices else sources),
        ("held out to judge the model", str(report.held_out)),
        ("member of a fleet", member),
        ("takes part in rounds", f"no: {one_line(part.why_not)}" if part.why_not else "yes"),
        ("rounds joined", f"{report.rounds_joined}{day}"),
        ("runs that asked (penchant device runs)", _runs(report)),
        ("last run, round", f"{report.run[:8]}…, {report.round}" if report.run else "none yet"),
        ("privacy spent", _privacy(report)),
        ("disk", _disk(report)),
    ]
    print_table("", ("", ""), rows)
    _print_quality(report)
    if report.left:
        print_table(
            "left so far (the parts of vectors are masked: only their sum over a group can be read)",
            ("part", "times", "bytes"),
            [(name, str(times), str(size)) for name, times, size in report.left],
        )
    else:
        say("nothing has left this device")
    if report.refused:
        print_table("refused", ("stage", "code", "why"), list(report.refused[-10:]))


def _runs(report: Report) -> str:
    waiting = sum(not run.accepted for run in report.runs) if report.each_run else 0
    return f"{len(report.runs)}, {waiting} of them wait to be accepted" if waiting else str(len(report.runs))


def _privacy(report: Report) -> str:
    privacy = report.privacy
    if privacy is None or privacy.unknown:
        return one_line(privacy.unknown) if privacy else "not known"
    most = "" if privacy.most is None else f" of {privacy.most:g}"
    told = f"epsilon {privacy.spent:.3g}{most} (delta {privacy.delta:g}), {privacy.noised} vectors"
    return f"{told}; {privacy.exact} without noise, which no epsilon bounds" if privacy.exact else told


def _disk(report: Report) -> str:
    def mb(size: int) -> str:
        return f"{size / (1 << 20):.1f} MB"

    disk, most = report.disk, report.disk_most
    allowed = "" if most is None else f" of {most >> 20} MB allowed"
    return (
        f"{mb(disk.total)}: vault {mb(disk.vault)}{allowed} (personal factors of {disk.runs} runs "
        f"{mb(disk.personal)}), choices {mb(disk.choices)}"
    )


def _print_quality(report: Report) -> None:
    if report.quality is None:
        say(f"how good the model is can't be said: {one_line(report.unknown)}")
        return
    personal, common = report.quality.personal, report.quality.common
    say(
        f"held-out choices ranked right: personal {personal.correct} of {personal.total}, "
        f"global {common.correct} of {common.total}"
    )
