"""What to evaluate, on what, and where the results go: one dataclass, which is the command line too."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional

from evaluation.card import RESULTS, refuse_half_a_section
from tinyrm.bundle import sha256
from tinyrm.command_line import Positive
from tinyrm.errors import InvalidInput
from tinyrm.manifest import CARD_FILE, MANIFEST_FILE

PAIRS, SANITY, OBVIOUS, JUDGE_BENCH = "pairs", "sanity", "obvious", "judge-bench"


@dataclass(frozen=True, slots=True)
class Options:
    """Evaluate a bundle, a checkpoint or a running service on a benchmark, or on your own preference pairs."""

    benchmark: Annotated[
        Literal["pairs", "sanity", "obvious", "reward-bench", "reward-bench-2", "rm-bench", "judge-bench"], Positional
    ] = "pairs"
    """`pairs` is a file of your own, see --pairs; `sanity` sets its better responses against made-up bad ones;
    `obvious` is ten pairs that come with TinyRM."""
    bundle: Path | None = None
    """Bundle folder."""
    checkpoint: Path | None = None
    """Output folder of a training, before export; needs torch."""
    service: str | None = None
    """URL of a running service; its key, if any, in TINYRM_API_KEY."""
    pairs: Path | None = None
    """Preference pairs: .jsonl, .jsonl.gz or .jsonl.xz; for `sanity`, of held-out prompts."""
    pairs_per_kind: Positive = 100
    """sanity: made-up pairs of each kind, at most."""
    seed: int = 0
    """sanity: seed of what is drawn and made."""
    data: str | None = None
    """Hub id, folder or file of a benchmark in its published schema; default: its hub id."""
    revision: str | None = None
    """Branch, tag or commit of a benchmark on the hub; the results name the commit."""
    split: Literal["gpt", "claude"] | None = None
    """judge-bench: the model that wrote the responses; default: gpt."""
    engine: str = "auto"
    """Engine to score a bundle with."""
    domain: str | None = None
    """Use this domain's instruction for every row."""
    fit_temperature: Path | None = None
    """Held-out pairs to fit the temperature on first."""
    write_temperature: bool = False
    """Write the fitted temperature into the bundle."""
    record: bool = False
    """Write the results into the bundle's manifest."""
    card: bool = False
    """Write the tables into the bundle's README.md, in a section of this benchmark."""
    against: str | None = None
    """Evaluate another model on the same items, and show the differences of the two with paired intervals: a bundle
    folder, the output folder of a training, or the URL of a service. --record and --card write the differences
    too."""
    out: Path | None = None
    """Folder for report.md, results.json, reliability.png and compute.png; with --against, no pictures."""

    @property
    def section(self) -> str:
        """Return the section of the card."""
        return RESULTS if self.benchmark == PAIRS else self.benchmark

    def of_other(self) -> "Options":
        """Return the same options for the model of --against."""
        kinds: dict[str, Any] = {"bundle": None, "checkpoint": None, "service": None}
        against = str(self.against)
        if is_url(against):
            kinds["service"] = against
        else:
            kinds["bundle" if (Path(against) / MANIFEST_FILE).is_file() else "checkpoint"] = Path(against)
        engine = self.engine if kinds["bundle"] else "auto"
        return replace(self, **kinds, engine=engine, against=None, record=False, card=False)

    def check(self) -> None:
        """Raise InvalidInput for options that do not go together, or would give misleading figures."""
        own = self.benchmark in (PAIRS, SANITY)
        into_bundle = self.record or self.card or self.write_temperature
        rules: tuple[tuple[object, str], ...] = (
            (
                sum(bool(target) for target in (self.bundle, self.checkpoint, self.service)) != 1,
                "name what to evaluate with exactly one of --bundle, --checkpoint and --service",
            ),
            # Options that would not be used, and files in the way.
            (own and not self.pairs, "name the file of pairs with --pairs"),
            (own and self.data, "--data is for a benchmark; name the file of pairs with --pairs"),
            (not own and self.pairs, f"{self.benchmark} has its own data; --data says where, not --pairs"),
            (self.split and self.benchmark != JUDGE_BENCH, f"--split is for {JUDGE_BENCH}"),
            (
                self.revision and (own or self.benchmark == OBVIOUS or (self.data and Path(self.data).exists())),
                "--revision is for a benchmark on the hub",
            ),
            (
                self.against and self.write_temperature,
                "--against compares two models; fit and write the temperature of one before",
            ),
            (
                self.against and not is_url(self.against) and not Path(self.against).is_dir(),
                f"--against {self.against} is neither a folder nor a URL",
            ),
            (self.engine != "auto" and not self.bundle, "--engine is for a bundle"),
            (
                into_bundle and not self.bundle,
                "--record, --card and --write-temperature write into a bundle; name it with --bundle",
            ),
            (
                (self.pairs_per_kind, self.seed) != (100, 0) and self.benchmark != SANITY,
                f"--pairs-per-kind and --seed are for {SANITY}",
            ),
            (self.out and self.out.exists() and not self.out.is_dir(), f"--out {self.out} is a file, not a folder"),
            # Figures that would mislead.
            (
                self.write_temperature and not self.fit_temperature,
                "--write-temperature needs held-out pairs to fit it on: --fit-temperature FILE",
            ),
            (
                self.fit_temperature and not self.write_temperature and (self.record or self.card),
                "the results belong to a temperature that the bundle does not have: add --write-temperature",
            ),
            (
                self.pairs and self.fit_temperature and have_same_content(self.pairs, self.fit_temperature),
                "--fit-temperature must be other pairs than --pairs: a fit on the same pairs proves nothing",
            ),
        )
        for is_wrong, instead in rules:
            if is_wrong:
                raise InvalidInput(instead)
        if self.bundle and self.card:
            refuse_half_a_section(self.bundle / CARD_FILE, self.section)


def is_url(text: str) -> bool:
    return text.startswith(("http://", "https://"))


def have_same_content(one: Path, other: Path) -> bool:
    return one.is_file() and other.is_file() and sha256(one) == sha256(other)
