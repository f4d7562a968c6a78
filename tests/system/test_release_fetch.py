"""A device fetches the fleet's release through the real gateway, with the command that an owner types."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support.processes import PROGRAM, free_port, running, wait_for
from support.release_scene import ReleaseScene

from penchant.client.device.device import Device
from penchant.client.device.supernode_files import NODE, SuperNodeFiles
from penchant.deploy.fleet import gateway
from penchant.deploy.fleet.processes import gateway_open

pytestmark = pytest.mark.system


def asked(device: Device, *words: str) -> subprocess.CompletedProcess[str]:
    """What the command said."""
    command = [*PROGRAM, "device", *words, "--home", str(device.directory)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def joined_by_token(scene: ReleaseScene, device: Device) -> None:
    """What `penchant device join` leaves for the node, but for its key."""
    folder = device.directory / NODE
    folder.mkdir()
    (folder / "ca.pem").write_bytes(scene.server_directory.ca)
    address = scene.server_directory.settings.gateway
    SuperNodeFiles(folder, address, device.directory / "agent.sock", "token").write()


def test_a_release_comes_through_the_gateway(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    scene = ReleaseScene.made(
        tmp_path,
        tiny_model("bert"),
        server={
            "addresses": ("127.0.0.1",),
            "listen": "127.0.0.1",
            "port": free_port(),
            "user": "root" if os.geteuid() == 0 else "",
        },
    )
    scene.promote(1)
    device, server = scene.device(), scene.server_directory
    joined_by_token(scene, device)
    gateway.write(server)
    up = [*PROGRAM, "server", "up", str(server.path), "--only"]
    with (
        running([*up, "enrol"], tmp_path / "enrol.log"),
        running([*up, "gateway"], tmp_path / "gateway.log"),
    ):
        wait_for("the gateway", lambda: gateway_open(server) and server.enrol_socket.exists(), 300)
        done = asked(device, "release", "--json")
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert (told["outcome"], told["release"]["in_use"]) == ("taken", True)
        assert device.vault.latest()[1].vector.size > 0  # type: ignore[index]  # it was trained at once
        scene.promote(2)
        done = asked(device, "release")
        assert done.returncode == 0, done.stderr
        assert "uses the fleet's release from now on" in done.stdout
        assert "spring:release-2, round 2" in done.stdout
        done = asked(device, "status")
        assert "spring:release-2, in use; signed" in done.stdout
        scene.promote(1)
        (damaged,) = (server.path / "release").glob("*.factors")
        damaged.write_bytes(bytes(damaged.stat().st_size))
        before = device.vault.version()
        done = asked(device, "release")
        assert done.returncode == 1
        assert done.stderr.strip().splitlines()[-1].endswith("fetch it again")
        assert device.vault.version() == before
    assert "fetches a release's numbers" in (tmp_path / "enrol.log").read_text()
