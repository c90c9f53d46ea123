"""What a person reads while a model trains: a line for each logged step, and bars on a terminal."""

import math
import sys
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerState
from transformers.trainer_callback import ProgressCallback


class Progress(ProgressCallback):
    """The Trainer's bars, with lines in words on standard error in place of its dictionaries on standard output."""

    def on_log(self, _: Any, state: TrainerState, __: Any, logs: Mapping[str, Any] | None = None, **___: Any) -> None:
        if state.is_world_process_zero and logs:
            tqdm.write(f"{datetime.now():%H:%M:%S} {line_of(state, logs)}", file=sys.stderr)  # noqa: DTZ005 - as the log has it


def line_of(state: TrainerState, logs: Mapping[str, Any]) -> str:
    """Return a log of the Trainer as a line: of a step, of held-out data, or of the whole training."""
    if "train_runtime" in logs:
        minutes = logs["train_runtime"] / 60
        return f"trained {state.global_step:,} steps in {minutes:.1f} minutes; mean loss {logs['train_loss']:.4f}"
    parts = {
        "loss": "loss {:.4f}",
        "learning_rate": "learning rate {:.2e}",
        "grad_norm": "gradient {:.2f}",
        "eval_loss": "held-out loss {:.4f}",
        "eval_nll": "nll {:.4f}",
        "eval_accuracy": "accuracy {:.1%}",
        "eval_accuracy_one_order": "of one order {:.1%}",
        "eval_teacher_agreement": "agreement with the teachers {:.1%}",
    }
    if logs.get("eval_swap_consistency") == 1:  # a head without orders
        del parts["eval_accuracy_one_order"]
    if math.isclose(logs.get("eval_nll", 0), logs.get("eval_loss", 0), abs_tol=1e-4):
        del parts["eval_nll"]  # Bradley-Terry's loss is the nll, but for rounding
    figures = ", ".join(text.format(float(logs[key])) for key, text in parts.items() if key in logs)
    return f"step {state.global_step:,} of {state.max_steps:,}, epoch {state.epoch or 0:.2f}: {figures}"
