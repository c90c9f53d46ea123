"""The manifests agree with each other and with the code: names, ports, paths, settings, times, metrics."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.app import create_api
from service.dialects.table import enabled_dialects
from service.http.auth import OPEN_PATHS, required_scope
from service.http.server import GRACE_S, LINGER_S
from service.settings import PREFIX, Settings, refuse_unknown
from tests.conftest import REPOSITORY
from tests.deploy.manifests import (
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
# From the end of the drain to the end of the process: an engine gets a second, and Python shuts down.
EXIT_S = 5


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Return the settings of the container's environment; an unknown or invalid one raises."""
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


def test_every_selector_matches_the_pods_of_the_deployment() -> None:
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


def test_the_monitor_selects_the_service() -> None:
    selector = MANIFESTS["ServiceMonitor"]["spec"]["selector"]["matchLabels"]
    assert selector
    assert selector.items() <= MANIFESTS["Service"]["metadata"]["labels"].items()


def test_only_the_autoscaler_scales_the_deployment() -> None:
    target = MANIFESTS["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert target == {
        "apiVersion": DEPLOYMENT["apiVersion"],
        "kind": "Deployment",
        "name": DEPLOYMENT["metadata"]["name"],
    }
    assert "replicas" not in DEPLOYMENT["spec"]


def test_draining_a_node_and_an_update_leave_no_gap() -> None:
    assert (
        MANIFESTS["PodDisruptionBudget"]["spec"]["maxUnavailable"]
        < (MANIFESTS["HorizontalPodAutoscaler"]["spec"]["minReplicas"])
    )
    assert DEPLOYMENT["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


# Ports and paths


def test_ports_lead_to_the_port_of_the_service(settings: Settings) -> None:
    (service,), (endpoint,) = MANIFESTS["Service"]["spec"]["ports"], MANIFESTS["ServiceMonitor"]["spec"]["endpoints"]
    assert endpoint["port"] == service["name"]
    assert port_named(service["targetPort"]) == settings.port
    assert settings.host == "0.0.0.0", "clients of a pod are outside of it"
    opened = {port["port"] for rule in MANIFESTS["NetworkPolicy"]["spec"]["ingress"] for port in rule["ports"]}
    assert opened == {service["targetPort"]}


@pytest.mark.parametrize("probe", PROBES)
def test_probes_use_paths_that_exist_and_need_no_key(probe: str, settings: Settings) -> None:
    request = CONTAINER[probe]["httpGet"]
    assert port_named(request["port"]) == settings.port
    assert request["path"] in paths(settings) & OPEN_PATHS


def test_each_probe_has_the_right_path() -> None:
    assert {probe: CONTAINER[probe]["httpGet"]["path"] for probe in PROBES} == {
        "startupProbe": "/healthz",
        "livenessProbe": "/healthz",
        "readinessProbe": "/readyz",
    }


def test_the_monitor_scrapes_a_path_that_exists(settings: Settings) -> None:
    (endpoint,) = MANIFESTS["ServiceMonitor"]["spec"]["endpoints"]
    assert endpoint["path"] in paths(settings)
    assert int(endpoint["scrapeTimeout"][:-1]) < int(endpoint["interval"][:-1])


# Settings


def test_the_settings_suit_several_replicas(settings: Settings) -> None:
    assert settings.threads == int(CONTAINER["resources"]["requests"]["cpu"])
    assert [dialect.name for dialect in enabled_dialects(settings) if dialect.has_cohorts] == [], (
        "samples of one cohort would arrive at different replicas"
    )
    assert (settings.otlp_endpoint is None) == (MANIFESTS["NetworkPolicy"]["spec"]["egress"] == [])


def test_the_environment_holds_only_settings() -> None:
    assert POD["enableServiceLinks"] is False, "the name of the Service would add variables with our prefix"
    assert all(name.startswith(PREFIX) for name in environment_of(CONTAINER))


def test_the_grace_period_covers_drain_and_exit(settings: Settings) -> None:
    before_s = CONTAINER["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain_s = max(settings.drain_timeout_s, LINGER_S)
    connections_s = int(settings.drain_timeout_s) + GRACE_S
    needed_s = before_s + drain_s + connections_s + EXIT_S
    assert needed_s <= POD["terminationGracePeriodSeconds"] < needed_s + 15


def test_the_drain_covers_a_full_queue(settings: Settings) -> None:
    assert settings.max_wait_s <= settings.drain_timeout_s


def test_a_failed_start_fails_the_rollout() -> None:
    startup = CONTAINER["startupProbe"]
    assert DEPLOYMENT["spec"]["progressDeadlineSeconds"] > startup["periodSeconds"] * startup["failureThreshold"]


def test_memory_covers_all_bodies_that_the_settings_admit(settings: Settings) -> None:
    (limit,) = re.findall(r"^(\d+)Gi$", CONTAINER["resources"]["limits"]["memory"])
    assert settings.max_buffered_bytes + settings.max_cohort_bytes < int(limit) * 2**30 / 4


# Permissions


def test_the_process_has_no_permission_it_does_not_need() -> None:
    pod, own = POD["securityContext"], CONTAINER["securityContext"]
    assert pod["runAsNonRoot"] is True
    assert min(pod["runAsUser"], pod["runAsGroup"], pod["fsGroup"]) >= 10000, "an id that no node uses"
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert own == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert POD["automountServiceAccountToken"] is False


def test_only_tmp_is_writable() -> None:
    (tmp,) = POD["volumes"]
    assert "sizeLimit" in tmp["emptyDir"]
    assert CONTAINER["volumeMounts"] == [{"name": tmp["name"], "mountPath": "/tmp"}]


# Keys


def test_keys_are_mounted_where_the_setting_points_and_follow_their_secret() -> None:
    patch = read(KEYS / "deployment.yaml")
    assert patch["metadata"]["name"] == DEPLOYMENT["metadata"]["name"]
    container, (volume,) = container_of(patch), patch["spec"]["template"]["spec"]["volumes"]
    assert container["name"] == CONTAINER["name"]
    ((name, path),) = environment_of(container).items()
    refuse_unknown({name: path})
    (mount,) = container["volumeMounts"]
    assert mount == {"name": volume["name"], "mountPath": str(Path(path).parent), "readOnly": True}
    assert volume["secret"]["defaultMode"] == 0o400


def test_the_monitor_with_keys_differs_only_in_its_key() -> None:
    (plain,), (guarded,) = (
        manifest["spec"]["endpoints"] for manifest in (MANIFESTS["ServiceMonitor"], read(KEYS / "servicemonitor.yaml"))
    )
    assert guarded.pop("authorization")["credentials"].keys() == {"name", "key"}
    assert guarded == plain
    assert required_scope(plain["path"]) == "metrics"
    assert "--scopes metrics" in DOCUMENT.read_text()


# Metrics


def targets() -> dict[str, str]:
    """Return metric -> the average that the autoscaler aims at."""
    metrics = [one["pods"] for one in MANIFESTS["HorizontalPodAutoscaler"]["spec"]["metrics"]]
    return {one["metric"]["name"]: one["target"]["averageValue"] for one in metrics}


def quantity(text: str) -> float:
    number, suffix = re.fullmatch(r"([\d.]+)(m|k|M|)", text).groups()  # type: ignore[union-attr]
    return float(number) * {"m": 1e-3, "": 1, "k": 1e3, "M": 1e6}[suffix]


def test_the_adapter_derives_the_autoscalers_metrics_from_series_that_exist() -> None:
    rules = {rule.metric: rule for rule in adapter_rules()}
    assert set(targets()) == set(rules)
    assert {rule.series for rule in rules.values()} <= exposed()
    assert "tinyrm_queue_tokens" in rules


def test_replicas_are_added_before_work_is_refused(settings: Settings) -> None:
    assert 0 < quantity(targets()["tinyrm_queue_tokens"]) < settings.max_queue_tokens / 10
    assert 0 < quantity(targets()["tinyrm_engine_busy_ratio"]) < 1


def evaluated(rule: AdapterRule, samples: dict[str, str], expected: dict[str, float], folder: Path) -> None:
    """Evaluate the rule with promtool at 5 minutes, over a sample every 15 s.

    samples: pod -> values in promtool's notation.
    """
    selector = 'namespace="ours",pod=~"' + "|".join(samples) + '"'
    series = [
        {"series": f'{rule.series}{{namespace="ours",pod="{pod}",endpoint="http"}}', "values": values}
        for pod, values in samples.items()
    ]
    theirs = {"series": f'{rule.series}{{namespace="theirs",pod="a",endpoint="http"}}', "values": "1000000x40"}
    question = {
        "expr": f"round({rule.expression(selector)}, 0.001)",
        "eval_time": "5m",
        "exp_samples": [{"labels": f'{{pod="{pod}"}}', "value": value} for pod, value in expected.items()],
    }
    test: dict[str, Any] = {"interval": "15s", "input_series": [*series, theirs], "promql_expr_test": [question]}
    file = folder / "test.yaml"
    file.write_text(yaml.safe_dump({"tests": [test]}))
    done = subprocess.run(["promtool", "test", "rules", file], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("metric", "samples", "expected"),
    [
        # Each replica for itself, and a past queue is forgotten after a minute.
        ("tinyrm_queue_tokens", {"a": "8000x15 0x24", "b": "20000x40"}, {"a": 0, "b": 20_000}),
        # The mean of a minute, whether or not its first sample counts (before Prometheus 3 it did).
        ("tinyrm_queue_tokens", {"a": "0x15 4000 0 8000 0 8000 0x20"}, {"a": 4000}),
        # 13.5 of every 15 s in runs; and an idle replica, which is 0 and not absent.
        ("tinyrm_engine_busy_ratio", {"a": "0+13.5x40", "b": "0x40"}, {"a": 0.9, "b": 0}),
    ],
)
def test_the_adapter_computes_what_the_autoscaler_compares(
    metric: str, samples: dict[str, str], expected: dict[str, float], tmp_path: Path
) -> None:
    if not shutil.which("promtool"):
        pytest.skip("no promtool, which evaluates PromQL")
    (rule,) = [rule for rule in adapter_rules() if rule.metric == metric]
    evaluated(rule, samples, expected, tmp_path)
