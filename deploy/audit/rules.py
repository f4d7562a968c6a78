"""What a record of messages must satisfy: who may send what, once, and of which shape."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from penchant.common import errors
from penchant.common.config import RunConfig
from penchant.common.secagg.update_vector import COUNTERS
from penchant.common.shares import Part
from penchant.deploy.audit.record import (
    ERROR,
    HEADER,
    REPLIES,
    UNKNOWN,
    Sent,
    Tensor,
    rules_of,
)
from penchant.server.journal import RoundRow

_ONLY_SECAGG = ("Entry", "Shares", "Masked", "Confirmation", "Unmasking")
_ONLY_PLAIN = ("Ready", "Plain")
_BY_NAME = {kind.__name__: kind for kinds in REPLIES.values() for kind in kinds}


@dataclass(frozen=True)
class Rules:
    """What the configuration of a run allows; `tensors` is what the record says each phase's vector holds."""

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
            return f"{sent.size} bytes that are not a message of the protocol"
        return self._misplaced(sent) or _malformed(sent) or self._mislong(sent, phase)

    def _misplaced(self, sent: Sent) -> str | None:
        if self.secagg and sent.kind == "Plain":
            return "an unmasked vector, in a run with secure aggregation"
        others = _ONLY_PLAIN if self.secagg else _ONLY_SECAGG
        if sent.kind in others or _BY_NAME[sent.kind] not in REPLIES[sent.stage]:
            return f"a message {sent.kind} does not belong there"
        return None

    def _mislong(self, sent: Sent, phase: str) -> str | None:
        if sent.kind not in VECTORS:
            return None
        if phase not in self.tensors:
            return "a vector, and no record of what it is made of"
        size = next(f.size for f in sent.fields if f.name == "vector")
        allowed = sum(t.words for t in self.tensors[phase]) * self.config.privacy.ring_bits // 8
        return None if size == allowed else f"a vector of {size} bytes where {allowed} belong"

    def vector(self, phase: str) -> Iterator[str]:
        """What of a phase's vector the rule table does not allow, or lacks. Yields one text each."""
        adapter, rule = self.config.adapter, self.config.adapter.rule
        base = any(name != "head" for name in adapter.share_base)
        parts = rule.parts(self.config.head, phase == "warmup", base=base)
        shared = {role for role, part in parts.items() if part is Part.SHARED and phase != "close"}
        found = [t for t in self.tensors[phase] if t.name not in COUNTERS]
        for tensor in found:
            role = rule.role_of(tensor.name)
            if role not in shared:
                yield f"{phase}: the vector holds {tensor.name}, which is not shared"
            elif not rule.allows_shape(role, tensor.shape, adapter.rank):
                yield f"{phase}: {tensor.name} has shape {tensor.shape}, which is not of rank {adapter.rank}"
        for role in sorted(shared - {rule.role_of(t.name) for t in found}):
            yield f"{phase}: the vector lacks the shared tensors of role {role}"
        counters = [t for t in self.tensors[phase] if t.name in COUNTERS]
        if [(t.name, t.shape) for t in counters] != [(name, ()) for name in COUNTERS]:
            yield f"{phase}: the vector's counters are not the {len(COUNTERS)} that every vector has"


SINCE_3 = {"Status": {"list_digest"}}
"""Fields that messages have since protocol version 3: a record of an earlier one is sound without."""


def _malformed(sent: Sent) -> str | None:
    """Fields that the type does not have or the codec could not have written; bytes that none explains."""
    rules = {rule.name: rule for rule in rules_of(_BY_NAME[sent.kind])}
    for f in sent.fields:
        if f.name not in rules:
            return f'{sent.kind} with a field "{f.name}" that it does not have'
        if not rules[f.name].fits(f):
            return f"{sent.kind}.{f.name} of type {f.type}, shape {f.shape} and {f.size} bytes"
    names = [f.name for f in sent.fields]
    if sorted(names) not in (sorted(rules), sorted(set(rules) - SINCE_3.get(sent.kind, set()))):
        return f"{sent.kind} has the fields {', '.join(names) or 'none'}, where {', '.join(rules)} belong"
    explained = HEADER + sum(f.size + rules[f.name].prefix for f in sent.fields)
    if explained != sent.size:
        return f"{sent.kind} of {sent.size} bytes, of which its fields explain {explained}"
    return None


def find_violations(
    rules: Rules, sent: Sequence[Sent], phases: Sequence[str], rows: Sequence[RoundRow]
) -> Iterator[str]:
    if not sent:
        yield "nothing is recorded at all"
    for s, phase in zip(sent, phases, strict=True):
        fault = rules.message(s, phase)
        if fault:
            yield f"{_where(s.place, s.stage)}, node {s.node}: {fault}"
    vectors = {phase for s, phase in zip(sent, phases, strict=True) if s.kind in VECTORS}
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


ENVELOPE = 1024  # bytes that Flower's own frame around a payload may take


OUTSIDE = "outside rounds"


VECTORS = ("Masked", "Plain")
