"""Test the content of a bundle, and the command that writes it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from export.__main__ import main
from export.config import ExportOptions
from export.pipeline import export_bundle
from tests.conftest import REPOSITORY, TOY_SPEC, Trained
from tests.export.conftest import RUN
from tinyrm.bundle import Bundle, sha256
from tinyrm.comparison import Comparison
from tinyrm.errors import InvalidBundle, InvalidInput, InvalidTemplate
from tinyrm.modernbert.checkpoint import load_masked_lm
from tinyrm.modernbert.files import weights_sha256
from tinyrm.scorer import Scorer
from tinyrm.spec import RUN_FILE
from tinyrm.template import ANSWER_COLON


def export(trained: Trained, out: Path, **changes: object) -> Bundle:
    export_bundle(ExportOptions(model=str(trained.base), adapter=trained.adapter, out=out, **changes))
    return Bundle.open(out)


def test_manifest_describes_the_model(trained: Trained, bundle_folder: Path) -> None:
    manifest = Bundle.open(bundle_folder).manifest
    config = load_masked_lm(str(trained.base)).config
    assert (manifest.name, manifest.spec, manifest.temperature) == ("toy", TOY_SPEC, 1.0)
    assert (manifest.geometry.layers, manifest.geometry.hidden) == (4, 32)
    assert (manifest.geometry.vocab, manifest.geometry.window) == (config.vocab_size, 128)
    assert manifest.geometry.global_layers == (0, 3)
    assert manifest.parameters == load_masked_lm(str(trained.base)).num_parameters()
    names = ["adapter unmerged, merged", "torch, onnx", "alone, in a batch"]
    assert [parity.check for parity in manifest.parity] == names


@pytest.mark.usefixtures("compiled_before")
def test_the_manifest_contains_the_training_run(recorded: Trained, tmp_path: Path) -> None:
    manifest = export(recorded, tmp_path / "toy", demo=True).manifest
    assert manifest.demo
    assert manifest.provenance.recipe == RUN["recipe"]
    assert manifest.provenance.data_sha256 == RUN["data_sha256"]
    chosen = ["temperature", "auto_swap"]
    assert manifest.evaluation == {"held_out": RUN["held_out"] | {"chosen_on": chosen}}
    assert manifest.calibration
    assert (manifest.calibration.pairs, manifest.calibration.held_out) == (60, True)
    assert manifest.calibration.pairs_sha256 == sha256(recorded.adapter / "held_out.jsonl")
    assert manifest.calibration.chosen == tuple(chosen)
    assert 0 < (manifest.calibration.log_temperature_std or 0) < 1
    one_order = manifest.calibration.temperature_one_order
    assert manifest.temperature_one_order == one_order not in (None, manifest.temperature)
    assert manifest.provenance.training == {"base_commit": "0123", "data": {"pairs": {"revision": "v1"}}}
    assert manifest.provenance.base_sha256 == weights_sha256(str(recorded.base))
    assert manifest.provenance.adapter_sha256 == weights_sha256(str(recorded.adapter))
    assert (manifest.provenance.base_model, manifest.provenance.adapter) == (str(recorded.base), str(recorded.adapter))


@pytest.mark.usefixtures("compiled_before")
def test_held_out_pairs_set_the_temperature_unless_others_are_given(recorded: Trained, tmp_path: Path) -> None:
    by_held_out = export(recorded, tmp_path / "one").manifest.temperature
    lines = (recorded.adapter / "held_out.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "other.jsonl").write_text("".join(lines[:55]).replace('"prompt":"', '"prompt":" '))
    others = {"calibration": tmp_path / "other.jsonl", "max_calibration_pairs": 52}
    by_others = export(recorded, tmp_path / "two", **others).manifest
    assert len({1.0, by_held_out, by_others.temperature}) == 3
    assert by_others.calibration
    assert (by_others.calibration.pairs, by_others.calibration.held_out) == (52, False)


@pytest.mark.usefixtures("compiled_before")
def test_what_training_chose_on_held_out_pairs_is_marked_too(recorded: Trained, tmp_path: Path) -> None:
    measured = RUN["held_out"] | {"chosen_on": ["checkpoint"]}
    (recorded.adapter / RUN_FILE).write_text(json.dumps(RUN | {"held_out": measured}))
    one = export(recorded, tmp_path / "one").manifest
    assert one.evaluation["held_out"]["chosen_on"] == ["checkpoint", "temperature", "auto_swap"]
    lines = (recorded.adapter / "held_out.jsonl").read_text()
    (tmp_path / "other.jsonl").write_text(lines.replace('"prompt":"', '"prompt":" '))
    two = export(recorded, tmp_path / "two", calibration=tmp_path / "other.jsonl").manifest
    assert two.evaluation["held_out"] == measured
    (tmp_path / "part.jsonl").write_text("".join(lines.splitlines(keepends=True)[:55]))
    three = export(recorded, tmp_path / "three", calibration=tmp_path / "part.jsonl").manifest
    assert three.evaluation == one.evaluation, "named by another file, they are the same pairs"


@pytest.mark.usefixtures("compiled_before")
def test_a_few_pairs_set_neither_temperature_nor_margin(recorded: Trained, tmp_path: Path) -> None:
    lines = (recorded.adapter / "held_out.jsonl").read_text().splitlines(keepends=True)
    (recorded.adapter / "held_out.jsonl").write_text("".join(lines[:4]))
    manifest = export(recorded, tmp_path / "toy").manifest
    assert (manifest.temperature, manifest.auto_swap) == (1.0, None)
    assert manifest.calibration
    assert (manifest.calibration.pairs, manifest.calibration.chosen) == (4, ())
    assert manifest.evaluation == {"held_out": RUN["held_out"]}


REFUSED_AT_ONCE = {
    "a space": ({"out": Path("my model")}, "'my model' must begin"),
    "not ASCII": ({"out": Path("modèle")}, "must begin"),
    "an underscore first": ({"out": Path("_mine")}, "must begin"),
    "a dot": ({"out": Path(".mine")}, "must begin"),
    "no name": ({"out": Path()}, "must begin"),
    "in a file": ({"out": Path("file/mine")}, "cannot be written"),
    "no card": ({"card": Path("card.md")}, "there is no model card"),
    "no adapter": ({"adapter": Path("none")}, "there is no folder"),
    "no pairs file": ({"calibration": Path("none.jsonl")}, "none.jsonl cannot be read"),
    "no pairs": ({"calibration": Path("file")}, "holds no pairs"),
    "a wrong line": ({"calibration": Path("wrong.jsonl")}, "line 1"),
    "int8 without pairs": ({"precisions": ("int8",)}, "int8 needs calibration pairs"),
    "int8 with few pairs": (
        {"precisions": ("int8",), "calibration": Path("few.jsonl")},
        "holds 1 pairs; int8 needs 8",
    ),
    "int8 of a plain graph": (
        {"precisions": ("int8",), "calibration": Path("few.jsonl"), "graph": "plain"},
        "--graph plain",
    ),
    "weights of a plain graph": ({"weights": True, "graph": "plain"}, "--graph plain"),
    "a negative limit": ({"max_calibration_pairs": -1}, "must not be negative"),
    "a negative budget": ({"adapter": None, "max_tokens": -5}, "must be at least 1"),
    "no budget": ({"adapter": None, "max_tokens": 0}, "must be at least 1"),
    "a budget above the positions": ({"adapter": None, "max_tokens": 9000}, "which has 8192 positions"),
    "a revision of a folder": ({"revision": "v1"}, "leave the revision out"),
}


@pytest.mark.parametrize("case", REFUSED_AT_ONCE)
def test_what_cannot_be_exported_is_refused_before_the_work(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.setattr("export.source.load_with_adapter", lambda *_, **__: pytest.fail("the model was loaded"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "wrong.jsonl").write_text("{}\n")
    (tmp_path / "few.jsonl").write_text('{"prompt": "x", "chosen": "yes", "rejected": "no"}\n')
    before = sorted(tmp_path.iterdir())
    changes, reason = REFUSED_AT_ONCE[case]
    options = {"model": str(trained.base), "adapter": trained.adapter, "out": Path("mine")} | changes
    with pytest.raises(InvalidInput, match=reason):
        export_bundle(ExportOptions(**options))
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["training.json", "cloze.json", "tokenizer.json", "adapter_config.json"])
@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff", b'{"recipe": [], "held_out": 1, "target_modules": 1}'],
    ids=["empty", "cut", "a list", "not UTF-8", "other fields"],
)
def test_damaged_records_are_refused_in_one_line(
    trained: Trained, tmp_path: Path, name: str, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = shutil.copytree(trained.adapter, tmp_path / "adapter")
    (adapter / name).write_bytes(content)
    arguments = ["--model", str(trained.base), "--adapter", str(adapter), "--out", str(tmp_path / "toy")]
    assert main(arguments) == 2
    line = [line for line in capsys.readouterr().err.splitlines() if line.startswith("export:")]
    assert len(line) == 1
    assert line[0].startswith(f"export: {InvalidInput.type}: ")
    assert not (tmp_path / "toy").exists()


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(trained: Trained, tmp_path: Path) -> None:
    adapter = shutil.copytree(trained.adapter, tmp_path / "adapter")
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    tokenizer.add_tokens(["<one more>"])
    tokenizer.save_pretrained(adapter)
    with pytest.raises(InvalidInput, match="use the model's own tokenizer"):
        export(Trained(trained.base, adapter), tmp_path / "toy")


@pytest.mark.usefixtures("compiled_before")
def test_an_empty_calibration_file_is_refused(recorded: Trained, tmp_path: Path) -> None:
    (recorded.adapter / "held_out.jsonl").write_text("")
    with pytest.raises(InvalidInput, match="holds no pairs"):
        export(recorded, tmp_path / "toy")
    assert not (tmp_path / "toy").exists()


@pytest.mark.usefixtures("compiled_before")
def test_an_adapter_without_a_tokenizer_uses_that_of_its_base(
    recorded: Trained, tmp_path: Path, bundle_folder: Path
) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (recorded.adapter / name).unlink()
    bundle = export(recorded, tmp_path / "toy")
    assert bundle.encoder().label_ids == Bundle.open(bundle_folder).encoder().label_ids


@pytest.mark.usefixtures("compiled_before")
def test_a_failing_export_leaves_the_older_bundle(trained: Trained, tmp_path: Path) -> None:
    before = export(trained, tmp_path / "toy").manifest
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(InvalidInput):
        export(trained, tmp_path / "toy", calibration=tmp_path / "empty.jsonl")
    assert Bundle.open(tmp_path / "toy").manifest == before


def test_command_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "export", "--help"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert all(option in done.stdout for option in ("--model", "--adapter", "--out", "--calibration", "--template"))


@pytest.mark.slow
def test_command_exports_a_model_trained_elsewhere(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "store" / "plain"
    arguments = ["--model", str(trained.base), "--out", str(out), "--template", "answer-colon", "--max-tokens", "140"]
    monkeypatch.setattr("sys.argv", ["export", *arguments])
    assert main() == 0
    manifest = Bundle.open(out).manifest
    assert f"{manifest.identity} written to {out}" in capsys.readouterr().out
    assert (manifest.spec.template, manifest.spec.max_tokens) == (ANSWER_COLON, 140)
    assert (manifest.provenance.adapter, manifest.provenance.recipe) == (None, {})
    (preference,) = Scorer.open(out).score([Comparison("What is 2 + 2?", "4", "5")], ["Select the best response."])
    assert preference.p_a + preference.p_b == pytest.approx(1)


@pytest.mark.usefixtures("compiled_before")
def test_command_prints_parity_temperature_and_identity(
    recorded: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", str(recorded.base), "--adapter", str(recorded.adapter), "--out", str(tmp_path / "toy")]
    monkeypatch.setattr("sys.argv", ["export", *arguments])
    assert main() == 0
    manifest = Bundle.open(tmp_path / "toy").manifest
    out = capsys.readouterr().out
    assert "torch, onnx: " in out
    assert f"temperature {manifest.temperature:.3f}" in out
    assert manifest.identity in out


def test_command_reports_a_refusal_and_fails(
    recorded: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = json.loads((recorded.adapter / "cloze.json").read_text())
    (recorded.adapter / "cloze.json").write_text(json.dumps(spec | {"max_tokens": 50}))
    arguments = ["--model", str(recorded.base), "--adapter", str(recorded.adapter), "--out", str(tmp_path / "toy")]
    monkeypatch.setattr("sys.argv", ["export", *arguments])
    assert main() == 1
    assert f"export: {InvalidTemplate.type}: max_tokens=50" in capsys.readouterr().err
    assert not (tmp_path / "toy").exists()


def test_spec_and_tokenizer_come_from_the_last_training(trained: Trained, tmp_path: Path) -> None:
    shutil.copytree(trained.adapter, tmp_path / "adapter")
    options = ExportOptions(model=str(trained.base), adapter=tmp_path / "adapter", out=tmp_path / "out")
    assert options.spec() == TOY_SPEC
    assert options.tokenizer == str(tmp_path / "adapter")
    given = ExportOptions(model=str(trained.base), out=tmp_path / "out", template="answer-colon", max_tokens=140).spec()
    assert (given.template, given.max_tokens) == (ANSWER_COLON, 140)


def test_options_that_contradict_the_training_are_refused(trained: Trained, tmp_path: Path) -> None:
    options = ExportOptions(model=str(trained.base), adapter=trained.adapter, out=tmp_path / "out", max_tokens=99)
    with pytest.raises(InvalidInput, match="leave both options out"):
        options.spec()


def test_a_folder_that_is_not_a_bundle_is_never_replaced(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "precious").write_text("weights")
    with pytest.raises(InvalidBundle, match="choose another folder"):
        export_bundle(ExportOptions(model=str(trained.base), adapter=trained.adapter, out=tmp_path / "store"))
    assert (tmp_path / "store" / "precious").read_text() == "weights"


def test_a_head_without_weights_is_refused(trained: Trained, tmp_path: Path) -> None:
    adapter = shutil.copytree(trained.adapter, tmp_path / "adapter")
    (adapter / "training.json").write_text(json.dumps({"recipe": {"head": "pair-cls"}}))
    with pytest.raises(InvalidInput, match="has the classifier of a model that was trained with head: pair-cls"):
        export_bundle(ExportOptions(model=str(trained.base), adapter=adapter, out=tmp_path / "out"))


def test_an_adapter_of_another_base_is_refused(trained: Trained, tmp_path: Path) -> None:
    adapter = shutil.copytree(trained.adapter, tmp_path / "adapter")
    (adapter / "training.json").write_text(json.dumps({"base_sha256": "0" * 64}))
    with pytest.raises(InvalidInput, match="other weights"):
        export_bundle(ExportOptions(model=str(trained.base), adapter=adapter, out=tmp_path / "out"))
