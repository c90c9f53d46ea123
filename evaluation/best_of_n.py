"""python -m evaluation.best_of_n: what it costs to find the best of n responses, and how often it is found.

Two bundles, one that reads pairs and one that reads responses alone, judge groups of which one response is labelled
best. Every pair and every response is scored once; each strategy is then replayed on these results with the functions
that the service ranks with, and pays for the sequences that it uses. Simulated groups show the same for models whose
errors are known.
"""

import json
import logging
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, combinations
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from evaluation.card import update_card
from evaluation.groups import Group, groups_of, pair_accuracy, simulate
from evaluation.report import table
from evaluation.statistics import Estimate, Share
from tinyrm.bundle import Bundle, sha256
from tinyrm.command_line import parse
from tinyrm.comparison import Strategy
from tinyrm.encoding import Encoding, Tokenized
from tinyrm.errors import InvalidInput, TinyRMError
from tinyrm.flops import exact_flops
from tinyrm.manifest import Manifest
from tinyrm.output import standard_output
from tinyrm.pairs import read_pairs
from tinyrm.ranking import Ranking, margin_matrix, rank, rank_scores, settle, sigmoid
from tinyrm.readout import read_out
from tinyrm.schedules import SCHEDULES, Pair
from tinyrm.scorer import Scorer

log = logging.getLogger(__name__)

Matrix = NDArray[np.float64]
ROUND_ROBIN = "pairwise, round robin"
SIMULATED_SIZE, SIMULATED_GROUPS = 16, 1000
# Standard deviation of the noise of a score; that of a margin is 1.
SIMULATED_NOISE = (0.35, 0.71, 1.0, 1.4)


@dataclass(frozen=True, slots=True)
class Options:
    """Measure strategies for the best of n: cost against accuracy."""

    pairs: Path
    """Preference pairs, as of `python -m evaluation`; groups are made of those that share a prompt."""
    pointwise: Path
    """Bundle that reads responses alone."""
    pairwise: Path
    """Bundle that reads pairs."""
    sizes: tuple[int, ...] = (4, 8, 16)
    """Responses of a group."""
    tops: tuple[int, ...] = (2, 4, 8)
    """How many of the best a cascade compares in pairs."""
    engine: str = "auto"
    """Engine of both bundles."""
    out: Path | None = None
    """Folder for cascade.json, and cascade.md, where the tables replace what is between the markers of results."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What two models say about a group, and what it costs.

    pointwise: by the scores alone.
    margins: [n, n] of the pairwise model, all pairs in both orders.
    gflops_alone: [n], of reading a response alone.
    gflops_of_pair: [n, n], of both orders of a pair.
    """

    group: Group
    pointwise: Ranking
    margins: Matrix
    gflops_alone: Matrix
    gflops_of_pair: Matrix


@dataclass(frozen=True, slots=True)
class Outcome:
    """The strengths that a strategy gives, and the pairs that it compares.

    scores: whether it reads the responses alone, too.
    """

    strengths: Matrix
    pairs: Sequence[Pair]
    scores: bool = False

    @property
    def sequences(self) -> int:
        return 2 * len(self.pairs) + len(self.strengths) * self.scores

    def gflops(self, judged: Judged) -> float:
        of_pairs = sum(float(judged.gflops_of_pair[pair]) for pair in self.pairs)
        return of_pairs + float(judged.gflops_alone.sum()) * self.scores


# Strategies


def play(judged: Judged, strategy: Strategy) -> Outcome:
    """Replay a schedule of the pairwise model, as `Scorer.rank` and the service run it."""
    n = len(judged.group.responses)
    margins: dict[Pair, float] = {}
    schedule = SCHEDULES[strategy](n)
    pairs = next(schedule)
    while pairs:
        margins |= {pair: float(judged.margins[pair]) for pair in pairs}
        try:
            pairs = schedule.send(sigmoid(margin_matrix(n, margins)))
        except StopIteration:
            break
    return Outcome(rank(margin_matrix(n, margins)).strengths.values, list(margins))


def cascade(judged: Judged, top: int) -> Outcome:
    """Replay a cascade, as `tinyrm.cascade` and the service run it."""
    best = judged.pointwise.order[:top]
    settled = settle(judged.pointwise, judged.margins[np.ix_(best, best)])
    return Outcome(settled.strengths.values, list(combinations(best, 2)), scores=True)


def strategies(size: int, tops: Iterable[int]) -> dict[str, Callable[[Judged], Outcome]]:
    """Return the strategies to compare, by name; cascades of fewer than all responses."""
    return {
        ROUND_ROBIN: lambda judged: play(judged, "round_robin"),
        "pairwise, swiss": lambda judged: play(judged, "swiss"),
        "pairwise, knockout": lambda judged: play(judged, "knockout"),
        "pointwise alone": lambda judged: Outcome(judged.pointwise.strengths.values, (), scores=True),
        **{f"cascade, top {top}": partial(cascade, top=top) for top in tops if top < size},
    }


# Groups


@dataclass(frozen=True, slots=True)
class Model:
    """A bundle on an engine."""

    scorer: Scorer
    manifest: Manifest

    @classmethod
    def open(cls, folder: Path, engine: str, reads: str) -> Self:
        """Open a bundle. Raises InvalidInput if it does not read `reads`, and what `Scorer.open` raises."""
        manifest = Bundle.open(folder).manifest
        if manifest.reads != reads:
            raise InvalidInput(f"{folder} reads a {manifest.reads}; name a bundle that reads a {reads}")
        return cls(Scorer.open(folder, engine), manifest)

    def tokenize(self, group: Group, responses: Sequence[str]) -> Tokenized:
        """Tokenize with the instruction of the group's domain, or of the default one if the model lacks it."""
        resolved = self.scorer.spec.resolve(group.prompt, group.domain, or_default=True)
        return self.scorer.encoder.tokenize(resolved.instruction, resolved.prompt, responses)

    def temperature(self, group: Group) -> float:
        domain = self.scorer.spec.find_domain(group.domain, or_default=True)
        return self.scorer.calibrated.of(domain).value

    def gflops(self, sequence: Encoding) -> float:
        return exact_flops(self.manifest.geometry, len(sequence)) / 1e9


def judge(pointwise: Model, pairwise: Model, groups: Sequence[Group]) -> list[Judged]:
    """Score all responses and all pairs of groups that share a prompt; what several groups share, once."""
    responses = list(dict.fromkeys(response for group in groups for response in group.responses))
    places = [[responses.index(response) for response in group.responses] for group in groups]
    pairs = list(dict.fromkeys(pair for place in places for pair in combinations(sorted(place), 2)))
    texts = pairwise.tokenize(groups[0], responses)
    encoder = pairwise.scorer.encoder
    sequences = [sequence for i, j in pairs for sequence in encoder.assemble(texts, i, j, swap=True)]
    logits = pairwise.scorer.logits(sequences).reshape(len(pairs), 2, -1)
    cost = np.reshape([pairwise.gflops(sequence) for sequence in sequences], (-1, 2)).sum(axis=1)
    margins, gflops_of_pair = (np.full((len(responses), len(responses)), np.nan) for _ in range(2))
    for (i, j), rows, gflops in zip(pairs, logits, cost, strict=True):
        margins[i, j] = read_out(rows, pairwise.temperature(groups[0])).margin
        margins[j, i] = -margins[i, j]
        gflops_of_pair[i, j] = gflops_of_pair[j, i] = gflops
    texts = pointwise.tokenize(groups[0], responses)
    sequences = [pointwise.scorer.encoder.assemble_one(texts, i) for i in range(len(responses))]
    scores = pointwise.scorer.logits(sequences)[:, 0].astype(np.float64)
    gflops_alone = np.array([pointwise.gflops(sequence) for sequence in sequences])
    return [
        Judged(
            group,
            rank_scores(scores[place], pointwise.temperature(group)),
            margins[np.ix_(place, place)],
            gflops_alone[place],
            gflops_of_pair[np.ix_(place, place)],
        )
        for group, place in zip(groups, places, strict=True)
    ]


# Results


def measure(judged: Sequence[Judged], tops: Iterable[int]) -> list[dict[str, Any]]:
    """Return a row for each strategy, over groups of one size."""
    prompts = [one.group.prompt for one in judged]
    rows: list[dict[str, Any]] = []
    baseline: Estimate | None = None
    for name, strategy in strategies(len(judged[0].group.responses), tops).items():
        outcomes = [strategy(one) for one in judged]
        both = list(zip(judged, outcomes, strict=True))
        found = Estimate.of([one.group.found(outcome.strengths) for one, outcome in both], prompts)
        tau = Estimate.of([one.group.tau(outcome.strengths) for one, outcome in both], prompts)
        baseline = baseline or found
        rows.append(
            {
                "strategy": name,
                "sequences": float(np.mean([outcome.sequences for outcome in outcomes])),
                "gflops": float(np.mean([outcome.gflops(one) for one, outcome in both])),
                "best_found": Share.from_estimate(found).model_dump(),
                "difference": Share.from_estimate(difference(found, baseline)).model_dump(),
                "tau": Share.from_estimate(tau).model_dump(),
            }
        )
    return rows


def difference(one: Estimate, other: Estimate) -> Estimate:
    """Return the difference on the same groups: both were drawn together."""
    return Estimate(one.value - other.value, one.draws - other.draws)


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as a table; the first one is what the others are compared with."""
    first = rows[0]
    # A simulated group has no texts, so its cost is the number of sequences.
    has_texts = first["gflops"] > 0
    cost = "gflops" if has_texts else "sequences"
    columns = ["strategy", "sequences", *(["GFLOPs"] if has_texts else []), "cost", "best found", "difference", "tau"]
    lines = [
        [
            row["strategy"],
            f"{row['sequences']:.0f}",
            *([f"{row['gflops']:.2f}"] if has_texts else []),
            f"{row[cost] / first[cost]:.1%}",
            "{value:.1%} ({low:.1%} to {high:.1%})".format(**row["best_found"]),
            "" if row is first else points(row["difference"]),
            "{value:.3f} ({low:.3f} to {high:.3f})".format(**row["tau"]),
        ]
        for row in rows
    ]
    return table(columns, lines)


def points(share: Mapping[str, float]) -> str:
    value, low, high = (100 * share[name] for name in ("value", "low", "high"))
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def measure_simulated(tops: Iterable[int]) -> list[dict[str, Any]]:
    """Return the rows of each noise of the scores."""
    cases = []
    for noise in SIMULATED_NOISE:
        simulated = simulate(SIMULATED_SIZE, SIMULATED_GROUPS, noise)
        of_scores, of_margins = pair_accuracy(simulated)
        free = np.zeros((SIMULATED_SIZE, SIMULATED_SIZE))
        judged = [Judged(one.group, rank_scores(one.scores, 1.0), one.margins, free[0], free) for one in simulated]
        cases.append({"noise": noise, "pointwise": of_scores, "pairwise": of_margins, "rows": measure(judged, tops)})
    return cases


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure with the options of a command line, by default this process's. Return the exit code."""
    options = parse(Options, arguments, prog="python -m evaluation.best_of_n")
    logging.basicConfig(format="%(message)s")
    log.setLevel(logging.INFO)
    try:
        text, content = run(options)
        print(text, flush=True)
        if options.out:
            card = options.out / "cascade.md"
            options.out.mkdir(parents=True, exist_ok=True)
            if not card.exists():
                card.write_text("# The best of n: cost against accuracy\n", encoding="utf-8")
            update_card(card, text)
            (options.out / "cascade.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    except (TinyRMError, OSError) as error:
        print(f"evaluation: {error}", file=sys.stderr)
        return 1
    return 0


def run(options: Options) -> tuple[str, dict[str, Any]]:
    """Return the results as Markdown and as JSON values. Raises TinyRMError."""
    pairwise = Model.open(options.pairwise, options.engine, "pair")
    pointwise = Model.open(options.pointwise, options.engine, "response")
    pairs = read_pairs(options.pairs)
    sizes = {size: groups_of(pairs, size) for size in options.sizes}
    by_prompt: dict[str, list[Group]] = defaultdict(list)
    for group in chain.from_iterable(sizes.values()):
        by_prompt[group.prompt].append(group)
    judged: dict[int, list[Judged]] = defaultdict(list)
    for number, groups in enumerate(by_prompt.values(), start=1):
        for one in judge(pointwise, pairwise, groups):
            judged[len(one.group.responses)].append(one)
        log.info("%d of %d prompts", number, len(by_prompt))
    content: dict[str, Any] = {
        "pointwise": pointwise.manifest.identity,
        "pairwise": pairwise.manifest.identity,
        "engine": pairwise.scorer.engine.info.name,
        "pairs_sha256": sha256(options.pairs),
        "real": [
            {"responses": size, "groups": len(ones), "prompts": len({one.group.prompt for one in ones})}
            | {"rows": measure(ones, options.tops)}
            for size, ones in sorted(judged.items())
        ],
        "simulated": measure_simulated(options.tops),
    }
    parts = [f"Pairwise: `{content['pairwise']}`. Pointwise: `{content['pointwise']}`. Engine: {content['engine']}."]
    for part in content["real"]:
        parts.append(f"### {part['responses']} responses: {part['groups']} groups of {part['prompts']} prompts")
        parts.append(markdown(part["rows"]))
    for case in content["simulated"]:
        parts.append(
            f"### Simulated, {SIMULATED_SIZE} responses: scores are right on {case['pointwise']:.1%} of the pairs, "
            f"margins on {case['pairwise']:.1%}"
        )
        parts.append(markdown(case["rows"]))
    return "\n\n".join(parts), content


if __name__ == "__main__":
    with standard_output():
        sys.exit(main())
