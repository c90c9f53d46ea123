"""Published scores and costs of small models, to compare a result with."""

from dataclasses import dataclass
from typing import Final

from tinyrm.flops import Geometry, exact_flops, paper_flops


@dataclass(frozen=True, slots=True)
class Anchor:
    """A published model.

    layers, hidden: for the paper's formula.
    sequences: of a whole pair, to decide it: 2 for a model that reads both responses together in both orders, 1 for
        one order. None for a model that scores each response once, alone, in however many pairs it occurs.
    scores: benchmark -> score in [0, 1].
    source: of the scores.
    geometry: for the exact count, if it is of the family that tinyrm/flops.py counts.
    """

    name: str
    parameters: int
    layers: int
    hidden: int
    sequences: int | None
    scores: dict[str, float]
    source: str
    geometry: Geometry | None = None

    def texts(self, benchmark: str) -> float:
        """Return how many times the text of a pair is read to decide it.

        A response alone counts as half of it; it is a little more, since it includes the whole prompt.
        """
        return self.sequences or RESPONSES_PER_PAIR.get(benchmark, 2) / 2

    def paper_gflops(self, tokens: float, benchmark: str) -> float:
        """Return the cost of a pair of this many tokens, by the paper's formula."""
        geometry = Geometry(
            layers=self.layers, hidden=self.hidden, intermediate=1, heads=1, window=1, global_layers=(), vocab=1
        )
        return self.texts(benchmark) * paper_flops(self.parameters, geometry, 1) * tokens / 1e9

    def exact_gflops(self, tokens: float, benchmark: str) -> float | None:
        """Return the same by the exact count; None for models of other families."""
        if self.geometry is None:
            return None
        return self.texts(benchmark) * exact_flops(self.geometry, round(tokens)) / 1e9


# Four responses make six pairs, three right and three wrong ones make nine.
RESPONSES_PER_PAIR: Final = {"reward-bench-2": 4 / 6, "rm-bench": 6 / 9}

MODERNBERT_LARGE: Final = Geometry(
    layers=28, hidden=1024, intermediate=2624, heads=16, window=128, global_layers=tuple(range(0, 28, 3)), vocab=50368
)
LARGE_PARAMETERS: Final = 395_881_664
REWARD_BENCH_PAPER: Final = "arXiv 2403.13787v2"
# Recomputed for RewardBench's four sections. Chat and Chat Hard are those of the raw split: the paper has no scores on
# the filtered one. It prints 86.4 and 75.6, by other weights (evaluation/benchmarks/rewardbench.py).
TINYRM: Final = "arXiv 2507.09973, sections re-weighted"

ANCHORS: Final = (
    Anchor("Better-PairRM", 435_000_000, 24, 1024, 2, {"reward-bench": 0.670}, REWARD_BENCH_PAPER),
    Anchor("PairRM-hf", 435_000_000, 24, 1024, 2, {"reward-bench": 0.579}, REWARD_BENCH_PAPER),
    Anchor(
        "OpenAssistant deberta-v3-large-v2", 435_000_000, 24, 1024, None, {"reward-bench": 0.538}, REWARD_BENCH_PAPER
    ),
    Anchor(
        "TinyRM large specialists, routed by section",
        LARGE_PARAMETERS,
        28,
        1024,
        1,
        {"reward-bench": 0.760},
        TINYRM,
        MODERNBERT_LARGE,
    ),
    Anchor(
        "TinyRM large, all at once", LARGE_PARAMETERS, 28, 1024, 1, {"reward-bench": 0.651}, TINYRM, MODERNBERT_LARGE
    ),
    Anchor(
        "Skywork-Reward-V2-Qwen3-0.6B",
        600_000_000,
        28,
        1024,
        None,
        # Its 67.6 on JudgeBench is the mean of four categories; ours is the mean over pairs, so they do not compare.
        {"reward-bench": 0.852, "reward-bench-2": 0.613, "rm-bench": 0.744},
        "arXiv 2507.01352",
    ),
    Anchor("Skywork-Reward-V2-Qwen3-1.7B", 1_700_000_000, 28, 2048, None, {"reward-bench": 0.903}, "arXiv 2507.01352"),
)


def anchors_for(benchmark: str) -> list[Anchor]:
    """Return the models with a published score on a benchmark; none for your own pairs."""
    return [anchor for anchor in ANCHORS if benchmark in anchor.scores]
