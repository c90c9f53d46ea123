"""The command line of `python -m training`: one dataclass a subcommand. Imports nothing that takes time."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg


@dataclass(frozen=True, slots=True)
class Train:
    """Run one recipe: preference pairs or text in, a checkpoint or an adapter out."""

    recipe: Annotated[Positional[str], arg(metavar="RECIPE")] = ""
    """RECIPE.yaml, or the name of one in training/recipes/, such as paper/large-chat."""

    named: Annotated[str, arg(name="recipe", metavar="RECIPE")] = ""
    """The same as an option."""

    data: Path = Path("data")
    """Folder of the recipe's data files."""

    resume: bool = False
    """Continue from the newest checkpoint in the output folder, if there is one."""

    fresh: bool = False
    """Replace whatever run the output folder holds. Without it, a folder that holds one is refused."""

    dry_run: bool = False
    """Print what the recipe would do, without network, and stop."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Print what a recipe would do and cost, and how the other variants differ. Needs no network."""

    recipe: Annotated[Positional[str], arg(metavar="RECIPE")]
    """RECIPE.yaml, or the name of one in training/recipes/."""

    data: Path = Path("data")
    """Folder of the recipe's data files; those that are there are counted."""


@dataclass(frozen=True, slots=True)
class Compare:
    """Train each recipe with several seeds and gather the held-out metrics in one table.

    The same command continues a grid that was stopped: finished runs are skipped, an interrupted one resumes.
    """

    recipes: Annotated[Positional[tuple[str, ...]], arg(metavar="RECIPE")]
    """Files, or names such as experiments/cloze. The first one is what the others are compared with."""

    data: Path = Path("data")
    """Folder of the recipes' data files."""

    out: Path = Path("runs/experiments")
    """Folder for the results, with one folder per recipe and seed."""

    seeds: tuple[int, ...] = (17, 18, 19)
    """Seeds of each recipe."""

    peak_lrs: tuple[float, ...] = ()
    """Train each recipe at each of these learning rates instead of its own."""

    max_steps: int | None = None
    """Stop every run after this many steps, to try a grid out."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """Search the hyperparameters of a cloze recipe on pairs held out of the training data.

    The study lives in the storage: the same command continues a sweep that was killed, and several processes may share
    one.
    """

    recipe: Annotated[Positional[str], arg(metavar="RECIPE")]
    """A cloze recipe, by file or by name. What the space does not name stays as the recipe has it."""

    trials: int
    """Finished trials that the study has in the end."""

    storage: Annotated[str, arg(metavar="URL")]
    """Where the study is kept, such as sqlite:///sweep.db."""

    space: Path | None = None
    """Ranges to search, as in training/spaces/. Default: the learning rate."""

    data: Path = Path("data")
    """Folder of the recipe's data files."""

    sampler: Literal["tpe", "gp"] = "tpe"
    """Tree-structured Parzen estimator, or a Gaussian process."""

    seed: int = 17
    """Seed of the sampler."""

    paper_protocol: Annotated[Path | None, arg(metavar="PAIRS")] = None
    """Select on these evaluation pairs, as the paper did. For replication only."""


@dataclass(frozen=True, slots=True)
class Data:
    """Count the pairs of data sets and the dropped ones by reason, as Markdown tables; optionally write the pairs.

    A set is NAME, NAME:PART, or a file of your own as jsonl:PATH; recipe:NAME means all sets of a recipe.
    """

    sources: Annotated[Positional[tuple[str, ...]], arg(metavar="SET")]
    """skywork:chat, webgpt, jsonl:FILE, recipe:NAME, ..."""

    data: Path = Path("data")
    """Folder with local copies and your own files; other sets come from the hub."""

    held_out: float = 0.02
    """Share of prompts kept for validation."""

    seed: int = 17
    """Seed of the split, as in the recipe."""

    decontaminate: Annotated[tuple[Path, ...], arg(metavar="FILE")] = ()
    """Evaluation sets, Parquet or JSON: count the pairs whose prompts overlap with theirs."""

    drop: Literal[8, 13] | None = None
    """Leave out the pairs that share this many words in a row with an evaluation set."""

    max_characters: int | None = None
    """Leave out pairs whose prompt and responses have more characters together."""

    write: Path | None = None
    """Write the remaining pairs as JSON lines."""

    conversations: bool = False
    """Write conversations for the masked-LM stage instead of pairs (oasst2)."""
