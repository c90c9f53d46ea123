"""One evaluation from its options to its files: open, calibrate, judge, write down."""

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evaluation.calibration import Calibration, calibration_at
from evaluation.card import refuse_without_markers, update_card
from evaluation.judge import judge
from evaluation.plots import plot_compute, plot_reliability
from evaluation.report import Report, grid
from evaluation.target import Cost, Subject, open_bundle
from tinyrm.bundle import record_evaluation, record_temperature, sha256
from tinyrm.calibration import fit_temperature, raw_margins, refuse_bounded
from tinyrm.errors import InvalidInput
from tinyrm.manifest import CARD_FILE
from tinyrm.pairs import read_pairs

PAIRS = "pairs"


@dataclass(frozen=True, slots=True)
class Options:
    """What to judge (one of bundle, checkpoint, service), on what, and what to do with the result.

    data: where a benchmark's rows are, None for its hub id. domain: the one whose instruction everything is asked
    under; None: each row's own. fit_temperature: held-out pairs.
    """

    benchmark: str = PAIRS
    bundle: Path | None = None
    checkpoint: Path | None = None
    service: str | None = None
    api_key: str | None = None
    engine: str = "auto"
    pairs: Path | None = None
    data: str | None = None
    split: str | None = None
    domain: str | None = None
    fit_temperature: Path | None = None
    write_temperature: bool = False
    record: bool = False
    card: bool = False
    out: Path | None = None

    def check(self) -> None:
        """Raises InvalidInput for options that do not go together."""
        for wrong, instead in (*self._misplaced(), *self._deceptive()):
            if wrong:
                raise InvalidInput(instead)
        if self.bundle and self.card:
            refuse_without_markers(self.bundle / CARD_FILE)

    def _misplaced(self) -> Iterator[tuple[bool, str]]:
        """Each thing that may be wrong, and what to do then: options that would not be read, files in the way."""
        own = self.benchmark == PAIRS
        yield own and not self.pairs, "name the pairs to judge on with --pairs"
        yield bool(own and self.data), "--data is of a benchmark; name the file of pairs with --pairs"
        yield bool(not own and self.pairs), f"{self.benchmark} has data of its own; --data says where, not --pairs"
        yield (
            bool(self.split and self.benchmark != "judge-bench"),
            "only judge-bench has splits to choose from: gpt, claude",
        )
        yield (
            self.engine != "auto" and not self.bundle,
            "--engine is of a bundle; a checkpoint is read by torch, a service has its own",
        )
        yield (
            not self.bundle and (self.record or self.card or self.write_temperature),
            "--record, --card and --write-temperature write into a bundle; name it with --bundle",
        )
        yield (
            self.card and not own,
            "the card's table is of preference pairs; use --record or --out for benchmarks",
        )
        yield (
            bool(self.out and self.out.exists() and not self.out.is_dir()),
            f"--out {self.out} is a file, not a folder",
        )

    def _deceptive(self) -> Iterator[tuple[bool, str]]:
        """Figures that would not be what they look like."""
        yield (
            self.write_temperature and not self.fit_temperature,
            "--write-temperature needs held-out pairs to fit it on: --fit-temperature FILE",
        )
        yield (
            bool(self.fit_temperature and not self.write_temperature and (self.record or self.card)),
            "results of a temperature that the bundle does not have: add --write-temperature",
        )
        yield (
            bool(self.pairs and self.fit_temperature and _same_content(self.pairs, self.fit_temperature)),
            "--fit-temperature has to be other pairs than --pairs: what was fitted on them says nothing",
        )


def _same_content(one: Path, other: Path) -> bool:
    return one.is_file() and other.is_file() and sha256(one) == sha256(other)


def evaluate(options: Options) -> "Evaluated":
    """Judge as asked; nothing is written yet. Raises TinyRMError."""
    options.check()
    with closing(open_subject(options)) as opened:
        subject = _one_domain(opened, options.domain) if options.domain else opened
        calibration: dict[str, Calibration] = {}
        if options.fit_temperature:
            subject, calibration = _refit(subject, options.fit_temperature)
        subject.meter.reset()
        return _sum_up(subject, options, run_benchmark(subject, options), calibration)


@dataclass(frozen=True, slots=True)
class Evaluated:
    """results: all figures, for machines. markdown: all tables."""

    subject: Subject
    report: Report
    cost: Cost
    results: dict[str, Any]
    markdown: str

    @property
    def title(self) -> str:
        return f"{self.subject.identity} on {self.results.get('pairs', self.report.benchmark)}"

    @property
    def content(self) -> dict[str, Any]:
        return {"model": self.subject.identity, "benchmark": self.report.benchmark, **self.results}

    @property
    def text(self) -> str:
        """What is printed: tables, and JSON in the last line."""
        return f"{self.title}\n\n{self.markdown}\n\n{json.dumps(self.content)}"


def open_subject(options: Options) -> Subject:
    """What is to be judged; torch is loaded for a checkpoint only."""
    if options.bundle:
        return open_bundle(options.bundle, options.engine)
    if options.checkpoint:
        from evaluation.targets.checkpoint import open_checkpoint

        return open_checkpoint(options.checkpoint)
    if options.service:
        from evaluation.targets.service import open_service

        return open_service(options.service, options.api_key)
    raise InvalidInput("name what to judge with --bundle, --checkpoint or --service")


def run_benchmark(subject: Subject, options: Options) -> Report:
    """The report of one benchmark; the library that loads published ones is imported for these only."""
    if options.benchmark == PAIRS and options.pairs:
        from evaluation.benchmarks import pairs

        return pairs.run(subject, options.pairs)
    if options.benchmark == "judge-bench":
        from evaluation.benchmarks import judgebench

        return judgebench.run(subject, options.data or judgebench.SOURCE, options.split or judgebench.SPLITS[0])
    from evaluation.benchmarks import rewardbench, rewardbench2, rm_bench

    benchmark = {module.NAME: module for module in (rewardbench, rewardbench2, rm_bench)}[options.benchmark]
    report: Report = benchmark.run(subject, options.data or benchmark.SOURCE)
    return report


def _one_domain(subject: Subject, domain: str) -> Subject:
    """Everything asked under one instruction: no label of the benchmark tells the model what kind of pair it reads."""
    domains = {domain: subject.spec.instruction(domain)}
    return replace(subject, spec=subject.spec.model_copy(update={"domains": domains, "default_domain": domain}))


def _refit(subject: Subject, path: Path) -> tuple[Subject, dict[str, Calibration]]:
    """The subject at the temperature of least negative log-likelihood on held-out pairs."""
    held_out = read_pairs(path)
    if not held_out:
        raise InvalidInput(f"{path} holds no pairs to fit a temperature on")
    judged = judge(subject, subject.spec, held_out)
    before, after = subject.reader.temperature, fit_temperature(raw_margins([j.preference for j in judged]))
    refuse_bounded(after, len(held_out))
    calibration = {
        "held out, before": calibration_at(judged, before),
        "held out, after": calibration_at(judged, after),
    }
    return subject.at(after), calibration


def _sum_up(subject: Subject, options: Options, report: Report, calibration: dict[str, Calibration]) -> Evaluated:
    """The report with what was asked, what it cost, and what another temperature changed, if one was fitted."""
    cost = Cost.of(subject.meter)
    asked = {"data": options.data, "split": options.split, "domain": options.domain}
    results = {**report.figures, "asked": asked, "engine": subject.engine, "cost": cost.model_dump()}
    # Empty if none was fitted: recorded results are replaced key by key, and an earlier fit is none of these.
    results["calibration"] = {}
    tables = [report.markdown, _cost_table(cost)]
    if calibration:
        here = {
            "here, before": calibration_at(report.judged, calibration["held out, before"].temperature),
            "here, after": calibration_at(report.judged, subject.reader.temperature),
        }
        results["calibration"] = {name: figures.model_dump() for name, figures in (calibration | here).items()}
        tables.append(_calibration_table(calibration | here))
    return Evaluated(subject, report, cost, results, "\n\n".join(tables))


def _cost_table(cost: Cost) -> str:
    paper = "unknown" if cost.paper_gflops_per_pair is None else f"{cost.paper_gflops_per_pair:.3g}"
    columns = ("pairs read", "tokens per pair", "GFLOPs per pair, exact", "by the paper's formula", "pairs per second")
    cells = [str(cost.pairs), f"{cost.tokens_per_pair:.0f}", f"{cost.gflops_per_pair:.3g}", paper]
    return grid(columns, [[*cells, f"{cost.pairs_per_second:.1f}"]])


def _calibration_table(calibration: dict[str, Calibration]) -> str:
    rows = [
        [
            name, f"{c.temperature:.3f}", f"{c.negative_log_likelihood:.3f}", f"{c.brier:.3f}",
            f"{c.expected_calibration_error:.3f}",
        ]
        for name, c in calibration.items()
    ]  # fmt: skip
    return grid(("temperature fitted on held-out pairs", "T", "NLL", "Brier", "ECE"), rows)


def write_temperature(options: Options, done: Evaluated) -> Evaluated:
    """The fitted temperature into the bundle, if that was asked for, which has another revision then."""
    if not (options.write_temperature and options.bundle):
        return done
    manifest = record_temperature(options.bundle, done.subject.reader.temperature)
    return replace(done, subject=replace(done.subject, identity=manifest.identity))


def write_down(options: Options, done: Evaluated) -> None:
    """Into the bundle and the folder that were named. Raises InvalidInput, OSError."""
    report = done.report
    if options.bundle and options.record:
        own = report.benchmark == PAIRS
        record_evaluation(options.bundle, done.results if own else {report.benchmark: done.results})
    if options.bundle and options.card:
        head = f"`{done.subject.identity}`, calibration temperature {done.subject.reader.temperature:.3f}:"
        update_card(options.bundle / CARD_FILE, f"{head}\n\n{report.markdown}")
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "report.md").write_text(f"# {done.title}\n\n{done.markdown}\n", encoding="utf-8")
        (options.out / "results.json").write_text(json.dumps(done.content, indent=2) + "\n", encoding="utf-8")
        plot_reliability(report.judged, done.title, options.out / "reliability.png")
        plot_compute(report.benchmark, done.subject.identity, report.headline, done.cost, options.out / "compute.png")
