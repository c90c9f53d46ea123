"""python -m training.data skywork:chat jsonl:train.jsonl.gz: what the sets give, what is dropped and why.

Prints Markdown tables. A set is NAME or NAME:PART, or a file of ours jsonl:PATH; both are looked for in the data
folder first. recipe:NAME is all that a recipe learns from. With --decontaminate it counts the pairs that overlap with
evaluation sets, and --drop leaves them out. With --conversations it writes dialogues instead, for the masked-LM stage:
{"messages": [{"role", "content"}]} a line.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tinyrm.errors import InvalidInput, TinyRMError
from tinyrm.files import open_text
from tinyrm.pairs import PreferencePair
from training.data.decontamination import SIZES, decontaminate, read_prompts
from training.data.mixture import Mixture, load_all, load_conversations
from training.data.report import overlap_table, source_table
from training.data.source import Source
from training.data.split import split_by_prompt
from training.loading import find_recipe, load_recipe
from training.recipe import ClozeRecipe


def main() -> int:
    try:
        run(_parser().parse_args())
    except ValidationError as error:
        print(f"training.data: {error.errors()[0]['msg']}", file=sys.stderr)
        return 1
    except (TinyRMError, OSError) as error:
        print(f"training.data: {error}", file=sys.stderr)
        return 1
    return 0


def run(arguments: argparse.Namespace) -> None:
    sources = [source for text in arguments.sources for source in parse_sources(text)]
    if arguments.conversations:
        write_conversations(sources, arguments.data, arguments.write)
        return
    mixture = load_all(sources, arguments.data)
    pairs = mixture.loaded.pairs
    print(_sources(mixture, arguments.held_out, arguments.seed))
    if arguments.decontaminate:
        evaluations = {_name(path, arguments.decontaminate): read_prompts(path) for path in arguments.decontaminate}
        result = decontaminate(pairs, evaluations, arguments.drop)
        pairs = result.pairs
        print(f"\n{overlap_table(result.overlaps)}")
        if arguments.drop:
            print(f"\n{result.dropped} pairs dropped at n = {arguments.drop}, {len(pairs)} left")
    if arguments.max_characters:
        pairs = [pair for pair in pairs if characters(pair) <= arguments.max_characters]
        print(f"\n{len(pairs)} pairs of at most {arguments.max_characters} characters")
    if arguments.write:
        write_pairs(pairs, arguments.write)


def characters(pair: PreferencePair) -> int:
    return len(pair.prompt) + len(pair.chosen) + len(pair.rejected)


def _name(path: Path, others: Sequence[Path]) -> str:
    """The shortest that tells an evaluation set from the others."""
    return path.name if [other.name for other in others].count(path.name) == 1 else str(path)


def parse_sources(text: str) -> tuple[Source, ...]:
    """A source, or all of a recipe, as recipe:NAME."""
    name, _, rest = text.partition(":")
    if name != "recipe":
        return (parse_source(text),)
    recipe = load_recipe(find_recipe(rest))
    if not isinstance(recipe, ClozeRecipe):
        raise InvalidInput(f"{rest} is of task {recipe.task} and has no preference pairs")
    return recipe.sources


def parse_source(text: str) -> Source:
    """NAME, NAME:PART or jsonl:PATH."""
    name, _, rest = text.partition(":")
    fields: dict[str, Any] = {"dataset": name}
    if rest:
        fields["path" if name == "jsonl" else "part"] = rest
    return Source.model_validate(fields)


def write_pairs(pairs: Sequence[PreferencePair], path: Path) -> None:
    """As a file that a recipe reads with dataset jsonl."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_text(path, "wt") as file:
        file.writelines(pair.model_dump_json(exclude_none=True) + "\n" for pair in pairs)


def write_conversations(sources: Sequence[Source], data_dir: Path, path: Path | None) -> None:
    """As a file that the SFT stage reads. Raises InvalidInput if there is no path, or a source without dialogues."""
    if path is None:
        raise InvalidInput("--conversations needs --write FILE")
    threads = [thread for source in sources for thread in load_conversations(source, data_dir)]
    with open_text(path, "wt") as file:
        for thread in threads:
            file.write(json.dumps({"messages": thread}) + "\n")
    print(f"{len(threads)} conversations in {path}")


def _sources(mixture: Mixture, fraction: float, seed: int) -> str:
    held_out = split_by_prompt(mixture.loaded.pairs, fraction, seed)[1]
    return f"{source_table(mixture)}\n\nheld out: {len(held_out)} pairs ({fraction:.1%} of the prompts of each subset)"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.data", description=__doc__)
    parser.add_argument("sources", nargs="+", metavar="SET", help="skywork:chat, webgpt, jsonl:FILE, recipe:NAME, ...")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with local copies and our own files")
    parser.add_argument("--held-out", type=float, default=0.02, help="share of prompts kept for validation")
    parser.add_argument("--seed", type=int, default=17, help="of the split, as in the recipe")
    parser.add_argument(
        "--decontaminate", nargs="+", type=Path, default=[], metavar="FILE", help="evaluation sets, Parquet or JSON"
    )
    parser.add_argument("--drop", type=int, choices=SIZES, help="leave out pairs with so many words in common")
    parser.add_argument(
        "--max-characters", type=int, metavar="N", help="leave out pairs whose prompt and responses have more together"
    )
    parser.add_argument("--write", type=Path, help="write the pairs that are left as JSON lines")
    parser.add_argument("--conversations", action="store_true", help="write dialogues, not pairs (oasst2)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
