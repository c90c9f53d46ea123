"""Compare a plan with a run: operations by torch's counter, steps by the Trainer, rates."""

import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from tests.training.conftest import PAIRS, SPEC, Toy, read_log
from tinyrm.bundle import read_manifest
from tinyrm.flops import executed_flops
from tinyrm.modernbert.checkpoint import load_masked_lm, read_geometry
from tinyrm.pairs import read_pairs
from tinyrm.spec import HELD_OUT_FILE
from training.__main__ import main
from training.experiments.plan import (
    Learning,
    Plan,
    describe_steps,
    differences,
    learning_parts,
    memory_bytes,
    operations,
    plan,
    training_flops,
)
from training.loading import find_recipe
from training.recipe import ClozeRecipe, DistilRecipe, Dora
from training.stages.cloze import train_cloze, with_learning_parts
from training.stages.distil import teacher_probabilities

DORA = Dora(rank=4, alpha=4)
LORA = Dora(rank=4, alpha=4, magnitude=False)


def counted(recipe: ClozeRecipe, tokens: int) -> int:
    """Return the operations of forward and backward of one micro batch, by torch's counter, per sequence."""
    model = load_masked_lm(recipe.model, sparse_prediction=True)
    # Torch counts products it can see; the fused kernel of the CPU is not among them.
    model.set_attn_implementation("eager")
    learning = with_learning_parts(model, recipe).train()
    ids = torch.full((recipe.optimization.micro_batch_size, tokens), 9)
    labels = torch.full_like(ids, -100)
    labels[:, -1] = 7
    with FlopCounterMode(display=False) as counter:
        learning(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss.backward()
    total: int = counter.get_total_flops()
    return total // recipe.optimization.micro_batch_size


@pytest.mark.parametrize(
    ("changes", "tokens"),
    [
        ({}, 300),
        ({"frozen_layers": 2}, 60),
        ({"frozen_layers": 2, "freeze_embeddings": False}, 60),
        ({"dora": DORA}, 60),
        ({"dora": DORA, "frozen_layers": 2}, 300),
        ({"dora": LORA}, 60),
    ],
    ids=str,
)
def test_training_operations_are_those_torch_counts(
    toy: Toy, tmp_path: Path, changes: dict[str, Any], tokens: int
) -> None:
    recipe = toy.recipe(tmp_path, **changes)
    model = load_masked_lm(recipe.model)
    parts = learning_parts(with_learning_parts(model, recipe))
    stated = training_flops(read_geometry(model.config), recipe, parts, tokens)
    assert stated == pytest.approx(counted(recipe, tokens), rel=0.01)


def test_trainable_parameters_are_those_of_the_real_model(toy: Toy, tmp_path: Path) -> None:
    for changes in ({}, {"frozen_layers": 2}, {"dora": DORA, "frozen_layers": 1}):
        recipe = toy.recipe(tmp_path, **changes)
        real = with_learning_parts(load_masked_lm(recipe.model), recipe)
        planned = plan(recipe, toy.data)
        assert planned.parts.learning == sum(p.numel() for p in real.parameters() if p.requires_grad)
        assert planned.parts.parameters == sum(p.numel() for p in load_masked_lm(recipe.model).parameters())


@pytest.mark.parametrize("orders", ["both", "coin"])
def test_steps_and_rates_are_those_of_a_run(toy: Toy, tmp_path: Path, orders: str) -> None:
    size = {"max_steps": -1, "epochs": 4, "batch_size": 10, "micro_batch_size": 2, "warmup_ratio": 0.2}
    recipe = toy.recipe(tmp_path, size, orders=orders)
    planned = plan(recipe, toy.data)
    train_cloze(recipe, toy.data, resume=False)
    logged = [(entry["step"], entry["learning_rate"]) for entry in read_log(tmp_path) if "learning_rate" in entry]
    # Who is held out depends on the prompts: a share of them is about that share of the pairs.
    held_out = len(read_pairs(tmp_path / HELD_OUT_FILE))
    assert held_out == pytest.approx(sum(planned.pairs) * recipe.held_out_fraction, abs=6)
    exactly = replace(planned, domains=({"": sum(planned.pairs)},))
    fraction = held_out / sum(planned.pairs)
    exactly = replace(exactly, recipe=recipe.model_copy(update={"held_out_fraction": fraction}))
    steps = read_log(tmp_path)[-1]["step"]
    assert exactly.steps == steps, "the last batch of an epoch counts, full or not"
    assert logged
    assert dict(logged) == pytest.approx({step: exactly.rate(step - 1) for step, _ in logged})
    assert exactly.rates() == {step: exactly.rate(step) for step in exactly.rates()}
    assert exactly.rate(round(steps * 0.2)) == recipe.optimization.peak_lr


def test_memory_by_hand() -> None:
    recipe = ClozeRecipe.model_validate(
        {"task": "cloze", "output_dir": "o", "model": "m", "spec": SPEC, "sources": [PAIRS], "frozen_layers": 1}
        | {"optimization": {"peak_lr": 1, "batch_size": 2, "micro_batch_size": 2, "precision": "bf16"}}
    )
    geometry = read_geometry(load_config())
    parts = Learning(parameters=1000, learning=10, adapters=())
    kept = 1 * (10 * 32 + 4 * 48) * 100 + 2 * 100 * 100
    assert memory_bytes(geometry, recipe, parts, 100) == 1000 * 6 + 10 * 12 + 2 * kept * 2
    fp32 = recipe.model_copy(update={"optimization": recipe.optimization.model_copy(update={"precision": "fp32"})})
    assert memory_bytes(geometry, fp32, parts, 100) == 1000 * 4 + 10 * 12 + 2 * kept * 4


@pytest.mark.parametrize("changes", [{}, {"dora": LORA}, {"dora": DORA}], ids=["full", "lora", "dora"])
def test_memory_is_about_what_torch_keeps(toy: Toy, tmp_path: Path, changes: dict[str, Any]) -> None:
    """Count the storages that a forward pass keeps for the backward pass, each once, without the weights."""
    tokens = 64
    recipe = toy.recipe(tmp_path, **changes)
    model = load_masked_lm(recipe.model, sparse_prediction=True)
    parts = learning_parts(with_learning_parts(model, recipe))
    learning = with_learning_parts(load_masked_lm(recipe.model, sparse_prediction=True), recipe).train()
    own = {p.untyped_storage().data_ptr() for p in learning.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    rows = recipe.optimization.micro_batch_size
    ids = torch.randint(5, 100, (rows, tokens))
    labels = torch.full_like(ids, -100)
    labels[:, -1] = 7
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = learning(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss
    assert loss.requires_grad
    none = recipe.model_copy(update={"optimization": recipe.optimization.model_copy(update={"micro_batch_size": 0})})
    geometry = read_geometry(model.config)
    stated = memory_bytes(geometry, recipe, parts, tokens) - memory_bytes(geometry, none, parts, tokens)
    assert stated == pytest.approx(sum(kept.values()), rel=0.35)


def load_config() -> Any:
    from transformers import ModernBertConfig

    return ModernBertConfig(
        vocab_size=400, num_hidden_layers=2, hidden_size=32, intermediate_size=48, num_attention_heads=2
    )


def test_differences_name_the_innermost_keys() -> None:
    one = {"a": 1, "b": {"c": 1, "d": 2}, "only": 3}
    assert differences(one, {"a": 1, "b": {"c": 1, "d": 5}}) == {"b.d": (2, 5), "only": (3, None)}


def test_balance_and_held_out_pairs_are_counted(toy: Toy, tmp_path: Path) -> None:
    for name, count in (("few", 10), ("many", 40)):
        lines = (json.dumps({"prompt": f"{name} {i}", "chosen": "a", "rejected": "b"}) for i in range(count))
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    sources = [{"dataset": "jsonl", "path": f"{name}.jsonl", "domain": name} for name in ("few", "many")]
    planned = plan(toy.recipe(tmp_path / "out", sources=sources, balance=0.5, held_out_fraction=0.1), tmp_path)
    assert planned.pairs == (10, 40)
    assert planned.learned_pairs == {"few": 9, "many": 18}


def test_balance_counts_the_domains_of_the_records(toy: Toy, tmp_path: Path) -> None:
    records = [{"prompt": str(i), "chosen": "a", "rejected": "b", "domain": ("x", "y")[i < 10]} for i in range(50)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    sources = [{"dataset": "jsonl", "path": "pairs.jsonl"}]
    planned = plan(toy.recipe(tmp_path / "out", sources=sources, balance=0, held_out_fraction=0.1), tmp_path)
    assert planned.pairs == (50,)
    assert planned.learned_pairs == {"x": 9, "y": 9}


def test_a_plan_states_which_checkpoints_are_averaged(toy: Toy, tmp_path: Path) -> None:
    recipe = toy.recipe(tmp_path, {"save_steps": 2, "average": (2, 6, 4)})
    assert "ends after step 6 with the mean of the weights after 2, 6, 4" in describe_steps(plan(recipe, toy.data))


def test_a_file_that_is_not_there_leaves_the_steps_open(toy: Toy, tmp_path: Path) -> None:
    planned = plan(toy.recipe(tmp_path, {"max_steps": -1}), tmp_path)
    assert (planned.pairs, planned.steps, planned.rates()) == ((None,), None, {})


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a dry run reached for the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("how", [["paper/large-reasoning", "--dry-run"], ["plan", "paper/large-reasoning"]])
def test_dry_run_prints_the_resolved_plan(how: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([*how, "--data", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    for part in (
        "54,582 pairs",
        "209 steps of 256 sequences",
        "213 whole batches",
        "33,328,128 of 395,881,664 parameters",
        "DoRA of rank 128, alpha 128 (scale 1), on 65 linears",
        "step     13  2.327e-05",
        "0.857 GFLOP a token",
        "FLOP the run",
        "GiB",
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
    assert main([str(path), "--dry-run"]) == 1
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
    once = 2 * executed_flops(teacher.geometry, teacher.spec.max_tokens, teacher.graph)
    assert f"{operations(32 * once)} for the other 32 pairs" in shown
    recipe = DistilRecipe.model_validate(fields)
    teacher_probabilities(pairs[:5], recipe)
    main(["plan", str(tmp_path / "student.yaml"), "--data", str(toy.data)])
    shown = capsys.readouterr().out
    assert "; 3 of its targets are kept" in shown
    assert f"{operations(29 * once)} for the other 29 pairs" in shown


def test_a_teacher_that_reads_sets_reads_a_pair_once(
    toy: Toy, tmp_path: Path, set_bundle_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teachers = {domain: {"path": str(set_bundle_folder)} for domain in ("general", "safety")}
    fields = toy.recipe(tmp_path / "out").model_dump(mode="json") | {"task": "distil", "teachers": teachers}
    (tmp_path / "student.yaml").write_text(yaml.safe_dump(fields))
    assert main(["plan", str(tmp_path / "student.yaml"), "--data", str(toy.data)]) == 0
    teacher = read_manifest(set_bundle_folder)
    once = executed_flops(teacher.geometry, teacher.spec.max_tokens, teacher.graph)
    assert f"one sequence a pair, {operations(once)} at" in capsys.readouterr().out
