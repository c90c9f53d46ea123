"""The chart renders valid objects that agree with the kustomization, the rules, the dashboards and the code."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.http.server import GRACE_S, LINGER_S
from service.settings import PREFIX, Settings, refuse_unknown
from tests.conftest import REPOSITORY
from tests.deploy.manifests import FOLDER, Manifest, adapter_rules, applied, container_of, read
from tests.deploy.programs import CHART, INSTALLED, Rendered, helm, refusal, rendered
from tests.deploy.test_kubernetes import EXIT_S, quantity
from tests.deploy.validation import NEWEST, OLDEST, quick_schemas, validate
from tests.support.file_server import COMMIT, file_server
from tests.support.processes import started
from tests.support.prometheus import DASHBOARDS, RULES, tool
from tinyrm import __version__
from tinyrm.places import find
from tools.kubernetes_files import MAPS, PROMETHEUS_RULE, SCHEMA, maps_text, rule_text, schema_text

HASH = "0123456789abcdef" * 4
CLAIM = {"persistentVolumeClaim": {"claimName": "bundles", "readOnly": True}}
GATEWAY = {"enabled": True, "parentRefs": [{"name": "edge", "namespace": "gateways"}], "hostnames": ["rm.example.org"]}
CANARY = {"enabled": True, "model": {"source": "/models/new"}}
# What somebody would set: each set is rendered and checked against the schemas.
VALUE_SETS: dict[str, Manifest] = {
    "defaults": {},
    "own image": {"image": {"repository": "registry.example/ml/tinyrm", "tag": "7", "pullSecrets": ["registry"]}},
    "pinned image": {"image": {"digest": f"sha256:{HASH}", "pullPolicy": "Always"}},
    "claim": {"model": {"source": "/models/mine", "volume": CLAIM}},
    "hub": {"model": {"source": f"hf://example/judge@{COMMIT}", "cache": {"size": "8Gi"}}},
    "address": {"model": {"source": f"https://example.org/judge.tar.gz#sha256={HASH}", "cache": {"volume": CLAIM}}},
    "keys": {"apiKeys": {"secret": "tinyrm-api-keys", "metricsSecret": "tinyrm-metrics-key", "testSecret": "test-key"}},
    "keda": {
        "autoscaling": {"type": "keda", "keda": {"authentication": "prometheus", "fallbackReplicas": 3}},
        "settings": {"TINYRM_STREAMS": 2},
    },
    "fixed": {"autoscaling": {"type": "none", "replicas": 3}, "monitoring": {"enabled": False, "dashboards": False}},
    "canary": {"model": {"source": "/models/old", "volume": CLAIM}, "canary": CANARY},
    "canary by weight": {"model": {"source": "/models/old", "volume": CLAIM}, "canary": CANARY, "route": GATEWAY},
    "gpu": {
        "image": {"tag": "gpu"},
        "gpu": {"enabled": True},
        "startup": {"timeoutSeconds": 901},
        "nodeSelector": {"accelerator": "h200"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "runtimeClassName": "nvidia",
    },
    "everything else": {
        "settings": {"TINYRM_OTLP_ENDPOINT": "http://collector:4318", "TINYRM_DRAIN_TIMEOUT_S": 45.5},
        "extraEnv": [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}}],
        "extraVolumes": [{"name": "certificates", "configMap": {"name": "certificates"}}],
        "extraVolumeMounts": [{"name": "certificates", "mountPath": "/etc/ssl/own", "readOnly": True}],
        "networkPolicy": {"egress": [{"ports": [{"port": 4318}]}], "ingress": [{"ports": [{"port": "http"}]}]},
        "service": {"type": "LoadBalancer", "port": 80, "annotations": {"example.org/internal": "true"}},
        "podLabels": {"team": "rl"},
        "podAnnotations": {"example.org/note": "hello"},
        "priorityClassName": "serving",
        "serviceAccountName": "tinyrm",
        "affinity": {"podAntiAffinity": {}},
        "monitoring": {"labels": {"release": "prometheus"}, "dashboardNamespace": "monitoring"},
        "global": {"of": "a parent chart"},
    },
}
NOT_BUILT_IN = {"ServiceMonitor", "PrometheusRule", "ScaledObject", "HTTPRoute"}
each_set = pytest.mark.parametrize("values", VALUE_SETS.values(), ids=VALUE_SETS)


def pod_of(objects: Rendered, deployment: str = "tinyrm") -> Manifest:
    spec: Manifest = objects.one("Deployment", deployment)["spec"]["template"]["spec"]
    return spec


# Validity


def test_helm_has_no_complaint_about_the_chart() -> None:
    done = helm("lint", "--strict", CHART)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_chart_has_the_version_of_the_library_and_of_kubernetes_that_the_manifests_need() -> None:
    chart = read(CHART / "Chart.yaml")
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)
    assert chart["kubeVersion"] == f">={OLDEST}.0-0"


@pytest.fixture
def schemas_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*quick_schemas())


@pytest.mark.usefixtures("schemas_read_once")
@pytest.mark.parametrize("version", [OLDEST, "1.33", NEWEST])
def test_rendered_objects_are_valid(version: str) -> None:
    """Sets of values share most objects, and each is checked once."""
    from kubernetes_validate import ValidationError

    distinct = {
        json.dumps(one): name
        for name, values in VALUE_SETS.items()
        for (kind, _), one in rendered(values).items()
        if kind not in NOT_BUILT_IN
    }
    assert len(distinct) > 2 * len(VALUE_SETS)
    for text, name in distinct.items():
        try:
            validate(json.loads(text), version)
        except ValidationError as error:
            pytest.fail(f"with the values of {name!r}: {error.message} at {list(error.path)}")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["defaults", "keys", "keda", "everything else"])
def test_rendered_objects_of_operators_are_valid(name: str) -> None:
    """The models keep what they know, so an unknown key would be missing from what they return."""
    # Here: every process of tests would spend seconds on it.
    from cloudcoil.models.keda.v1alpha1 import ScaledObject
    from cloudcoil.models.prometheus_operator.v1 import PrometheusRule, ServiceMonitor

    checked = set()
    for model in (ScaledObject, PrometheusRule, ServiceMonitor):
        for (kind, _), one in rendered(VALUE_SETS[name]).items():
            if kind == model.__name__:
                understood = model.model_validate(one).model_dump(mode="json", by_alias=True, exclude_unset=True)
                assert understood == one
                checked.add(kind)
    assert checked == {"PrometheusRule", "ServiceMonitor"} | ({"ScaledObject"} if name == "keda" else set())


def test_the_route_is_valid() -> None:
    file = INSTALLED / "HTTPRoute.js"
    if not file.exists():
        pytest.skip("no schema of HTTPRoute on this machine; `.ci/kubernetes.sh` installs it")
    import jsonschema

    text = file.read_text().partition("const schema = ")[2]
    schema, _ = json.JSONDecoder().raw_decode(text)
    route = rendered(VALUE_SETS["canary by weight"]).one("HTTPRoute")
    assert route["apiVersion"] in schema["properties"]["apiVersion"]["enum"]
    spec = {"additionalProperties": False, **schema["properties"]["spec"]}
    jsonschema.validate(route["spec"], spec)
    (rule,) = route["spec"]["rules"]
    assert set(rule) <= set(spec["properties"]["rules"]["items"]["properties"])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**route["spec"], "hostnames": ["Not A Host"]}, spec)


# The same as the kustomization


def plain(one: Any) -> Any:
    """Return an object without what only the chart adds, with quantities as numbers."""
    if isinstance(one, list):
        return [plain(each) for each in one]
    if not isinstance(one, dict):
        return one
    of_the_chart = {
        "app.kubernetes.io/instance",
        "app.kubernetes.io/version",
        "app.kubernetes.io/managed-by",
        "helm.sh/chart",
        "tinyrm-track",
        "imagePullPolicy",
        "serviceAccountName",
        "podTargetLabels",
    }
    kept = {key: plain(value) for key, value in one.items() if key not in of_the_chart}
    if "averageValue" in kept:
        kept["averageValue"] = pytest.approx(quantity(kept["averageValue"]))
    return kept


def test_the_defaults_are_those_of_the_kustomization() -> None:
    objects, others = rendered(), applied()
    environment = container_of(objects.one("Deployment"))["env"]
    container_of(others["Deployment"])["image"] += f":{__version__}"
    # The order of variables has no meaning. The image's own model is named, so that a look at the Deployment shows it.
    environment.remove({"name": "TINYRM_MODEL", "value": str(Settings.model_fields["model"].default)})
    for deployment in (objects.one("Deployment"), others["Deployment"]):
        container_of(deployment)["env"].sort(key=lambda one: one["name"])
    others["Service"]["spec"]["type"] = "ClusterIP"  # what Kubernetes takes if it is not given
    assert {kind: plain(objects.one(kind)) for kind in others} == {kind: plain(one) for kind, one in others.items()}


def test_only_the_stated_kinds_are_rendered() -> None:
    """A kind that the kustomization lacks is the test's pod, or a component."""
    assert rendered().kinds() - set(applied()) == {"Pod", "ConfigMap", "PrometheusRule"}


# Rules and dashboards


def test_the_rules_are_those_of_prometheus_with_links_to_the_site() -> None:
    rule = rendered({"docsUrl": "https://docs.example.org/"}).one("PrometheusRule")
    text = RULES.read_text()
    assert rule["spec"] == yaml.safe_load(text.replace("http://localhost:8080", "https://docs.example.org"))
    assert "{{ $labels." in str(rule["spec"]), "templates of Prometheus are not filled in by helm"


def test_prometheus_accepts_the_rendered_rules(tmp_path: Path) -> None:
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump(rendered().one("PrometheusRule")["spec"]))
    done = subprocess.run([tool("promtool"), "check", "rules", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_dashboard_is_in_a_map_that_grafanas_sidecar_finds() -> None:
    maps = [one for (kind, _), one in rendered().items() if kind == "ConfigMap"]
    assert all(one["metadata"]["labels"]["grafana_dashboard"] == "1" for one in maps)
    data = {name: json.loads(text) for one in maps for name, text in one["data"].items()}
    assert data == {f"tinyrm-{file.name}": json.loads(file.read_text()) for file in DASHBOARDS.glob("*.json")}


def test_a_packaged_chart_carries_rules_and_dashboards_themselves(tmp_path: Path) -> None:
    done = helm("package", CHART, "--destination", tmp_path)
    assert done.returncode == 0, done.stderr
    with tarfile.open(tmp_path / f"tinyrm-{__version__}.tgz") as archive:
        packed = {member.name: archive.extractfile(member) for member in archive.getmembers()}
        for name, source in {
            "rules.yml": RULES,
            **{f"dashboards/{file.name}": file for file in DASHBOARDS.glob("*.json")},
        }.items():
            file = packed[f"tinyrm/files/{name}"]
            assert file is not None
            assert file.read() == source.read_bytes()


# Settings


def accepted_settings(environment: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Return the settings of a container's environment; an unknown or invalid one raises."""
    values = {name: value for name, value in environment.items() if isinstance(value, str)}
    refuse_unknown(values)
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    return Settings()


EXAMPLES: Manifest = {
    "specialists": "code=models/code",
    "more_models": "models/other",
    "engine": "onnxruntime-cpu",
    "precision": "int8",
    "default_swap": False,  # what YAML makes of an unquoted off
    "reasoning": "drop",
    "max_queue_tokens": 2_097_152,
    "max_batch_tokens": 65_536,
    "max_body_bytes": 16_777_216,
    "max_buffered_bytes": 536_870_912,
    "max_header_bytes": 65_536,
    "overload_status": 503,
    "engine_timeout_s": 2.5,
    "max_wait_s": "2.5",  # what `helm --set` makes of a number
    "cors_origins": "https://example.org",
    "dialects": "rerank",
    "unknown_models": "default",
    "partial_cohorts": "refuse",
    "log_level": "debug",
    "log_format": "text",
    "access_log": True,
    "otlp_endpoint": "http://collector:4318",
}


def test_every_setting_of_the_service_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    of_others = {"host", "port", "model", "api_keys_file", "cache"}  # the chart's own
    settings = {name: EXAMPLES.get(name, 7) for name in Settings.model_fields if name not in of_others}
    values = {
        **VALUE_SETS["keys"],
        "model": {"source": f"hf://example/judge@{COMMIT}"},
        "settings": {PREFIX + name.upper(): value for name, value in settings.items()},
        "networkPolicy": {"egress": [{}]},
    }
    environment = rendered(values).environment()
    assert {name.removeprefix(PREFIX).lower() for name in environment} == set(Settings.model_fields)
    understood = accepted_settings(environment, monkeypatch)
    spoken = {True: "on", False: "off", 503: "503", "2.5": 2.5}
    assert understood.model_dump(include=set(settings)) == {
        name: spoken.get(value, value) if isinstance(value, bool | str) or value == 503 else value
        for name, value in settings.items()
    }


def test_the_schema_has_the_settings_of_the_code() -> None:
    assert SCHEMA.read_text() == schema_text(), "run `python -m tools.kubernetes_files`"


@pytest.mark.parametrize("drain_s", [0, 20, 45.5])
def test_the_grace_period_follows_the_drain(drain_s: float) -> None:
    pod = pod_of(rendered({"settings": {"TINYRM_DRAIN_TIMEOUT_S": drain_s}}))
    (container,) = pod["containers"]
    before_s = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    needed_s = before_s + max(drain_s, LINGER_S) + int(drain_s) + GRACE_S + EXIT_S
    assert needed_s <= pod["terminationGracePeriodSeconds"] < needed_s + 15


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"settings": {"TINYRM_MAX_WAIT": 3}}, "'TINYRM_MAX_WAIT' not allowed"),
        ({"settings": {"TINYRM_THREADS": "many"}}, "/settings/TINYRM_THREADS"),
        ({"settings": {"TINYRM_MAX_WAIT_S": "soon"}}, "/settings/TINYRM_MAX_WAIT_S"),
        ({"settings": {"TINYRM_ACCESS_LOG": "sometimes"}}, "/settings/TINYRM_ACCESS_LOG"),
        ({"settings": {"TINYRM_GROUP_SIZE": 0}}, "/settings/TINYRM_GROUP_SIZE"),
        ({"settings": {"TINYRM_PORT": 9000}}, "'TINYRM_PORT' not allowed"),
        ({"canary": {"settings": {"TINYRM_THREAD": 2}}}, "/canary/settings"),
        ({"replicas": 3}, "'replicas' not allowed"),
        ({"autoscaling": {"type": "vpa"}}, "/autoscaling/type"),
        ({"autoscaling": {"engineBusy": 70}}, "/autoscaling/engineBusy"),
        ({"autoscaling": {"minReplicas": 9}}, "autoscaling.minReplicas"),
        ({"route": {"canaryWeight": 101}}, "/route/canaryWeight"),
        ({"route": {"enabled": True}}, "route.parentRefs"),
        ({"model": {"source": ""}}, "/model/source"),
        ({"model": {"source": "https://example.org/judge.tar.gz"}}, "#sha256="),
        ({"model": {"source": "hf://example/judge@main"}}, "hf://ORG/NAME@COMMIT"),
        ({"model": {"source": "/models/mine"}}, "model.volume"),
        ({"settings": {"TINYRM_SPECIALISTS": "code=/models/code"}}, "model.volume"),
        ({"canary": {"model": {"source": "hf://example/judge"}}}, "hf://ORG/NAME@COMMIT"),
        ({"apiKeys": {"secret": "keys"}}, "apiKeys.metricsSecret"),
        ({"settings": {"TINYRM_OTLP_ENDPOINT": "http://collector:4318"}}, "networkPolicy.egress"),
        ({"extraEnv": [{"name": "TINYRM_THREADS", "value": "2"}]}, "TINYRM_THREADS is a setting"),
        ({"image": {"digest": "abc"}}, "/image/digest"),
        ({"docsUrl": "docs.example.org"}, "/docsUrl"),
    ],
)
def test_wrong_values_are_refused_with_the_name_of_their_key(values: Manifest, named: str) -> None:
    assert named in refusal(values)


# Names


def test_a_release_of_another_name_has_objects_of_its_own() -> None:
    objects = rendered(release="judge")
    pods = objects.one("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert {name for _, name in objects} == {"judge-tinyrm", "judge-tinyrm-test"} | {
        f"judge-tinyrm-dashboard-{file.stem}" for file in DASHBOARDS.glob("*.json")
    }
    for selector in (
        objects.one("Service")["spec"]["selector"],
        objects.one("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        objects.one("NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        objects.one("Deployment")["spec"]["selector"]["matchLabels"],
    ):
        assert selector.items() <= pods.items()
        assert selector["app.kubernetes.io/instance"] == "judge", "two releases in one namespace are two services"


@pytest.mark.parametrize("release", ["7tinyrm", "team.judge"])
def test_a_release_whose_name_no_service_can_have_is_refused_with_the_way_out(release: str) -> None:
    with pytest.raises(AssertionError, match="set fullnameOverride"):
        rendered(release=release)
    assert rendered({"fullnameOverride": "judge"}, release=release).one("Service")["metadata"]["name"] == "judge"


def test_the_alerts_find_the_service_whatever_the_release_is_called() -> None:
    monitor, service = (rendered(release="judge").one(kind) for kind in ("ServiceMonitor", "Service"))
    assert 'job="tinyrm"' in RULES.read_text()
    assert service["metadata"]["labels"][monitor["spec"]["jobLabel"]] == "tinyrm"


def test_no_other_pod_gets_the_requests_of_the_service() -> None:
    objects = rendered()
    selector, labels = objects.one("Service")["spec"]["selector"], objects.one("Pod")["metadata"]["labels"]
    assert not selector.items() <= labels.items()


@each_set
def test_kubernetes_adds_no_variables(values: Manifest) -> None:
    objects = rendered(values)
    for kind, name in objects:
        if kind == "Deployment":
            assert pod_of(objects, name)["enableServiceLinks"] is False
    assert objects.one("Pod")["spec"]["enableServiceLinks"] is False


@each_set
def test_no_set_of_values_loosens_the_permissions(values: Manifest) -> None:
    plain_pod, pod = pod_of(rendered()), pod_of(rendered(values))
    for key in ("securityContext", "automountServiceAccountToken"):
        assert pod[key] == plain_pod[key]
    assert pod["containers"][0]["securityContext"] == plain_pod["containers"][0]["securityContext"]


# Models


def test_a_model_on_a_volume_is_mounted_where_its_source_points() -> None:
    objects = rendered(VALUE_SETS["claim"])
    (container,) = pod_of(objects)["containers"]
    assert {"name": "models", "mountPath": "/models", "readOnly": True} in container["volumeMounts"]
    assert {"name": "models", **CLAIM} in pod_of(objects)["volumes"]
    assert objects.environment()["TINYRM_MODEL"] == "/models/mine"
    assert objects.one("NetworkPolicy")["spec"]["egress"] == []


@pytest.mark.parametrize("name", ["hub", "address"])
def test_a_model_that_is_fetched_has_a_cache_and_a_way_out(name: str) -> None:
    objects = rendered(VALUE_SETS[name])
    (container,) = pod_of(objects)["containers"]
    (mount,) = [one for one in container["volumeMounts"] if one["name"] == "cache"]
    assert objects.environment()["TINYRM_CACHE"].startswith(mount["mountPath"] + "/")
    (volume,) = [one for one in pod_of(objects)["volumes"] if one["name"] == "cache"]
    assert volume == {"name": "cache", **({"emptyDir": {"sizeLimit": "8Gi"}} if name == "hub" else CLAIM)}
    (rule,) = objects.one("NetworkPolicy")["spec"]["egress"]
    assert {one["port"] for one in rule["ports"]} == {53, 443}


def test_the_init_container_fetches_each_model_into_the_cache_of_the_service(
    bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "toy"), "gztar", bundle_folder)).read_bytes()
    with file_server() as server:
        server.files = {"/toy.tar.gz": archive}
        server.add_repository("org/toy", bundle_folder)
        address = f"{server.url}/toy.tar.gz?signature=SECRET#sha256={hashlib.sha256(archive).hexdigest()}"
        settings = {
            "TINYRM_SPECIALISTS": f"code = hf://org/toy@{COMMIT}, safety=models/safe",
            "TINYRM_MORE_MODELS": f"org/toy@{COMMIT}",
        }
        objects = rendered({"model": {"source": address}, "settings": settings})
        (fetch,) = pod_of(objects)["initContainers"]
        variables = {one["name"]: one["value"] for one in fetch["env"]}
        assert variables["TINYRM_CACHE"] == objects.environment()["TINYRM_CACHE"]
        assert all(value.startswith("/cache/") for value in variables.values()), (
            "the other folders are small or read-only"
        )
        environment = os.environ | {"TINYRM_CACHE": str(tmp_path / "cache"), "HF_ENDPOINT": server.url}
        words = [sys.executable if word == "python" else word for word in fetch["command"]]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "fetched" in done.stderr
    assert "SECRET" not in done.stderr
    found = {file.parent for file in (tmp_path / "cache").rglob("manifest.json")}
    assert {folder.parent.name for folder in found} == {"url", "org--toy"}, "each once, and no folder of the image"
    monkeypatch.setenv("TINYRM_CACHE", str(tmp_path / "cache"))
    assert find(address) in found, "without the server"


def test_a_gpu_is_requested_and_has_a_cache_for_its_engines() -> None:
    pod = pod_of(rendered(VALUE_SETS["gpu"]))
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"memory": "2Gi", "nvidia.com/gpu": 1}
    assert "/cache" in {one["mountPath"] for one in container["volumeMounts"]}, "XDG_CACHE_HOME of the image"
    probe = container["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 901


@pytest.mark.slow
def test_the_pod_of_helm_test_compares_with_a_service(bundle_folder: Path) -> None:
    pod = rendered().one("Pod")
    (container,) = pod["spec"]["containers"]
    (url,) = [one["value"] for one in container["env"] if one["name"] == "TINYRM_URL"]
    assert url == "http://tinyrm:8000", "the Service and its port"
    with started(bundle_folder) as process:
        environment = os.environ | {"TINYRM_URL": f"http://127.0.0.1:{process.port}"}
        # The image's entrypoint.
        words = [sys.executable, "-m", *container["args"]]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert 'ENTRYPOINT ["python", "-m"]' in (REPOSITORY / "Dockerfile").read_text()


# Canary


def test_a_canary_takes_requests_of_the_same_service_and_nothing_else_of_the_stable_deployment() -> None:
    objects = rendered(VALUE_SETS["canary"])
    stable, canary = objects.one("Deployment", "tinyrm"), objects.one("Deployment", "tinyrm-canary")
    service = objects.one("Service")["spec"]["selector"]
    for deployment, other in ((stable, canary), (canary, stable)):
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert service.items() <= labels.items()
        assert not other["spec"]["selector"]["matchLabels"].items() <= labels.items(), (
            "they would count each other's pods"
        )
    assert objects.environment()["TINYRM_MODEL"] == "/models/old"
    assert objects.environment("tinyrm-canary")["TINYRM_MODEL"] == "/models/new"
    assert canary["spec"]["replicas"] == 1
    assert objects.one("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]["name"] == "tinyrm"


def test_a_canary_leaves_the_stable_deployment_as_it_is() -> None:
    """A new pod template would restart every stable replica."""
    without = {key: value for key, value in VALUE_SETS["canary"].items() if key != "canary"}
    assert rendered(VALUE_SETS["canary"]).one("Deployment", "tinyrm") == rendered(without).one("Deployment")


def test_a_canary_differs_in_what_it_sets_only() -> None:
    image = {"image": {"reference": "registry.example/bundles:8"}}
    values = deepcopy(VALUE_SETS["canary"])
    values["settings"] = {"TINYRM_MAX_WAIT_S": 5, "TINYRM_LOG_LEVEL": "warning"}
    values["canary"]["settings"] = {"TINYRM_LOG_LEVEL": "debug"}
    values["canary"]["resources"] = {"limits": {"memory": "3Gi"}}
    values["canary"]["image"] = {"tag": "8"}
    values["canary"]["model"]["volume"] = image
    objects = rendered(values)
    stable, canary = pod_of(objects), pod_of(objects, "tinyrm-canary")
    assert {"name": "models", **image} in canary["volumes"], "a volume has one source"
    changed = {"TINYRM_MODEL": "/models/new", "TINYRM_LOG_LEVEL": "debug"}
    assert objects.environment("tinyrm-canary") == {**objects.environment(), **changed}
    assert canary["containers"][0]["image"] == "tinyrm:8"
    assert canary["containers"][0]["resources"]["limits"] == {"memory": "3Gi"}
    assert canary["containers"][0]["resources"]["requests"] == stable["containers"][0]["resources"]["requests"]


def test_a_canary_with_a_tag_of_its_own_has_that_image_although_the_stable_one_is_pinned() -> None:
    values: Manifest = {"image": {"digest": f"sha256:{HASH}"}, "canary": {"enabled": True, "image": {"tag": "8"}}}
    objects = rendered(values)
    assert pod_of(objects)["containers"][0]["image"] == f"tinyrm@sha256:{HASH}"
    assert pod_of(objects, "tinyrm-canary")["containers"][0]["image"] == "tinyrm:8"
    values["canary"]["image"]["digest"] = f"sha256:{HASH[::-1]}"
    assert pod_of(rendered(values), "tinyrm-canary")["containers"][0]["image"] == f"tinyrm@sha256:{HASH[::-1]}"


def test_a_route_divides_the_requests_between_services_of_one_track_each() -> None:
    values = deepcopy(VALUE_SETS["canary by weight"])
    values["route"]["canaryWeight"] = 5
    objects = rendered(values)
    (rule,) = objects.one("HTTPRoute")["spec"]["rules"]
    assert {one["name"]: one["weight"] for one in rule["backendRefs"]} == {"tinyrm": 95, "tinyrm-canary": 5}
    for name, track in (("tinyrm", "stable"), ("tinyrm-canary", "canary")):
        service = objects.one("Service", name)
        assert service["spec"]["selector"]["tinyrm-track"] == track
        (port,) = service["spec"]["ports"]
        assert {one["port"] for one in rule["backendRefs"]} == {port["port"]}


def test_a_route_without_a_canary_sends_everything_to_the_one_service() -> None:
    (rule,) = rendered({"route": GATEWAY}).one("HTTPRoute")["spec"]["rules"]
    assert [(one["name"], one["weight"]) for one in rule["backendRefs"]] == [("tinyrm", 100)]


# Autoscaling


def test_keda_takes_the_place_of_the_autoscaler() -> None:
    objects = rendered(VALUE_SETS["keda"])
    assert "HorizontalPodAutoscaler" not in objects.kinds()
    keda, hpa = objects.one("ScaledObject")["spec"], rendered().one("HorizontalPodAutoscaler")["spec"]
    assert keda["scaleTargetRef"] == hpa["scaleTargetRef"]
    assert (keda["minReplicaCount"], keda["maxReplicaCount"]) == (hpa["minReplicas"], hpa["maxReplicas"])
    assert keda["advanced"]["horizontalPodAutoscalerConfig"]["behavior"] == hpa["behavior"]
    thresholds = {quantity(one["metadata"]["threshold"]) for one in keda["triggers"]}
    assert thresholds == {quantity(one["pods"]["target"]["averageValue"]) for one in hpa["metrics"]}


def test_keda_computes_the_sum_of_what_the_adapter_computes_for_each_replica(tmp_path: Path) -> None:
    """Of the stable replicas of this release and this namespace: neither of a canary nor of another release."""
    counted = ["tinyrm-6f7c9d-abcde", "tinyrm-6f7c9d-fghij"]
    others = ["tinyrm-canary-5d4f8b-klmno", "judge-tinyrm-6f7c9d-pqrst"]
    rules = {rule.series: rule for rule in adapter_rules()}
    series, questions = [], []
    for number, trigger in enumerate(
        rendered({"autoscaling": {"type": "keda"}}).one("ScaledObject")["spec"]["triggers"]
    ):
        (name,) = [name for name in rules if name in trigger["metadata"]["query"]]
        step = 5000 if name.endswith("tokens") else 12
        for namespace, pods in (("reward", counted + others), ("elsewhere", counted)):
            for nth, pod in enumerate(pods, start=1):
                values = f"{step * nth}x40" if name.endswith("tokens") else f"0+{step * nth / 2}x40"
                series.append({"series": f'{name}{{namespace="{namespace}",pod="{pod}"}}', "values": values})
        adapter = rules[name].expression(f'namespace="reward",pod=~"{"|".join(counted)}"')
        difference = f"round({trigger['metadata']['query']}, 0.001) - round(sum({adapter}), 0.001)"
        # A sum of nothing would be no sample, so a difference of zero means that both found the same replicas.
        questions.append({"expr": difference, "eval_time": "5m", "exp_samples": [{"labels": "{}", "value": 0}]})
        assert trigger["metricType"] == "AverageValue", f"trigger {number} is compared for each replica"
    file = tmp_path / "test.yaml"
    test = {"interval": "15s", "input_series": series, "promql_expr_test": questions}
    file.write_text(yaml.safe_dump({"tests": [test]}))
    done = subprocess.run([tool("promtool"), "test", "rules", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_keda_divides_the_work_of_an_engine_by_its_streams() -> None:
    queries = [one["metadata"]["query"] for one in rendered(VALUE_SETS["keda"]).one("ScaledObject")["spec"]["triggers"]]
    assert [query.endswith(" / 2") for query in queries] == [False, True]


# The kustomization's component


def test_the_kustomizations_rules_are_those_of_prometheus() -> None:
    assert PROMETHEUS_RULE.read_text() == rule_text(), "run `python -m tools.kubernetes_files`"
    assert read(PROMETHEUS_RULE)["spec"] == yaml.safe_load(RULES.read_text())


def test_the_kustomization_lists_every_dashboard() -> None:
    assert MAPS.read_text() == maps_text(), "run `python -m tools.kubernetes_files`"
    generated = read(MAPS)["configMapGenerator"]
    listed = {name for one in generated for name in one["files"]}
    assert listed == {f"tinyrm-{file.name}=dashboards/{file.name}" for file in DASHBOARDS.glob("*.json")}
    assert "#   - monitoring\n" in (FOLDER / "kustomization.yaml").read_text()
