"""What takes the server to production is accepted by the tools that will read it, on every variant."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards import build
from dashboards import rules as kubernetes_rules

from .conftest import Rendering
from .ops import ACTION, dashboards, distinct, docker_compose, expressions, filled, load, panels, passes, rules, tool
from .support import DEFAULT, MINIMAL, OTHER_VALUES, ROOT, Answers, render_file, run, variants

COMPOSE = {"GRAFANA_ADMIN_PASSWORD": "not-a-secret"}
"""What compose reads from .env, which a rendering does not have yet."""

BALANCED = ("-f", "docker-compose.yml", "-f", "ops/load-balancer/docker-compose.yml")

YAMLLINT = """
extends: default
rules:
  braces: {max-spaces-inside: 1}
  comments: {min-spaces-from-content: 1}
  document-start: disable
  line-length: {max: 140}
  truthy: {check-keys: false}
"""

CLOSING_SECONDS = 4
"""What a server needs after its grace is over: one for the calls that are stopped, three to close connections."""


@pytest.mark.slow
def test_prometheus_accepts_its_configuration_and_the_rules_pass_their_tests(
    each_rendering: Sequence[Rendering], tmp_path: Path
) -> None:
    promtool = tool("promtool")
    for rendering in distinct(each_rendering, "ops/prometheus/"):
        folder = Path(shutil.copytree(rendering.first / "ops/prometheus", tmp_path / rendering.name))
        passes(promtool, "check", "config", "prometheus.yml", cwd=folder)
        passes(promtool, "check", "rules", *sorted(folder.glob("rules/*.yml")), cwd=folder)
        for source in rule_tests(folder):
            shutil.copy(source, folder / "tests")
        passes(promtool, "test", "rules", *sorted(folder.glob("tests/*.yml")), cwd=folder)


def rule_tests(folder: Path) -> list[Path]:
    """Return the files of `tests/rules` for the rules in a folder `ops/prometheus`: one for each, of the same name."""
    names = sorted(path.name for path in folder.glob("rules/*.yml"))
    return [ROOT / "tests/rules" / name for name in names]


def test_alertmanager_accepts_its_configuration(each_rendering: Sequence[Rendering]) -> None:
    for rendering in distinct(each_rendering, "ops/alertmanager/"):
        passes(tool("amtool"), "check-config", "ops/alertmanager/alertmanager.yml", cwd=rendering.first)


def test_each_alert_is_tested_firing_and_not_firing(each_rendering: Sequence[Rendering]) -> None:
    for rendering in distinct(each_rendering, "ops/prometheus/"):
        alerts = {(path.name, rule["alert"]) for path, rule in rules(rendering.first) if "alert" in rule}
        tested = {True: set[tuple[str, str]](), False: set[tuple[str, str]]()}
        for path in rule_tests(rendering.first / "ops/prometheus"):
            for case in load(path)["tests"]:
                for expected in case.get("alert_rule_test", []):
                    tested[bool(expected["exp_alerts"])].add((path.name, expected["alertname"]))
        assert alerts == tested[True]
        assert alerts == tested[False]


def test_each_alert_says_what_to_do(each_rendering: Sequence[Rendering]) -> None:
    for rendering in distinct(each_rendering, "ops/prometheus/", "docs/RUNBOOK.md"):
        alerts = {rule["alert"]: rule for _, rule in rules(rendering.first) if "alert" in rule}
        for name, rule in alerts.items():
            assert rule["labels"]["severity"] in ("critical", "warning")
            assert rule["annotations"].keys() == {"summary", "description", "runbook"}
            assert rule["annotations"]["runbook"] == f"docs/RUNBOOK.md#{name.lower()}"
        runbook = rendering.files["docs/RUNBOOK.md"].decode()
        assert re.findall(r"^## (\w+)$", runbook, re.MULTILINE) == sorted(alerts, key=runbook.index)


def test_the_runbook_covers_the_features_of_the_project() -> None:
    def page(name: str) -> str:
        return render_file("docs/RUNBOOK.md", variants()[name])

    for word in ("request_id", '"level"'):
        assert word in page("default")
        assert word not in page("default-enable_logging-False")
    assert "kubectl" not in page("default")
    assert "docker compose logs" in page("default")
    assert "kubectl -n weather-station logs -l app.kubernetes.io/name=weather-station " in page("everything")


@pytest.mark.slow
def test_a_feature_brings_its_own_alerts(renderings: Mapping[str, Rendering]) -> None:
    def alerts(name: str) -> set[str]:
        return {rule["alert"] for _, rule in rules(renderings[name].first) if "alert" in rule}

    requests = {"HighErrorRate", "ClientErrorsHigh", "HighLatency"}
    always = requests | {"ServerDown", "NotReady", "ConnectionLimitReached", "ManyRejections"}
    default = always | {"TokensStale", "CircuitOpen", "RateLimitSaturated", "UpstreamRetriesHigh"}
    default.add("TelemetryExportFails")
    assert alerts("minimal") == set()
    assert alerts("minimal-enable_metrics-True") == always
    assert alerts("default") == default
    assert alerts("everything") == default | {"RateLimitStoreDown", "AuditDropping"}
    assert alerts("default-upstream_auth-token_exchange") == default | {"UpstreamCredentialsFail"}
    sign_in = {"SignInFails", "StolenRefreshToken", "RegistrationFlood"}
    assert alerts("default-auth-oauth") == default - {"TokensStale"} | sign_in


def with_env_file(rendering: Rendering, directory: Path) -> Path:
    """A copy of the project with an empty .env: other workers read the rendering itself at the same time."""
    project = directory / rendering.name
    shutil.copytree(rendering.first, project)
    (project / ".env").touch()
    return project


def test_compose_accepts_its_file_alone_and_with_the_load_balancer(
    each_rendering: Sequence[Rendering], tmp_path: Path
) -> None:
    compose = docker_compose()
    for rendering in distinct(each_rendering, "docker-compose.yml", "ops/load-balancer/"):
        project = with_env_file(rendering, tmp_path)
        passes(compose, "config", "--quiet", cwd=project, **COMPOSE)
        passes(compose, *BALANCED, "config", "--quiet", cwd=project, **COMPOSE)
        balanced = passes(compose, *BALANCED, "config", "--format", "json", cwd=project, **COMPOSE)
        services = json.loads(balanced)["services"]
        assert "ports" not in services["server"]
        for service in services.values():
            hardened(service)


def test_only_the_load_balancer_network_is_trusted(renderings: Mapping[str, Rendering], tmp_path: Path) -> None:
    project = with_env_file(renderings["everything"], tmp_path)
    for chosen, subnet in ({}, "172.31.250.0/24"), ({"BALANCER_SUBNET": "10.9.8.0/24"}, "10.9.8.0/24"):
        output = passes(docker_compose(), *BALANCED, "config", "--format", "json", cwd=project, **COMPOSE, **chosen)
        made = json.loads(output)
        assert made["services"]["server"]["environment"]["TRUSTED_PROXIES"] == subnet
        assert made["networks"]["balancer"]["ipam"]["config"] == [{"subnet": subnet}]
        assert {name for name, one in made["services"].items() if "balancer" in one.get("networks", {})} == {
            "server",
            "load-balancer",
        }
        assert "store" in made["services"]["server"]["networks"]


def test_the_documented_compose_command_includes_an_override(
    renderings: Mapping[str, Rendering], tmp_path: Path
) -> None:
    project = with_env_file(renderings["default"], tmp_path)
    (project / "docker-compose.override.yml").write_text("services: {server: {environment: {MINE: here}}}\n", "utf-8")
    (listed,) = re.findall(r"`COMPOSE_FILE=(\S+)`", (project / "docs/deployment.md").read_text("utf-8"))
    output = passes(docker_compose(), "config", "--format", "json", cwd=project, **COMPOSE, COMPOSE_FILE=listed)
    services = json.loads(output)["services"]
    assert services["server"]["environment"]["MINE"] == "here"
    assert "load-balancer" in services


def hardened(service: dict[str, Any]) -> None:
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "unless-stopped"
    assert re.fullmatch(r"[1-9]\d*:\d+", service["user"])
    assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory", "pids"}
    assert re.search(r":(v?\d+\.\d+|local$)", service["image"]), f"floating tag: {service['image']}"
    assert not service.get("privileged")
    for port in service.get("ports", []):
        assert port["host_ip"] == "127.0.0.1"


def test_an_alertmanager_of_the_owner_replaces_the_bundled_one(
    renderings: Mapping[str, Rendering], tmp_path: Path
) -> None:
    project = with_env_file(renderings["default"], tmp_path)
    page = (project / "docs" / "deployment.md").read_text("utf-8")
    (block,) = re.findall(r"```yaml\n(services:\n  alertmanager:.*?)```", page, re.DOTALL)
    override = tmp_path / "docker-compose.override.yml"
    override.write_text(block, "utf-8")
    files = ("-f", "docker-compose.yml", "-f", override)
    merged = passes(docker_compose(), *files, "config", "--format", "json", cwd=project, **COMPOSE)
    volumes = json.loads(merged)["services"]["alertmanager"]["volumes"]
    mounts = {mount["target"]: mount["source"] for mount in volumes}
    assert mounts["/etc/alertmanager"] == str(project / "alertmanager")


def test_compose_needs_a_password_and_an_environment(renderings: Mapping[str, Rendering]) -> None:
    project = renderings["default"].first
    done = run(docker_compose(), "config", "--quiet", cwd=project)
    assert done.returncode != 0
    assert "--init-env" in done.stderr
    done = run(docker_compose(), "config", "--quiet", cwd=project, **COMPOSE)
    assert done.returncode != 0
    assert ".env not found" in done.stderr


def test_the_stop_timeout_exceeds_the_drain_time(renderings: Mapping[str, Rendering]) -> None:
    project = renderings["everything"].first
    compose = load(project / "docker-compose.yml")["services"]["server"]
    pod = load(project / "ops/kubernetes/base/deployment.yml")["spec"]["template"]["spec"]
    example = (project / ".env.example").read_text("utf-8")
    (grace,) = map(int, re.findall(r"#SHUTDOWN_GRACE_SECONDS=(\d+)", example))
    pause = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    (stop,) = map(int, re.findall(r"#STOP_GRACE_PERIOD=(\d+)s", example))
    assert compose["stop_grace_period"] == f"${{STOP_GRACE_PERIOD:-{stop}s}}"
    assert stop > grace + CLOSING_SECONDS
    assert pod["terminationGracePeriodSeconds"] > pause + grace + CLOSING_SECONDS


def test_the_load_balancer_waits_longer_than_a_tool_may_take(renderings: Mapping[str, Rendering]) -> None:
    project = renderings["default"].first
    example = (project / ".env.example").read_text("utf-8")
    proxy, tool_timeout, silence = (
        int(re.findall(rf"^#{name}=(\d+)$", example, re.MULTILINE)[0])
        for name in ("PROXY_TIMEOUT_SECONDS", "TOOL_TIMEOUT_SECONDS", "SSE_AFTER_SECONDS")
    )
    compose = (project / "ops/load-balancer/docker-compose.yml").read_text("utf-8")
    assert f"PROXY_TIMEOUT_SECONDS: ${{PROXY_TIMEOUT_SECONDS:-{proxy}}}\n" in compose
    text = (project / "ops/load-balancer/haproxy.cfg").read_text("utf-8")
    for side in ("client", "server"):
        assert f'timeout {side} "${{PROXY_TIMEOUT_SECONDS-{proxy}}}s"' in text
    assert proxy > tool_timeout > silence


def test_services_follow_the_answers() -> None:
    def services(name: str) -> set[str]:
        return set(yaml.safe_load(render_file("docker-compose.yml", variants()[name]))["services"])

    watching = {"prometheus", "alertmanager", "grafana"}
    assert services("minimal") == {"server"}
    assert services("default") == {"server", "jaeger"} | watching
    assert services("default-enable_metrics-False") == {"server", "jaeger"}
    assert services("default-enable_telemetry-False") == {"server"} | watching
    assert services("everything") == {"server", "jaeger", "redis"} | watching
    assert services("default-auth-oauth") == {"server", "jaeger", "redis"} | watching


def test_the_compose_file_passes_schema_and_security_checks(each_rendering: Sequence[Rendering]) -> None:
    files = [rendering.first / "docker-compose.yml" for rendering in distinct(each_rendering, "docker-compose.yml")]
    passes(tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", *files, cwd=ROOT)
    passes(tool("compose-lint"), "--fail-on", "high", *files, cwd=ROOT)


def test_dockerfile_is_clean_whatever_the_description(each_rendering: Sequence[Rendering]) -> None:
    found = list(distinct(each_rendering, "Dockerfile"))
    passes(tool("hadolint"), *[rendering.first / "Dockerfile" for rendering in found], cwd=ROOT)
    for rendering in found:
        text = rendering.files["Dockerfile"].decode()
        assert "# syntax" not in text
        assert re.search(r"^USER [1-9]\d*:\d+$", text, re.MULTILINE)
    awkward = render_file("Dockerfile", DEFAULT | {"project_description": OTHER_VALUES["project_description"]})
    assert r'description="Says \"hello\", C:\\temp and {{ braces }} — # nothing: ' in awkward


def test_the_image_contains_only_files_of_the_wheel(renderings: Mapping[str, Rendering]) -> None:
    lines = renderings["default"].files[".dockerignore"].decode().splitlines()
    allowed = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert "*" in lines
    assert allowed == {"src", "pyproject.toml", "uv.lock", "README.md", "LICENSE*"}


@pytest.mark.slow
def test_yaml_is_clean(each_rendering: Sequence[Rendering]) -> None:
    projects = [rendering.first for rendering in distinct(each_rendering, "ops/", "docker-compose.yml", ".github/")]
    passes(tool("yamllint"), "--strict", "-d", YAMLLINT, *projects, cwd=ROOT)


def test_workflows_are_clean_and_their_actions_pinned(each_rendering: Sequence[Rendering]) -> None:
    """Those of projects, and this repository's own, which use the same versions."""
    folders = [ROOT / ".github", *(rendering.first / ".github" for rendering in distinct(each_rendering, ".github/"))]
    workflows = [path for folder in folders for path in sorted((folder / "workflows").glob("*.yml"))]
    dependabot = [folder / "dependabot.yml" for folder in folders]
    passes(tool("zizmor"), "--offline", "--no-progress", *folders, cwd=ROOT)
    passes(tool("jactionlint"), "--shellcheck=", *workflows, cwd=ROOT)
    passes(tool("check-jsonschema"), "--builtin-schema", "vendor.github-workflows", *workflows, cwd=ROOT)
    passes(tool("check-jsonschema"), "--builtin-schema", "vendor.dependabot", *dependabot, cwd=ROOT)
    forms = [path for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml"]
    passes(tool("check-jsonschema"), "--builtin-schema", "vendor.github-issue-forms", *forms, cwd=ROOT)
    pins: dict[str, set[tuple[str, str]]] = {}
    for workflow in workflows:
        text = workflow.read_text("utf-8")
        assert load(workflow)["permissions"] == {}
        for action, reference, version in ACTION.findall(text):
            assert re.fullmatch(r"[0-9a-f]{40}", reference), action
            assert version, action
            pins.setdefault(action, set()).add((reference, version))
    assert [action for action, used in pins.items() if len(used) > 1] == []


def test_kubernetes_accepts_base_and_overlay(each_rendering: Sequence[Rendering], tmp_path: Path) -> None:
    for number, rendering in enumerate(distinct(each_rendering, "ops/kubernetes/")):
        for folder in ("base", "overlays/example"):
            built = passes(tool("kubectl"), "kustomize", f"ops/kubernetes/{folder}", cwd=rendering.first)
            file = tmp_path / f"{number}-{Path(folder).name}.yml"
            file.write_text(built, "utf-8")
            output = passes(tool("kubernetes-validate"), "--strict", file, cwd=tmp_path)
            unknown = set(re.findall(r"schema for kind (\w+)", output))
            assert unknown <= {"ServiceMonitor", "PrometheusRule"}
            pods = [one for one in yaml.safe_load_all(built) if one["kind"] == "Deployment"]
            assert len(pods) == 1
            confined(pods[0]["spec"]["template"]["spec"])


@pytest.mark.parametrize("data", [DEFAULT, MINIMAL], ids=["default", "minimal"])
def test_kubernetes_does_not_override_the_upstream_url(data: Answers) -> None:
    """With `BASE_URL` set, the starter takes it for another API, and looks up places there too."""
    (settings,) = yaml.safe_load(render_file("ops/kubernetes/base/kustomization.yml", data))["configMapGenerator"]
    assert [literal for literal in settings.get("literals", []) if literal.startswith("BASE_URL")] == []


@pytest.mark.parametrize("signals", ["traces", "metrics", "all"])
@pytest.mark.parametrize("endpoint", ["", "https://collector.example.com"])
def test_a_collector_of_traces_gets_nothing_else(signals: str, endpoint: str) -> None:
    """Unless an answer names the collector, compose and Kubernetes export to Jaeger, which takes traces only."""
    data = DEFAULT | {"telemetry_signals": signals, "telemetry_endpoint": endpoint}
    base = yaml.safe_load(render_file("ops/kubernetes/base/kustomization.yml", data))
    compose = yaml.safe_load(render_file("docker-compose.yml", data))["services"]["server"]["environment"]
    pod = dict(literal.split("=", 1) for literal in base["configMapGenerator"][0]["literals"])
    off = {} if signals == "traces" or endpoint else {"OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}
    exporters = {name: value for name, value in pod.items() if name.endswith("_EXPORTER")}
    assert exporters == off
    defaults = {name: value for name, value in compose.items() if name.endswith("_EXPORTER")}
    assert defaults == {name: f"${{{name}:-{value}}}" for name, value in off.items()}


@pytest.mark.parametrize(
    ("answers", "ports"),
    [
        ({}, [443, 4318]),
        ({"telemetry_protocol": "grpc", "rate_limit_backend": "redis"}, [443, 4317, 6379]),
        ({"telemetry_endpoint": "https://collector.example.com"}, [443]),
        ({"telemetry_endpoint": "http://collector:14318/otlp", "upstream_base_url": "http://api"}, [443, 80, 14318]),
        ({"enable_telemetry": False, "upstream_base_url": "https://api.example.com:8443/v1"}, [443, 8443]),
    ],
)
def test_the_network_policy_allows_the_configured_destinations(answers: dict[str, Any], ports: list[int]) -> None:
    policy = yaml.safe_load(render_file("ops/kubernetes/base/network-policy.yml", DEFAULT | answers))
    _names, anywhere = policy["spec"]["egress"]
    assert [entry["port"] for entry in anywhere["ports"]] == ports
    assert [kind for peer in anywhere["to"] for kind in peer] == ["namespaceSelector", "ipBlock", "ipBlock"]


def test_the_documented_patch_allows_more_destinations(renderings: Mapping[str, Rendering], tmp_path: Path) -> None:
    project = tmp_path / "project"
    shutil.copytree(renderings["everything"].first, project)
    page = (project / "docs/deployment.md").read_text("utf-8")
    (block,) = re.findall(r"```yaml\npatches:\n(.*?)```", page, re.DOTALL)
    overlay = project / "ops/kubernetes/overlays/example/kustomization.yml"
    overlay.write_text(overlay.read_text("utf-8") + block, "utf-8")
    made = passes(tool("kubectl"), "kustomize", overlay.parent, cwd=project)
    (policy,) = [one for one in yaml.safe_load_all(made) if one["kind"] == "NetworkPolicy"]
    assert [entry["port"] for rule in policy["spec"]["egress"] for entry in rule["ports"]][-1] == 5432
    assert len(policy["spec"]["ingress"]) == 3


def test_the_autoscaler_reacts_before_a_core_is_saturated(renderings: Mapping[str, Rendering]) -> None:
    base = renderings["everything"].first / "ops/kubernetes/base"
    (cpu,) = load(base / "autoscaler.yml")["spec"]["metrics"]
    (container,) = load(base / "deployment.yml")["spec"]["template"]["spec"]["containers"]
    assert cpu["resource"]["target"] == {"type": "AverageValue", "averageValue": "700m"}
    assert container["resources"]["limits"]["cpu"] == "1"


@pytest.mark.parametrize("file", ["ingress.yml", "http-route.yml"])
@pytest.mark.parametrize("auth", ["none", "token", "jwt", "oauth"])
def test_only_what_clients_need_is_public(file: str, auth: str, tmp_path: Path) -> None:
    data = DEFAULT | {"include_kubernetes": True, "auth": auth}
    text = render_file(f"ops/kubernetes/overlays/example/{file}", data)
    made = yaml.safe_load(text)
    (rule,) = made["spec"]["rules"]
    if made["kind"] == "Ingress":
        (tmp_path / file).write_text(text, "utf-8")
        passes(tool("kubernetes-validate"), "--strict", tmp_path / file, cwd=tmp_path)
        paths = [each["path"] for each in rule["http"]["paths"]]
        targets = {each["backend"]["service"]["name"] for each in rule["http"]["paths"]}
    else:
        paths = [match["path"]["value"] for match in rule["matches"]]
        targets = {each["name"] for each in rule["backendRefs"]}
    assert paths[0] == "/mcp"
    assert ("/.well-known" in paths) is (auth in ("jwt", "oauth"))
    assert not {"/", "/metrics", "/health", "/livez", "/readyz"} & set(paths)
    service = yaml.safe_load(render_file("ops/kubernetes/base/service.yml", data))
    assert targets == {service["metadata"]["name"]}
    assert "8000" in str(service["spec"]["ports"])


def test_the_example_with_an_ingress_is_built(renderings: Mapping[str, Rendering], tmp_path: Path) -> None:
    shutil.copytree(renderings["everything"].first / "ops/kubernetes", tmp_path / "kubernetes")
    overlay = tmp_path / "kubernetes/overlays/example"
    file = overlay / "kustomization.yml"
    text = re.sub(r"^  # - (ingress|http-route)", r"  - \1", file.read_text("utf-8"), flags=re.M)
    file.write_text(text, "utf-8")
    made = list(yaml.safe_load_all(passes(tool("kubectl"), "kustomize", overlay, cwd=tmp_path)))
    outside = [one for one in made if one["kind"] in ("Ingress", "HTTPRoute")]
    assert {one["metadata"]["namespace"] for one in outside} == {"weather-station"}
    assert len(outside) == 2


@pytest.mark.parametrize(
    ("answers", "secrets"),
    [
        ({}, ["AUTH_TOKENS", "REQUEST_STATE_KEYS"]),
        ({"auth": "jwt", "rate_limit_backend": "redis"}, ["REQUEST_STATE_KEYS", "REDIS_URL"]),
        ({"auth": "oauth"}, ["OAUTH_CLIENT_SECRET", "OAUTH_KEYS", "REQUEST_STATE_KEYS", "REDIS_URL"]),
        ({"auth": "none", "upstream_api_key_env": "API_KEY"}, ["REQUEST_STATE_KEYS", "API_KEY"]),
        ({"auth": "none"}, ["REQUEST_STATE_KEYS"]),
        ({"auth": "none", "profile": "minimal"}, []),
    ],
)
def test_the_example_makes_the_secrets_that_the_server_reads_as_files(
    answers: dict[str, Any], secrets: list[str]
) -> None:
    data = DEFAULT | {"include_kubernetes": True} | answers
    overlay = render_file("ops/kubernetes/overlays/example/kustomization.yml", data)
    head = overlay.split("\napiVersion")[0]
    assert re.findall(r"--from-(?:literal|file)=(\w+)=", head) == secrets
    commands = re.findall(r"kubectl .*?(apply|create)", head)
    assert commands == (["apply", "create"] if secrets else []), "the namespace first, then what lies in it"
    literals = yaml.safe_load(overlay)["configMapGenerator"][0]["literals"]
    files = dict(literal.split("_FILE=") for literal in literals if "_FILE=" in literal)
    pod = yaml.safe_load(render_file("ops/kubernetes/base/deployment.yml", data))["spec"]["template"]["spec"]
    (mount,) = [mount for mount in pod["containers"][0]["volumeMounts"] if mount["name"] == "secrets"]
    assert files == {name: f"{mount['mountPath']}/{name}" for name in secrets}
    (volume,) = [volume for volume in pod["volumes"] if volume["name"] == "secrets"]
    assert not secrets or f"secret generic {volume['secret']['secretName']}" in head
    assert mount["readOnly"] is True
    assert "subPath" not in mount, "a change of the secret would not reach the server"


@pytest.mark.parametrize("name", ["default", "everything", pytest.param("default-auth-oauth", marks=pytest.mark.slow)])
def test_the_server_shares_no_network_with_what_people_look_at(
    renderings: Mapping[str, Rendering], tmp_path: Path, name: str
) -> None:
    project = with_env_file(renderings[name], tmp_path)
    made = json.loads(passes(docker_compose(), "config", "--format", "json", cwd=project, **COMPOSE))
    networks = {service: set(content["networks"]) for service, content in made["services"].items()}
    shared = {service: networks[service] & networks["server"] for service in networks if service != "server"}
    expected = {
        "redis": {"store"},
        "jaeger": {"traces"},
        "prometheus": {"metrics"},
        "alertmanager": set(),
        "grafana": set(),
    }
    assert shared == {service: expected[service] for service in shared}
    for network in set().union(*shared.values()):
        assert made["networks"][network]["internal"] is True
    if "prometheus" in made["services"]:
        prometheus = made["services"]["prometheus"]
        (listens,) = [part for part in prometheus["command"] if part.startswith("--web.listen-address=")]
        alias = listens.partition("=")[2].partition(":")[0]
        assert prometheus["networks"]["monitoring"]["aliases"] == [alias]
        assert alias not in str(prometheus["networks"]["metrics"])
        for path in ("ops/prometheus/prometheus.yml", "ops/grafana/provisioning/datasources/prometheus.yml"):
            assert f"{alias}:9090" in (project / path).read_text("utf-8")


def test_a_release_s_prometheus_finds_what_the_example_labels(
    renderings: Mapping[str, Rendering], tmp_path: Path
) -> None:
    shutil.copytree(renderings["everything"].first / "ops/kubernetes", tmp_path / "kubernetes")
    overlay = tmp_path / "kubernetes/overlays/example"
    file = overlay / "kustomization.yml"
    text, uncommented = re.subn(r"^# (labels:|  - pairs:|      release: )", r"\1", file.read_text("utf-8"), flags=re.M)
    assert uncommented == 3
    file.write_text(text, "utf-8")
    made = list(yaml.safe_load_all(passes(tool("kubectl"), "kustomize", overlay, cwd=tmp_path)))
    read = [one for one in made if one["kind"] in ("ServiceMonitor", "PrometheusRule")]
    assert len(read) == 1 + len(list((renderings["everything"].first / "ops/prometheus/rules").iterdir()))
    assert {one["metadata"]["labels"]["release"] for one in read} == {"kube-prometheus-stack"}
    (pods,) = [one for one in made if one["kind"] == "Deployment"]
    assert "release" not in pods["spec"]["selector"]["matchLabels"]


def test_alerts_ignore_other_servers_in_the_cluster(renderings: Mapping[str, Rendering]) -> None:
    slug = "weather-station"
    made = built(renderings["everything"], "base", "PrometheusRule")
    rules = [rule for one in made for group in one["spec"]["groups"] for rule in group["rules"]]
    (down,) = [rule["expr"] for rule in rules if rule.get("alert") == "ServerDown"]
    selector = f'up{{job="{slug}", component="mcp-server"}}'
    assert down == f"{selector} == 0 or absent({selector})"
    promql_parser.parse(down)
    (monitor,) = built(renderings["everything"], "base", "ServiceMonitor")
    assert {"targetLabel": "job", "replacement": slug} in monitor["spec"]["endpoints"][0]["relabelings"]


def built(rendering: Rendering, folder: str, kind: str) -> list[dict[str, Any]]:
    """The resources of a kind that kustomize makes of a folder of ops/kubernetes."""
    text = passes(tool("kubectl"), "kustomize", f"ops/kubernetes/{folder}", cwd=rendering.first)
    return [resource for resource in yaml.safe_load_all(text) if resource["kind"] == kind]


def confined(pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    probes = {kind: container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")}
    assert probes == {"startup": "/livez", "liveness": "/livez", "readiness": "/readyz"}
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"].keys() == {"requests", "limits"}


def test_the_container_has_minimal_privileges(renderings: Mapping[str, Rendering]) -> None:
    project = renderings["everything"].first
    pod = load(project / "ops/kubernetes/base/deployment.yml")["spec"]["template"]["spec"]
    assert (pod["enableServiceLinks"], pod["automountServiceAccountToken"]) == (False, False)
    server = load(project / "docker-compose.yml")["services"]["server"]
    assert server["environment"]["GRAFANA_ADMIN_PASSWORD"] == ""


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254",
        "100.100.100.200",
        "168.63.129.16",
        "192.0.0.192",
        "fd00:ec2::254",
        "fd20:ce::254",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b::6464:64c8",
        "64:ff9b::a83f:8110",
        "64:ff9b::c000:c0",
    ],
)
def test_no_metadata_service_can_be_reached(address: str) -> None:
    policy = yaml.safe_load(render_file("ops/kubernetes/base/network-policy.yml", DEFAULT))
    blocks = [to["ipBlock"] for rule in policy["spec"]["egress"] for to in rule["to"] if "ipBlock" in to]
    assert blocks
    for block in blocks:
        if ip_address(address) in ip_network(block["cidr"]):
            assert any(ip_address(address) in ip_network(network) for network in block["except"])


def test_kubernetes_has_the_same_rules_as_prometheus(each_rendering: Sequence[Rendering]) -> None:
    for rendering in distinct(each_rendering, "ops/kubernetes/", "ops/prometheus/rules/"):
        made = (rendering.first / "ops/kubernetes/base/rules").glob("*.yml")
        resources = {path.name: load(path) for path in made if path.name != "kustomization.yml"}
        source = {path.name: load(path) for path in (rendering.first / "ops/prometheus/rules").glob("*.yml")}
        if (rendering.first / "ops/kubernetes").exists():
            assert {name: resource["spec"] for name, resource in resources.items()} == source


def test_generated_files_are_those_that_are_committed() -> None:
    for folder, files in ((build.DESTINATION, build.build()), (kubernetes_rules.DESTINATION, kubernetes_rules.build())):
        for name, text in files.items():
            assert (folder / name).read_text("utf-8") == text, f"{name}: run python -m dashboards.build"
    committed = {path.name for path in build.DESTINATION.glob("*.json")}
    assert committed == build.build().keys()


@pytest.mark.parametrize("name", sorted(build.build()))
def test_a_dashboard_has_descriptions_and_survives_a_round_trip(name: str) -> None:
    text = (build.DESTINATION / name).read_text("utf-8")
    dashboard = json.loads(text)
    again = JSONEncoder(sort_keys=True, indent=2).encode(Dashboard.from_json(dashboard)) + "\n"
    assert json.loads(again)["panels"] == dashboard["panels"]
    assert dashboard["schemaVersion"] == 42
    assert dashboard["uid"] == f"mcp-{name.removesuffix('.json').replace('_', '-')}"
    chosen = {variable["name"] for variable in dashboard["templating"]["list"]}
    numbers = [panel["id"] for panel in dashboard["panels"]]
    assert len(numbers) == len(set(numbers))
    for panel in panels(dashboard):
        assert panel["description"], panel["title"]
        if panel["type"] in ("timeseries", "stat"):
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        used = set(re.findall(r"\$\{?([a-z]\w*)", json.dumps([panel["targets"], panel["title"], panel["datasource"]])))
        assert used <= chosen, panel["title"]


def test_every_expression_parses_and_knows_its_metrics(each_rendering: Sequence[Rendering]) -> None:
    sources = "".join(
        path.read_text("utf-8") for path in (ROOT / "template/src/{{ package_name }}/production").rglob("*.py")
    )
    known = set(re.findall(r'"(mcp_\w+)"', sources)) | {"up"}
    for rendering in distinct(each_rendering, "ops/prometheus/", "ops/grafana/"):
        recorded = {rule["record"] for _, rule in rules(rendering.first) if "record" in rule}
        asked = [rule["expr"] for _, rule in rules(rendering.first)]
        for dashboard in dashboards(rendering.first).values():
            asked += [filled(expression) for _, expression in expressions(dashboard)]
        for expression in asked:
            promql_parser.parse(expression)
            names = set(re.findall(r"(?<![\w:\"])((?:\w+:)?mcp_\w+(?::\w+)?|up)(?=[{\[) ]|$)", expression))
            bare = {re.sub(r"_(bucket|count)$", "", name) for name in names if ":" not in name}
            assert bare <= known, expression
            assert {name for name in names if ":" in name} <= recorded, expression


LABELS = {"mcp_method_name", "mcp_resource_template"}
"""Labels whose names begin as those of metrics do."""

OF_SESSIONS = {"mcp_server_session_duration_seconds"}
"""Metrics that `observe/metrics.py` declares for servers with sessions only."""


def metrics_in(text: str) -> set[str]:
    names = {re.sub(r"_(bucket|count|sum)$", "", name) for name in re.findall(r"(?<![\w:])mcp_[a-z_]+(?!\w)", text)}
    return names - LABELS


def declared_metrics(production: Path) -> set[str]:
    """Return the metrics that the modules of a production layer declare: a name in quotation marks is one."""
    sources = "".join(path.read_text("utf-8") for path in sorted(production.rglob("*.py")))
    return {name for quoted in re.findall(r'"(mcp_\w+)"', sources) for name in metrics_in(quoted)}


def metrics_of_panels(folder: Path) -> set[str]:
    boards = [json.loads(path.read_text("utf-8")) for path in folder.glob("*.json")]
    return {name for board in boards for _, expression in expressions(board) for name in metrics_in(expression)}


def test_every_metric_has_a_panel() -> None:
    declared = declared_metrics(ROOT / "template/src/{{ package_name }}/production")
    assert len(declared) > 30
    assert declared - metrics_of_panels(build.DESTINATION) == set()


def test_every_metric_of_a_project_has_a_panel_in_it(each_rendering: Sequence[Rendering]) -> None:
    for rendering in distinct(each_rendering, "src/", "ops/grafana/"):
        folder = rendering.first / "ops/grafana/dashboards"
        if folder.exists():
            declared = declared_metrics(next(rendering.first.glob("src/*/production")))
            absent = set() if rendering.data.get("session_mode") == "stateful" else OF_SESSIONS
            assert declared - absent - metrics_of_panels(folder) == set(), rendering.name


@pytest.mark.slow
def test_dashboards_and_sources_follow_the_answers(renderings: Mapping[str, Rendering]) -> None:
    def shown(name: str) -> set[str]:
        return set(dashboards(renderings[name].first))

    assert shown("minimal") == set()
    assert shown("minimal-enable_metrics-True") == {"metrics", "upstream"}
    assert shown("default") == {
        *("metrics", "upstream", "rate_limit", "retry", "circuit_breaker", "background", "telemetry", "auth_token")
    }
    assert shown("everything") == shown("default") | {
        *("rate_limit_redis", "authorization", "audit", "auth_introspection")
    }
    assert shown("default-auth-oauth") == (shown("default") - {"auth_token"}) | {"auth_oauth"}
    assert shown("default-upstream_auth-per_caller") == shown("default") | {"credentials_source"}
    assert shown("default-upstream_auth-token_exchange") == shown("default") | {
        *("credentials_source", "credentials_token")
    }
    assert shown("default-session_mode-stateful") == shown("default") | {"sessions"}
    assert shown("default-openapi_spec-other") == shown("default") | {"openapi"}
    sources = "ops/grafana/provisioning/datasources/telemetry.yml"
    assert sources in renderings["default"].files
    assert sources not in renderings["default-enable_telemetry-False"].files


def test_thresholds_of_panels_are_those_of_the_alerts(renderings: Mapping[str, Rendering]) -> None:
    limits = {
        rule["alert"]: float(found[1])
        for _, rule in rules(renderings["everything"].first)
        if (found := re.search(r"(?:ratio_rate5m|p99_rate5m|\)) > (0\.\d+|\d+)(?:$|\s+and)", rule["expr"]))
        and "alert" in rule
    }
    panel_limits: dict[str, set[float]] = {}
    for dashboard in dashboards(renderings["everything"].first).values():
        for panel in panels(dashboard):
            for alert in re.findall(r"\b(?:Alert|threshold of|line): ?(\w+)|threshold of (\w+)", panel["description"]):
                steps = panel["fieldConfig"]["defaults"].get("thresholds", {}).get("steps", [])
                name = next(filter(None, alert))
                panel_limits.setdefault(name, set()).update(step["value"] for step in steps if step.get("value"))
    for alert in ("HighErrorRate", "HighLatency", "RateLimitSaturated", "RateLimitStoreDown", "UpstreamRetriesHigh"):
        assert panel_limits[alert] == {limits[alert]}, alert
