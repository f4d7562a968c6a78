"""The compose file and the Helm chart, as far as they can be judged where neither is run.

Helm is in no package of Debian: `rendered` knows the few constructs that the chart uses, refuses every other
one, and what it makes is held against Kubernetes' own schemas.
"""

from __future__ import annotations

import itertools
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from system.test_units import refuse_unknown_command

pytestmark = pytest.mark.system

ROOT = Path(__file__).resolve().parents[2]
FLEET = ROOT / "deploy" / "fleet"
CHART = FLEET / "helm"
TEMPLATES = sorted((CHART / "templates").iterdir())
KUBERNETES = ("1.27", "1.30", "1.34", "1.37")
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

# --- compose --------------------------------------------------------------------------------------

COMPOSE: dict[str, Any] = yaml.safe_load((FLEET / "compose" / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
KEYS = {
    "image", "build", "restart", "init", "read_only", "cap_drop", "security_opt", "tmpfs", "volumes",
    "network_mode", "command", "entrypoint", "depends_on", "healthcheck", "ports", "secrets", "profiles",
}  # fmt: skip


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_contained_and_starts_what_there_is(name: str) -> None:
    service = SERVICES[name]
    assert set(service) <= KEYS
    assert service["image"] == f"penchant-server:{VERSION}"
    assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    assert service["security_opt"] == ["no-new-privileges:true"]
    if name != "network":
        refuse_unknown_command(service["command"])
    build = service["build"]
    assert ((FLEET / "compose" / build["context"]).resolve() / build["dockerfile"]).is_file()


def test_the_whole_server_is_there_and_nothing_is_open_that_need_not_be() -> None:
    parts = {
        service["command"][-1] for name, service in SERVICES.items() if "--only" in service.get("command", [])
    }
    assert parts == {"superlink", "executor", "enrol", "gateway", "queue"}
    assert SERVICES["network"]["ports"] == ["8443:8443", "127.0.0.1:8900:8900"]
    beside = {name for name, service in SERVICES.items() if service.get("network_mode") == "service:network"}
    assert beside == set(SERVICES) - {"network", "attend"}
    assert [name for name in SERVICES if name != "network" and "ports" in SERVICES[name]] == []


def test_the_authority_has_no_network_and_its_key_is_nobody_else_s() -> None:
    attend = SERVICES["attend"]
    assert (attend["network_mode"], attend["profiles"]) == ("none", ["attend"])
    targets = {one["target"]: one["volume"]["subpath"] for one in attend["volumes"] if isinstance(one, dict)}
    assert targets == {"/requests": "server/requests", "/answers": "server/answers"}
    for name, service in SERVICES.items():
        assert name == "attend" or not any(str(one).startswith("authority") for one in service["volumes"])


def test_what_services_refer_to_is_declared() -> None:
    for name, service in SERVICES.items():
        wanted = service.get("depends_on", {})
        for other, how in wanted.items() if isinstance(wanted, dict) else [(one, {}) for one in wanted]:
            assert other in SERVICES, name
            assert how.get("condition") != "service_healthy" or "healthcheck" in SERVICES[other], (
                name,
                other,
            )
        assert set(service.get("secrets", ())) <= set(COMPOSE["secrets"])
        for secret in re.findall(r"/run/secrets/(\w+)", json.dumps(service.get("command", []))):
            assert secret in service["secrets"]


@pytest.mark.parametrize("name", [name for name in SERVICES if "healthcheck" in SERVICES[name]])
def test_a_health_check_is_a_program_that_parses(name: str) -> None:
    how, program, *words = SERVICES[name]["healthcheck"]["test"]
    assert how == "CMD"
    if program == "penchant":
        refuse_unknown_command(words)
        assert words[-1] == name or words[:2] == ["authority", "health"]
    else:
        assert (program, words[0]) == ("python", "-c")
        compile(words[1], name, "exec")


def test_every_part_that_runs_has_a_health_check() -> None:
    assert {name for name in SERVICES if "healthcheck" not in SERVICES[name]} == {"network"}
    pod = next(one for one in objects(values(attend__enabled=True)) if one["kind"] == "StatefulSet")
    containers = pod["spec"]["template"]["spec"]["containers"]
    assert [one["name"] for one in containers if "livenessProbe" not in one] == []
    for one in containers:
        command = one["livenessProbe"].get("exec", {}).get("command", ["penchant", "server", "health", "x"])
        assert command[0] == "penchant"
        refuse_unknown_command(command[1:])


# --- the chart ------------------------------------------------------------------------------------


def values(**changes: Any) -> dict[str, Any]:
    """values.yaml, with other values by their dotted keys."""
    found = yaml.safe_load((CHART / "values.yaml").read_text())
    for key, value in changes.items():
        table, _, name = key.partition("__")
        found[table][name] = value
    return found


def looked_up(path: str, tables: dict[str, Any]) -> Any:
    found: Any = tables
    for part in path.strip().lstrip(".").split("."):
        found = found[part]  # a name that values.yaml lacks is an error here
    return found


def rendered(text: str, given: dict[str, Any]) -> str:
    """A template with values in their places: if and end, toYaml … | nindent N, and names."""
    tables = {"Values": given, "Release": {"Name": "fleet"}}
    lines, shown = [], [True]
    for line in text.splitlines():
        found = re.fullmatch(r"\s*\{\{- (if (?P<path>\.Values\.[\w.]+)|end) \}\}", line)
        if found and found["path"]:
            shown.append(shown[-1] and bool(looked_up(found["path"], tables)))
        elif found:
            shown.pop()
        elif shown[-1]:
            lines.append(_filled(line, tables))
    assert shown == [True], "every if has its end"
    return "\n".join(lines)


def _filled(line: str, tables: dict[str, Any]) -> str:
    block = re.fullmatch(r"\s*\{\{- toYaml (\.Values\.[\w.]+) \| nindent (\d+) \}\}", line)
    if block:
        text = yaml.safe_dump(looked_up(block[1], tables))
        return "\n".join(" " * int(block[2]) + one for one in text.splitlines())
    line = re.sub(
        r"\{\{ (\.(?:Values|Release)\.[\w.]+) \}\}", lambda name: str(looked_up(name[1], tables)), line
    )
    assert "{{" not in line, line
    return line


def objects(given: dict[str, Any]) -> list[dict[str, Any]]:
    texts = [rendered(path.read_text(), given) for path in TEMPLATES]
    return [one for text in texts for one in yaml.safe_load_all(text) if one is not None]


CASES: list[dict[str, Any]] = [
    {"console__enabled": console, "attend__enabled": attend, "signals__enabled": signals}
    for console, attend, signals in itertools.product((True, False), repeat=3)
]
CASES += [
    {"storage__className": "fast", "console__providerSecret": "penchant-provider"},
    {"gateway__serviceType": "ClusterIP", "gateway__trafficPolicy": "", "gateway__port": 443},
]


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("changes", CASES, ids=str)
def test_the_chart_makes_what_kubernetes_takes(changes: dict[str, Any], version: str) -> None:
    made = objects(values(**changes))
    for one in made:
        kubernetes_validate.validate(one, version, strict=True)
    kinds = [one["kind"] for one in made]
    assert kinds.count("Service") == 1 + changes.get("console__enabled", True)
    assert {"StatefulSet", "NetworkPolicy"} <= set(kinds)


def pod(**changes: Any) -> dict[str, Any]:
    (found,) = [one for one in objects(values(**changes)) if one["kind"] == "StatefulSet"]
    template: dict[str, Any] = found["spec"]["template"]["spec"]
    return template


def test_every_container_is_contained_and_starts_what_there_is() -> None:
    spec = pod(attend__enabled=True, signals__enabled=True, console__providerSecret="p")
    names = [one["name"] for one in spec["containers"]]
    assert names == ["superlink", "executor", "enrol", "gateway", "queue", "signals", "console", "attend"]
    volumes = {one["name"] for one in spec["volumes"]} | {"fleet"}
    for container in spec["containers"]:
        refuse_unknown_command(container["args"])
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["image"] == f"penchant-server:{VERSION}"
        assert {one["name"] for one in container["volumeMounts"]} <= volumes
        assert "limits" in container["resources"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["automountServiceAccountToken"] is False


def test_the_authority_s_key_is_mounted_only_where_it_is_asked_for() -> None:
    assert "authority" not in json.dumps(pod())
    spec = pod(attend__enabled=True)
    for container in spec["containers"]:
        mounts = [one["mountPath"] for one in container["volumeMounts"]]
        assert ("/var/lib/authority" in mounts) == (container["name"] == "attend")
        assert container["name"] != "attend" or "/var/lib/penchant" not in mounts


def test_probes_ask_what_is_served() -> None:
    containers = {one["name"]: one for one in pod()["containers"]}
    for name in ("superlink", "enrol", "gateway", "console"):
        assert {"startupProbe", "livenessProbe"} <= set(containers[name]), name
    for container in containers.values():
        ports = {one["name"] for one in container.get("ports", ())}
        for probe in (container[key] for key in container if key.endswith("Probe")):
            if "exec" in probe:
                program, *words = probe["exec"]["command"]
                assert program == "penchant"
                refuse_unknown_command(words)
            else:
                assert (probe.get("tcpSocket") or probe["httpGet"])["port"] in ports
    host = containers["console"]["livenessProbe"]["httpGet"]["httpHeaders"]
    assert host == [{"name": "Host", "value": "console.example.org"}]


def test_services_lead_to_ports_of_the_pod() -> None:
    made = objects(values())
    ports = {port["name"] for one in pod()["containers"] for port in one.get("ports", ())}
    for service in (one for one in made if one["kind"] == "Service"):
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


def test_the_values_are_those_of_the_schema_and_no_others() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    jsonschema.validate(values(), schema)
    for wrong in (
        {"console__host": "https://x"},
        {"storage__size": "big"},
        {"gateway__port": 0},
        {"attend__on": True},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(values(**wrong), schema)


def test_the_chart_has_the_version_of_the_package() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["apiVersion"], chart["type"]) == ("v2", "application")
    assert chart["version"] == chart["appVersion"] == values()["image"]["tag"] == VERSION


@pytest.mark.parametrize(
    "line", ["{{ include 'x' . }}", "{{- range .Values.a }}", "{{ .Values.nothing.there }}"]
)
def test_what_is_not_understood_is_not_passed_over(line: str) -> None:
    with pytest.raises((AssertionError, KeyError)):
        rendered(line, values())
