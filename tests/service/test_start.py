"""Test that whatever goes wrong at a start or a reload is one line in the log, and that the old model stays."""

import asyncio
import errno
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from service import app, start
from service.engine.backend import Backend
from service.engine.types import EngineProfile
from service.metrics import Metrics
from service.process import CANNOT_START, FAILED, FAILURE
from service.scoring import models
from service.scoring.models import ModelRegistry
from service.settings import Settings
from service.workers import supervisor
from tests.service.test_queue_link import StubBackend
from tests.support.waiting import PATIENCE_S
from tinyrm.bundle import Bundle, write_bundle
from tinyrm.engines.base import cpu_info
from tinyrm.errors import EngineUnavailable, InvalidBundle, TamperedBundle
from tinyrm.manifest import TOKENIZER_FILE

# What a start or a reload may raise: our own errors, the system's, a library's, and bugs.
KINDS = [
    InvalidBundle("the folder is gone"),
    EngineUnavailable("no device"),
    PermissionError(13, "Permission denied", "weights.onnx"),
    OSError(28, "No space left on device"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    OverflowError("cannot convert float infinity to integer"),
    MemoryError(),
    Exception("a library\nraises this, in two lines"),
    AssertionError(),
]


@pytest.fixture
def restored_signals() -> Iterator[None]:
    """Restore the handlers that `serve` replaces; the log too is as before."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, FAILURE)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def failed_start(settings: Settings) -> list[Any]:
    """Return the lines of the log. The start must fail with its exit code."""
    with capture_logs() as lines:
        assert asyncio.run(start.serve(settings)) == CANNOT_START
    return [line for line in lines if line["log_level"] in ("error", "critical")]


@pytest.mark.usefixtures("restored_signals")
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("error", KINDS, ids=lambda error: type(error).__name__)
def test_whatever_a_start_raises_is_one_line_and_an_exit_code(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, workers: int
) -> None:
    def fail(*_: object) -> Bundle:
        raise error

    monkeypatch.setattr(supervisor, "share_files", lambda *_: None)
    for module in (models, supervisor):
        monkeypatch.setattr(module, "open_bundle", fail)
    (line,) = failed_start(Settings(model=bundle_folder, workers=workers, port=0))
    assert line["event"] == "cannot start"
    assert str(getattr(error, "type", type(error).__name__)) in (line["type"], line["reason"].split(":")[0])
    assert "\n" not in line["reason"]


@pytest.mark.usefixtures("restored_signals")
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"specialists": "foo"}, "specialists must be written as domain=place"),
        ({"specialists": "cooking=models/starter"}, "has no domain 'cooking'"),
        ({"model": "models/nowhere"}, "is not a folder"),
        ({"precision": "int3"}, "no precision 'int3'"),
        ({"max_batch_tokens": 100}, "is too small"),
        ({"api_keys_file": "nowhere.json"}, "nowhere.json"),
    ],
)
def test_settings_that_do_not_fit_are_one_line_and_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], reason: str, workers: int
) -> None:
    monkeypatch.setattr(supervisor, "share_files", lambda *_: None)
    settings = Settings(**({"model": "models/starter", "workers": workers, "port": 0} | changes))
    (line,) = failed_start(settings)
    assert reason in line["reason"]


@pytest.mark.usefixtures("restored_signals")
def test_workers_without_room_for_their_metrics_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(folder: Path, process: str) -> None:
        if process == "worker-2":
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(supervisor, "share_metrics", full)
    monkeypatch.setattr(supervisor, "reserve_metrics", full)
    (line,) = failed_start(Settings(workers=2, port=0))
    assert (line["event"], line["type"]) == ("cannot start", "invalid_settings")
    assert "TMPDIR" in line["reason"]


def test_a_bundle_with_a_tokenizer_that_cannot_be_read_is_refused(bundle_folder: Path, tmp_path: Path) -> None:
    """Its hash is right: it was exported like this."""
    manifest = Bundle.open(bundle_folder).manifest
    (tmp_path / "bad.json").write_text("{")
    files = {name: bundle_folder / name for name in manifest.files} | {TOKENIZER_FILE: tmp_path / "bad.json"}
    write_bundle(tmp_path / "bundle", files, manifest.model_dump(exclude={"files", "revision"}))
    with pytest.raises(InvalidBundle, match=r"tokenizer\.json cannot be read"):
        Bundle.open(tmp_path / "bundle").encoder()


@dataclass
class Ended(StubBackend):
    """Remember that it was stopped."""

    is_stopped: bool = False

    async def drain(self, timeout_s: float) -> None:
        self.is_stopped = True


async def started_registry(settings: Settings, start_backend: Callable[[Bundle], Backend]) -> ModelRegistry:
    async def begin(bundle: Bundle) -> Backend:
        return start_backend(bundle)

    registry = ModelRegistry(settings, Metrics(), begin)
    await registry.start()
    return registry


def backend_of(bundle: Bundle) -> Ended:
    backend = Ended()
    backend.profile = EngineProfile(bundle.manifest.identity, cpu_info("null", "fp32"), 1.0, 1.0)
    return backend


@pytest.mark.parametrize("stage", ["open", "engine", "encoder"])
@pytest.mark.parametrize("error", KINDS, ids=lambda error: type(error).__name__)
def test_a_reload_that_fails_at_any_stage_is_one_line_and_the_old_model_stays(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, stage: str
) -> None:
    backends: list[Ended] = []

    def start_backend(bundle: Bundle) -> Backend:
        if backends and stage == "engine":
            raise error
        backends.append(backend_of(bundle))
        return backends[-1]

    def open_another(settings: Settings, folder: Path) -> Bundle:
        if stage == "open":
            raise error
        bundle = Bundle.open(folder)
        return replace(bundle, manifest=bundle.manifest.model_copy(update={"revision": "new"}))

    def fail(*_: object) -> None:
        raise error

    async def scenario() -> None:
        registry = await started_registry(Settings(model=bundle_folder), start_backend)
        old = registry.default
        monkeypatch.setattr(models, "open_bundle", open_another)
        if stage == "encoder":
            monkeypatch.setattr(registry, "_make_pipeline", fail)
        with capture_logs() as lines:
            await registry.reload()
        (line,) = lines
        assert line["event"] == "cannot reload"
        assert registry.default is old
        assert [backend.is_stopped for backend in backends] == [False] + [True] * (stage == "encoder")

    asyncio.run(scenario())


def test_a_stop_does_not_wait_longer_for_an_old_revision_than_for_others(bundle_folder: Path) -> None:
    async def scenario() -> None:
        registry = await started_registry(Settings(model=bundle_folder, drain_timeout_s=PATIENCE_S), backend_of)
        old = registry.default
        with old.active():  # a request that does not end
            bundle = Bundle.open(bundle_folder)
            registry.replace(bundle_folder, bundle, backend_of(bundle))
            async with asyncio.timeout(PATIENCE_S / 2):
                await registry.drain(0.01)
        assert isinstance(old.backend, Ended)
        assert old.backend.is_stopped

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("changes", "settings", "reason"),
    [
        ({"auto_swap": None}, {"default_swap": "auto"}, "without a margin for swap auto"),
        ({"spec": {"domains": {"general": "Select."}}}, {"specialists": "safety={folder}"}, "has no domain 'safety'"),
        ({"spec": {"max_tokens": 4096}}, {"max_batch_tokens": 1024}, "is too small"),
    ],
)
def test_a_reload_makes_the_checks_of_a_start(
    bundle_folder: Path, tmp_path: Path, changes: dict[str, Any], settings: dict[str, Any], reason: str
) -> None:
    """Serve a bundle that fits the settings, and put one in its place that does not."""
    folder = tmp_path / "served"
    manifest = Bundle.open(bundle_folder).manifest
    fields = manifest.model_dump(exclude={"files", "revision"})
    fields["auto_swap"] = {"margin": 1.0, "pairs": 1, "saved": 0.5, "flips": 0.0, "max_flips": 0.0}
    files = {name: bundle_folder / name for name in manifest.files}
    write_bundle(folder, files, fields)
    wanted = Settings(model=folder, **{name: str(value).format(folder=folder) for name, value in settings.items()})

    async def scenario() -> None:
        registry = await started_registry(wanted, backend_of)
        old = registry.default
        spec = fields["spec"] | changes.get("spec", {})
        write_bundle(folder, files, fields | changes | {"spec": spec})
        with capture_logs() as lines:
            await registry.reload()
        assert [line["event"] for line in lines] == ["cannot reload"]
        assert reason in lines[0]["reason"]
        assert registry.default is old

    asyncio.run(scenario())


def test_a_file_that_changes_while_it_is_copied_is_refused(
    bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Change it after it was verified and before it is copied."""
    folder = tmp_path / "served"
    manifest = Bundle.open(bundle_folder).manifest
    write_bundle(
        folder,
        {name: bundle_folder / name for name in manifest.files},
        manifest.model_dump(exclude={"files", "revision"}),
    )
    opened = Bundle.unverified(folder)
    (folder / TOKENIZER_FILE).write_text("{}")
    monkeypatch.setattr(Bundle, "unverified", lambda _: opened)
    with pytest.raises(TamperedBundle, match="does not match its hash"):
        models.open_bundle(Settings(model=folder), folder)


@pytest.mark.usefixtures("restored_signals")
def test_a_part_that_fails_ends_the_service_with_its_own_exit_code(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fail as soon as the service runs."""

    async def begin(_: Settings, bundle: Bundle, **__: object) -> Backend:
        asyncio.get_running_loop().call_later(0.05, os.kill, os.getpid(), FAILURE)
        return backend_of(bundle)

    monkeypatch.setattr(app, "start_backend", begin)
    settings = Settings(model=bundle_folder, port=0)

    async def scenario() -> int:
        async with asyncio.timeout(PATIENCE_S):
            return await start.serve(settings)

    assert asyncio.run(scenario()) == FAILED
