"""`penchant audit DIR`: what left the clients of a recorded run, and whether that was all that may leave.

Reads the recorded wire, the configuration and the journal of a run directory; runs nothing. What may leave
is decided by the protocol (`deploy.wire.REPLIES`, and the annotations that the codec reads) and by the one
rule table of what is shared (`common.adapters.parts_of`), never by the record itself.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from penchant.common import errors
from penchant.common.adapters import BASE, BASIS, HEAD, WEIGHTS, Part, Share, head_of, parts_of
from penchant.common.config import RunConfig
from penchant.common.contribution import COUNTERS
from penchant.common.errors import ProtocolError
from penchant.deploy import rundir
from penchant.deploy.wire import (
    ERROR,
    HEADER,
    REPLIES,
    UNKNOWN,
    Field,
    Sent,
    Tensor,
    read_tensors,
    read_wire,
    rules_of,
)
from penchant.server.journal import Journal, RoundRow

__all__ = ["Audit", "Line", "audit", "show"]

OUTSIDE = "outside rounds"
ENVELOPE = 1024  # bytes that Flower's own frame around a payload may take
SHOWN = 20  # violations that are printed; --json has all

_ONLY_SECAGG = ("Entry", "Shares", "Masked", "Confirmation", "Unmasking")
_ONLY_PLAIN = ("Ready", "Plain")
_VECTORS = ("Masked", "Plain")
_BY_NAME = {kind.__name__: kind for kinds in REPLIES.values() for kind in kinds}
_ROLES = {"lora_A": "A", "lora_B": "B", "lora_K": "K", "lora_s": "s"}


@dataclass(frozen=True)
class Line:
    """One type of message in one stage of one phase. shapes: each field's, least and most of every side."""

    phase: str
    stage: str
    kind: str
    messages: int
    least: int  # bytes of a payload
    most: int
    fields: tuple[tuple[Field, Field], ...]  # the smallest and the largest of each


@dataclass(frozen=True)
class Load:
    """What a client sent in one attempt of a round: mean and most over clients and attempts of a phase."""

    rounds: int
    attempts: int
    clients: int  # that sent anything, over all attempts
    messages: int
    bytes: int
    most_bytes: int  # by one client in one attempt


@dataclass(frozen=True)
class Audit:
    """What left, and what of it should not have. ring: bits of a ring element; vectors: phase -> what the
    vector of a client is made of; framed: bytes with Flower's frames."""

    directory: Path
    secagg: bool
    share: str
    ring: int
    finished: bool
    clients: int
    messages: int
    bytes: int
    framed: int
    loads: Mapping[str, Load]
    lines: tuple[Line, ...]
    vectors: Mapping[str, tuple[Tensor, ...]]
    violations: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        width = self.ring // 8
        return {
            "directory": str(self.directory),
            "finished": self.finished,
            "secagg": self.secagg,
            "share": self.share,
            "element": f"uint{self.ring}",
            "clients": self.clients,
            "messages": self.messages,
            "bytes": self.bytes,
            "framed_bytes": self.framed,
            "phases": {phase: _load_json(load) for phase, load in self.loads.items()},
            "left": [_line_json(line, self.ring) for line in self.lines],
            "vectors": {
                phase: [
                    {
                        "name": t.name,
                        "shape": list(t.shape),
                        "elements": t.words,
                        "bytes": t.words * width,
                        "counter": t.name in COUNTERS,
                    }
                    for t in tensors
                ]
                for phase, tensors in self.vectors.items()
            },
            "violations": list(self.violations),
        }


# --- the audit ----------------------------------------------------------------------------------------


def audit(directory: Path) -> Audit:
    """Read and check what left the clients of `directory`'s run.

    Raises RunDirectoryError when it is no run directory, or holds no record of the wire.
    """
    config = rundir.read_config(directory)
    sent = list(read_wire(directory))
    tensors = read_tensors(directory)
    rules = _Rules(config, tensors)
    phases = [rules.phase(s) for s in sent]
    return Audit(
        directory=directory,
        secagg=config.privacy.secagg,
        share=config.adapter.share,
        ring=config.privacy.ring_bits,
        finished=rundir.read_result(directory) is not None,
        clients=len({s.node for s in sent}),
        messages=len(sent),
        bytes=sum(s.size for s in sent),
        framed=sum(s.framed for s in sent),
        loads=_loads(sent, phases),
        lines=_lines(sent, phases),
        vectors={p: tensors[p] for p in dict.fromkeys(phases) if p in tensors},
        violations=tuple(_violations(rules, sent, phases, _journal(directory))),
    )


def _journal(directory: Path) -> list[RoundRow]:
    if not (directory / "journal.db").is_file():
        return []
    journal = Journal(directory)
    try:
        return journal.rows()
    finally:
        journal.close()


def _lines(sent: Sequence[Sent], phases: Sequence[str]) -> tuple[Line, ...]:
    """In the order in which each kind of message first left."""
    groups: dict[tuple[str, str, str], list[Sent]] = defaultdict(list)
    for s, phase in zip(sent, phases, strict=True):
        groups[phase, s.stage, s.kind].append(s)
    lines = []
    for (phase, stage, kind), messages in groups.items():
        sizes = [s.size for s in messages]
        spans: dict[str, list[Field]] = {}
        for s in messages:
            for f in s.fields:
                spans.setdefault(f.name, []).append(f)
        extremes = tuple(
            (min(found, key=lambda f: f.size), max(found, key=lambda f: f.size)) for found in spans.values()
        )
        lines.append(Line(phase, stage, kind, len(messages), min(sizes), max(sizes), extremes))
    return tuple(lines)


def _loads(sent: Sequence[Sent], phases: Sequence[str]) -> dict[str, Load]:
    loads = {}
    for phase in dict.fromkeys(phases):
        mine = [s for s, p in zip(sent, phases, strict=True) if p == phase]
        by_client: Counter[tuple[str, int]] = Counter()
        for s in mine:
            by_client[s.place, s.node] += s.size
        loads[phase] = Load(
            rounds=len({s.round for s in mine}),
            attempts=len({s.place for s in mine}),
            clients=len(by_client),
            messages=len(mine),
            bytes=sum(s.size for s in mine),
            most_bytes=max(by_client.values()),
        )
    return loads


# --- what may leave -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rules:
    """What the run's configuration allows. tensors: what the record says each phase's vector is made of."""

    config: RunConfig
    tensors: Mapping[str, tuple[Tensor, ...]]

    @property
    def secagg(self) -> bool:
        return self.config.privacy.secagg

    def phase(self, sent: Sent) -> str:
        """warmup, main or close; OUTSIDE for readiness."""
        federation = self.config.federation
        if not sent.round:
            return OUTSIDE
        if sent.round > federation.rounds:
            return "close"
        return "warmup" if sent.round <= federation.warmup_rounds else "main"

    def message(self, sent: Sent, phase: str) -> str | None:
        """What is wrong with one message; None if nothing is."""
        if sent.stage not in REPLIES or (sent.stage == "status") != (sent.place == "status"):
            return f'there is no stage "{sent.stage}" at "{sent.place}"'
        if sent.round > self.config.federation.rounds + 1:
            return f"the run has no round {sent.round}"
        if sent.framed - sent.size > ENVELOPE:
            return f"{sent.framed - sent.size} bytes travelled around the payload, at most {ENVELOPE} may"
        if sent.kind == ERROR:
            return None if sent.said in errors.__all__ else "an error with text beyond the name of its type"
        if sent.kind == UNKNOWN or sent.kind not in _BY_NAME:
            return f"{sent.size} bytes that are no message of the protocol"
        return self._misplaced(sent) or _malformed(sent) or self._mislong(sent, phase)

    def _misplaced(self, sent: Sent) -> str | None:
        if self.secagg and sent.kind == "Plain":
            return "an unmasked vector, in a run with secure aggregation"
        others = _ONLY_PLAIN if self.secagg else _ONLY_SECAGG
        if sent.kind in others or _BY_NAME[sent.kind] not in REPLIES[sent.stage]:
            return f"a message {sent.kind} does not belong there"
        return None

    def _mislong(self, sent: Sent, phase: str) -> str | None:
        if sent.kind not in _VECTORS:
            return None
        if phase not in self.tensors:
            return "a vector, and no record of what it is made of"
        size = next(f.size for f in sent.fields if f.name == "vector")
        allowed = sum(t.words for t in self.tensors[phase]) * self.config.privacy.ring_bits // 8
        return None if size == allowed else f"a vector of {size} bytes where {allowed} belong"

    def vector(self, phase: str) -> Iterator[str]:
        """What of a phase's vector the rule table does not allow, or lacks. Yields one text each."""
        adapter = self.config.adapter
        shared = {
            role
            for role, part in parts_of(
                Share(adapter.share),
                head_of(Share(adapter.share), adapter.head),
                phase == "warmup",
                base=any(name != "head" for name in adapter.share_base),
            ).items()
            if part is Part.SHARED and phase != "close"
        }
        found = [t for t in self.tensors[phase] if t.name not in COUNTERS]
        for tensor in found:
            role = _role(tensor.name)
            if role not in shared:
                yield f"{phase}: the vector holds {tensor.name}, which is not shared"
            elif not _ranked(role, tensor.shape, adapter.rank):
                yield f"{phase}: {tensor.name} has shape {tensor.shape}, which is not of rank {adapter.rank}"
        for role in sorted(shared - {_role(t.name) for t in found}):
            yield f"{phase}: the vector lacks the shared tensors of role {role}"
        counters = [t for t in self.tensors[phase] if t.name in COUNTERS]
        if [(t.name, t.shape) for t in counters] != [(name, ()) for name in COUNTERS]:
            yield f"{phase}: the vector's counters are not the {len(COUNTERS)} that every vector has"


def _malformed(sent: Sent) -> str | None:
    """Fields that the type does not have or the codec could not have written; bytes that none explains."""
    rules = {rule.name: rule for rule in rules_of(_BY_NAME[sent.kind])}
    for f in sent.fields:
        if f.name not in rules:
            return f'{sent.kind} with a field "{f.name}" that it does not have'
        if not rules[f.name].fits(f):
            return f"{sent.kind}.{f.name} of type {f.type}, shape {f.shape} and {f.size} bytes"
    names = [f.name for f in sent.fields]
    if sorted(names) != sorted(rules):
        return f"{sent.kind} has the fields {', '.join(names) or 'none'}, where {', '.join(rules)} belong"
    explained = HEADER + sum(f.size + rules[f.name].prefix for f in sent.fields)
    if explained != sent.size:
        return f"{sent.kind} of {sent.size} bytes, of which its fields explain {explained}"
    return None


def _role(name: str) -> str:
    """The role in the rule table of a tensor; its own name if it has none."""
    if name.startswith(BASE):
        return "base"
    return {HEAD: "head", BASIS: "V", WEIGHTS: "w"}.get(name) or _ROLES.get(name.rsplit(".", 1)[-1], name)


def _ranked(role: str, shape: tuple[int, ...], rank: int) -> bool:
    """Whether the sides that must be the rank (or the head's one) are."""
    match role, shape:
        case ("A" | "V", (side, _)) | ("B", (_, side)):
            return side == rank
        case "head", (one, _):
            return one == 1
    return role == "base"


# --- violations ---------------------------------------------------------------------------------------


def _violations(
    rules: _Rules, sent: Sequence[Sent], phases: Sequence[str], rows: Sequence[RoundRow]
) -> Iterator[str]:
    if not sent:
        yield "nothing is recorded at all"
    for s, phase in zip(sent, phases, strict=True):
        fault = rules.message(s, phase)
        if fault:
            yield f"{_where(s.place, s.stage)}, node {s.node}: {fault}"
    vectors = {phase for s, phase in zip(sent, phases, strict=True) if s.kind in _VECTORS}
    for phase in sorted(vectors & set(rules.tensors)):
        yield from rules.vector(phase)
    yield from _repeats(sent)
    yield from _unequal(sent, rules.config.privacy.group_size)
    yield from _missing(sent, rows)


def _repeats(sent: Sequence[Sent]) -> Iterator[str]:
    """Two answers in one stage; shares given in two attempts of a round."""
    answers = Counter((s.place, s.stage, s.node) for s in sent if s.round)
    for (place, stage, node), count in answers.items():
        if count > 1:
            yield f"{_where(place, stage)}, node {node}: {count} messages where one belongs"
    opened: dict[tuple[int, int], set[str]] = defaultdict(set)
    for s in sent:
        if s.kind == "Unmasking":
            opened[s.round, s.node].add(s.place)
    for (number, node), places in opened.items():
        if len(places) > 1:
            yield f"round {number}, node {node}: shares given in {len(places)} attempts"


def _unequal(sent: Sequence[Sent], group_size: int) -> Iterator[str]:
    """Messages of one type whose fields differ in shape within a group.

    Groups are cut from the devices in the order of their member numbers, which in a simulation is that of
    their nodes: so along the nodes of an attempt shapes change at most once from group to group.
    """
    keyed = Counter(s.place for s in sent if s.kind == "Entry")
    shapes: dict[tuple[str, str, str], dict[int, tuple[tuple[int, ...], ...]]] = defaultdict(dict)
    for s in sent:
        if s.kind in _BY_NAME:
            shapes[s.place, s.stage, s.kind][s.node] = tuple(f.shape for f in s.fields)
    for (place, stage, kind), found in shapes.items():
        along = [shape for _, shape in sorted(found.items())]
        runs = 1 + sum(a != b for a, b in pairwise(along))
        groups = max(1, -(-keyed[place] // group_size)) if kind in ("Shares", "Unmasking") else 1
        if runs > groups:
            yield f"{_where(place, stage)}: {kind} differs in size from device to device of a group"


def _missing(sent: Sequence[Sent], rows: Sequence[RoundRow]) -> Iterator[str]:
    """Rounds of which the server counted more bytes than were recorded."""
    recorded: Counter[str] = Counter()
    for s in sent:
        recorded[s.place] += s.size
    for row in rows:
        place = f"{row.round}.{row.attempt}"
        if row.log is not None and recorded[place] < row.log.bytes_up:
            yield (
                f"round {place}: {recorded[place]} bytes are recorded, but the server counted "
                f"{row.log.bytes_up}: the record is not whole"
            )


def _where(place: str, stage: str) -> str:
    return f"round {place}, {stage}" if place != stage else stage


# --- showing it ---------------------------------------------------------------------------------------


def show(directory: Path, *, as_json: bool = False) -> None:
    """Print the audit of `directory`.

    Raises RunDirectoryError as `audit` does, and ProtocolError when something left that may not.
    """
    found = audit(directory)
    if as_json:
        print(json.dumps(found.as_json(), indent=2))
    else:
        _draw(found, Console(highlight=False))
    if found.violations:
        raise ProtocolError(
            f"{len(found.violations)} findings in {directory}: the record is not what the protocol and the "
            "shared rule allow; see the list"
        )


def _draw(found: Audit, console: Console) -> None:
    secagg = "secure aggregation on" if found.secagg else "[bold red]secure aggregation OFF[/]"
    state = "" if found.finished else ", [yellow]not finished[/]"
    console.print(f"{escape(str(found.directory))}: share {found.share}, {secagg}{state}")
    console.print(_left_table(found))
    for phase, tensors in found.vectors.items():
        console.print(_vector_table(phase, tensors, found))
    console.print(_load_table(found))
    if found.violations:
        console.print(f"[bold red]{len(found.violations)} findings[/]")
        for line in found.violations[:SHOWN]:
            console.print(f"  {escape(line)}", soft_wrap=True)
        if len(found.violations) > SHOWN:
            console.print(f"  … and {len(found.violations) - SHOWN} more (--json lists all)")
        return
    console.print("Nothing else left.")
    if not found.secagg:
        console.print("[red]Every vector left unmasked: the server saw each client's own.[/]")


def _left_table(found: Audit) -> Table:
    table = Table(title="What left the clients", title_justify="left")
    for name in ("phase", "stage", "message", "times", "field", "type", "shape"):
        table.add_column(name)
    table.add_column("bytes", justify="right")
    before = ""
    for line in found.lines:
        if before not in ("", line.phase):
            table.add_section()
        table.add_row(
            line.phase if line.phase != before else "",
            line.stage,
            f"[bold]{escape(line.kind)}[/]",
            f"{line.messages:,}",
            "",
            "",
            "",
            _span(line.least, line.most),
        )
        for field in _shown_fields(line, found.ring):
            shape = " × ".join(field["shape"])
            table.add_row("", "", "", "", escape(field["name"]), escape(field["type"]), shape, field["bytes"])
        before = line.phase
    return table


def _vector_table(phase: str, tensors: Sequence[Tensor], found: Audit) -> Table:
    kind = "masked" if found.secagg else "unmasked"
    words = sum(t.words for t in tensors)
    table = Table(
        title=f"The {kind} vector of a client, {phase}: {words:,} × uint{found.ring}", title_justify="left"
    )
    table.add_column("tensor")
    table.add_column("shape")
    table.add_column("bytes", justify="right")
    width = found.ring // 8
    for tensor in tensors:
        if tensor.name not in COUNTERS:
            shape = " × ".join(map(str, tensor.shape))
            table.add_row(escape(tensor.name), shape, f"{tensor.words * width:,}")
    counters = [t for t in tensors if t.name in COUNTERS]
    if counters:
        table.add_row(f"counters: {_listed([t.name for t in counters])}", "", f"{len(counters) * width:,}")
    return table


def _load_table(found: Audit) -> Table:
    table = Table(title=f"In all, from {found.clients} clients", title_justify="left")
    table.add_column("phase")
    for name in ("rounds", "messages", "bytes", "messages a client a round", "bytes a client a round"):
        table.add_column(name, justify="right")
    for phase, load in found.loads.items():
        rounds = "" if phase == OUTSIDE else str(load.rounds)
        mean = (f"{load.messages / load.clients:.1f}", f"{load.bytes / load.clients:,.0f}")
        each = ("", "") if phase == OUTSIDE else mean
        table.add_row(phase, rounds, f"{load.messages:,}", f"{load.bytes:,}", *each)
    table.add_section()
    table.add_row("all", "", f"{found.messages:,}", f"{found.bytes:,}", "", "")
    return table


def _shown_fields(line: Line, ring: int) -> Iterator[dict[str, Any]]:
    for least, most in line.fields:
        kind, width = least.type, 1
        if line.kind in _VECTORS and least.name == "vector":
            kind, width = f"uint{ring}", ring // 8
        sides = zip(least.shape, most.shape, strict=False)
        shape = [_span(low // width, high // width) for low, high in sides]
        yield {"name": least.name, "type": kind, "shape": shape, "bytes": _span(least.size, most.size)}


def _line_json(line: Line, ring: int) -> dict[str, Any]:
    return {
        "phase": line.phase,
        "stage": line.stage,
        "message": line.kind,
        "times": line.messages,
        "bytes": [line.least, line.most],
        "fields": list(_shown_fields(line, ring)),
    }


def _load_json(load: Load) -> dict[str, Any]:
    return {
        "rounds": load.rounds,
        "attempts": load.attempts,
        "messages": load.messages,
        "bytes": load.bytes,
        "client_round": {
            "messages": load.messages / load.clients,
            "bytes": load.bytes / load.clients,
            "most_bytes": load.most_bytes,
        },
    }


def _span(least: int, most: int) -> str:
    return f"{least:,}" if least == most else f"{least:,}–{most:,}"


def _listed(names: Iterable[str]) -> str:
    """Names, those that count up in the last place as a range: accuracy 0/10 … accuracy 9/10."""
    plain = [name for name in names if not name.startswith("accuracy ")]
    bins = [name for name in names if name.startswith("accuracy ")]
    return ", ".join([*plain, f"{bins[0]} … {bins[-1]}"] if bins else plain)
