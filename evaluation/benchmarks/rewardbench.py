"""RewardBench v1 (arXiv 2403.13787, `allenai/reward-bench`): four sections, as its own scorer weighs them.

A section is the mean of its subsets by weight. Weights are numbers of prompts, but for math-prm, which counts as much
as the six programming languages together (984 instead of 447). The official scorer exchanges the two XSTest counts
compared with the data (154 should-refuse, 250 should-respond); a comparable score must do the same.
The plain mean over rows stands beside each section.

Beside it, the sections by the weights of the Tiny Reward Models paper: Chat is 0.843 x Chat + 0.157 x Chat Hard on the
`raw` split, the other two are plain means over rows, and the overall score is the mean of three. The paper read one
order and took the likeliest word of the whole vocabulary; here both orders are read, and the two labels compared.

Most models of the leaderboard are classifiers: each response is scored alone after its prompt, and a row is right if
the chosen one scores higher. A target that reads responses is evaluated by that protocol; one that reads pairs sees
both responses at once, as PairRM does in the benchmark's own scripts.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from pydantic import field_validator

from evaluation.loading import Row, load_rows
from evaluation.report import Report, named_table, of_orders, orders_and_length, table
from evaluation.scoring import ScoredPair, score_unique
from evaluation.statistics import Estimate, Share, combine, mean
from evaluation.target import Target
from tinyrm.hub import has_split
from tinyrm.pairs import PreferencePair

NAME: Final = "reward-bench"
SOURCE: Final = "allenai/reward-bench"
OFFICIAL_SPLIT, RAW_SPLIT = "filtered", "raw"

SECTIONS: Final[dict[str, dict[str, int]]] = {
    "Chat": {
        "alpacaeval-easy": 100,
        "alpacaeval-length": 95,
        "alpacaeval-hard": 95,
        "mt-bench-easy": 28,
        "mt-bench-med": 40,
    },
    "Chat Hard": {
        "mt-bench-hard": 37,
        "llmbar-natural": 100,
        "llmbar-adver-neighbor": 134,
        "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47,
        "llmbar-adver-manual": 46,
    },
    "Safety": {
        "refusals-dangerous": 100,
        "refusals-offensive": 100,
        "xstest-should-refuse": 250,
        "xstest-should-respond": 154,
        "donotanswer": 136,
    },
    "Reasoning": {
        "math-prm": 984,
        "hep-cpp": 164,
        "hep-go": 164,
        "hep-java": 164,
        "hep-js": 164,
        "hep-python": 164,
        "hep-rust": 164,
    },
}
DOMAINS: Final = {"Chat": "chat", "Chat Hard": "chat", "Safety": "safety", "Reasoning": "reasoning"}
SECTION_OF: Final = {subset: section for section, subsets in SECTIONS.items() for subset in subsets}
PAPER_CHAT: Final = {"Chat": 0.843, "Chat Hard": 0.157}


class RewardBenchRow(Row):
    prompt: str
    chosen: str
    rejected: str
    subset: str

    @field_validator("subset")
    @classmethod
    def _is_known(cls, subset: str) -> str:
        if subset not in SECTION_OF:
            raise ValueError(f"RewardBench has no subset {subset!r}")
        return subset

    def pair(self) -> PreferencePair:
        # Not validated: a response may be empty in a benchmark, and must be scored all the same.
        domain = DOMAINS[SECTION_OF[self.subset]]
        return PreferencePair.model_construct(
            prompt=self.prompt, chosen=self.chosen, rejected=self.rejected, domain=domain, subset=self.subset
        )


def run(target: Target, source: str = SOURCE, revision: str | None = None) -> Report:
    """Score the official split, and the raw one if there is one. Raises InvalidInput."""
    official = [row.pair() for row in load_rows(source, OFFICIAL_SPLIT, RewardBenchRow, revision)]
    raw: list[PreferencePair] = []
    if has_split(source, RAW_SPLIT, revision):
        raw = [row.pair() for row in load_rows(source, RAW_SPLIT, RewardBenchRow, revision)]
    raw_chat = [pair for pair in raw if pair.domain == "chat"]
    scored = score_unique(target, [*official, *raw_chat])
    return report(scored[: len(official)], scored[len(official) :])


def report(scored: Sequence[ScoredPair], raw_chat: Sequence[ScoredPair]) -> Report:
    """Return all tables.

    scored: the official split.
    raw_chat: rows of both chat sections in the raw split, or none.
    """
    subsets = accuracies(scored)
    sections = official_sections(subsets)
    score = mean(sections)
    paper = paper_scores(scored, raw_chat)
    one_order = official_sections(accuracies(scored, lambda j: j.credit_one_order))
    orders, lengths = orders_and_length(scored)
    missing = sorted(SECTION_OF.keys() - subsets)
    parts = [
        *([f"Not the whole benchmark: no rows of {', '.join(missing)}."] if missing else []),
        section_table(scored, sections, one_order),
        paper_table(paper, has_raw=bool(raw_chat)),
        subset_table(scored, subsets),
        orders,
    ]
    figures: dict[str, Any] = {
        "score": Share.from_estimate(score).model_dump(),
        "missing_subsets": missing,
        "sections": {name: Share.from_estimate(section).model_dump() for name, section in sections.items()},
        "one_order": {
            "score": mean(one_order).value,
            "sections": {name: section.value for name, section in one_order.items()},
        },
        "paper": {name: Share.from_estimate(section).model_dump() for name, section in paper.items()},
        "subsets": {name: Share.from_estimate(subset).model_dump() for name, subset in subsets.items()},
        "length": lengths,
    }
    estimates = sections | {"score": score}
    return Report(NAME, "\n\n".join(parts), figures, Share.from_estimate(score), estimates, list(scored))


def accuracies(
    scored: Sequence[ScoredPair], credit: Callable[[ScoredPair], float] = lambda j: j.is_right
) -> dict[str, Estimate]:
    """Return the accuracy of each subset, drawn by prompts within it. As officially, a tie is wrong."""
    names = sorted({str(j.pair.subset) for j in scored})
    parts = {name: [j for j in scored if j.pair.subset == name] for name in names}
    return {name: accuracy(part, seed, credit) for seed, (name, part) in enumerate(parts.items())}


def official_sections(subsets: Mapping[str, Estimate]) -> dict[str, Estimate]:
    """Return the section scores from accuracies of subsets; a section without any is left out."""
    present = {
        section: {name: subsets[name] for name in weights if name in subsets} for section, weights in SECTIONS.items()
    }
    return {section: combine(parts, SECTIONS[section]) for section, parts in present.items() if parts}


def paper_scores(scored: Sequence[ScoredPair], raw_chat: Sequence[ScoredPair]) -> dict[str, Estimate]:
    """Return Chat, Reasoning, Safety and their mean as the paper counts them; those without rows are left out."""
    raw = {name: rows_in_section(raw_chat, name) for name in PAPER_CHAT}
    scores = {}
    if all(raw.values()):
        scores["Chat"] = paper_chat({name: accuracy(rows, seed) for seed, (name, rows) in enumerate(raw.items())})
    for seed, section in enumerate(("Reasoning", "Safety"), start=len(raw)):
        if rows := rows_in_section(scored, section):
            scores[section] = accuracy(rows, seed)
    return scores | ({"mean of 3": mean(scores)} if len(scores) == 3 else {})


def paper_chat(raw: Mapping[str, Estimate]) -> Estimate:
    """Return the paper's Chat from accuracies on the raw split: weights are the rows of each, 2,488 and 464."""
    return combine(raw, PAPER_CHAT)


def accuracy(
    scored: Sequence[ScoredPair], seed: int, credit: Callable[[ScoredPair], float] = lambda j: j.is_right
) -> Estimate:
    """Return the mean credit, drawn by prompts."""
    return Estimate.of([float(credit(j)) for j in scored], [j.pair.prompt for j in scored], seed)


def rows_in_section(scored: Sequence[ScoredPair], section: str) -> list[ScoredPair]:
    return [j for j in scored if SECTION_OF[str(j.pair.subset)] == section]


def section_table(
    scored: Sequence[ScoredPair], sections: Mapping[str, Estimate], one_order: Mapping[str, Estimate]
) -> str:
    rows = {
        name: {
            "rows": str(len(part)),
            "official": str(Share.from_estimate(section)),
            **of_orders(scored[0].orders, {"one order alone": f"{one_order[name].value:.1%}"}),
            "plain mean of rows": f"{sum(j.is_right for j in part) / len(part):.1%}",
        }
        for name, section in sections.items()
        for part in [rows_in_section(scored, name)]
    }
    rows[f"**score: mean of {len(sections)}**"] = {
        "rows": str(len(scored)),
        "official": str(Share.from_estimate(mean(sections))),
        **of_orders(scored[0].orders, {"one order alone": f"{mean(one_order).value:.1%}"}),
        "plain mean of rows": "",
    }
    return named_table("section", rows)


def paper_table(paper: Mapping[str, Estimate], *, has_raw: bool) -> str:
    rows = [[name, str(Share.from_estimate(estimate))] for name, estimate in paper.items()]
    missing = [] if has_raw else [["Chat", "needs the `raw` split"]]
    return table(("by the paper's weights", "accuracy"), [*missing, *rows])


def subset_table(scored: Sequence[ScoredPair], subsets: Mapping[str, Estimate]) -> str:
    rows = {}
    for name in sorted(subsets, key=lambda n: (list(SECTIONS).index(SECTION_OF[n]), n)):
        part = [j for j in scored if j.pair.subset == name]
        one_order = sum(j.credit_one_order for j in part) / len(part)
        consistency = sum(j.is_consistent for j in part) / len(part)
        rows[name] = {
            "section": SECTION_OF[name],
            "rows": str(len(part)),
            "accuracy": str(Share.from_estimate(subsets[name])),
            **of_orders(part[0].orders, {"one order": f"{one_order:.1%}", "swap consistency": f"{consistency:.1%}"}),
        }
    return named_table("subset", rows)
