"""Two models on the same items: the differences of their scores, and what each score costs."""

import json
from dataclasses import dataclass
from typing import Any

from evaluation.options import Options
from evaluation.report import table
from evaluation.run import Evaluation, evaluate, write_into_bundle
from evaluation.statistics import Difference, Share, Summary, summarise


@dataclass(frozen=True, slots=True)
class Paired:
    """A model, and the one that it is compared with."""

    one: Evaluation
    other: Evaluation

    @property
    def title(self) -> str:
        return f"{self.one.title}, against {self.other.target.identity}"

    @property
    def differences(self) -> dict[str, Difference]:
        """Return the first minus the other for each part, from bootstrap samples of the same prompts."""
        other = self.other.report.estimates
        return {name: Difference.between(estimate, other[name]) for name, estimate in self.one.report.estimates.items()}

    @property
    def markdown(self) -> str:
        """Return the tables of differences and of both models, then the tables of each."""
        parts = [difference_table(self), model_table(self)]
        for evaluation in (self.one, self.other):
            parts += [f"## {evaluation.title}", evaluation.markdown]
        return "\n\n".join(parts)

    @property
    def content(self) -> dict[str, Any]:
        differences = {name: difference.model_dump() for name, difference in self.differences.items()}
        return self.one.content | {"against": self.other.content, "differences": differences}

    @property
    def text(self) -> str:
        """Return what is printed: tables, and JSON in the last line."""
        return f"{self.title}\n\n{self.markdown}\n\n{json.dumps(self.content)}"


def evaluate_both(options: Options) -> Paired:
    """Evaluate the model of the options and the one of --against. Raises TinyRMError."""
    options.check()
    return Paired(evaluate(options), evaluate(options.of_other()))


def write_both(options: Options, paired: Paired) -> None:
    """Write the comparison into the bundle and the folder that the options name. Raises InvalidInput, OSError."""
    other = paired.other
    against = {
        "model": other.target.identity,
        "accuracy": {name: Share.from_estimate(part).model_dump() for name, part in other.report.estimates.items()},
        "differences": paired.content["differences"],
        "cost": other.results["cost"],
    }
    tables = [f"Against `{other.target.identity}` on the same pairs:", difference_table(paired), model_table(paired)]
    write_into_bundle(options, paired.one, against, "\n\n".join(tables))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "report.md").write_text(f"# {paired.title}\n\n{paired.markdown}\n", encoding="utf-8")
        (options.out / "results.json").write_text(json.dumps(paired.content, indent=2) + "\n", encoding="utf-8")


def difference_table(paired: Paired) -> str:
    """Return the score of both for each part of the benchmark, and the difference in points with a 95 % interval."""
    names = [
        f"{evaluation.target.identity} (reads {evaluation.target.reads})" for evaluation in (paired.one, paired.other)
    ]
    rows = [
        [
            name,
            *(str(Share.from_estimate(each.report.estimates[name])) for each in (paired.one, paired.other)),
            str(difference),
        ]
        for name, difference in paired.differences.items()
    ]
    return table(("part", *names, "difference in points"), rows)


def model_table(paired: Paired) -> str:
    """Return what decides between two models of about the same score: the effect of the order, and the cost."""
    columns = ("model", "reads", "pairs correct", "one order alone", "swap consistency", "sequences", "tokens per pair")
    return table((*columns, "GFLOPs per pair", "pairs per second"), [model_row(paired.one), model_row(paired.other)])


def model_row(evaluation: Evaluation) -> list[str]:
    summary: Summary = summarise(evaluation.report.scored)
    cost = evaluation.cost
    return [
        evaluation.target.identity,
        evaluation.target.reads,
        f"{summary.accuracy.value:.1%}",
        f"{summary.accuracy_one_order.value:.1%}" if summary.orders == 2 else "no order",
        f"{summary.swap_consistency.value:.1%}",
        str(cost.sequences),
        f"{cost.tokens_per_pair:.0f}",
        f"{cost.gflops_per_pair:.3g}",
        f"{cost.pairs_per_second:.1f}",
    ]
