"""One evaluation from its options to its files: open, calibrate, score, write."""

import json
import os
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evaluation.calibration import Calibration, calibration_at
from evaluation.card import update_card
from evaluation.options import JUDGE_BENCH, PAIRS, Options
from evaluation.plots import plot_compute, plot_reliability
from evaluation.report import Report, table
from evaluation.scoring import score_pairs
from evaluation.target import Cost, Target
from evaluation.targets.bundle import open_bundle
from tinyrm.bundle import record_evaluation, record_temperature
from tinyrm.calibration import fit_temperature, raw_margins, refuse_bounded
from tinyrm.errors import InvalidInput
from tinyrm.manifest import CARD_FILE
from tinyrm.pairs import read_pairs


def evaluate(options: Options) -> "Evaluation":
    """Score as the options ask; nothing is written yet. Raises TinyRMError."""
    options.check()
    with closing(open_target(options)) as opened:
        target = _one_domain(opened, options.domain) if options.domain else opened
        calibration: dict[str, Calibration] = {}
        if options.fit_temperature:
            target, calibration = _refit(target, options.fit_temperature)
        target.meter.reset()
        return _sum_up(target, options, run_benchmark(target, options), calibration)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """results: all figures, for machines.
    markdown: all tables.
    """

    target: Target
    report: Report
    cost: Cost
    results: dict[str, Any]
    markdown: str

    @property
    def title(self) -> str:
        return f"{self.target.identity} on {self.results.get('pairs', self.report.benchmark)}"

    @property
    def content(self) -> dict[str, Any]:
        return {"model": self.target.identity, "benchmark": self.report.benchmark, **self.results}

    @property
    def text(self) -> str:
        """Return what is printed: tables, and JSON in the last line."""
        return f"{self.title}\n\n{self.markdown}\n\n{json.dumps(self.content)}"


def open_target(options: Options) -> Target:
    """Open what is evaluated; torch is imported for a checkpoint only."""
    if options.bundle:
        return open_bundle(options.bundle, options.engine)
    if options.checkpoint:
        from evaluation.targets.checkpoint import open_checkpoint

        return open_checkpoint(options.checkpoint)
    if options.service:
        from evaluation.targets.service import open_service

        return open_service(options.service, os.environ.get("TINYRM_API_KEY"))
    raise InvalidInput("name what to evaluate with --bundle, --checkpoint or --service")


def run_benchmark(target: Target, options: Options) -> Report:
    """Run one benchmark; the library that loads published ones is imported for these only."""
    if options.benchmark == PAIRS and options.pairs:
        from evaluation.benchmarks import pairs

        return pairs.run(target, options.pairs)
    if options.benchmark == JUDGE_BENCH:
        from evaluation.benchmarks import judgebench

        return judgebench.run(target, options.data or judgebench.SOURCE, options.split or judgebench.SPLITS[0])
    from evaluation.benchmarks import rewardbench, rewardbench2, rm_bench

    benchmark = {module.NAME: module for module in (rewardbench, rewardbench2, rm_bench)}[options.benchmark]
    report: Report = benchmark.run(target, options.data or benchmark.SOURCE)
    return report


def _one_domain(target: Target, domain: str) -> Target:
    """Return the target with one instruction for everything, so that no label of a benchmark reaches the model."""
    domains = {domain: target.spec.instruction(domain)}
    return replace(target, spec=target.spec.model_copy(update={"domains": domains, "default_domain": domain}))


def _refit(target: Target, path: Path) -> tuple[Target, dict[str, Calibration]]:
    """Return the target at the temperature of least negative log-likelihood on held-out pairs, and what changed."""
    held_out = read_pairs(path)
    if not held_out:
        raise InvalidInput(f"{path} holds no pairs to fit a temperature on")
    scored = score_pairs(target, held_out)
    before, after = target.scorer.temperature, fit_temperature(raw_margins([j.preference for j in scored]))
    refuse_bounded(after, len(held_out))
    calibration = {
        "held out, before": calibration_at(scored, before),
        "held out, after": calibration_at(scored, after),
    }
    return target.at(after), calibration


def _sum_up(target: Target, options: Options, report: Report, calibration: dict[str, Calibration]) -> Evaluation:
    """Add the options, the cost, and what another temperature changed, if one was fitted."""
    cost = Cost.of(target.meter)
    asked = {"data": options.data, "split": options.split, "domain": options.domain}
    results = {**report.figures, "asked": asked, "engine": target.engine, "cost": cost.model_dump()}
    # Present even if nothing was fitted: recorded results are replaced key by key, and an earlier fit must go.
    results["calibration"] = {}
    tables = [report.markdown, _cost_table(cost)]
    if calibration:
        here = {
            "here, before": calibration_at(report.scored, calibration["held out, before"].temperature),
            "here, after": calibration_at(report.scored, target.scorer.temperature),
        }
        results["calibration"] = {name: figures.model_dump() for name, figures in (calibration | here).items()}
        tables.append(_calibration_table(calibration | here))
    return Evaluation(target, report, cost, results, "\n\n".join(tables))


def _cost_table(cost: Cost) -> str:
    paper = "unknown" if cost.paper_gflops_per_pair is None else f"{cost.paper_gflops_per_pair:.3g}"
    columns = ("pairs read", "tokens per pair", "GFLOPs per pair, exact", "by the paper's formula", "pairs per second")
    cells = [str(cost.pairs), f"{cost.tokens_per_pair:.0f}", f"{cost.gflops_per_pair:.3g}", paper]
    return table(columns, [[*cells, f"{cost.pairs_per_second:.1f}"]])


def _calibration_table(calibration: dict[str, Calibration]) -> str:
    rows = [
        [
            name,
            f"{c.temperature:.3f}",
            f"{c.negative_log_likelihood:.3f}",
            f"{c.brier:.3f}",
            f"{c.expected_calibration_error:.3f}",
        ]
        for name, c in calibration.items()
    ]
    return table(("temperature fitted on held-out pairs", "T", "NLL", "Brier", "ECE"), rows)


def write_temperature(options: Options, evaluation: Evaluation) -> Evaluation:
    """Write the fitted temperature into the bundle, if the options ask for it; that changes the revision."""
    if not (options.write_temperature and options.bundle):
        return evaluation
    manifest = record_temperature(options.bundle, evaluation.target.scorer.temperature)
    return replace(evaluation, target=replace(evaluation.target, identity=manifest.identity))


def write(options: Options, evaluation: Evaluation) -> None:
    """Write into the bundle and the folder that the options name. Raises InvalidInput, OSError."""
    report = evaluation.report
    if options.bundle and options.record:
        own = report.benchmark == PAIRS
        record_evaluation(options.bundle, evaluation.results if own else {report.benchmark: evaluation.results})
    if options.bundle and options.card:
        head = f"`{evaluation.target.identity}`, calibration temperature {evaluation.target.scorer.temperature:.3f}:"
        update_card(options.bundle / CARD_FILE, f"{head}\n\n{report.markdown}")
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "report.md").write_text(f"# {evaluation.title}\n\n{evaluation.markdown}\n", encoding="utf-8")
        (options.out / "results.json").write_text(json.dumps(evaluation.content, indent=2) + "\n", encoding="utf-8")
        plot_reliability(report.scored, evaluation.title, options.out / "reliability.png")
        plot_compute(
            report.benchmark, evaluation.target.identity, report.headline, evaluation.cost, options.out / "compute.png"
        )
