"""Test `trainer:` in recipes: what is passed on works, and what cannot is refused before a run costs anything."""

from collections.abc import Callable
from multiprocessing import active_children
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from pickle import loads
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import EvalPrediction, TrainerCallback
from transformers.integrations import integration_utils

from tests.training.conftest import Toy, read_log, weights
from tinyrm.errors import InvalidInput, TinyRMError
from tinyrm.spec import RUN_FILE, SPEC_FILE, read_run
from training import arguments
from training.__main__ import main
from training.arguments import training_arguments
from training.experiments.dry_run import describe_recipe
from training.recipe import ClozeRecipe
from training.stages import cloze
from training.stages.cloze import ClozeTrainer, preference_metrics, train_cloze
from training.trainer import refuse_damaged

Train = Callable[[ClozeRecipe], nn.Module]
DORA = {"rank": 2, "alpha": 2}


def adapter(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor], atol: float = 1e-6) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], atol=atol, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loging_steps": 5}, r"has no field loging_steps; did you mean logging_steps\?"),
        ({"evaluation_strategy": "epoch"}, r"has no field evaluation_strategy; did you mean eval_strategy\?"),
        ({"logging_steps": "often"}, "logging_steps is 'often' and should be a valid number"),
        ({"eval_strategy": "sometimes"}, "eval_strategy is 'sometimes' and should be 'no', 'steps' or 'epoch'"),
        ({"dataloader_num_workers": -1}, "dataloader_num_workers must be at least 0, not -1"),
        ({"eval_accumulation_steps": 0}, "eval_accumulation_steps must be at least 1, not 0"),
        ({"learning_rate": 1e-4}, "learning_rate is not set here; use optimization.peak_lr"),
        ({"torch_compile": True}, "use optimization.compile"),
        ({"max_grad_norm": 2}, "use optimization.max_grad_norm"),
        ({"hub_token": "hf_"}, "use the environment variable HF_TOKEN"),
        ({"early_stopping_patience": 2}, "use early_stopping_patience beside `trainer`"),
    ],
)
def test_a_field_that_is_wrong_is_refused_with_the_recipe(
    toy: Toy, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        toy.recipe(tmp_path, trainer=fields)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"trainer": {"save_strategy": "epoch", "load_best_model_at_end": True}},
            "requires the save and eval strategy",
        ),
        ({"trainer": {"dataloader_prefetch_factor": 2}}, "dataloader_num_workers > 0"),
        ({"trainer": {"metric_for_best_model": "f1"}}, "is f1; this recipe measures loss, accuracy, "),
        ({"trainer": {"eval_strategy": "no"}, "early_stopping_patience": 1}, "eval_strategy is no"),
        ({"trainer": {"report_to": "tensorbord"}}, r"tensorbord is not a tracker; did you mean tensorboard\?"),
        ({"trainer": {"report_to": ["neptune"]}}, "neptune is not installed; install its package, or remove report_to"),
    ],
)
def test_values_that_do_not_go_together_are_refused_before_the_data_are_read(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(arguments, "get_available_reporting_integrations", list)
    with pytest.raises(InvalidInput, match=message):
        train_cloze(toy.recipe(tmp_path / "out", **changes), tmp_path / "nowhere", resume=False)
    assert not (tmp_path / "out").exists()


def test_the_command_line_names_the_field_in_one_line(
    toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = toy.recipe(tmp_path / "out").model_dump(mode="json") | {"trainer": {"loging_steps": 5}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(fields))
    assert main([str(tmp_path / "recipe.yaml"), "--dry-run"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert "did you mean logging_steps?" in lines[0]


def test_the_plan_prints_what_the_fields_change(toy: Toy, tmp_path: Path) -> None:
    recipe = toy.recipe(tmp_path, trainer={"logging_steps": 3}, early_stopping_patience=2)
    (line,) = [line for line in describe_recipe(recipe, None) if line.startswith("trainer")]
    assert "logging_steps: 3" in line
    assert "early_stopping_patience: 2" in line


def test_our_defaults_stay(toy: Toy, tmp_path: Path) -> None:
    plain, changed = (training_arguments(toy.recipe(tmp_path, trainer=fields)) for fields in ({}, {"logging_steps": 3}))
    assert (plain.logging_steps, changed.logging_steps) == (10, 3)
    assert (plain.report_to, plain.save_total_limit, plain.eval_strategy) == ([], 2, "steps")
    assert plain.logging_nan_inf_filter is False
    assert plain.ddp_find_unused_parameters is False
    assert {**changed.to_dict(), "logging_steps": 10} == plain.to_dict()


def test_a_tracker_is_registered_beside_our_own_log(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[dict[str, float]] = []

    class Tracker(TrainerCallback):
        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            reported.append(logs)

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tracker", Tracker)
    monkeypatch.setattr(arguments, "get_available_reporting_integrations", lambda: ["tracker"])
    train_cloze(toy.recipe(tmp_path, trainer={"report_to": "tracker", "logging_steps": 1}), toy.data, resume=False)
    assert [logs["loss"] for logs in reported if "loss" in logs] == [
        e["loss"] for e in read_log(tmp_path) if "loss" in e
    ]
    assert len([logs for logs in reported if "loss" in logs]) == 2


@pytest.mark.parametrize("dora", [None, DORA], ids=["weights", "adapter"])
def test_a_run_stops_early_and_keeps_its_best_checkpoint(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dora: dict[str, int] | None
) -> None:
    # Of an nll, less is better: the second evaluation is the best, and two without a better one follow.
    script = iter([0.5, 0.1, 0.9, 0.2, 0.0, 0.0])

    def scripted(prediction: EvalPrediction) -> dict[str, float]:
        return {**preference_metrics(prediction), "nll": next(script)}

    monkeypatch.setattr(cloze, "preference_metrics", scripted)
    recipe = toy.recipe(
        tmp_path,
        {"max_steps": 9, "eval_steps": 1, "save_steps": 1},
        trainer={"metric_for_best_model": "nll"},
        early_stopping_patience=2,
        dora=dora,
    )
    train_cloze(recipe, toy.data, resume=False)
    assert max(entry["step"] for entry in read_log(tmp_path)) == 4
    name = "adapter_model.safetensors" if dora else "model.safetensors"
    best, last, written = (load_file(tmp_path / folder / name) for folder in ("checkpoint-2", "checkpoint-4", "."))
    assert_close(written, best, atol=0)
    assert any(not value.equal(last[key]) for key, value in written.items())
    # Measures on the pairs that chose the checkpoint are too good.
    assert read_run(tmp_path)["held_out"]["chosen_on"] == ["checkpoint"]


def test_averaged_checkpoints_are_not_chosen_among(toy: Toy, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"average needs its own checkpoints.*remove early_stopping_patience"):
        toy.recipe(tmp_path, {"save_steps": 1, "average": (2, 3)}, early_stopping_patience=1)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_that_load_data_make_the_same_batches(toy: Toy, tmp_path: Path, method: str) -> None:
    if method == "spawn":  # what a worker would be sent, without the seconds in which it imports torch
        seen: dict[str, Any] = {}

        def caught(**kwargs: Any) -> ClozeTrainer:
            seen.update(kwargs)
            raise InterruptedError

        with pytest.raises(InterruptedError):
            train_cloze(toy.recipe(tmp_path), toy.data, resume=False, make_trainer=caught)
        sent = loads(ForkingPickler.dumps((seen["train_dataset"], seen["data_collator"])))
        batches = [collate([data[i] for i in range(4)]) for data, collate in (sent, (seen["train_dataset"], sent[1]))]
        assert_close(batches[0], batches[1], atol=0)
        return
    for name, fields in (("here", {}), ("there", {"dataloader_num_workers": 2, "dataloader_persistent_workers": True})):
        recipe = toy.recipe(tmp_path / name, {"max_steps": 14}, dora=DORA, trainer=fields)  # into a second epoch
        train_cloze(recipe, toy.data, resume=False)
        assert not active_children()
    assert_close(adapter(tmp_path / "here"), adapter(tmp_path / "there"), atol=0)


def test_a_run_that_fails_ends_the_processes_that_load_data(toy: Toy, tmp_path: Path) -> None:
    fields = {"dataloader_num_workers": 2, "dataloader_persistent_workers": True}
    recipe = toy.recipe(tmp_path, {"peak_lr": 1e30, "max_steps": 14}, trainer=fields)
    with pytest.raises(TinyRMError, match="in step"):
        train_cloze(recipe, toy.data, resume=False)
    assert not active_children()


def test_processes_that_load_several_held_out_sets_end_with_the_training(toy: Toy, tmp_path: Path) -> None:
    fields = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    left: list[int] = []

    class Counting(ClozeTrainer):
        def train(self, *args: Any, **kwargs: Any) -> Any:
            super().train(*args, **kwargs)
            left.append(len(active_children()))

    def two_sets(**kwargs: Any) -> ClozeTrainer:
        held_out = kwargs["eval_dataset"]
        return Counting(**kwargs | {"eval_dataset": {"one": held_out, "other": held_out}})

    recipe = toy.recipe(tmp_path, {"max_steps": 2, "eval_steps": 1}, trainer=fields)
    train_cloze(recipe, toy.data, resume=False, make_trainer=two_sets)
    assert left == [0]


@pytest.mark.slow
def test_a_compiled_model_learns_the_same(toy: Toy, tmp_path: Path) -> None:
    for name, compiled in (("plain", False), ("compiled", True)):
        fields = {"torch_compile_backend": "eager"} if compiled else {}
        train_cloze(toy.recipe(tmp_path / name, {"compile": compiled}, trainer=fields), toy.data, resume=False)
    assert_close(*(load_file(tmp_path / name / "model.safetensors") for name in ("plain", "compiled")))


@pytest.mark.parametrize(
    ("offline", "token", "message"),
    [(True, "hf_x", "HF_HUB_OFFLINE is set"), (False, None, "needs a token"), (False, "hf_x", "does not accept")],
)
def test_a_run_that_cannot_be_pushed_is_refused_before_it_begins(  # noqa: PLR0917
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: bool, token: str | None, message: str
) -> None:
    def refuse() -> None:
        raise ConnectionError("401 Client Error")

    monkeypatch.setattr(arguments, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(arguments, "get_token", lambda: token)
    monkeypatch.setattr(arguments, "whoami", refuse)
    with pytest.raises(InvalidInput, match=message):
        train_cloze(toy.recipe(tmp_path / "out", trainer={"push_to_hub": True}), toy.data, resume=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_run_is_pushed_once_and_whole(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed: list[set[str]] = []
    monkeypatch.setattr(arguments, "refuse_push", lambda: None)
    monkeypatch.setattr(ClozeTrainer, "init_hf_repo", lambda *_, **__: None)
    monkeypatch.setattr(
        ClozeTrainer, "push_to_hub", lambda trainer, **_: pushed.append({path.name for path in tmp_path.iterdir()})
    )
    fields = {"push_to_hub": True, "hub_strategy": "end"}
    train_cloze(toy.recipe(tmp_path, trainer=fields), toy.data, resume=False)
    assert len(pushed) == 1
    assert pushed[0] >= {"model.safetensors", "tokenizer.json", RUN_FILE, SPEC_FILE}


@pytest.mark.parametrize(
    ("changes", "reentrant"),
    [
        ({}, False),
        ({"dora": DORA, "frozen_layers": 1}, False),
        ({"dora": DORA, "frozen_layers": 1}, True),
        ({"head": "set", "sets": {"others": "tokens"}}, False),
    ],
    ids=["weights", "adapter", "adapter-reentrant", "set"],
)
def test_recomputed_activations_give_the_same_gradients(
    toy: Toy, tmp_path: Path, changes: dict[str, Any], reentrant: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: dict[str, int] = {}
    recomputed: dict[str, Any] = {"activation_checkpointing": True}
    if reentrant:
        recomputed["activation_checkpointing_kwargs"] = {"use_reentrant": True}
    for name, fields in (("kept", {}), ("recomputed", recomputed)):
        recipe = toy.recipe(tmp_path / name, trainer={"logging_steps": 1, **fields}, **changes)
        model = cloze.learning_model(recipe)
        layer = model.get_submodule("base_model.model.model.layers.2" if "dora" in changes else "model.layers.2")
        layer.mlp.register_forward_pre_hook(lambda *_, name=name: runs.__setitem__(name, runs.get(name, 0) + 1))
        monkeypatch.setattr(cloze, "learning_model", lambda _, model=model: model)
        train_cloze(recipe, toy.data, resume=False)
        monkeypatch.undo()
    assert runs["recomputed"] == runs["kept"] + 2, "once more in each of the two steps"
    kept, again = ([e for e in read_log(tmp_path / name) if "loss" in e] for name in ("kept", "recomputed"))
    for one, other in zip(kept, again, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], abs=1e-6)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-5)
        assert one["grad_norm"] > 0
    file = "adapter_model.safetensors" if "dora" in changes else "model.safetensors"
    assert_close(*(load_file(tmp_path / name / file) for name in ("kept", "recomputed")))


def test_a_batch_size_that_fits_is_found_and_the_steps_remain_the_same(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    compute = ClozeTrainer.compute_loss

    def limited(trainer: ClozeTrainer, model: nn.Module, inputs: dict[str, Tensor], *args: Any, **kw: Any) -> Any:
        if model.training:
            sizes.append(len(inputs["input_ids"]))
            if sizes[-1] > 4:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return compute(trainer, model, inputs, *args, **kw)

    train_cloze(toy.recipe(tmp_path / "whole"), toy.data, resume=False)
    monkeypatch.setattr(ClozeTrainer, "compute_loss", limited)
    train_cloze(toy.recipe(tmp_path / "found", trainer={"auto_find_batch_size": True}), toy.data, resume=False)
    assert sizes[0] == 8
    assert sizes[-4:] == [4] * 4, "two steps of two passes"
    assert_close(*(load_file(tmp_path / name / "model.safetensors") for name in ("whole", "found")), atol=1e-5)


def test_a_run_is_resumed_with_other_logging_and_not_with_another_noise(toy: Toy, tmp_path: Path) -> None:
    steps = {"save_steps": 1, "max_steps": 2}
    train_cloze(toy.recipe(tmp_path, steps), toy.data, resume=False)
    (tmp_path / "model.safetensors").unlink()
    logs = {"logging_steps": 1, "report_to": "none", "activation_checkpointing": True, "dataloader_num_workers": 1}
    train_cloze(toy.recipe(tmp_path, steps, trainer=logs, attention="eager", padding_free=False), toy.data, resume=True)
    with pytest.raises(InvalidInput, match="another recipe"):
        train_cloze(toy.recipe(tmp_path, steps, trainer={"neftune_noise_alpha": 5}), toy.data, resume=True)


def test_a_checkpoint_without_its_optimizer_is_not_continued(toy: Toy, tmp_path: Path) -> None:
    steps = {"save_steps": 1, "max_steps": 2}
    train_cloze(toy.recipe(tmp_path, steps, trainer={"save_only_model": True}), toy.data, resume=False)
    with pytest.raises(InvalidInput, match=r"checkpoint-2 has no optimizer\.pt to continue with"):
        train_cloze(toy.recipe(tmp_path, steps), toy.data, resume=True)


def test_another_learning_field_reaches_the_run(toy: Toy, train: Train, tmp_path: Path) -> None:
    plain, noisy = (
        weights(train(toy.recipe(tmp_path / str(len(fields)), trainer=fields)))
        for fields in ({}, {"neftune_noise_alpha": 50.0})
    )
    assert max(float((value - noisy[name]).abs().max()) for name, value in plain.items()) > 1e-4
    assert np.isfinite([float(value.sum()) for value in noisy.values()]).all()


def test_no_without_quotes_is_no(toy: Toy, tmp_path: Path) -> None:
    """YAML reads it as false."""
    recipe = toy.recipe(tmp_path, trainer=yaml.safe_load("{eval_strategy: no, save_strategy: no}"))
    assert recipe.trainer == {"eval_strategy": "no", "save_strategy": "no"}
    train_cloze(recipe, toy.data, resume=False)
    assert "held_out" in read_run(tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fsdp": "full_shard"}, "trainer: .*fsdp only works in distributed training"),
        ({"torch_compile_backend": "nope"}, "trainer: 'NOPE' is not a valid DynamoBackend"),
    ],
)
def test_what_the_trainer_refuses_is_one_line(toy: Toy, tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        train_cloze(toy.recipe(tmp_path, trainer=fields), toy.data, resume=False)
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize("name", ["trainer_state.json", "model.safetensors", "optimizer.pt"])
def test_a_checkpoint_that_was_not_written_whole_is_named(tmp_path: Path, name: str) -> None:
    torch.save({"a": 1}, tmp_path / "optimizer.pt")
    save_file({"a": torch.zeros(9)}, tmp_path / "model.safetensors")
    (tmp_path / "trainer_state.json").write_text("{}")
    refuse_damaged(tmp_path)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InvalidInput, match=f"{name} is damaged .* continues from the checkpoint before"):
        refuse_damaged(tmp_path)
