"""The gateway: nginx in front of everything, the one port that the fleet's server opens to a network.

It passes exactly the paths that a SuperNode asks for and those of the enrolment service, each named, each to
a fixed address behind: no path that a client writes is ever passed on, so none can be bent to reach Flower's
control interface, which asks nobody who they are.
"""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from penchant.common.errors import GatewayError
from penchant.deploy.fleet.enrolment_service import PATHS
from penchant.deploy.fleet.server_directory import ServerDirectory
from penchant.deploy.flower.superlink import FLEET_PATHS

__all__ = ["check", "command", "configuration", "find_nginx", "write"]

FILE = "nginx.conf"


def configuration(site: ServerDirectory) -> str:
    """nginx's configuration for a server."""
    settings, tls = site.settings, site.tls
    environment = Environment(
        loader=PackageLoader("penchant.deploy.fleet", "templates"),
        undefined=StrictUndefined,
        autoescape=False,
    )
    listen = f"[{settings.listen}]" if ":" in settings.listen else settings.listen
    return environment.get_template("nginx.conf.j2").render(
        user=_user(site),
        folder=_quoted(site.directory / "gateway"),
        log=_quoted(site.log("gateway")),
        listen=f"{listen}:{settings.port}",
        certificate=_quoted(tls.gateway.certificate),
        key=_quoted(tls.gateway.key),
        loopback_ca=_quoted(tls.loopback_ca.certificate),
        superlink=settings.superlink,
        enrol_socket=_quoted(site.enrol_socket),
        fleet_paths=FLEET_PATHS,
        enrol_paths=PATHS,
        enrol_per_minute=settings.enrol_per_minute,
        enrol_burst=max(settings.enrol_per_minute // 2, 1),
        max_body_mb=settings.max_body_mb,
    )


def write(site: ServerDirectory) -> Path:
    """Write the configuration and have nginx test it; -> the file. GatewayError when nginx finds fault."""
    path = site.directory / "gateway" / FILE
    path.write_text(configuration(site), encoding="utf-8")
    check(path)
    return path


def check(path: Path) -> None:
    """GatewayError with nginx's own words unless `nginx -t` takes the file."""
    words = [find_nginx(), "-t", "-q", "-e", "stderr", "-c", str(path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        said = " ".join(line for line in done.stderr.split("\n") if "[emerg]" in line or "[crit]" in line)
        raise GatewayError(f"nginx does not take {path}: {' '.join((said or done.stderr).split())[:400]}")


def command(site: ServerDirectory) -> list[str]:
    """nginx in the foreground, with the configuration that `write` wrote."""
    path = site.directory / "gateway" / FILE
    return [find_nginx(), "-e", str(site.log("gateway")), "-c", str(path)]


def find_nginx() -> str:
    """Where nginx is. GatewayError when it is not installed."""
    found = shutil.which("nginx", path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"]))
    if found is None:
        raise GatewayError("there is no nginx; install it, on Debian with `apt-get install nginx-light`")
    return found


def _user(site: ServerDirectory) -> str:
    """The user that nginx's workers run as; empty unless root starts it."""
    if os.geteuid() != 0:
        return ""
    return site.settings.user or getpass.getuser()


def _quoted(path: Path) -> str:
    text = str(path)
    if any(character in text for character in "\"'\\;{}$\n "):
        raise GatewayError(f"nginx can't have {text!r} in its configuration; choose a plainer directory")
    return text
