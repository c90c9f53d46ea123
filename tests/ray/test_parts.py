"""Test the parts that need no cluster: options, addresses of bundles, the common page of metrics, the manifests."""

import asyncio
import inspect
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from pydantic import ValidationError
from ray.serve.handle import DeploymentResponse
from ray.serve.schema import ServeDeploySchema
from starlette.types import Receive, Scope, Send

from service.metrics import Metrics
from service.scoring.models import bundle_folders
from service_ray.asgi import AsgiRunner, RawRequest
from service_ray.config import RayConfig, make_settings
from service_ray.limits import WaitLimits
from service_ray.metrics import Refusals, label_page, merge_pages
from service_ray.replica import Replica
from service_ray.store import fetch_bundle
from tests.conftest import REPOSITORY
from tests.deploy.validation import NEWEST, validate
from tinyrm.bundle import Bundle
from tinyrm.errors import DeadlineExceeded, InvalidBundle, InvalidSettings, TamperedBundle, Unavailable

FOLDER = REPOSITORY / "deploy" / "ray"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"bundel": "x"}, "bundel"),
        ({"settings": {"port": 80}}, "Serve has its own"),
        ({"settings": {"max_wait": 1}}, "max_wait"),
        ({"settings": {"max_wait_s": "soon"}}, "max_wait_s"),
        ({"settings": {"dialects": "klingon"}}, "klingon"),
        ({"max_tries": 0}, "max_tries"),
    ],
)
def test_wrong_arguments_are_refused_by_name(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RayConfig.model_validate(args)


def test_replicas_serve_further_bundles_for_cascades() -> None:
    config = RayConfig.model_validate({"settings": {"more_models": "models/alone, models/other"}})
    folders = bundle_folders(make_settings(config.settings, model=Path(config.bundle)))
    assert folders == [Path("models/starter"), Path("models/alone"), Path("models/other")]


def test_a_replica_refuses_cohorts_before_it_starts_an_engine(bundle_folder: Path, tmp_path: Path) -> None:
    """Run the start of a replica without Ray. Only a replica has the bundle, and knows what it reads."""
    start: Any = Replica.__init__
    config = RayConfig(bundle=f"file://{bundle_folder}", store=tmp_path, settings={"dialects": "rerank,verl"})
    with pytest.raises(InvalidSettings, match=r"DIALECTS=verl needs .*, and no replicas on Ray, with toy@"):
        asyncio.run(start(SimpleNamespace(), config))


def test_pages_of_metrics_become_one(capsys: pytest.CaptureFixture[str]) -> None:
    pages = []
    for replica, requests in (("x1", 2), ("x2", 3)):
        metrics = Metrics()
        for _ in range(requests):
            metrics.observe_request("compare", 200, 0.1)
        pages.append(label_page(metrics.expose().decode(), replica))
    refusals = Refusals()
    refusals.observe("compare", 401)
    pages.append(label_page(refusals.expose(), "i1"))
    families = {family.name: family for family in text_string_to_metric_families(merge_pages(pages))}
    assert set(families) == {family.name for family in text_string_to_metric_families(Metrics().expose().decode())}
    counts = {
        sample.labels["replica"]: sample.value
        for sample in families["tinyrm_requests"].samples
        if sample.labels["endpoint"] == "compare" and sample.labels["status"] in ("200", "401") and sample.value
    }
    assert counts == {"x1": 2, "x2": 3, "i1": 1}
    assert merge_pages(pages).count("# HELP tinyrm_requests_total ") == 1
    assert label_page('a 1\nb{c="}"} 2\n', "r") == 'a{replica="r"} 1\nb{replica="r",c="}"} 2\n'


def test_a_bundle_at_an_address_is_fetched_once_and_verified(bundle_folder: Path, tmp_path: Path) -> None:
    address, store = f"file://{bundle_folder}", tmp_path / "store"
    folder = fetch_bundle(address, store)
    assert Bundle.open(folder).manifest.identity == Bundle.open(bundle_folder).manifest.identity
    before = (folder / "model.onnx").stat().st_ino
    assert fetch_bundle(f"{address}/", store) == folder
    assert (folder / "model.onnx").stat().st_ino == before
    assert fetch_bundle(str(bundle_folder), store) == bundle_folder


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_a_replica_refuses_another_revision_than_the_configured_one(
    bundle_folder: Path, tmp_path: Path, prefix: str
) -> None:
    """The folder may have changed since the other replicas were started."""
    address = f"{prefix}{bundle_folder}"
    fetch_bundle(address, tmp_path, Bundle.open(bundle_folder).manifest.revision)
    with pytest.raises(InvalidBundle, match=r"holds toy@\w+, and the configuration asks for revision 0123"):
        fetch_bundle(address, tmp_path, "0123")


def test_a_failed_fetch_leaves_nothing(bundle_folder: Path, tmp_path: Path) -> None:
    broken, store = shutil.copytree(bundle_folder, tmp_path / "broken"), tmp_path / "store"
    with (broken / "model.onnx").open("ab") as file:
        file.write(b" ")
    with pytest.raises(TamperedBundle, match=r"model\.onnx"):
        fetch_bundle(f"file://{broken}", store)
    for address in (f"file://{tmp_path}/nothing", "klingon://x", f"file://{store}"):
        with pytest.raises(InvalidBundle, match=address):
            fetch_bundle(address, store)
    assert [path.name for path in store.iterdir()] == [".lock"]


def limits_of(text: bytes | None, waited_s: float = 0) -> WaitLimits:
    headers = [] if text is None else [(b"x-request-timeout-ms", text)]
    return WaitLimits.parse(headers, max_wait_s=60, arrived_s=time.monotonic() - waited_s)


def test_a_request_is_passed_on_with_its_remaining_time() -> None:
    headers = [(b"x-request-timeout-ms", b"900000"), (b"a", b"b")]
    name, left_ms = limits_of(b"900000", waited_s=100).update_headers(headers)[-1]
    assert name == b"x-request-timeout-ms"
    assert 0 < int(left_ms) <= 800_000
    assert len(limits_of(b"900000").update_headers(headers)) == 2


@pytest.mark.parametrize("text", [None, b"soon", b"-1", b"0", b"9" * 5000, b"3600001", "²".encode("latin-1")])
def test_the_replica_refuses_a_time_limit_that_is_not_a_number(text: bytes | None) -> None:
    headers = [(b"x-request-timeout-ms", text or b"")]
    limits = limits_of(text, waited_s=100)
    assert limits.update_headers(headers) == headers
    assert limits.reply.left_s() is None
    assert type(limits.error()) is Unavailable


def test_an_expired_request_gets_deadline_exceeded_and_not_unavailable() -> None:
    limits = limits_of(b"900", waited_s=1)
    assert limits.replica_s() == 0
    assert type(limits.error()) is DeadlineExceeded
    with pytest.raises(DeadlineExceeded):
        limits.update_headers([])
    assert 0 < limits_of(b"100000").replica_s() <= 60, "the shorter of the two"
    assert limits_of(None, waited_s=100).replica_s() > 0, "a slow sender keeps the wait for a replica"


def test_the_work_of_a_disconnected_client_is_dropped() -> None:
    left: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            for kind in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{kind}.complete"})
            return
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            left.append(scope["path"])
            raise

    async def ask() -> None:
        runner = AsgiRunner(app)
        await runner.start()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(runner.call(RawRequest("POST", "/v1/compare", b"", [])), 0.05)
        await runner.stop()

    asyncio.run(ask())
    assert left == ["/v1/compare"]


def test_ray_still_has_the_private_method_that_the_ingress_awaits() -> None:
    assert inspect.iscoroutinefunction(DeploymentResponse._to_object_ref)


def test_serve_takes_the_configuration() -> None:
    config = ServeDeploySchema.model_validate(yaml.safe_load((FOLDER / "serve.yaml").read_text()))
    (application,) = config.applications
    RayConfig.model_validate(application.args)
    assert {deployment.name for deployment in application.deployments} == {"Ingress", "Scorer"}


def test_kuberay_requires_a_token() -> None:
    """Without a token, every pod that reaches the dashboard could run code."""
    service = yaml.safe_load((FOLDER / "rayservice.yaml").read_text())
    assert service["spec"]["rayClusterConfig"]["authOptions"] == {"mode": "token"}


def test_kuberay_has_the_same_configuration_and_valid_pods() -> None:
    service = yaml.safe_load((FOLDER / "rayservice.yaml").read_text())
    assert (service["apiVersion"], service["kind"]) == ("ray.io/v1", "RayService")
    assert yaml.safe_load(service["spec"]["serveConfigV2"]) == yaml.safe_load((FOLDER / "serve.yaml").read_text())
    cluster = service["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"] | {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}}
        validate(pod, NEWEST)
        (container,) = pod["spec"]["containers"]
        assert container["resources"]["limits"]["memory"]


def test_the_linter_of_the_image_finds_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, FOLDER / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_nothing_else_of_the_product_imports_ray() -> None:
    code = "import json, sys, service.app, tinyrm.cli, tinyrm.client; print(json.dumps([*sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert not {"ray", "pyarrow", "fsspec"} & set(json.loads(done.stdout))
