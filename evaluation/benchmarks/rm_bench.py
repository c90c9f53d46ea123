"""RM-Bench (arXiv 2410.16184, `THU-KEG/RM-Bench`): three styles of a right response against three of a wrong one.

Styles grow from concise over detailed to detailed with Markdown. Cell (i, j) of the 3 x 3 grid is how often right
responses of style i beat wrong ones of style j. Hard is the mean above the diagonal (the wrong one looks better),
Normal the diagonal, Easy below it; a domain is the mean of the three, the safety domain the mean of its two halves, and
the overall score the mean of four domains.
"""

from collections.abc import Sequence
from itertools import product
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from evaluation.loading import Row, load_rows
from evaluation.report import Report, orders_and_length, table
from evaluation.scoring import ScoredPair, score_pairs
from evaluation.statistics import Estimate, Share, mean
from evaluation.target import Target
from tinyrm.errors import InvalidInput
from tinyrm.pairs import PreferencePair

NAME: Final = "rm-bench"
SOURCE: Final = "THU-KEG/RM-Bench"
SPLIT: Final = "train"
STYLES: Final = ("concise", "detailed", "markdown")
DOMAINS: Final = {
    "chat": ("chat",),
    "code": ("code",),
    "math": ("math",),
    "safety": ("safety-refuse", "safety-response"),
}
INSTRUCTIONS: Final = {"chat": "chat", "code": "reasoning", "math": "reasoning", "safety": "safety"}
MEAN: Final = "**mean of {}**"
CELLS: Final = tuple(product(range(len(STYLES)), repeat=2))
LEVELS: Final = {
    "Hard": tuple((i, j) for i, j in CELLS if i < j),
    "Normal": tuple((i, j) for i, j in CELLS if i == j),
    "Easy": tuple((i, j) for i, j in CELLS if i > j),
}


class RmBenchRow(Row):
    id: str | int
    prompt: str
    chosen: tuple[str, ...] = Field(min_length=3, max_length=3)
    rejected: tuple[str, ...] = Field(min_length=3, max_length=3)
    domain: str

    @property
    def top(self) -> str:
        """Return the domain of the overall score. Raises InvalidInput for an unknown one."""
        for top, parts in DOMAINS.items():
            if self.domain in parts:
                return top
        raise InvalidInput(f"RM-Bench has no domain {self.domain!r}")

    def pairs(self) -> list[PreferencePair]:
        """Return the nine pairs of the grid, row by row."""
        return [
            PreferencePair.model_construct(
                prompt=self.prompt,
                chosen=self.chosen[i],
                rejected=self.rejected[j],
                domain=INSTRUCTIONS[self.top],
                subset=self.domain,
            )
            for i, j in CELLS
        ]


def run(target: Target, source: str = SOURCE, revision: str | None = None) -> Report:
    """Score all nine pairs of every prompt; six scores decide them if responses are read alone. Raises InvalidInput."""
    rows = load_rows(source, SPLIT, RmBenchRow, revision)
    return report(rows, score_pairs(target, [pair for row in rows for pair in row.pairs()]))


def report(rows: Sequence[RmBenchRow], scored: Sequence[ScoredPair]) -> Report:
    """Return all tables. As published, a tie is wrong.

    scored: nine pairs for each row, as `RmBenchRow.pairs` returns them.
    """
    right = np.array([float(j.is_right) for j in scored]).reshape(-1, len(STYLES), len(STYLES))
    present = {row.domain for row in rows}
    levels = {
        level: {
            domain: mean({part: estimate_part(rows, right, part, cells) for part in parts if part in present})
            for domain, parts in DOMAINS.items()
            if present.intersection(parts)
        }
        for level, cells in LEVELS.items()
    }
    by_level = {level: mean(domains) for level, domains in levels.items()}
    names = list(levels["Hard"])
    by_domain = {name: mean({level: levels[level][name] for level in levels}) for name in names}
    overall = mean(by_domain)
    score = Share.from_estimate(overall)
    lines = [
        [name, *(f"{levels[level][name].value:.1%}" for level in levels), str(Share.from_estimate(by_domain[name]))]
        for name in names
    ]
    lines.append([MEAN.format(len(names)), *(str(Share.from_estimate(e)) for e in by_level.values()), str(score)])
    cells = right.mean(axis=0)
    styles = [[f"right: {style}", *(f"{cell:.1%}" for cell in cells[i])] for i, style in enumerate(STYLES)]
    orders, lengths = orders_and_length(scored)
    figures: dict[str, Any] = {
        "score": score.model_dump(),
        "levels": {level: Share.from_estimate(estimate).model_dump() for level, estimate in by_level.items()},
        "domains": {name: {level: levels[level][name].value for level in levels} for name in names},
        "grid": cells.tolist(),
        "length": lengths,
    }
    markdown = [
        table(("domain", *levels, "mean"), lines),
        table(("all prompts", *(f"wrong: {style}" for style in STYLES)), styles),
        orders,
    ]
    estimates = by_level | by_domain | {MEAN.format(len(names)): overall}
    return Report(NAME, "\n\n".join(markdown), figures, score, estimates, list(scored))


def estimate_part(
    rows: Sequence[RmBenchRow], right: NDArray[np.float64], part: str, cells: Sequence[tuple[int, int]]
) -> Estimate:
    """Return the estimate of one part of a domain. Its levels share a seed, so that they are drawn together."""
    chosen = [index for index, row in enumerate(rows) if row.domain == part]
    i, j = np.array(cells).T
    values = right[chosen][:, i, j].mean(axis=1).tolist()
    seed = [name for parts in DOMAINS.values() for name in parts].index(part)
    return Estimate.of(values, [rows[index].prompt for index in chosen], seed)
