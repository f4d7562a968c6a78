"""The Senate data set in the package is what its script makes of Debian's own file."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path

import pytest

from penchant.deploy.datasets import build_senate, senate

pytestmark = pytest.mark.system


def test_the_package_data_is_made_of_the_debian_package(tmp_path: Path) -> None:
    subprocess.run(["apt-get", "download", "-qq", "r-cran-pscl"], cwd=tmp_path, check=True)
    (package,) = tmp_path.glob("r-cran-pscl_*.deb")
    subprocess.run(["dpkg-deb", "-x", str(package), str(tmp_path / "files")], check=True)
    source = tmp_path / "files/usr/lib/R/site-library/pscl/data"

    made = build_senate.compact(build_senate.read_lazy_load(source, "s109"))

    data = senate.read()
    assert made["people"] == list(data.people)
    assert made["votes"] == list(data.votes)
    assert made["items"] == [dataclasses.asdict(call) for call in data.roll_calls]
