"""The gateway: nginx in front of everything, the one port that the fleet's server opens to a network.

Every limit against strangers is here, for the SuperLink and the enrolment service alike: connections and
requests of one network, the size of a body by its path, how long anybody may take, how much is on its way.
Nothing reaches the SuperLink, no body is even read, before the enrolment service has said that an enrolled
device signed the request (`deploy.fleet.node_gate`).

It passes exactly the paths that a SuperNode asks for and those of the enrolment service, each named, each to
a fixed address behind: no path that a client writes is ever passed on, so none can be bent to reach Flower's
control interface, which asks nobody who they are.
"""

from __future__ import annotations

import getpass
import os
import re
import resource
import shutil
import subprocess
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from penchant.common.errors import GatewayError
from penchant.deploy.fleet.enrolment_service import CHECK, PATHS
from penchant.deploy.fleet.server_directory import ServerDirectory
from penchant.deploy.flower.superlink import FLEET_PATHS

__all__ = ["check", "command", "configuration", "find_nginx", "stream_module", "write"]

FILE = "nginx.conf"
INSTALL = "apt-get install nginx-light libnginx-mod-stream"
FILES = 8192  # open files of one of nginx's workers, if the system allows as many
SMALL_BODIES, CALLS = 64, 256  # on their way to the SuperLink: messages below 1 MB, calls of at most 64 kB
PUSHES = 8  # of one node at a time: as many as a SuperNode has threads for them
MAX_NOTICE_MB = 1  # a notice of messages, whose content is pushed apart


def configuration(server_directory: ServerDirectory) -> str:
    """nginx's configuration for a server."""
    settings, tls = server_directory.settings, server_directory.tls
    environment = Environment(
        loader=PackageLoader("penchant.deploy.fleet", "templates"),
        undefined=StrictUndefined,
        autoescape=False,
    )
    listen = f"[{settings.listen}]" if ":" in settings.listen else settings.listen
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = FILES if hard == resource.RLIM_INFINITY else min(hard, FILES)
    return environment.get_template("nginx.conf.j2").render(
        user=_user(server_directory),
        stream_module=stream_module(),
        files=files,
        raise_files=soft != resource.RLIM_INFINITY and soft < files,
        front=_quoted(_front(server_directory)),
        folder=_quoted(server_directory.path / "gateway"),
        listen=f"{listen}:{settings.port}",
        certificate=_quoted(tls.gateway.certificate),
        key=_quoted(tls.gateway.key),
        loopback_ca=_quoted(tls.loopback_ca.certificate),
        superlink=settings.superlink,
        enrol_socket=_quoted(server_directory.enrol_socket),
        fleet_paths=FLEET_PATHS,
        enrol_paths=PATHS,
        check_path=CHECK,
        connections=settings.connections_per_address,
        requests_per_second=settings.requests_per_second,
        requests_burst=4 * settings.requests_per_second,
        calls=CALLS,
        small_bodies=SMALL_BODIES,
        large_bodies=max(settings.max_bodies_mb // settings.max_body_mb, 1),
        pushes=PUSHES,
        bodies={"push-object": settings.max_body_mb, "push-messages": MAX_NOTICE_MB},
        enrol_per_minute=settings.enrol_per_minute,
        enrol_burst=max(settings.enrol_per_minute // 2, 1),
    )


def write(server_directory: ServerDirectory) -> Path:
    """Write the configuration and have nginx test it; -> the file. GatewayError when nginx finds fault."""
    path = server_directory.path / "gateway" / FILE
    path.write_text(configuration(server_directory), encoding="utf-8")
    check(path)
    return path


def check(path: Path) -> None:
    """GatewayError with nginx's own words unless `nginx -t` takes the file."""
    words = [find_nginx(), "-t", "-q", "-e", "stderr", "-c", str(path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        said = " ".join(line for line in done.stderr.split("\n") if "[emerg]" in line or "[crit]" in line)
        raise GatewayError(f"nginx rejects {path}: {' '.join((said or done.stderr).split())[:400]}")


def command(server_directory: ServerDirectory) -> list[str]:
    """nginx in the foreground, with the configuration that `write` wrote."""
    path = server_directory.path / "gateway" / FILE
    words = [find_nginx(), "-e", "stderr", "-c", str(path)]
    # A killed nginx leaves its socket behind, and the next one would not start.
    return [
        "/bin/sh",
        "-c",
        'rm -f "$1" && shift && exec "$@"',
        "gateway",
        str(_front(server_directory)),
        *words,
    ]


def find_nginx() -> str:
    """Where nginx is. GatewayError when it is not installed."""
    found = shutil.which("nginx", path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"]))
    if found is None:
        raise GatewayError(f"there is no nginx; install it, on Debian with `{INSTALL}`")
    return found


def stream_module() -> str:
    """The file of nginx's stream module; empty where it is built in. GatewayError when there is none."""
    words = [find_nginx(), "-V"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    if re.search(r"--with-stream(\s|$)", done.stderr):
        return ""
    folder = re.search(r"--modules-path=(\S+)", done.stderr)
    file = Path(folder[1] if folder else "/usr/lib/nginx/modules") / "ngx_stream_module.so"
    if not file.is_file():
        raise GatewayError(f"nginx has no stream module; install it, on Debian with `{INSTALL}`")
    return _quoted(file)


def _front(server_directory: ServerDirectory) -> Path:
    """The socket between nginx's two halves: the one that counts connections, the one that reads them."""
    return server_directory.path / "gateway" / "front.sock"


def _user(server_directory: ServerDirectory) -> str:
    """The user that nginx's workers run as; empty unless root starts it."""
    if os.geteuid() != 0:
        return ""
    return server_directory.settings.user or getpass.getuser()


def _quoted(path: Path) -> str:
    text = str(path)
    if any(character in text for character in "\"'\\;{}$\n "):
        raise GatewayError(f"nginx can't have {text!r} in its configuration; choose a plainer directory")
    return text
