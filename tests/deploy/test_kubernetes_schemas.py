"""The manifests are valid for the API of Kubernetes, and kustomize builds from them what it should."""

import shutil
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from tests.deploy.manifests import FOLDER, KEYS, Manifest, applied, container_of, read
from tinyrm import __version__

# docs/kubernetes.md promises the oldest (the first with `preStop.sleep`). The newest is that of the package.
OLDEST = "1.30"
NEWEST = kubernetes_validate.latest_version()
BUILT_IN = sorted(kind for kind in applied() if kind != "ServiceMonitor")


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("kind", BUILT_IN)
def test_manifests_are_valid(kind: str, version: str) -> None:
    kubernetes_validate.validate(applied()[kind], version, strict=True)


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
    if not shutil.which("kubectl"):
        pytest.skip("no kubectl, which brings kustomize")
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return {manifest["kind"]: manifest for manifest in yaml.safe_load_all(done.stdout)}


def test_kustomize_builds_the_manifests_and_names_the_image() -> None:
    as_built, as_written = built(FOLDER), applied()
    image = container_of(as_built["Deployment"]).pop("image")
    assert image == f"{container_of(as_written['Deployment']).pop('image')}:{__version__}"
    assert as_built == as_written


def test_kustomize_adds_keys_and_nothing_else(tmp_path: Path) -> None:
    copied = shutil.copytree(FOLDER, tmp_path / "kubernetes")
    kustomization = copied / "kustomization.yaml"
    text = kustomization.read_text()
    kustomization.write_text(text.replace("# components:\n#   - api-keys", "components:\n  - api-keys"))
    assert kustomization.read_text() != text, "the lines to uncomment are not there"
    guarded, plain = built(copied), built(FOLDER)
    kubernetes_validate.validate(guarded["Deployment"], OLDEST, strict=True)
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
