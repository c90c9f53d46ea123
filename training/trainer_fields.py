"""`trainer:` in a recipe: any field of Transformers' TrainingArguments that no key of ours sets.

The installed class decides which fields there are and which values they take, so a field of a newer release needs no
code here.
"""

from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from enum import Enum
from functools import reduce
from operator import or_
from typing import Any, get_args, get_type_hints

import transformers
from pydantic import TypeAdapter, ValidationError
from transformers import TrainingArguments

SCHEDULE = "optimization.warmup_ratio and floor_ratio; the rate rises and falls linearly"
OPTIMIZER = "optimization.peak_lr, weight_decay, betas and eps; every stage has decoupled AdamW"
LENGTHS = "nothing: batches are made of items of similar length already"
OWN_BATCHES = "nothing: the recipe's own batches and metrics need it as it is"
OWN_LOSS = "`loss`, or nothing: the loss is the recipe's"
CONTINUE = "--resume on the command line"
# Field -> what to use instead.
SET_ELSEWHERE: Mapping[str, str] = {
    "output_dir": "output_dir",
    "num_train_epochs": "optimization.epochs",
    "max_steps": "optimization.max_steps",
    "per_device_train_batch_size": "optimization.micro_batch_size",
    "gradient_accumulation_steps": "optimization.batch_size, which is reached by accumulation",
    "learning_rate": "optimization.peak_lr",
    "weight_decay": "optimization.weight_decay",
    "adam_beta1": "optimization.betas",
    "adam_beta2": "optimization.betas",
    "adam_epsilon": "optimization.eps",
    "max_grad_norm": "optimization.max_grad_norm",
    "lr_scheduler_type": SCHEDULE,
    "lr_scheduler_kwargs": SCHEDULE,
    "warmup_steps": SCHEDULE,
    "warmup_ratio": SCHEDULE,
    "optim": OPTIMIZER,
    "optim_args": OPTIMIZER,
    "optim_target_modules": OPTIMIZER,
    "bf16": "optimization.precision",
    "fp16": "optimization.precision: bf16",
    "bf16_full_eval": "optimization.precision",
    "fp16_full_eval": "optimization.precision",
    "torch_compile": "optimization.compile",
    "eval_steps": "optimization.eval_steps",
    "save_steps": "optimization.save_steps",
    "seed": "optimization.seed",
    "data_seed": "optimization.seed",
    "use_cpu": "nothing: the CPU is used where there is no GPU; CUDA_VISIBLE_DEVICES= hides them",
    "train_sampling_strategy": LENGTHS,
    "group_by_length": LENGTHS,
    "length_column_name": LENGTHS,
    "remove_unused_columns": OWN_BATCHES,
    "label_names": OWN_BATCHES,
    "prediction_loss_only": OWN_BATCHES,
    "include_for_metrics": OWN_BATCHES,
    "batch_eval_metrics": OWN_BATCHES,
    "eval_do_concat_batches": OWN_BATCHES,
    "label_smoothing_factor": OWN_LOSS,
    "resume_from_checkpoint": CONTINUE,
    "do_train": CONTINUE,
    "do_eval": "eval_strategy",
    "do_predict": "python -m evaluation",
    "hub_token": "the environment variable HF_TOKEN: a recipe is copied into what the run writes",
    "early_stopping_patience": "early_stopping_patience beside `trainer`",
}
# Fields, by the beginning of their names, that leave the weights as they are but for rounding: a run may be resumed
# with others.
NOT_LEARNT = (
    *("log", "report_to", "run_name", "project", "trackio", "disable_tqdm", "skip_memory_metrics", "debug"),
    *(
        "push_to_hub",
        "hub_",
        "save_total_limit",
        "save_on_each_node",
        "save_only_model",
        "include_num_input_tokens_seen",
    ),
    *("dataloader_num_workers", "dataloader_pin", "dataloader_pers", "dataloader_pref", "dataloader_multi", "ddp_"),
    *("activation_checkpointing", "gradient_checkpointing", "auto_find_batch_size", "torch_empty_cache_steps"),
    *("eval_accumulation_steps", "per_device_eval_batch_size", "eval_use_gather_object"),
)

# Fields whose class takes numbers with which the run ends in an error, some of them only in its first evaluation.
AT_LEAST: Mapping[str, int] = {
    "dataloader_num_workers": 0,
    "dataloader_prefetch_factor": 1,
    "eval_accumulation_steps": 1,
    "per_device_eval_batch_size": 1,
}


def checked(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields with values as JSON has them.

    Raises ValueError in one line for a field that does not exist, that another key sets, or whose value has another
    type.
    """
    known = {field.name for field in fields(TrainingArguments) if field.init}
    found: dict[str, Any] = {}
    for name, given in values.items():
        # YAML reads an unquoted `no` as false.
        value = "no" if given is False and name.endswith("_strategy") else given
        if name in SET_ELSEWHERE:
            raise ValueError(f"{name} is not set here; use {SET_ELSEWHERE[name]}")
        if name not in known:
            near = get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"TrainingArguments of transformers {transformers.__version__} has no field {name}{hint}")
        adapter: TypeAdapter[Any] = TypeAdapter(closed(get_type_hints(TrainingArguments)[name]))
        if isinstance(value, int) and value < AT_LEAST.get(name, value):
            raise ValueError(f"{name} must be at least {AT_LEAST[name]}, not {value}")
        try:
            as_json = adapter.dump_python(adapter.validate_python(value), mode="json")
            found[name] = value if value == as_json else as_json  # 5 and not 5.0
        except ValidationError as error:
            expected = " or ".join(
                dict.fromkeys(each["msg"].removeprefix("Input should be ") for each in error.errors())
            )
            raise ValueError(f"{name} is {value!r} and should be {expected}") from error
    return found


def closed(hint: Any) -> Any:
    """Return a type without `str` beside an enumeration: its members are all the words that there are."""
    kinds = get_args(hint)
    if any(isinstance(kind, type) and issubclass(kind, Enum) for kind in kinds):
        return reduce(or_, (kind for kind in kinds if kind is not str))
    return hint


def learnt(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that change what a run learns: a part of its identity."""
    return {name: value for name, value in values.items() if not name.startswith(NOT_LEARNT)}
