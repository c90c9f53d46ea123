"""python -m tinyrm.engines BUNDLE: run an engine on token ids from standard input, and say how long it took.

Each line in is {"input_ids": [[...]], "attention_mask": [[...]], "warmup": 1, "repeat": 5}, each line out
{"seconds": [...], "logits": [[z0, z1], ...]}. The first line out says whether the engine is ready.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from tinyrm.bundle import Bundle
from tinyrm.engines import ENGINES, Engine, open_engine
from tinyrm.errors import TinyRMError


def main() -> int:
    options = _parser().parse_args()
    try:
        engine = open_engine(
            Bundle.open(options.bundle), options.engine,
            precision=options.precision, threads=options.threads, streams=options.streams,
        )  # fmt: skip
    except TinyRMError as error:
        _say({"ready": False, "reason": str(error)})
        return 1
    _say({"ready": True, "name": engine.info.name, "detail": engine.info.precision})
    for line in sys.stdin:
        try:
            _say(_timed(engine, **json.loads(line)))
        except (TinyRMError, ValueError, TypeError) as error:
            _say({"error": str(error), "seconds": [], "logits": None})
    return 0


def _timed(
    engine: Engine, input_ids: list[list[int]], attention_mask: list[list[int]], warmup: int = 1, repeat: int = 5
) -> dict[str, Any]:
    ids, mask = np.array(input_ids, dtype=np.int64), np.array(attention_mask, dtype=np.int64)
    seconds = []
    for _ in range(warmup + repeat):
        started = time.perf_counter()
        logits = engine.run(ids, mask)
        seconds.append(time.perf_counter() - started)
    return {"seconds": seconds[warmup:], "logits": logits.tolist()}


def _say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tinyrm.engines", description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--engine", default="auto", help=f"auto, {', '.join(ENGINES)}")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--threads", type=int, default=0, help="of one run; 0: the usable processors")
    parser.add_argument("--streams", type=int, default=1, help="runs at once")
    return parser


if __name__ == "__main__":
    sys.exit(main())
