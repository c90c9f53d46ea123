"""Training prompts that share words with the prompts of an evaluation set.

A pair overlaps with an evaluation set if its prompt has `n` words in a row that a prompt of the set has too, or if the
two prompts consist of the same words: short prompts have no n-gram. Words are letters, digits and underscores, in lower
case. 13 words are the customary bound (GPT-3, arXiv 2005.14165, appendix C); 8 find more paraphrases and more stock
phrases.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tinyrm.chat import list_turns, to_messages
from tinyrm.errors import InvalidInput
from tinyrm.pairs import PreferencePair
from training.data.rows import read_files, training_files

SIZES = (8, 13)
WHOLE = 0  # in place of a size: all words of a prompt
PROMPT_FIELDS = ("prompt", "question")
WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Overlap:
    """The overlap of training pairs with one evaluation set.

    pairs: n -> training pairs with n words in a row in common.
    prompts: n -> prompts of the set that share n words in a row with a training prompt.
    same_pairs, same_prompts: the same counts for prompts that consist of the same words.
    """

    evaluation_prompts: int
    pairs: dict[int, int]
    prompts: dict[int, int]
    same_pairs: int
    same_prompts: int


@dataclass(frozen=True, slots=True)
class Decontaminated:
    """The pairs that are left.

    overlaps: name of the evaluation set -> its counts.
    dropped: number of pairs that are no longer in `pairs`.
    """

    pairs: list[PreferencePair]
    overlaps: dict[str, Overlap]
    dropped: int


class EvaluationSet:
    """The prompts of an evaluation set, and those found so far; each dictionary has a set per size."""

    def __init__(self, prompts: Sequence[str]) -> None:
        self.prompts = [split_words(prompt) for prompt in prompts]
        sizes = (*SIZES, WHOLE)
        self.runs = {n: set().union(*(hash_runs(words, n) for words in self.prompts)) for n in sizes}
        self.found_runs: dict[int, set[int]] = {n: set() for n in sizes}
        self.found_pairs: dict[int, set[int]] = {n: set() for n in sizes}

    def look_for(self, words: Sequence[str], number: int) -> None:
        """Record what the prompt of training pair `number` has in common with this set."""
        for n, runs in self.runs.items():
            if common := runs.intersection(hash_runs(words, n)):
                self.found_runs[n] |= common
                self.found_pairs[n].add(number)

    def overlap(self) -> Overlap:
        prompts = {
            n: sum(not found.isdisjoint(hash_runs(words, n)) for words in self.prompts)
            for n, found in self.found_runs.items()
        }
        pairs = {n: len(numbers) for n, numbers in self.found_pairs.items()}
        same_pairs, same_prompts = pairs.pop(WHOLE), prompts.pop(WHOLE)
        return Overlap(len(self.prompts), pairs, prompts, same_pairs, same_prompts)


def decontaminate(
    pairs: list[PreferencePair], evaluations: Mapping[str, Sequence[str]], drop: int | None = None
) -> Decontaminated:
    """Count the pairs whose prompts overlap with each evaluation set's, for n-grams of 8 and of 13 words.

    evaluations: name -> prompts.
    drop: 8 or 13 leaves out the pairs that overlap with any set at that n, or have one of its prompts; None: none.

    Raises InvalidInput for another n.
    """
    if drop not in (None, *SIZES):
        raise InvalidInput(f"drop={drop}: only n-grams of {' and '.join(map(str, SIZES))} words are counted")
    sets = {name: EvaluationSet(prompts) for name, prompts in evaluations.items()}
    # Nearly every prompt ends here: a longer common run contains a shorter one.
    shortest: set[int] = set().union(*(each.runs[min(SIZES)] for each in sets.values()))
    whole: set[int] = set().union(*(each.runs[WHOLE] for each in sets.values()))
    for number, pair in enumerate(pairs):
        words = split_words(pair.prompt)
        if not (shortest.isdisjoint(hash_runs(words, min(SIZES))) and whole.isdisjoint(hash_runs(words, WHOLE))):
            for each in sets.values():
                each.look_for(words, number)
    bad = {i for each in sets.values() if drop for n in (drop, WHOLE) for i in each.found_pairs[n]}
    kept = [pair for i, pair in enumerate(pairs) if i not in bad]
    return Decontaminated(kept, {name: each.overlap() for name, each in sets.items()}, len(bad))


def split_words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def hash_runs(words: Sequence[str], n: int) -> Iterator[int]:
    """Return a hash of every n words in a row, or of all words together for n = WHOLE.

    Two different runs share one of 2^61 hashes by chance: 10^8 looked up among 10^6 err about once in 10^4 calls.
    """
    if n == WHOLE:
        return iter([hash(tuple(words))] if words else [])
    return map(hash, zip(*(words[i:] for i in range(n)), strict=False))


def read_prompts(path: Path) -> list[str]:
    """Return the distinct prompts of an evaluation set: Parquet or JSON (lines or one array), a file or a folder.

    The prompt is called `prompt` (RewardBench, RewardBench 2, RM-Bench) or `question` (JudgeBench), and is a string or
    a list of chat messages. Raises InvalidInput if a record has neither, or if the file does not exist.
    """
    if not path.exists():
        raise InvalidInput(f"{path} does not exist")
    prompts: dict[str, None] = {}
    for row in read_files([path] if path.is_file() else training_files(path)):
        name = next((name for name in PROMPT_FIELDS if name in row), None)
        if name is None:
            raise InvalidInput(f"{path} has no {' or '.join(PROMPT_FIELDS)}; its columns are {', '.join(row)}")
        value = row[name]
        if value is None:  # one row without a prompt does not end the work on all others
            continue
        if not isinstance(value, str):
            value = "\n\n".join(message["content"] for message in to_messages(list_turns(value, name)))
        prompts[value] = None
    return list(prompts)
