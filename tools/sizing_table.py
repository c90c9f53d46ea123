"""Write the table of docs/sizing.md from measured runs: `python -m tools.sizing_table`.

Measured: the time of one sequence of TOKENS tokens on two idle cores (docs/results/bench.json).
Computed from it: the rest. The latency at 80 % is that of a queue with one server, Poisson arrivals and one length, as
a multiple of the time of one comparison that a simulation gives.
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loadtests.bench import goals
from loadtests.bench.contenders import OURS
from loadtests.bench.shapes import GEOMETRIES
from loadtests.report import table
from tinyrm.flops import Geometry, exact_flops

ROOT = Path(__file__).parents[1]
PAGE, RESULTS = ROOT / "docs" / "sizing.md", ROOT / "docs" / "results"
SECTION = re.compile(r"(<!-- sizing: begin -->\n)(.*?)(<!-- sizing: end -->)", re.DOTALL)
HEADS = (
    "model",
    "parameters, millions",
    "precision",
    "from",
    "ms a sequence",
    "comparisons/s",
    "p50, ms",
    "p99, ms",
    "limit of memory",
)
TOKENS, LOAD, ARRIVALS = 512, 0.8, 200_000
# Memory of two processes without a model, of bodies (TINYRM_MAX_BUFFERED_BYTES), and of one very long text.
BESIDE_MODEL_MIB = 250 + 256 + 400


def full(layers: int, hidden: int, heads: int, *, vocab: int = 30522, distances: int = 0) -> Geometry:
    """Return a geometry whose layers all see all tokens, as BERT's and DeBERTa's."""
    return Geometry(
        layers=layers,
        hidden=hidden,
        intermediate=4 * hidden,
        heads=heads,
        window=1024,
        global_layers=tuple(range(layers)),
        vocab=vocab,
        gated=False,
        distances=distances,
    )


@dataclass(frozen=True)
class Model:
    """sequences: how many one comparison takes, as the model reads."""

    name: str
    millions: float
    precision: str
    seconds: float
    origin: str
    sequences: int = 2

    def row(self, multiples: tuple[float, float]) -> list[str]:
        comparison_s = self.sequences * self.seconds
        # The embeddings stay in fp32.
        weights_mib = self.millions * 1e6 * (2 if self.precision == "int8" else 4) / 2**20
        # In the private copy of the files and in the engine.
        limit = math.ceil(2 * (BESIDE_MODEL_MIB + 2 * weights_mib) / 1024) / 2
        p50, p99 = (f"{1e3 * multiple * comparison_s:,.0f}" for multiple in multiples)
        measured = [f"{1e3 * self.seconds:,.0f}", f"{LOAD / comparison_s:.2g}", p50, p99]
        return [self.name, f"{self.millions:g}", self.precision, self.origin, *measured, f"{limit:g} GiB"]


def models() -> Iterator[Model]:
    """Yield the rows, small models first."""
    parts = json.loads((RESULTS / "bench.json").read_text())["parts"]
    sizes = parts["engines"]["geometries"] | parts["cross-encoders"]["geometries"]

    def measured(size: str, contender: str = OURS) -> float | None:
        return goals.seconds(goals.by_name(sizes.get(size, {})).get(contender, {}), TOKENS)

    base_s = measured("base")
    if base_s is None:
        raise ValueError(
            f"{RESULTS}/bench.json has no ModernBERT-base of {TOKENS} tokens, from which others are computed"
        )
    flops_per_s = exact_flops(GEOMETRIES["base"], TOKENS) / base_s

    def row(name: str, millions: float, geometry: Geometry, seconds: float | None = None) -> Model:
        """Return a model in fp32; its time is computed unless it was measured."""
        origin = "computed" if seconds is None else "measured"
        return Model(name, millions, "fp32", seconds or exact_flops(geometry, TOKENS) / flops_per_s, origin)

    yield row("ModernBERT, 7 layers of 256", 8, GEOMETRIES["small"], measured("small"))
    yield row("MiniLM, 6 layers of 384", 23, full(6, 384, 12), measured("minilm", "ours-ort"))
    yield row("BERT-base", 109, full(12, 768, 12))
    yield row("ModernBERT-base", 149, GEOMETRIES["base"], base_s)
    if (int8_s := measured("base", "ours-ort-int8")) is not None:
        yield Model("ModernBERT-base", 149, "int8", int8_s, "measured")
    yield row("DeBERTa-v3-base", 184, full(12, 768, 12, vocab=128100, distances=512))
    yield row("ModernBERT-large", 395, GEOMETRIES["large"], measured("large"))
    yield row("DeBERTa-v3-large", 434, full(24, 1024, 16, vocab=128100, distances=512))


def latency_multiples() -> tuple[float, float]:
    """Return p50 and p99 of the latency at LOAD, as multiples of the time of one comparison."""
    gaps = np.random.default_rng(17).exponential(1 / LOAD, ARRIVALS)
    # The wait of each: how far the work that arrived so far exceeds the time that passed, from its lowest point on.
    ahead = np.cumsum(1 - gaps) - (1 - gaps[0])
    waits = ahead - np.minimum.accumulate(ahead)
    p50, p99 = np.percentile(waits + 1, [50, 99])
    return float(p50), float(p99)


def section() -> str:
    multiples = latency_multiples()
    return table(HEADS, [model.row(multiples) for model in models()]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(SECTION.sub(lambda found: found[1] + section() + found[3], PAGE.read_text()))
