"""A server's directory without a server: settings, certificates, a member list, and runs made by hand."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

from support.console_scene import make_run

from penchant.deploy.fleet.authority import AuthorityStore
from penchant.deploy.fleet.server_directory import ServerDirectory, ServerSettings
from penchant.deploy.flower.superlink import free_port
from penchant.deploy.run_directory import MODEL_SIGNATURE
from penchant.server.journal import Journal
from penchant.server.privacy_figures import FACT, PrivacyFigures

FIGURES = PrivacyFigures(8.0, 1e-5, 1.25, 20, 9, 0.0125, 0.75)


def make_server(folder: Path, **settings: Any) -> ServerDirectory:
    """A server at whose ports nothing listens, with an authority's first list."""
    store = AuthorityStore.init(folder / "authority")
    port = free_port()
    other = next(one for one in iter(free_port, None) if one != port)  # both were free: they may be the same
    given = {"addresses": ("fleet.example",), "port": port, "superlink_port": other}
    made = ServerSettings(**{**given, **settings})
    return ServerDirectory.create(folder / "server", made, store.authority.public_key, store.latest())


def make_served_run(server: ServerDirectory, name: str, rounds: int = 3, **changes: Any) -> Path:
    """A run of the server's, whose journal has so many finished rounds, with noise."""
    directory = make_run(server.run(name), rounds, **changes)
    (directory / MODEL_SIGNATURE).write_text("{}")
    with closing(Journal(directory)) as journal:
        journal.note(FACT, FIGURES.encode())
    return directory
