"""Test that the manifest accepts only complete data, and that its revision covers all fields that affect results."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.conftest import REPOSITORY
from tinyrm.bundle import Bundle
from tinyrm.manifest import Accuracy, Manifest

HASH = "0" * 64
OWN = {"temperature": 2.0, "log_temperature_std": 0.1, "temperature_one_order": None, "pairs": 90, "wrong": 20}


@pytest.fixture(scope="module")
def manifest(bundle_folder: Path) -> Manifest:
    return Bundle.open(bundle_folder).manifest


def changed(manifest: Manifest, **fields: Any) -> Manifest:
    return Manifest.model_validate(manifest.model_dump() | fields)


def test_the_exported_manifest_describes_its_model(manifest: Manifest) -> None:
    assert manifest.name == "toy"
    assert manifest.geometry.layers == 4
    assert manifest.precisions == {"fp32": "model.onnx"}
    assert manifest.specialised == {"onnxruntime-cpu": {"fp32": "model.onnxruntime-cpu.onnx"}}
    graphs = {"model.onnx", "model.onnxruntime-cpu.onnx"}
    assert set(manifest.files) == {*graphs, "model.onnx.data", "tokenizer.json"}
    assert manifest.parity


def test_identity_is_name_and_revision(manifest: Manifest) -> None:
    assert manifest.identity == f"toy@{manifest.expected_revision()}"


@pytest.mark.parametrize("file", ["model.onnx", "model.onnxruntime-cpu.onnx", "tokenizer.json"])
def test_every_file_needs_a_hash(manifest: Manifest, file: str) -> None:
    hashes = {name: hash_ for name, hash_ in manifest.files.items() if name != file}
    with pytest.raises(ValidationError, match="no hash"):
        changed(manifest, files=hashes)


@pytest.mark.parametrize(
    "name", ["../model.onnx", "/etc/passwd", "a/b", "a\\b", "..", ".hidden", "", "model.onnx\n", "c:model"]
)
def test_a_file_name_that_points_elsewhere_is_refused(manifest: Manifest, name: str) -> None:
    with pytest.raises(ValidationError, match="pattern"):
        changed(manifest, files=manifest.files | {name: HASH})
    with pytest.raises(ValidationError, match="pattern"):
        changed(manifest, precisions={"fp32": name}, files=manifest.files)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": 0},
        {"temperature": -1},
        {"temperature": float("nan")},
        {"precisions": {}},
        {"parameters": 0},
        {"name": "../up"},
        {"name": ""},
        {"graph": "unheard of"},
        {"label_ids": (1,)},
        {"files": {"model.onnx": "F" * 64, "tokenizer.json": HASH}},
        {"surprise": 1},
        {"temperatures": {"unheard of": OWN}},
        {"temperatures": {"general": OWN | {"temperature": 0}}},
        {"temperature_one_order": 0},
    ],
    ids=str,
)
def test_a_manifest_of_another_shape_is_refused(manifest: Manifest, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        changed(manifest, **wrong)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"label_ids": (8, 7)},
        {"temperature": 1.5},
        {"temperatures": {"general": OWN}},
        {"temperature_one_order": 1.7},
        {"parameters": 1},
        {"precisions": {"fp16": "model.onnx"}},
        {"provenance": {"base_model": "another", "created": "today"}},
        {"parity": ()},
        {"special_tokens": {"cls": 1, "sep": 2, "pad": 3, "mask": 5}},
    ],
    ids=str,
)
def test_the_revision_covers_each_field(manifest: Manifest, change: dict[str, Any]) -> None:
    assert changed(manifest, **change).expected_revision() != manifest.revision


def test_the_starter_is_a_demonstration_with_a_measured_accuracy() -> None:
    """It had its revision before the manifest had a field for that: results are the same with and without."""
    starter = Bundle.open(REPOSITORY / "models" / "starter").manifest
    assert starter.demo
    assert starter.accuracy == Accuracy(**starter.evaluation["domains"]["all"]["accuracy"], pairs=2216)
    assert starter.revision == changed(starter, demo=False).expected_revision() == "5f837f666255"


@pytest.mark.parametrize("evaluation", [{}, {"domains": {"all": {"easy": 0.7}}}, {"domains": ["all"]}], ids=str)
def test_an_evaluation_of_another_kind_has_no_accuracy(manifest: Manifest, evaluation: dict[str, Any]) -> None:
    assert changed(manifest, evaluation=evaluation).accuracy is None


def test_one_order_has_a_temperature_only_where_the_manifest_has_the_field(manifest: Manifest) -> None:
    """Older bundles recorded the best one for comparison, and divide one order by that of both."""
    domains = {"general": OWN | {"temperature_one_order": 5.0}}
    before, after = (changed(manifest, temperatures=domains, temperature_one_order=t).calibrated for t in (None, 3.0))
    assert [(one.general.of_orders(1), one.of("general").of_orders(1)) for one in (before, after)] == [
        (manifest.temperature, 2.0),
        (3.0, 5.0),
    ]
    assert (after.general.of_orders(2), after.of("general").of_orders(2)) == (manifest.temperature, 2.0)


def test_a_model_without_orders_has_no_temperature_of_one(response_bundle_folder: Path) -> None:
    of_responses = Bundle.open(response_bundle_folder).manifest
    with pytest.raises(ValidationError, match="reads a response has no orders"):
        changed(of_responses, temperature_one_order=2.0)


def test_the_revision_covers_the_digest_of_the_calibration_pairs(manifest: Manifest) -> None:
    known = {"pairs": 60, "wrong": 9, "held_out": True, "chosen": (), "log_temperature_std": None}
    hashes = [None, HASH, "1" * 64]
    revisions = {
        changed(
            manifest, calibration={**known, "temperature_one_order": None, "pairs_sha256": hash_}
        ).expected_revision()
        for hash_ in hashes
    }
    assert len(revisions) == len(hashes)


@pytest.mark.parametrize("size", [{"distances": 512}, {"embedding": 128}, {"reads_mean": True}], ids=str)
def test_the_revision_covers_sizes_that_older_manifests_lack(manifest: Manifest, size: dict[str, Any]) -> None:
    sizes = manifest.geometry.model_dump() | size
    assert changed(manifest, geometry=sizes).expected_revision() != manifest.revision


def test_evaluation_results_do_not_change_the_revision(manifest: Manifest) -> None:
    assert changed(manifest, evaluation={"accuracy": 0.9}).expected_revision() == manifest.revision


def test_the_revision_can_be_computed_again(manifest: Manifest) -> None:
    assert manifest.with_revision() == manifest


def test_a_revision_survives_the_file_whatever_the_numbers(manifest: Manifest) -> None:
    numbers = st.floats(min_value=1e-300, max_value=1e300)
    values = st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["lr", "Größe"]), inner),
        max_leaves=5,
    )

    @given(numbers, values)
    def check(temperature: float, value: Any) -> None:
        provenance = manifest.provenance.model_copy(update={"recipe": {"any": value}})
        written = changed(manifest, temperature=temperature, provenance=provenance.model_dump()).with_revision()
        read = Manifest.model_validate_json(written.model_dump_json())
        assert read.expected_revision() == written.revision

    check()


@pytest.mark.parametrize(
    "path",
    [Path(__file__).parent / "manifests" / "schema-2.json", REPOSITORY / "models" / "starter" / "manifest.json"],
    ids=["schema-2", "starter"],
)
def test_a_bundle_that_was_written_before_still_has_its_revision(path: Path) -> None:
    """A field that is added to the manifest must not change the revisions of bundles that lack it."""
    before = Manifest.model_validate_json(path.read_text(encoding="utf-8"))
    assert before.expected_revision() == before.revision
