"""Compare a plan with a run: pairs by the run's own division, steps by the Trainer, rates by its log."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.training.conftest import BETTER, WORSE, Toy, read_log, toy_pairs
from tinyrm.bundle import read_manifest
from tinyrm.flops import executed_flops
from tinyrm.modernbert.checkpoint import load_masked_lm
from tinyrm.pairs import read_pairs
from tinyrm.spec import HELD_OUT_FILE
from training.__main__ import main
from training.experiments.dry_run import describe_data, describe_steps, differences
from training.experiments.plan import Plan, operations, plan
from training.loading import find_recipe, load_recipe
from training.recipe import ClozeRecipe, DistilRecipe, Dora
from training.stages.cloze import train_cloze, with_learning_parts
from training.stages.distil import teacher_probabilities

DORA = Dora(rank=4, alpha=4)


def test_trainable_parameters_are_those_of_the_real_model(toy: Toy, tmp_path: Path) -> None:
    for changes in ({}, {"frozen_layers": 2}, {"dora": DORA, "frozen_layers": 1}):
        recipe = toy.recipe(tmp_path, **changes)
        real = with_learning_parts(load_masked_lm(recipe.model), recipe)
        planned = plan(recipe, toy.data)
        assert planned.parts.learning == sum(p.numel() for p in real.parameters() if p.requires_grad)
        assert planned.parts.parameters == sum(p.numel() for p in load_masked_lm(recipe.model).parameters())


@pytest.mark.parametrize("orders", ["both", "coin"])
def test_pairs_steps_and_rates_are_those_of_a_run(toy: Toy, tmp_path: Path, orders: str) -> None:
    size = {"max_steps": -1, "epochs": 4, "batch_size": 10, "micro_batch_size": 2, "warmup_ratio": 0.2}
    recipe = toy.recipe(tmp_path, size, orders=orders)
    planned = plan(recipe, toy.data)
    train_cloze(recipe, toy.data, resume=False)
    held_out = len(read_pairs(tmp_path / HELD_OUT_FILE))
    assert planned.pairs == (64,)
    assert sum(planned.learned_pairs.values()) == 64 - held_out
    assert planned.held_out_rows == 2 * held_out
    logged = [(entry["step"], entry["learning_rate"]) for entry in read_log(tmp_path) if "learning_rate" in entry]
    steps = read_log(tmp_path)[-1]["step"]
    assert planned.steps == steps, "the last batch of an epoch counts, full or not"
    assert logged
    assert dict(logged) == pytest.approx({step: planned.rate(step - 1) for step, _ in logged})
    assert planned.rates() == {step: planned.rate(step) for step in planned.rates()}
    assert planned.rate(round(steps * 0.2)) == recipe.optimization.peak_lr


def test_differences_name_the_innermost_keys() -> None:
    one = {"a": 1, "b": {"c": 1, "d": 2}, "only": 3}
    assert differences(one, {"a": 1, "b": {"c": 1, "d": 5}}) == {"b.d": (2, 5), "only": (3, None)}


def written(path: Path, prompts: int, domain: str) -> dict[str, str]:
    lines = (json.dumps({"prompt": f"{domain} {i}", "chosen": BETTER, "rejected": WORSE}) for i in range(prompts))
    path.write_text("\n".join(lines))
    return {"dataset": "jsonl", "path": path.name, "domain": domain}


def test_pairs_are_balanced_as_in_training(toy: Toy, tmp_path: Path) -> None:
    sources = [written(tmp_path / f"{name}.jsonl", count, name) for name, count in (("general", 10), ("safety", 40))]
    recipe = toy.recipe(tmp_path / "out", sources=sources, balance=0.5, held_out_fraction=0.1)
    planned = plan(recipe, tmp_path)
    assert planned.pairs == (10, 40)
    train_cloze(recipe, tmp_path, resume=False)
    held_out = [pair.domain for pair in read_pairs(tmp_path / "out" / HELD_OUT_FILE)]
    few, many = 10 - held_out.count("general"), 40 - held_out.count("safety")
    assert planned.learned_pairs == {"general": few, "safety": round(few * (many / few) ** 0.5)}


def test_without_all_pairs_the_split_is_estimated(toy: Toy, tmp_path: Path) -> None:
    sources = [written(tmp_path / "mine.jsonl", 40, "general"), {"dataset": "skywork", "part": "chat"}]
    recipe = toy.recipe(tmp_path / "out", sources=sources, held_out_fraction=0.1)
    planned = plan(recipe, tmp_path)
    assert planned.pairs == (40, 7221)
    assert planned.learned_pairs == {"general": 36, "as the records say": 6499}
    mine, published = describe_data(planned, tmp_path)[:2]
    assert mine.endswith(" 40 pairs")
    assert published.endswith(" 7,221 pairs, as published")


def test_lengths_are_those_of_the_sequences(toy: Toy, tmp_path: Path) -> None:
    recipe = toy.recipe(tmp_path)
    planned = plan(recipe, toy.data)
    learn, lengths = sum(planned.learned_pairs.values()), planned.lengths
    assert (len(lengths.tokens), lengths.origin) == (learn, f"measured on {learn} of {learn} pairs")
    assert max(lengths.tokens) == lengths.longest <= 120
    alone = plan(recipe.model_copy(update={"head": "pointwise"}), toy.data).lengths
    assert alone.mean < lengths.mean
    published = plan(toy.recipe(tmp_path, sources=[{"dataset": "skywork"}]), tmp_path).lengths
    assert (published.mean, published.longest) == (120, 120), "no longer than max_tokens"


def test_without_a_tokenizer_lengths_follow_from_characters(toy: Toy, tmp_path: Path) -> None:
    recipe = toy.recipe(tmp_path, model="answerdotai/ModernBERT-base")
    lengths = plan(recipe, toy.data).lengths
    assert "4 characters a token" in lengths.origin
    longest = max(len(p.prompt) + len(p.chosen) + len(p.rejected) for p in toy_pairs(64))
    assert lengths.longest == longest // 4


def test_a_plan_states_which_checkpoints_are_averaged(toy: Toy, tmp_path: Path) -> None:
    recipe = toy.recipe(tmp_path, {"save_steps": 2, "average": (2, 6, 4)})
    assert "ends after step 6 with the mean of the weights after 2, 6, 4" in describe_steps(plan(recipe, toy.data))


def test_a_file_that_is_not_there_is_named_and_leaves_the_steps_open(toy: Toy, tmp_path: Path) -> None:
    planned = plan(toy.recipe(tmp_path, {"max_steps": -1}), tmp_path)
    assert (planned.pairs, planned.steps, planned.rates()) == ((None,), None, {})
    assert f"{tmp_path / 'pairs.jsonl'} does not exist yet" in describe_data(planned, tmp_path)[0]


def test_a_base_that_earlier_stages_will_write_is_known(tmp_path: Path) -> None:
    recipe = load_recipe(find_recipe("from_scratch/4-cloze"))
    assert isinstance(recipe, ClozeRecipe)
    planned = plan(recipe, tmp_path)
    assert (planned.geometry.layers, planned.geometry.hidden, planned.geometry.vocab) == (7, 256, 16_384)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a dry run reached for the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.slow
@pytest.mark.usefixtures("no_network")
def test_dry_run_prints_the_resolved_plan(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["paper/large-reasoning", "--dry-run", "--data", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    for part in (
        "54,582 pairs",
        "209 steps of 256 sequences",
        "213 whole batches",
        "  template      figure2, labels (' 0', ' 1')",
        "  orders        one, by a seeded coin",
        "  loss          vocabulary",
        "33,328,128 of 395,881,664 parameters",
        "DoRA of rank 128, alpha 128 (scale 1), on 65 linears",
        "step     13  2.327e-05",
        "0.857 GFLOP a token",
        "FLOP the run",
        "54,582 pairs, as published",
        "RTX 4090 ",
        "8 x H100 80 GB, FSDP",
        "author/large-reasoning differs in:",
        "frozen_layers: 0 (here 12)",
        "dora.alpha: 8 (here 128)",
        "spec.template: answer-colon (here figure2)",
        "tinyrm/large-reasoning differs in:",
    ):
        assert part in output
    assert not (tmp_path / "runs").exists()


def test_dry_run_of_another_stage_prints_the_recipe(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["from_scratch/1-tokenizer", "--dry-run"]) == 0
    assert "vocab_size: 16384" in capsys.readouterr().out


def test_a_missing_base_ends_with_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(find_recipe("from_scratch/3-short").read_text().replace("runs/from_scratch/base", "runs/nowhere"))
    assert main([str(path), "--dry-run"]) == 2
    assert "the sizes of 'runs/nowhere' are not known" in capsys.readouterr().err


def test_gflop_of_a_plan_follow_its_parameters(toy: Toy, tmp_path: Path) -> None:
    planned: Plan = plan(toy.recipe(tmp_path), toy.data)
    n = planned.parts.parameters
    assert planned.paper_gflop_per_token() == pytest.approx((2 * n + 6 * n * 4 / 32) / 1e9)


@pytest.mark.parametrize(
    ("flops", "text"),
    [
        (7e9, "7.000 GFLOP"),
        (2.578e12, "2.578 TFLOP"),
        (4.4e15, "4.400 PFLOP"),
        (1.38e17, "138.000 PFLOP"),
        (2.5e18, "2.500 EFLOP"),
        (1e22, "10000.000 EFLOP"),
        (5.0, "0.000 GFLOP"),
    ],
)
def test_operations_have_a_unit_that_fits(flops: float, text: str) -> None:
    assert operations(flops) == text


@pytest.mark.slow
def test_a_dry_run_shows_what_the_teachers_have_to_score(
    toy: Toy, tmp_path: Path, bundle_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = read_pairs(toy.data / "pairs.jsonl")
    given = tmp_path / "given.jsonl"
    given.write_text("".join(json.dumps(pair.model_dump() | {"margin": 1.0}) + "\n" for pair in pairs))
    teachers = {"general": [{"path": str(bundle_folder)}, {"path": str(given)}], "safety": {"path": str(given)}}
    fields = toy.recipe(tmp_path / "out").model_dump(mode="json") | {"task": "distil", "teachers": teachers}
    (tmp_path / "student.yaml").write_text(yaml.safe_dump(fields))
    assert main(["plan", str(tmp_path / "student.yaml"), "--data", str(toy.data)]) == 0
    shown = capsys.readouterr().out
    assert f"{bundle_folder}: 32 pairs" in shown, "those of its domain"
    assert "; 0 of its targets are kept" in shown
    assert f"{given}: 64 pairs\n    a file of targets: nothing to score" in shown
    teacher = read_manifest(bundle_folder)
    pairs_read = plan(DistilRecipe.model_validate(fields), toy.data)
    once = 2 * executed_flops(teacher.geometry, round(pairs_read.lengths.mean), teacher.graph)
    assert f"{operations(32 * once)} for the other 32 pairs" in shown
    recipe = DistilRecipe.model_validate(fields)
    teacher_probabilities(pairs[:5], recipe)
    main(["plan", str(tmp_path / "student.yaml"), "--data", str(toy.data)])
    shown = capsys.readouterr().out
    assert "; 3 of its targets are kept" in shown
    assert f"{operations(29 * once)} for the other 29 pairs" in shown


def test_a_teacher_that_reads_sets_reads_a_pair_once(
    toy: Toy, tmp_path: Path, shared_prompt_bundle_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teachers = {domain: {"path": str(shared_prompt_bundle_folder)} for domain in ("general", "safety")}
    fields = toy.recipe(tmp_path / "out").model_dump(mode="json") | {"task": "distil", "teachers": teachers}
    (tmp_path / "student.yaml").write_text(yaml.safe_dump(fields))
    assert main(["plan", str(tmp_path / "student.yaml"), "--data", str(toy.data)]) == 0
    teacher = read_manifest(shared_prompt_bundle_folder)
    pairs_read = plan(DistilRecipe.model_validate(fields), toy.data)
    once = executed_flops(teacher.geometry, round(pairs_read.lengths.mean), teacher.graph)
    assert f"one sequence a pair, {operations(once)} at" in capsys.readouterr().out
