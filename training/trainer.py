"""The Hugging Face Trainer with our optimizer and schedule, and a log that programs can read."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback, TrainingArguments, get_wsd_schedule
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from tinyrm.errors import InvalidInput, TinyRMError
from training.data.collate import EpochSampler
from training.processes import process_state, uses_cpu
from training.recipe import Optimization

log = logging.getLogger(__name__)


class Diverged(TinyRMError):
    """A loss or a gradient is not finite: the weights are lost, or would be after the next step."""

    type = "diverged"


class DecoupledTrainer(Trainer):
    """Trains with decoupled AdamW, warm-up and linear decay to a floor.

    Raises Diverged where a loss or a gradient is not finite, before it reaches the weights.
    """

    optimizer: torch.optim.Optimizer | None
    lr_scheduler: LRScheduler | None

    def __init__(self, *, optimization: Optimization, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.optimization = optimization

    def train(self, *args: Any, **kwargs: Any) -> Any:
        if self.optimization.average:
            self.add_callback(StopAt(max(self.optimization.average)))
        output = super().train(*args, **kwargs)
        if self.optimization.average:
            self.average_checkpoints()
        return output

    def average_checkpoints(self) -> None:
        """Set what learns to its mean over the checkpoints that the recipe names. Raises InvalidInput if one lacks."""
        folders = [Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{n}" for n in self.optimization.average]
        if missing := [folder.name for folder in folders if not folder.is_dir()]:
            raise InvalidInput(f"{self.args.output_dir} has no {', '.join(missing)} to average; start with --fresh")
        learning = [p for p in self.model.parameters() if p.requires_grad]
        sums = [torch.zeros_like(p, dtype=torch.float64) for p in learning]
        for folder in folders:
            self._load_from_checkpoint(str(folder))
            for total, parameter in zip(sums, learning, strict=True):
                total.add_(parameter.detach())
        with torch.no_grad():
            for total, parameter in zip(sums, learning, strict=True):
                parameter.copy_(total / len(folders))

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(model, inputs, *args, **kwargs)
        step = self.state.global_step + 1
        refuse_infinite("loss", loss.item(), f"in step {step}, in a batch of {batch_shape(inputs)}")
        return loss

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        norm = super()._get_grad_norm(*args, **kwargs)
        refuse_infinite("gradient", float(norm), f"in step {self.state.global_step + 1}, although the loss is finite")
        return norm

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        metrics = super().evaluate(*args, **kwargs)
        for name, value in metrics.items():
            if name.endswith("_loss"):
                refuse_infinite(name, value, f"on held-out data after step {self.state.global_step}")
        return metrics

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = decoupled_adamw(model or self.model, self.optimization)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        if self.lr_scheduler is None:
            self.lr_scheduler = warmup_then_linear(
                optimizer or self.create_optimizer(), self.optimization, num_training_steps
            )
        return self.lr_scheduler


class LengthGroupedTrainer(DecoupledTrainer):
    """Puts items of similar length into one batch, so that little of it is padding; the dataset has `lengths()`."""

    def _get_train_sampler(self, _: Any = None) -> Sampler[int]:
        args = self.args
        group = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        return EpochSampler(self.train_dataset.lengths(), group, args.data_seed, lambda: int(self.state.epoch or 0))


def decoupled_adamw(model: torch.nn.Module, optimization: Optimization) -> torch.optim.AdamW:
    """Return Composer's DecoupledAdamW, which the paper used, as torch's AdamW.

    Decoupled: each step multiplies a weight by 1 - wd * lr_t / lr_peak. torch: by 1 - lr_t * wd'. Both are equal
    for wd' = wd / lr_peak. One-dimensional parameters (norms, biases) are not decayed.
    """
    learning = [p for p in model.parameters() if p.requires_grad]
    decay = optimization.weight_decay / optimization.peak_lr
    groups = [
        {"params": [p for p in learning if p.ndim >= 2], "weight_decay": decay},
        {"params": [p for p in learning if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=optimization.peak_lr, betas=optimization.betas, eps=optimization.eps, fused=True
    )


def warmup_then_linear(optimizer: torch.optim.Optimizer, optimization: Optimization, steps: int) -> LRScheduler:
    """Rise linearly from `floor_ratio` of the peak over `warmup_ratio` of the steps, then fall linearly to it again."""
    warmup = round(steps * optimization.warmup_ratio)
    return get_wsd_schedule(
        optimizer,
        num_warmup_steps=warmup,
        num_stable_steps=0,
        num_decay_steps=max(1, steps - warmup),
        decay_type="linear",
        min_lr_ratio=optimization.floor_ratio,
    )


def training_arguments(output_dir: Path, optimization: Optimization, sequences_per_item: int = 1) -> TrainingArguments:
    """Return Trainer arguments; `batch_size` is reached by accumulation over steps and devices.

    Raises InvalidInput if that is not possible.
    """
    processes = process_state().num_processes
    if processes == 1 and torch.cuda.device_count() > 1:
        # In one process the Trainer would split each batch over all of them, slowly, and multiply the batch size.
        raise InvalidInput(
            "several GPUs: start with `accelerate launch -m training`, or set CUDA_VISIBLE_DEVICES to one"
        )
    per_pass = optimization.micro_batch_size * processes
    if optimization.batch_size % per_pass:
        raise InvalidInput(f"batch_size={optimization.batch_size} is not a multiple of {per_pass} sequences per pass")
    micro_batch = optimization.micro_batch_size // sequences_per_item
    if uses_cpu() and optimization.precision == "bf16":
        log.warning("there is no GPU: bf16 on a CPU may be slower than `precision: fp32`")
    try:
        return TrainingArguments(
            output_dir=str(output_dir),
            num_train_epochs=optimization.epochs,
            max_steps=optimization.max_steps,
            per_device_train_batch_size=micro_batch,
            per_device_eval_batch_size=micro_batch,
            gradient_accumulation_steps=optimization.batch_size // per_pass,
            max_grad_norm=optimization.max_grad_norm,
            use_cpu=uses_cpu(),
            bf16=optimization.precision == "bf16",
            torch_compile=optimization.compile,
            eval_strategy="steps",
            eval_steps=optimization.eval_steps,
            save_steps=optimization.save_steps,
            save_total_limit=None if optimization.average else 2,
            logging_steps=10,
            logging_nan_inf_filter=False,
            remove_unused_columns=False,
            dataloader_pin_memory=torch.cuda.is_available(),
            report_to="none",
            seed=optimization.seed,
            data_seed=optimization.seed,
        )
    except ValueError as error:  # such as bf16 on an accelerator without it
        raise InvalidInput(f"{' '.join(str(error).split())}; or set `precision: fp32`") from error


def refuse_infinite(what: str, value: float, where: str) -> None:
    if not math.isfinite(value):
        raise Diverged(
            f"the {what} is {value} {where}: training has diverged; lower peak_lr or raise warmup_ratio, and start "
            "with --fresh"
        )


def batch_shape(inputs: dict[str, Any]) -> str:
    """Return the size of a batch for a message: 32 sequences of 512 tokens."""
    rows, tokens = inputs["input_ids"].shape
    return f"{rows} sequences of {tokens} tokens"


class StopAt(TrainerCallback):
    """Ends a run after a step, whatever the schedule still has."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, _: Any, state: Any, control: Any, **__: Any) -> None:
        if state.global_step >= self.step:
            control.should_training_stop = True


class JsonLog(TrainerCallback):
    """Writes one JSON object per logged step; a resumed run appends, a new one starts over."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, _: Any, state: Any, __: Any, **___: Any) -> None:
        if state.is_world_process_zero and state.global_step == 0:
            self.path.unlink(missing_ok=True)

    def on_log(self, _: Any, state: Any, __: Any, logs: dict[str, Any] | None = None, **___: Any) -> None:
        if state.is_world_process_zero and logs:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps({"step": state.global_step, **logs}) + "\n")
