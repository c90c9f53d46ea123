"""The Hugging Face Trainer with our optimizer and schedule, and a log that programs can read."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from accelerate.utils.memory import should_reduce_batch_size
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import Sampler
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, get_wsd_schedule
from transformers.trainer import OPTIMIZER_NAME
from transformers.trainer_callback import ProgressCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from tinyrm.errors import InvalidInput, TinyRMError
from training.data.collate import EpochSampler
from training.model.adapter import encoder_layers
from training.progress import Progress
from training.recipe import ClozeRecipe, LearningRecipe, Optimization, PretrainRecipe, SftRecipe


class Diverged(TinyRMError):
    """A loss or a gradient is not finite: the weights are lost, or would be after the next step."""

    type = "diverged"


class OutOfMemory(TinyRMError):
    """A batch does not fit in memory."""

    type = "out_of_memory"


class DecoupledTrainer(Trainer):
    """Trains with decoupled AdamW, warm-up and linear decay to a floor, and writes log.jsonl.

    Raises Diverged where a loss or a gradient is not finite, before it reaches the weights, and OutOfMemory.
    """

    optimizer: torch.optim.Optimizer | None
    lr_scheduler: LRScheduler | None

    def __init__(self, *, recipe: LearningRecipe, **kwargs: Any) -> None:
        try:
            super().__init__(**kwargs)
        except (ValueError, ImportError) as error:
            if not recipe.trainer:
                raise
            raise InvalidInput(f"trainer: {' '.join(str(error).split())}") from error
        self.recipe = recipe
        self.optimization = recipe.optimization
        self.batch = "no batch"  # the size of the last one, for messages
        if (self.args.activation_checkpointing_kwargs or {}).get("use_reentrant"):
            # Of frozen embeddings, such checkpoints would have no gradients, and only warn of it.
            self.model.enable_input_require_grads()
        if self.is_fsdp_enabled:
            self._shard_by_layer()
        if not self.args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(Progress)
        self.add_callback(JsonLog(Path(self.args.output_dir) / "log.jsonl"))
        if recipe.early_stopping_patience:
            self.add_callback(EarlyStoppingCallback(recipe.early_stopping_patience))
        if recipe.optimization.average:
            self.add_callback(StopAt(max(recipe.optimization.average)))

    def _shard_by_layer(self) -> None:
        """Let FSDP gather one layer at a time, and the rest at once: its own choice parts tied embeddings.

        Weights are gathered in fp32, and autocast decides what is computed in bf16, as without FSDP: not what a
        preference is read from. With FSDP, accelerate would compute all in bf16, without autocast.
        """
        whole = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        plugin = self.accelerator.state.fsdp_plugin
        plugin.transformer_cls_names_to_wrap = [type(encoder_layers(whole)[0]).__name__]
        plugin.mixed_precision_policy = None
        if self.args.bf16:
            autocast = torch.autocast(self.args.device.type, torch.bfloat16)
            self.model.forward = autocast(self.model.forward)

    def train(self, resume_from_checkpoint: str | None = None, **kwargs: Any) -> Any:
        if resume_from_checkpoint and not any(Path(resume_from_checkpoint).glob(f"{Path(OPTIMIZER_NAME).stem}*")):
            raise InvalidInput(f"{resume_from_checkpoint} has no {OPTIMIZER_NAME} to continue with; start with --fresh")
        if resume_from_checkpoint:
            refuse_damaged(Path(resume_from_checkpoint))
        try:
            with self._memory_errors():
                output = super().train(resume_from_checkpoint, **kwargs)
        finally:
            self._end_loading()
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

    def publish(self) -> None:
        """Push the output folder, which is complete, to the hub if the recipe asks for it."""
        if self.args.push_to_hub:
            self.push_to_hub()

    def _end_loading(self) -> None:
        """End the processes that load data.

        They would run on until the garbage collector finds the trainer, which is part of a cycle. It closes their
        queues first: torch would then wait 5 s for each of them, in the middle of whatever runs next.
        """
        for loader in self.accelerator._dataloaders:  # noqa: SLF001 - nothing here has a public name
            inner = loader.base_dataloader
            if inner._iterator is not None:  # noqa: SLF001
                inner._iterator._shutdown_workers()  # noqa: SLF001
                inner._iterator = None  # noqa: SLF001

    @contextmanager
    def _memory_errors(self) -> Iterator[None]:
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            step = self.state.global_step
            where = f"in step {step + 1}" if self.model.training else f"in the evaluation after step {step}"
            hints = "; or ".join(remedies(self.recipe, evaluates=not self.model.training))
            raise OutOfMemory(f"out of memory {where}, in a batch of {self.batch}: set {hints}") from error

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        self.batch = batch_shape(inputs)
        prepared: dict[str, Any] = super()._prepare_inputs(inputs)
        return prepared

    def _update_auto_batch_size(self, batch_size: int) -> None:
        """Take at most `batch_size` items at a time, and accumulate more often: a step remains what it was."""
        args = self.args
        in_step = args.per_device_train_batch_size * args.gradient_accumulation_steps
        args.per_device_train_batch_size = next(n for n in range(batch_size, 0, -1) if in_step % n == 0)
        args.gradient_accumulation_steps = in_step // args.per_device_train_batch_size
        super()._update_auto_batch_size(args.per_device_train_batch_size)

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        step = self.state.global_step + 1
        if self.args.auto_find_batch_size and step > 1:
            # With another size the Trainer would start anew, from weights that have learnt.
            with self._memory_errors():
                loss = super().training_step(model, inputs, *args, **kwargs)
        else:
            loss = super().training_step(model, inputs, *args, **kwargs)
        refuse_infinite("loss", loss.item(), f"in step {step}, in a batch of {self.batch}")
        return loss

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        norm = super()._get_grad_norm(*args, **kwargs)
        whose = "the loss" if self.args.world_size == 1 else "the loss of this process"
        refuse_infinite("gradient", float(norm), f"in step {self.state.global_step + 1}, although {whose} is finite")
        return norm

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        try:
            with self._memory_errors():
                metrics = super().evaluate(*args, **kwargs)
        finally:
            if not self.is_in_train:
                self._end_loading()
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


def refuse_infinite(what: str, value: float, where: str) -> None:
    if not math.isfinite(value):
        raise Diverged(
            f"the {what} is {value} {where}: training has diverged; lower peak_lr or raise warmup_ratio, and start "
            "with --fresh"
        )


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error of torch means that memory is full: of a GPU, or of a machine without one."""
    known = ("not enough memory", "No executable batch size found")
    return (
        isinstance(error, MemoryError | torch.OutOfMemoryError)
        or should_reduce_batch_size(error)
        or any(text in str(error) for text in known)
    )


def remedies(recipe: LearningRecipe, *, evaluates: bool) -> list[str]:
    """Return the three settings that save most memory in this recipe, the one that changes least first."""
    optimization, found = recipe.optimization, []
    rows = recipe.rows_per_pair if isinstance(recipe, ClozeRecipe) else 1
    if optimization.micro_batch_size > rows:
        half = max(rows, optimization.micro_batch_size // 2 // rows * rows)
        found.append(f"optimization.micro_batch_size: {half} (batch_size stays)")
    if not evaluates and not recipe.trainer.get("activation_checkpointing"):
        found.append("trainer: {activation_checkpointing: true} (a third slower)")
    if isinstance(recipe, ClozeRecipe):
        tokens = recipe.training_tokens
        found.append(f"train_max_tokens: {tokens // 2}")
        if not recipe.dora and not evaluates:
            found.append("dora: {rank: 32, alpha: 32} (adapters in place of all weights)")
    elif isinstance(recipe, SftRecipe):
        found += [f"max_tokens: {recipe.max_tokens // 2}", "frozen_layers: half of the model's layers"]
    elif isinstance(recipe, PretrainRecipe):
        found.append(f"block_tokens: {recipe.block_tokens // 2}")
    return [*found, "optimization.precision: bf16"][:3] if optimization.precision == "fp32" else found[:3]


def batch_shape(inputs: dict[str, Any]) -> str:
    """Return the size of a batch for a message: 32 sequences of 512 tokens."""
    rows, tokens = inputs["input_ids"].shape
    if "cu_seq_lens_q" in inputs:
        return f"{len(inputs['cu_seq_lens_q']) - 1} sequences of {tokens} tokens together"
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


def refuse_damaged(checkpoint: Path) -> None:
    """Raise InvalidInput for a checkpoint with a file that was not written whole, as on a full disk."""
    for file in sorted(checkpoint.iterdir()):
        try:
            if file.suffix == ".json":
                json.loads(file.read_text(encoding="utf-8"))
            elif file.suffix == ".safetensors":
                with safe_open(file, "pt"):
                    pass
            elif file.suffix in (".pt", ".pth") and not is_zipfile(file):
                raise ValueError("it has no end")
        except (ValueError, OSError, SafetensorError) as error:
            raise InvalidInput(
                f"{file} is damaged ({error}): delete {checkpoint}, and --resume continues from the checkpoint before "
                "it, or start with --fresh"
            ) from error
