"""Training prompts that share words with the prompts of an evaluation set.

A pair counts as seen in an evaluation set if its prompt has `n` words in a row that a prompt of the set has too, or if
the two prompts have the same words throughout: short prompts have no n-gram. Words are letters, digits and
underscores, in lower case. 13 words are the customary bound (GPT-3, arXiv 2005.14165, appendix C); 8 find more
paraphrase and more stock phrases.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from tinyrm.errors import InvalidInput
from tinyrm.pairs import PreferencePair
from training.data.rows import Row, read_files, training_files

SIZES = (8, 13)
CHUNK = 4096  # prompts at a time: some 10 MB of word numbers

PROMPT_FIELDS = ("prompt", "question")
_WORD = re.compile(r"\w+")
_UNKNOWN = 0
_FILTER_BITS = 24  # 16 MB for each n
# Odd and large, so that powers of it run through all 64 bits; arithmetic is modulo 2^64.
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)

Hashes = NDArray[np.uint64]
Numbers = NDArray[np.int64]


class Overlap(BaseModel):
    """What training pairs share with one evaluation set.

    pairs: n -> training pairs with n words in a row in common. prompts: n -> prompts of the set that are touched.
    same_pairs, same_prompts: the like for prompts that have the same words throughout.
    """

    model_config = ConfigDict(frozen=True)

    evaluation_prompts: int
    pairs: dict[int, int]
    prompts: dict[int, int]
    same_pairs: int
    same_prompts: int


@dataclass(frozen=True, slots=True)
class Decontaminated:
    """overlaps: name of the evaluation set -> what was found. dropped: pairs that are in `pairs` no more."""

    pairs: list[PreferencePair]
    overlaps: dict[str, Overlap]
    dropped: int


def decontaminate(
    pairs: list[PreferencePair], evaluations: Mapping[str, Sequence[str]], drop: int | None = None
) -> Decontaminated:
    """Count the pairs whose prompts overlap with each evaluation set's, for n-grams of 8 and of 13 words.

    evaluations: name -> prompts. drop: 8 or 13 to leave out the pairs that overlap with any set at that n or have a
    prompt of theirs; None to count only. Raises InvalidInput for another n.
    """
    if drop not in (None, *SIZES):
        raise InvalidInput(f"drop={drop}: counted are n-grams of {' and '.join(map(str, SIZES))} words")
    search = _Search(list(evaluations.values()))
    for start in range(0, len(pairs), CHUNK):
        search.look_through([pair.prompt for pair in pairs[start : start + CHUNK]], start)
    overlaps = {name: search.overlap(i) for i, name in enumerate(evaluations)}
    bad = search.found(drop) if drop is not None else set()
    kept = [pair for i, pair in enumerate(pairs) if i not in bad]
    return Decontaminated(kept, overlaps, len(pairs) - len(kept))


def read_prompts(path: Path) -> list[str]:
    """The prompts of an evaluation set: Parquet or JSON (lines, or one array), a file or a folder of them.

    The prompt is called `prompt` (RewardBench, RewardBench 2, RM-Bench) or `question` (JudgeBench), and is a string or
    a list of {role, content}. Raises InvalidInput if there is neither, or no such file.
    """
    if not path.exists():
        raise InvalidInput(f"{path} does not exist")
    files = [path] if path.is_file() else training_files(path)
    return list(dict.fromkeys(_prompt(row, path) for row in read_files(files)))


def _prompt(row: Row, path: Path) -> str:
    for name in PROMPT_FIELDS:
        value = row.get(name)
        if isinstance(value, str):
            return value
        if isinstance(value, list):
            return "\n\n".join(message["content"] for message in value)
    raise InvalidInput(f"{path} has no {' or '.join(PROMPT_FIELDS)}; its columns are {', '.join(row)}")


@dataclass(frozen=True, slots=True)
class _Numbered:
    """Prompts as one row of word numbers, each followed by an unknown word, so that no n-gram spans two prompts.

    words [all words]; owner [all words]: number of the prompt; whole [prompts]: hash of all words of each, 0 for none.
    """

    words: NDArray[np.uint64]
    owner: Numbers
    whole: Hashes

    def ngrams(self, n: int) -> tuple[Hashes, Numbers]:
        """Hash and owner of each n-gram of known words."""
        count = len(self.words) - n + 1
        if count <= 0:
            return np.empty(0, np.uint64), np.empty(0, np.int64)
        known = np.ones(count, dtype=bool)
        hashes = np.zeros(count, np.uint64)
        for i in range(n):
            window = self.words[i : i + count]
            known &= window != _UNKNOWN
            hashes = hashes * _MULTIPLIER + window
        return hashes[known], self.owner[:count][known]

    def prompts(self) -> tuple[Hashes, Numbers]:
        """Hash and number of each prompt that has words."""
        has_words = self.whole != 0
        return self.whole[has_words], np.flatnonzero(has_words)


class _Vocabulary:
    """Words of the evaluation sets, numbered from 1. An n-gram with any other word cannot be in them."""

    def __init__(self, prompts: Iterable[str]) -> None:
        words = dict.fromkeys(word for prompt in prompts for word in _words(prompt))
        self._numbers = {word: number for number, word in enumerate(words, start=1)}

    def encode(self, prompts: Sequence[str]) -> _Numbered:
        get = self._numbers.get
        rows = [[*(get(word, _UNKNOWN) for word in _words(prompt)), _UNKNOWN] for prompt in prompts]
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        words = np.fromiter((number for row in rows for number in row), np.uint64, count=int(lengths.sum()))
        whole = np.array([_whole(row[:-1]) for row in rows], dtype=np.uint64)
        return _Numbered(words, np.repeat(np.arange(len(rows)), lengths), whole)


class _Search:
    """All evaluation sets, and what has been found of them so far."""

    def __init__(self, sets: Sequence[Sequence[str]]) -> None:
        self._sizes = [len(prompts) for prompts in sets]
        self._vocabulary = _Vocabulary(prompt for prompts in sets for prompt in prompts)
        numbered = [self._vocabulary.encode(prompts) for prompts in sets]
        self._ngrams = {n: _Targets([part.ngrams(n) for part in numbered]) for n in SIZES}
        self._same = _Targets([part.prompts() for part in numbered])

    def look_through(self, prompts: Sequence[str], start: int) -> None:
        """Training prompts, the first of which is number `start`."""
        numbered = self._vocabulary.encode(prompts)
        for n, targets in self._ngrams.items():
            targets.look_for(*numbered.ngrams(n), start)
        self._same.look_for(*numbered.prompts(), start)

    def found(self, n: int) -> set[int]:
        """Numbers of the training prompts that have an n-gram of any set, or are in one."""
        return {int(i) for k in range(len(self._sizes)) for t in (self._ngrams[n], self._same) for i in t.found(k)}

    def overlap(self, k: int) -> Overlap:
        """With set number k."""
        return Overlap(
            evaluation_prompts=self._sizes[k],
            pairs={n: len(targets.found(k)) for n, targets in self._ngrams.items()},
            prompts={n: len(targets.touched(k)) for n, targets in self._ngrams.items()},
            same_pairs=len(self._same.found(k)),
            same_prompts=len(self._same.touched(k)),
        )


class _Targets:
    """Hashes of all sets, to look for among those of the training prompts; hashes and prompt numbers of each set.

    Two different n-grams share a hash by chance about once in 2^64: 10^8 looked up among 10^6 err once in 10^5 runs.
    """

    def __init__(self, sets: Sequence[tuple[Hashes, Numbers]]) -> None:
        self._sets = sets
        self._hashes = np.unique(np.concatenate([np.empty(0, np.uint64), *(hashes for hashes, _ in sets)]))
        # One look here rules out nearly every n-gram; a binary search among a million misses the cache at each step.
        self._may_be = np.zeros(2**_FILTER_BITS, dtype=bool)
        self._may_be[_filter_place(self._hashes)] = True
        self._hits: list[tuple[Hashes, Numbers]] = []

    def look_for(self, hashes: Hashes, owners: Numbers, start: int) -> None:
        likely = self._may_be[_filter_place(hashes)]
        hashes, owners = hashes[likely], owners[likely]
        if not len(hashes):
            return
        places = np.searchsorted(self._hashes, hashes)
        is_hit = self._hashes[np.minimum(places, len(self._hashes) - 1)] == hashes
        self._hits.append((hashes[is_hit], owners[is_hit] + start))

    def found(self, k: int) -> Numbers:
        """Training prompts with a hash of set k."""
        hashes, owners = self._all_hits()
        return np.unique(owners[np.isin(hashes, self._sets[k][0])])

    def touched(self, k: int) -> Numbers:
        """Prompts of set k with a hash that was found."""
        hashes, owners = self._sets[k]
        return np.unique(owners[np.isin(hashes, self._all_hits()[0])])

    def _all_hits(self) -> tuple[Hashes, Numbers]:
        hashes = [np.empty(0, np.uint64), *(hashes for hashes, _ in self._hits)]
        owners = [np.empty(0, np.int64), *(owners for _, owners in self._hits)]
        return np.concatenate(hashes), np.concatenate(owners)


def _filter_place(hashes: Hashes) -> Hashes:
    """The upper bits: the lower ones of a polynomial depend on the lower bits of its terms alone."""
    return hashes >> np.uint64(64 - _FILTER_BITS)


def _words(text: str) -> Iterator[str]:
    return iter(_WORD.findall(text.lower()))


def _whole(numbers: Sequence[int]) -> int:
    """A hash of all words of a prompt, never 0; 0 if there are none. No evaluation prompt has an unknown word."""
    return hash(tuple(numbers)) % (2**64 - 1) + 1 if numbers else 0
