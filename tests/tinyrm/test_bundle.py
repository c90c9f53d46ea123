"""Test that a bundle opens only as it was written, and is written completely or not at all."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from tests.tinyrm.conftest import PAIR
from tinyrm.bundle import Bundle, record_evaluation, record_temperature, sha256, write_bundle
from tinyrm.errors import InvalidBundle, TamperedBundle, UnknownSchema
from tinyrm.manifest import CARD_FILE, MANIFEST_FILE, TOKENIZER_FILE, AutoSwap, Calibration, Manifest

Content = dict[str, Any]


def edit_manifest(folder: Path, change: Callable[[Content], object]) -> None:
    content = json.loads((folder / MANIFEST_FILE).read_text())
    change(content)
    (folder / MANIFEST_FILE).write_text(json.dumps(content))


def sources(folder: Path) -> dict[str, Path]:
    return {path.name: path for path in folder.iterdir() if path.name not in (MANIFEST_FILE, CARD_FILE)}


def fields(folder: Path, **changes: Any) -> Content:
    content: Content = Bundle.open(folder).manifest.model_dump()
    del content["files"], content["revision"]
    return content | changes


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_untouched_bundle_opens(bundle_folder: Path) -> None:
    bundle = Bundle.open(bundle_folder)
    assert bundle.folder == bundle_folder
    assert bundle.model_file("fp32") == bundle_folder / "model.onnx"
    assert bundle.model_file("fp32", "openvino-cpu") == bundle_folder / "model.onnx"
    assert bundle.model_file("fp32", "onnxruntime-cpu") == bundle_folder / "model.onnxruntime-cpu.onnx"


def test_the_encoder_of_a_bundle_gives_the_ids_of_training(bundle_folder: Path, encoder: Any) -> None:
    ours, theirs = Bundle.open(bundle_folder).encoder(), encoder
    assert ours.label_ids == theirs.label_ids
    instruction = Bundle.open(bundle_folder).manifest.spec.instruction("safety")
    (one,), (other,) = ours.encode(PAIR, instruction), theirs.encode(PAIR, instruction)
    np.testing.assert_array_equal(one.input_ids, other.input_ids)


def test_an_unknown_precision_names_those_there_are(bundle_folder: Path) -> None:
    with pytest.raises(InvalidBundle, match=r"'int3'.*fp32"):
        Bundle.open(bundle_folder).model_file("int3")


@pytest.mark.parametrize("name", ["model.onnx", TOKENIZER_FILE])
@pytest.mark.parametrize("where", [0.0, 0.5, 1.0])
def test_one_changed_byte_is_noticed(scratch_bundle: Path, name: str, where: float) -> None:
    content = bytearray((scratch_bundle / name).read_bytes())
    content[int(where * (len(content) - 1))] ^= 1
    (scratch_bundle / name).write_bytes(content)
    with pytest.raises(TamperedBundle, match=name):
        Bundle.open(scratch_bundle)


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b + b"\0", lambda b: b""])
def test_a_file_of_another_size_is_noticed(scratch_bundle: Path, damage: Callable[[bytes], bytes]) -> None:
    path = scratch_bundle / "model.onnx"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(TamperedBundle):
        Bundle.open(scratch_bundle)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(temperature=m["temperature"] * 2),
        lambda m: m.update(name="other"),
        lambda m: m.update(revision="0" * 12),
        lambda m: m.update(revision=""),
        lambda m: m.update(label_ids=m["label_ids"][::-1]),
        lambda m: m.update(parameters=m["parameters"] + 1),
        lambda m: m.update(parity=[]),
        lambda m: m["spec"].update(max_tokens=m["spec"]["max_tokens"] + 1),
        lambda m: m["spec"]["template"].update(label_words=m["spec"]["template"]["label_words"][::-1]),
        lambda m: m["spec"]["template"]["segments"].append(" Choose 1."),
        lambda m: m["spec"]["domains"].update(safety="Which response is shorter?"),
        lambda m: m["spec"].update(default_domain="safety"),
        lambda m: m["special_tokens"].update(mask=m["special_tokens"]["sep"]),
        lambda m: m["geometry"].update(window=64),
        lambda m: m["provenance"].update(base_model="another"),
        lambda m: m["precisions"].update(int8="model.onnx"),
        lambda m: m["files"].update({"model.onnx": "0" * 64}),
        lambda m: m["files"].update({"more.bin": "0" * 64}),
    ],
)
def test_a_changed_manifest_is_noticed(scratch_bundle: Path, change: Callable[[Content], object]) -> None:
    edit_manifest(scratch_bundle, change)
    with pytest.raises(TamperedBundle, match=MANIFEST_FILE):
        Bundle.open(scratch_bundle)


def test_layout_of_the_manifest_does_not_matter(scratch_bundle: Path) -> None:
    edit_manifest(scratch_bundle, lambda _: None)
    Bundle.open(scratch_bundle)


@pytest.mark.parametrize("name", [MANIFEST_FILE, "model.onnx", TOKENIZER_FILE])
def test_a_missing_file_is_named(scratch_bundle: Path, name: str) -> None:
    (scratch_bundle / name).unlink()
    with pytest.raises(InvalidBundle, match=name):
        Bundle.open(scratch_bundle)


def test_a_missing_folder_is_not_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(InvalidBundle):
        Bundle.open(tmp_path / "nowhere")


@pytest.mark.parametrize("version", [0, 1, 1.5, "1", None])
def test_an_unknown_schema_version_is_refused(scratch_bundle: Path, version: object) -> None:
    edit_manifest(scratch_bundle, lambda m: m.update(schema_version=version))
    with pytest.raises(UnknownSchema, match="export it again"):
        Bundle.open(scratch_bundle)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"null", b"\xff\xfe", b"{}", b'{"schema_version": 2}'])
def test_a_file_that_is_not_a_manifest_is_invalid(scratch_bundle: Path, content: bytes) -> None:
    (scratch_bundle / MANIFEST_FILE).write_bytes(content)
    with pytest.raises(InvalidBundle) as refusal:
        Bundle.open(scratch_bundle)
    assert type(refusal.value) is InvalidBundle


@pytest.mark.parametrize("name", ["../outside.onnx", "/etc/hostname", "sub/model.onnx"])
def test_a_manifest_that_points_outside_is_invalid(scratch_bundle: Path, name: str) -> None:
    (scratch_bundle.parent / "outside.onnx").write_bytes(b"x")
    edit_manifest(scratch_bundle, lambda m: (m["precisions"].update(fp32=name), m["files"].update({name: "0" * 64})))
    with pytest.raises(InvalidBundle, match="pattern"):
        Bundle.open(scratch_bundle)


def test_label_words_that_encode_to_other_ids_are_refused(bundle_folder: Path, tmp_path: Path) -> None:
    wrong = fields(bundle_folder, label_ids=(5, 6))
    write_bundle(tmp_path / "wrong", sources(bundle_folder), wrong)
    with pytest.raises(InvalidBundle, match=r"\(5, 6\)"):
        Bundle.open(tmp_path / "wrong").encoder()


def test_a_written_bundle_opens(bundle_folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "store" / "deep" / "new"
    written = write_bundle(target, sources(bundle_folder), fields(bundle_folder, name="new", temperature=1.7))
    opened = Bundle.open(target).manifest
    assert opened == written
    assert (opened.temperature, opened.files["model.onnx"]) == (1.7, sha256(bundle_folder / "model.onnx"))
    assert target.stat().st_mode & 0o777 == 0o755


def test_the_model_card_may_be_edited(bundle_folder: Path, tmp_path: Path) -> None:
    card = tmp_path / "card.md"
    card.write_text("# Toy\n")
    write_bundle(tmp_path / "new", sources(bundle_folder), fields(bundle_folder), card)
    assert (tmp_path / "new" / CARD_FILE).read_text() == "# Toy\n"
    (tmp_path / "new" / CARD_FILE).write_text("# Toy, described better\n")
    Bundle.open(tmp_path / "new")


def test_writing_over_a_bundle_replaces_it_whole(scratch_bundle: Path, bundle_folder: Path) -> None:
    (scratch_bundle / "left-over.bin").write_bytes(b"old")
    write_bundle(scratch_bundle, sources(bundle_folder), fields(bundle_folder, temperature=3.0))
    assert Bundle.open(scratch_bundle).manifest.temperature == 3.0
    assert set(contents(scratch_bundle)) == {MANIFEST_FILE, *sources(bundle_folder)}
    assert os.listdir(scratch_bundle.parent) == ["toy"]  # noqa: PTH208  (hidden folders count)


def fail_on_copy(folder: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_bundle(folder, sources(folder) | {"more.bin": folder / "absent"}, fields(folder))


def fail_on_fields(folder: Path) -> None:
    with pytest.raises(ValidationError):
        write_bundle(folder, sources(folder), fields(folder, temperature=-1))


def fail_on_rename(folder: Path) -> None:
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if target == folder and not self.name.endswith("-old"):
            raise OSError("no space left")
        return rename(self, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "rename", refuse)
        with pytest.raises(OSError, match="no space"):
            write_bundle(folder, sources(folder), fields(folder))


@pytest.mark.parametrize("fail", [fail_on_copy, fail_on_fields, fail_on_rename])
def test_a_failed_write_leaves_the_old_bundle_and_nothing_else(
    scratch_bundle: Path, fail: Callable[[Path], None]
) -> None:
    before = contents(scratch_bundle)
    fail(scratch_bundle)
    assert contents(scratch_bundle) == before
    assert [path.name for path in scratch_bundle.parent.iterdir()] == ["toy"]


def test_a_failed_first_write_leaves_nothing(bundle_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValidationError):
        write_bundle(tmp_path / "new", sources(bundle_folder), fields(bundle_folder, temperature=-1))
    assert list(tmp_path.iterdir()) == []


def test_recorded_evaluation_keeps_the_revision(scratch_bundle: Path) -> None:
    before = Bundle.open(scratch_bundle).manifest
    record_evaluation(scratch_bundle, {"accuracy": 0.7, "Größe": [1, None]})
    after = Bundle.open(scratch_bundle).manifest
    assert after.evaluation == {"accuracy": 0.7, "Größe": [1, None]}
    assert after == before.model_copy(update={"evaluation": after.evaluation})


def test_recording_again_adds_and_replaces_by_name(scratch_bundle: Path) -> None:
    files = set(contents(scratch_bundle))
    record_evaluation(scratch_bundle, {"math": 1, "code": 1})
    record_evaluation(scratch_bundle, {"math": 2, "chat": 3})
    assert Bundle.open(scratch_bundle).manifest.evaluation == {"math": 2, "code": 1, "chat": 3}
    assert set(contents(scratch_bundle)) == files


def test_an_evaluation_does_not_validate_a_changed_bundle(scratch_bundle: Path) -> None:
    edit_manifest(scratch_bundle, lambda m: m.update(temperature=9.0))
    with pytest.raises(TamperedBundle):
        record_evaluation(scratch_bundle, {"accuracy": 1.0})


def test_results_that_are_not_json_leave_the_manifest_unchanged(scratch_bundle: Path) -> None:
    before = contents(scratch_bundle)
    with pytest.raises(Exception, match="serialize"):
        record_evaluation(scratch_bundle, {"model": object()})
    assert contents(scratch_bundle) == before


def test_manifest_is_readable_text(bundle_folder: Path) -> None:
    text = (bundle_folder / MANIFEST_FILE).read_text()
    assert text.startswith('{\n  "schema_version": 3,\n')
    assert Manifest.model_validate_json(text) == Bundle.open(bundle_folder).manifest


def test_another_temperature_is_another_revision_and_moves_the_margin_of_auto(
    tmp_path: Path, bundle_folder: Path
) -> None:
    folder = tmp_path / "toy"
    auto = AutoSwap(margin=1.5, pairs=10, saved=0.2, flips=0.0, max_flips=0.005)
    held_out = {"eval_loss": 0.6, "chosen_on": ["temperature", "auto_swap"]}
    evaluation = {"held_out": held_out, "domains": {"all": {}}}
    wanted = fields(bundle_folder, temperature=0.5, auto_swap=auto.model_dump(), evaluation=evaluation)
    before = write_bundle(folder, sources(bundle_folder), wanted)
    after = record_temperature(folder, 2.0)
    assert Bundle.open(folder).manifest == after
    assert after.temperature == 2.0
    assert after.revision != before.revision
    # The same raw log-odds: 1.5 * 0.5 = 0.375 * 2.
    assert after.auto_swap == auto.model_copy(update={"margin": 0.375})
    assert after.evaluation == {"held_out": {"eval_loss": 0.6, "chosen_on": ["auto_swap"]}}


def test_another_temperature_brings_that_of_one_order_or_takes_the_old_one_away(
    tmp_path: Path, bundle_folder: Path
) -> None:
    folder = tmp_path / "toy"
    write_bundle(folder, sources(bundle_folder), fields(bundle_folder, temperature_one_order=9.0))
    known = {"pairs": 90, "wrong": 20, "held_out": False, "chosen": ("temperature",), "log_temperature_std": 0.1}
    fitted = record_temperature(folder, 2.0, Calibration(**known, temperature_one_order=2.2))
    assert (fitted.temperature, fitted.temperature_one_order) == (2.0, 2.2)
    assert record_temperature(folder, 2.0).temperature_one_order is None
