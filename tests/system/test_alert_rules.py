"""The shipped alert rules as Prometheus itself reads them, and what they say of a fleet in trouble."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from support.fleet_directory import make_served_run, make_server

from penchant.deploy.fleet.fleet_watch import FleetWatch
from penchant.server.monitoring.metrics import exposition

pytestmark = pytest.mark.system

MONITORING = Path(__file__).resolve().parents[2] / "deploy" / "fleet" / "monitoring"

TROUBLE = """
rule_files: [{rules}]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - {{series: 'up{{job="penchant", instance="a"}}', values: '0x60'}}
      - {{series: 'penchant_part_up{{instance="a", part="gateway"}}', values: '0x60'}}
      - {{series: 'penchant_part_up{{instance="a", part="superlink"}}', values: '1x60'}}
      - {{series: 'penchant_remaining_seconds{{instance="a", what="member_list"}}', values: '86400x60'}}
      - {{series: 'penchant_remaining_seconds{{instance="a", what="gateway_certificate"}}', values: '-5x60'}}
      - {{series: 'penchant_run_devices_ready{{instance="a", run="r"}}', values: '2x60'}}
      - {{series: 'penchant_run_devices_needed{{instance="a", run="r"}}', values: '3x60'}}
      - {{series: 'penchant_run_cohort{{instance="a", run="r"}}', values: '10x60'}}
      - {{series: 'penchant_run_survivors{{instance="a", run="r"}}', values: '7x60'}}
      - {{series: 'penchant_runs{{instance="a", state="failed"}}', values: '0x29 1x9'}}
      - {{series: 'penchant_run_aborts_total{{instance="a", run="r", code="SIGNATURE"}}', values: '0x29 1x9'}}
      - {{series: 'penchant_run_aborts_total{{instance="a", run="r", code="POLICY"}}', values: '0x29 9x9'}}
    promql_expr_test:
      - expr: count by (alertname) (ALERTS{{alertstate="firing"}})
        eval_time: 35m
        exp_samples:
{expected}
"""
FIRING = (
    "PenchantSilent",
    "PenchantPartDown",
    "PenchantMemberListEnds",
    "PenchantCertificateEnds",
    "PenchantExpired",
    "PenchantRunWaits",
    "PenchantDevicesLost",
    "PenchantRunFailed",
    "PenchantOffence",
)


def promtool(*words: object, given: bytes = b"") -> str:
    done = subprocess.run(["promtool", *map(str, words)], input=given, capture_output=True, timeout=120)
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, said
    return said


def test_prometheus_takes_rules_and_scrape_example() -> None:
    assert "SUCCESS" in promtool("check", "rules", MONITORING / "alerts.yml")
    assert "SUCCESS" in promtool("check", "config", MONITORING / "prometheus.yml")


def test_prometheus_takes_what_metrics_tells(tmp_path: Path) -> None:
    server = make_server(tmp_path)
    make_served_run(server, "spring")
    promtool("check", "metrics", given=exposition(FleetWatch(server).look().figures))


def test_rules_fire_for_what_is_wrong_and_for_nothing_else(tmp_path: Path) -> None:
    indent = "          "
    expected = "\n".join(f"{indent}- {{labels: '{{alertname=\"{name}\"}}', value: 1}}" for name in FIRING)
    test = tmp_path / "trouble.yml"
    test.write_text(TROUBLE.format(rules=MONITORING / "alerts.yml", expected=expected))
    assert "SUCCESS" in promtool("test", "rules", test)
