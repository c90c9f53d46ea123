"""Two pictures: how well probabilities are calibrated, and what accuracy costs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from evaluation.anchors import anchors_for
from evaluation.scoring import ScoredPair
from evaluation.statistics import BINS, Share, calibration_error, reliability, targets_of
from evaluation.target import Cost
from tinyrm.pictures import OTHERS, OURS, new_figure, save


def plot_reliability(scored: Sequence[ScoredPair], title: str, path: Path) -> None:
    """Draw accuracy against confidence in 15 bins, and below it how many pairs are in each; a PNG."""
    p_right = np.array([j.preference.p_a for j in scored])
    targets = targets_of(scored)
    bins = reliability(p_right, targets)
    confidence = [b.confidence for b in bins]
    figure = new_figure(5, 6)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    upper.plot([0.5, 1], [0.5, 1], color="0.6", linestyle="--", label="perfectly calibrated")
    upper.plot(
        confidence, [b.accuracy for b in bins], marker="o", label=f"ECE {calibration_error(p_right, targets):.3f}"
    )
    upper.set(title=title, ylabel="accuracy", ylim=(0, 1.02))
    upper.legend()
    lower.bar(confidence, [b.pairs for b in bins], width=0.4 / BINS)
    lower.set(xlabel="confidence", ylabel="pairs", xlim=(0.49, 1.01))
    save(figure, path)


def plot_compute(benchmark: str, name: str, score: Share, cost: Cost, path: Path) -> None:
    """Draw the score against GFLOPs per decided pair, by both counts, among published models; a PNG.

    After Figure 3 of the Tiny Reward Models paper (arXiv 2507.09973), which has GFLOPs per token. Published models are
    placed as if they read texts as long as those measured here.
    """
    figure = new_figure(8, 5)
    axes = figure.subplots()
    tokens = cost.text_tokens
    for anchor in anchors_for(benchmark):
        costs = anchor.paper_gflops(tokens, benchmark), anchor.exact_gflops(tokens, benchmark)
        draw_point(axes, anchor.name, costs, anchor.scores[benchmark], OTHERS)
    draw_point(axes, name, (cost.paper_gflops_per_pair, cost.gflops_per_pair), score.value, OURS)
    axes.errorbar(
        cost.gflops_per_pair,
        score.value,
        yerr=[[score.value - score.low], [score.high - score.value]],
        color=OURS,
        capsize=3,
    )
    axes.plot([], [], marker="s", linestyle="", color=OTHERS, label="exact count")
    axes.plot([], [], marker="o", linestyle="", color=OTHERS, markerfacecolor="none", label="paper's formula")
    axes.set(xscale="log", xlabel=f"GFLOPs per decided pair of {tokens:.0f} tokens", ylabel="score", title=benchmark)
    axes.margins(x=0.35, y=0.15)
    axes.legend()
    axes.grid(visible=True, which="both", alpha=0.2)
    save(figure, path)


def draw_point(axes: Axes, name: str, costs: tuple[float | None, float | None], score: float, colour: str) -> None:
    """Draw one model.

    costs: by the paper's formula (a ring) and by the exact count (a square), joined if both are known.
    """
    known = [x for x in costs if x is not None]
    axes.plot(known, [score] * len(known), color=colour, linewidth=0.8)
    for x, marker, face in zip(costs, "os", ("none", colour), strict=True):
        if x is not None:
            axes.plot(x, score, marker=marker, color=colour, markerfacecolor=face)
    # Ours on the right of its points, others on the left of theirs, so that names stay apart.
    ours = colour == OURS
    place: dict[str, Any] = {"xytext": (8, 0), "ha": "left"} if ours else {"xytext": (-8, 0), "ha": "right"}
    x = max(known) if ours else min(known)
    axes.annotate(name, (x, score), textcoords="offset points", va="center", fontsize=8, color=colour, **place)
