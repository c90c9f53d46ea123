"""Run an engine on token ids from standard input and measure how long it takes: python -m tinyrm.engines BUNDLE.

Each input line is {"input_ids": [[...]], "attention_mask": [[...]], "warmup": 1, "repeat": 5}, each output line
{"seconds": [...], "logits": [[z0, z1], ...]}. The first output line states whether the engine is ready.
"""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from tinyrm.bundle import Bundle
from tinyrm.command_line import parse
from tinyrm.encoding import Encoding, Truncation
from tinyrm.engines import Engine, EngineOptions, open_engine
from tinyrm.errors import TinyRMError
from tinyrm.output import standard_output


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(EngineOptions):
    __doc__ = __doc__

    bundle: Annotated[Path, tyro.conf.Positional]
    """Folder of the bundle."""


def main() -> int:
    options = parse(Options, prog="python -m tinyrm.engines")
    try:
        engine = open_engine(Bundle.open(options.bundle), options)
    except TinyRMError as error:
        _print({"ready": False, "reason": str(error)})
        return 1
    _print({"ready": True, "name": engine.info.name, "detail": engine.info.precision})
    for line in sys.stdin:
        try:
            _print(measure(engine, **json.loads(line)))
        except (TinyRMError, ValueError, TypeError) as error:
            _print({"error": str(error), "seconds": [], "logits": None})
    return 0


def measure(
    engine: Engine, input_ids: list[list[int]], attention_mask: list[list[int]], warmup: int = 1, repeat: int = 5
) -> dict[str, Any]:
    """Run padded rows, without their padding, and return the seconds of each run and the logits."""
    rows = zip(input_ids, map(sum, attention_mask), strict=True)
    sequences = [Encoding(np.array(ids[:length], dtype=np.int64), Truncation()) for ids, length in rows]
    seconds = []
    for _ in range(warmup + repeat):
        started = time.perf_counter()
        logits = engine.run(sequences)
        seconds.append(time.perf_counter() - started)
    return {"seconds": seconds[warmup:], "logits": logits.tolist()}


def _print(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    with standard_output():
        sys.exit(main())
