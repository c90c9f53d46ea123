"""The command line of `python -m training`: one dataclass a subcommand. Imports nothing that takes time."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes, Positional, UseAppendAction, arg

from tinyrm.command_line import Flag, Share, option


@dataclass(frozen=True, slots=True)
class PairOptions:
    """For PAIRS: what is learnt from, and measured on."""

    revision: Annotated[str | None, option("COMMIT")] = None
    """Branch, tag or commit of a data set on the hub."""

    domain: Annotated[str | None, option("NAME")] = None
    """Domain of all pairs; default: what each row has in `domain`."""

    instruction: Annotated[str | None, option("TEXT")] = None
    """Instruction for pairs of --domain, or of the default domain, such as "Which response is safer?"."""

    source: Annotated[tuple[str, ...], arg(metavar="KEY=VALUE"), UseAppendAction] = ()
    """How PAIRS are read, such as columns.prompt=question (ours=theirs), ties=learn, scores.margin_per_point=0.5,
    split=train_prefs."""

    validation: Annotated[Path | None, option("FILE")] = None
    """Pairs to measure the result on; default: a part of PAIRS that is not learnt from."""


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """For PAIRS: what is made of them."""

    base: Annotated[str | None, option("MODEL")] = None
    """Folder or hub id of an encoder (ModernBERT, Ettin, BERT, MiniLM), or the folder of an earlier run (not a bundle,
    which holds no weights to train); default: answerdotai/ModernBERT-base on a GPU,
    sentence-transformers/all-MiniLM-L6-v2 on a CPU."""

    out: Annotated[Path | None, option("FOLDER")] = None
    """Bundle to write; default: models/ and the name of PAIRS. The run is in runs/ and the same name."""

    reads: Annotated[Literal["pair", "response", "set"] | None, option("pair|response|set")] = None
    """Both responses in one sequence, each by itself, or all beside each other; default: as suits the base."""

    recipe: Annotated[str, option("RECIPE")] = ""
    """A recipe in place of the default one, or a file with some of its keys, which change the default."""

    set: Annotated[tuple[str, ...], arg(metavar="KEY=VALUE"), UseAppendAction] = ()
    """A key of the recipe, such as optimization.peak_lr=1e-4."""

    epochs: Annotated[float | None, option("N")] = None
    """Passes over the pairs; default: by their number."""

    max_tokens: Annotated[int | None, option("N")] = None
    """Tokens of a sequence, in training and in serving; default: by the base and the machine."""

    seed: Annotated[int | None, option("N")] = None
    """Of the split, the order of the pairs and a new head; default: 17."""


@dataclass(frozen=True, slots=True)
class Train:
    """Train on your pairs, from file to bundle: `tinyrm train my.jsonl --out models/mine`.

    PAIRS are files (JSON lines, JSON, Parquet, CSV), folders, or data sets on the hub. The command reads them, splits
    them by prompt, trains, exports, calibrates, measures, and writes a bundle with its card. A RECIPE (RECIPE.yaml, or
    the name of one in training/recipes/, such as paper/large-chat) runs as it is: pairs or text in, a checkpoint or an
    adapter out.

    Other commands stand as the first word: plan (what a recipe would do and cost), curves (how runs learnt), compare
    (recipes with several seeds), sweep (search hyperparameters), data (what data sets give). Each has its own --help.

    Examples:
      tinyrm train my.jsonl --out models/mine
      tinyrm train my.jsonl --base answerdotai/ModernBERT-base --epochs 2 --dry-run
      tinyrm train trl-lib/ultrafeedback_binarized --out models/chat --set optimization.peak_lr=1e-4
      tinyrm train paper/large-chat --dry-run --hardware h100 --json
      tinyrm train plan starter/pairs
    """

    words: Annotated[Positional[tuple[str, ...]], option("PAIRS|RECIPE")] = ()
    """my.jsonl, a folder, owner/name of the hub, several of these; or one RECIPE."""

    pairs: OmitArgPrefixes[PairOptions] = PairOptions()
    model: OmitArgPrefixes[ModelOptions] = ModelOptions()

    data: Path = Path("data")
    """Folder of a recipe's data files."""

    resume: Flag = False
    """Continue an interrupted run from its newest checkpoint."""

    fresh: Flag = False
    """Replace the run and the bundle that are there. Without it, neither is ever overwritten."""

    dry_run: Flag = False
    """Print what would be done and what it would cost, and stop."""

    json: Flag = False
    """Print the plan, or what came out, as JSON on standard output, and nothing else there."""

    hardware: Annotated[tuple[str, ...], option("NAME ...")] = ()
    """For the dry run: cost it on these (laptop, rtx4090, a100-80, h100, 8xh100, ...) instead of on all it knows."""

    price_per_hour: Annotated[Share | None, option("DOLLARS")] = None
    """For the dry run: dollars an hour of the one hardware that is named."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Print what a recipe would do and cost, and how the other variants differ. Needs no network.

    Examples:
      tinyrm train plan paper/large-chat --hardware h100 --price-per-hour 2.5
      tinyrm train plan my-recipe.yaml --json | jq .recipe.optimization
    """

    recipe: Annotated[Positional[str], arg(metavar="RECIPE")]
    """RECIPE.yaml, or the name of one in training/recipes/."""

    data: Path = Path("data")
    """Folder of the recipe's data files; those that are there are counted."""

    hardware: Annotated[tuple[str, ...], option("NAME ...")] = ()
    """Cost it on these (laptop, rtx4090, a100-80, h100, 8xh100, ...) instead of on all that it knows."""

    price_per_hour: Annotated[Share | None, option("DOLLARS")] = None
    """Dollars an hour of the one hardware that is named."""

    json: Flag = False
    """Print the plan as JSON."""


@dataclass(frozen=True, slots=True)
class Curves:
    """Show how runs learnt: losses, held-out accuracy, and whether a run overfits; optionally as a picture.

    Examples:
      tinyrm train curves runs/mine
      tinyrm train curves runs/a runs/b --out curves.svg
    """

    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN")]
    """Output folders of runs, also of one that is not finished. Several are drawn into one picture."""

    out: Annotated[Path | None, option("FILE")] = None
    """Picture to write, .svg or .png. Needs the extra `evaluation`."""

    json: Flag = False
    """Print the points of the curves, and what they show, as JSON."""


@dataclass(frozen=True, slots=True)
class Compare:
    """Train each recipe with several seeds and gather the held-out metrics in one table.

    The same command continues a grid that was stopped: finished runs are skipped, an interrupted one resumes.

    Examples:
      tinyrm train compare experiments/cloze experiments/dora --seeds 17 18
    """

    recipes: Annotated[Positional[tuple[str, ...]], arg(metavar="RECIPE")]
    """Files, or names such as experiments/cloze. The first one is what the others are compared with."""

    data: Path = Path("data")
    """Folder of the recipes' data files."""

    out: Path = Path("runs/experiments")
    """Folder for the results, with one folder per recipe and seed."""

    seeds: tuple[int, ...] = (17, 18, 19)
    """Seeds of each recipe."""

    peak_lrs: Annotated[tuple[float, ...], option("RATE ...")] = ()
    """Train each recipe at each of these learning rates instead of its own."""

    max_steps: Annotated[int | None, option("N")] = None
    """Stop every run after this many steps, to try a grid out."""

    json: Flag = False
    """Print the metrics of every seed as JSON."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """Search the hyperparameters of a cloze recipe on pairs held out of the training data.

    The study lives in the storage: the same command continues a sweep that was killed, and several processes may share
    one.

    Examples:
      tinyrm train sweep starter/pairs --trials 20 --storage sqlite:///sweep.db
    """

    recipe: Annotated[Positional[str], arg(metavar="RECIPE")]
    """A cloze recipe, by file or by name. What the space does not name stays as the recipe has it."""

    trials: int
    """Finished trials that the study has in the end."""

    storage: Annotated[str, arg(metavar="URL")]
    """Where the study is kept, such as sqlite:///sweep.db."""

    space: Annotated[Path | None, option("FILE")] = None
    """Ranges to search, as in training/spaces/. Default: the learning rate."""

    data: Path = Path("data")
    """Folder of the recipe's data files."""

    sampler: Literal["tpe", "gp"] = "tpe"
    """Tree-structured Parzen estimator, or a Gaussian process."""

    seed: int = 17
    """Seed of the sampler."""

    paper_protocol: Annotated[Path | None, option("PAIRS")] = None
    """Select on these evaluation pairs, as the paper did. For replication only."""

    json: Flag = False
    """Print the best trial as JSON."""


@dataclass(frozen=True, slots=True)
class Data:
    """Count the pairs of data sets and the dropped ones by reason, as Markdown tables; optionally write the pairs.

    A set is NAME, NAME:PART, a file of your own as file:PATH, or a set of the hub as hub:OWNER/NAME; recipe:NAME means
    all sets of a recipe.

    Examples:
      tinyrm train data file:my.jsonl
      tinyrm train data recipe:paper/large-chat --write pairs.jsonl
    """

    sources: Annotated[Positional[tuple[str, ...]], arg(metavar="SET")]
    """skywork:chat, webgpt, file:FILE, hub:OWNER/NAME, recipe:NAME, ..."""

    data: Path = Path("data")
    """Folder with local copies and your own files; other sets come from the hub."""

    held_out: float = 0.02
    """Share of prompts kept for validation."""

    seed: int = 17
    """Seed of the split, as in the recipe."""

    decontaminate: Annotated[tuple[Path, ...], option("FILE ...")] = ()
    """Evaluation sets, Parquet or JSON: count the pairs whose prompts overlap with theirs."""

    drop: Annotated[Literal[8, 13] | None, option("8|13")] = None
    """Leave out the pairs that share this many words in a row with an evaluation set."""

    max_characters: Annotated[int | None, option("N")] = None
    """Leave out pairs whose prompt and responses have more characters together."""

    write: Annotated[Path | None, option("FILE")] = None
    """Write the remaining pairs as JSON lines."""

    conversations: Flag = False
    """Write conversations for the masked-LM stage instead of pairs (oasst2)."""

    json: Flag = False
    """Print the counts as JSON."""
