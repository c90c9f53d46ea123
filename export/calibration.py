"""The pairs to calibrate on, the temperature, and the margin at which one order is enough."""

import logging
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from export.config import ExportOptions
from export.cpu_graph import on_cpu
from tinyrm.bundle import hash_of_pairs
from tinyrm.calibration import MIN_PAIRS, Outcomes, determine_domains, determine_temperature, raw_margins
from tinyrm.comparison import Preference
from tinyrm.encoding import Encoder
from tinyrm.engines.onnx_runtime import OnnxRuntimeCpu
from tinyrm.errors import InvalidInput
from tinyrm.manifest import AutoSwap, Calibration, DomainTemperature, ScoreScale
from tinyrm.pairs import PreferencePair, read_pairs
from tinyrm.readout import read_out
from tinyrm.scorer import Scorer
from tinyrm.spec import Spec

# For the ranges of int8 and for the gate. So few show only that the arithmetic is not broken.
MIN_GATE_PAIRS = 8
# The same limit as for a lower precision, which saves as much.
MAX_FLIPS = 0.005

log = logging.getLogger(__name__)


class Calibrated(NamedTuple):
    """What calibration pairs determine.

    temperatures: of the domains that need their own.
    auto_swap: the margin at which one order is enough; None if there are too few pairs, or no orders.
    score_scale: mean and deviation of the scores of single responses; None if a score depends on other responses.
    record: None without pairs.
    """

    temperature: float = 1.0
    temperatures: Mapping[str, DomainTemperature] = MappingProxyType({})
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
    pairs = read_pairs(path, ties=True)
    if not pairs:
        raise InvalidInput(f"{path} holds no pairs to calibrate on")
    gated = ", ".join(options.gated())
    if gated and len(pairs) < MIN_GATE_PAIRS:
        raise InvalidInput(f"{path} holds {len(pairs)} pairs; {gated} needs {MIN_GATE_PAIRS} to be checked")
    if gated and len(pairs) < MIN_PAIRS:
        log.warning("%d pairs hardly show what %s changes; %d would", len(pairs), gated, MIN_PAIRS)
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


def calibrate(
    options: ExportOptions, spec: Spec, pairs: Sequence[PreferencePair], encoder: Encoder, onnx_file: Path
) -> Calibrated:
    """Return what the pairs determine; the temperature stays 1 if they do not determine it."""
    if not pairs:
        log.warning("no calibration pairs: the temperature stays 1, so probabilities are not calibrated")
        return Calibrated()
    scorer = Scorer(encoder, OnnxRuntimeCpu(on_cpu(onnx_file), "fp32"), spec)
    score_scale = None
    if encoder.scores_alone:
        preferences, score_scale = score_alone(scorer, spec, pairs)
    else:
        preferences = score_pairs(scorer, spec, pairs)
    fit = None
    try:
        fit = determine_temperature(preferences, pairs)
    except InvalidInput as error:
        log.warning("%s; the temperature stays 1, so probabilities are not calibrated", error)
    temperature = fit.temperature if fit else 1.0
    domains = [spec.find_domain(pair.domain, or_default=True) for pair in pairs]
    own = determine_domains(preferences, domains, temperature, pairs) if fit else {}
    auto_swap = None
    if encoder.reads == "pair" and len(pairs) >= MIN_PAIRS:
        auto_swap = fit_auto_swap(preferences, temperature)
    elif encoder.reads == "pair":
        log.warning("%d pairs are too few for `swap: auto`: %d are needed", len(pairs), MIN_PAIRS)
    chosen = {"temperature": fit, "auto_swap": auto_swap, "score_scale": score_scale}
    record = Calibration(
        pairs=len(pairs),
        wrong=Outcomes.of(pairs, len(pairs)).wrong(raw_margins(preferences)),
        held_out=options.holds_out(pairs),
        chosen=(*(name for name, value in chosen.items() if value), *options.gated()),
        log_temperature_std=fit.log_std if fit else None,
        temperature_one_order=fit.one_order if fit else None,
        pairs_sha256=hash_of_pairs(options.calibration_pairs()),
    )
    temperatures = {domain: DomainTemperature.of(one) for domain, one in own.items()}
    return Calibrated(temperature, temperatures, auto_swap, score_scale, record)


def score_pairs(scorer: Scorer, spec: Spec, pairs: Sequence[PreferencePair]) -> list[Preference]:
    """Return the preferences of held-out pairs from both orders, the better response as A."""
    instructions = [spec.instruction(p.domain, or_default=True) for p in pairs]
    return scorer.score([p.comparison() for p in pairs], instructions)


def score_alone(
    scorer: Scorer, spec: Spec, pairs: Sequence[PreferencePair]
) -> tuple[list[Preference], ScoreScale | None]:
    """Return the preferences of held-out pairs from single scores, the better response as A, and the scale of these.

    The scale counts each distinct response once. It is None if all scores are equal, so that there is no unit.
    """
    texts = [
        (spec.instruction(pair.domain, or_default=True), pair.prompt, response)
        for pair in pairs
        for response in (pair.chosen, pair.rejected)
    ]
    logits = scorer.score_texts(texts)
    preferences = [read_out(rows, scorer.temperature) for rows in logits.reshape(-1, 2, 1)]
    distinct = np.array(list(dict(zip(texts, logits, strict=True)).values()), dtype=np.float64)
    mean, std = float(distinct.mean()), float(distinct.std())
    return preferences, ScoreScale(mean=mean, std=std, responses=len(distinct)) if std > 0 else None


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
