"""The parity gate: the same logits whichever way they are computed, or no bundle is written."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tinyrm.batching import RunRectangle, collate
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


def run_alone(run: Run, sequences: Sequence[Encoding]) -> NDArray[np.float32]:
    """Return logits [sequences, outputs], each sequence in a batch of its own."""
    return np.concatenate([run([sequence]) for sequence in sequences])


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
