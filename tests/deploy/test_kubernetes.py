"""The manifests agree with each other and with the code: names, ports, paths, settings, times, metrics."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.app import create_api
from service.dialects.table import spoken
from service.http.auth import OPEN_PATHS, required_scope
from service.http.server import GRACE_S, LINGER_S
from service.settings import PREFIX, Settings, refuse_unknown
from tests.conftest import REPOSITORY
from tests.deploy.manifests import (
    FOLDER,
    KEYS,
    AdapterRule,
    adapter_rules,
    applied,
    container_of,
    environment_of,
    exposed,
    read,
)

DOCUMENT = REPOSITORY / "docs" / "kubernetes.md"
MANIFESTS = applied()
DEPLOYMENT = MANIFESTS["Deployment"]
POD = DEPLOYMENT["spec"]["template"]["spec"]
CONTAINER = container_of(DEPLOYMENT)
LABELS = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
PROBES = [name for name in CONTAINER if name.endswith("Probe")]
# From the end of the drain to the end of the process: an engine is given a second, and Python takes its leave.
LEAVE_S = 5


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Settings:
    """What the container's environment says; an unknown or wrong one raises."""
    for name in Settings.model_fields:
        monkeypatch.delenv(PREFIX + name.upper(), raising=False)
    environment = environment_of(CONTAINER)
    refuse_unknown(environment)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return Settings()


def paths(settings: Settings) -> set[str]:
    return {path for path, operations in create_api(settings).openapi()["paths"].items() if "get" in operations}


def port_named(name: str) -> int:
    (port,) = [port["containerPort"] for port in CONTAINER["ports"] if port["name"] == name]
    assert isinstance(port, int)
    return port


# Names


def test_everything_selects_the_pods_of_the_deployment() -> None:
    (spread,) = POD["topologySpreadConstraints"]
    selectors = {
        "Deployment": DEPLOYMENT["spec"]["selector"]["matchLabels"],
        "spread": spread["labelSelector"]["matchLabels"],
        "Service": MANIFESTS["Service"]["spec"]["selector"],
        "PodDisruptionBudget": MANIFESTS["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        "NetworkPolicy": MANIFESTS["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    }
    assert {name: selector.items() <= LABELS.items() and bool(selector) for name, selector in selectors.items()} == (
        dict.fromkeys(selectors, True)
    )


def test_monitor_selects_the_service() -> None:
    selector = MANIFESTS["ServiceMonitor"]["spec"]["selector"]["matchLabels"]
    assert selector
    assert selector.items() <= MANIFESTS["Service"]["metadata"]["labels"].items()


def test_autoscaler_scales_the_deployment_and_nobody_else_does() -> None:
    target = MANIFESTS["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert target == {
        "apiVersion": DEPLOYMENT["apiVersion"], "kind": "Deployment", "name": DEPLOYMENT["metadata"]["name"],
    }  # fmt: skip
    assert "replicas" not in DEPLOYMENT["spec"]


def test_a_node_may_be_drained_and_an_update_made_without_a_gap() -> None:
    assert (
        MANIFESTS["PodDisruptionBudget"]["spec"]["maxUnavailable"]
        < (MANIFESTS["HorizontalPodAutoscaler"]["spec"]["minReplicas"])
    )
    assert DEPLOYMENT["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


# Ports and paths


def test_ports_lead_to_where_the_service_listens(settings: Settings) -> None:
    (service,), (endpoint,) = MANIFESTS["Service"]["spec"]["ports"], MANIFESTS["ServiceMonitor"]["spec"]["endpoints"]
    assert endpoint["port"] == service["name"]
    assert port_named(service["targetPort"]) == settings.port
    assert settings.host == "0.0.0.0", "a pod is reached from outside of it"
    opened = {port["port"] for rule in MANIFESTS["NetworkPolicy"]["spec"]["ingress"] for port in rule["ports"]}
    assert opened == {service["targetPort"]}


@pytest.mark.parametrize("probe", PROBES)
def test_probes_ask_what_is_there_and_open_to_all(probe: str, settings: Settings) -> None:
    asked = CONTAINER[probe]["httpGet"]
    assert port_named(asked["port"]) == settings.port
    assert asked["path"] in paths(settings) & OPEN_PATHS


def test_each_probe_asks_the_right_question() -> None:
    assert {probe: CONTAINER[probe]["httpGet"]["path"] for probe in PROBES} == {
        "startupProbe": "/healthz", "livenessProbe": "/healthz", "readinessProbe": "/readyz",
    }  # fmt: skip


def test_metrics_are_scraped_where_they_are(settings: Settings) -> None:
    (endpoint,) = MANIFESTS["ServiceMonitor"]["spec"]["endpoints"]
    assert endpoint["path"] in paths(settings)
    assert int(endpoint["scrapeTimeout"][:-1]) < int(endpoint["interval"][:-1])


# Settings


def test_settings_are_some_and_several_replicas_agree_with_them(settings: Settings) -> None:
    assert settings.threads == int(CONTAINER["resources"]["requests"]["cpu"])
    assert [dialect.name for dialect in spoken(settings) if dialect.has_cohorts] == [], (
        "samples of one cohort would arrive at different replicas and never meet"
    )
    assert (settings.otlp_endpoint is None) == (MANIFESTS["NetworkPolicy"]["spec"]["egress"] == [])


def test_environment_holds_settings_and_nothing_that_looks_like_one() -> None:
    assert POD["enableServiceLinks"] is False, "the Service's own name would make variables of ours"
    assert all(name.startswith(PREFIX) for name in environment_of(CONTAINER))


def test_there_is_time_to_leave(settings: Settings) -> None:
    before_s = CONTAINER["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain_s = max(settings.drain_timeout_s, LINGER_S)
    connections_s = int(settings.drain_timeout_s) + GRACE_S
    needed_s = before_s + drain_s + connections_s + LEAVE_S
    assert needed_s <= POD["terminationGracePeriodSeconds"] < needed_s + 15


def test_a_queue_of_accepted_work_fits_into_the_drain(settings: Settings) -> None:
    assert settings.max_wait_s <= settings.drain_timeout_s


def test_a_start_that_fails_is_told_as_such() -> None:
    startup = CONTAINER["startupProbe"]
    assert DEPLOYMENT["spec"]["progressDeadlineSeconds"] > startup["periodSeconds"] * startup["failureThreshold"]


def test_memory_is_enough_for_every_body_the_settings_let_in(settings: Settings) -> None:
    (limit,) = re.findall(r"^(\d+)Gi$", CONTAINER["resources"]["limits"]["memory"])
    assert settings.max_buffered_bytes + settings.max_cohort_bytes < int(limit) * 2**30 / 4


# What the process may do


def test_process_may_as_little_as_possible() -> None:
    pod, own = POD["securityContext"], CONTAINER["securityContext"]
    assert pod["runAsNonRoot"] is True
    assert min(pod["runAsUser"], pod["runAsGroup"], pod["fsGroup"]) >= 10000, "an id that no node has"
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert own == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert POD["automountServiceAccountToken"] is False


def test_only_tmp_can_be_written() -> None:
    (tmp,) = POD["volumes"]
    assert "sizeLimit" in tmp["emptyDir"]
    assert CONTAINER["volumeMounts"] == [{"name": tmp["name"], "mountPath": "/tmp"}]


# Keys


def test_keys_are_mounted_where_they_are_looked_for_and_follow_their_secret() -> None:
    patch = read(KEYS / "deployment.yaml")
    assert patch["metadata"]["name"] == DEPLOYMENT["metadata"]["name"]
    container, (volume,) = container_of(patch), patch["spec"]["template"]["spec"]["volumes"]
    assert container["name"] == CONTAINER["name"]
    ((name, path),) = environment_of(container).items()
    refuse_unknown({name: path})
    (mount,) = container["volumeMounts"]
    assert mount == {"name": volume["name"], "mountPath": str(Path(path).parent), "readOnly": True}
    assert volume["secret"]["defaultMode"] == 0o400


def test_prometheus_shows_a_key_and_scrapes_as_before() -> None:
    (plain,), (guarded,) = (
        manifest["spec"]["endpoints"]
        for manifest in (MANIFESTS["ServiceMonitor"], read(KEYS / "servicemonitor.yaml"))
    )  # fmt: skip
    assert guarded.pop("authorization")["credentials"].keys() == {"name", "key"}
    assert guarded == plain
    assert required_scope(plain["path"]) == "metrics"
    assert "--scopes metrics" in DOCUMENT.read_text()


# Metrics


def wanted() -> dict[str, str]:
    """Metric -> the average that the autoscaler aims at."""
    metrics = [one["pods"] for one in MANIFESTS["HorizontalPodAutoscaler"]["spec"]["metrics"]]
    return {one["metric"]["name"]: one["target"]["averageValue"] for one in metrics}


def quantity(text: str) -> float:
    number, suffix = re.fullmatch(r"([\d.]+)(m|k|M|)", text).groups()  # type: ignore[union-attr]
    return float(number) * {"m": 1e-3, "": 1, "k": 1e3, "M": 1e6}[suffix]


def test_autoscaler_asks_for_metrics_that_the_adapter_makes_of_series_that_exist() -> None:
    rules = {rule.metric: rule for rule in adapter_rules()}
    assert set(wanted()) == set(rules)
    assert {rule.series for rule in rules.values()} <= exposed()
    assert "tinyrm_queue_tokens" in rules


def test_replicas_are_added_before_work_is_refused(settings: Settings) -> None:
    assert 0 < quantity(wanted()["tinyrm_queue_tokens"]) < settings.max_queue_tokens / 10
    assert 0 < quantity(wanted()["tinyrm_engine_busy_ratio"]) < 1


def evaluated(rule: AdapterRule, samples: dict[str, str], expected: dict[str, float], folder: Path) -> None:
    """promtool works the rule out at 5 minutes, over a sample every 15 s. samples: pod -> values in its notation."""
    selector = 'namespace="ours",pod=~"' + "|".join(samples) + '"'
    series = [
        {"series": f'{rule.series}{{namespace="ours",pod="{pod}",endpoint="http"}}', "values": values}
        for pod, values in samples.items()
    ]
    theirs = {"series": f'{rule.series}{{namespace="theirs",pod="a",endpoint="http"}}', "values": "1000000x40"}
    question = {
        "expr": f"round({rule.expression(selector)}, 0.001)", "eval_time": "5m",
        "exp_samples": [{"labels": f'{{pod="{pod}"}}', "value": value} for pod, value in expected.items()],
    }  # fmt: skip
    test: dict[str, Any] = {"interval": "15s", "input_series": [*series, theirs], "promql_expr_test": [question]}
    file = folder / "test.yaml"
    file.write_text(yaml.safe_dump({"tests": [test]}))
    done = subprocess.run(["promtool", "test", "rules", file], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("metric", "samples", "expected"),
    [
        # Each replica for itself, and what has run is forgotten after a minute.
        ("tinyrm_queue_tokens", {"a": "8000x15 0x24", "b": "20000x40"}, {"a": 0, "b": 20_000}),
        # The mean of a minute, whether or not the sample at its very beginning counts (before Prometheus 3 it did).
        ("tinyrm_queue_tokens", {"a": "0x15 4000 0 8000 0 8000 0x20"}, {"a": 4000}),
        # 13.5 s of every 15 in runs; and nothing to do, which is 0 and not nothing.
        ("tinyrm_engine_busy_ratio", {"a": "0+13.5x40", "b": "0x40"}, {"a": 0.9, "b": 0}),
    ],
)
def test_adapter_works_out_what_the_autoscaler_compares(
    metric: str, samples: dict[str, str], expected: dict[str, float], tmp_path: Path
) -> None:
    if not shutil.which("promtool"):
        pytest.skip("no promtool, which works PromQL out")
    (rule,) = [rule for rule in adapter_rules() if rule.metric == metric]
    evaluated(rule, samples, expected, tmp_path)


# The document


def test_document_names_what_exists() -> None:
    text = DOCUMENT.read_text()
    settings = {name.removeprefix(PREFIX).lower() for name in re.findall(r"TINYRM_[A-Z][A-Z_]*[A-Z]", text)}
    assert settings - {"service_host"} <= set(Settings.model_fields), "service_host: a variable of Kubernetes' making"
    assert set(re.findall(r"\btinyrm_[a-z_]+\b", text)) <= exposed() | set(wanted()) | {"tinyrm_shed_requests_total"}
    files = {file.name for file in FOLDER.rglob("*.yaml")}
    assert set(re.findall(r"[\w-]+\.yaml", text)) <= files
    assert {file.name for file in FOLDER.glob("*.yaml")} <= set(re.findall(r"[\w-]+\.yaml", text))
