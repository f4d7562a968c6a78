"""`penchant device train`, `rank`, `best-of`, `release`, `status`, `export`: the owner's own model."""

from __future__ import annotations

import dataclasses
import itertools
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penchant.common.errors import UsageError
from penchant.common.printable import one_line
from penchant.common.terminal import say, say_json
from penchant.common.wording import counted, duration, percent
from penchant.deploy.cli.device.options import (
    HERE,
    AsJson,
    Ask,
    HomeOption,
    NodeOption,
    node_folder,
    open_device,
    print_table,
)
from penchant.deploy.cli.device.question_file import QuestionFile, question_in
from penchant.deploy.cli.device.warm_rank import (
    Ranking,
    ranked_elsewhere,
    ranking_of,
)
from penchant.deploy.cli.drawing import working
from penchant.deploy.cli.errors import command, notice

if TYPE_CHECKING:
    from penchant.client.device.device import Device, Ranked, Report
    from penchant.client.device.explaining import Explanation, SpeakingChoice
    from penchant.client.device.taking_part import TakingPart

__all__ = ["app"]

app = typer.Typer()
HARDLY_SURE = 0.6  # how likely one of two is preferred, below which either may be
SHORT = 40  # characters of a text in a table of reasons
_RELEASED = {
    "none": "the fleet offers this device no release",
    "canary": "there is no release newer than the one that this device is among the first to have:",
    "same": "this device uses the fleet's release already:",
    "taken": "this device uses the fleet's release from now on:",
    "kept": "this device keeps the model that its rounds have made; --use takes the fleet's release instead:",
}


@command(app)
def train(home: HomeOption = HERE, passphrase: Ask = False) -> None:
    """Fit the personal part of the model to the recorded choices. Works offline; nothing leaves."""
    device = open_device(home, passphrase)
    with working(f"training on {len(device.store)} choices"):
        report = device.train()
    print_quality(report)


@command(app)
def rank(
    file: Annotated[
        str,
        typer.Argument(
            help="Responses, one a line; - for standard input. FILE.json holds a list of responses, or "
            "prompt, a text or a conversation's messages, and responses: each of as many lines as it has."
        ),
    ],
    prompt: Annotated[str, typer.Option("--prompt", help="The prompt that they respond to.")] = "",
    fit_errors: Annotated[
        bool,
        typer.Option(
            "--fit-errors",
            help="Fit how sure the model is first, as training does, where that is not known.",
        ),
    ] = False,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="Say which of your choices speak for each response before the next one, and which against.",
        ),
    ] = False,
    home: HomeOption = HERE,
    passphrase: Ask = False,
    as_json: AsJson = False,
) -> None:
    """Rank responses as the owner would: scores with standard errors, how likely each one is preferred to the
    next, and the score of the global model, which knows nobody."""
    asked = question_in(file, prompt)
    found = None if fit_errors or explain or passphrase else ranked_elsewhere(home.expanduser(), asked)
    because: list[Explanation] = []
    if found is None:
        found, because = _ranked_here(open_device(home, passphrase), asked, fit_errors, explain)
    show_ranked(found.rows, as_json, because)
    for line in found.notices:
        notice(line)


def _ranked_here(
    device: Device, asked: QuestionFile, fit_errors: bool, explain: bool
) -> tuple[Ranking, list[Explanation]]:
    """What `rank` shows, and why where that is asked for, by a model that is loaded for it."""
    if fit_errors and device.standing().why_not:
        with working(f"fitting errors to {len(device.store)} choices"):
            device.fit_errors()
    with working(f"ranking {len(asked.responses)} responses"):
        found = ranking_of(device, asked)
        prompt, _ = asked.as_trained(conversation=device.conversational())
        because = device.explain(prompt, [row.response for row in found.rows]) if explain else []
    return found, because


@command(app, "best-of")
def best_of_n(
    prompt: Annotated[str, typer.Argument(help="The prompt that the responses respond to.")],
    count: Annotated[int, typer.Option("-n", help="How many responses to choose from.")] = 8,
    generator: Annotated[
        str,
        typer.Option(
            "--generator",
            help="A causal model: smollm2-135m, a folder, or a hub id; without it your own, where it is "
            "a policy (objective dpo, say), and smollm2-135m where it only ranks.",
        ),
    ] = "",
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
    from penchant.common.model.packaged_models import SMOLLM2

    device = open_device(home, passphrase)
    how = {"seed": seed, "tokens": tokens, "temperature": temperature}
    with working(f"writing {count} responses and ranking them"):
        if not generator and device.writes():
            writes = device.generator()
        else:
            writes = Generator(generator or SMOLLM2)
        ranked = best_of(device.rank, writes, prompt, count, **how)
        gap = device.proxy_gap()
    show_ranked(ranked, as_json)
    for line in device.standing().notes():
        notice(line)
    if gap is not None and gap.parts:
        notice(gap.warning("your model is", "you"))


@command(app)
def release(
    use: Annotated[
        bool,
        typer.Option("--use", help="Use it also where rounds have made the model that is in use now."),
    ] = False,
    node: NodeOption = None,
    home: HomeOption = HERE,
    passphrase: Ask = False,
    as_json: AsJson = False,
) -> None:
    """Fetch the release that the fleet uses, check the authority's signature, and start from it.

    Where choices are recorded, the personal part is fitted to them at once. The server learns that this
    device has asked.
    """
    from penchant.client.device.fetching import fetch_release
    from penchant.client.device.joining import KnownServer
    from penchant.deploy.cli.device.reports import ReleaseReport
    from penchant.deploy.json_tables import plain_value

    device = open_device(home, passphrase)
    server = KnownServer.of(node_folder(home, node))
    with working("fetching the fleet's release"):
        fetched = fetch_release(device, server, use=use)
    if fetched.outcome == "taken" and device.choices().train:
        with working(f"training on {len(device.store)} choices"):
            device.train()
    known = device.release()
    if as_json:
        report = None if known is None else plain_value(ReleaseReport.of(known))
        say_json({"outcome": fetched.outcome, "release": report})
        return
    say(_RELEASED[fetched.outcome])
    if fetched.manifest is not None:
        for line in fetched.manifest.contents.lines():
            say(f"  {one_line(line)}")


@command(app)
def status(
    home: HomeOption = HERE, passphrase: Ask = False, as_json: AsJson = False, node: NodeOption = None
) -> None:
    """What is recorded here, which rounds were joined, what left, and how good the model is."""
    from penchant.client.agent.connection_note import read_note
    from penchant.client.agent.socket import at_work
    from penchant.client.device.taking_part import TakingPart
    from penchant.deploy.cli.device.reports import DeviceStatus
    from penchant.deploy.json_tables import plain_value

    device = open_device(home, passphrase)
    with working("looking at what is recorded, and judging the model"):
        report = device.report()
    note = read_note(node_folder(home, node))
    part = TakingPart.of(report, at_work(home.expanduser()), note, time.time())
    if as_json:
        say_json(plain_value(DeviceStatus.of(report, part)))
        return
    _print_status(report, part)


@command(app)
def export(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="An empty directory to write into.")],
    format: Annotated[
        str,
        typer.Option(
            "--format",
            help="peft: an adapter over the base model; onnx: one file with all in it (penchant[onnx]).",
        ),
    ] = "peft",
    base: Annotated[
        str | None,
        typer.Option(
            "--base", help="Where the base model of a peft adapter will be found: hub id or folder."
        ),
    ] = None,
    gguf: Annotated[
        bool,
        typer.Option("--gguf", help="Beside a policy's peft adapter, one for llama.cpp (penchant[gguf])."),
    ] = False,
    home: HomeOption = HERE,
    passphrase: Ask = False,
) -> None:
    """Write the personal model for other programs, with a model card that says how to score with it."""
    if format not in ("peft", "onnx"):
        raise UsageError(f"there is no export format {format!r}; choose peft or onnx")
    if format == "onnx":
        if base is not None:
            raise UsageError("--base is for peft: an ONNX file has the base model in it")
        if gguf:
            raise UsageError("--gguf is for peft: leave --format onnx out")
        device = open_device(home, passphrase)
        with working("writing the model as ONNX, and trying it"):
            device.export_onnx(directory)
        say(f"{directory}: see its README.md")
        return
    why = open_device(home, passphrase).export(directory, base, gguf=gguf)
    say(f"{directory}: see its README.md")
    if why:
        notice(f"it holds no classifier of transformers: {why}")


# --- inner parts --------------------------------------------------------------------------------------


def show_ranked(ranked: Sequence[Ranked], as_json: bool, because: Sequence[Explanation] = ()) -> None:
    """The best first, as a table or as JSON, with why each comes before the next one where that is given."""
    if as_json:
        table = [dataclasses.asdict(row) for row in ranked]
        renamed = [{"global" if key == "common" else key: part for key, part in row.items()} for row in table]
        for row, why in zip(renamed, because, strict=False):  # the last one comes before nothing
            row["for"], row["against"] = ([_speaking(one) for one in s] for s in (why.speak_for, why.against))
        say_json(renamed)
        return
    rows = [
        (
            f"{row.personal:.3f}" if row.error is None else f"{row.personal:.3f} ± {row.error:.3f}",
            _over_next(row.over_next),
            f"{row.common:.3f}",
            row.response,
        )
        for row in ranked
    ]
    print_table("", ("personal", "over next", "global", "response"), rows)
    steps = itertools.pairwise(ranked) if because else ()
    for (upper, lower), why in zip(steps, because, strict=True):
        _print_why(upper, lower, why)


def _over_next(part: float | None) -> str:
    """How likely a response is preferred to the next, and that this is hardly known where it is."""
    if part is None:
        return ""
    return f"{percent(part, 0)}, hardly sure" if part < HARDLY_SURE else percent(part, 0)


def _print_why(upper: Ranked, lower: Ranked, why: Explanation) -> None:
    """The choices that say most of one step of a ranking."""
    say()
    say(f"“{_short(upper.response)}” before “{_short(lower.response)}”, by {counted(why.heard, 'choice')}:")
    rows = [
        (
            f"{one.change:+.3f} ± {one.error:.3f}",
            _short(one.choice.preference.chosen),
            _short(one.choice.preference.rejected),
            _short(one.choice.preference.prompt),
        )
        for one in (*why.speak_for, *why.against)
    ]
    print_table("", ("says", "you chose", "over", "for"), rows)


def _short(text: str) -> str:
    return textwrap.shorten(one_line(text), SHORT, placeholder="…")


def _speaking(one: SpeakingChoice) -> dict[str, str | float]:
    p = one.choice.preference
    said = {"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected}
    return {**said, "change": one.change, "error": one.error}


def _print_status(report: Report, part: TakingPart) -> None:
    from penchant.client.device.device import OTHER_SETTINGS

    sources = ", ".join(f"{count} from {name}" for name, count in report.sources.items()) or "none yet"
    member = "no" if report.member is None else f"yes, number {report.member}"
    if part.refused and report.member is not None:
        member = f"no longer, as the server says; it was number {report.member}"
    day = f", last on {part.last_taken}" if part.last_taken else ""
    rows = [
        ("choices recorded", f"{report.choices} ({sources})" if report.choices else sources),
        ("held out to judge the model", str(report.held_out)),
        ("ties", str(report.ties)),
        ("member of a fleet", member),
        ("takes part in rounds", f"no: {one_line(part.why_not)}" if part.why_not else "yes"),
        ("rounds joined", f"{report.rounds_joined}{day}"),
        ("runs that asked (penchant device runs)", _runs(report)),
        ("last run, round", f"{report.run[:8]}…, {report.round}" if report.run else "none yet"),
        ("the fleet's release", _release(report)),
        ("privacy spent", _privacy(report)),
        ("disk", _disk(report)),
    ]
    print_table("", ("", ""), rows)
    if report.lost_ties:
        notice(f"{report.lost_ties} of the ties can't be read any more: their keys are gone from ties.keys")
    if report.other_settings:
        notice(OTHER_SETTINGS)
    print_quality(report)
    if report.privacy is not None:
        say(one_line(report.privacy.lasting))
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


def _release(report: Report) -> str:
    known = report.release
    if known is None:
        return "none was fetched (penchant device release)"
    use = "in use" if known.in_use else "not in use: rounds have made the model"
    signed = duration(max(time.time() - known.manifest.signed, 0.0))
    fetched = duration(max(time.time() - known.fetched, 0.0))
    return f"{one_line(known.manifest.contents.name)}, {use}; signed {signed} ago, fetched {fetched} ago"


def _privacy(report: Report) -> str:
    privacy = report.privacy
    if privacy is None or privacy.unknown:
        return one_line(privacy.unknown) if privacy else "not known"
    most = " of a budget that policy.toml does not say" if privacy.most is None else f" of {privacy.most:g}"
    noised = counted(privacy.noised, "vector")
    told = f"epsilon {privacy.spent:.3g}{most} (delta {privacy.delta:g}), {noised}"
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


def print_quality(report: Report) -> None:
    """Say how good the personal and the global model are on the held-out choices."""
    if report.quality is None:
        say(f"the model's quality is not known: {one_line(report.unknown)}")
        return
    personal, common = report.quality.personal, report.quality.common
    say(
        f"held-out choices ranked right: personal {personal.correct} of {personal.total}, "
        f"global {common.correct} of {common.total}"
    )
    if report.blend is not None:
        say(report.blend.words())
    if personal.ties:
        say(
            f"held-out ties, which are in none of these: {personal.ties}; expected by the personal model "
            f"{personal.ties_expected:.1f}, by the global one {common.ties_expected:.1f}"
        )
