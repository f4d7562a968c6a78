"""`penchant device open`: the owner's page, in a browser on this machine."""

from __future__ import annotations

import signal
import sys
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penchant.common.errors import UsageError
from penchant.common.terminal import log_to_stderr, say
from penchant.deploy.cli.device.options import (
    HERE,
    Ask,
    HomeOption,
    SkipBadRows,
    UpstreamKey,
    UpstreamSeconds,
    key_in,
    open_device,
)
from penchant.deploy.cli.errors import command
from penchant.deploy.fleet.listen_address import ListenAddress

if TYPE_CHECKING:
    from penchant.deploy.device_page.writers import ResponseWriter

__all__ = ["app"]

app = typer.Typer()


@command(app, "open")
def open_page(
    ask: Annotated[
        Path | None,
        typer.Option(
            "--ask",
            metavar="FILE",
            help="What to choose between, as for `penchant device label`; without it, a small set on "
            "everyday subjects.",
        ),
    ] = None,
    port: Annotated[
        int,
        typer.Option("--port", help="Port of loopback to listen on; 0 takes a free one.", min=0, max=65535),
    ] = 0,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the link in the browser.")
    ] = True,
    idle_minutes: Annotated[
        float,
        typer.Option("--idle-minutes", help="The page ends where nobody uses it for so long.", min=1),
    ] = 60.0,
    skip_bad_rows: SkipBadRows = False,
    upstream: Annotated[
        str,
        typer.Option(
            "--upstream",
            metavar="URL",
            help="Who writes responses to your prompts: a server that speaks OpenAI's API, as its base URL "
            "(http://127.0.0.1:11434/v1). Nothing else is ever asked.",
        ),
    ] = "",
    upstream_model: Annotated[
        str,
        typer.Option(
            "--upstream-model", metavar="NAME", help="Which of its models writes; without it, its first one."
        ),
    ] = "",
    upstream_key: UpstreamKey = "",
    upstream_seconds: UpstreamSeconds = 300.0,
    generator: Annotated[
        str,
        typer.Option(
            "--generator",
            metavar="MODEL",
            help="Or a causal model on this device: smollm2-135m, a folder, or a hub id. Where your model is "
            "a policy (objective dpo, say), it writes itself unless you name another one.",
        ),
    ] = "",
    home: HomeOption = HERE,
    passphrase: Ask = False,
) -> None:
    """Choose, ask, look at your choices and your model, and train it, on a page in your browser.

    The page is on this machine alone; the link that is shown works once, in one browser. An earlier page of
    the same device ends: whoever had its link or its cookie has nothing then.
    """
    try:
        from penchant.deploy.device_page.serving import page_server
        from penchant.deploy.device_page.starter import starter_comparisons
    except ModuleNotFoundError as missing:
        raise UsageError(f"the page needs {missing.name}; install penchant[serve]") from None
    from penchant.client.device.labelling import read_comparisons
    from penchant.client.device.warm_model import small_cache
    from penchant.deploy.device_page.entrance import Entrance
    from penchant.deploy.device_page.link_file import LinkFile

    if ask is None:
        comparisons = starter_comparisons()
    else:
        comparisons, report = read_comparisons(ask, "skip" if skip_bad_rows else "refuse")
        if report.bad:
            say(report.summary(), error=True)
    writer = _writer(upstream, upstream_model, upstream_key, upstream_seconds, generator)
    device = open_device(home, passphrase, small_cache(home))
    if writer is None and device.writes():
        from penchant.deploy.device_page.writers import PolicyWriter

        writer = PolicyWriter(device)
    log_to_stderr()
    listener = ListenAddress("127.0.0.1", port).bind()
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    hosts = frozenset({address, address.replace("127.0.0.1", "localhost")})
    file = LinkFile(device.directory)
    entrance = Entrance(60 * idle_minutes, is_newest=lambda: file.is_newest)
    link = f"http://{address}{entrance.link}"
    say(f"your page, once and in one browser: {link}")
    say(f"Ctrl-C ends it, and so do {idle_minutes:g} minutes without use, and opening another one")
    for ended in (signal.SIGTERM, signal.SIGHUP):  # a terminal that is closed leaves no file behind either
        signal.signal(ended, lambda number, _: sys.exit(128 + number))
    file.write(link)
    try:
        if browser:
            webbrowser.open(file.path.as_uri())
        page_server(device, comparisons, entrance, hosts, writer).run(sockets=[listener])
        if not file.is_newest:
            say("another page of this device was opened, or this one's link was removed; this one has ended")
    finally:
        file.remove()


# --- inner parts --------------------------------------------------------------------------------------


def _writer(upstream: str, model: str, key: str, seconds: float, generator: str) -> ResponseWriter | None:
    """Who writes responses, as the options name them. UsageError where they name two, or half of one."""
    from penchant.deploy.device_api.upstream import UpstreamSettings
    from penchant.deploy.device_page.writers import GeneratorWriter, UpstreamWriter

    if upstream and generator:
        raise UsageError("--upstream and --generator exclude each other; give one")
    if (model or key) and not upstream:
        raise UsageError("--upstream-model and --upstream-key need --upstream")
    if upstream:
        settings = UpstreamSettings(upstream, key=key_in(key) if key else "", seconds=seconds)
        return UpstreamWriter(settings, model)
    return GeneratorWriter(generator) if generator else None
