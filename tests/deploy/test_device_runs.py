"""What an owner sees of the runs that asked for the device, and how one is accepted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from penchant.client.agent.policy import OwnerPolicy
from penchant.client.device.device import Device
from penchant.client.vault.run_ledger import Attempt
from penchant.common.config import RunConfig
from penchant.common.membership.manifest import LAST_DAY
from penchant.deploy.cli.main import main
from penchant.server.run_manifest import manifest_of

RUN = bytes(range(16))


def device(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: object
) -> tuple[int, str]:
    """(exit status, what was printed) of `penchant device …` in this process."""
    monkeypatch.setattr("sys.argv", ["penchant", "device", *map(str, words)])
    with pytest.raises(SystemExit) as leave:
        main()
    out, err = capsys.readouterr()
    return int(leave.value.code or 0), out + err


def test_an_owner_lists_runs_and_accepts_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    home = tmp_path / "home"
    vault = Device(home).vault
    place = ["--home", home]
    assert device(capsys, monkeypatch, "runs", *place) == (0, "no run has asked for this device\n")
    asked = manifest_of(
        RunConfig(), run=RUN, base=bytes(32), cohort=30, first_day=20_000, last_day=LAST_DAY
    ).encode()
    assert not vault.ledger.offer(Attempt(RUN, 1, 1, asked, LAST_DAY), 20_000)
    (home / "policy.toml").write_text(OwnerPolicy(runs="each").to_toml())
    code, said = device(capsys, monkeypatch, "runs", *place)
    assert code == 0
    assert said.startswith("waiting to be accepted, 0 rounds in 0 attempts so far\n")
    for part in (f"run {RUN.hex()}", "at most 31 rounds, 2024-10-04 to 9999-12-31", "at least 30 people"):
        assert part in said
    code, said = device(capsys, monkeypatch, "status", "--json", *place)
    told = json.loads(said)
    assert " ".join(told) == (
        "choices held_out ties lost_ties sources member agent_runs takes_part why_not "
        "server_heard turned_away last_taken run round rounds_joined runs held_out_right model_in_use "
        "why_unknown other_settings left refused disk privacy release"
    )
    assert " ".join(told["disk"]) == "vault personal runs attempts choices total vault_most"
    (row,) = told["runs"]
    assert (code, row["state"], row["least_cohort"], row["run"]) == (
        0,
        "waiting to be accepted",
        30,
        RUN.hex(),
    )
    code, said = device(capsys, monkeypatch, "accept-run", "0001", *place)
    assert code == 2
    assert "names no run that this device was asked for" in said
    code, said = device(capsys, monkeypatch, "accept-run", RUN.hex()[:8], *place)
    assert (code, said) == (0, f"this device takes part in run {RUN.hex()}\n")
    code, said = device(capsys, monkeypatch, "runs", "--json", *place)
    (row,) = json.loads(said)
    assert row["state"] == "accepted"
    assert " ".join(row) == (
        "run state rounds attempts most_rounds least_cohort least_group first_day last_day asks"
    ), "programs may read the keys in this order"
    assert row["asks"][-3:] == [
        "privacy: no noise is added, so sums are exact",
        "settings of main rounds that are not the default: cohort = 30",
        "settings of the closing round that are not the default: cohort = 30",
    ]
