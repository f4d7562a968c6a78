"""An audit, in the terminal or as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from penchant.common.errors import ProtocolError
from penchant.common.printable import one_line
from penchant.common.secagg.update_vector import COUNTERS
from penchant.common.terminal import say_json
from penchant.deploy.audit.audit import SHOWN, Audit, _span, audit, shown_fields
from penchant.deploy.audit.record import (
    Tensor,
)
from penchant.deploy.audit.rules import OUTSIDE
from penchant.deploy.cli.drawing import Drawing

__all__ = ["show"]

_SECAGG = {True: "", False: "bold red"}


def show(directory: Path, *, as_json: bool = False) -> None:
    """Print the audit of `directory`.

    Raises RunDirectoryError as `audit` does, and ProtocolError when something left that may not.
    """
    found = audit(directory)
    if as_json:
        say_json(found.as_json())
    else:
        _draw(found, Drawing())
    if found.violations:
        raise ProtocolError(
            f"{len(found.violations)} findings in {directory}: the record is not what the protocol and the "
            "shared rule allow; see the list"
        )


def _draw(found: Audit, console: Drawing) -> None:
    head = Text(f"{one_line(str(found.directory))}: share {found.share}, ")
    head.append("secure aggregation on" if found.secagg else "secure aggregation OFF", _SECAGG[found.secagg])
    if not found.finished:
        head.append(", ").append("not finished", "yellow")
    console.print(head)
    console.print(_left_table(found))
    for phase, tensors in found.vectors.items():
        console.print(_vector_table(phase, tensors, found))
    console.print(_load_table(found))
    for line in found.refused[:SHOWN]:
        console.print(Text.assemble(("not used:", "yellow"), f" {one_line(line)}"), soft_wrap=True)
    if len(found.refused) > SHOWN:
        console.print(f"  … and {len(found.refused) - SHOWN} more (--json lists all)")
    if found.violations:
        console.print(f"{len(found.violations)} findings", style="bold red")
        for line in found.violations[:SHOWN]:
            console.print(f"  {one_line(line)}", soft_wrap=True)
        if len(found.violations) > SHOWN:
            console.print(f"  … and {len(found.violations) - SHOWN} more (--json lists all)")
        return
    console.print("Nothing else left.")
    if not found.secagg:
        console.print("Every vector left unmasked: the server saw each client's own.", style="red")


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
            one_line(line.stage),
            Text(one_line(line.kind), "bold"),
            f"{line.messages:,}",
            "",
            "",
            "",
            _span(line.least, line.most),
        )
        for field in shown_fields(line, found.ring):
            shape = " × ".join(field.shape)
            table.add_row("", "", "", "", one_line(field.name), one_line(field.type), shape, field.bytes)
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
            table.add_row(one_line(tensor.name), shape, f"{tensor.words * width:,}")
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


def _listed(names: Iterable[str]) -> str:
    """Names, those that count up in the last place as a range: accuracy 0/10 … accuracy 9/10."""
    plain = [name for name in names if not name.startswith("accuracy ")]
    bins = [name for name in names if name.startswith("accuracy ")]
    return ", ".join([*plain, f"{bins[0]} … {bins[-1]}"] if bins else plain)
