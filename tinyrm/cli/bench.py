"""`tinyrm bench`: measure the latency of an engine for one sequence, at several lengths."""

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from tyro.conf import Positional, arg

from tinyrm import starter
from tinyrm.bundle import Bundle
from tinyrm.cli.extras import show_fetching
from tinyrm.command_line import Flag, Positive, option, parse
from tinyrm.counting import flop_counter
from tinyrm.encoding import Encoding, Truncation
from tinyrm.engines import EngineOptions, open_engine
from tinyrm.errors import InvalidInput
from tinyrm.places import FETCHING, find

LENGTHS = (64, 256, 1024)
# Of a set: one token of the prompt, and a response that is a mask.
MIN_TOKENS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench(EngineOptions):
    """Measure the latency of a bundle on this machine: the median time of one sequence.

    A comparison is one sequence, or two with both orders; two of a bundle that reads one response; one of a bundle that
    reads sets, here with one response that is as long as the prompt.

    Examples:
      tinyrm bench
      tinyrm bench models/mine --tokens 512 --threads 4 --json
    """

    bundle: Annotated[Positional[str], arg(metavar="BUNDLE")] = str(starter.STARTER)
    """Folder of the bundle, hf://ORG/NAME@COMMIT, or https://HOST/NAME.tar.gz#sha256=HEX."""
    tokens: Annotated[tuple[int, ...], option("N ...")] = ()
    """Lengths of the sequence; by default 64, 256 and 1,024, as far as the model takes them."""
    repeat: Positive = 20
    """Runs of each length."""
    json: Flag = False
    """Print the figures as JSON."""


def main(words: Sequence[str]) -> int:
    """Print a line for each length. Raises InvalidBundle, EngineUnavailable, InvalidInput."""
    options = parse(Bench, words, prog="tinyrm bench")
    show_fetching(FETCHING)
    bundle = Bundle.open(find(options.bundle))
    manifest = bundle.manifest
    max_tokens, special = manifest.spec.max_tokens, manifest.special_tokens
    lengths = options.tokens or [length for length in LENGTHS if length <= max_tokens] or [max_tokens]
    if wrong := [length for length in lengths if not MIN_TOKENS <= length <= max_tokens]:
        raise InvalidInput(f"--tokens {wrong[0]}: the model takes {MIN_TOKENS} to {max_tokens} tokens")
    engine = open_engine(bundle, options)
    count_flops = flop_counter(manifest.geometry, manifest.head, special)
    if not options.json:
        print(f"{manifest.identity}  {engine.info.name} {engine.info.precision}")
        print(f"{'tokens':>7} {'ms':>9} {'sequences/s':>12} {'GFLOP/s':>9}")
    measured = []
    for length in lengths:
        # All ids cost the same; the logits are read at the mask, and a set has a [SEP] behind each part.
        ids = np.full(length, 5)
        ids[-1] = special.mask
        if manifest.reads == "set":
            ids[[length // 2 - 1, -2, -1]] = special.sep, special.mask, special.sep
        sequence = Encoding(ids, Truncation())
        runs_s = []
        for _ in range(1 + options.repeat):
            began = time.perf_counter()
            engine.run([sequence])
            runs_s.append(time.perf_counter() - began)
        seconds = statistics.median(runs_s[1:])  # the first run of a length may compile or allocate
        per_s, gflop_per_s = 1 / seconds, count_flops(sequence) / 1e9 / seconds
        measured.append({"tokens": length, "ms": 1e3 * seconds, "sequences_per_s": per_s, "gflop_per_s": gflop_per_s})
        if not options.json:
            print(f"{length:>7} {1e3 * seconds:>9.2f} {per_s:>12.1f} {gflop_per_s:>9.1f}", flush=True)
    if options.json:
        engine_fields = {"engine": engine.info.name, "precision": engine.info.precision}
        print(json.dumps({"model": manifest.identity, **engine_fields, "lengths": measured}))
    return 0
