"""Test that the pictures show the numbers of the tables, and published models at their places."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from evaluation.anchors import ANCHORS, LARGE_PARAMETERS, MODERNBERT_LARGE, anchors_for
from evaluation.benchmarks.rewardbench import run
from evaluation.plots import plot_compute, plot_reliability
from evaluation.statistics import Share
from evaluation.target import Cost
from tests.evaluation.known import coin, target
from tinyrm.flops import exact_flops, paper_flops

COST = Cost(
    reads="pair",
    pairs=10,
    sequences=20,
    tokens_per_pair=1000.0,
    gflops_per_pair=4.0,
    paper_gflops_per_pair=9.0,
    pairs_per_second=5.0,
)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Collect every saved figure, still open."""
    saved: list[Figure] = []
    save = Figure.savefig

    def remember(figure: Figure, *arguments: object, **options: object) -> None:
        saved.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", remember)
    return saved


def test_compute_has_both_counts_and_the_published_models(tmp_path: Path, figures: list[Figure]) -> None:
    plot_compute("reward-bench", "ours@1", Share(value=0.6, low=0.5, high=0.7), COST, tmp_path / "compute.png")
    axes = figures[0].axes[0]
    names = {text.get_text() for text in axes.texts}
    assert names == {"ours@1", *(anchor.name for anchor in ANCHORS)}
    points = {(float(x), float(y)) for line in axes.lines for x, y in zip(*line.get_data(), strict=True)}
    assert {(4.0, 0.6), (9.0, 0.6)} <= points
    assert (paper_flops(LARGE_PARAMETERS, MODERNBERT_LARGE, 500) / 1e9, 0.76) in points
    assert (exact_flops(MODERNBERT_LARGE, 500) / 1e9, 0.76) in points
    assert imread(tmp_path / "compute.png").size > 1000


def test_a_picture_without_published_models_has_one_count(tmp_path: Path, figures: list[Figure]) -> None:
    unknown = COST.model_copy(update={"paper_gflops_per_pair": None})
    plot_compute("pairs", "ours@1", Share(value=0.6, low=0.5, high=0.7), unknown, tmp_path / "compute.png")
    assert [text.get_text() for text in figures[0].axes[0].texts] == ["ours@1"]


def test_anchors_belong_to_their_benchmark_and_have_the_papers_costs() -> None:
    assert len(anchors_for("reward-bench")) == len(ANCHORS)
    assert anchors_for("judge-bench") == [], "the published score is a mean of categories, ours of pairs"
    assert anchors_for("pairs") == []
    large = next(anchor for anchor in ANCHORS if anchor.geometry)
    assert round(large.paper_gflops(1, "reward-bench"), 3) == 0.857
    pair_rm = next(anchor for anchor in ANCHORS if anchor.name == "PairRM-hf")
    assert pair_rm.paper_gflops(100, "reward-bench") == pytest.approx(2 * 100 * 0.435 * (2 + 6 * 24 / 1024))


def test_reliability_is_a_picture_of_the_bins(reward_bench: Path, tmp_path: Path, figures: list[Figure]) -> None:
    scored = run(target(coin), str(reward_bench)).scored
    plot_reliability(scored, "coins", tmp_path / "reliability.png")
    upper, lower = figures[0].axes
    assert sum(bar.get_height() for bar in lower.patches) == len(scored)
    assert len(upper.lines) == 2
    assert imread(tmp_path / "reliability.png").size > 1000


def test_a_model_of_single_responses_scores_each_once_whatever_the_number_of_pairs() -> None:
    alone = next(anchor for anchor in ANCHORS if anchor.name == "Skywork-Reward-V2-Qwen3-0.6B")
    one_pair = alone.paper_gflops(100, "judge-bench")
    # Four responses are read where two pairs would be, six where three would be.
    assert 6 * alone.paper_gflops(100, "reward-bench-2") == pytest.approx(2 * one_pair)
    assert 9 * alone.paper_gflops(100, "rm-bench") == pytest.approx(3 * one_pair)
