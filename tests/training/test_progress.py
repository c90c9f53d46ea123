"""Test what a person reads while a model trains."""

import re
from pathlib import Path

import pytest
from transformers import TrainerState

from tests.training.conftest import Toy
from training.progress import line_of
from training.stages.cloze import train_cloze

STATE = TrainerState(global_step=14, max_steps=60, epoch=1.4)


@pytest.mark.parametrize(
    ("logs", "line"),
    [
        (
            {"loss": 0.69341, "grad_norm": 0.5, "learning_rate": 1.5e-4, "epoch": 1.4},
            "step 14 of 60, epoch 1.40: loss 0.6934, learning rate 1.50e-04, gradient 0.50",
        ),
        (
            {"eval_loss": 0.7, "eval_nll": 0.6, "eval_accuracy": 0.625, "eval_accuracy_one_order": 0.6},
            "step 14 of 60, epoch 1.40: held-out loss 0.7000, nll 0.6000, accuracy 62.5%, of one order 60.0%",
        ),
        (
            {"eval_loss": 0.7, "eval_accuracy": 0.5, "eval_accuracy_one_order": 0.5, "eval_swap_consistency": 1.0},
            "step 14 of 60, epoch 1.40: held-out loss 0.7000, accuracy 50.0%",
        ),
        (
            {"eval_loss": 0.7, "eval_nll": 0.7 + 1e-6, "eval_accuracy": 0.5},
            "step 14 of 60, epoch 1.40: held-out loss 0.7000, accuracy 50.0%",
        ),
        ({"train_runtime": 90.0, "train_loss": 0.5}, "trained 14 steps in 1.5 minutes; mean loss 0.5000"),
    ],
    ids=["step", "held-out", "without orders", "loss is nll", "whole"],
)
def test_a_log_is_a_line_in_words(logs: dict[str, float], line: str) -> None:
    assert line_of(STATE, logs) == line


def test_a_run_prints_its_steps_and_held_out_figures_on_standard_error(
    toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_cloze(toy.recipe(tmp_path / "out", {"eval_steps": 1}, trainer={"logging_steps": 1}), toy.data, resume=False)
    printed = capsys.readouterr()
    assert "{" not in printed.out, "no dictionary of the Trainer"
    steps = re.findall(r"\d\d:\d\d:\d\d step (\d) of 2, epoch [\d.]+: (loss|held-out loss) \d", printed.err)
    assert [step for step, kind in steps if kind == "loss"] == ["1", "2"]
    assert {step for step, kind in steps if kind == "held-out loss"} == {"1", "2"}
