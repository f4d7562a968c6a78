"""Figures in Prometheus' text form: names, labels that are bounded, and what is not said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from support.console_scene import log, make_run, shared

from penchant.server.journal import Journal
from penchant.server.journal_reader import JournalReader
from penchant.server.monitoring.fleet import Expiry
from penchant.server.monitoring.metrics import (
    RUNS_MOST,
    DeviceFigures,
    DiskFigures,
    FleetFigures,
    RequestFigures,
    RunFigures,
    exposition,
)
from penchant.server.monitoring.run_history import Activity, RunLocation, summary_of
from penchant.server.privacy_figures import FACT, PrivacyFigures
from penchant.server.waiting import Waiting, write_waiting

FLEET = FleetFigures(
    parts={"gateway": True, "superlink": False},
    ready=False,
    attention={"bad": 1},
    devices=DeviceFigures(7, 1, None, None),
    list_number=3,
    expiries=[Expiry("member_list", "Member list 3", 900.0, 1600.0, "", 0.0)],
    requests=RequestFigures({"enrolment": 2}, 940.0),
    invitations={"open": 1},
    disk=DiskFigures(1000, 400, {"runs": 30}),
    runs=[],
    at=1000.0,
)


def told(figures: FleetFigures) -> dict[tuple[str, ...], float]:
    """(name, values of the labels in the order of their names) -> value."""
    found = {}
    for family in text_string_to_metric_families(exposition(figures).decode()):
        for sample in family.samples:
            found[(sample.name, *(value for _, value in sorted(sample.labels.items())))] = sample.value
    return found


def figures_of(directory: Path, **changes: object) -> RunFigures:
    location = RunLocation(directory.name, directory.name, directory, "served")
    run = summary_of(location, Activity(running=bool(changes.get("running"))))
    return RunFigures.of(run, JournalReader(directory).contents(), stored=5)


def test_a_fleet_is_told_in_figures() -> None:
    found = told(FLEET)
    assert found["penchant_part_up", "gateway"] == 1
    assert found["penchant_part_up", "superlink"] == 0
    assert found["penchant_ready",] == 0
    assert (found["penchant_attention", "bad"], found["penchant_attention", "warn"]) == (1, 0)
    assert (found["penchant_members",], found["penchant_members_revoked",]) == (7, 1)
    assert found["penchant_remaining_seconds", "member_list"] == 600
    assert found["penchant_age_seconds", "member_list"] == 100
    assert (found["penchant_requests_waiting", "enrolment"], found["penchant_requests_oldest_seconds",]) == (
        2,
        60,
    )
    assert (found["penchant_disk_free_bytes",], found["penchant_disk_used_bytes", "runs"]) == (400, 30)
    assert [found["penchant_runs", state] for state in ("running", "failed", "damaged")] == [0, 0, 0]


def test_what_a_silent_superlink_does_not_say_is_no_zero() -> None:
    assert ("penchant_devices_online",) not in told(FLEET)
    known = replace(FLEET, devices=DeviceFigures(7, 1, 6, 0))
    assert (told(known)["penchant_devices_registered",], told(known)["penchant_devices_online",]) == (6, 0)


def test_a_run_is_told_by_its_journal(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "spring", 2)
    journal = Journal(directory)
    journal.note(FACT, PrivacyFigures(8.0, 1e-5, 1.25, 20, 9, 0.0125, 0.75).encode())
    journal.begin(3, "main")
    journal.fail(3, 1, "too few")
    journal.begin(3, "main")
    journal.stage(3, 2, "keys", 34)
    journal.answered(3, 2, "keys", 30, over=True)
    journal.close()
    write_waiting(directory, Waiting(3, 34, (1, 2), (), (), 0.0, 10.0))
    found = told(replace(FLEET, runs=[figures_of(directory, running=True)]))
    expected = {
        ("penchant_run_running", "spring"): 1,
        ("penchant_run_rounds", "spring"): 9,
        ("penchant_run_rounds_settled", "spring"): 2,
        ("penchant_run_attempts_total", "spring", "finished"): 2,
        ("penchant_run_attempts_total", "spring", "failed"): 1,
        ("penchant_run_cohort", "spring"): 34,
        ("penchant_run_survivors", "spring"): 33,
        ("penchant_run_devices_lost_total", "spring", "masked"): 2,
        ("penchant_run_devices_lost_total", "spring", "keys"): 0,
        ("penchant_run_bytes_total", "up", "spring"): 1_132_000,
        ("penchant_run_epsilon", "spring"): 8,
        ("penchant_run_stage_asked", "spring", "keys"): 34,
        ("penchant_run_stage_answered", "spring", "keys"): 30,
        ("penchant_run_devices_ready", "spring"): 2,
        ("penchant_run_devices_needed", "spring"): 34,
        ("penchant_run_stored_bytes", "spring"): 5,
        ("penchant_runs", "running"): 1,
    }
    assert {key: found[key] for key in expected} == expected
    spent = PrivacyFigures(8.0, 1e-5, 1.25, 20, 9, 0.0125, 0.75).spent(4)
    assert found["penchant_run_epsilon_spent", "spring"] == spent
    assert {key[2] for key in found if key[0] == "penchant_run_stage_seconds"} == {
        "keys",
        "shares",
        "masked",
        "confirm",
        "unmask",
    }


def test_a_run_without_noise_or_rounds_says_neither(tmp_path: Path) -> None:
    found = told(replace(FLEET, runs=[figures_of(make_run(tmp_path / "new", 0))]))
    assert found["penchant_run_rounds_settled", "new"] == 0
    for name in ("epsilon", "epsilon_spent", "accuracy", "cohort", "round_seconds", "devices_ready"):
        assert (f"penchant_run_{name}", "new") not in found, name


def test_labels_are_bounded_whatever_a_journal_says(tmp_path: Path) -> None:
    """Stages and codes that this version does not know are one label; runs beyond the latest have none."""
    directory = make_run(tmp_path / "odd", 0)
    journal = Journal(directory)
    journal.begin(1, "main")
    made_up = {f"stage-{number}": 1 for number in range(50)}
    journal.finish(log(1, dropped={**made_up, "keys": 2}, aborts={**made_up, "POLICY": 3}), shared(1.0))
    journal.close()
    odd = figures_of(directory)
    found = told(replace(FLEET, runs=[odd]))
    assert found["penchant_run_devices_lost_total", "odd", "other"] == 50
    assert found["penchant_run_devices_lost_total", "odd", "keys"] == 2
    assert found["penchant_run_aborts_total", "POLICY", "odd"] == 3
    assert found["penchant_run_aborts_total", "other", "odd"] == 50
    many = [replace(odd, name=f"run-{number}", touched=float(number)) for number in range(200)]
    many[3] = replace(many[3], state="running")
    found = told(replace(FLEET, runs=many))
    named = {key[1] for key in found if key[0] == "penchant_run_rounds"}
    assert named == {"run-3", *(f"run-{number}" for number in range(200 - RUNS_MOST + 1, 200))}
    assert found["penchant_runs", "stopped"] == 199


def test_every_name_is_there_before_it_has_a_value() -> None:
    """A rule that names a metric which is not there is silent for ever."""
    text = exposition(FLEET).decode()
    for name in ("penchant_run_epsilon_spent", "penchant_run_aborts_total", "penchant_devices_online"):
        assert f"# TYPE {name} " in text
