"""The worker's side of the protocol: JSON lines on stdin and stdout. Standard library only.

First line out: {"ready": true, "name": ..., "detail": ...} or {"ready": false, "reason": ...}. Then, for each line
{"input_ids": [[...]], "attention_mask": [[...]], "warmup": n, "repeat": n}, one line
{"seconds": [...], "logits": [[z0, z1], ...] or null} or {"error": ...}.
"""

import argparse
import json
import os
import random
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

# The timed part: returns the label logits, or None if the contender has none.
Call = Callable[[], list[list[float]] | None]
Prepare = Callable[[list[list[int]], list[list[int]]], Call]


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


def run(prepare: Prepare, request: dict[str, Any]) -> dict[str, Any]:
    """Run one request. Preparing the inputs is not timed: every contender needs another form."""
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
    parser.add_argument("--export-to", type=Path, help="optimum_ort alone: write the stock export there, and exit")
    return parser.parse_args()


def mask_positions(ids: list[list[int]], mask: int) -> list[int]:
    """Return the position of [MASK] in each row."""
    return [row.index(mask) for row in ids]


class Texts:
    """Make texts of an exact number of tokens, for contenders that accept text and not ids.

    tokenizer: of transformers. The words are those that it encodes as one token each.
    """

    # The byte-level alphabet's sign for a space, then a word.
    WORD = re.compile("\u0120[a-z]{3,}")

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._words = sorted(token[1:] for token in tokenizer.get_vocab() if self.WORD.fullmatch(token))
        self._random = random.Random(17)

    def single(self, tokens: int) -> str:
        """Return a text of exactly `tokens` tokens, special ones included."""
        text = "".join(self._draw(tokens, pair=False))
        self._check(tokens, text)
        return text

    def pair(self, tokens: int) -> tuple[str, str]:
        """Return two texts that together make exactly `tokens` tokens."""
        words = self._draw(tokens, pair=True)
        pair = "".join(words[: len(words) // 2]), "".join(words[len(words) // 2 :])
        self._check(tokens, *pair)
        return pair

    def _draw(self, tokens: int, *, pair: bool) -> list[str]:
        count = tokens - self._tokenizer.num_special_tokens_to_add(pair=pair)
        return [" " + word for word in self._random.choices(self._words, k=count)]

    def _check(self, tokens: int, *texts: str) -> None:
        found = len(self._tokenizer(*texts)["input_ids"])
        if found != tokens:
            raise ValueError(f"the tokenizer made {found} tokens of a text for {tokens}")
