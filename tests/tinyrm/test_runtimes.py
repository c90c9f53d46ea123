"""Test that a named engine runs or fails with a reason, and is never replaced by another."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from tinyrm.bundle import Bundle
from tinyrm.encoding import Encoder, Encoding, Truncation
from tinyrm.engines import Engine, EngineOptions, open_engine, warm_up
from tinyrm.engines import onnx_runtime as ort
from tinyrm.engines.base import cpu_info
from tinyrm.errors import EngineFailed, EngineUnavailable, InvalidBundle


@pytest.fixture(scope="module")
def bundle(bundle_folder: Path) -> Bundle:
    return Bundle.open(bundle_folder)


@pytest.fixture(scope="module")
def engine(bundle: Bundle) -> Engine:
    return open_engine(bundle, EngineOptions("onnxruntime-cpu", threads=1))


def probe(encoder: Encoder, rows: int, tokens: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    ids = np.random.default_rng(0).integers(5, 300, size=(rows, tokens))
    ids[:, -2] = encoder.special.mask
    return ids


def sequences(ids: Any) -> list[Encoding]:
    return [Encoding(row, Truncation()) for row in ids]


@pytest.mark.parametrize("name", ["", "cpu", "ONNXRUNTIME-CPU", "tensorflow"])
def test_an_unknown_engine_is_refused_with_the_known_names(bundle: Bundle, name: str) -> None:
    with pytest.raises(
        EngineUnavailable,
        match="known: auto, torch-cuda, onnxruntime-cuda, onnxruntime-tensorrt, openvino-cpu, onnxruntime-cpu",
    ):
        open_engine(bundle, EngineOptions(name))


@pytest.fixture
def cpu_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the build of ONNX Runtime without GPU, on any machine."""
    monkeypatch.setattr(
        "onnxruntime.get_available_providers", lambda: ["AzureExecutionProvider", "CPUExecutionProvider"]
    )


@pytest.mark.parametrize("name", ["onnxruntime-cuda", "onnxruntime-tensorrt"])
def test_a_missing_engine_names_the_extra_to_install(bundle: Bundle, cpu_build: None, name: str) -> None:
    with pytest.raises(EngineUnavailable, match=r"lacks.*has: onnxruntime-cpu.*install the `gpu` extra"):
        open_engine(bundle, EngineOptions(name))


@pytest.mark.parametrize("name", ["auto", "onnxruntime-cpu"])
def test_without_a_runtime_the_error_names_the_extra(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delitem(sys.modules, "tinyrm.engines.onnx_runtime")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EngineUnavailable, match=r"an engine needs onnxruntime: pip install 'tinyrm\[local\]', or"):
        open_engine(bundle, EngineOptions(name))


def test_auto_chooses_the_cpu_if_there_is_nothing_else(bundle: Bundle, cpu_build: None) -> None:
    engine = open_engine(bundle)
    assert (engine.info.name, engine.info.precision) == ("onnxruntime-cpu", "fp32")


def test_engines_are_offered_fastest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = ["CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: everything)
    assert ort.available() == ["onnxruntime-tensorrt", "onnxruntime-cuda", "onnxruntime-cpu"]


class SessionOnGpu:
    def __init__(self, *_: object, providers: list[tuple[str, dict[str, str]]], **__: object) -> None:
        self.providers = [*(name for name, _ in providers), "CPUExecutionProvider"]

    def get_providers(self) -> list[str]:
        return self.providers


class SessionThatFellBack(SessionOnGpu):
    """A session as ONNX Runtime makes it without the driver: it works on another provider."""

    def get_providers(self) -> list[str]:
        return ["CPUExecutionProvider"]


def test_auto_prefers_the_gpu(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: both)
    monkeypatch.setattr("onnxruntime.InferenceSession", SessionOnGpu)
    assert open_engine(bundle).info.name == "onnxruntime-cuda"


def test_auto_runs_sets_on_the_gpu(
    shared_prompt_bundle_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: both)
    monkeypatch.setattr("onnxruntime.InferenceSession", SessionOnGpu)
    assert open_engine(Bundle.open(shared_prompt_bundle_folder)).info.name == "onnxruntime-cuda"
    assert "auto skips torch-cuda: torch-cuda does not read sets" in caplog.text


def test_auto_skips_an_engine_that_does_not_start_and_logs_it(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: list(ort.PROVIDERS.values()))
    monkeypatch.setattr("onnxruntime.InferenceSession", SessionThatFellBack)
    assert open_engine(bundle).info.name == "onnxruntime-cpu"
    assert [record.args[0] for record in caplog.records if record.args] == ["torch-cuda", "onnxruntime-cuda"]


def test_a_silent_fallback_of_the_runtime_is_an_error(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr("onnxruntime.InferenceSession", SessionThatFellBack)
    with pytest.raises(EngineUnavailable, match="fell back"):
        open_engine(bundle, EngineOptions("onnxruntime-cuda"))


def test_an_unknown_precision_is_refused(bundle: Bundle) -> None:
    with pytest.raises(InvalidBundle, match="int3"):
        open_engine(bundle, EngineOptions("onnxruntime-cpu", precision="int3"))


@pytest.mark.parametrize(("rows", "tokens"), [(1, 2), (1, 256), (3, 40)])
def test_any_shape_gives_two_logits_for_each_row(engine: Engine, encoder: Encoder, rows: int, tokens: int) -> None:
    ids = probe(encoder, rows, tokens)
    logits = engine.run(sequences(ids))
    assert (logits.shape, logits.dtype) == ((rows, 2), np.float32)
    assert np.isfinite(logits).all()


def test_the_attention_mask_hides_padding(bundle: Bundle, encoder: Encoder) -> None:
    run = ort.open_session(bundle.model_file("fp32", "onnxruntime-cpu"), threads=1)
    ids = probe(encoder, 1, 40)
    padded = np.pad(ids, ((0, 0), (0, 20)), constant_values=17)
    mask = np.pad(np.ones_like(ids), ((0, 0), (0, 20)))
    alone = run(ids, np.ones_like(ids))
    np.testing.assert_allclose(run(padded, mask), alone, atol=1e-4)
    assert np.abs(run(padded, np.ones_like(padded)) - alone).max() > 1e-2, "padding that is seen must matter"


@pytest.mark.parametrize(
    "ids",
    [np.ones(4, dtype=np.float32), np.ones((4, 4), dtype=np.int64), np.full(4, 10**6), "text"],
    ids=["dtype", "rank", "id outside the vocabulary", "no array"],
)
def test_an_input_the_graph_cannot_take_is_the_engines_failure(engine: Engine, ids: Any) -> None:
    with pytest.raises(EngineFailed, match=r"onnxruntime-cpu|integers in one row"):
        engine.run([Encoding(ids, Truncation())])


class Recorder:
    info = cpu_info("recorder", "fp32")

    def __init__(self) -> None:
        self.lengths: list[list[int]] = []

    def run(self, sequences: Sequence[Encoding]) -> Any:
        self.lengths.append(list(map(len, sequences)))
        return np.zeros((len(sequences), 2), dtype=np.float32)


@pytest.mark.parametrize(("tokens", "lengths"), [(256, [[64], [256]]), (50, [[50], [50]])])
def test_warm_up_runs_a_short_and_the_longest_sequence(tokens: int, lengths: list[list[int]]) -> None:
    recorder = Recorder()
    warm_up(recorder, tokens, pad_id=3)
    assert recorder.lengths == lengths


def test_warm_up_runs_on_the_real_engine(engine: Engine, encoder: Encoder) -> None:
    warm_up(engine, encoder.max_tokens, encoder.special.pad)


class SessionOnTensorRt:
    """Record the options and the inputs of a GPU session."""

    opened: ClassVar[list[tuple[str, dict[str, str]]]] = []
    shapes: ClassVar[list[tuple[int, ...]]] = []

    def __init__(self, *_: object, providers: list[tuple[str, dict[str, str]]], **__: object) -> None:
        self.opened[:] = providers

    def get_providers(self) -> list[str]:
        return [self.opened[0][0]]

    def run(self, _: list[str], inputs: dict[str, Any]) -> list[Any]:
        assert inputs["attention_mask"].shape == inputs["input_ids"].shape
        self.shapes.append(inputs["input_ids"].shape)
        return [np.stack([inputs["input_ids"][:, 0], inputs["attention_mask"].sum(axis=1)], axis=1)]


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: list(ort.PROVIDERS.values()))
    monkeypatch.setattr("onnxruntime.InferenceSession", SessionOnTensorRt)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    SessionOnTensorRt.shapes.clear()


@pytest.mark.usefixtures("tensorrt")
def test_tensorrt_has_a_profile_for_each_bucket_and_keeps_what_it_built(bundle: Bundle, tmp_path: Path) -> None:
    open_engine(bundle, EngineOptions("onnxruntime-tensorrt"))
    ((provider, options),) = SessionOnTensorRt.opened
    assert provider == "TensorrtExecutionProvider"
    shapes = {which: options[f"trt_profile_{which}_shapes"].split(",") for which in ("min", "opt", "max")}
    assert {len(listed) for listed in shapes.values()} == {2 * len(ort.TOKEN_BUCKETS)}
    assert shapes["max"][:2] == [f"input_ids:{ort.MAX_ROWS}x64", f"attention_mask:{ort.MAX_ROWS}x64"]
    assert Path(options["trt_engine_cache_path"]).is_relative_to(tmp_path)
    assert bundle.manifest.identity in options["trt_engine_cache_path"]


@pytest.mark.usefixtures("tensorrt")
def test_a_gpu_gets_few_shapes_and_returns_every_row(bundle: Bundle) -> None:
    engine = open_engine(bundle, EngineOptions("onnxruntime-tensorrt"))
    for rows, tokens in ((1, 3), (2, 64), (3, 65), (2 * ort.MAX_ROWS + 1, 200)):
        ids = np.repeat(np.arange(rows)[:, None], tokens, axis=1)
        logits = engine.run(sequences(ids))
        assert logits.tolist() == [[row, tokens] for row in range(rows)]
    assert {tokens for _, tokens in SessionOnTensorRt.shapes} == {64, 128, 256}
    assert max(rows for rows, _ in SessionOnTensorRt.shapes) == ort.MAX_ROWS
