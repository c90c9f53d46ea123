"""Test that models that read sets are exported, and what engines return for them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from export.config import ExportOptions
from export.parity import SET_SIZES, TOLERANCE, run_alone, set_probes
from export.pipeline import export_bundle
from tests.conftest import Trained, write_head
from tinyrm.bundle import Bundle
from tinyrm.encoding import Encoding, SpecialTokens, Truncation
from tinyrm.engines import Engine, EngineOptions, open_engine
from tinyrm.errors import EngineUnavailable, InvalidInput

FIXTURES = (
    *("set_bundle_folder", "shared_prompt_bundle_folder"),
    pytest.param("local_set_bundle_folder", marks=pytest.mark.slow),
)


@pytest.fixture(params=FIXTURES)
def bundle(request: pytest.FixtureRequest) -> Bundle:
    return Bundle.open(request.getfixturevalue(request.param))


@pytest.fixture
def engine(bundle: Bundle) -> Engine:
    return open_engine(bundle, EngineOptions("onnxruntime-cpu", threads=1))


def texts(sizes: list[int], *, prompt: int = 70, seed: int = 0) -> tuple[list[int], list[list[int]]]:
    """Return the ids of a prompt, and of responses of these lengths."""
    dice = np.random.default_rng(seed)
    return dice.integers(5, 380, prompt).tolist(), [dice.integers(5, 380, size).tolist() for size in sizes]


def as_set(special: SpecialTokens, prompt: list[int], responses: list[list[int]]) -> Encoding:
    ids = [special.cls, *prompt, special.sep]
    for response in responses:
        ids += [*response, special.mask, special.sep]
    return Encoding(np.array(ids), Truncation())


def lengths(count: int) -> list[int]:
    """Return unequal lengths, some of them around a window."""
    return [(1, 63, 64, 65, 7, 130, 20)[i % 7] for i in range(count)]


def scores(
    engine: Engine, special: SpecialTokens, prompt: list[int], responses: list[list[int]]
) -> NDArray[np.float32]:
    (logits,) = engine.run([as_set(special, prompt, responses)])
    assert len(logits) == len(responses)
    return logits


def test_every_check_passes_and_the_manifest_says_what_responses_see(bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert (manifest.reads, manifest.graph, manifest.head.outputs) == ("set", "optimised", 1)
    assert manifest.head.sets is not None
    assert [parity.check for parity in manifest.parity] == [
        "adapter unmerged, merged",
        "torch, onnx",
        "alone, in a batch",
    ]
    # A score that depends on others has no scale of its own.
    assert (manifest.score_scale is not None) == manifest.head.sets.scores_alone


@pytest.mark.parametrize("count", [1, 2, 3, 8, 16, 32])
def test_exchanging_responses_exchanges_their_scores(bundle: Bundle, engine: Engine, count: int) -> None:
    special = bundle.manifest.special_tokens
    prompt, responses = texts(lengths(count))
    expected = scores(engine, special, prompt, responses)
    assert count == 1 or np.ptp(expected) > 0.1
    order = np.random.default_rng(count).permutation(count)
    exchanged = scores(engine, special, prompt, [responses[i] for i in order])
    np.testing.assert_allclose(exchanged, expected[order], atol=TOLERANCE, rtol=0)


def test_responses_see_each_other_only_where_the_head_says_so(bundle: Bundle, engine: Engine) -> None:
    special, reading = bundle.manifest.special_tokens, bundle.manifest.head.sets
    assert reading is not None
    prompt, responses = texts(lengths(5))
    together = scores(engine, special, prompt, responses)
    alone = np.array([scores(engine, special, prompt, [response])[0] for response in responses])
    difference = np.abs(together - alone).max()
    assert difference <= TOLERANCE if reading.scores_alone else difference > 100 * TOLERANCE


def test_sets_of_several_sizes_run_together_with_zeros_behind(bundle: Bundle, engine: Engine) -> None:
    manifest = bundle.manifest
    sets = set_probes(manifest.special_tokens, manifest.geometry.vocab, manifest.spec.max_tokens)
    together = engine.run(sets)
    assert together.shape == (len(sets), max(SET_SIZES))
    np.testing.assert_allclose(together, run_alone(engine.run, sets), atol=TOLERANCE, rtol=0)
    encoder = bundle.encoder()
    for row, one in zip(together, sets, strict=True):
        count = encoder.count_scores(one)
        assert row[:count].all()
        assert not row[count:].any()


def test_a_sequence_without_a_mask_runs_as_a_warm_up_sends_it(bundle: Bundle, engine: Engine) -> None:
    pad = bundle.manifest.special_tokens.pad
    for tokens in (1, 64, bundle.manifest.spec.max_tokens):
        assert engine.run([Encoding(np.full(tokens, pad), Truncation())]).tolist() == [[0.0]]


def test_the_null_engine_has_a_tie_for_each_response(shared_prompt_bundle_folder: Path) -> None:
    bundle = Bundle.open(shared_prompt_bundle_folder)
    special = bundle.manifest.special_tokens
    sets = [as_set(special, *texts(lengths(count))) for count in (2, 5)]
    assert open_engine(bundle, EngineOptions("null")).run(sets).tolist() == [[0.0] * 5] * 2


@pytest.mark.parametrize("name", ["torch-cuda", "onnxruntime-tensorrt"])
def test_an_engine_of_fixed_shapes_names_those_that_read_sets(name: str, shared_prompt_bundle_folder: Path) -> None:
    with pytest.raises(EngineUnavailable, match=f"{name} does not read sets.* use onnxruntime-cpu or onnxruntime-cuda"):
        open_engine(Bundle.open(shared_prompt_bundle_folder), EngineOptions(name))


@pytest.mark.parametrize("option", [{"weights": True}, {"precisions": ("bf16",)}, {"graph": "plain"}])
def test_what_sets_do_not_have_is_refused_before_any_work(
    option: dict[str, Any], trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.pipeline.compile_checked", None)
    options = replace(write_head(trained.base, tmp_path, "set", {"others": "none"}), **option)
    with pytest.raises(InvalidInput, match="reads sets, which have one graph: leave out"):
        export_bundle(options)
    assert not options.out.exists()


@pytest.mark.slow
def test_scores_of_sets_in_int8_do_not_depend_on_other_sets(shared_prompt_bundle_folder: Path, tmp_path: Path) -> None:
    source = shared_prompt_bundle_folder.parent
    options = ExportOptions(
        model=str(source / "trained"),
        out=tmp_path / "toy",
        calibration=source / "pairs.jsonl",
        precisions=("int8",),
        max_weighted_flips=1.0,
    )
    export_bundle(options)
    bundle = Bundle.open(options.out)
    manifest = bundle.manifest
    assert manifest.gates["int8"].share_rounded == 1.0
    sets = set_probes(manifest.special_tokens, manifest.geometry.vocab, manifest.spec.max_tokens)
    exact, lower = (
        run_alone(open_engine(bundle, EngineOptions("onnxruntime-cpu", precision=precision)).run, sets)
        for precision in ("fp32", "int8")
    )
    together = open_engine(bundle, EngineOptions("onnxruntime-cpu", precision="int8")).run(sets)
    np.testing.assert_allclose(together, lower, atol=TOLERANCE, rtol=0)
    assert 0 < np.abs(lower - exact).max() < np.ptp(exact) / 3
