"""One evaluation from its options to its files: open, calibrate, score, write."""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from evaluation.card import update_card
from evaluation.options import JUDGE_BENCH, OBVIOUS, PAIRS, SANITY, Options
from evaluation.provenance import SECTION as PROVENANCE
from evaluation.provenance import provenance_table
from evaluation.report import Report, calibration_table, cost_table
from evaluation.scoring import ScoredPair, digest, score_pairs
from evaluation.statistics import Calibration, calibration_at
from evaluation.target import Cost, Target
from evaluation.targets.bundle import open_bundle
from tinyrm import manifest
from tinyrm.bundle import hash_of_pairs, read_manifest, record_evaluation, record_temperature
from tinyrm.calibration import TemperatureFit, determine_domains, determine_temperature
from tinyrm.confidence import Temperature
from tinyrm.errors import InvalidInput
from tinyrm.hub import dataset_commit
from tinyrm.manifest import CARD_FILE, DomainTemperature
from tinyrm.pairs import read_pairs


def evaluate(options: Options) -> "Evaluation":
    """Score as the options say, and write nothing yet. Raises TinyRMError."""
    if options.out:
        # Only if needed, as it writes a cache of fonts. Here, so that its absence is noticed before the work.
        import evaluation.plots  # noqa: F401
    options.check()
    with closing(open_target(options)) as opened:
        target = opened
        if options.domain:
            # One instruction for everything: no label of a benchmark reaches the model.
            domains = {options.domain: target.spec.instruction(options.domain)}
            spec = target.spec.model_copy(update={"domains": domains, "default_domain": options.domain})
            target = replace(target, spec=spec)
        fit: Fit | None = None
        calibration: dict[str, Calibration] = {}
        before = target
        if options.fit_temperature:
            target, fit, calibration = fit_on_held_out(target, options.fit_temperature)
        target.meter.reset()
        report, commit = run_benchmark(target, options)
        if calibration:
            calibration["here, before"] = calibration_of(before, report.scored)
            calibration["here, after"] = calibration_of(target, report.scored)
    cost = target.cost
    results = {
        **report.figures,
        "asked": {"data": options.data, "split": options.split, "domain": options.domain},
        # A set on the hub may change under its name: the commit that was read, and what was scored.
        "commit": commit,
        "scored_sha256": digest(report.scored),
        "engine": target.engine,
        "reads": target.reads,
        "cost": cost.model_dump(),
        # Present even if nothing was fitted: recorded results are replaced key by key, and an earlier fit must go.
        "calibration": {name: figures.model_dump() for name, figures in calibration.items()},
    }
    tables = [report.markdown, cost_table(cost), *([calibration_table(calibration)] if calibration else [])]
    return Evaluation(target, report, cost, results, "\n\n".join(tables), fit)


@dataclass(frozen=True, slots=True)
class Fit:
    """Fitted temperatures: one for all domains, and those of domains that need their own."""

    general: TemperatureFit
    domains: Mapping[str, TemperatureFit]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """results: all figures, for machines.
    markdown: all tables.
    fit: the temperatures, if they were fitted.
    """

    target: Target
    report: Report
    cost: Cost
    results: dict[str, Any]
    markdown: str
    fit: Fit | None = None

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


def run_benchmark(target: Target, options: Options) -> tuple[Report, str | None]:
    """Run one benchmark. Return its report, and the commit of data on the hub; the hub's library is imported for these.

    The commit is None for local data, and if the hub does not answer.
    """
    if options.benchmark == PAIRS and options.pairs:
        from evaluation.benchmarks import pairs

        return pairs.run(target, options.pairs), None
    if options.benchmark == SANITY and options.pairs:
        from evaluation.benchmarks import sanity

        return sanity.run(target, options.pairs, options.pairs_per_kind, options.seed), None
    if options.benchmark == OBVIOUS:
        from evaluation.benchmarks import obvious

        return obvious.run(target, Path(options.data) if options.data else obvious.SOURCE), None
    from evaluation.benchmarks import judgebench, rewardbench, rewardbench2, rm_bench

    modules = (judgebench, rewardbench, rewardbench2, rm_bench)
    benchmark: Any = {module.NAME: module for module in modules}[options.benchmark]
    source = options.data or benchmark.SOURCE
    commit = None if Path(source).exists() else dataset_commit(source, options.revision)
    split = (options.split or judgebench.SPLITS[0],) if options.benchmark == JUDGE_BENCH else ()
    return benchmark.run(target, source, *split, revision=commit or options.revision), commit


def calibration_of(target: Target, scored: Sequence[ScoredPair]) -> Calibration:
    """Return the calibration of the same margins at the temperatures of a target."""
    of_pairs = [target.temperature_of(one.pair.domain).value for one in scored]
    return calibration_at(scored, target.scorer.temperature, of_pairs)


def fit_on_held_out(target: Target, path: Path) -> tuple[Target, Fit, dict[str, Calibration]]:
    """Return the target at the temperatures of least negative log-likelihood on held-out pairs, and what changed."""
    held_out = read_pairs(path, ties=True)
    if not held_out:
        raise InvalidInput(f"{path} holds no pairs to fit a temperature on")
    scored = score_pairs(target, held_out)
    preferences = [one.preference for one in scored]
    general = determine_temperature(preferences, held_out)
    names = [target.spec.find_domain(pair.domain, or_default=True) for pair in held_out]
    fit = Fit(general, determine_domains(preferences, names, general.temperature, held_out))
    own = {name: Temperature(one.temperature, one.log_std, one.one_order) for name, one in fit.domains.items()}
    fitted = replace(target.at(general.temperature), domains=own)
    calibration = {
        "held out, before": calibration_of(target, scored),
        "held out, after": calibration_of(fitted, scored),
    }
    return fitted, fit, calibration


def write_temperature(options: Options, evaluation: Evaluation) -> Evaluation:
    """Write the fitted temperature into the bundle if the options say so; that changes the revision."""
    fit = evaluation.fit
    if not (options.write_temperature and options.bundle and fit):
        return evaluation
    calibrated = manifest.Calibration(
        pairs=fit.general.pairs,
        wrong=fit.general.wrong,
        held_out=False,
        chosen=("temperature",),
        log_temperature_std=fit.general.log_std,
        temperature_one_order=fit.general.one_order,
        pairs_sha256=hash_of_pairs(options.fit_temperature),
    )
    own = {name: DomainTemperature.of(one) for name, one in fit.domains.items()}
    identity = record_temperature(options.bundle, fit.general.temperature, calibrated, own).identity
    return replace(evaluation, target=replace(evaluation.target, identity=identity))


def write_into_bundle(
    options: Options, evaluation: Evaluation, against: Mapping[str, Any] = MappingProxyType({}), tables: str = ""
) -> None:
    """Write into the manifest and the card if the options say so. Raises InvalidInput, OSError.

    against: the results of another model on the same items.
    tables: the same for the card.
    """
    if options.bundle and options.record:
        # Present even if nothing was compared: recorded results are replaced key by key.
        results = evaluation.results | {"against": dict(against)}
        own = evaluation.report.benchmark == PAIRS
        record_evaluation(options.bundle, results if own else {evaluation.report.benchmark: results})
    if options.bundle and options.card:
        exported = read_manifest(options.bundle)
        of_domains = "".join(f"; {name}: {one.value:.3f}" for name, one in evaluation.target.domains.items())
        fitted = how_fitted(exported.calibration)
        temperature = f"calibration temperature {evaluation.target.scorer.temperature:.3f}{fitted}{of_domains}"
        head = f"`{evaluation.target.identity}`, {temperature}:"
        parts = [head, evaluation.report.markdown, *([tables] if tables else [])]
        update_card(options.bundle / CARD_FILE, "\n\n".join(parts), options.section)
        update_card(options.bundle / CARD_FILE, provenance_table(exported), PROVENANCE)


def how_fitted(known: manifest.Calibration | None) -> str:
    """Return, behind a temperature, which pairs it was fitted on, or that they determine none."""
    if known is None:
        return ""
    if known.log_temperature_std is None:
        return f", not fitted: {known.pairs} pairs, of which {known.wrong} are judged wrongly, determine none"
    return f", fitted on {known.pairs} pairs of which {known.wrong} are judged wrongly"


def write(options: Options, evaluation: Evaluation) -> None:
    """Write into the bundle and the folder that the options name. Raises InvalidInput, OSError."""
    report = evaluation.report
    write_into_bundle(options, evaluation)
    if options.out:
        from evaluation.plots import plot_compute, plot_reliability

        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "report.md").write_text(f"# {evaluation.title}\n\n{evaluation.markdown}\n", encoding="utf-8")
        (options.out / "results.json").write_text(json.dumps(evaluation.content, indent=2) + "\n", encoding="utf-8")
        plot_reliability(report.scored, evaluation.title, options.out / "reliability.png")
        plot_compute(
            report.benchmark, evaluation.target.identity, report.headline, evaluation.cost, options.out / "compute.png"
        )
