"""The parity gate: the same logits whichever way they are computed, or no bundle is written."""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tinyrm.batching import RunRectangle, collate, concatenate
from tinyrm.encoding import Encoding, SpecialTokens, Truncation
from tinyrm.errors import ParityFailed
from tinyrm.manifest import Parity

# Logits [sequences, outputs]; `Engine.run` is one.
Run = Callable[[Sequence[Encoding]], NDArray[np.float32]]

# fp32 through some twenty layers, summed in another order, differs in the 6th digit; a wrong mask, window or
# position differs in the 1st. That is absolute for logits of a usual size; those of a large model may be larger.
TOLERANCE = 1e-4
USUAL_SIZE = 5.0
# Around the window (64 to each side, so 65 and 129 are its edges), around a block of three windows, and long.
LENGTHS = (8, 63, 64, 65, 66, 127, 128, 129, 130, 191, 192, 193, 512, 1024)
# The same for the texts of sets, in the order in which prompts take them; numbers of responses.
SET_LENGTHS = (66, 3, 129, 64, 8, 65, 192, 63, 127, 200, 128, 193)
SET_SIZES = (1, 2, 2, 3, 3, 8, 8, 16, 32)


def probes(
    special: SpecialTokens, vocab: int, max_tokens: int, markers: Sequence[int] = (), seed: int = 0
) -> list[Encoding]:
    """Return random ids at every length that matters, each with its mask where templates put it.

    Its first half ends in a [SEP], as the first text of a pair does.

    markers: ids that are read besides, each once.
    """
    rng = np.random.default_rng(seed)
    ordinary = np.setdiff1d(np.arange(vocab), [special.cls, special.sep, special.mask, special.pad, *markers])
    sequences = []
    for length in (*LENGTHS, max_tokens):
        if length <= max_tokens:
            ids = rng.choice(ordinary, length)
            half = length // 2
            ids[0], ids[half], ids[-2], ids[-1] = special.cls, special.sep, special.mask, special.sep
            for place, marker in zip((1, half - 1, half + 1), markers, strict=False):
                ids[place] = marker
            sequences.append(Encoding(ids, Truncation()))
    return sequences


def set_probes(special: SpecialTokens, vocab: int, max_tokens: int, seed: int = 0) -> list[Encoding]:
    """Return random sets of 1 to 32 responses, with prompts and responses around the edges of a window.

    The last one has the longest prompt and response that fit into `max_tokens` together.
    """
    rng = np.random.default_rng(seed)
    ordinary = np.setdiff1d(np.arange(vocab), [special.cls, special.sep, special.mask, special.pad])

    def probe(prompt: int, responses: Sequence[int]) -> Encoding:
        ids = [special.cls, *rng.choice(ordinary, prompt - 2), special.sep]
        for tokens in responses:
            ids += [*rng.choice(ordinary, tokens - 2), special.mask, special.sep]
        return Encoding(np.array(ids, dtype=np.int64), Truncation())

    half = max_tokens // 2
    edges = [tokens for tokens in SET_LENGTHS if tokens <= half]
    sets: list[Encoding] = []
    for prompt, count in zip(itertools.cycle(edges), SET_SIZES, strict=False):
        # Each begins at another length, so that its responses are unequal and sets of equal sizes are not alike.
        lengths = [edges[(len(sets) * 5 + i) % len(edges)] for i in range(count)]
        sets.append(probe(prompt, lengths if count <= 8 else [min(tokens, 66) for tokens in lengths]))
    return [*sets, probe(half, (max_tokens - half, 3))]


def run_alone(run: Run, sequences: Sequence[Encoding]) -> NDArray[np.float32]:
    """Return logits [sequences, outputs], each sequence in a batch of its own."""
    return concatenate([run([sequence]) for sequence in sequences])


def pad_rows(run: RunRectangle, pad_id: int) -> Run:
    """Return a function of padded ids and their mask as a function of sequences."""
    return lambda sequences: run(*collate(sequences, pad_id))


def torch_run(model: nn.Module, pad_id: int) -> Run:
    """Return a torch model of ids and mask as a function of sequences."""

    def run(sequences: Sequence[Encoding]) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits: NDArray[np.float32] = model(*map(torch.from_numpy, collate(sequences, pad_id))).numpy()
        return logits

    return run


def check(name: str, one: NDArray[np.float32], other: NDArray[np.float32], tolerance: float = TOLERANCE) -> Parity:
    """Return the passed check. Raises ParityFailed.

    tolerance: for logits of up to USUAL_SIZE; it grows with larger ones, as rounding does.
    """
    with np.errstate(invalid="ignore"):  # an infinite logit less another one is nan, which is refused
        difference, size = float(np.abs(one - other).max()), float(np.abs(one).max())
    tolerance *= max(1.0, size / USUAL_SIZE)
    if not (difference <= tolerance < np.inf):  # also refuses NaN and infinity
        raise ParityFailed(
            f"{name}: logits differ by {difference:.2e}, {tolerance:.0e} is allowed; no bundle was written"
        )
    return Parity(check=name, max_difference=difference, tolerance=tolerance)
