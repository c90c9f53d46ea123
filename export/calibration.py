"""The temperature, and the margin at which one order is enough."""

import logging
from pathlib import Path

import numpy as np

from export.config import ExportOptions
from export.cpu_graph import on_cpu
from tinyrm.calibration import fit_temperature, is_bounded, raw_margins
from tinyrm.comparison import Preference
from tinyrm.encoding import Encoder
from tinyrm.engines.onnx_runtime import OnnxRuntimeCpu
from tinyrm.errors import InvalidInput
from tinyrm.manifest import AutoSwap
from tinyrm.pairs import PreferencePair, read_pairs
from tinyrm.scorer import Scorer
from tinyrm.spec import ClozeSpec

# The same limit as for a lower precision, which saves as much.
MAX_FLIPS = 0.005

log = logging.getLogger(__name__)


def calibrate(options: ExportOptions, encoder: Encoder, onnx_file: Path) -> tuple[float, AutoSwap | None]:
    """Return what the calibration pairs determine: the temperature, and the margin at which one order is enough.

    Returns 1 and None without such pairs. Raises InvalidInput for an empty file of them.
    """
    path = options.calibration_pairs()
    if path is None:
        log.warning("no calibration pairs: the temperature stays 1, so probabilities are not calibrated")
        return 1.0, None
    pairs = read_pairs(path)
    if not pairs:
        raise InvalidInput(f"{path} holds no pairs to calibrate on")
    spec = options.spec()
    preferences = score_pairs(Scorer(encoder, OnnxRuntimeCpu(on_cpu(onnx_file), "fp32"), spec), spec, pairs)
    temperature = fit_temperature(raw_margins(preferences))
    if is_bounded(temperature):
        log.warning("%d pairs determine no temperature; %.2g is the end of its range", len(pairs), temperature)
    return temperature, fit_auto_swap(preferences, temperature)


def score_pairs(scorer: Scorer, spec: ClozeSpec, pairs: list[PreferencePair]) -> list[Preference]:
    """Return the preferences of held-out pairs from both orders, the better response as A."""
    instructions = [spec.instruction(p.domain, or_default=True) for p in pairs]
    return scorer.score([p.comparison() for p in pairs], instructions)


def fit_auto_swap(preferences: list[Preference], temperature: float, max_flips: float = MAX_FLIPS) -> AutoSwap:
    """Return the smallest margin of one order at which skipping the other changes at most `max_flips` of preferences.

    Each pair counts twice, since either of its responses may come first.
    """
    orders = np.array([p.order_margins for p in preferences]) / temperature
    both = np.repeat(orders.mean(axis=1), 2)
    one = orders.ravel()
    sizes = np.abs(one)
    descending = np.argsort(-sizes, kind="stable")
    flipped = np.cumsum((np.sign(one) != np.sign(both))[descending])
    # One threshold cannot separate equal margins.
    last_of_equals = np.append(np.diff(sizes[descending]) < 0, True)
    enough = sizes[descending][last_of_equals & (flipped <= max_flips * len(one))]
    margin = float(enough[-1]) if len(enough) else float(sizes.max(initial=0)) + 1
    alone = sizes >= margin
    flips = float((alone & (np.sign(one) != np.sign(both))).mean())
    return AutoSwap(margin=margin, pairs=len(preferences), saved=float(alone.mean()), flips=flips, max_flips=max_flips)
