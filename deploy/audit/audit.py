"""`penchant audit DIR`: what left the clients of a recorded run, and whether that was all that may leave.

Reads the recorded wire, the configuration and the journal of a run directory; runs nothing. What may leave
is decided by the protocol (`deploy.wire.REPLIES`, and the annotations that the codec reads) and by the one
rule table of what is shared (`common.shares.ShareRule.parts`), never by the record itself.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penchant.common.secagg.update_vector import COUNTERS
from penchant.deploy import run_directory
from penchant.deploy.audit.record import (
    Field,
    Sent,
    Tensor,
    read_tensors,
    read_wire,
)
from penchant.deploy.audit.rules import VECTORS, Rules, find_violations
from penchant.deploy.json_tables import plain_value
from penchant.server.journal import RoundRow
from penchant.server.journal_reader import JournalReader

__all__ = ["Audit", "Line", "audit"]

SHOWN = 20  # violations that are printed; --json has all


@dataclass(frozen=True)
class Line:
    """One type of message in one stage of one phase, with the smallest and the largest of each field."""

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
    """What left, and what of it should not have.

    `ring` is the bits of a ring element, `vectors` says for each phase what a client's vector is made of, and
    `framed` counts bytes with Flower's frames.
    """

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
    refused: tuple[str, ...] = ()  # what the server opened and did not use: rounds skipped, groups left out

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
            "phases": {phase: load_json(load) for phase, load in self.loads.items()},
            "left": [line_json(line, self.ring) for line in self.lines],
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
            "refused": list(self.refused),
            "violations": list(self.violations),
        }


# --- the audit ----------------------------------------------------------------------------------------


def audit(directory: Path) -> Audit:
    """Read and check what left the clients of `directory`'s run.

    Raises RunDirectoryError when it is not a run directory, or holds no record of the wire.
    """
    config = run_directory.read_config(directory)
    sent = list(read_wire(directory))
    tensors = read_tensors(directory)
    rules = Rules(config, tensors)
    phases = [rules.phase(s) for s in sent]
    rows = _journal(directory)
    return Audit(
        directory=directory,
        secagg=config.privacy.secagg,
        share=config.adapter.share,
        ring=config.privacy.ring_bits,
        finished=run_directory.read_result(directory) is not None,
        clients=len({s.node for s in sent}),
        messages=len(sent),
        bytes=sum(s.size for s in sent),
        framed=sum(s.framed for s in sent),
        loads=_loads(sent, phases),
        lines=_lines(sent, phases),
        vectors={p: tensors[p] for p in dict.fromkeys(phases) if p in tensors},
        violations=tuple(find_violations(rules, sent, phases, rows)),
        refused=tuple(_refused(rows)),
    )


def _journal(directory: Path) -> list[RoundRow]:
    return JournalReader(directory).rows()


def _refused(rows: Sequence[RoundRow]) -> Iterator[str]:
    """A line for each round that was skipped, and for each group that a finished one is without."""
    for row in rows:
        if row.state == "skipped":
            yield f"round {row.round}, attempt {row.attempt}, was skipped: {row.why}"
        for group, why in (row.log.failed if row.log else {}).items():
            yield f"round {row.round}, attempt {row.attempt}, is without group {group}: {why}"


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


# --- violations ---------------------------------------------------------------------------------------


# --- showing it ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ShownField:
    """A field of a message, as a person reads it: the lengths of its sides, and its bytes, each from least to
    most."""

    name: str
    type: str
    shape: tuple[str, ...]
    bytes: str


def line_json(line: Line, ring: int) -> dict[str, Any]:
    return {
        "phase": line.phase,
        "stage": line.stage,
        "message": line.kind,
        "times": line.messages,
        "bytes": [line.least, line.most],
        "fields": [plain_value(field) for field in shown_fields(line, ring)],
    }


def load_json(load: Load) -> dict[str, Any]:
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


def shown_fields(line: Line, ring: int) -> Iterator[ShownField]:
    for least, most in line.fields:
        kind, width = least.type, 1
        if line.kind in VECTORS and least.name == "vector":
            kind, width = f"uint{ring}", ring // 8
        sides = zip(least.shape, most.shape, strict=False)
        shape = tuple(_span(low // width, high // width) for low, high in sides)
        yield ShownField(least.name, kind, shape, _span(least.size, most.size))
