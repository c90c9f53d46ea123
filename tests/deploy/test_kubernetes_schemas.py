"""The manifests are valid for the API of Kubernetes, and kustomize builds from them what it should."""

import json
import shutil
from pathlib import Path

import pytest

from tests.deploy.manifests import FOLDER, KEYS, Manifest, applied, container_of, read
from tests.deploy.programs import kustomize
from tests.deploy.validation import NEWEST, OLDEST, validate
from tests.support.prometheus import DASHBOARDS
from tinyrm import __version__

DEPLOY = FOLDER.parent
BUILT_IN = sorted(kind for kind in applied() if kind != "ServiceMonitor")


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("kind", BUILT_IN)
def test_manifests_are_valid(kind: str, version: str) -> None:
    validate(applied()[kind], version)


@pytest.mark.parametrize("folder", [FOLDER, KEYS], ids=["plain", "with keys"])
def test_monitors_are_valid(folder: Path) -> None:
    """The operator would drop an unknown key without an error, so the model must return what it was given."""
    # Here: every process of tests would spend seconds on it.
    from cloudcoil.models.prometheus_operator.v1 import ServiceMonitor

    monitor = applied()["ServiceMonitor"]
    monitor["spec"]["endpoints"] = read(folder / "servicemonitor.yaml")["spec"]["endpoints"]
    understood = ServiceMonitor.model_validate(monitor)
    assert understood.model_dump(mode="json", by_alias=True, exclude_unset=True) == monitor


def test_every_file_is_listed_in_its_kustomization() -> None:
    for folder, listed in ((FOLDER, "resources"), (KEYS, "patches")):
        names = [one if isinstance(one, str) else one["path"] for one in read(folder / "kustomization.yaml")[listed]]
        others = {"kustomization.yaml", "prometheus-adapter-values.yaml"}
        assert sorted(names) == sorted(file.name for file in folder.glob("*.yaml") if file.name not in others)


def test_the_image_has_the_version_of_the_library() -> None:
    (image,) = read(FOLDER / "kustomization.yaml")["images"]
    assert image["name"] == container_of(applied()["Deployment"])["image"]
    assert image["newTag"] == __version__


def built(folder: Path) -> dict[str, Manifest]:
    """Return by kind what `kubectl apply -k` would send."""
    return {manifest["kind"]: manifest for manifest in kustomize(folder)}


def with_component(name: str, folder: Path) -> Path:
    """Return a copy of the kustomization in which the lines of one component are no comments any more."""
    copied = shutil.copytree(DEPLOY, folder / "deploy", ignore=shutil.ignore_patterns("helm")) / "kubernetes"
    kustomization = copied / "kustomization.yaml"
    text = kustomization.read_text()
    for line in ("components:", f"  - {name}"):
        assert f"# {line}\n" in text, "the lines to uncomment are not there"
        text = text.replace(f"# {line}\n", f"{line}\n")
    kustomization.write_text(text)
    return copied


def test_kustomize_builds_the_manifests_and_names_the_image() -> None:
    as_built, as_written = built(FOLDER), applied()
    image = container_of(as_built["Deployment"]).pop("image")
    assert image == f"{container_of(as_written['Deployment']).pop('image')}:{__version__}"
    assert as_built == as_written


def test_kustomize_adds_keys_and_nothing_else(tmp_path: Path) -> None:
    guarded, plain = built(with_component("api-keys", tmp_path)), built(FOLDER)
    validate(guarded["Deployment"], OLDEST)
    added, monitor = read(KEYS / "deployment.yaml"), read(KEYS / "servicemonitor.yaml")
    for place in ("env", "volumeMounts"):
        assert container_of(added)[place] == [
            one
            for one in container_of(guarded["Deployment"])[place]
            if one not in container_of(plain["Deployment"])[place]
        ]
        assert all(
            one in container_of(guarded["Deployment"])[place] for one in container_of(plain["Deployment"])[place]
        )
    assert guarded["ServiceMonitor"]["spec"]["endpoints"] == monitor["spec"]["endpoints"]
    assert guarded["ServiceMonitor"]["spec"]["selector"] == plain["ServiceMonitor"]["spec"]["selector"]
    unchanged = set(plain) - {"Deployment", "ServiceMonitor"}
    assert {kind: guarded[kind] for kind in unchanged} == {kind: plain[kind] for kind in unchanged}


def test_kustomize_adds_alerts_and_dashboards(tmp_path: Path) -> None:
    added = kustomize(with_component("monitoring", tmp_path))
    (rule,) = [one for one in added if one["kind"] == "PrometheusRule"]
    assert rule == read(FOLDER / "monitoring" / "prometheusrule.yaml")
    maps = [one for one in added if one["kind"] == "ConfigMap"]
    assert all(one["metadata"]["labels"]["grafana_dashboard"] == "1" for one in maps)
    data = {name: json.loads(text) for one in maps for name, text in one["data"].items()}
    assert data == {f"tinyrm-{file.name}": json.loads(file.read_text()) for file in DASHBOARDS.glob("*.json")}
    for one in maps:
        validate(one, OLDEST)
        # `kubectl apply` keeps a copy in an annotation; all of them may have 256 KiB together.
        assert len(json.dumps(one)) < 200_000
    others = [one for one in added if one["kind"] not in ("PrometheusRule", "ConfigMap")]
    assert others == kustomize(FOLDER)
