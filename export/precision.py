"""Lower precisions of an optimised graph, and the gate that each must pass."""

import copy
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from export.calibration import evenly
from export.config import ExportOptions
from export.cpu_graph import on_cpu
from export.gate import Limits, compare_preferences, margins_of, passes, refusal, refuse_failed
from export.graph import MODEL_FILE, write_onnx
from export.int8_graph import write_int8
from export.parity import Run, run_alone, torch_run
from export.products import Product, Rounded, find_products, round_weights, rounded
from export.smoothquant import channel_maxima, equalise
from tinyrm.calibration import Outcomes
from tinyrm.encoding import Encoder, Encoding
from tinyrm.engines.onnx_runtime import OnnxRuntimeCpu
from tinyrm.errors import PrecisionRefused
from tinyrm.families.graphs import OPTIMISED
from tinyrm.manifest import Gate
from tinyrm.modernbert.blocked import BlockedModel
from tinyrm.modernbert.model import PreferenceModel
from tinyrm.pairs import PreferencePair
from tinyrm.spec import Spec

# What rounding one product changes differs by orders of magnitude between products; a few dozen pairs show it. The gate
# uses the others.
SEARCH_PAIRS = 48
# With less of the work in 8 bits, a graph is hardly faster than in fp32, and not worth its file.
MIN_SHARE = 0.25
TIMED_SEQUENCES = 8

log = logging.getLogger(__name__)


def graph_file(precision: str) -> str:
    """Return the name of a precision's graph in a bundle."""
    return MODEL_FILE if precision == "fp32" else MODEL_FILE.replace(".onnx", f".{precision}.onnx")


def write_lower_precisions(
    options: ExportOptions,
    pairs: Sequence[PreferencePair],
    encoder: Encoder,
    graph: nn.Module,
    onnx_file: Path,
    *,
    spec: Spec,
    temperature: float,
) -> dict[str, Gate]:
    """Write each precision below fp32 beside the fp32 graph `onnx_file`. Return how far each is from that graph.

    int8 is searched on calibration pairs of all domains and lengths; the gate uses the others.

    Raises PrecisionRefused.
    """
    wanted = options.lower_precisions()
    if not wanted or not isinstance(graph, OPTIMISED):
        return {}
    pad_id, limits = encoder.special.pad, Limits.of(options)
    searched = evenly(pairs, min(SEARCH_PAIRS, len(pairs) // 4))
    chosen = set(map(id, searched))
    search = encode_pairs(searched, encoder, spec)
    gated = [pair for pair in pairs if id(pair) not in chosen]
    others, outcomes = encode_pairs(gated, encoder, spec), Outcomes.of(gated, len(gated))
    exact_run = OnnxRuntimeCpu(on_cpu(onnx_file), "fp32").run
    compare: Callable[[str, Run], Gate] = partial(
        compare_preferences,
        reference=run_alone(exact_run, others),
        sequences=others,
        temperature=temperature,
        limits=limits,
        outcomes=outcomes,
    )
    gates: dict[str, Gate] = {}
    for precision in wanted:
        lower, path = copy.deepcopy(graph), onnx_file.with_name(graph_file(precision))
        if precision == "int8":
            write = partial(write_and_compare, lower, onnx_file, path, compare=compare)
            gates[precision] = search_int8(lower, search, pad_id, write)
            report_speed(exact_run, OnnxRuntimeCpu(on_cpu(path), "int8").run, search)
        elif isinstance(lower, BlockedModel):
            lower.model.round_to(torch.bfloat16, tables=True)
            write_onnx(lower, path, lower.model.max_tokens)
            # It rounds where the graph does; ONNX Runtime has no bf16 arithmetic on CPUs.
            gates[precision] = refuse_failed(precision, compare(precision, torch_run(lower, pad_id)))
    return gates


def write_and_compare(
    model: nn.Module,
    exact_file: Path,
    path: Path,
    products: Sequence[Product],
    weights: Rounded,
    *,
    compare: Callable[[str, Run], Gate],
) -> Gate:
    """Write int8 of these products to `path`. Return its report, whether it passes or not."""
    write_int8(model, exact_file, path, products, weights)
    return compare("int8", OnnxRuntimeCpu(on_cpu(path), "int8").run)


def encode_pairs(pairs: Iterable[PreferencePair], encoder: Encoder, spec: Spec) -> list[Encoding]:
    """Return the sequences of all pairs, the better response as A; as many of each as `Encoder.encode` returns."""
    instructions = ((pair, spec.instruction(pair.domain, or_default=True)) for pair in pairs)
    return [
        sequence
        for pair, instruction in instructions
        for sequence in encoder.encode(pair.comparison(), instruction, swap=True)
    ]


def search_int8(
    model: nn.Module,
    sequences: Sequence[Encoding],
    pad_id: int,
    write: Callable[[Sequence[Product], Rounded], Gate],
) -> Gate:
    """Write int8 with as few products in fp32 as the gate allows. Return the report of what was written.

    If not all products can be rounded, those are kept in fp32 first that do most harm when they alone are rounded, for
    the work that rounding them saves.

    model: in fp32; the scales of its weights are changed.
    sequences: pairs to search on, which the gate does not use.
    write: writes a graph with these products in 8 bits and these weights, and returns its report, passed or not.

    Raises PrecisionRefused.
    """
    run = torch_run(model, pad_id)
    body = getattr(model, "model", None)
    if isinstance(body, PreferenceModel):
        maxima, hooks = channel_maxima(body)
        run_alone(run, sequences)
        for hook in hooks:
            hook.remove()
        equalise(body, maxima)
    products = find_products(model, run, sequences)
    weights = round_weights(model, products)
    whole = sum(product.work for product in products)

    def attempt(ordered: Sequence[Product], kept: int) -> Gate:
        share = sum(product.work for product in ordered[kept:]) / whole
        report = write(ordered[kept:], weights)
        log.info(
            "int8 with %d of %d products in fp32, %.0f %% of the work in 8 bits: %.2f %% flipped, weighted %.3f %%",
            *(kept, len(ordered), 100 * share, 100 * report.flips, 100 * (report.weighted_flips or 0)),
        )
        names = tuple(product.name for product in ordered[:kept])
        return report.model_copy(update={"share_rounded": share, "kept_fp32": names})

    report = attempt(products, 0)
    if passes(report):
        return report
    log.info("measuring what rounding each of %d products to int8 changes", len(products))
    ordered = by_harm(products, measure_harms(model, run, sequences, products, weights))
    shares = [sum(product.work for product in ordered[kept:]) / whole for kept in range(len(ordered))]
    most = max(kept for kept, share in enumerate(shares) if share >= MIN_SHARE)
    kept, report = keep_fewest(lambda kept: attempt(ordered, kept), most)
    if not passes(report):
        raise PrecisionRefused(
            f"{refusal('int8', report)}. {kept} of {len(ordered)} products stayed in fp32 "
            f"({', '.join(report.kept_fp32) or 'none'}); with more, it would hardly be faster"
        )
    write(ordered[kept:], weights)
    return report


def by_harm(products: Sequence[Product], harms: Mapping[str, float]) -> list[Product]:
    """Return the products in the order in which to keep them in fp32: most harm for the work first."""
    return sorted(products, key=lambda product: -harms[product.name] / product.work)


def measure_harms(
    model: nn.Module, run: Run, sequences: Sequence[Encoding], products: Sequence[Product], integers: Rounded
) -> dict[str, float]:
    """Return the mean square of what rounding each product alone changes in the margins, by the product's name."""
    exact = margins_of(sequences, run_alone(run, sequences))
    harms = {}
    for product in products:
        with rounded(model, [product], integers):
            harms[product.name] = float(np.mean((margins_of(sequences, run_alone(run, sequences)) - exact) ** 2))
    return harms


def keep_fewest(attempt: Callable[[int], Gate], most: int) -> tuple[int, Gate]:
    """Return the fewest products to keep in fp32 so that an attempt passes, and its report. Keeping none has failed.

    Found by halving, as if keeping more never harmed; if it does, what is found passes all the same. If none passes,
    the report is that of keeping the `most` products.
    """
    failed, kept, report = 0, most, attempt(most)
    while passes(report) and kept - failed > 1:
        middle = (failed + kept) // 2
        tried = attempt(middle)
        if passes(tried):
            kept, report = middle, tried
        else:
            failed = middle
    return kept, report


def report_speed(exact: Run, lower: Run, sequences: Sequence[Encoding]) -> None:
    """Log how fast int8 is on this machine, from processor times of both graphs in turns."""
    longest = sorted(sequences, key=len)[-TIMED_SEQUENCES:]
    times: dict[str, list[float]] = {"fp32": [], "int8": []}
    for sequence in longest:
        for name, run in (("fp32", exact), ("int8", lower)):
            run([sequence])
            started = time.process_time()
            run([sequence])
            times[name].append(time.process_time() - started)
    ratio = sum(times["fp32"]) / max(sum(times["int8"]), 1e-9)
    tokens = sum(map(len, longest)) // len(longest)
    level = logging.INFO if ratio > 1 else logging.WARNING
    log.log(level, "int8 is %.2f times as fast as fp32 on this machine, at %d tokens", ratio, tokens)
