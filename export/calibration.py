"""The pairs to calibrate on, the temperature, and the margin at which one order is enough."""

import logging
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from export.config import ExportOptions
from export.cpu_graph import on_cpu
from tinyrm.calibration import MIN_PAIRS, determine_temperature, raw_margins
from tinyrm.comparison import Preference
from tinyrm.encoding import Encoder
from tinyrm.engines.onnx_runtime import OnnxRuntimeCpu
from tinyrm.errors import InvalidInput
from tinyrm.manifest import AutoSwap, Calibration, ScoreScale
from tinyrm.pairs import PreferencePair, read_pairs
from tinyrm.scorer import Scorer
from tinyrm.spec import Spec

# For the ranges of int8 and for the gate. So few show only that the arithmetic is not broken.
MIN_GATE_PAIRS = 8
# The same limit as for a lower precision, which saves as much.
MAX_FLIPS = 0.005

log = logging.getLogger(__name__)


class Calibrated(NamedTuple):
    """What calibration pairs determine.

    auto_swap: the margin at which one order is enough; None if there are too few pairs, or no orders.
    score_scale: mean and deviation of the scores of single responses; None for a model that reads pairs.
    record: None without pairs.
    """

    temperature: float = 1.0
    auto_swap: AutoSwap | None = None
    score_scale: ScoreScale | None = None
    record: Calibration | None = None


def read_calibration(options: ExportOptions) -> list[PreferencePair]:
    """Return the pairs to calibrate on, at most `max_calibration_pairs`; none if there is no file.

    Raises InvalidInput for a file that cannot be read or is empty, or is too small to check a lower precision.
    """
    path = options.calibration_pairs()
    if path is None:
        return []
    pairs = read_pairs(path)
    if not pairs:
        raise InvalidInput(f"{path} holds no pairs to calibrate on")
    lower = ", ".join(options.lower_precisions())
    if lower and len(pairs) < MIN_GATE_PAIRS:
        raise InvalidInput(f"{path} holds {len(pairs)} pairs; {lower} needs {MIN_GATE_PAIRS} to be checked")
    if lower and len(pairs) < MIN_PAIRS:
        log.warning("%d pairs hardly show what %s changes; %d would", len(pairs), lower, MIN_PAIRS)
    return evenly(pairs, options.max_calibration_pairs or len(pairs))


def evenly(pairs: Sequence[PreferencePair], count: int, seed: int = 17) -> list[PreferencePair]:
    """Return `count` pairs with the domains and lengths of all, in the order of the file; all if there are no more.

    Sorted by domain and length, every so many-th pair is taken, from a start that the seed draws.
    """
    if count >= len(pairs):
        return list(pairs)

    def size(i: int) -> int:
        return len(pairs[i].prompt) + len(pairs[i].chosen) + len(pairs[i].rejected)

    ordered = sorted(range(len(pairs)), key=lambda i: (pairs[i].domain or "", size(i)))
    start = random.Random(seed).random()
    return [pairs[i] for i in sorted(ordered[int((n + start) * len(pairs) / count)] for n in range(count))]


def calibrate(options: ExportOptions, pairs: Sequence[PreferencePair], encoder: Encoder, onnx_file: Path) -> Calibrated:
    """Return what the pairs determine; the temperature stays 1 if they do not determine it."""
    if not pairs:
        log.warning("no calibration pairs: the temperature stays 1, so probabilities are not calibrated")
        return Calibrated()
    spec = options.spec()
    scorer = Scorer(encoder, OnnxRuntimeCpu(on_cpu(onnx_file), "fp32"), spec)
    preferences = score_pairs(scorer, spec, pairs)
    fit = None
    try:
        fit = determine_temperature(preferences)
    except InvalidInput as error:
        log.warning("%s; the temperature stays 1, so probabilities are not calibrated", error)
    temperature = fit.temperature if fit else 1.0
    is_pairwise = encoder.reads == "pair"
    auto_swap = fit_auto_swap(preferences, temperature) if is_pairwise and len(pairs) >= MIN_PAIRS else None
    if is_pairwise and auto_swap is None:
        log.warning("%d pairs are too few for `swap: auto`: %d are needed", len(pairs), MIN_PAIRS)
    record = Calibration(
        pairs=len(pairs),
        wrong=int(np.sum(raw_margins(preferences) <= 0)),
        held_out=options.calibration is None,
        chosen=(*(["temperature"] if fit else []), *(["auto_swap"] if auto_swap else []), *options.lower_precisions()),
        log_temperature_std=fit.log_std if fit else None,
        temperature_one_order=fit.one_order if fit else None,
    )
    return Calibrated(temperature, auto_swap, None if is_pairwise else score_scale(scorer, spec, pairs), record)


def score_scale(scorer: Scorer, spec: Spec, pairs: Sequence[PreferencePair]) -> ScoreScale | None:
    """Return mean and deviation of the scores of all different responses; None if the scores do not differ."""
    texts = {
        (*spec.resolve(pair.prompt, pair.domain, or_default=True), response)
        for pair in pairs
        for response in (pair.chosen, pair.rejected)
    }
    scores = scorer.score_texts(sorted(texts)).astype(np.float64)
    mean, std = float(scores.mean()), float(scores.std())
    return ScoreScale(mean=mean, std=std, responses=len(scores)) if std > 0 else None


def score_pairs(scorer: Scorer, spec: Spec, pairs: Sequence[PreferencePair]) -> list[Preference]:
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
