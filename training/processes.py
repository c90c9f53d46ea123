"""The processes that train together: one on its own, or several that `accelerate launch` or torchrun started."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from tinyrm.errors import TinyRMError

Result = TypeVar("Result")

# The main process reads data while the others wait, and a cold download takes longer than NCCL's ten minutes.
MAX_WAIT = timedelta(hours=1)


def uses_cpu() -> bool:
    """Return whether training runs on the CPU because there is no accelerator."""
    return not torch.accelerator.is_available()


def process_state() -> PartialState:
    """Return accelerate's PartialState of this process.

    The first call starts the process group. Without `cpu`, a machine without a GPU would count as one process of one,
    whatever the launcher started: each would train by itself, into the same folder.
    """
    return PartialState(cpu=uses_cpu(), timeout=MAX_WAIT)


def on_main(work: Callable[[], Result]) -> Result:
    """Call `work` on the main process only, and return its result, or raise its error, on every process."""
    state = process_state()
    if state.num_processes == 1:
        return work()
    outcome: list[Any] = [None, None]  # result, error
    if state.is_main_process:
        try:
            outcome[0] = work()
        except (TinyRMError, OSError) as error:
            outcome[1] = error
    result, failure = broadcast_object_list(outcome)
    if failure is not None:
        raise failure
    return result
