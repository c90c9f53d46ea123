"""Check objects against the schemas of Kubernetes, with kubernetes-validate.

It is imported where it is used: it compiles grammars of addresses, for seconds in every process of tests.
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

from packaging.version import Version

from tests.deploy.manifests import Manifest


def newest() -> str:
    """Return the newest version that the package has schemas of."""
    spec = find_spec("kubernetes_validate")
    assert spec is not None
    assert spec.origin is not None
    folders = (Path(spec.origin).parent / "kubernetes-json-schema").glob("v*")
    return max((folder.name.removeprefix("v").partition("-")[0] for folder in folders), key=Version)


# docs/kubernetes.md promises the oldest (the first with `preStop.sleep`).
OLDEST, NEWEST = "1.30", newest()


def validate(manifest: Manifest, version: str) -> None:
    """Raises kubernetes_validate.ValidationError for an invalid object, and for an unknown key."""
    import kubernetes_validate

    kubernetes_validate.validate(manifest, version, strict=True)


def quick_schemas() -> tuple[object, str, object]:
    """Return what makes each schema be read once, for `monkeypatch.setattr`: megabytes are read for every object."""
    from kubernetes_validate import utils

    return utils, "schema_contents", cache(utils.schema_contents)
