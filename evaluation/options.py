"""What to evaluate, on what, and where the results go: one dataclass, which is the command line too."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional
from tyro.constructors import PrimitiveConstructorSpec

from evaluation.card import RESULTS, refuse_half_a_section
from evaluation.provenance import SECTION as PROVENANCE
from tinyrm.bundle import sha256
from tinyrm.command_line import Flag, Positive, option
from tinyrm.errors import InvalidInput
from tinyrm.manifest import CARD_FILE, MANIFEST_FILE
from tinyrm.places import find

PAIRS, SANITY, OBVIOUS, JUDGE_BENCH = "pairs", "sanity", "obvious", "judge-bench"

# A bundle is fetched, if it must be, while the command line is read: all that uses it needs its folder.
BUNDLE = PrimitiveConstructorSpec(
    nargs=1,
    metavar="BUNDLE",
    instance_from_str=lambda words: find(words[0]),
    is_instance=lambda value: isinstance(value, Path),
    str_from_instance=lambda folder: [str(folder)],
)


@dataclass(frozen=True, slots=True)
class Options:
    """Evaluate a bundle, a checkpoint or a running service on a benchmark, or on your own preference pairs.

    Prints tables, and JSON as the last line. Without --bundle, --checkpoint and --service, it is TINYRM_URL.

    Examples:
      tinyrm evaluate --bundle models/mine --pairs held-out.jsonl
      tinyrm evaluate reward-bench-2 --bundle models/mine --record --card
      tinyrm evaluate obvious --service http://localhost:8000 --json | jq .domains
      tinyrm evaluate --bundle models/mine --against models/starter --pairs held-out.jsonl --out report
    """

    benchmark: Annotated[
        Literal["pairs", "sanity", "obvious", "reward-bench", "reward-bench-2", "rm-bench", "judge-bench"], Positional
    ] = "pairs"
    """`pairs` is a file of your own, see --pairs; `sanity` sets its better responses against made-up bad ones;
    `obvious` is ten pairs that come with TinyRM."""
    bundle: Annotated[Annotated[Path, BUNDLE] | None, option("BUNDLE")] = None
    """Folder of the bundle, hf://ORG/NAME@COMMIT, or https://HOST/NAME.tar.gz#sha256=HEX."""
    checkpoint: Annotated[Path | None, option("FOLDER")] = None
    """Output folder of a training, before export; needs torch."""
    service: Annotated[str | None, option("URL")] = None
    """URL of a running service; its key, if any, in TINYRM_API_KEY."""
    pairs: Annotated[Path | None, option("FILE")] = None
    """Preference pairs: JSON lines, a JSON array (.json), .csv or .parquet, plain or packed as .gz, .xz or .zst; for
    `sanity`, of held-out prompts."""
    pairs_per_kind: Positive = 100
    """sanity: made-up pairs of each kind, at most."""
    seed: int = 0
    """sanity: seed of what is drawn and made."""
    data: Annotated[str | None, option("ID|PATH")] = None
    """Hub id, folder or file of a benchmark in its published schema; default: its hub id."""
    revision: Annotated[str | None, option("COMMIT")] = None
    """Branch, tag or commit of a benchmark on the hub; the results name the commit."""
    split: Annotated[Literal["gpt", "claude"] | None, option("gpt|claude")] = None
    """judge-bench: the model that wrote the responses; default: gpt."""
    engine: str = "auto"
    """Engine to score a bundle with."""
    domain: Annotated[str | None, option("NAME")] = None
    """Use this domain's instruction for every row."""
    fit_temperature: Annotated[Path | None, option("FILE")] = None
    """Held-out pairs to fit the temperature on first."""
    write_temperature: Flag = False
    """Write the fitted temperature into the bundle."""
    record: Flag = False
    """Write the results into the bundle's manifest."""
    card: Flag = False
    """Write the tables into the bundle's README.md, in a section of this benchmark."""
    against: Annotated[str | None, option("FOLDER|URL")] = None
    """Evaluate another model on the same items, and show the differences of the two with paired intervals: a bundle
    folder, the output folder of a training, or the URL of a service. --record and --card write the differences
    too."""
    out: Annotated[Path | None, option("FOLDER")] = None
    """Folder for report.md, results.json, reliability.png and compute.png; with --against, no pictures."""
    json: Flag = False
    """Print the JSON alone on standard output, and the tables on standard error."""

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
            (not own and self.pairs, f"{self.benchmark} has its own data: --data is their place, not --pairs"),
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
            for section in (self.section, PROVENANCE):
                refuse_half_a_section(self.bundle / CARD_FILE, section)


def is_url(text: str) -> bool:
    return text.startswith(("http://", "https://"))


def have_same_content(one: Path, other: Path) -> bool:
    return one.is_file() and other.is_file() and sha256(one) == sha256(other)
