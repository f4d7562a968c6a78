"""`penchant device …`: what a device's owner does. Each command opens the device's directory and calls it."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penchant.common.errors import DataError, UsageError

if TYPE_CHECKING:
    from penchant.client.device.device import Device, Ranked, Report
    from penchant.client.device.labelling import Labelling, Question
    from penchant.client.learning.trainer import Counts

__all__ = ["app"]

app = typer.Typer(
    name="device",
    help="The owner of a device: record choices, train, rank, look at what left, export, leave.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

DEFAULT_HOME = "~/.local/share/penchant"
PASSPHRASE = "PENCHANT_PASSPHRASE"

HomeOption = Annotated[
    Path,
    typer.Option("--home", envvar="PENCHANT_HOME", help="The device's directory.", show_default=DEFAULT_HOME),
]
Ask = Annotated[
    bool,
    typer.Option("--passphrase", help=f"Ask for the passphrase (or set {PASSPHRASE}). Else: a key file."),
]
NodeOption = Annotated[
    Path | None,
    typer.Option("--node", help="Folder of what the SuperNode needs; `node` in the device's directory."),
]
SocketOption = Annotated[
    Path | None,
    typer.Option("--socket", help="The agent's Unix socket; agent.sock in the device's directory."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable.")]
Debug = Annotated[bool, typer.Option("--debug", help="Tracebacks for errors.")]
HERE = Path(DEFAULT_HOME)
KEYS = "1 or 2: the one you would rather have; s: skip; u: undo the last answer; q: quit."
SOCKET = "agent.sock"


@app.command("import")
def import_choices(
    file: Annotated[Path, typer.Argument(help="Preferences in TRL's format: JSON lines or Parquet.")],
    skip_bad_rows: Annotated[bool, typer.Option("--skip-bad-rows", help="Skip bad rows and say so.")] = False,
    home: HomeOption = HERE,
    passphrase: Ask = False,
    debug: Debug = False,
) -> None:
    """Record choices from a file: all of them, or none."""

    def work() -> None:
        from penchant.common.data.trl_format import RowLog, parse_preference, read_rows

        if not file.exists():
            raise DataError(f"there is no file {file}")
        log = RowLog("skip" if skip_bad_rows else "refuse")
        found = []
        for where, row in read_rows(file, log):
            try:
                found.append(parse_preference(row))
            except DataError as error:
                log.reject(where, error)
        report = log.finish(str(file))
        added = _open(home, passphrase).record(found, f"file {file.name}")
        print(f"{added.new} new choices recorded, {added.repeated} were there already")
        if report.bad:
            print(report.summary(), file=sys.stderr)

    _guarded(work, debug)


@app.command()
def label(
    file: Annotated[
        Path,
        typer.Argument(
            help="What to compare: JSON lines or Parquet, with prompt and responses or in TRL's format; "
            "with --prompt: responses, one a line."
        ),
    ],
    prompt: Annotated[str | None, typer.Option("--prompt", help="What the lines of FILE respond to.")] = None,
    most_telling: Annotated[
        bool, typer.Option("--most-telling", help="Ask first what would tell the model most.")
    ] = False,
    skip_bad_rows: Annotated[bool, typer.Option("--skip-bad-rows", help="Skip bad rows and say so.")] = False,
    home: HomeOption = HERE,
    passphrase: Ask = False,
    debug: Debug = False,
) -> None:
    """Say, of two responses at a time, which one you would rather have. Each answer is kept at once."""

    def work() -> None:
        from penchant.client.device.labelling import Labelling, compared, read_comparisons

        if prompt is None:
            comparisons, report = read_comparisons(file, "skip" if skip_bad_rows else "refuse")
            if report.bad:
                print(report.summary(), file=sys.stderr)
        else:
            comparisons = compared(prompt, _lines(str(file)))
        device = _open(home, passphrase)
        sitting = Labelling(device.store, comparisons, interview=device.interview if most_telling else None)
        try:
            if sitting.question:
                print(f"{sitting.left} to compare. {KEYS}")
            _ask(sitting)
        except (EOFError, KeyboardInterrupt):
            print()
        print(f"{sitting.recorded} choices recorded, {sitting.skipped} skipped, {sitting.left} left to ask")
        if sitting.recorded:
            print("`penchant device train` learns from them")

    _guarded(work, debug)


@app.command()
def train(home: HomeOption = HERE, passphrase: Ask = False, debug: Debug = False) -> None:
    """Fit the personal part of the model to the recorded choices. Works offline; nothing leaves."""
    _guarded(lambda: _print_quality(_open(home, passphrase).train()), debug)


@app.command()
def rank(
    file: Annotated[str, typer.Argument(help="Responses, one a line; - for standard input.")],
    prompt: Annotated[str, typer.Option("--prompt", help="What they respond to.")] = "",
    home: HomeOption = HERE,
    passphrase: Ask = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Rank responses as the owner would: scores with standard errors, how likely each one is preferred to the
    next, and the score of the global model, which knows nobody."""

    def work() -> None:
        responses = _lines(file)
        ranked = _open(home, passphrase).rank(prompt, responses)
        show_ranked(ranked, as_json)

    _guarded(work, debug)


@app.command("best-of")
def best_of_n(
    prompt: Annotated[str, typer.Argument(help="What the responses respond to.")],
    count: Annotated[int, typer.Option("-n", help="Responses to choose from.")] = 8,
    generator: Annotated[
        str, typer.Option("--generator", help="A causal model: smollm2-135m, a folder, or a hub id.")
    ] = "smollm2-135m",
    tokens: Annotated[int, typer.Option("--tokens", help="Most tokens of a response.")] = 96,
    temperature: Annotated[float, typer.Option("--temperature", help="How freely they are drawn.")] = 0.8,
    seed: Annotated[int, typer.Option("--seed", help="The same seed, the same responses.")] = 0,
    home: HomeOption = HERE,
    passphrase: Ask = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Let a model on this device write n responses, and rank them as the owner would. Nothing leaves."""

    def work() -> None:
        from penchant.client.learning.best_of_n import Generator, best_of

        device = _open(home, passphrase)
        how = {"seed": seed, "tokens": tokens, "temperature": temperature}
        show_ranked(best_of(device.rank, Generator(generator), prompt, count, **how), as_json)

    _guarded(work, debug)


@app.command()
def status(
    home: HomeOption = HERE, passphrase: Ask = False, as_json: AsJson = False, debug: Debug = False
) -> None:
    """What is recorded here, which rounds were joined, what left, and how good the model is."""

    def work() -> None:
        from penchant.client.agent.socket import at_work

        report, agent = _open(home, passphrase).report(), at_work(home.expanduser())
        if as_json:
            print(json.dumps(_as_table(report, agent), indent=2, ensure_ascii=False))
            return
        _print_status(report, agent)

    _guarded(work, debug)


@app.command()
def export(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="An empty directory to write into.")],
    format: Annotated[str, typer.Option("--format", help="peft is the one format.")] = "peft",
    base: Annotated[
        str | None, typer.Option("--base", help="Where the base model will be found: hub id or folder.")
    ] = None,
    home: HomeOption = HERE,
    passphrase: Ask = False,
    debug: Debug = False,
) -> None:
    """Write the personal model as a plain LoRA adapter with its score head and a model card."""

    def work() -> None:
        if format != "peft":
            raise UsageError(f"there is no export format {format!r}; peft is the one")
        _open(home, passphrase).export(directory, base)
        print(f"{directory}: see its README.md")

    _guarded(work, debug)


@app.command()
def pause(
    off: Annotated[bool, typer.Option("--off", help="Take part again.")] = False,
    home: HomeOption = HERE,
    passphrase: Ask = False,
    debug: Debug = False,
) -> None:
    """Take part in no round until `penchant device pause --off`."""

    def work() -> None:
        device = _open(home, passphrase)
        if off:
            device.resume()
        else:
            device.pause()
        print("this device takes part again" if off else "this device takes part in nothing now")

    _guarded(work, debug)


@app.command()
def request(
    out: Annotated[Path, typer.Option("--out", help="File to write, for the enrolment authority.")],
    home: HomeOption = HERE,
    passphrase: Ask = False,
    debug: Debug = False,
) -> None:
    """Make this device's keys and write what the authority needs to certify it."""

    def work() -> None:
        if out.exists():
            raise UsageError(f"{out} is there already; choose another --out")
        data = _open(home, passphrase).request()
        out.write_bytes(data)
        print(f"give {out} to the enrolment authority; the private key stays here")

    _guarded(work, debug)


@app.command()
def join(
    what: Annotated[
        str,
        typer.Argument(
            metavar="TOKEN|FILE",
            help="A join token, a file that holds one, - for standard input; or the authority's answer.",
        ),
    ],
    authority: Annotated[
        str, typer.Option("--authority", help="With an answer: the authority's digest, as you were told.")
    ] = "",
    wait: Annotated[
        bool, typer.Option("--wait", help="With a token: wait until the authority has answered.")
    ] = False,
    wait_seconds: Annotated[float, typer.Option("--wait-seconds", help="How long at most; a week.")] = 7
    * 86400.0,
    node: NodeOption = None,
    socket: SocketOption = None,
    home: HomeOption = HERE,
    passphrase: Ask = False,
    debug: Debug = False,
) -> None:
    """Become a member of a fleet."""

    def work() -> None:
        found = _token_or_answer(what)
        if isinstance(found, bytes):
            try:
                digest = bytes.fromhex(authority)
            except ValueError:
                digest = b""
            if len(digest) != 32:
                raise UsageError("--authority is no digest: 64 hexadecimal digits belong there")
            print(f"this device is member {_open(home, passphrase).join(found, digest)}")
            return
        from penchant.client.device import joining
        from penchant.client.device.supernode_files import NODE
        from penchant.common.membership.join_token import JoinToken

        token = JoinToken.read(found, time.time())
        if authority and authority != token.terms.authority.hex():
            raise UsageError("the token is of another authority than --authority says")
        directory = home.expanduser()
        device, folder = _open(home, passphrase), node or directory / NODE

        def attempt() -> int:
            return joining.join(device, token, folder, socket or directory / SOCKET)

        def told(text: str) -> None:
            print(text, flush=True)

        member = joining.wait(attempt, wait_seconds if wait else 0.0, told)
        print(f"this device is member {member}")
        print("now run `penchant device serve`, and beside it, best as another user,")
        print(f"  penchant device connect --node {folder}")

    _guarded(work, debug)


@app.command()
def connect(
    node: NodeOption = None,
    socket: SocketOption = None,
    port: Annotated[
        int,
        typer.Option("--port", help="Of the SuperNode on loopback; 0: one that is free.", min=0, max=65535),
    ] = 0,
    home: HomeOption = HERE,
    debug: Debug = False,
) -> None:
    """Run Flower's SuperNode, which carries messages between the fleet's server and the agent."""

    def work() -> None:
        from penchant.client.device.supernode_files import NODE, SuperNodeFiles
        from penchant.deploy.fleet.supernode import relay

        relay(SuperNodeFiles.read(node or home.expanduser() / NODE), socket, port)

    _guarded(work, debug)


@app.command()
def leave(
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
    home: HomeOption = HERE,
    passphrase: Ask = False,
    debug: Debug = False,
) -> None:
    """Leave the fleet: the identity is deleted; choices and the personal model stay."""

    def work() -> None:
        _make_sure(yes, "Leave the fleet?")
        _was_member(_open(home, passphrase).leave())

    _guarded(work, debug)


@app.command()
def serve(
    socket: SocketOption = None,
    group: Annotated[
        bool, typer.Option("--group", help="Let the socket's group connect as well: the relay's user.")
    ] = False,
    home: HomeOption = HERE,
    passphrase: Ask = False,
    debug: Debug = False,
) -> None:
    """Run the agent: it answers the relay on its socket, and nobody else, until it is stopped."""

    def work() -> None:
        from penchant.client.agent.socket import AgentServer, only_one

        directory = home.expanduser()
        with suppress(ValueError, OSError):  # systemd's unit forbids the call, and sets the limit itself
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash writes no keys to a disk
        with only_one(directory):
            device = _open(home, passphrase)
            most = device.policy().max_message_mb * 1024 * 1024
            path = socket or directory / SOCKET
            server = AgentServer(device.agent().answer, path, group=group, message_most=most)
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
            server.start()
            print(f"member {device.member} answers on {server.socket}", flush=True)
            try:
                server.wait()
            except (KeyboardInterrupt, SystemExit):
                server.stop()
                os._exit(0)  # all that lasts is on disk; training that nobody waits for is not waited for
            finally:
                server.stop()

    _guarded(work, debug)


@app.command()
def forget(
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
    home: HomeOption = HERE,
    passphrase: Ask = False,
    debug: Debug = False,
) -> None:
    """Delete all that this device knows of its owner: choices, personal model, and its membership."""

    def work() -> None:
        _make_sure(yes, "Delete all choices, the personal model and the membership?")
        device = _open(home, passphrase)
        member, count = device.member, device.forget()
        print(f"{count} choices and the personal model are deleted")
        if member is not None:
            _was_member(member)

    _guarded(work, debug)


# --- inner parts --------------------------------------------------------------------------------------


def show_ranked(ranked: Sequence[Ranked], as_json: bool) -> None:
    """The best first, as a table or as JSON."""
    if as_json:
        table = [dataclasses.asdict(row) for row in ranked]
        renamed = [{"global" if key == "common" else key: part for key, part in row.items()} for row in table]
        print(json.dumps(renamed, indent=2, ensure_ascii=False))
        return
    rows = [
        (
            f"{row.personal:.3f}" if row.error is None else f"{row.personal:.3f} ± {row.error:.3f}",
            "" if row.over_next is None else f"{row.over_next:.0%}",
            f"{row.common:.3f}",
            row.response,
        )
        for row in ranked
    ]
    _table("", ("personal", "over next", "global", "response"), rows)


def _open(home: Path, ask: bool) -> Device:
    """The device's directory, unlocked. Asks for a passphrase when told to, or when there is no other way."""
    import torch

    from penchant.client.device.device import Device
    from penchant.client.vault.sealing import SealedStorage

    torch.set_num_threads(1)
    directory = home.expanduser()
    passphrase = os.environ.get(PASSPHRASE)
    if passphrase is None and (ask or (SealedStorage.asks_passphrase(directory) and sys.stdin.isatty())):
        passphrase = typer.prompt(
            "Passphrase",
            hide_input=True,
            confirmation_prompt=SealedStorage.asks_passphrase(directory) is None,
        )
    return Device(directory, passphrase)


def _make_sure(yes: bool, question: str) -> None:
    """Ask before something that can't be undone. UsageError when the owner says no."""
    if not yes and not typer.confirm(question):
        raise UsageError("nothing was changed")


def _was_member(number: int) -> None:
    print(f"this device was member {number}; tell the authority to revoke that number")


def _ask(sitting: Labelling) -> None:
    """Question after question until all is answered, or the owner quits."""
    asked: Question | None = None
    while (question := sitting.question) is not None:
        if question is not asked:
            print(f"\n{_shown(question.prompt)}\n  1  {_shown(question.first)}")
            print(f"  2  {_shown(question.second)}")
            asked = question
        said = _typed("1, 2, s, u, q > ")
        if said == "q":
            return
        if said in ("1", "2"):
            sitting.choose(said == "1")
        elif said == "s":
            sitting.skip()
        elif said != "u":
            print(KEYS)
        elif not sitting.undo():
            print("there is nothing to undo")
        if sitting.question is None and _typed("that was the last one; u: undo, Enter: done > ") == "u":
            sitting.undo()
            asked = None


def _typed(prompt: str) -> str:
    return input(prompt).strip().lower()


def _shown(text: str) -> str:
    """`text` as a terminal may show it: with its lines, without control characters."""
    return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text)


def _token_or_answer(what: str) -> str | bytes:
    """A token's text, or the bytes of an authority's answer."""
    from penchant.common.membership.join_token import JoinToken

    if what == "-":
        return sys.stdin.read(4096)
    if JoinToken.looks_like(what):
        return what
    try:
        data = Path(what).read_bytes()
    except OSError as error:
        raise UsageError(f"can't read {what}: {error.strerror}") from None
    text = data[:4096].decode("ascii", errors="replace")
    return text if JoinToken.looks_like(text) else data


def _lines(file: str) -> list[str]:
    if file == "-":
        text = sys.stdin.read()
    else:
        try:
            text = Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"can't read responses from {file}: {error}") from None
    return [line for line in text.splitlines() if line.strip()]


def _as_table(report: Report, agent: bool) -> dict[str, Any]:
    def right(counts: Counts) -> dict[str, Any]:
        return {"correct": counts.correct, "of": counts.total}

    quality = report.quality
    return {
        "choices": report.choices,
        "held_out": report.held_out,
        "sources": report.sources,
        "member": report.member,
        "agent_runs": agent,
        "takes_part": not report.absent and agent,
        "why_not": report.absent or None,
        "run": report.run or None,
        "round": report.round,
        "rounds_joined": report.rounds_joined,
        "held_out_right": quality and {"personal": right(quality.personal), "global": right(quality.common)},
        "why_unknown": report.unknown or None,
        "left": [{"name": name, "times": times, "bytes": size} for name, times, size in report.left],
        "refused": [{"stage": s, "code": c, "why": w} for s, c, w in report.refused],
    }


def _print_status(report: Report, agent: bool) -> None:
    sources = ", ".join(f"{count} from {name}" for name, count in report.sources.items()) or "none yet"
    running = "yes" if agent else "no: the agent is not running (penchant device serve)"
    rows = [
        ("choices recorded", f"{report.choices} ({sources})" if report.choices else sources),
        ("held out to judge the model", str(report.held_out)),
        ("member of a fleet", "no" if report.member is None else f"yes, number {report.member}"),
        ("takes part in rounds", f"no: {report.absent}" if report.absent else running),
        ("rounds joined", str(report.rounds_joined)),
        ("last run, round", f"{report.run[:8]}…, {report.round}" if report.run else "none yet"),
    ]
    _table("", ("", ""), rows)
    _print_quality(report)
    if report.left:
        _table(
            "left so far (the parts of vectors are masked: only their sum over a group can be read)",
            ("part", "times", "bytes"),
            [(name, str(times), str(size)) for name, times, size in report.left],
        )
    else:
        print("nothing has left this device")
    if report.refused:
        _table("refused", ("stage", "code", "why"), list(report.refused[-10:]))


def _print_quality(report: Report) -> None:
    if report.quality is None:
        print(f"how good the model is can't be said: {_shown(report.unknown)}")
        return
    personal, common = report.quality.personal, report.quality.common
    print(
        f"held-out choices ranked right: personal {personal.correct} of {personal.total}, "
        f"global {common.correct} of {common.total}"
    )


def _table(title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left", show_header=any(columns))
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*(Text(_shown(cell)) for cell in row))  # as text: nobody's words are markup
    Console(highlight=False).print(table)


def _guarded(work: Callable[[], None], debug: bool) -> None:
    from penchant.deploy.cli.errors import guarded

    def interruptible() -> None:
        try:
            work()
        except KeyboardInterrupt:
            print("penchant: interrupted", file=sys.stderr)
            raise typer.Exit(130) from None

    guarded(interruptible, debug)
