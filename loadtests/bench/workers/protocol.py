"""The worker's side of the protocol: JSON lines on stdin and stdout. Standard library only.

First line out: {"ready": true, "name": ..., "detail": ...} or {"ready": false, "reason": ...}. Then, for each line
{"input_ids": [[...]], "attention_mask": [[...]], "warmup": n, "repeat": n}, one line
{"seconds": [...], "logits": [[...], ...] or null} or {"error": ...}. Contenders that read texts get "prompt": ... and
"responses": [...] in place of ids and mask.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

Request = dict[str, Any]
# The timed part: returns the logits of each sequence, or None if the contender has none.
Call = Callable[[], list[list[float]] | None]
Prepare = Callable[[Request], Call]


def serve(name: str, load: Callable[[], tuple[Prepare, str]]) -> int:
    """Load, report whether that succeeded, then return a response to each line of stdin until it ends."""
    channel = claim_stdout()
    try:
        prepare, detail = load()
    except Exception as error:  # noqa: BLE001  # the harness prints it as the reason
        write(channel, {"ready": False, "reason": f"{type(error).__name__}: {error}"})
        return 1
    write(channel, {"ready": True, "name": name, "detail": detail})
    for line in sys.stdin:
        try:
            write(channel, run(prepare, json.loads(line)))
        except Exception as error:  # noqa: BLE001  # a shape that fails is a result, not the end
            write(channel, {"error": f"{type(error).__name__}: {error}"})
    return 0


def run(prepare: Prepare, request: Request) -> dict[str, Any]:
    """Run one request. Preparing the inputs is not timed: every contender needs another form."""
    call = prepare(request)
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
    """Return the channel to the harness; from now on, libraries print to stderr."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return channel


def write(channel: TextIO, message: dict[str, Any]) -> None:
    channel.write(json.dumps(message) + "\n")
    channel.flush()


def arguments(doc: str | None) -> argparse.Namespace:
    """Parse the arguments that the harness passes to every worker.

    With argparse, because the environments of other engines lack tyro.
    """
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--mask", type=int, default=4)
    parser.add_argument("--labels", type=int, nargs=2, default=(0, 1))
    parser.add_argument("--backend", default="torch", help="of cross_encoder: torch, onnx or openvino")
    parser.add_argument("--engine", default="auto", help="of ours and ours_http: an engine of tinyrm.engines")
    parser.add_argument("--call", default="score", help="of ours and ours_http: what is timed")
    parser.add_argument("--pairwise", type=Path, help="of ours: the second model of a cascade")
    parser.add_argument(
        "--export-to", type=Path, help="of optimum_ort and cross_encoder: write their export there, and exit"
    )
    return parser.parse_args()


def mask_positions(ids: list[list[int]], mask: int) -> list[int]:
    """Return the position of [MASK] in each row."""
    return [row.index(mask) for row in ids]
