"""TrainingArguments of a recipe: our own defaults, then what its keys set, then its `trainer:`."""

import logging
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import torch
from huggingface_hub import get_token, whoami
from huggingface_hub.constants import HF_HUB_OFFLINE
from transformers import TrainingArguments
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from tinyrm.errors import InvalidInput
from tinyrm.modernbert.files import input_errors
from training.processes import on_main, process_state, uses_cpu
from training.recipe import ClozeRecipe, DistilRecipe, LearningRecipe

log = logging.getLogger(__name__)

# Metric of held-out data -> whether more of it is better. `transformers` would take a high nll for a good one.
HELD_OUT: Mapping[str, bool] = {"loss": False}
OF_PAIRS: Mapping[str, bool] = {"accuracy": True, "accuracy_one_order": True, "nll": False, "swap_consistency": True}


def training_arguments(recipe: LearningRecipe, sequences_per_item: int = 1) -> TrainingArguments:
    """Return Trainer arguments; `batch_size` is reached by accumulation over steps and devices.

    Raises InvalidInput if that is not possible, or if a value of `trainer` cannot be used with the others or here.
    """
    optimization = recipe.optimization
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
    if uses_cpu() and recipe.attention in ("flash_attention_2", "flex_attention"):
        raise InvalidInput(f"attention: {recipe.attention} learns on a GPU only, and there is none; use sdpa")
    if recipe.trainer.get("auto_find_batch_size") and processes > 1:
        raise InvalidInput("trainer.auto_find_batch_size needs one process: others would wait for the one that failed")
    refuse_reports(recipe.trainer.get("report_to"))
    if recipe.trainer.get("push_to_hub"):
        on_main(refuse_push)
    fixed = {
        "output_dir": str(recipe.output_dir),
        "num_train_epochs": optimization.epochs,
        "max_steps": optimization.max_steps,
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": optimization.batch_size // per_pass,
        "max_grad_norm": optimization.max_grad_norm,
        "use_cpu": uses_cpu(),
        "bf16": optimization.precision == "bf16",
        "torch_compile": optimization.compile,
        "eval_steps": optimization.eval_steps,
        "save_steps": optimization.save_steps,
        "remove_unused_columns": False,
        "seed": optimization.seed,
        "data_seed": optimization.seed,
    }
    defaults = {
        "per_device_eval_batch_size": micro_batch,
        "eval_strategy": "steps",
        "save_total_limit": None if optimization.average else 2,
        "logging_steps": 10,
        "logging_nan_inf_filter": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "report_to": "none",
        # Every parameter that learns has a gradient in every step, so that nothing needs to be searched for.
        "ddp_find_unused_parameters": False,
        "hub_private_repo": True,
    }
    try:
        return TrainingArguments(**{**defaults, **selection(recipe), **recipe.trainer, **fixed})
    except (ValueError, TypeError, ImportError) as error:  # such as bf16 on an accelerator without it
        hint = "; or set `precision: fp32`" if "bf16" in str(error) else ""
        raise InvalidInput(f"{' '.join(str(error).split())}{hint}") from error


def selection(recipe: LearningRecipe) -> dict[str, Any]:
    """Return the arguments that choose the best checkpoint, if the recipe does. Raises InvalidInput."""
    trainer = recipe.trainer
    chooses = bool(
        recipe.early_stopping_patience
        or trainer.get("load_best_model_at_end")
        or trainer.get("metric_for_best_model")
        or trainer.get("save_strategy") == "best"
    )
    if not chooses:
        return {}
    if trainer.get("eval_strategy") == "no":
        raise InvalidInput("trainer.eval_strategy is no, so that no checkpoint is known to be the best; remove it")
    pairs = OF_PAIRS if isinstance(recipe, ClozeRecipe) else {}
    known = {**HELD_OUT, **pairs, **({"teacher_agreement": True} if isinstance(recipe, DistilRecipe) else {})}
    metric = trainer.get("metric_for_best_model") or "loss"
    if metric.removeprefix("eval_") not in known:
        raise InvalidInput(f"trainer.metric_for_best_model is {metric}; this recipe measures {', '.join(known)}")
    return {
        "metric_for_best_model": metric,
        "greater_is_better": known[metric.removeprefix("eval_")],
        # Without it, the last checkpoint would be written although it is known to be worse.
        "load_best_model_at_end": True,
    }


def refuse_reports(report_to: str | list[str] | None) -> None:
    """Raise InvalidInput for a tracker that `transformers` does not know or that is not installed."""
    for name in [report_to] if isinstance(report_to, str) else report_to or []:
        installed = get_available_reporting_integrations()
        if name in ("all", "none", *installed):
            continue
        without = "or remove report_to: log.jsonl is written in any case"
        if name not in INTEGRATION_TO_CALLBACK:
            near = get_close_matches(name, INTEGRATION_TO_CALLBACK, n=1) or sorted(INTEGRATION_TO_CALLBACK)
            raise InvalidInput(f"trainer.report_to: {name} is not a tracker; did you mean {', '.join(near)}?")
        raise InvalidInput(f"trainer.report_to: {name} is not installed; install its package, {without}")


def refuse_push() -> None:
    """Raise InvalidInput if the hub would refuse what the run is to push at its end."""
    if HF_HUB_OFFLINE:
        raise InvalidInput("trainer.push_to_hub needs a network, and HF_HUB_OFFLINE is set; unset one of them")
    if not get_token():
        raise InvalidInput("trainer.push_to_hub needs a token: set HF_TOKEN, or sign in with `hf auth login`")
    with input_errors("trainer.push_to_hub: the hub does not accept the token, or cannot be reached"):
        whoami()
