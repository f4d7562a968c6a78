"""What the commands of `penchant device` share: their options, and opening the device's directory."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from penchant.common.errors import DataError, UsageError
from penchant.common.printable import one_line
from penchant.common.terminal import say
from penchant.deploy.cli import passphrase as passphrases
from penchant.deploy.cli.errors import notice, on_interrupt

if TYPE_CHECKING:
    from penchant.client.device.device import Device
    from penchant.client.device.home import DeviceHome
    from penchant.client.learning.model_cache import ModelCache

__all__ = [
    "HERE",
    "SOCKET",
    "AsJson",
    "Ask",
    "HomeOption",
    "NodeOption",
    "SkipBadRows",
    "SocketOption",
    "UpstreamKey",
    "UpstreamSeconds",
    "file_source",
    "key_in",
    "lines_of",
    "make_sure",
    "node_folder",
    "open_device",
    "open_home",
    "part",
    "print_table",
]

T = TypeVar("T")

DEFAULT_HOME = "~/.local/share/penchant"
PASSPHRASE = "PENCHANT_PASSPHRASE"

HomeOption = Annotated[
    Path,
    typer.Option("--home", envvar="PENCHANT_HOME", help="The device's directory.", show_default=DEFAULT_HOME),
]
Ask = Annotated[
    bool,
    typer.Option(
        "--passphrase",
        help=f"Ask for the passphrase; for scripts, {PASSPHRASE}_FILE names a file whose first line it is, "
        "- for standard input. Without one, a key file is used.",
    ),
]
NodeOption = Annotated[
    Path | None,
    typer.Option(
        "--node", help="Folder with what the SuperNode needs; by default `node` in the device's directory."
    ),
]
SocketOption = Annotated[
    Path | None,
    typer.Option(
        "--socket", help="The agent's Unix socket; by default agent.sock in the device's directory."
    ),
]
SkipBadRows = Annotated[bool, typer.Option("--skip-bad-rows", help="Skip bad rows and say so.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
UpstreamKey = Annotated[
    str, typer.Option("--upstream-key", metavar="FILE", help="A file whose first line is the upstream's key.")
]
UpstreamSeconds = Annotated[
    float, typer.Option("--upstream-seconds", help="How long an answer may take.", min=1)
]
HERE = Path(DEFAULT_HOME)
KEY_MOST = 4096  # characters
SOCKET = "agent.sock"


def open_device(home: Path, ask: bool, model_cache: ModelCache | None = None) -> Device:
    """The device's directory, unlocked. Asks for a passphrase when told to, or when there is no other way.

    model_cache: where models are kept, if not as `Device` does it.
    """
    import torch

    from penchant.client.device.device import Device

    torch.set_num_threads(1)
    return Device(home.expanduser(), _unlocking(home, ask), model_cache)


def open_home(home: Path, ask: bool) -> DeviceHome:
    """As `open_device`, for what needs no model: neither torch nor transformers is loaded."""
    from penchant.client.device.home import DeviceHome

    return DeviceHome(home.expanduser(), _unlocking(home, ask))


def _unlocking(home: Path, ask: bool) -> str | None:
    """The passphrase of a device's directory; None where it has none."""
    from penchant.client.vault.sealing import SealedStorage

    directory = home.expanduser()
    passphrase = passphrases.given("", PASSPHRASE)
    protected = SealedStorage.asks_passphrase(directory)
    if passphrase is None and (ask or (protected and sys.stdin.isatty())):
        how = f"name a file that holds it in {PASSPHRASE}_FILE"
        passphrase = passphrases.asked("Passphrase", new=protected is None, told=ask, how=how)
    return passphrase


def make_sure(yes: bool, question: str) -> None:
    """Ask before something that can't be undone. UsageError when the owner says no."""
    if not yes and not typer.confirm(question):
        raise UsageError("nothing was changed")


def file_source(name: str) -> str:
    """What is kept of where choices came from, for a file of this name."""
    return f"file {one_line(name, 100)}"


def key_in(file: str) -> str:
    """The first line of a file, which is an upstream's key. UsageError when it is empty or can't be read."""
    try:
        with Path(file).expanduser().open(encoding="utf-8") as opened:
            key = opened.readline(KEY_MOST).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"can't read the upstream's key from {file}: {error}") from None
    if not key:
        raise UsageError(f"{file} holds no key in its first line")
    return key


def node_folder(home: Path, node: Path | None) -> Path:
    """Where the SuperNode's files are: as the owner says, or in the device's directory."""
    from penchant.client.device.supernode_files import NODE

    return node or home.expanduser() / NODE


def part(device: DeviceHome, home: Path, node: Path | None, parting: Callable[[], T]) -> T:
    """Do `parting`, after which the device is in no fleet; -> what it returns.

    The owner reads what is left to do, and of a folder that they named, or that is there, and holds no node.
    """
    from penchant.client.device import parting as partings
    from penchant.client.device.supernode_files import SETTINGS

    @contextmanager
    def leaving(member: int) -> Iterator[None]:
        say(f"this device was member {member}")  # nothing knows the number after this
        with on_interrupt(f"this device has left; tell the authority to revoke member {member}"):
            yield

    folder = node_folder(home, node)
    done = partings.part(device, folder, parting, leaving)
    if done.not_told:
        say("tell the authority to revoke that number")
        notice(f"the server was not told: {one_line(done.not_told)}")
    elif done.member is not None:
        say("its server knows, and asks the authority to revoke it, where that is not done yet")
    if not done.node_removed and (node is not None or folder.exists()):
        notice(f"nothing was removed from {folder}, which holds no {SETTINGS} that can be read")
    return done.result


def lines_of(file: str) -> list[str]:
    """The lines with text of a file, or of standard input for ``-``. DataError if it can't be read."""
    if file == "-":
        text = sys.stdin.read()
    else:
        try:
            text = Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"can't read responses from {file}: {error}") from None
    return [line for line in text.splitlines() if line.strip()]


def print_table(title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """A table on the terminal, without a heading when all columns are called ``""``."""
    from rich.table import Table

    from penchant.deploy.cli.drawing import Drawing

    table = Table(title=title or None, title_justify="left", show_header=any(columns))
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*row)
    Drawing().print(table)
