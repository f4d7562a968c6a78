"""`penchant device serve-api` and `api-token`: the owner's model for the programs of the owner's machine."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from penchant.common.errors import UsageError
from penchant.common.printable import is_printable
from penchant.common.terminal import log_to_stderr, say
from penchant.deploy.cli.device.options import (
    HERE,
    Ask,
    HomeOption,
    UpstreamKey,
    UpstreamSeconds,
    key_in,
    open_device,
)
from penchant.deploy.cli.device.warm_rank import answering
from penchant.deploy.cli.errors import command, notice
from penchant.deploy.cli.listening import TlsCert, TlsKey, reachable_as
from penchant.deploy.fleet.listen_address import ListenAddress

__all__ = ["app"]

app = typer.Typer()
PORT = 8765


@command(app, "serve-api")
def serve_api(
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; beyond loopback with TLS only.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port to listen on.", min=1, max=65535)] = PORT,
    name: Annotated[
        list[str] | None,
        typer.Option(
            "--name",
            help="A further name by which programs address it, such as host.docker.internal. "
            "Requests under any other name are refused.",
        ),
    ] = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    upstream: Annotated[
        str,
        typer.Option(
            "--upstream",
            metavar="URL",
            help="A server that speaks OpenAI's API, as its base URL (http://127.0.0.1:11434/v1): "
            "/v1/chat/completions gives the one of its answers that you would like most.",
        ),
    ] = "",
    best_of: Annotated[
        int, typer.Option("--best-of", metavar="N", help="How many answers the upstream is asked for.")
    ] = 4,
    upstream_key: UpstreamKey = "",
    pass_authorization: Annotated[
        bool,
        typer.Option(
            "--pass-authorization",
            help="Show the upstream what programs send as Authorization; they send the token as "
            "X-Penchant-Token then.",
        ),
    ] = False,
    upstream_seconds: UpstreamSeconds = 300.0,
    home: HomeOption = HERE,
    passphrase: Ask = False,
) -> None:
    """Let programs on this machine rank by the owner's model: an HTTP API, until it is stopped.

    They need the token that `penchant device api-token` shows.
    """
    try:
        from penchant.deploy.device_api.serving import server_for
        from penchant.deploy.device_api.upstream import UpstreamSettings
    except ModuleNotFoundError as missing:
        raise UsageError(f"the API needs {missing.name}; install penchant[serve]") from None
    from penchant.client.device.warm_model import WarmModel, small_cache
    from penchant.deploy.device_api.api_token import api_token, token_now

    if any(not one or not is_printable(one) or "/" in one or ":" in one for one in name or ()):
        raise UsageError("--name is the name of a machine alone, without a port")
    hosts, https = reachable_as("the API", host, port, (tls_cert, tls_key), further=name or [])
    writes = None
    if upstream:
        key = key_in(upstream_key) if upstream_key else ""
        writes = UpstreamSettings(upstream, best_of, key, pass_authorization, upstream_seconds)
    elif upstream_key or pass_authorization:
        raise UsageError("--upstream-key and --pass-authorization need --upstream")
    device = open_device(home, passphrase, small_cache())
    model = WarmModel(device)
    if not model.personal:
        notice("no personal part is trained yet: the model knows nobody (`penchant device train`)")
    api_token(device.directory)  # made, or refused, before anything listens
    log_to_stderr()
    where = ListenAddress(host, port)
    listener = where.bind()
    say(f"the API is at {'https' if https else 'http'}://{where}, described at /docs")
    say("programs need the token: `penchant device api-token`")
    server = server_for(
        device,
        model,
        token=partial(token_now, device.directory),
        hosts=hosts,
        tls=(tls_cert, tls_key),
        upstream=writes,
    )
    with answering(device):
        server.run(sockets=[listener])


@command(app, "api-token")
def show_api_token(
    new: Annotated[
        bool,
        typer.Option(
            "--new", help="Make another one, at once: the API lets no program in with the old one any more."
        ),
    ] = False,
    home: HomeOption = HERE,
) -> None:
    """Show the token with which programs may use `penchant device serve-api`."""
    from penchant.client.vault.ownership import check_directory
    from penchant.deploy.device_api.api_token import api_token, new_api_token

    directory = home.expanduser()
    if not directory.is_dir():
        raise UsageError(f"there is no device in {directory}; `penchant device import` makes one")
    check_directory(directory)
    say(new_api_token(directory) if new else api_token(directory))
