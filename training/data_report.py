"""What the data sets of a recipe give, as Markdown tables: `python -m training data`."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError
from tabulate import tabulate

from tinyrm.errors import InvalidInput
from tinyrm.files import open_text
from tinyrm.pairs import PreferencePair
from training.data.cleaning import Reason
from training.data.decontamination import SIZES, Overlap, decontaminate, read_prompts
from training.data.mixture import Mixture, load_all, load_conversations
from training.data.source import Source
from training.data.split import split_by_prompt
from training.loading import find_recipe, load_recipe
from training.options import Data
from training.recipe import ClozeRecipe
from training.recipe_errors import invalid_recipe


def count_pairs(options: Data) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (paragraph, its figures by name) of the report, and write the remaining pairs if the options say so.

    A name that comes again, as the number of pairs does, has a newer figure.
    """
    sources = parse_sources(options.sources)
    inputs = [options.data / source.path for source in sources if source.path] + list(options.decontaminate)
    if options.write and options.write.resolve() in [path.resolve() for path in inputs]:
        raise InvalidInput(f"{options.write} is read here, and would be written over; choose another file")
    mixture = load_all(sources, options.data)
    pairs = mixture.loaded.pairs
    sources_read = {
        name: {"read": part.read, "dropped": part.dropped, "pairs": len(part.pairs)}
        for name, part in mixture.parts.items()
    }
    yield source_table(mixture), {"sources": sources_read, "pairs": len(pairs)}
    held_out = len(split_by_prompt(pairs, options.held_out, options.seed)[1])
    text = f"\nheld out: {held_out} pairs ({options.held_out:.1%} of the prompts of each subset)"
    yield text, {"held_out_pairs": held_out}
    if options.decontaminate:
        names = [path.name for path in options.decontaminate]
        evaluations = {
            path.name if names.count(path.name) == 1 else str(path): read_prompts(path)
            for path in options.decontaminate
        }
        result = decontaminate(pairs, evaluations, options.drop)
        pairs = result.pairs
        overlaps = {name: asdict(overlap) for name, overlap in result.overlaps.items()}
        yield f"\n{overlap_table(result.overlaps)}", {"overlaps": overlaps}
        if options.drop:
            text = f"\n{result.dropped} pairs dropped at n = {options.drop}, {len(pairs)} left"
            yield text, {"overlapping_pairs_dropped": result.dropped, "pairs": len(pairs)}
    if options.max_characters:
        pairs = [
            pair for pair in pairs if len(pair.prompt) + len(pair.chosen) + len(pair.rejected) <= options.max_characters
        ]
        yield f"\n{len(pairs)} pairs of at most {options.max_characters} characters", {"pairs": len(pairs)}
    if options.write:
        write_pairs(pairs, options.write)


def parse_sources(texts: Sequence[str]) -> list[Source]:
    """Return the sources that a command line names: NAME, NAME:PART, file:PATH, hub:ID or recipe:NAME."""
    sources: list[Source] = []
    for text in texts:
        name, _, rest = text.partition(":")
        if name == "recipe":
            recipe = load_recipe(find_recipe(rest))
            if not isinstance(recipe, ClozeRecipe):
                raise InvalidInput(f"{rest} is of task {recipe.task} and has no preference pairs")
            sources += recipe.sources
        else:
            fields: dict[str, Any] = {"dataset": name}
            if rest:
                fields[{"jsonl": "path", "file": "path", "hub": "id"}.get(name, "part")] = rest
            try:
                sources.append(Source.model_validate(fields))
            except ValidationError as error:
                raise invalid_recipe(error, Source, text) from error
    if not sources:
        raise InvalidInput("name at least one data set, such as skywork:chat, jsonl:train.jsonl.gz or recipe:NAME")
    return sources


def write_pairs(pairs: Sequence[PreferencePair], path: Path) -> None:
    """Write a file that a recipe reads as dataset jsonl."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_text(path, "wt") as file:
        file.writelines(pair.model_dump_json(exclude_none=True) + "\n" for pair in pairs)


def write_conversations(sources: Sequence[Source], data_dir: Path, path: Path | None) -> int:
    """Write a file that the SFT stage reads: {"messages": [{"role", "content"}]} a line; return how many.

    Raises InvalidInput without a path, and for a source without conversations.
    """
    if path is None:
        raise InvalidInput("--conversations needs --write FILE")
    threads = [thread for source in sources for thread in load_conversations(source, data_dir)]
    lines = (json.dumps({"messages": thread}) + "\n" for thread in threads)
    with open_text(path, "wt") as file:
        file.writelines(lines)
    return len(threads)


def source_table(mixture: Mixture) -> str:
    """Return a row for each source and one for all of them, with a column for each reason that dropped any pair."""
    every = mixture.loaded
    known = [*get_args(Reason), *sorted(set(every.dropped) - set(get_args(Reason)))]
    reasons = [reason for reason in known if every.dropped.get(reason)]
    parts = list(mixture.parts.items()) + ([("together", every)] if len(mixture.parts) > 1 else [])
    rows = [
        [name, part.read, *(part.dropped.get(reason, 0) for reason in reasons), len(part.pairs)] for name, part in parts
    ]
    return markdown(["source", "read", *reasons, "pairs"], rows)


def overlap_table(overlaps: Mapping[str, Overlap]) -> str:
    """Return a row for each evaluation set: the training pairs that share words with it, and its prompts concerned."""
    grams = [f"{what}, {n}-gram" for n in SIZES for what in ("pairs", "prompts")]
    rows = [
        [
            name,
            overlap.evaluation_prompts,
            *(counts[n] for n in SIZES for counts in (overlap.pairs, overlap.prompts)),
            overlap.same_pairs,
            overlap.same_prompts,
        ]
        for name, overlap in overlaps.items()
    ]
    return markdown(["evaluation set", "prompts", *grams, "pairs, same prompt", "prompts, same"], rows)


def markdown(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    return tabulate(rows, head, tablefmt="pipe", disable_numparse=True, colalign=["left"] + ["right"] * (len(head) - 1))
