"""The worker's side of the protocol: JSON lines on stdin and stdout. Standard library only.

First line out: {"ready": true, "name": ..., "detail": ...} or {"ready": false, "reason": ...}. Then, for each line
{"input_ids": [[...]], "attention_mask": [[...]], "warmup": n, "repeat": n}, one line
{"seconds": [...], "logits": [[z0, z1], ...] or null} or {"error": ...}.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

# From ids and mask to what is timed: it returns the label logits, or None where the contender has none.
Call = Callable[[], list[list[float]] | None]
Prepare = Callable[[list[list[int]], list[list[int]]], Call]


def serve(name: str, load: Callable[[], tuple[Prepare, str]]) -> int:
    """Load, say whether that went well, then answer until stdin ends."""
    channel = claim_stdout()
    try:
        prepare, detail = load()
    except Exception as error:  # noqa: BLE001  # whatever it is, it is the reason that the harness prints
        say(channel, {"ready": False, "reason": f"{type(error).__name__}: {error}"})
        return 1
    say(channel, {"ready": True, "name": name, "detail": detail})
    for line in sys.stdin:
        try:
            say(channel, answer(prepare, json.loads(line)))
        except Exception as error:  # noqa: BLE001  # a shape that does not fit is a result, not the end
            say(channel, {"error": f"{type(error).__name__}: {error}"})
    return 0


def answer(prepare: Prepare, request: dict[str, Any]) -> dict[str, Any]:
    """Making the inputs is not timed, since every contender is handed them in another form."""
    call = prepare(request["input_ids"], request["attention_mask"])
    logits = None
    for _ in range(request["warmup"]):
        logits = call()
    seconds = []
    for _ in range(request["repeat"]):
        started = time.perf_counter()
        logits = call()
        seconds.append(time.perf_counter() - started)
    return {"seconds": seconds, "logits": logits}


def claim_stdout() -> TextIO:
    """The channel to the harness; what libraries print goes to stderr from here on."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return channel


def say(channel: TextIO, message: dict[str, Any]) -> None:
    channel.write(json.dumps(message) + "\n")
    channel.flush()


def arguments(doc: str | None) -> argparse.Namespace:
    """What every worker of ours is told: the model, its precision, threads, the mask and the two label ids."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--mask", type=int, default=4)
    parser.add_argument("--labels", type=int, nargs=2, default=(0, 1))
    return parser.parse_args()


def mask_positions(ids: list[list[int]], mask: int) -> list[int]:
    """Where [MASK] stands in each row."""
    return [row.index(mask) for row in ids]
