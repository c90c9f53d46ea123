"""The processes that train together: one on its own, or several that `accelerate launch` or torchrun started."""

import atexit
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import cache
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
    state = PartialState(cpu=uses_cpu(), timeout=MAX_WAIT)
    if state.num_processes > 1:
        leave_at_exit()
    return state


@cache
def leave_at_exit() -> None:
    """Leave the process group at exit: what this process has sent through it may not have reached the others yet."""
    atexit.register(leave)


def leave() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def end(code: int) -> int:
    """Return `code`; of several processes, end this one with it, after what is registered for the exit.

    The interpreter of such a process is not torn down. Threads of the group live on, as torch and its caches refer to
    them; one that frees the last tensors that were sent would need the interpreter, and abort the process after its
    work is done: the launcher would report that training failed.
    """
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return code
    # As multiprocessing ends a process that it has forked.
    atexit._run_exitfuncs()  # noqa: SLF001
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # no longer read, or closed
            stream.flush()
    os._exit(code)


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
